"""Waiting that ends at once: whoever brings what a task waits for goes on with that task, there and then.

A future wakes its task through the event loop's queue: an object for the wait, another for the wake-up,
and a turn of the loop with a look at all sockets in between. A protocol that the loop has just called
has nothing else to do, so it may run the task itself. asyncio takes any object for a future that has the
few members of one (`_asyncio_future_blocking`), so tasks, their cancellation and timeouts stay what they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextvars import Context
from typing import Any


class Waiter:
    """What one task waits at, as often as it likes: `await waiter`, until somebody calls `wake`.

    Nothing is remembered: to wake nobody does nothing. Whoever waits looks first whether what it waits for is there.
    """

    __slots__ = ("_asyncio_future_blocking", "_cancelled", "_context", "_loop", "step")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._asyncio_future_blocking = False
        self._cancelled: str | None = None
        """What is to be said of the cancellation, until the task was told."""
        self.step: Callable[[Waiter], object] | None = None
        """Runs the task on; None while none waits that nobody has woken."""
        self._context: Context | None = None

    def wake(self) -> None:
        """Run the task that waits until it waits for something else, or ends. What it raises stays in it.

        It runs before this returns, so the caller leaves everything in order first. Where a task is running
        already, this one follows with the loop's next turn.
        """
        step, context = self.step, self._context
        if step is None or context is None:
            return
        self.step = None
        try:
            context.run(step, self)
        except RuntimeError:  # asyncio's word for it that another task runs; nothing was done
            self._loop.call_soon(step, self, context=context)

    def __await__(self) -> Generator[Waiter, None, None]:
        self._asyncio_future_blocking = True
        yield self

    # -- what a task asks of a future ----------------------------------------------------------

    def add_done_callback(self, step: Callable[[Waiter], object], *, context: Context) -> None:
        self.step, self._context = step, context

    def result(self) -> None:
        if self._cancelled is not None:
            said, self._cancelled = self._cancelled, None
            raise asyncio.CancelledError(*([said] if said else []))

    def cancel(self, msg: Any = None) -> bool:
        step, self.step = self.step, None
        if step is None:
            return False
        self._cancelled = "" if msg is None else str(msg)
        self._loop.call_soon(step, self, context=self._context)
        return True
