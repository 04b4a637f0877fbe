"""Tables for people: numbers to the right, no wider than the terminal, and safe whatever the names hold.

Where a terminal is too narrow, the columns that matter least are left out, and their names are given
back so that the command can say so. A pipe has no width: there the table is whole.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal

import msgspec
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from farebox.cli.showing import Output

Kind = Literal["text", "right", "count", "money", "ms", "time", "names"]

_TO_THE_RIGHT = frozenset(("right", "count", "money", "ms"))
_GAP = 2
_PIPE_COLUMNS = 10_000
_TEXT_COLUMNS_MIN = 12
"""A column of names is squeezed to this before others are left out."""
_NAMES_SHOWN = 3
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_SMALLEST = Decimal("0.000001")


@dataclass(frozen=True, slots=True)
class Column:
    """`name` is the row's member; `rank` 0 is never left out, the highest is first to go."""

    name: str
    kind: Kind = "text"
    heading: str = ""
    rank: int = 0


def print_table(
    columns: Sequence[Column], rows: Sequence[dict[str, Any]], *, total: dict[str, Any] | None = None
) -> list[str]:
    """Print `rows`, and below them the line `total`. Returns the headings that there was no room for."""
    console = Output() if sys.stdout.isatty() else Output(width=_PIPE_COLUMNS)
    table, left_out = make_table(columns, rows, total=total, width=console.width)
    console.print(table)
    return left_out


def make_table(
    columns: Sequence[Column], rows: Sequence[dict[str, Any]], *, total: dict[str, Any] | None = None, width: int
) -> tuple[Table, list[str]]:
    """The table in at most `width` characters, and the headings that are not in it."""
    listed = [*rows, total] if total is not None else list(rows)
    texts = {column: _texts(column, [row.get(column.name) for row in listed]) for column in columns}
    kept = _fitting(columns, texts, width)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for column in kept:
        right = column.kind in _TO_THE_RIGHT
        table.add_column(
            column.heading or column.name,
            justify="right" if right else "left",
            no_wrap=right or column.kind == "time",
            overflow="fold",
            min_width=_needs(column, texts[column]) if right or column.kind == "time" else None,
        )
    for number in range(len(listed)):
        style = "bold" if total is not None and number == len(rows) else ""
        table.add_row(*(Text(texts[column][number]) for column in kept), style=style)
    return table, [column.heading or column.name for column in columns if column not in kept]


def _fitting(columns: Sequence[Column], texts: dict[Column, list[str]], width: int) -> list[Column]:
    kept = list(columns)
    while True:
        least = sum(_least(column, texts[column]) for column in kept) + _GAP * len(kept)
        loose = [column for column in kept if column.rank]
        if least <= width or not loose:
            return kept
        kept.remove(max(reversed(loose), key=lambda column: column.rank))


def _least(column: Column, texts: Iterable[str]) -> int:
    needs = _needs(column, texts)
    return min(needs, _TEXT_COLUMNS_MIN) if column.kind in ("text", "names") else needs


def _needs(column: Column, texts: Iterable[str]) -> int:
    return max(cell_len(column.heading or column.name), *(cell_len(text) for text in texts), 0)


def _texts(column: Column, values: Sequence[Any]) -> list[str]:
    if column.kind == "money":
        return amounts(values)
    return [_SHAPES[column.kind](value) for value in values]


def plain(value: Any) -> str:
    """Any text; control characters and marks that turn the direction of writing stand as their code."""
    if value is None:
        return "-"
    if isinstance(value, msgspec.Raw):
        value = bytes(value).decode()
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", str(value))


def count(value: int | float | None) -> str:
    """A number with its thousands apart."""
    return "-" if value is None else f"{value:,.0f}"


def milliseconds(value: float | None) -> str:
    """A duration: `240 ms`, `1.35 s`, `2m05s`."""
    if value is None:
        return "-"
    if value < 999.5:
        return f"{value:.0f} ms"
    if value < 59_995:
        return f"{value / 1000:.2f} s"
    minutes, seconds = divmod(round(value / 1000), 60)
    return f"{minutes}m{seconds:02d}s"


def moment(value: datetime | None) -> str:
    """A time, UTC, to the second."""
    return "-" if value is None else f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def names(value: Sequence[str] | None) -> str:
    """The first names of some, and how many more there are."""
    if not value:
        return "-"
    more = len(value) - _NAMES_SHOWN
    return plain(", ".join(value[:_NAMES_SHOWN])) + (f" +{more}" if more > 0 else "")


_SHAPES: Mapping[Kind, Callable[[Any], str]] = {
    "text": plain,
    "right": plain,
    "count": count,
    "ms": milliseconds,
    "time": moment,
    "names": names,
}


def amounts(values: Sequence[str | Decimal | None]) -> list[str]:
    """Money of one column, rounded for reading: as many decimals for all as the smallest amount needs, 2 to 6."""
    exact = [None if value is None else Decimal(value) for value in values]
    least = min((value for value in exact if value), default=Decimal(1))
    places = next((p for p, floor in ((2, "1"), (4, "0.01")) if least >= Decimal(floor)), 6)
    return [_amount(value, places) for value in exact]


def _amount(value: Decimal | None, places: int) -> str:
    if value is None:
        return "-"
    return "<0.000001" if 0 < value < _SMALLEST else f"{value:,.{places}f}"
