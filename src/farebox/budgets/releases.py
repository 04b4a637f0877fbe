"""Giving back what was held for calls that provably did not go out, in the background, until it succeeds.

A reserve that was cancelled or got no answer in time may have been made: its id comes here too. The
database remembers a released id, so that a reserve that arrives after its release is not made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from uuid import UUID

import structlog

from farebox.logs import exception_facts
from farebox.store.failures import StoreUnavailable

WAITING_MAX = 100_000
"""Ids that wait while the database is away, 10 MB of them. Past it the oldest are left to the end of this process:
what they hold is charged then."""
_BATCH_MAX = 500
_PAUSE_S = 0.05
_PAUSE_MAX_S = 2.0


class Releases:
    """`start`, then `add` at any time, `flush` and `close` at the end. `release(ids)` makes the call; harmless to
    repeat."""

    def __init__(
        self,
        release: Callable[[Sequence[UUID]], Awaitable[None]],
        *,
        waiting_max: int = WAITING_MAX,
        released: Callable[[], None] = lambda: None,
    ) -> None:
        self._release = release
        self._released = released
        self._waiting_max = waiting_max
        self._ids: dict[UUID, None] = {}
        self._wake = asyncio.Event()
        self._done = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._log = structlog.get_logger()
        self.forgotten = 0
        """Ids given up because too many waited."""

    @property
    def waiting(self) -> int:
        """Ids not yet released."""
        return len(self._ids)

    def start(self) -> None:
        self._task = asyncio.create_task(self._work(), name="budget releases")

    def add(self, id: UUID) -> None:
        """Release this reservation as soon as the database takes it, or forbid it if it does not exist."""
        self._ids[id] = None
        if len(self._ids) > self._waiting_max:
            del self._ids[next(iter(self._ids))]
            self.forgotten += 1
            self._log.error("a hold is not given back before farebox ends: too many wait for the database")
        self._wake.set()

    async def flush(self, timeout_s: float) -> bool:
        """Wait until all is released; False if that took longer."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._ids:
                    self._wake.set()
                    self._done.clear()
                    await self._done.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _work(self) -> None:
        pause = _PAUSE_S
        while True:
            await self._wake.wait()
            self._wake.clear()
            while batch := list(islice(self._ids, _BATCH_MAX)):
                try:
                    await self._release(batch)
                except Exception as error:
                    if not isinstance(error, StoreUnavailable):
                        self._log.error("holds could not be given back; trying again", **exception_facts(error))
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _PAUSE_MAX_S)
                    continue
                pause = _PAUSE_S
                for id in batch:
                    self._ids.pop(id, None)
                self._released()
            self._done.set()
