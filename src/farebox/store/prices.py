"""The price book in Postgres: lists of prices, each put whole and never changed.

What a price means is `pricing`'s, which list to use and when to look again is `pricebook`'s. An
entry that this version of farebox can't read (a newer one wrote it) stands in its list without rates,
so that its model costs an unknown amount, and not what another entry that its name may mean costs.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from typing import Literal

import msgspec

from farebox.pricing import Match, Price
from farebox.store.store import Store

PUBLISHED = "published"
"""The list of the publishers' prices."""
CONFIG = "config:"
"""With a provider's name after it: the list of prices that the config sets for it."""

Source = Literal["shipped", "sync", "config"]

_ENTRY = msgspec.json.Decoder(Price)


class _Outline(msgspec.Struct):
    """As much of an entry as says what it is for, whatever else is in it."""

    match: Match
    since: date | None = None


_OUTLINE = msgspec.json.Decoder(_Outline)


class PriceList(msgspec.Struct, frozen=True):
    """One list. `snapshot`: as of when its facts were true; `prices`: how many there are; `digest`: as `digest_of`."""

    revision: int
    name: str
    source: Source
    snapshot: datetime
    digest: str
    added_at: datetime
    prices: int


class PriceLists:
    """The calls, over a store. They raise StoreUnavailable when the database is away."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def newest(self, name: str = PUBLISHED) -> PriceList | None:
        """The list in force; None: there never was one."""
        rows = await self._store.fetch("newest_price_list", name)
        return PriceList(**dict(rows[0])) if rows else None

    async def digests(self, prefix: str) -> dict[str, str]:
        """The digest of each list in force whose name begins with `prefix`, by name."""
        return {row["name"]: row["digest"] for row in await self._store.fetch("price_list_digests", prefix)}

    async def put(self, name: str, source: Source, snapshot: datetime, prices: Sequence[Price]) -> int | None:
        """Add a list, whole or not at all; its revision, or None where there was no need.

        A `shipped` list is added where what is there is older, or was shipped of the same snapshot by
        another version; a `config` list where it differs; a `sync` list always. Harmless for many to
        do at once.
        """
        prices = in_order(prices)
        document = b"[" + b",".join(_column(price) for price in prices) + b"]"
        store = self._store
        async with store.connection() as connection, connection.transaction():
            # Locked first: under READ COMMITTED the next statement sees what was committed while this one waited.
            await connection.execute(store.sql["lock_price_lists"])
            rows = await connection.fetch(
                store.sql["put_price_list"], name, source, snapshot, digest_of(prices), document.decode()
            )
        return rows[0]["revision"] if rows else None

    async def load(self, revision: int) -> tuple[list[Price], list[str]]:
        """The prices of a list in the order in which they were put, and the ids of those that can't be read.

        These stand among the prices without rates.
        """
        rows = [tuple(row.values()) for row in await self._store.fetch("load_price_list", revision)]
        # In a thread: a list comes while calls are served, and takes longer to read than any of them may wait.
        return await asyncio.to_thread(_read, rows)


def _read(rows: Iterable[tuple[str, str, str, str]]) -> tuple[list[Price], list[str]]:
    prices: list[Price] = []
    unread: list[str] = []
    for id, book, model, entry in rows:
        try:
            price = _ENTRY.decode(entry)
        except msgspec.MsgspecError:
            unread.append(id)
            price = _unpriced(book, model, entry)
        # The entry may be older than the list, and ranked otherwise when it came.
        prices.append(msgspec.structs.replace(price, id=id, rank=len(prices)))
    return prices, unread


def _unpriced(book: str, model: str, entry: str) -> Price:
    """What stands for an entry that can't be read: the same names, or at least the model's own, and no rates."""
    try:
        outline = _OUTLINE.decode(entry)
    except msgspec.MsgspecError:
        outline = _Outline(Match())
    match = outline.match if outline.match != Match() else Match(equals=(model,))
    return Price(book=book, model=model, match=match, periods=(), since=outline.since)


def in_order(prices: Iterable[Price]) -> list[Price]:
    """In the order in which a book is searched."""
    return sorted(prices, key=lambda price: (price.book, price.rank, price.model, price.since or date.min))


def digest_of(prices: Iterable[Price]) -> str:
    """What tells lists apart: their prices, and the order of them."""
    return hashlib.sha256("\n".join(price.id for price in in_order(prices)).encode()).hexdigest()[:16]


class _Column(msgspec.Struct):
    id: str
    book: str
    model: str
    entry: Price


_ENCODER = msgspec.json.Encoder()


def _column(price: Price) -> bytes:
    return _ENCODER.encode(_Column(price.id, price.book, price.model, price))
