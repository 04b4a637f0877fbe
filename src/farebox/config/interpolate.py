"""`${NAME}` and `${file:PATH}` inside a value; `$${` stands for a literal `${`.

Works on one value after YAML was read, so a variable can never change the file's structure, and
what it brings in is not looked at again. Reading files and the environment is the caller's: both
come in as arguments.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

FILE_CHARS_MAX = 65_536
"""A `${file:PATH}` with more is refused: it is a key or a token, never a document."""

_TOKEN = re.compile(r"\$\$\{|\$\{([^}]*)\}|\$\{")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class InterpolationError(ValueError):
    """A `${...}` that cannot be resolved. Its text is a fault's message and holds no value."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """`sources` names what came from outside, `unset` the variables without a value (`text` is then unusable)."""

    text: str
    sources: tuple[str, ...] = ()
    unset: tuple[str, ...] = ()


def resolve(raw: str, env: Mapping[str, str], read_file: Callable[[str], str]) -> Resolved:
    """`raw` with every `${...}` replaced. Raises `InterpolationError`; `read_file` may raise OSError or ValueError.

    Trailing line breaks of a file are dropped, since editors add one.
    """
    if "${" not in raw:
        return Resolved(raw)
    sources: list[str] = []
    unset: list[str] = []

    def one(match: re.Match[str]) -> str:
        inner = match[1]
        if match[0] == "$${":
            return "${"
        if inner is None:
            raise InterpolationError("`${` without its `}`; a literal `${` is written `$${`")
        sources.append(match[0])
        if inner.startswith("file:"):
            return _file(inner.removeprefix("file:"), read_file)
        if not _NAME.fullmatch(inner):
            raise InterpolationError(
                "`${...}` takes the name of an environment variable, or `file:PATH`; a default is not supported, "
                "and a literal `${` is written `$${`"
            )
        if not env.get(inner):
            unset.append(inner)
        return env.get(inner, "")

    text = _TOKEN.sub(one, raw)
    return Resolved(text, tuple(sources), tuple(dict.fromkeys(unset)))


def _file(path: str, read_file: Callable[[str], str]) -> str:
    if not path:
        raise InterpolationError("`${file:}` names no file; write ${file:PATH}")
    try:
        text = read_file(path)
    except OSError as error:
        raise InterpolationError(f"cannot read {path}: {error.strerror or type(error).__name__}") from None
    except ValueError:
        # A decoding error quotes the bytes it failed on, and they may be a secret.
        raise InterpolationError(f"cannot read {path}: not a text file in UTF-8, or not a usable path") from None
    if len(text) > FILE_CHARS_MAX:
        raise InterpolationError(f"{path} has more than {FILE_CHARS_MAX} characters")
    return text.rstrip("\r\n")
