"""Whether the database answers, as far as this process knows: so that calls fail at once while it does not.

`lost` by whoever got no answer in time, `found` by whoever got one. While it is away the owner's heartbeat
probes it; nobody else needs to find out again at the price of a wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from farebox.logs import exception_facts

_SAY_AGAIN_S = 60.0
"""An outage is told of once in this time, also where the database comes and goes."""


class Link:
    """One process's knowledge of the database."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._said_at: float | None = None
        self._lost = asyncio.Event()
        self._log = structlog.get_logger()
        self.outages = 0
        """How often the database went away."""

    @property
    def away(self) -> bool:
        """Whether the last that was heard of the database is that it does not answer."""
        return self._lost.is_set()

    def lost(self, error: Exception | None = None) -> None:
        """The database did not answer."""
        if self.away:
            return
        self._lost.set()
        self.outages += 1
        now = self._monotonic()
        if self._said_at is None or now - self._said_at > _SAY_AGAIN_S:
            self._said_at = now
            facts = exception_facts(error) if error is not None else {}
            self._log.warning("calls that budgets count are refused: the database does not answer", **facts)

    def found(self) -> None:
        """The database answered."""
        if self.away:
            self._lost.clear()
            self._log.info("the database answers again: calls that budgets count are taken")

    async def pause(self, s: float) -> None:
        """Wait, but no longer than until the database is lost."""
        try:
            async with asyncio.timeout(s):
                await self._lost.wait()
        except TimeoutError:
            pass
