"""`farebox usage`: the newest calls, one row each, or their sums by whatever one likes.

Rows go out a page at a time, so an export of any length takes the same memory; only a table is
held whole, and ends after a thousand rows.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from farebox import csvtext
from farebox.cli.common import BadUse, Commands, add_config, add_format, store_of
from farebox.cli.filters import add_filters, add_timezone, explained, nothing, read_filter
from farebox.cli.tables import Column, amounts, print_table
from farebox.store import UsageFilter
from farebox.store.reports import (
    GROUPINGS,
    GROUPS_LIMIT,
    GROUPS_MAX,
    PAGE_ROWS,
    ROW_COLUMNS,
    SUM_COLUMNS,
    Report,
    ReportRow,
    Reports,
    Sums,
    read_groupings,
    read_zone,
)

_ROWS_DEFAULT = 20
TABLE_ROWS_MAX = PAGE_ROWS
"""Rows of a table: it is laid out as a whole."""

CALLS = (
    Column("started_at", "time"),
    Column("key_name", rank=2),
    Column("provider", rank=4),
    Column("model"),
    Column("endpoint", rank=9),
    Column("status", "text", rank=7),
    Column("outcome", rank=3),
    Column("input_tokens", "count", rank=1),
    Column("output_tokens", "count", rank=1),
    Column("cost_usd", "money"),
    Column("usage_source", rank=8),
    Column("ttft_ms", "ms", "ttft", rank=6),
    Column("duration_ms", "ms", "duration", rank=5),
)
SUMS = (
    Column("calls", "count"),
    Column("input_tokens", "count", "input", rank=3),
    Column("cache_read_tokens", "count", "cached", rank=4),
    Column("output_tokens", "count", "output", rank=3),
    Column("reasoning_tokens", "count", "reasoning", rank=7),
    Column("total_tokens", "count", "tokens", rank=1),
    Column("cost_usd", "money", "cost USD"),
    Column("unknown_cost", "count", "unpriced", rank=2),
    Column("errors", "count", rank=2),
    Column("duration_p50_ms", "ms", "p50", rank=5),
    Column("duration_p95_ms", "ms", "p95", rank=5),
    Column("ttft_p50_ms", "ms", "ttft p50", rank=6),
    Column("ttft_p95_ms", "ms", "ttft p95", rank=8),
)


def add(commands: Commands) -> None:
    """Add the command to the command line."""
    usage = commands.add_parser(
        "usage",
        help="the newest calls and what they used, or sums of them",
        description="The newest calls, one row each; with --by their sums.",
        epilog="An export of everything: farebox usage --all --format csv > usage.csv. "
        "CSV puts an apostrophe before a name that a spreadsheet would take for a formula; JSON has all names exactly.",
    )
    add_config(usage)
    add_format(usage, "table", "csv", "json", "jsonl")
    usage.add_argument(
        "--by",
        action="append",
        default=[],
        metavar="WHAT",
        help=f"sums by up to three of {', '.join(GROUPINGS)}, tag:NAME; e.g. --by day,model",
    )
    add_filters(usage)
    add_timezone(usage)
    usage.add_argument(
        "--limit", type=int, metavar="N", help=f"newest N rows (default: {_ROWS_DEFAULT}), or the largest N groups"
    )
    usage.add_argument("--all", action="store_true", help="every row or group")
    usage.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print rows or sums; words about a table go to standard error, so that pipes stay clean."""
    if args.limit is not None and (args.limit < 1 or args.all):
        raise BadUse("--limit takes a number from 1, and not beside --all.")
    if args.all and args.format == "table" and not args.by:
        raise BadUse(f"a table ends after {TABLE_ROWS_MAX:,} rows: take --all with --format csv, json or jsonl.")
    with explained():
        args.by = read_groupings(args.by)
        read_zone(args.timezone)
        asyncio.run(_run(args))
    return 0


async def _run(args: argparse.Namespace) -> None:
    where = read_filter(args)
    async with store_of(args) as store:
        reports = Reports(store)
        if args.by:
            groups_max = args.limit or (GROUPS_LIMIT if args.all else GROUPS_MAX)
            report = await reports.sums(where, by=args.by, zone=args.timezone, groups_max=groups_max)
            _show_sums(args, report, where)
        elif args.format == "table":
            await _show_rows(reports, where, min(args.limit or _ROWS_DEFAULT, TABLE_ROWS_MAX))
        else:
            await export_rows(reports, where, None if args.all else args.limit or _ROWS_DEFAULT, args.format)


