"""A provider's answer to one request, for whoever waits for it: pulled piece by piece, or piped as it comes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from farebox.upstream.errors import UpstreamError
from farebox.upstream.head import Head, RawHeaders, read_head, without
from farebox.upstream.link import Link
from farebox.upstream.shapes import Shapes
from farebox.waiter import Waiter

READ_BUFFER_BYTES = 64 * 1024
"""Bytes of one answer held untaken; past them the provider's socket is not read until some are taken."""

Sink = Callable[[bytes], bool]
Lane = Callable[[bytes], bool]
"""Takes one whole chunk, framing included, from where chunks begin; False where it does not, and then did nothing."""


class Answer:
    """Wait for the `head` with `started`; then `read` until it gives b"", or `pipe`. `close` gives it up anywhere."""

    head: Head
    # What most answers leave as it is stands in the class, not in each of them.
    begun = False
    """Whether the head is there."""
    whole = b""
    """The whole body, where it is here in one piece, until somebody takes it."""
    uploading: asyncio.Task[None] | None = None
    """Who sends the request's body meanwhile; it is not wanted any more once the answer is over."""
    _pieces: deque[bytes] | None = None
    """What is here and not taken; made when the first piece has to wait, for most never do."""
    _size = 0
    _whole = _stopped = False
    _error: UpstreamError | None = None
    _sink: Sink | None = None
    lane: Lane | None = None
    """A way past the sink, and past the link's parser."""
    _raised: BaseException | None = None
    """By the sink."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        link: Link,
        *,
        shapes: Shapes,
        idle_timeout_s: float,
        head_by: float,
    ) -> None:
        self._link = link
        self._shapes = shapes
        self._waiter = Waiter(loop)
        self.idle_timeout_s = idle_timeout_s
        self.head_by = head_by
        """The event loop's time at which the head is overdue."""

    @property
    def ready(self) -> bool:
        """Whether something of the body, or its end, is here already."""
        return bool(self._pieces) or self._whole or self._error is not None

    async def started(self) -> None:
        """Wait for the head. Raises `UpstreamError`; whatever it raises, the answer is closed then."""
        try:
            if not self.begun and self._error is None:
                await self._waiter
            if not self.begun and self._error is not None:
                raise self._error
        except BaseException:
            self.close()
            raise

    async def read(self) -> bytes:
        """The next piece of the body, as soon as there is one; b"" at its proper end. Raises `UpstreamError`."""
        while not self._pieces:
            if self._whole:
                return self._take_whole()
            if self._error is not None:
                raise self._error
            self._link.resume()
            await self._waiter
        return self._take(self._pieces)

    async def pipe(self, sink: Sink, lane: Lane | None = None) -> bool:
        """Pass each piece to `sink` the moment it arrives; True at the body's proper end. Raises `UpstreamError`.

        No task runs for a piece. A `sink` that returns True wants to be left alone: False is returned, and
        the provider is not read until the next `read` or `pipe`. What it raises is raised here. `lane`: is asked
        first what it takes of that itself, where the provider sends chunks.
        """
        while self._pieces:
            if sink(self._take(self._pieces)):
                return False
        if self._whole:
            return not (self.whole and sink(self._take_whole()))
        if self._error is not None:
            raise self._error
        self._sink = sink
        self.lane = lane
        self._stopped = False
        self._link.resume()
        try:
            await self._waiter
        finally:
            self._sink = self.lane = None
        if self._raised is not None:
            raised, self._raised = self._raised, None
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

    # It says of itself what happened, and is told by `told` to run the task that waits: last, for that task goes on
    # there and then.

    def begin(self, status: int, reason: bytes, headers: RawHeaders) -> bool:
        """The head is there; False if it is of no use."""
        try:
            self.head = read_head(status, reason, without(headers, self._shapes.secrets))
        except UpstreamError:
            return False
        self.begun = True
        return True

    def begin_whole(self, data: bytes) -> bool:
        """`begin`, `feed` and `finish` at once, if `data` is all of an ordinary answer; else nothing is done and False
        said."""
        found = self._shapes.read(data)
        if found is None:
            return False
        self.head, self.whole = found
        self.begun = self._whole = True
        if self.uploading is not None:
            self._stop_upload()
        return True

    def feed(self, data: bytes) -> bool:
        """A piece of the body; whether somebody is to be `told`."""
        sink = self._sink
        if sink is None:
            if self._pieces is None:
                self._pieces = deque()
            self._pieces.append(data)
            self._size += len(data)
            if self._size > READ_BUFFER_BYTES:
                self._link.pause()
            return True
        try:
            if not sink(data):
                return False
        except BaseException as exc:  # whoever awaits the pipe is told, not the transport
            self._raised = exc
        self._stop()
        return True

    def halt(self) -> None:
        """What a lane says in place of a sink's True, when it has done all else."""
        self._stop()
        self.told()

    def _stop(self) -> None:
        self._sink = self.lane = None
        self._stopped = True
        self._link.pause()

    def finish(self) -> None:
        """The body is whole."""
        self._whole = True
        if self._pieces is not None and len(self._pieces) == 1:
            self.whole = self._take(self._pieces)
        self._stop_upload()

    def fail(self, error: UpstreamError) -> None:
        """It breaks off here."""
        self._error = error
        self._stop_upload()
        self.told()

    def told(self) -> None:
        """Let whoever waits for the head, for a piece or for the end go on."""
        self._waiter.wake()

    def _stop_upload(self) -> None:
        if self.uploading is not None:
            self.uploading.cancel()
            self.uploading = None

    def _take(self, pieces: deque[bytes]) -> bytes:
        piece = pieces.popleft()
        self._size -= len(piece)
        return piece

    def _take_whole(self) -> bytes:
        body, self.whole = self.whole, b""
        return body
