"""Reserves that go together: how they are gathered, who gets which answer, and what happens to those who leave."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from farebox.budgets.flights import Crowded, Flights


class Wire:
    """Stands in for the database: answers each item with itself times ten, once it is let go on."""

    def __init__(self, **options: int) -> None:
        self.batches: list[list[int]] = []
        self.abandoned: list[tuple[int, int | None]] = []
        self.open = asyncio.Event()
        self.error: Exception | None = None
        self.flights: Flights[int, int] = Flights(
            self.send,
            together=lambda error: isinstance(error, ConnectionError),
            abandoned=lambda item, answer: self.abandoned.append((item, answer)),
            **options,
        )

    async def send(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        await self.open.wait()
        if self.error is not None:
            raise self.error
        if 1300 in items:
            raise ValueError("bad")
        return [item * 10 for item in items]

    def ask(self, item: int, timeout_s: float = 30) -> asyncio.Task[int]:
        return asyncio.create_task(self.flights(item, timeout_s))

    async def sent(self, batches: int) -> None:
        async with asyncio.timeout(30):
            while len(self.batches) < batches:
                await asyncio.sleep(0)


async def test_who_comes_while_one_is_under_way_goes_together() -> None:
    """A first call goes at once, a second behind it, and all who come later share the next statement."""
    wire = Wire()
    asked = [wire.ask(1)]
    await wire.sent(1)
    asked.append(wire.ask(2))
    await wire.sent(2)
    asked += [wire.ask(number) for number in range(3, 60)]
    await asyncio.sleep(0)
    wire.open.set()
    assert await asyncio.gather(*asked) == [number * 10 for number in range(1, 60)]
    assert [len(batch) for batch in wire.batches] == [1, 1, 57]


async def test_a_batch_and_the_flights_at_once_are_bounded() -> None:
    """No statement carries more than it may, and no more are under way than may be."""
    wire = Wire(batch_max=4, at_once=2)
    asked = [wire.ask(number) for number in range(20)]
    await wire.sent(2)
    await asyncio.sleep(0.01)
    assert [len(batch) for batch in wire.batches] == [4, 4]
    wire.open.set()
    await asyncio.gather(*asked)
    assert [len(batch) for batch in wire.batches] == [4] * 5


async def test_one_too_many_is_turned_away() -> None:
    """With as many waiting as may wait the next call fails at once, and those who wait are served."""
    wire = Wire(at_once=1, waiting_max=2)
    first = wire.ask(1)
    await wire.sent(1)
    others = [wire.ask(2), wire.ask(3)]
    await asyncio.sleep(0)
    with pytest.raises(Crowded):
        await wire.flights(4, 30)
    wire.open.set()
    assert await asyncio.gather(first, *others) == [10, 20, 30]


async def test_who_leaves_before_the_statement_goes_takes_nothing_along() -> None:
    """A call that is cancelled while it waits its turn is not sent, and nothing of it need be given back."""
    wire = Wire(at_once=1)
    first = wire.ask(1)
    await wire.sent(1)
    leaving, staying = wire.ask(2), wire.ask(3)
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    wire.open.set()
    assert await asyncio.gather(first, staying) == [10, 30]
    assert (wire.batches, wire.abandoned) == ([[1], [3]], [])


@pytest.mark.parametrize("how", ["cancelled", "late"])
async def test_who_leaves_in_flight_is_abandoned_with_the_answer(how: str) -> None:
    """What comes back for a call that was cancelled, or ran out of time, is handed over; the others get theirs."""
    wire = Wire()
    leaving, staying = wire.ask(1, 30 if how == "cancelled" else 0.01), wire.ask(2)
    await wire.sent(1)
    if how == "cancelled":
        leaving.cancel()
    [left] = await asyncio.gather(leaving, return_exceptions=True)
    assert isinstance(left, asyncio.CancelledError if how == "cancelled" else TimeoutError)
    wire.open.set()
    assert await staying == 20
    assert wire.abandoned == [(1, 10)]


async def test_an_answer_that_came_as_its_caller_was_cancelled_is_abandoned_too() -> None:
    """A cancellation between the answer's arrival and its reading does not lose the answer."""
    wire = Wire()
    leaving = wire.ask(1)
    await wire.sent(1)
    wire.open.set()
    async with asyncio.timeout(30):
        while wire.flights._flying:
            # The flight lands, and its caller is cancelled in the same turn of the loop.
            if any(task.done() for task in wire.flights._flying):
                break
            await asyncio.sleep(0)
    cancelled = leaving.cancel()
    [left] = await asyncio.gather(leaving, return_exceptions=True)
    if cancelled and isinstance(left, asyncio.CancelledError):
        assert wire.abandoned == [(1, 10)]
    else:
        assert (left, wire.abandoned) == (10, [])


async def test_a_lost_statement_abandons_all_it_carried() -> None:
    """After an error of the connection every caller gets it, and each item may have been done."""
    wire = Wire()
    wire.error = ConnectionError()
    asked = [wire.ask(1), wire.ask(2)]
    await wire.sent(1)
    wire.open.set()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(answer) for answer in answers] == [ConnectionError] * 2
    assert wire.abandoned == [(1, None), (2, None)]


async def test_one_bad_call_does_not_spoil_the_others() -> None:
    """Where the database refuses what one item says, the rest of its statement is answered."""
    wire = Wire()
    asked = [wire.ask(12), wire.ask(1300), wire.ask(14)]
    wire.open.set()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert (answers[0], answers[2]) == (120, 140)
    assert isinstance(answers[1], ValueError)
