"""`farebox prices list` and `farebox prices sync`: what models cost, and fetching newer lists of it."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from rich.console import Console

from farebox.cli import reprice
from farebox.cli.common import BadUse, Commands, add_config, add_format, parse_line, parse_time, read_config, store_of
from farebox.cli.showing import show
from farebox.cli.tables import Column, print_table
from farebox.config import Config
from farebox.errors import FareboxError
from farebox.pricebook import loaded, seeded
from farebox.pricing import Price, PriceBook, book_of, config_entries
from farebox.pricing.genai import UnknownShape, entries_from_genai
from farebox.pricing.tables import period, tariff
from farebox.store import PriceLists
from farebox.store.prices import CONFIG, PUBLISHED

_TABLE = (
    Column("book"),
    Column("model"),
    Column("input_usd_per_mtok", heading="input $/Mtok"),
    Column("output_usd_per_mtok", heading="output $/Mtok"),
    Column("cache_read_usd_per_mtok", heading="cache read", rank=2),
    Column("cache_write_usd_per_mtok", heading="cache write", rank=3),
    Column("above", "names", "above tokens", rank=4),
    Column("tiers", "names", rank=5),
    Column("price_id", rank=6),
)
_COLUMNS = (
    "book",
    "model",
    "input_usd_per_mtok",
    "output_usd_per_mtok",
    "cache_read_usd_per_mtok",
    "cache_write_usd_per_mtok",
    "above",
    "tiers",
    "since",
    "context_window",
    "max_output_tokens",
    "price_id",
)
_WILD = frozenset("*?[")
_USERINFO = re.compile(r"//[^/@\s]*@")
_GONE_SHARE_MAX = 0.5
"""A list that lacks more of the models known until now is taken for broken."""


def add(commands: Commands) -> None:
    """Add the command and its verbs to the command line."""
    verbs = commands.add_parser("prices", help="what models cost; fetch newer prices; correct what was costed wrong")
    added = verbs.add_subparsers(title="verbs", metavar="VERB", required=True)
    listing = added.add_parser("list", help="the prices in force, per million tokens in the ordinary tier")
    listing.add_argument("--book", metavar="NAME", type=parse_line, help="only this publisher's: openai, anthropic ...")
    listing.add_argument("--provider", metavar="NAME", type=parse_line, help="only those this provider is charged by")
    listing.add_argument("--model", metavar="GLOB", type=parse_line, help="these models, or what a name stands for")
    listing.add_argument("--at", metavar="TIME", type=parse_time, help="as of this time (default: now)")
    add_config(listing)
    add_format(listing, "table", "csv", "json")
    listing.set_defaults(run=run_list)
    sync = added.add_parser(
        "sync",
        help="fetch the newest public prices (needs the extra: pip install 'farebox[prices]')",
        description="Fetches the public price lists that genai-prices keeps, and puts them in force in every running "
        "farebox of this database. Nothing is overwritten: prices that were in force before stay known.",
    )
    source = sync.add_mutually_exclusive_group()
    source.add_argument("--file", metavar="PATH", type=Path, help="read genai-prices' data file from here instead")
    source.add_argument("--url", metavar="URL", help="fetch it from here, for those who mirror it")
    sync.add_argument("--force", action="store_true", help="also when most models known until now are not in it")
    add_config(sync)
    sync.set_defaults(run=run_sync)
    reprice.add(added)


# -- list ------------------------------------------------------------------------------------------


def run_list(args: argparse.Namespace) -> int:
    """Print the prices, the config's own first."""
    asyncio.run(_list(args))
    return 0


async def _list(args: argparse.Namespace) -> None:
    config = read_config(args)
    wanted = _books(config, args.provider)
    async with store_of(args) as store:
        published, _ = await seeded(PriceLists(store))
    own = [price for provider in config.known.values() for price in config_entries(provider)]
    book = PriceBook([*own, *published.entries])
    at = args.at or datetime.now(UTC)
    rows = [
        _row(price, at)
        for price in _chosen(book, at)
        if (wanted is None or price.book in wanted)
        and args.book in (None, price.book)
        and (args.model is None or _meant(book, price, args.model, at))
    ]
    if args.format == "table" and rows:
        left_out = print_table(_TABLE, rows)
        if left_out:
            print(f"\nno room for: {', '.join(left_out)}", file=sys.stderr)
    else:
        show(rows, _COLUMNS, args.format, empty="no such price")


def _books(config: Config, provider: str | None) -> tuple[str, ...] | None:
    if provider is None:
        return None
    one = config.known.get(provider)
    if one is None:
        raise BadUse(f"the config has no provider {provider!r}")
    return (CONFIG + provider, book_of(price_book=one.price_book, base_url=one.base_url, dialect=one.dialect))


