"""Results as tables for people, CSV or JSON. Apart from `common`, for `serve` prints none."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

Row = dict[str, Any]


class Output(Console):
    """rich's console, which would end the process with 1 where a reader such as `head` has had enough."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def show(rows: Sequence[Row] | Row, columns: Sequence[str], format: str, *, empty: str = "nothing yet") -> None:
    """Print records as a table for people, CSV, or JSON."""
    listed = [rows] if isinstance(rows, dict) else list(rows)
    if format == "json":
        payload = msgspec.json.format(msgspec.json.encode(rows, enc_hook=str), indent=2)
        print(payload.decode())
    elif format == "csv":
        writer = csv.writer(sys.stdout)
        writer.writerow(columns)
        writer.writerows([_cell(row.get(c), machine=True) for c in columns] for row in listed)
    elif isinstance(rows, dict):
        table = Table(show_header=False, box=None, pad_edge=False)
        for column in columns:
            table.add_row(column, _cell(rows.get(column)))
        Output().print(table)
    elif not listed:
        print(empty, file=sys.stderr)
    else:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            numeric = any(isinstance(row.get(column), (int, float)) for row in listed)
            table.add_column(column, justify="right" if numeric else "left", overflow="fold")
        for row in listed:
            table.add_row(*(_cell(row.get(c)) for c in columns))
        # A pipe has no width: rich would squeeze the table into 80 columns.
        Output(width=None if sys.stdout.isatty() else 400).print(table)


def _cell(value: object, *, machine: bool = False) -> str:
    if value is None:
        return "" if machine else "-"
    if isinstance(value, msgspec.Raw):
        return bytes(value).decode()
    if isinstance(value, datetime):
        value = value.astimezone(UTC)
        return value.isoformat() if machine else f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, (list, tuple, dict)):
        return msgspec.json.encode(value, enc_hook=str).decode() if value else ("" if machine else "-")
    if isinstance(value, float):
        return f"{value:g}" if machine else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool) and not machine:
        return f"{value:,}"
    # rich would read square brackets as markup.
    return str(value) if machine else str(value).replace("[", r"\[")
