"""The floats of one process: taken for counters that many calls meet, filled up behind their back, given back in time.

`draw` is all that a call meets, and waits for nothing. A float that nobody used for a second, that somebody asks for,
whose window is over, or that a fenced owner took is closed: what is free of it goes back at once, and the rest with the
last of its calls, when their rows are in the database. Whoever is denied asks `clear` to get back what floats hold
idle, its own and those of others, before the denial counts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from uuid import UUID, uuid4

import structlog

from farebox.budgets.floats import REFUSED_S, Demand, Drawn, Float, Key, Part
from farebox.budgets.link import Link
from farebox.budgets.owner import Owner
from farebox.logs import exception_facts
from farebox.records import FloatHold
from farebox.store.budgets import BudgetStore, Fenced, WindowState
from farebox.store.failures import StoreUnavailable

FLOATS_MAX = 256
"""Floats in use at once; calls of more counters reserve one by one."""
DEMANDS_MAX = 4_096
"""Sets of counters whose calls are counted; past it those without a float are forgotten and counted anew."""
IDLE_S = 1.0
"""A float that no call used for so long is given back."""
LOOK_S = 0.1
"""How often it is asked whether somebody wants a float back, and looked for idle ones."""
RECALL_S = 1.0
"""How long a denied call waits for the floats of others. One that has not come back by then is not known to be idle:
its process is frozen or gone."""
_RECALL_AGAIN_S = 0.05
_SILENT_MAX = 1_000
"""Floats of others remembered as not coming back; past it all are forgotten and waited for once more."""
_DOUBT_S = 10.0
"""After an answer that was lost the database may be at it still: a float that may have been made is ended later."""
_DRAIN_S = 5.0
_AGAIN_S = 0.2


class Floats:
    """`start`, then `draw`, and `recorded` or `put_back` for each call that drew; `clear` where one is denied; `close`.

    `settled(timeout_s)` waits until all that was recorded is in the database, and says whether it is; `lost()` is how
    many events never will be.
    """

    def __init__(
        self,
        store: BudgetStore,
        *,
        owner: Owner,
        link: Link,
        settled: Callable[[float], Awaitable[bool]],
        lost: Callable[[], int],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._owner = owner
        self._link = link
        self._settled = settled
        self._lost = lost
        self._monotonic = monotonic
        self._demands: dict[Key, Demand] = {}
        self._asking: dict[Key, Demand] = {}
        # By the numbers of their ids: an id itself takes longer to hash than all else that a call's end does here.
        self._floats: dict[int, Float] = {}
        self._giving: dict[UUID, FloatHold] = {}
        self._unsent: list[FloatHold] = []
        self._doubtful: dict[UUID, float] = {}
        self._clearing: dict[tuple[int, ...], asyncio.Task[bool]] = {}
        self._silent: set[UUID] = set()
        self._kept: set[UUID] = set()
        self._wake = asyncio.Event()
        self._some = asyncio.Event()
        self._over = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._log = structlog.get_logger()

    def start(self) -> None:
        """Begin to take and to give."""
        loops = (self._take_all, self._look_after, self._give_and_end)
        self._tasks = [asyncio.create_task(loop(), name=f"budget floats{loop.__name__}") for loop in loops]

    def __len__(self) -> int:
        """Floats that have not ended."""
        return len(self._floats)

    # -- what a call meets -----------------------------------------------------------------------

    def draw(self, part: Part) -> Drawn | None:
        """A call's hold out of a float; None: there is none for it, or not enough in it."""
        now = self._monotonic()
        demand = self._demands.get(part.key)
        if demand is None:
            demand = self._demands[part.key] = self._first(part, now)
        demand.seen(part, now)
        float = demand.float
        if float is None:
            drawn = None
        elif (drawn := float.draw(part, now)) is not None and not float.low:
            return drawn
        if not demand.asked_for and demand.wanted(now) and (float is not None or len(self._floats) < FLOATS_MAX):
            demand.asked_for = True
            self._asking[part.key] = demand
            self._wake.set()
        return drawn

    def recorded(self, hold: FloatHold) -> None:
        """The row of a call that drew is written down, and on its way to the database."""
        float = self._floats.get(hold.id.int)
        if float is not None:
            float.calls -= 1
            if float.closed and not float.calls:
                self._over.set()

    def put_back(self, hold: FloatHold) -> None:
        """A call that drew was provably not sent, and leaves no row."""
        float = self._floats.get(hold.id.int)
        if float is not None and not float.put_back(hold):
            self._unsent.append(hold)
            self._over.set()

    def _first(self, part: Part, now: float) -> Demand:
        if len(self._demands) >= DEMANDS_MAX:
            self._demands = {key: one for key, one in self._demands.items() if one.float or one.asked_for}
        return Demand(part, now)

    # -- room for a call that was denied ---------------------------------------------------------

    async def clear(self, full: Iterable[WindowState], deadline: float) -> bool:
        """Have given back what floats hold idle on counters without room, those of others by `deadline` (monotonic).

        False: there is none, and the denial counts; True: ask again. Raises StoreUnavailable. Of many who ask about the
        same counters one looks for all.
        """
        crowded = {(window.budget, window.subject): window for window in full if window.floats}
        if not crowded:
            return False
        counters = tuple(sorted(window.window for window in crowded.values()))
        clearing = self._clearing.get(counters)
        if clearing is None:
            clearing = self._clearing[counters] = asyncio.create_task(
                self._clear(crowded, deadline), name="budget recall"
            )
            clearing.add_done_callback(partial(self._cleared, counters))
        return await asyncio.shield(clearing)

    def _cleared(self, counters: tuple[int, ...], clearing: asyncio.Task[bool]) -> None:
        del self._clearing[counters]
        if not clearing.cancelled():
            clearing.exception()  # for whoever waits; there need not be anybody any more

    async def _clear(self, crowded: Mapping[tuple[UUID, str], WindowState], deadline: float) -> bool:
        """The same, once for all who are denied on these counters meanwhile."""
        counts = {window.window: window.floats for window in crowded.values()}
        # By their demands: of one that is just being made the windows are not known yet.
        own = [one for one in self._floats.values() if one.demand is not None and one.demand.meets(crowded)]
        left = await self._store.float_recall(self._owner.number, list(counts))
        if not own and len(left) >= max(counts.values()) and self._silent.issuperset(left):
            return False
        await self._close(own)
        await self._end_unknown()
        while (waiting := [id for id in left if id not in self._silent]) or any(one.filling for one in own):
            if self._monotonic() >= deadline:
                if len(self._silent) >= _SILENT_MAX:
                    self._silent.clear()
                self._silent.update(waiting)
                break
            await asyncio.sleep(_RECALL_AGAIN_S)
            left = await self._store.float_recall(self._owner.number, list(counts))
        await self._give()
        return True

    async def _end_unknown(self) -> None:
        """What was made by a statement whose answer was lost: nobody draws from it."""
        if self._doubtful:
            unknown = [id for id in await self._store.float_recalled(self._owner.number) if id in self._doubtful]
            await self._store.float_end(unknown)
            for id in unknown:
                self._doubtful.pop(id, None)

    # -- taking ----------------------------------------------------------------------------------

    async def _take_all(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._asking:
                demand = self._asking.pop(next(iter(self._asking)))
                try:
                    await self._take(demand)
                except Exception as error:
                    if not isinstance(error, StoreUnavailable):
                        self._log.error("a float could not be taken", **exception_facts(error))
                finally:
                    demand.asked_for = False

    async def _take(self, demand: Demand) -> None:
        asked_at, part, number = self._monotonic(), demand.latest, self._owner.number
        calls = demand.wanted(asked_at)
        if not calls or self._link.away:
            return
        float = demand.float
        if float is not None and (asked_at >= float.until or float.owner != number):
            await self._close([float])
            float = None
        fresh = float is None
        if float is None:
            if len(self._floats) >= FLOATS_MAX:
                return
            float = Float(uuid4(), number, self._lost())
            float.demand = demand
            # Known before it is there: somebody may want it back before its answer is.
            self._floats[float.id.int] = float
            self._some.set()
        float.filling = True
        # Until the database says otherwise it gave none, and is not asked again soon.
        demand.refused_until = asked_at + REFUSED_S
        try:
            take = await self._store.float_take(number, float.id, part.wants, calls, fresh=fresh)
        except Fenced:
            self._gone(float, fresh)
            await self._owner.renew(number)
            return
        except BaseException:
            if fresh:
                self._doubtful[float.id] = self._monotonic() + _DOUBT_S
                self._over.set()
                self._some.set()
            self._gone(float, fresh)
            raise
        finally:
            float.filling = False
        if not take.calls:
            self._gone(float, fresh)
            if not take.windows:
                # The first calls are just making them: the next that comes asks again.
                demand.refused_until = 0.0
        elif float.closed:
            # Somebody wanted it while this was under way, so what came does not stay.
            late = float.late(take, part)
            if fresh:
                self._giving[float.id] = late
            else:
                self._unsent.append(late)
            self._over.set()
        else:
            float.fill(take, part, asked_at)
            float.used_at = self._monotonic()
            demand.float, demand.refused_until = float, 0.0

    def _gone(self, float: Float, fresh: bool) -> None:
        """Forget one that was not made. One that was, and not filled, goes on with what it has."""
        if fresh:
            self._floats.pop(float.id.int, None)
            self._giving.pop(float.id, None)

    # -- giving back -----------------------------------------------------------------------------

    async def _look_after(self) -> None:
        """Close what is not to be used any more."""
        while True:
            if not (self._floats or self._doubtful):
                self._some.clear()
                await self._some.wait()
            await asyncio.sleep(LOOK_S)
            try:
                await self._look()
            except StoreUnavailable:
                pass
            except Exception as error:
                self._log.error("floats could not be looked after", **exception_facts(error))

    async def _look(self) -> None:
        number, now = self._owner.number, self._monotonic()
        closing = [
            one
            for one in self._floats.values()
            if not (one.closed or one.filling)
            and (now - one.used_at >= IDLE_S or now >= one.until or one.owner != number)
        ]
        if not self._link.away and (self._doubtful or any(not one.closed for one in self._floats.values())):
            for id in await self._store.float_recalled(number):
                if id.int in self._floats:
                    closing.append(self._floats[id.int])
                else:
                    self._doubtful[id] = 0.0
                    self._over.set()
        await self._close(closing)

    async def _close(self, floats: Iterable[Float]) -> None:
        """Draw from these no more, and give back what is free; until that is done it is tried again."""
        for one in floats:
            if not one.closed:
                self._giving[one.id] = one.close()
                self._over.set()
        await self._give()

    async def _give(self) -> None:
        for id, unused in list(self._giving.items()):
            if unused.windows:
                await self._store.float_give(unused, closing=True)
            if self._giving.get(id) is unused:  # not what came late
                del self._giving[id]
        while self._unsent:
            # Taken for given if the answer is lost: then it goes back at the end.
            await self._store.float_give(self._unsent.pop(), closing=False)
        self._over.set()

    async def _give_and_end(self) -> None:
        """Give back what could not be given back at once, and end floats whose last call is in the database."""
        while True:
            await self._over.wait()
            self._over.clear()
            try:
                if await self._end_all():
                    continue
            except Exception as error:
                if not isinstance(error, StoreUnavailable):
                    self._log.error("floats could not be given back; trying again", **exception_facts(error))
            self._over.set()
            await asyncio.sleep(_AGAIN_S)

    async def _end_all(self) -> bool:
        """Whether nothing is left to be done until something happens."""
        if self._giving or self._unsent:
            await self._give()
            self._over.clear()
        now = self._monotonic()
        over = [one for one in self._floats.values() if one.closed and not one.calls and not one.filling]
        if over and not await self._settled(_DRAIN_S):
            return False
        lost = self._lost()
        # One that may have lost a row stays: what that call cost is not known, and is charged in the end.
        ending = [one.id for one in over if one.lost == lost]
        ending += [id for id, when in self._doubtful.items() if now >= when]
        await self._store.float_end(ending)
        self._kept.update(one.id for one in over if one.lost != lost)
        for one in over:
            self._floats.pop(one.id.int, None)
        for id in ending:
            self._doubtful.pop(id, None)
        return not self._doubtful

    # -- the end ---------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Take no more, and look after none."""
        tasks = [*self._tasks, *self._clearing.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self, left: Iterable[UUID], *, drained: bool) -> None:
        """Give back what can be, after `stop`. `left`: the floats of this owner, known or not. Raises StoreUnavailable.

        `drained`: every call has ended, and its row is in the database.
        """
        if not drained:
            await self._close(list(self._floats.values()))
            return
        lost = self._lost()
        kept = self._kept | {one.id for one in self._floats.values() if one.lost != lost}
        await self._store.float_end(list({*left, *(one.id for one in self._floats.values()), *self._doubtful} - kept))
