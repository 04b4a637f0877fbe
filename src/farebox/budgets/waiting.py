"""The bounded, fair wait for room: calls that open holds keep out stand in line until a hold is given back.

There is a line for each counter (a budget's, of one subject), and whoever came first asks first. Only
the head of a line asks: when a settlement of this process reached the database (`wake`), and every
`poll_s`, for what other processes settle. When it has its hold the next one asks at once, and so on until
one is denied. A call whose time is up asks a last time, wherever it stands, and takes that answer.

Nobody waits in vain: where what is spent alone leaves no room, the answer is final. Asking is the
caller's, and so is what to tell whoever gets nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import NamedTuple
from uuid import UUID

import msgspec

from farebox.budgets.applying import Applied
from farebox.records import Want
from farebox.store.budgets import Ask, Grant, WindowState

POLL_S = 0.1
"""How often the head of a line asks without being woken: holds of other processes end unseen."""

ASKS_MAX = 2_000
"""How many heads of lines ask in a second, about: with more lines than that allows each asks less often."""

Place = tuple[UUID, str]
"""Which line: a budget's id and a subject."""


class Case(NamedTuple):
    """An ask, and which of its budgets only warn: those are passed, not waited for."""

    ask: Ask
    warning: frozenset[UUID]

    @classmethod
    def of(cls, ask: Ask, applied: Iterable[Applied]) -> Case:
        """`ask`, which `applied` count."""
        return cls(ask, frozenset(one.budget.id for one in applied if one.budget.on_exceed == "warn"))

    def blocking(self, grant: Grant) -> Place | None:
        """The first counter without room, in the order of the ask."""
        return next(((window.budget, window.subject) for window in self.full(grant)), None)

    def hopeful(self, grant: Grant) -> bool:
        """Whether open holds alone keep the ask out: each counter without room would have it if they cost nothing."""
        wants = {(want.budget, want.subject): want for want in self.ask.wants}
        return all(_would_fit(wants[window.budget, window.subject], window) for window in self.full(grant))

    def full(self, grant: Grant) -> Iterator[WindowState]:
        """The counters without room that count."""
        return (window for window in grant.windows if not window.fits and window.budget not in self.warning)


class _Waiter:
    __slots__ = ("turn",)

    def __init__(self) -> None:
        self.turn = asyncio.Event()


class Lines:
    """All lines of one process; at most `waiting_max` calls stand in them together.

    `ask(case)` makes the call to the database, and may raise. `wakes` counts the calls of `wake`: taken
    before an ask it tells whether something was given back since.
    """

    def __init__(self, ask: Callable[[Case], Awaitable[Grant]], *, waiting_max: int, poll_s: float = POLL_S) -> None:
        self._ask = ask
        self._poll_s = poll_s
        self._lines: dict[Place, deque[_Waiter]] = {}
        self._seen: dict[Place, WindowState] = {}
        self._woken_at = 0.0
        self._waking: asyncio.TimerHandle | None = None
        self.waiting_max = waiting_max
        self.waiting = 0
        """Calls that stand in a line now."""
        self.wakes = 0

    def ahead(self, applied: Iterable[Applied]) -> Place | None:
        """The first of these counters that has a line already, so that who comes now belongs behind it."""
        if not self._lines:
            return None
        return next((place for place in _places(applied) if place in self._lines), None)

    def seen(self, place: Place) -> WindowState:
        """The counter as its line found it the last time."""
        return self._seen[place]

    def wake(self) -> None:
        """Something may have been given back: the head of each line asks again."""
        self.wakes += 1
        if not self._lines or self._waking is not None:
            return
        loop = asyncio.get_running_loop()
        pause = self._woken_at + len(self._lines) / ASKS_MAX - loop.time()
        if pause > 0:
            self._waking = loop.call_later(pause, self._wake_heads)
        else:
            self._wake_heads()

    def _wake_heads(self) -> None:
        self._waking = None
        self._woken_at = asyncio.get_running_loop().time()
        for line in self._lines.values():
            line[0].turn.set()

    async def wait(
        self, case: Case, place: Place, wait_s: float, *, denied: Grant | None = None, wakes: int = 0
    ) -> Grant:
        """Stand in line until the ask is granted, denied for good, or `wait_s` over.

        `denied`: the answer it had, asked when `wakes` was that; None for one that joins a line without having asked.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        if self.waiting >= self.waiting_max:
            return denied if denied is not None else await self._ask(case)
        me = _Waiter()
        self.waiting += 1
        self._join(me, place, denied)
        if denied is not None and wakes != self.wakes:
            me.turn.set()
        try:
            while True:
                last = not await self._turn(me, place, deadline - loop.time())
                me.turn.clear()
                if not (last or self._lines[place][0] is me):
                    continue
                grant = await self._ask(case)
                if grant.state != "denied":
                    return grant
                blocking = case.blocking(grant)
                if last or blocking is None or not case.hopeful(grant):
                    return grant
                if blocking == place:
                    self._remember(place, grant)
                else:
                    # Another counter is in the way by now: who waits here must not wait for that one.
                    self._leave(me, place)
                    place = blocking
                    self._join(me, place, grant)
        finally:
            self.waiting -= 1
            self._leave(me, place)

    async def _turn(self, me: _Waiter, place: Place, left_s: float) -> bool:
        """Wait for a reason to ask; False when the time is up."""
        head = self._lines[place][0] is me
        patience = min(left_s, max(self._poll_s, len(self._lines) / ASKS_MAX)) if head else left_s
        if patience <= 0:
            return False
        try:
            async with asyncio.timeout(patience):
                await me.turn.wait()
        except TimeoutError:
            return patience < left_s
        return True

    def _join(self, me: _Waiter, place: Place, denied: Grant | None) -> None:
        self._lines.setdefault(place, deque()).append(me)
        if denied is not None:
            self._remember(place, denied)

    def _remember(self, place: Place, grant: Grant) -> None:
        for window in grant.windows:
            if (window.budget, window.subject) == place:
                self._seen[place] = window

    def _leave(self, me: _Waiter, place: Place) -> None:
        line = self._lines[place]
        first = line[0] is me
        line.remove(me)
        if not line:
            del self._lines[place]
            self._seen.pop(place, None)
        elif first:
            line[0].turn.set()


def _places(applied: Iterable[Applied]) -> Iterator[Place]:
    return ((one.budget.id, one.subject) for one in applied)


def _would_fit(want: Want, window: WindowState) -> bool:
    # Requests are not given back, but for those that a float holds.
    held = want.requests if window.floats else window.requests + want.requests
    if window.limit_requests is not None and held > window.limit_requests:
        return False
    if window.limit_usd is not None and window.spent_usd + want.usd > window.limit_usd:
        return False
    if window.limit_tokens is not None and window.spent_tokens + want.tokens > window.limit_tokens:
        return False
    if window.limit_open is not None and window.limit_open < 1:
        return False
    return bool(window.reserved_usd or window.reserved_tokens or window.open)


def behind(id: UUID, window: WindowState) -> Grant:
    """The answer to an ask that may not wait and finds a line: no room, as the line found it."""
    return Grant(id, "denied", (msgspec.structs.replace(window, fits=False),))
