"""Costs that were wrong: the rows to work out again, and the corrections that put them right.

What a row should cost is decided elsewhere (`repricing`); a correction is one more posting.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple, Protocol
from uuid import UUID

import msgspec

from farebox.records import UsageEvent
from farebox.store.store import Store

_NO_ID = UUID(int=0)
"""Before every id that an attempt has."""


class Posting(msgspec.Struct, frozen=True):
    """An attempt as its newest posting has it: number, and the event as far as a price can depend on it."""

    number: int
    event: UsageEvent


class Cost(msgspec.Struct, frozen=True):
    """What an attempt costs as worked out from posting `posting_no` of it. `cost_usd` None: unknown."""

    id: UUID
    posting_no: int
    cost_usd: Decimal | None
    cost_source: str | None
    price_id: str | None


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which attempts: begun from `since` on and before `until`, of `providers`.

    `model`: a regular expression (Postgres') for the name of the model that answered, else was asked for.
    """

    since: datetime
    until: datetime
    providers: Sequence[str]
    model: str | None = None


class Place(NamedTuple):
    """Between two attempts, in the order in which they began."""

    started_at: datetime
    id: UUID = _NO_ID


class Corrections:
    """The calls, over a store. They raise StoreUnavailable when the database is away."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def span(self, wanted: Wanted) -> tuple[datetime, datetime] | None:
        """When the first and the last attempt began that may be wanted; None: there is none."""
        [row] = await self._store.fetch("usage_span", wanted.since, wanted.until)
        return (row["first"], row["last"]) if row["first"] is not None else None

    async def page(self, wanted: Wanted, after: Place, rows_max: int) -> tuple[list[Posting], Place | None]:
        """The wanted attempts among the next `rows_max` postings, and the place where the page after it begins."""
        end = await self._store.fetch("usage_page_end", *after, rows_max, wanted.until)
        next = Place(end[0]["started_at"], end[0]["id"]) if end else None
        upto = next or Place(wanted.until)
        rows = await self._store.fetch("usage_to_price", *after, *upto, list(wanted.providers), wanted.model)
        return [_posting(row) for row in rows], next

    async def again(self, ids: Sequence[UUID]) -> list[Posting]:
        """These attempts as their newest postings have them by now."""
        return [_posting(row) for row in await self._store.fetch("usage_to_price_again", list(ids))]

    async def post(self, costs: Sequence[Cost]) -> set[UUID]:
        """Add corrections, all in one statement; the ids of those added. The others have a newer posting by now."""
        document = msgspec.json.encode(costs).decode()
        return {row["id"] for row in await self._store.fetch("post_costs", document)}


class _Row(Protocol):
    def items(self) -> Iterable[tuple[str, Any]]: ...


def _posting(row: _Row) -> Posting:
    members = dict(row.items())
    number = members.pop("posting_no")
    members["units"] = msgspec.json.decode(members["units"])
    if members["usage_raw"] is not None:
        members["usage_raw"] = msgspec.Raw(members["usage_raw"].encode())
    return Posting(number, UsageEvent(**members))
