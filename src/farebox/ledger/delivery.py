"""Getting a batch of events into the database, whatever it takes: retried for as long as it is away, never dropped.

Three kinds of failure. The database refuses what an event says: the batch is halved until that
event is alone, and a bare row takes its place. Anything else (away, restarting, full, not migrated,
no permission) may pass: retried, with growing pauses, for ever. And an event of which not even a
bare row is taken goes to a file, so that one bad event can't hold up all others. What a database
is, and which error is which, the caller says.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import structlog

from farebox import payload
from farebox.logs import exception_facts

Deliver = Callable[[Sequence[bytes]], Awaitable[int]]
"""Stores a batch and returns how many of its events were lost; comes back only when that is done."""

_REFUSED_BYTES_MAX = 16 * 1024 * 1024
"""Size of the file of refused events; past it they are only logged and counted."""
_STILL_AWAY_S = 60.0
"""How often it is logged that the database is still away."""


class Delivery:
    """Carries batches to `write`. `is_refusal(error)`: the database refused the data, trying again is of no use."""

    def __init__(
        self,
        write: Callable[[Sequence[bytes]], Awaitable[object]],
        *,
        is_refusal: Callable[[Exception], bool],
        refused_file: Path,
        pause_s: float = 0.1,
        pause_max_s: float = 5.0,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._write = write
        self._is_refusal = is_refusal
        self._refused_file = refused_file
        self._pause_s = pause_s
        self._pause_max_s = pause_max_s
        self._monotonic = monotonic
        self._sleep = sleep
        self._log = structlog.get_logger()
        self._away_since: float | None = None
        self._said_at = 0.0
        self.refused = 0
        """Events the database refused as they were."""

    async def __call__(self, events: Sequence[bytes]) -> int:
        """Store `events`; the number of those that were lost."""
        error = await self._until_settled(events)
        if error is None:
            return 0
        if len(events) > 1:
            middle = len(events) // 2
            return await self(events[:middle]) + await self(events[middle:])
        return await self._bare(events[0], error)

    async def _until_settled(self, events: Sequence[bytes]) -> Exception | None:
        """Try until the events are stored (None) or refused (why)."""
        pause = self._pause_s
        while True:
            try:
                await self._write(events)
            except Exception as error:
                if self._is_refusal(error):
                    return error
                self._say_away(error)
                await self._sleep(pause)
                pause = min(2 * pause, self._pause_max_s)
                continue
            if self._away_since is not None:
                self._log.info("the database takes events again", after_s=round(self._monotonic() - self._away_since))
                self._away_since = None
            return None

    def _say_away(self, error: Exception) -> None:
        now = self._monotonic()
        if self._away_since is None:
            self._away_since = now
        elif now - self._said_at < _STILL_AWAY_S:
            return
        self._said_at = now
        self._log.warning("events wait in the journal: the database does not take them", **exception_facts(error))

    async def _bare(self, event: bytes, error: Exception) -> int:
        self.refused += 1
        try:
            bare = payload.bare(event, datetime.now(UTC))
            again = await self._until_settled([bare])
        except ValueError as unreadable:
            again = unreadable
        if again is None:
            self._log.error(
                "an event was refused by the database and stored without its details", **exception_facts(error)
            )
            return 0
        kept = self._keep(event)
        self._log.error("an event was refused by the database", kept_in=str(kept), **exception_facts(error))
        return 1

    def _keep(self, event: bytes) -> Path | None:
        try:
            fd = os.open(self._refused_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(fd).st_size > _REFUSED_BYTES_MAX:
                    return None
                os.write(fd, event + b"\n")
            finally:
                os.close(fd)
        except OSError:
            return None
        return self._refused_file
