"""`farebox sessions`: what each session came to, or one of them call by call.

A session is what the client says it is: a header of its SDK or agent, a member of the body (see
`farebox.request.identify`). Calls without one are in no session.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

import msgspec

from farebox import csvtext
from farebox.cli.common import BadUse, Commands, add_config, add_format, not_found, store_of
from farebox.cli.filters import add_filters, explained, nothing, read_filter
from farebox.cli.tables import Column, print_table
from farebox.cli.usage import TABLE_ROWS_MAX, export_rows, in_words, print_calls, say_left_out
from farebox.store.reports import PAGE_ROWS, SUM_COLUMNS, Reports, Session

_DEFAULT = 20
_LISTS = ("models", "keys", "users", "providers", "tools")
_COLUMNS = (
    Column("session"),
    Column("first_at", "time", "first", rank=6),
    Column("last_at", "time", "last", rank=2),
    Column("calls", "count"),
    Column("input_tokens", "count", "input", rank=5),
    Column("cache_read_tokens", "count", "cached", rank=7),
    Column("output_tokens", "count", "output", rank=5),
    Column("total_tokens", "count", "tokens", rank=1),
    Column("cost_usd", "money", "cost USD"),
    Column("unknown_cost", "count", "unpriced", rank=4),
    Column("errors", "count", rank=3),
    Column("models", "names", rank=3),
    Column("keys", "names", rank=4),
    Column("tools", "names", rank=8),
)


def add(commands: Commands) -> None:
    """Add the command to the command line."""
    sessions = commands.add_parser(
        "sessions",
        help="what each session came to, or the calls of one",
        description="Sums by session, the last seen first; with a session its calls.",
    )
    sessions.add_argument("session", nargs="?", help="one session: show its calls")
    add_config(sessions)
    add_format(sessions, "table", "csv", "json", "jsonl")
    add_filters(sessions, "session")
    sessions.add_argument("--limit", type=int, metavar="N", help=f"default: {_DEFAULT}")
    sessions.add_argument("--all", action="store_true", help="every session, or every call of one")
    sessions.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print sessions, or the calls of one."""
    if args.limit is not None and (args.limit < 1 or args.all):
        raise BadUse("--limit takes a number from 1, and not beside --all.")
    with explained():
        asyncio.run(_run(args))
    return 0


async def _run(args: argparse.Namespace) -> None:
    limit = None if args.all else args.limit or _DEFAULT
    if args.format == "table":
        limit = min(limit or TABLE_ROWS_MAX, TABLE_ROWS_MAX)
    async with store_of(args) as store:
        if args.session is not None:
            await _show_one(args, Reports(store), limit)
        else:
            await _show_all(args, Reports(store), limit)


async def _show_one(args: argparse.Namespace, reports: Reports, limit: int | None) -> None:
    where = read_filter(args)  # `session` is among its fields
    found, _ = await reports.sessions(where, rows_max=1)
    if not found:
        raise not_found("session", args.session)
    if args.format != "table":
        await export_rows(reports, where, limit, args.format)
        return
    rows, _ = await reports.page(where, rows_max=limit or TABLE_ROWS_MAX)
    left_out = print_calls(rows)
    total = found[0].sums
    shown = f", the newest {len(rows):,} shown" if total.calls > len(rows) else ""
    print(f"\n{in_words(total)}{shown}", file=sys.stderr)
    say_left_out(left_out)


async def _show_all(args: argparse.Namespace, reports: Reports, limit: int | None) -> None:
    where, after, written = read_filter(args), None, 0
    if args.format == "csv":
        sys.stdout.write(csvtext.header(("session", *SUM_COLUMNS, *_LISTS)))
    while True:
        left = PAGE_ROWS if limit is None else limit - written
        sessions, after = await reports.sessions(where, after=after, rows_max=left)
        _write(args.format, sessions, first=written == 0)
        written += len(sessions)
        if after is None or written == limit:
            break
    if args.format == "json":
        sys.stdout.write("]\n")
    elif args.format == "table" and not written:
        print(nothing("sessions", where), file=sys.stderr)
    if args.format == "table" and after is not None:
        print(f"(the last {written:,} sessions; --limit shows more)", file=sys.stderr)


def _write(format: str, sessions: Sequence[Session], *, first: bool) -> None:
    rows = [session.as_row() for session in sessions]
    if format == "csv":
        sys.stdout.write(csvtext.lines(rows, ("session", *SUM_COLUMNS, *_LISTS)))
    elif format == "table":
        if rows:
            say_left_out(print_table(_COLUMNS, rows))
    else:
        lines = [msgspec.json.encode(row).decode() for row in rows]
        if format == "json":
            sys.stdout.write(("[" if first else ",\n ") + ",\n ".join(lines))
        else:
            sys.stdout.writelines(line + "\n" for line in lines)
