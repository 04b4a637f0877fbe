"""How budgets stand, for the gauges: looked up when somebody scrapes, remembered for a moment.

Postgres knows, so every worker and replica tells the same. The fullest windows have series of their own,
the others are `other` together: their sums, and the least that is left in any. While the database is away
the last figures are told for a minute, and then none: an alert that finds no series stays quiet, one that
finds an old figure lies. `farebox_ledger_oldest_event_seconds` and `/readyz` tell that it is away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from decimal import Decimal
from typing import Protocol

import structlog

from farebox.logs import exception_facts
from farebox.metrics import families as f
from farebox.metrics.families import OTHER, Family
from farebox.metrics.series import clean

CACHE_S = 1.0
"""How long a look serves further scrapes, at least."""
SHARE = 20
"""And at least so many times as long as it took: with very many counters a look costs the database something."""
TIMEOUT_S = 2.0
"""How long a scrape waits for the database."""
KEEP_S = 60.0
"""How long the last figures are told while the database does not answer."""


class Standing(Protocol):
    """A current window, or with `budget` None all that have none of their own; as `store.alerts.Gauge`."""

    @property
    def budget(self) -> str | None: ...
    @property
    def who(self) -> str | None: ...
    @property
    def scope(self) -> str | None: ...
    @property
    def limit_usd(self) -> Decimal | None: ...
    @property
    def spent_usd(self) -> Decimal: ...
    @property
    def reserved_usd(self) -> Decimal: ...
    @property
    def remaining(self) -> Decimal | None: ...


Ask = Callable[[int], Awaitable[Sequence[Standing]]]
"""So many windows, the fullest first, and all others as one."""


def label(name: str, scope: str | None, who: str | None) -> str:
    """What a counter is called: the budget's name, and whose it is where each has its own."""
    return name if scope in (None, "global") or who is None or name.startswith("key:") else f"{name}:{who}"


class BudgetGauges:
    """`look`, then `samples`. Never raises: a scrape has other figures to tell."""

    def __init__(
        self, ask: Ask, *, rows_max: int, is_secret: Callable[[str], bool], monotonic: Callable[[], float]
    ) -> None:
        self._ask = ask
        self._rows_max = rows_max
        self._is_secret = is_secret
        self._monotonic = monotonic
        self._found: Sequence[Standing] = ()
        self._found_at: float | None = None
        self._again_at: float | None = None

    async def look(self) -> None:
        """Take the figures of now, unless they were taken a moment ago."""
        now = self._monotonic()
        if self._again_at is not None and now < self._again_at:
            return
        self._again_at = now + CACHE_S
        try:
            async with asyncio.timeout(TIMEOUT_S):
                self._found = await self._ask(self._rows_max)
        except Exception as error:
            structlog.get_logger().debug("how budgets stand could not be read", **exception_facts(error))
            return
        self._found_at = now
        self._again_at = now + max(CACHE_S, SHARE * (self._monotonic() - now))

    def samples(self) -> Iterator[tuple[Family, str, float]]:
        """Family, label and value of each series. Amounts are floats only here, where they are shown."""
        if self._found_at is None or self._monotonic() - self._found_at > KEEP_S:
            return
        rest: list[Standing] = []
        seen: set[str] = set()
        for standing in self._found:
            name = clean(label(standing.budget, standing.scope, standing.who)) if standing.budget else OTHER
            if name == OTHER or name in seen or self._is_secret(name):
                rest.append(standing)
                continue
            seen.add(name)
            yield from _samples(name, [standing])
        if rest:
            yield from _samples(OTHER, rest)


def _samples(name: str, standings: Sequence[Standing]) -> Iterator[tuple[Family, str, float]]:
    limits = [standing.limit_usd for standing in standings if standing.limit_usd is not None]
    if limits:
        yield f.BUDGET_LIMIT, name, float(sum(limits))
    yield f.BUDGET_SPENT, name, float(sum(standing.spent_usd for standing in standings))
    yield f.BUDGET_RESERVED, name, float(sum(standing.reserved_usd for standing in standings))
    left = [standing.remaining for standing in standings if standing.remaining is not None]
    if left:
        yield f.BUDGET_REMAINING, name, float(min(left))
