"""A task that waits at a `Waiter` goes on the moment it is woken, and is a task like any other otherwise."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

import pytest

from farebox.waiter import Waiter

_SAID: ContextVar[str] = ContextVar("said", default="nothing")


class Told:
    """A task that says after each wait that it went on."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.waiter = Waiter(self.loop)
        self.said: list[str] = []
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        _SAID.set("in the task")
        while True:
            await self.waiter
            self.said.append(_SAID.get())

    def outside(self, act: object) -> asyncio.Future[list[str]]:
        """Call `act` where no task runs; what had been said when it returned."""
        done = self.loop.create_future()

        def call() -> None:
            act()  # type: ignore[operator]
            done.set_result(list(self.said))

        self.loop.call_soon(call)
        return done


async def test_the_task_has_gone_on_when_wake_returns() -> None:
    """In its own context, and again at each waking."""
    told = Told()
    await asyncio.sleep(0)
    assert await told.outside(told.waiter.wake) == ["in the task"]
    assert told.waiter.step
    assert await told.outside(told.waiter.wake) == ["in the task"] * 2
    told.task.cancel()


async def test_where_another_task_runs_it_follows() -> None:
    told = Told()
    await asyncio.sleep(0)
    told.waiter.wake()
    told.waiter.wake()
    assert told.said == []
    await asyncio.sleep(0)
    assert told.said == ["in the task"]
    told.task.cancel()


async def test_waking_nobody_is_not_remembered() -> None:
    told = Told()
    told.waiter.wake()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert told.said == [] and told.waiter.step
    told.task.cancel()


async def test_a_cancelled_task_ends_and_is_not_woken() -> None:
    """Also where it was woken a moment after, or cancelled a moment after it was woken."""
    for wake_first in (False, True):
        told = Told()
        await asyncio.sleep(0)
        if wake_first:
            told.waiter.wake()
        told.task.cancel("enough")
        told.waiter.wake()
        with pytest.raises(asyncio.CancelledError, match="enough"):
            await told.task
        assert told.said == []


async def test_a_timeout_ends_the_wait_and_nothing_else() -> None:
    """The next wait is a new one."""
    loop = asyncio.get_running_loop()
    waiter = Waiter(loop)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await waiter
    assert not waiter.step
    loop.call_later(0.01, waiter.wake)
    async with asyncio.timeout(5):
        await waiter
