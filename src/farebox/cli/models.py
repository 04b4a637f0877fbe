"""`farebox models`: which models there are, at which provider, at what price; and asking the providers now."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from farebox import demo
from farebox.cli.common import Commands, add_config, add_format, not_found, parse_line, read_config, store_of
from farebox.cli.showing import show
from farebox.cli.tables import Column, print_table
from farebox.config import Config, Provider
from farebox.errors import FareboxError
from farebox.keys import caller_of
from farebox.models import Outcome, Refresher, askable, fetch, known_models, listed, overview, read_shelf, shapes
from farebox.pricebook import seeded
from farebox.pricing import Pricer
from farebox.records import Caller
from farebox.store import ModelLists, PriceLists, Store

_TABLE = (
    Column("id"),
    Column("provider"),
    Column("routed", rank=4),
    Column("context_length", "count", "context", rank=1),
    Column("max_output_tokens", "count", "max output", rank=3),
    Column("input_usd_per_mtok", heading="input $/Mtok"),
    Column("output_usd_per_mtok", heading="output $/Mtok"),
    Column("cache_read_usd_per_mtok", heading="cache read $/Mtok", rank=6),
    Column("cache_write_usd_per_mtok", heading="cache write $/Mtok", rank=7),
    Column("source", rank=5),
    Column("age", rank=2),
)
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


def add(commands: Commands) -> None:
    """Add the command and its verbs to the command line."""
    verbs = commands.add_parser("models", help="list the models of all providers, or ask for them anew").add_subparsers(
        title="verbs", metavar="VERB", required=True
    )
    listing = verbs.add_parser("list", help="the models, what they cost and who says so")
    listing.add_argument("--provider", metavar="NAME", type=parse_line, help="only this provider's")
    listing.add_argument("--model", metavar="GLOB", type=parse_line, help="only models whose id matches")
    listing.add_argument(
        "--key", metavar="NAME", type=parse_line, help="what GET /v1/models gives this key: what it may use, each once"
    )
    add_config(listing)
    add_format(listing, "table", "csv", "json")
    listing.set_defaults(run=run_list)
    refresh = verbs.add_parser("refresh", help="ask the providers now; a running farebox takes it over")
    refresh.add_argument("--provider", metavar="NAME", type=parse_line, help="only this one")
    add_config(refresh)
    add_format(refresh, "table", "json")
    refresh.set_defaults(run=run_refresh)


def run_list(args: argparse.Namespace) -> int:
    """Print what is stored, or known without it; no provider is asked."""
    asyncio.run(_list(args))
    return 0


def run_refresh(args: argparse.Namespace) -> int:
    """Ask every provider, or one. 1 when none gave a list."""
    outcomes = asyncio.run(_refresh(args))
    return 0 if not outcomes or any(outcome.error is None for outcome in outcomes) else 1


async def _list(args: argparse.Namespace) -> None:
    config = _with_demo(read_config(args))
    if args.provider is not None:
        _provider(config, args.provider)
    now = datetime.now(UTC)
    async with store_of(args) as store:
        book, _ = await seeded(PriceLists(store))
        pricer = Pricer(book, config.providers)
        shelf = await read_shelf(config, ModelLists(store), pricer, known_models(demo.MODEL), now)
        caller = await _caller(store, args.key) if args.key is not None else overview.ANYONE
    shown = list(listed(shelf, config, caller, overview.target(), {}))
    everything = args.key is None
    rows = list(overview.rows(shelf, shown, now, everything=everything, provider=args.provider, model=args.model))
    if args.format != "table":
        show(rows, overview.COLUMNS, args.format)
    else:
        _show_table(rows)
    for one in shapes.providers(shelf, now):
        if one["error"] is not None and args.provider in (None, one["provider"]):
            own = one["source"] == "provider"
            what = f"its list of {_age(one['age_s'])} ago stands" if own else "it never gave a list"
            print(f"{one['provider']}: the last attempt failed ({one['error']}); {what}", file=sys.stderr)


def _show_table(rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        print("no models: farebox models refresh asks the providers", file=sys.stderr)
        return
    left_out = print_table(
        _TABLE, [row | {"age": _age(row["age_s"]), "routed": "yes" if row["routed"] else "no"} for row in rows]
    )
    if left_out:
        print(f"\nno room for: {', '.join(left_out)} (wider, or --format csv)", file=sys.stderr)


async def _refresh(args: argparse.Namespace) -> list[Outcome]:
    config = read_config(args)
    providers = askable(config) if args.provider is None else [_provider(config, args.provider)]
    if not providers:
        print("no provider is enabled: there is nobody to ask", file=sys.stderr)
        return []
    async with store_of(args) as store:
        refresher = Refresher(ModelLists(store), fetch, lambda: datetime.now(UTC))
        outcomes = await refresher.ask_now(providers, config.models)
    rows = [outcome._asdict() for outcome in outcomes]
    if args.format == "json":
        show(rows, Outcome._fields, "json")
    else:
        print_table((Column("provider"), Column("models", "count"), Column("error")), rows)
    return outcomes


def _with_demo(config: Config) -> Config:
    """What a server with this config would run on: where no provider is enabled, the demo answers."""
    if config.providers:
        return config
    return config.with_provider(demo.NAME, demo.demo_provider("http://127.0.0.1"))


def _provider(config: Config, name: str) -> Provider:
    if name not in config.providers:
        raise not_found("enabled provider", name)
    return config.providers[name]


async def _caller(store: Store, name: str) -> Caller:
    record = await store.get_key(name)
    if record is None:
        raise not_found("key", name)
    if record.revoked_at is not None:
        raise FareboxError(f"the key {name!r} was revoked: it may use nothing")
    if record.expires_at is not None and record.expires_at <= datetime.now(UTC):
        raise FareboxError(f"the key {name!r} has expired: it may use nothing")
    return caller_of(record)


def _age(seconds: int | None) -> str:
    """A length of time in its largest unit."""
    if seconds is None:
        return "-"
    for length, letter in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "m")):
        if seconds >= length:
            return f"{seconds // length}{letter}"
    return f"{seconds}s"
