"""Budgets of one process: what a call answers to, and its hold from reserve to settlement or release.

No call is refused before four things are true: the database said so, what floats held idle was given
back, every settlement that this process still had under way has reached the database and it was asked
again, and the open holds alone did not keep the call out for as long as it may wait. Money is the
database's business, which the journal's drain settles with the usage row; here nothing is counted but
what the database has put into a float.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from decimal import Decimal
from typing import NamedTuple
from uuid import UUID

import structlog

from farebox.budgets.applying import Applied
from farebox.budgets.definitions import Book, Fields
from farebox.budgets.floating import RECALL_S, Floats
from farebox.budgets.floats import Drawn, Part
from farebox.budgets.link import Link
from farebox.budgets.lives import Lives
from farebox.budgets.owner import Owner
from farebox.budgets.releases import Releases
from farebox.budgets.reserving import Reserving, away
from farebox.budgets.waiting import Case, Lines, behind
from farebox.config import Metering
from farebox.errors import Unavailable
from farebox.logs import exception_facts
from farebox.records import FloatHold
from farebox.store.budgets import Ask, BudgetStore, Draw, Grant, Total, WindowState
from farebox.store.failures import StoreUnavailable
from farebox.store.owners import Owners

CLOSE_S = 2.0
"""How long a stop may take to give holds back and to say that this owner has ended. What it can't say is found out
after a lease: then what is still held is charged."""
_ROUNDS = 3
"""How often one ask is repeated because floats came back: the second time none can be taken there any more."""
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
    `idle()` says whether nothing recorded waits at all; `lost()` how many events never will be there.
    """

    settled: Callable[[float], Awaitable[bool]]
    idle: Callable[[], bool]
    lost: Callable[[], int] = lambda: 0


class Budgets:
    """`start`; `applying`, `draw` or `reserve`, `extend`, `recorded`, `release` for calls; `change` with a new config;
    `close`.

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
        self.applying = self.book.applying
        """The budgets that count a call; () for a caller without any. Waits for nothing."""
        self.owner = Owner(
            quick,
            store,
            label=label,
            lease_s=settings.lease_s,
            link=self.link,
        )
        self.lines = Lines(self._ask, waiting_max=settings.waiting_max)
        self.releases = Releases(quick.release, released=self.lines.wake)
        self.floats = Floats(quick, owner=self.owner, link=self.link, settled=drain.settled, lost=drain.lost)
        self.recorded = self.floats.recorded
        """To be told that the row of a call that drew is written down."""
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
        self.floats.start()
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
        await self.floats.stop()
        if self._inheriting is not None:
            self._inheriting.cancel()
            await asyncio.gather(self._inheriting, return_exceptions=True)
        await self.owner.close()
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._reserving.close()
                if not self.link.away:
                    drained = self._drain.idle()
                    left = await self._owners.floats_of(self.owner.number) if drained else ()
                    await self.floats.close(left, drained=drained)
                    if await self.releases.flush(CLOSE_S):
                        await self._end()
        except Exception as error:
            # The rest of the stop must go on: others find out after a lease.
            self._log.warning("the database was not told that this process ended", **exception_facts(error))
        await self.releases.close()

    # -- what the data plane calls ---------------------------------------------------------------

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

    def draw(self, part: Part, applied: Sequence[Applied]) -> Drawn | None:
        """Hold what a call wants out of a float, at once; None: it has to `reserve`.

        Where others wait in line for one of the budgets, nobody passes them. Ends in `recorded` or `release`.
        """
        if self.lines.waiting and self.lines.ahead(applied) is not None:
            return None
        return self.floats.draw(part)

    async def extend(self, id: UUID, usd: Decimal, tokens: int, draw: Draw | None = None) -> Grant | None:
        """Raise the hold of a call that runs to these totals, all or nothing. None: the database is away.

        `draw`: the call holds out of a float, which nothing is added to; it gets a reservation of its own first.
        """
        total = Total(id, usd, tokens)
        idle = self._drain.idle()
        try:
            if draw is not None:
                await self._reserving.detach(draw)
            grant = await self._extend(total)
            if grant.state == "denied" and not (idle and self._drain.idle()):
                await self._drain.settled(self._settings.reserve_timeout_s)
                grant = await self._extend(total)
        except Unavailable:
            return None
        return grant

    async def _extend(self, total: Total) -> Grant:
        async def ask() -> Grant:
            return await self._reserving.extend(total)

        return await self._unless_floats(ask, lambda grant: (w for w in grant.windows if not w.fits))

    def release(self, id: UUID, drawn: FloatHold | None = None) -> None:
        """Give back what a call holds that provably did not go out. In the background, until it succeeds."""
        if drawn is not None:
            self.floats.put_back(drawn)
        else:
            self.releases.add(id)

    def wake(self) -> None:
        """Settlements of this process reached the database: who waits for room asks again."""
        self.lines.wake()

    async def _ask(self, case: Case) -> Grant:
        """The database's word on an ask; denied only with all that this process settled counted."""
        # Asked before: what reaches the database while it answers, it may not have seen.
        idle = self._drain.idle()
        grant, spent_s = await self._reserve(case)
        # Where what is spent leaves no room by itself, no settlement makes any.
        if grant.state != "denied" or (idle and self._drain.idle()) or not case.hopeful(grant):
            return grant
        settled = await self._drain.settled(max(0.0, self._settings.reserve_timeout_s - spent_s))
        grant, _ = await self._reserve(case)
        if grant.state == "denied" and not settled and case.hopeful(grant):
            # Its own last call may be what keeps the client out.
            raise away()
        return grant

    async def _reserve(self, case: Case) -> tuple[Grant, float]:
        """The answer, and the seconds it took without the wait for floats."""
        loop = asyncio.get_running_loop()
        spent_s = 0.0

        async def ask() -> Grant:
            nonlocal spent_s
            began = loop.time()
            grant = await self._reserving.reserve(case.ask)
            spent_s += loop.time() - began
            return grant

        grant = await self._unless_floats(ask, lambda grant: case.full(grant) if case.hopeful(grant) else ())
        return grant, spent_s

    async def _unless_floats(
        self, ask: Callable[[], Awaitable[Grant]], full: Callable[[Grant], Iterable[WindowState]]
    ) -> Grant:
        """The answer to `ask`: a denial only when no float that may be idle is on the counters without room."""
        deadline = asyncio.get_running_loop().time() + RECALL_S
        grant = await ask()
        try:
            for _ in range(_ROUNDS):
                if grant.state != "denied":
                    break
                async with asyncio.timeout_at(deadline + self._settings.reserve_timeout_s):
                    if not await self.floats.clear(full(grant), deadline):
                        break
                grant = await ask()
        except (TimeoutError, StoreUnavailable):
            raise away() from None
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
        await self._owners.fence(lives.left)
        while floats := await self._owners.floats_held_by(lives.left):
            await self._quick.float_end(floats)
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
