"""`farebox usage`: the newest calls, one row each, and their sums."""

from __future__ import annotations

import argparse
import asyncio
import sys

import msgspec

from farebox.cli.common import BadUse, Commands, add_config, add_format, parse_time, show, store_of
from farebox.records import UsageRow
from farebox.store import UsageFilter

_ROWS_MAX = 1000

_COLUMNS = (
    "started_at",
    "key_name",
    "provider",
    "model",
    "endpoint",
    "status",
    "outcome",
    "input_tokens",
    "output_tokens",
    "usage_source",
    "ttft_ms",
    "duration_ms",
)


def add(commands: Commands) -> None:
    """Add the command to the command line."""
    usage = commands.add_parser("usage", help="the newest calls and what they used")
    add_config(usage)
    add_format(usage, "table", "csv", "json")
    times = "2026-11-01, 2026-11-01T10:00:00Z, or 90m, 24h, 7d ago"
    usage.add_argument("--since", metavar="TIME", type=parse_time, help=times)
    usage.add_argument("--until", metavar="TIME", type=parse_time)
    for field in ("key", "provider", "model"):
        usage.add_argument(f"--{field}", help=f"only this {field}")
    usage.add_argument("--limit", type=int, default=20, metavar="N", help="newest N rows (default: 20)")
    usage.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the rows; the sums of all that match go to standard error, so that pipes stay clean."""
    asyncio.run(_run(args))
    return 0


async def _run(args: argparse.Namespace) -> None:
    where = UsageFilter(
        since=args.since,
        until=args.until,
        key_name=args.key,
        provider=args.provider,
        model=args.model,
    )
    if args.limit < 1:
        raise BadUse("--limit takes a number from 1.")
    async with store_of(args) as store:
        page = await store.list_usage(where, rows_max=min(args.limit, _ROWS_MAX))
        totals = await store.sum_usage(where)
    rows = [msgspec.structs.asdict(row) for row in page.rows]
    for row in rows:
        row["model"] = row["model"] or row["requested_model"]
    columns = _COLUMNS if args.format == "table" else UsageRow.__struct_fields__
    show(rows, columns, args.format, empty="no calls yet")
    if args.format == "table" and totals:
        total = totals[0]
        tokens = "unknown" if total.total_tokens is None else f"{total.total_tokens:,}"
        shown = f", the newest {len(rows):,} shown" if total.attempts > len(rows) else ""
        calls = "1 call" if total.attempts == 1 else f"{total.attempts:,} calls"
        print(f"\n{calls}, {tokens} tokens{shown}", file=sys.stderr)
