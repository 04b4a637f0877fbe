"""A Grafana dashboard as Prometheus sees it: its queries, with the variables filled in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any


def expressions(board: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Title and expression of every query: panels first, then annotations."""
    for panel in board["panels"]:
        yield from ((panel["title"], target["expr"]) for target in panel.get("targets", ()))
    yield from ((note["name"], note["expr"]) for note in board["annotations"]["list"])


def concrete(expression: str, *, rate_interval: str = "1m", span: str = "5m") -> str:
    """The expression as Grafana would send it with nothing chosen; `span` is the range that is shown."""
    for name, value in (("$__rate_interval", rate_interval), ("$__range", span)):
        expression = expression.replace(name, value)
    return re.sub(r"\$\{?\w+\}?", ".*", expression)