def _chosen(book: PriceBook, at: datetime) -> Iterator[Price]:
    """Of the entries of each model the one in force."""
    models: dict[tuple[str, str], Price] = {}
    for price in sorted(book.entries, key=lambda price: (price.since is not None, price.since)):
        known = models.get((price.book, price.model))
        if known is None or price.since is None or price.since <= at.date():
            models[price.book, price.model] = price
    for key in sorted(models, key=lambda key: (not key[0].startswith(CONFIG), key)):
        yield models[key]


def _meant(book: PriceBook, price: Price, name: str, at: datetime) -> bool:
    """Whether `name` is a glob for the entry, or a model's name that it stands for."""
    if fnmatchcase(price.model.lower(), name.lower()):
        return True
    return not _WILD & set(name) and book.find(price.book, name, at) is price


def _row(price: Price, at: datetime) -> dict[str, Any]:
    number = period(price, at)
    rates = tariff(price, number, ())
    began = price.periods[number].since if price.periods else None
    return {
        "book": price.book,
        "model": price.model,
        "input_usd_per_mtok": rates.base.input,
        "output_usd_per_mtok": rates.base.output,
        "cache_read_usd_per_mtok": rates.base.cache_read,
        "cache_write_usd_per_mtok": rates.base.cache_write,
        "above": [f"{start}" for start, _ in reversed(rates.steps)],
        "tiers": list(dict.fromkeys(word for variant in price.variants for word in variant.when.values())),
        "since": str(began or price.since or "") or None,
        "context_window": price.context_window,
        "max_output_tokens": price.max_output,
        "price_id": price.id,
    }


# -- sync ------------------------------------------------------------------------------------------


def run_sync(args: argparse.Namespace) -> int:
    """Fetch, compare, and put in force. Nothing is changed unless all of it could be read."""
    asyncio.run(_sync(args))
    return 0


async def _sync(args: argparse.Namespace) -> None:
    fetch = _source(args.file, args.url)
    with Console(stderr=True).status("fetching prices"):
        prices = await asyncio.to_thread(_fetched, fetch)
    async with store_of(args) as store:
        lists = PriceLists(store)
        before, _ = await seeded(lists)
        new, changed, gone = compare(before.entries, prices)
        models = len({(price.book, price.model) for price in before.entries})
        if gone > models * _GONE_SHARE_MAX and not args.force:
            raise FareboxError(
                f"{gone:,} of {models:,} models are not in what was read, which looks broken; nothing was changed. "
                "--force takes it all the same."
            )
        revision = await lists.put(PUBLISHED, "sync", datetime.now(UTC), prices)
        assert revision is not None
        after = await loaded(lists, revision)
    print(f"{len(after):,} prices in force: {new:,} new, {changed:,} changed, {gone:,} removed")
    if changed:
        print("If calls were costed with a price that was wrong: farebox prices reprice --since TIME", file=sys.stderr)


def compare(before: Iterable[Price], after: Iterable[Price]) -> tuple[int, int, int]:
    """Models that are new, that cost something else, and that are gone."""
    old, new = _rates(before), _rates(after)
    changed = sum(1 for model in old.keys() & new.keys() if old[model] != new[model])
    return len(new.keys() - old.keys()), changed, len(old.keys() - new.keys())


def _rates(prices: Iterable[Price]) -> dict[tuple[str, str], list[Any]]:
    found: dict[tuple[str, str], list[Any]] = {}
    for price in prices:
        found.setdefault((price.book, price.model), []).append((price.since, price.periods, price.variants))
    return found


def _source(file: Path | None, url: str | None) -> Callable[[], Any]:
    """What gets the data: the library's own updater, or its reader for a file."""
    try:
        from genai_prices import UpdatePrices, types
    except ImportError:
        raise FareboxError("prices sync needs the library genai-prices: pip install 'farebox[prices]'") from None
    if file is None:
        return UpdatePrices(url=url).fetch if url is not None else UpdatePrices().fetch
    read: Callable[[Any], Any] = types._providers_from_raw
    return lambda: read(json.loads(file.read_bytes(), parse_float=Decimal))


def _fetched(fetch: Callable[[], Any]) -> Sequence[Price]:
    try:
        prices = entries_from_genai(fetch())
    except UnknownShape as exc:
        raise FareboxError(f"the prices hold {exc}, which this farebox can't read yet; nothing was changed") from None
    except OSError as exc:
        raise FareboxError(f"the prices can't be read: {exc.strerror or exc}; nothing was changed") from None
    except Exception as exc:
        # What the library raises is its affair: pydantic's, httpx's, ValueError. Data is not quoted.
        reason = _USERINFO.sub("//", str(exc).partition("\n")[0][:200])
        raise FareboxError(f"no prices could be had ({type(exc).__name__}: {reason}); nothing was changed") from None
    if not prices:
        raise FareboxError("what was read holds no prices; nothing was changed")
    return prices
