"""`farebox prices reprice`: corrects calls that were costed with a price that was wrong, or with none."""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from datetime import UTC, datetime

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from farebox.cli.common import BadUse, Commands, add_config, add_format, parse_line, parse_time, read_config, store_of
from farebox.cli.showing import show
from farebox.config import Config
from farebox.errors import FareboxError
from farebox.pricebook import current_pricer, put_configured
from farebox.repricing import Pricer, Tally, reprice
from farebox.store import PriceLists, Store
from farebox.store.corrections import Corrections, Wanted

_SUMMARY = (*Tally.__struct_fields__, "dry_run")


def add(commands: Commands) -> None:
    """Add the verb to those of `prices`."""
    parser = commands.add_parser(
        "reprice",
        help="work out again what calls cost, and correct what differs",
        description="Costs each call by the prices in force now, as of the day and hour it was made, and adds a "
        "correction where that differs from what its row says; the row as it was stays in farebox.usage_entries. May "
        "run beside a serving farebox, be interrupted, and be repeated: then there is nothing left to correct.",
    )
    times = "2026-11-01, 2026-11-01T10:00:00Z, or 90m, 24h, 7d ago"
    parser.add_argument("--since", metavar="TIME", type=parse_time, required=True, help=f"calls begun since {times}")
    parser.add_argument("--until", metavar="TIME", type=parse_time, help="and before then (default: now)")
    parser.add_argument("--provider", metavar="NAME", type=parse_line, help="only calls to this provider")
    parser.add_argument("--model", metavar="GLOB", type=parse_line, help="only calls of these models")
    parser.add_argument("--dry-run", action="store_true", help="only say what it would come to")
    parser.add_argument(
        "--unprice", action="store_true", help="calls that no price is known for any more lose their cost, too"
    )
    add_config(parser)
    add_format(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Reprice; the summary is the result. 1 when a call could not be priced for a fault of farebox's."""
    try:
        tally = asyncio.run(_run(args))
    except KeyboardInterrupt:
        print("interrupted: what was corrected stays so; run it again for the rest", file=sys.stderr)
        raise
    return 1 if tally.failed else 0


async def _run(args: argparse.Namespace) -> Tally:
    config, now = read_config(args), datetime.now(UTC)
    wanted = Wanted(
        since=args.since,
        until=args.until or now,
        providers=_providers(config, args.provider),
        model=None if args.model is None else expression(args.model),
    )
    async with store_of(args) as store:
        pricer = await current_pricer(store, config.known)
        if not args.dry_run:
            await put_configured(PriceLists(store), config.known, now)
        tally = await _with_progress(args, store, pricer.price, wanted)
    summary = msgspec.structs.asdict(tally) | {"dry_run": args.dry_run}
    for name in ("up_usd", "down_usd"):
        summary[name] = f"{summary[name]:f}"
    show(summary, _SUMMARY, args.format)
    if tally.kept:
        print("\nkept: no price is known for these calls any more; --unprice takes their cost away.", file=sys.stderr)
    if tally.contested:
        print("\ncontested: others corrected these calls at the same time; run this again.", file=sys.stderr)
    return tally


async def _with_progress(args: argparse.Namespace, store: Store, price: Pricer, wanted: Wanted) -> Tally:
    corrections = Corrections(store)
    first, last = await corrections.span(wanted) or (wanted.since, wanted.since)
    columns = (TextColumn("repricing"), BarColumn(), TextColumn("{task.fields[rows]:,} calls"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        # By time and not by number: how many there are would have to be counted first.
        total = (last - first).total_seconds()
        task = bar.add_task("", total=total, rows=0)

        def progress(tally: Tally, at: datetime) -> None:
            bar.update(task, completed=(at - first).total_seconds(), rows=tally.rows)

        tally = await reprice(corrections, price, wanted, dry_run=args.dry_run, unprice=args.unprice, progress=progress)
        bar.update(task, completed=total, rows=tally.rows)
        return tally


def _providers(config: Config, only: str | None) -> list[str]:
    """Whose calls. Those of a provider the config lacks are left alone: how they are charged is not known here."""
    if only is not None:
        if only not in config.known:
            raise BadUse(f"the config has no provider {only!r}")
        return [only]
    if not config.known:
        raise FareboxError("the config has no provider, so it is not known how any call is charged")
    return list(config.known)


def expression(glob: str) -> str:
    """A regular expression (Postgres') for the names that `glob` (* ? [abc]) fits, upper and lower case alike."""
    found, at = ["(?i)^"], 0
    while at < len(glob):
        char = glob[at]
        end = glob.find("]", at + 2) if char == "[" else -1
        if char == "*":
            found.append(".*")
        elif char == "?":
            found.append(".")
        elif end > 0:
            inner = glob[at + 1 : end]
            negated = inner.startswith("!")
            inner = re.sub(r"([\\\[\]^])", r"\\\1", inner[1:] if negated else inner)
            found.append(f"[{'^' if negated else ''}{inner}]")
            at = end
        else:
            found.append(re.escape(char))
        at += 1
    return "".join(found) + "$"
