"""A provider's answer to one request, for whoever waits for it: pulled piece by piece, or piped as it comes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from farebox.upstream.errors import UpstreamError
from farebox.upstream.head import Head, RawHeaders, read_head, read_plain, without
from farebox.upstream.link import Link

READ_BUFFER_BYTES = 64 * 1024
"""Bytes of one answer held untaken; past them the provider's socket is not read until some are taken."""

Sink = Callable[[bytes], bool]


class Answer:
    """Wait for the `head` with `started`; then `read` until it gives b"", or `pipe`. `close` gives it up anywhere."""

    __slots__ = (
        "_error",
        "_link",
        "_loop",
        "_pieces",
        "_secrets",
        "_sink",
        "_size",
        "_stopped",
        "_waiter",
        "_whole",
        "begun",
        "head",
        "head_by",
        "idle_timeout_s",
        "uploading",
    )
    head: Head

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        link: Link,
        *,
        secrets: Sequence[bytes],
        idle_timeout_s: float,
        head_by: float,
    ) -> None:
        self._loop = loop
        self._link = link
        self._secrets = secrets
        self._pieces: deque[bytes] | None = None
        """What is here and not taken; made when the first piece has to wait, for most never do."""
        self._size = 0
        self._stopped = self._whole = False
        self.begun = False
        """Whether the head is there."""
        self._error: UpstreamError | None = None
        self._sink: Sink | None = None
        self._waiter: asyncio.Future[BaseException | None] | None = None
        self.idle_timeout_s = idle_timeout_s
        self.head_by = head_by
        """The event loop's time at which the head is overdue."""
        self.uploading: asyncio.Task[None] | None = None
        """Who sends the request's body meanwhile; it is not wanted any more once the answer is over."""

    @property
    def ready(self) -> bool:
        """Whether something of the body, or its end, is here already."""
        return bool(self._pieces) or self._whole or self._error is not None

    async def started(self) -> None:
        """Wait for the head. Raises `UpstreamError`."""
        if not self.begun and self._error is None:
            await self._wait()
        if not self.begun and self._error is not None:
            raise self._error

    def take_whole(self) -> bytes | None:
        """The whole body, where it came in one piece that nobody has taken; else None."""
        if self._whole and self._pieces is not None and len(self._pieces) == 1:
            return self._take(self._pieces)
        return None

    async def read(self) -> bytes:
        """The next piece of the body, as soon as there is one; b"" at its proper end. Raises `UpstreamError`."""
        while not self._pieces:
            if self._whole:
                return b""
            if self._error is not None:
                raise self._error
            self._link.resume()
            await self._wait()
        return self._take(self._pieces)

    async def pipe(self, sink: Sink) -> bool:
        """Pass each piece to `sink` the moment it arrives; True at the body's proper end. Raises `UpstreamError`.

        No task runs for a piece. A `sink` that returns True wants to be left alone: False is returned, and
        the provider is not read until the next `read` or `pipe`. What it raises is raised here.
        """
        while self._pieces:
            if sink(self._take(self._pieces)):
                return False
        if self._whole:
            return True
        if self._error is not None:
            raise self._error
        self._sink = sink
        self._stopped = False
        self._link.resume()
        try:
            raised = await self._wait()
        finally:
            self._sink = None
        if raised is not None:
            raise raised
        if self._stopped:
            return False
        if self._error is not None:
            raise self._error
        return True

    def close(self) -> None:
        """Drop the connection unless the body was received to its end."""
        self._stop_upload()
        if not self._whole and self._error is None:
            self._error = UpstreamError("connection_lost", sent=True)
            self._link.abandon()

    # -- the link's side -----------------------------------------------------------------------

    def begin(self, status: int, reason: bytes, headers: RawHeaders) -> bool:
        """The head is there; False if it is of no use."""
        try:
            self.head = read_head(status, reason, without(headers, self._secrets))
        except UpstreamError:
            return False
        self.begun = True
        self._wake()
        return True

    def begin_whole(self, data: bytes) -> bool:
        """`begin` and `feed` at once, if `data` is all of an ordinary answer; else nothing is done and False said."""
        found = read_plain(data, self._secrets)
        if found is None:
            return False
        self.head, body = found
        self.begun = True
        if body:
            self._pieces = deque((body,))
            self._size = len(body)
        return True

    def feed(self, data: bytes) -> None:
        """A piece of the body."""
        sink = self._sink
        if sink is None:
            if self._pieces is None:
                self._pieces = deque()
            self._pieces.append(data)
            self._size += len(data)
            if self._size > READ_BUFFER_BYTES:
                self._link.pause()
            self._wake()
            return
        raised: BaseException | None = None
        try:
            if not sink(data):
                return
        except BaseException as exc:  # whoever awaits the pipe is told, not the transport
            raised = exc
        self._sink = None
        self._stopped = True
        self._link.pause()
        self._wake(raised)

    def finish(self) -> None:
        """The body is whole."""
        self._whole = True
        self._stop_upload()
        self._wake()

    def fail(self, error: UpstreamError) -> None:
        """It breaks off here."""
        self._error = error
        self._stop_upload()
        self._wake()

    def _stop_upload(self) -> None:
        if self.uploading is not None:
            self.uploading.cancel()
            self.uploading = None

    def _take(self, pieces: deque[bytes]) -> bytes:
        piece = pieces.popleft()
        self._size -= len(piece)
        return piece

    async def _wait(self) -> BaseException | None:
        self._waiter = self._loop.create_future()
        try:
            return await self._waiter
        finally:
            self._waiter = None

    def _wake(self, raised: BaseException | None = None) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(raised)
