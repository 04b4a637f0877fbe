"""The rest of a large request body, received right where it is kept.

aiohttp's parser hands a body on in pieces, which are copied twice before they are one. Where the head says
how much is still to come, nothing is left to parse: the connection's transport writes the rest into its place,
as much at once as the kernel has, and a fresh parser waits for the next request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from farebox.server.connection import Connection
    from farebox.server.request import Request

WORTH_BYTES = 32 * 1024
"""Where less is to come, the pieces cost no more."""
STEP_BYTES = 1024 * 1024
"""Room is made, and counted, in such steps: a client that announces much and sends nothing is given one. Later ones
are a sixteenth of what came: each may have to move the whole."""


def may_receive(request: Request, begun: bytes) -> bool:
    """Whether the rest of the body, of which `begun` was read, can be received in this way."""
    connection, length = request.protocol, request.content_length
    return (
        length is not None
        and connection.transport is not None
        and length - len(begun) >= WORTH_BYTES
        and len(begun) == request.content.total_bytes
        and not connection.holds_back
        and "Transfer-Encoding" not in request.headers
        and "Upgrade" not in request.headers
    )


async def receive(request: Request, begun: bytes, stall_timeout_s: float, count: Callable[[int], None]) -> bytes:
    """The body, which `begun` is the beginning of.

    Raises `TimeoutError` when nothing comes for `stall_timeout_s`, `ConnectionError` when the client leaves, and what
    `count` raises, which is told how many bytes are about to be kept beside `begun`. The connection is then as if the
    rest had been received in the ordinary way, by nobody yet.
    """
    assert request.content_length is not None
    rest = _Rest(request.protocol, begun, request.content_length, stall_timeout_s, count)
    try:
        body = await rest.done
    except BaseException:
        rest.give_back()
        raise
    finally:
        # What was raised is kept there, and has these frames in its traceback: a cycle with megabytes in it.
        del rest.done, rest
    request.taken = True
    return body


class _Rest(asyncio.BufferedProtocol):
    """Stands in for a connection at its transport until a body of `length` bytes is whole."""

    def __init__(
        self, connection: Connection, begun: bytes, length: int, stall_timeout_s: float, count: Callable[[int], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        self.done: asyncio.Future[bytes] = loop.create_future()
        self._connection = connection
        self._transport = connection.transport
        self._begun = self._came = len(begun)
        self._length = length
        self._count = count
        self._room = min(length, len(begun) + STEP_BYTES)
        count(self._room - len(begun))
        # What is written into its buffer is the very object that it hands out at the end.
        self._kept = BytesIO(bytes(self._room))
        self._view = self._kept.getbuffer()
        self._view[: len(begun)] = begun
        self._window = self._view
        self._loop = loop
        self._stall_timeout_s = stall_timeout_s
        self._seen = loop.time()
        self._timer = loop.call_at(self._seen + stall_timeout_s, self._look)
        if self._transport is not None:
            self._transport.set_protocol(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        self._window = self._view[self._came : self._came + STEP_BYTES]
        return self._window

    def buffer_updated(self, nbytes: int) -> None:
        self._window.release()  # while there is a view of it, the buffer neither grows nor is handed out uncopied
        self._came += nbytes
        if self._came == self._length:
            self._end()
            self._connection.renew_parser()
            if not self.done.done():
                self.done.set_result(self._kept.getvalue())
            return
        self._seen = self._loop.time()
        if self._came == self._room:
            try:
                self._make_room()
            except Exception as exc:
                self._fail(exc)

    def _make_room(self) -> None:
        step = max(STEP_BYTES, self._room // 16)
        room = min(self._length, self._room + step)
        self._count(room - self._room)
        self._view.release()
        self._kept.seek(room - 1)
        self._kept.write(b"\0")
        self._view = self._kept.getbuffer()
        self._room = room

    def _look(self) -> None:
        due = self._seen + self._stall_timeout_s
        if due > self._loop.time():
            self._timer = self._loop.call_at(due, self._look)
        else:
            self._fail(TimeoutError())

    def _fail(self, exc: BaseException) -> None:
        self.give_back()
        if not self.done.done():
            self.done.set_exception(exc)

    def _end(self) -> None:
        """Stand aside."""
        self._timer.cancel()
        self._let_go()
        if self._transport is not None:
            self._transport.set_protocol(self._connection)
            self._transport = None

    def _let_go(self) -> None:
        """Have no view of the buffer: it could not be given up while there is one."""
        self._window.release()
        self._view.release()

    def give_back(self) -> None:
        """Let the connection's parser have what was received for it. Does nothing once the body is whole, or given."""
        if self._transport is not None:
            self._end()
            self._connection.data_received(self._kept.getvalue()[self._begun : self._came])

    # -- what is the connection's --------------------------------------------------------------

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._let_go()
        self._transport = None
        self._connection.connection_lost(exc)
        if not self.done.done():
            self.done.set_exception(ConnectionResetError())

    def eof_received(self) -> None:
        self._connection.eof_received()

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()
