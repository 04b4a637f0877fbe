"""Calls of many, made together: while one statement is under way, whoever comes next waits for the next one.

One statement for a hundred reserves costs the database little more than for one, and on one counter it
takes the lock once. Nothing waits for company: with nothing under way a call goes at once, alone.

Someone who stops waiting (cancelled, out of time) before the statement has gone takes nothing along.
After that it can't be known here what the statement did, so `abandoned` is told, with the answer if
there was one. What is sent and what an answer means is the caller's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from farebox.errors import FareboxError

Item = TypeVar("Item")
Answer = TypeVar("Answer")

AT_ONCE = 2
"""Statements under way at the same time: while one is at the database the next is gathered and sent behind it."""
BATCH_MAX = 100
"""Calls in one statement; the rest go with the next. It bounds how long the locks of one are held."""
WAITING_MAX = 10_000
"""Calls that wait for a statement; one more is turned away at once."""


class Crowded(FareboxError):
    """As many calls as may wait do."""


class _Seat(Generic[Item, Answer]):
    __slots__ = ("aboard", "answer", "item")

    def __init__(self, item: Item, answer: asyncio.Future[Answer]) -> None:
        self.item = item
        self.answer = answer
        self.aboard = False


class Flights(Generic[Item, Answer]):
    """Gathers calls for `send(items)`, which answers in the order of the items.

    `together(error)`: whether an error concerns all that were sent; otherwise each is sent again by
    itself, so that one bad call does not spoil a hundred good ones. `abandoned(item, answer)`: of an
    item that was sent nobody takes the answer, None where there is none.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Item]], Awaitable[Sequence[Answer]]],
        *,
        together: Callable[[Exception], bool],
        abandoned: Callable[[Item, Answer | None], None] = lambda item, answer: None,
        at_once: int = AT_ONCE,
        batch_max: int = BATCH_MAX,
        waiting_max: int = WAITING_MAX,
    ) -> None:
        self._send = send
        self._together = together
        self._abandoned = abandoned
        self._at_once = at_once
        self._batch_max = batch_max
        self._waiting_max = waiting_max
        # A dict is an ordered set: who gives up leaves from the middle.
        self._waiting: dict[_Seat[Item, Answer], None] = {}
        self._flying: set[asyncio.Task[None]] = set()
        self._gathering = False

    async def __call__(self, item: Item, timeout_s: float) -> Answer:
        """The answer to one item. Raises TimeoutError, Crowded, or what `send` raised."""
        if len(self._waiting) >= self._waiting_max:
            raise Crowded("too many calls wait for the database")
        loop = asyncio.get_running_loop()
        seat: _Seat[Item, Answer] = _Seat(item, loop.create_future())
        self._waiting[seat] = None
        if not self._gathering:
            # Those that come in the same turn of the loop go together.
            self._gathering = True
            loop.call_soon(self._depart)
        try:
            async with asyncio.timeout(timeout_s):
                return await seat.answer
        except (TimeoutError, asyncio.CancelledError):
            self._leave(seat)
            raise

    async def close(self) -> None:
        """Wait for what is under way. To be called when nobody comes any more."""
        while self._flying:
            await asyncio.gather(*self._flying, return_exceptions=True)

    def _leave(self, seat: _Seat[Item, Answer]) -> None:
        answer = seat.answer
        if not seat.aboard:
            self._waiting.pop(seat, None)
        elif answer.done() and not answer.cancelled() and answer.exception() is None:
            # The answer was there, and the cancellation came before it was read.
            self._abandoned(seat.item, answer.result())

    def _depart(self) -> None:
        self._gathering = False
        while self._waiting and len(self._flying) < self._at_once:
            seats = [seat for seat, _ in zip(self._waiting, range(self._batch_max), strict=False)]
            for seat in seats:
                del self._waiting[seat]
                seat.aboard = True
            task = asyncio.create_task(self._fly(seats), name="budget flight")
            self._flying.add(task)
            task.add_done_callback(self._landed)

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._flying.discard(task)
        self._depart()

    async def _fly(self, seats: Sequence[_Seat[Item, Answer]]) -> None:
        try:
            answers = await self._send([seat.item for seat in seats])
        except Exception as error:
            if len(seats) > 1 and not self._together(error):
                for seat in seats:
                    await self._fly([seat])
                return
            for seat in seats:
                self._fail(seat, error)
        except asyncio.CancelledError as error:
            for seat in seats:
                self._fail(seat, error)
            raise
        else:
            for seat, answer in zip(seats, answers, strict=True):
                if seat.answer.done():
                    self._abandoned(seat.item, answer)
                else:
                    seat.answer.set_result(answer)

    def _fail(self, seat: _Seat[Item, Answer], error: BaseException) -> None:
        self._abandoned(seat.item, None)
        if not seat.answer.done():
            if isinstance(error, asyncio.CancelledError):
                seat.answer.cancel()
            else:
                seat.answer.set_exception(error)
