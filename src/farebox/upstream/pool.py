"""Connections to one provider, kept and handed out. Bounded: past the limit a call waits its turn."""

from __future__ import annotations

import asyncio
from collections import deque

from farebox.upstream.errors import UpstreamError
from farebox.upstream.link import Link
from farebox.upstream.opening import Opener

IDLE_CONNECTION_S = 30.0
"""Seconds an unused connection to a provider is kept."""
CONNECTION_AGE_S = 600.0
"""Seconds after which a connection is not used again, so that a provider's new addresses come into use."""
_BUFFER_BYTES = 64 * 1024


class Pool:
    """`take` or `get` a connection; its `Link` comes back by itself when its exchange is over."""

    def __init__(self, opener: Opener, *, limit: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._opener = opener
        self._limit = limit
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._idle: deque[Link] = deque()
        self._links: set[Link] = set()
        self._opening = 0
        self._waiters: deque[asyncio.Future[Link | None]] = deque()
        self._sweeper: asyncio.TimerHandle | None = None
        self.closed = False

    def take(self) -> Link | None:
        """A connection that is open and free, the one used last; None if there is none."""
        while self._idle:
            link = self._idle.pop()
            if link.usable:
                return link
            self._drop(link)
        return None

    async def get(self, timeout_s: float) -> Link:
        """A connection, waiting for a free one or opening one. Raises `UpstreamError` with `sent` False."""
        try:
            async with asyncio.timeout(timeout_s):
                again = False
                while self._waiters or len(self._links) + self._opening >= self._limit:
                    link = await self._wait(first=again)
                    if link is None:
                        return await self._open()
                    if link.usable:
                        return link
                    again = True  # it was lost on its way here
                self._opening += 1
                return await self._open()
        except TimeoutError:
            raise UpstreamError("connect_timeout", sent=False, timeout=True) from None

    async def _open(self) -> Link:
        """Open one; a place for it is counted in `_opening`."""
        try:
            protocol = await self._opener.open(lambda: Link(self._loop, self._buffer, self._over))
            assert isinstance(protocol, Link)
            if not protocol.usable:  # accepted, and closed or talked to at once
                protocol.close()
                raise UpstreamError("connect", sent=False)
        except BaseException:
            self._opening -= 1
            self._hand_on()
            raise
        self._opening -= 1
        self._links.add(protocol)
        return protocol

    async def _wait(self, *, first: bool) -> Link | None:
        """A link that became free; None: a place, counted in `_opening`. `first`: before those who wait already."""
        waiter: asyncio.Future[Link | None] = self._loop.create_future()
        if first:
            self._waiters.appendleft(waiter)
        else:
            self._waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
                # Whoever came meanwhile stood behind this one, although there may be room.
                self._hand_on()
            elif (link := waiter.result()) is None:
                self._opening -= 1
                self._hand_on()
            elif link.usable:
                self._free(link)
            raise

    def _over(self, link: Link, reusable: bool) -> None:
        """An exchange has ended, or an idle connection was lost."""
        if not reusable or self.closed or link.idle_since - link.born >= CONNECTION_AGE_S:
            self._drop(link)
        elif self._waiters or self._sweeper is None:
            self._free(link)
        else:
            self._idle.append(link)

    def _free(self, link: Link) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(link)
                return
        self._idle.append(link)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(IDLE_CONNECTION_S, self._sweep)

    def _drop(self, link: Link) -> None:
        link.close()
        if link in self._links:
            self._links.discard(link)
            if link in self._idle:
                self._idle.remove(link)
            self._hand_on()

    def _hand_on(self) -> None:
        """There is room for one connection more: whoever waits longest opens it."""
        while self._waiters and len(self._links) + self._opening < self._limit:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._opening += 1
                waiter.set_result(None)

    def _sweep(self) -> None:
        self._sweeper = None
        before = self._loop.time() - IDLE_CONNECTION_S
        while self._idle and self._idle[0].idle_since <= before:
            self._drop(self._idle[0])
        if self._idle:
            self._sweeper = self._loop.call_at(self._idle[0].idle_since + IDLE_CONNECTION_S, self._sweep)

    async def close(self) -> None:
        """Close what is idle now; what is in use when it comes back."""
        self.closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for link in list(self._links):
            self._drop(link)
        await asyncio.sleep(0)  # transports close with the event loop's next turn
