"""The example config, rendered from the schema: every setting with its default and its documentation.

`config.example.yaml` and the file that `farebox init` writes are this text. A line that begins with
`#` and no space is a setting that is shown but not set; all other comments are prose.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator
from typing import Any

from farebox.config import kinds
from farebox.config.budgets import BudgetRule
from farebox.config.providers import Match, Provider, RouteRule
from farebox.config.reader import settings_of
from farebox.config.schema import Config

_WIDTH = 100
OPTIONS_IN_PROSE = 4
"""A choice of at most this many words has them explained in its own documentation."""

_HEAD = """\
# farebox config. Every setting stands here with its default; what you do not change can be removed,
# and an empty file is a config too. `farebox check` reports every mistake in it with its place.
#
# A line like `#name: value` is a setting shown but not set. In values, ${NAME} is an environment
# variable, ${file:PATH} the text of a file (a relative path counts from the folder farebox is started
# in; line breaks at its end are dropped), and $${ a literal ${. Put such values in quotes.
# A variable that is not set, or empty, is a fault, except in a provider's api_key.
"""

_MORE_PROVIDERS = (
    'claude: {dialect: anthropic, base_url: "https://api.anthropic.com", api_key: "${ANTHROPIC_API_KEY}"}',
    '#local: {dialect: vllm, base_url: "http://localhost:8000/v1"}',
)
_MORE_ROUTES = (
    "# Requests that no rule matches are refused, so the last rule is mostly this one.",
    "- {match: {}, to: [openai]}",
)


def render() -> str:
    """The text of the example, ending in a line break. Loads as it is, with or without the keys it names."""
    return _HEAD + "".join(line + "\n" for line in _config())


def _config() -> Iterator[str]:
    for name, (_, about) in settings_of(Config).items():
        yield ""
        yield from _prose(_said(about), "")
        yield f"{name}:"
        if isinstance(about.kind, kinds.Section):
            yield from _fields(about.kind.cls, "  ")
        elif isinstance(about.kind, kinds.Named):
            yield from _providers()
        elif name == "budgets":
            yield from _budget()
        else:
            yield from _routes()


def _providers() -> Iterator[str]:
    yield "  openai:"
    yield from _fields(Provider, "    ")
    for line in _MORE_PROVIDERS:
        yield f"  {line}"


def _routes() -> Iterator[str]:
    lines = list(_route())
    first = next(i for i, line in enumerate(lines) if not line.lstrip().startswith("#"))
    yield from (line[2:] for line in lines[:first])
    yield "  - " + lines[first].lstrip()
    yield from lines[first + 1 :]
    for line in _MORE_ROUTES:
        yield f"  {line}"


def _route() -> Iterator[str]:
    for name, (field, about) in settings_of(RouteRule).items():
        yield from _prose(about.doc, "    ")
        if isinstance(about.kind, kinds.Section):
            yield f"    {name}:"
            yield from _fields(Match, "      ")
        else:
            yield _line(name, field, about, "    ")


def _budget() -> Iterator[str]:
    """One budget, none of it set: an example must not refuse anybody's calls."""
    start = "  #- "
    for name, (_, about) in settings_of(BudgetRule).items():
        yield from _prose(" ".join(filter(None, (about.doc, _accepts(about.kind)))), start.partition("#")[0])
        yield f"{start}{name}: {about.show}"
        start = "    #"


def _fields(cls: type, indent: str) -> Iterator[str]:
    for name, (field, about) in settings_of(cls).items():
        yield from _prose(" ".join(filter(None, (_said(about), _accepts(about.kind)))), indent)
        if cls is Provider and isinstance(about.kind, kinds.Map):
            # What it shows is the name of one entry, whose settings follow.
            yield f"{indent}#{name}:"
            yield f"{indent}  #{about.show}:"
            yield from _fields(about.kind.cls, f"{indent}    ")
        else:
            yield _line(name, field, about, indent)


def _line(name: str, field: dataclasses.Field[Any], about: kinds.Setting, indent: str) -> str:
    if about.show is None:
        return f"{indent}{name}: {_yaml(field.default)}"
    return f"{indent}{'' if about.live else '#'}{name}: {about.show}"


def _said(about: kinds.Setting) -> str:
    return f"{about.doc} A change takes effect at the next start." if about.at_start else about.doc


def _accepts(kind: kinds.Kind) -> str:
    """The range of a number, the words of a long choice: what the prose does not repeat."""
    if isinstance(kind, kinds.Number | kinds.Whole):
        return f"From {kinds.plain(kind.least)} to {kinds.plain(kind.most)}."
    if isinstance(kind, kinds.Choice) and len(kind.options) > OPTIONS_IN_PROSE:
        return f"One of {', '.join(kind.options)}."
    return ""


def _prose(text: str, indent: str) -> Iterator[str]:
    start = f"{indent}# "
    yield from textwrap.wrap(
        text, _WIDTH, initial_indent=start, subsequent_indent=start, break_long_words=False, break_on_hyphens=False
    )


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return kinds.plain(value) if isinstance(value, float) else str(value)
