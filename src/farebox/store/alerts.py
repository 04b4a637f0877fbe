"""News of budgets as Postgres keeps it: thresholds reached, each claimed once, and the queue of their webhook.

When to look and what to do with an alert is `farebox.budgets.alerts`' business; also here are the figures
that the budget gauges show, because both ask how full the windows are.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import NamedTuple
from uuid import UUID

import asyncpg
import msgspec

from farebox.store.store import Store


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """A threshold that a window has reached, with the window as it was found."""

    id: UUID
    name: str
    """The budget's."""
    scope: str
    who: str
    """The value of the scope; a key by its name."""
    window: str
    threshold: Decimal
    limit_usd: Decimal | None
    spent_usd: Decimal
    reserved_usd: Decimal
    limit_tokens: int | None
    spent_tokens: int
    reserved_tokens: int
    window_start: datetime
    resets_at: datetime | None
    raised_at: datetime
    tries: int


class Gauge(NamedTuple):
    """How a current window stands. `budget` None: all that have no row of their own, together."""

    budget: str | None
    who: str | None
    scope: str | None
    limit_usd: Decimal | None
    spent_usd: Decimal
    reserved_usd: Decimal
    remaining: Decimal | None
    """The part of the limit that is left, 0 to 1; of several limits the least; None without any."""


class AlertStore:
    """The calls, over a store. They raise StoreUnavailable when the database is away."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def claim(self, *, every_s: float, deliver: bool, rows_max: int) -> list[Alert]:
        """Thresholds that were reached and are now the caller's to tell, and nobody else's ever.

        None while any process looked less than `every_s` ago. `deliver`: put them into the webhook's queue.
        """
        return [_alert(row) for row in await self._store.fetch("raise_alerts", every_s, deliver, rows_max)]

    async def take(self, *, rows_max: int, lease_s: float) -> list[Alert]:
        """Alerts to deliver now; each is somebody else's again after `lease_s`, or when `failed` says so."""
        return [_alert(row) for row in await self._store.fetch("take_alerts", rows_max, lease_s)]

    async def delivered(self, id: UUID) -> None:
        """The webhook has it."""
        await self._store.fetch("alert_delivered", id)

    async def failed(self, id: UUID, again_s: float | None) -> None:
        """The webhook does not have it; None: it is given up."""
        await self._store.fetch("alert_failed", id, again_s)

    async def gauges(self, rows_max: int) -> list[Gauge]:
        """The current windows, the fullest first; those past `rows_max` in one row together."""
        return [Gauge(*row.values()) for row in await self._store.fetch("budget_gauges", rows_max)]

    async def overrun(self) -> Decimal:
        """What calls cost above what their budgets held for them, in US dollars; each budget's counts."""
        [row] = await self._store.fetch("budget_overrun")
        usd: Decimal = row["usd"]
        return usd


def _alert(row: asyncpg.Record) -> Alert:
    return Alert(**{name: row[name] for name in Alert.__struct_fields__})
