"""Budgets of one process: what a call answers to, and its hold from reserve to settlement or release.

No call is refused before three things are true: the database said so, every settlement that this
process still had under way has reached it and it was asked again, and the open holds alone did not
keep the call out for as long as it may wait. Money is the database's business, which the journal's
drain settles with the usage row; here nothing is counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from typing import NamedTuple
from uuid import UUID

import structlog

from farebox.budgets.applying import Applied
from farebox.budgets.definitions import Book, Fields
from farebox.budgets.link import Link
from farebox.budgets.lives import Lives
from farebox.budgets.owner import Owner
from farebox.budgets.releases import Releases
from farebox.budgets.reserving import Reserving, away
from farebox.budgets.waiting import Case, Lines, behind
from farebox.config import Metering
from farebox.errors import Unavailable
from farebox.logs import exception_facts
from farebox.records import Caller
from farebox.store.budgets import Ask, BudgetStore, Grant, Total
from farebox.store.failures import StoreUnavailable
from farebox.store.owners import Owners

CLOSE_S = 2.0
"""How long a stop may take to give holds back and to say that this owner has ended. What it can't say is found out
after a lease: then what is still held is charged."""
_INHERIT_S = 60.0
_INHERIT_AGAIN_S = 0.5


class Settings(NamedTuple):
    """How budgets are handled, from the config's `metering`. All in seconds but `waiting_max`, calls."""

    reserve_timeout_s: float = 1.0
    lease_s: float = 30.0
    poll_s: float = 2.0
    waiting_max: int = 1_000

    @classmethod
    def of(cls, metering: Metering) -> Settings:
        """As the config says."""
        return cls(
            metering.reserve_timeout_s, metering.budget_lease_s, metering.budget_poll_s, metering.budget_waiting_max
        )


class Drain(NamedTuple):
    """The way of this process's settlements to the database.

    `settled(timeout_s)` waits until what was recorded up to now is there, and says whether it is;
    `idle()` says whether nothing recorded waits at all.
    """

    settled: Callable[[float], Awaitable[bool]]
    idle: Callable[[], bool]


