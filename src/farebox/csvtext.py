"""CSV as reports write it: RFC 4180, UTF-8, a header line; safe to open in a spreadsheet.

Nothing is empty but what is unknown or empty. A text that a spreadsheet would take for a formula gets
an apostrophe in front, as OWASP advises (model and key names come from outside); who needs every name
to the letter reads JSON. Numbers, times and money are plain: no grouping, a point, digits.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def header(columns: Sequence[str]) -> str:
    """The first line."""
    return _lines([columns])


def lines(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """A line for each row, its values in the order of `columns`; what a row lacks is empty."""
    return _lines([cell(row.get(column), money=column.endswith("_usd")) for column in columns] for row in rows)


def cell(value: Any, *, money: bool = False) -> str:
    """One value as text. `money`: an exact amount that comes as text already."""
    if value is None:
        return ""
    if isinstance(value, str):
        return "'" + value if value.startswith(_FORMULA) and not money else value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, msgspec.Raw):
        text = bytes(value).decode()
        return "" if text in ("{}", "[]") else text
    if isinstance(value, (list, tuple, dict)):
        return msgspec.json.encode(value, enc_hook=str).decode() if value else ""
    return str(value)


def _lines(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()
