"""The SQL files of the package, by name.

A statement may hold `{{part}}` or `{{part $15}}`: the statement named `part` stands there, with the
parameter in place of its `$by`. That is done once, when the files are read, and knows nothing of values.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
_PART = re.compile(r"\{\{(\w+)(?: (\$\d+))?\}\}")


def sql_folder() -> Traversable:
    """Where the statements, `*.sql`, and `migrations/` lie."""
    return resources.files("farebox") / "sql"


@cache
def queries() -> dict[str, str]:
    """The statements of all files, without their comments, by name. A name stands in one place only."""
    found: dict[str, str] = {}
    for file in sql_folder().iterdir():
        if not file.name.endswith(".sql"):
            continue
        parts = _NAME.split(file.read_text(encoding="utf-8"))
        for name, text in zip(parts[1::2], parts[2::2], strict=True):
            assert name not in found, name
            found[name] = "\n".join(line for line in text.splitlines() if not line.startswith("--"))
    return {name: _PART.sub(lambda part: _filled(found, part), text) for name, text in found.items()}


def _filled(found: dict[str, str], part: re.Match[str]) -> str:
    return found[part[1]].strip().replace("$by", part[2] or "$by")
