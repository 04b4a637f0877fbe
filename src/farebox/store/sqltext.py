"""The SQL files of the package, by name."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


def sql_folder() -> Traversable:
    """Where `queries.sql` and `migrations/` lie."""
    return resources.files("farebox") / "sql"


@cache
def queries() -> dict[str, str]:
    """The statements of `queries.sql`, without their comments, by name."""
    parts = _NAME.split((sql_folder() / "queries.sql").read_text(encoding="utf-8"))
    named = zip(parts[1::2], parts[2::2], strict=True)
    return {name: "\n".join(line for line in text.splitlines() if not line.startswith("--")) for name, text in named}
