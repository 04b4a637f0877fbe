"""The owner that this process's reservations are made by: registered, kept alive by heartbeats, ended in order.

An owner that falls silent for a lease is fenced: others charge what it held, since nobody can know what
it sent. A process that was only slow finds out by its next heartbeat or reserve, and goes on as a new
owner; its running calls settle all the same. Sweeping the silent is done here too, by every process.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import structlog

from farebox.budgets.link import Link
from farebox.logs import exception_facts
from farebox.store.budgets import BudgetStore, Fenced
from farebox.store.failures import StoreUnavailable

_BEATS = 5
"""Heartbeats in a lease: a few may fail before others take this process for dead."""
_PROBE_S = 0.2
"""How often a database that is away is tried."""
_TRIES = 4
_AGAIN_S = 0.05
SWEPT_MAX = 500
"""Reservations of the silent that one statement charges; a sweep repeats it until none is left."""
_PURGE_S = 3_600.0
"""How often tombstones past their day are deleted."""
_STUMBLE_S = 5.0
"""Pause of a loop after an error that is not the database's absence."""


class Owner:
    """`start`, then `number` for every reserve, `renew` where that is fenced, `close` at the end.

    `store` has connections of its own, so that no report delays a heartbeat; `chores`, for sweeping, any.
    """

    def __init__(
        self,
        store: BudgetStore,
        chores: BudgetStore,
        *,
        label: str,
        lease_s: float,
        link: Link,
        spread: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._store = store
        self._chores = chores
        self.label = label
        self._link = link
        self._spread = spread
        self._renewing = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._log = structlog.get_logger()
        self.lease_s = lease_s
        self.number = 0
        self.renewed = 0
        """How often this process was fenced and became another owner."""

    async def start(self) -> None:
        """Register, and begin to beat, sweep and purge. Raises StoreUnavailable."""
        await self._register()
        loops = (self._beat, self._sweep, self._purge)
        self._tasks = [asyncio.create_task(loop(), name="budget " + loop.__name__[1:]) for loop in loops]

    async def renew(self, fenced: int) -> None:
        """Become another owner, unless that has happened since `fenced` was read. Raises StoreUnavailable."""
        async with self._renewing:
            if self.number == fenced:
                await self._register()
                self.renewed += 1
                self._log.warning(
                    "this process was silent for longer than metering.budget_lease_s: what its open calls held is "
                    "charged until they end"
                )

    async def close(self) -> None:
        """Beat no longer."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _register(self) -> None:
        self.number = await self._store.register(self.label)

    async def _beat(self) -> None:
        while True:
            if self._link.away:
                await asyncio.sleep(_PROBE_S)
            else:
                await self._link.pause(self.lease_s / _BEATS)
            number = self.number
            try:
                if not await self._alive(number):
                    await self.renew(number)
            except StoreUnavailable as error:
                self._link.lost(error)
            except Exception as error:
                await self._stumbled("a heartbeat failed", error)
            else:
                self._link.found()

    async def _alive(self, number: int) -> bool:
        """A heartbeat. A connection that was cut is no outage: another one is tried before it counts as one."""
        for more in reversed(range(_TRIES)):
            try:
                return await self._store.beat(number)
            except StoreUnavailable:
                if self._link.away or not more:
                    raise
            await asyncio.sleep(_AGAIN_S)
        raise AssertionError

    async def _sweep(self) -> None:
        while True:
            # Each process at its own moments: together they look often, and seldom at the same time.
            await asyncio.sleep(self._spread(0.25, 0.5) * self.lease_s)
            number = self.number
            try:
                while swept := await self._chores.sweep(number, self.lease_s, SWEPT_MAX):
                    self._log.warning(
                        "calls of a process that is gone were charged what was held for them", calls=swept
                    )
                    if swept < SWEPT_MAX:
                        break
            except Fenced:
                pass  # the next heartbeat finds out as well, and registers anew
            except StoreUnavailable:
                pass
            except Exception as error:
                await self._stumbled("a sweep failed", error)

    async def _purge(self) -> None:
        while True:
            await asyncio.sleep(self._spread(0.5, 1.5) * _PURGE_S)
            try:
                await self._chores.purge()
            except StoreUnavailable:
                pass
            except Exception as error:
                await self._stumbled("old tombstones could not be deleted", error)

    async def _stumbled(self, what: str, error: Exception) -> None:
        self._log.error(what, **exception_facts(error))
        await asyncio.sleep(_STUMBLE_S)