# -- rows ----------------------------------------------------------------------------------------


async def _show_rows(reports: Reports, where: UsageFilter, rows_max: int) -> None:
    rows, _ = await reports.page(where, rows_max=rows_max)
    total = await reports.spend(where)
    if not rows:
        print(nothing("calls", where), file=sys.stderr)
        return
    left_out = print_calls(rows)
    shown = f", the newest {len(rows):,} shown" if total.calls > len(rows) else ""
    print(f"\n{in_words(total)}{shown}", file=sys.stderr)
    say_left_out(left_out)


def print_calls(rows: Sequence[ReportRow]) -> list[str]:
    """A table of calls; the headings there was no room for."""
    return print_table(CALLS, [row | {"model": row["model"] or row["requested_model"]} for row in rows])


def in_words(total: Sums) -> str:
    """`2 calls, 1,234 tokens, 0.05 USD`; what is not known is said."""
    tokens = "unknown" if total.total_tokens is None else f"{total.total_tokens:,}"
    words = f"{'1 call' if total.calls == 1 else f'{total.calls:,} calls'}, {tokens} tokens"
    if total.cost_usd is not None:
        words += f", {amounts([total.cost_usd])[0]} USD"
        if total.unknown_cost:
            words += f" and {total.unknown_cost:,} of unknown cost"
    return words


def say_left_out(headings: Sequence[str]) -> None:
    """What a narrow terminal does not show is said."""
    if headings:
        print(f"(no room for: {', '.join(headings)}; --format csv has everything)", file=sys.stderr)


async def export_rows(reports: Reports, where: UsageFilter, rows_max: int | None, format: str) -> None:
    """Write rows to standard output as they come: CSV, a JSON array with a row a line, or JSON lines.

    A bar goes along on standard error where people see that and the rows go elsewhere.
    """
    opening, between, closing = {"csv": ("", "", ""), "json": ("[", ",\n ", "]\n"), "jsonl": ("", "\n", "\n")}[format]
    write = sys.stdout.write
    write(csvtext.header(ROW_COLUMNS) if format == "csv" else opening)
    written = 0
    shown = sys.stderr.isatty() and not sys.stdout.isatty()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        total = await reports.count(where) if shown else 0
        task = bar.add_task("rows", total=total if rows_max is None else min(total, rows_max))
        async for rows in reports.pages(where, rows_max=rows_max):
            if format == "csv":
                write(csvtext.lines(rows, ROW_COLUMNS))
            elif rows:
                write((between if written else "") + between.join(map(_json, rows)))
            written += len(rows)
            bar.advance(task, len(rows))
    write(closing if written or format == "json" else "")


def _json(row: dict[str, Any]) -> str:
    return msgspec.json.encode(row, enc_hook=str).decode()


# -- sums ----------------------------------------------------------------------------------------


def _show_sums(args: argparse.Namespace, report: Report, where: UsageFilter) -> None:
    rows = [group.as_row(args.by) for group in report.groups]
    columns = (*args.by, *SUM_COLUMNS)
    if args.format == "csv":
        sys.stdout.write(csvtext.header(columns) + csvtext.lines(rows, columns))
    elif args.format == "jsonl":
        sys.stdout.writelines(_json(row) + "\n" for row in rows)
    elif args.format == "json":
        print("[" + ",\n ".join(map(_json, rows)) + "]")
    elif rows:
        total = {args.by[0]: "total", **dict.fromkeys(args.by[1:], ""), **msgspec.structs.asdict(report.total)}
        left_out = print_table((*map(Column, args.by), *SUMS), rows, total=total)
        say_left_out(left_out)
        if "tool" in args.by:
            print("(a call stands under each tool it called; the total counts each call once)", file=sys.stderr)
    else:
        # By tool there may be calls, and none that called one.
        print(nothing("calls" if not report.total.calls else "tool calls", where), file=sys.stderr)
    if report.more:
        print(f"(the first {len(rows):,} groups; --limit or --all shows more)", file=sys.stderr)