class Budgets:
    """`start`; `applying`, `reserve`, `extend` and `release` for each call; `change` with a new config; `close`.

    `quick` has connections of its own, which nothing slow takes part in; `store` is everybody's.
    """

    def __init__(
        self,
        quick: BudgetStore,
        store: BudgetStore,
        owners: Owners,
        configured: Sequence[Fields] = (),
        *,
        label: str,
        drain: Drain,
        settings: Settings,
    ) -> None:
        self._settings = settings
        self._drain = drain
        self._owners = owners
        self._quick = quick
        self._lives: Lives | None = None
        self._inheriting: asyncio.Task[None] | None = None
        self._log = structlog.get_logger()
        self.link = Link()
        self.book = Book(store, configured, poll_s=settings.poll_s)
        self.owner = Owner(
            quick,
            store,
            label=label,
            lease_s=settings.lease_s,
            link=self.link,
        )
        self.lines = Lines(self._ask, waiting_max=settings.waiting_max)
        self.releases = Releases(quick.release, released=self.lines.wake)
        self._reserving = Reserving(
            quick,
            owner=self.owner,
            link=self.link,
            timeout_s=settings.reserve_timeout_s,
            abandoned=self.releases.add,
        )

    async def start(self, lives: Lives | None = None) -> None:
        """Load the definitions and register as an owner. Raises StoreUnavailable.

        `lives`: the owners of this process's journal; None where what earlier ones left must be charged.
        """
        self._lives = lives
        await self.book.start()
        self.releases.start()
        if lives is not None:
            lives.add(self.owner.label)
        await self.owner.start()
        if lives is not None and lives.left:
            self._inheriting = asyncio.create_task(self._inherit(lives), name="budget inheritance")

    def change(self, configured: Sequence[Fields], settings: Settings) -> None:
        """Follow a new config; calls that wait go on as they began."""
        self._settings = settings
        self.book.change(configured, poll_s=settings.poll_s)
        self.owner.lease_s = settings.lease_s
        self.lines.waiting_max = settings.waiting_max
        self._reserving.timeout_s = settings.reserve_timeout_s

    async def close(self) -> None:
        """Leave nothing behind: to be called after the last call has ended and the ledger is drained."""
        await self.book.close()
        if self._inheriting is not None:
            self._inheriting.cancel()
            await asyncio.gather(self._inheriting, return_exceptions=True)
        await self.owner.close()
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._reserving.close()
                if not self.link.away and await self.releases.flush(CLOSE_S):
                    await self._end()
        except Exception as error:
            # The rest of the stop must go on: others find out after a lease.
            self._log.warning("the database was not told that this process ended", **exception_facts(error))
        await self.releases.close()

    # -- what the data plane calls ---------------------------------------------------------------

    def applying(self, caller: Caller, model: str | None, session: str | None) -> tuple[Applied, ...]:
        """The budgets that count this call; () for a caller without any. Waits for nothing."""
        return self.book.applying(caller, model, session)

    async def refresh(self) -> None:
        """Put in force what was just changed here; if the database is away by now, by the next poll."""
        try:
            await self.book.refresh()
        except StoreUnavailable:
            pass

    async def reserve(self, ask: Ask, *, wait_s: float, applied: Sequence[Applied]) -> Grant:
        """Hold what `ask` wants of its budgets, all or nothing; `denied` after at most `wait_s` in line.

        With `wait_s` 0 nothing is waited for; where others wait in line for one of the budgets the
        answer is `denied` then, and names that one. Raises Unavailable while the database is away.
        Cancelled, or unavailable, it leaves nothing behind.
        """
        case, place = Case.of(ask, applied), self.lines.ahead(applied)
        if place is not None:
            if wait_s <= 0:
                return behind(ask.id, self.lines.seen(place))
            return await self.lines.wait(case, place, wait_s)
        wakes = self.lines.wakes
        grant = await self._ask(case)
        if grant.state != "denied" or wait_s <= 0 or not case.hopeful(grant):
            return grant
        blocking = case.blocking(grant)
        if blocking is None:
            return grant
        return await self.lines.wait(case, blocking, wait_s, denied=grant, wakes=wakes)

    async def extend(self, id: UUID, usd: Decimal, tokens: int) -> Grant | None:
        """Raise the hold of a call that runs to these totals, all or nothing. None: the database is away."""
        total = Total(id, usd, tokens)
        idle = self._drain.idle()
        try:
            grant = await self._reserving.extend(total)
            if grant.state == "denied" and not (idle and self._drain.idle()):
                await self._drain.settled(self._settings.reserve_timeout_s)
                grant = await self._reserving.extend(total)
        except Unavailable:
            return None
        return grant

    def release(self, id: UUID) -> None:
        """Give back what a call holds that provably did not go out. In the background, until it succeeds."""
        self.releases.add(id)

    def wake(self) -> None:
        """Settlements of this process reached the database: who waits for room asks again."""
        self.lines.wake()

    async def _ask(self, case: Case) -> Grant:
        """The database's word on an ask; denied only with all that this process settled counted."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.reserve_timeout_s
        # Asked before: what reaches the database while it answers, it may not have seen.
        idle = self._drain.idle()
        grant = await self._reserving.reserve(case.ask)
        # Where what is spent leaves no room by itself, no settlement makes any.
        if grant.state != "denied" or (idle and self._drain.idle()) or not case.hopeful(grant):
            return grant
        settled = await self._drain.settled(max(0.0, deadline - loop.time()))
        grant = await self._reserving.reserve(case.ask)
        if grant.state == "denied" and not settled and case.hopeful(grant):
            # Its own last call may be what keeps the client out.
            raise away()
        return grant

    # -- ends ------------------------------------------------------------------------------------

    async def adopt(self, lives: Lives) -> None:
        """The journal of a process that is gone is in the database: what else its `lives` held was never sent."""
        try:
            await self._give_back(lives)
        except StoreUnavailable:
            pass  # charged after a lease, as where nobody adopts

    async def _give_back(self, lives: Lives) -> None:
        while ids := await self._owners.held_by(lives.left):
            await self._quick.release(ids)
            self._log.info("holds of a crashed process for calls it never sent are given back", calls=len(ids))
        lives.settled()

    async def _end(self) -> None:
        """Say that this owner ended, if nothing it held can still be settled by anyone."""
        number = self.owner.number
        if not number or not self._drain.idle():
            return
        if await self._owners.end(number) and self._lives is not None:
            self._lives.ended()

    async def _inherit(self, lives: Lives) -> None:
        """Give back what earlier lives of this process's journal held for calls that they provably never sent."""
        while True:
            try:
                if await self._drain.settled(_INHERIT_S):
                    await self._give_back(lives)
                    return
            except StoreUnavailable:
                pass
            except Exception as error:
                self._log.error("what a crashed process held is charged, not given back", **exception_facts(error))
                return
            await asyncio.sleep(_INHERIT_AGAIN_S)
