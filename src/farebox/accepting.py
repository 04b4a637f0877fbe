"""Taking connections from a port: what is open already waits for no crowd of new ones, and workers get equal shares.

All workers of one port are woken by a new connection, and whoever runs first takes it; asyncio's own server even
takes all that wait. Measured with three workers and 200 calls at once: 148, 42 and 10. So a worker takes one at a
time, and one that holds many lets those go first that hold fewer: it waits a moment before it tries, the longer the
more it holds. Nothing is shared for it but the port.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import structlog

PAUSE_S_MAX = 0.004
"""What a new connection may be kept waiting at most where all workers are busy; an open one never is."""
HALF_AT = 100
"""Connections held at which the pause is half of that."""
NO_ROOM_S = 1.0
"""How long none is tried for after the system said it has no descriptor or memory for one more."""


def pause_s(held: int) -> float:
    """How long a worker that holds so many connections lets the others go first, in whole milliseconds.

    The event loop's timers are no finer.
    """
    return int(PAUSE_S_MAX * 1000 * held / (held + HALF_AT)) / 1000


AT_ONCE_MAX = 32
"""Connections taken in one turn of the event loop. asyncio takes all that wait: 1,000 hold up every call for 50 ms."""


async def accept(
    listener: socket.socket, factory: Callable[[], asyncio.BaseProtocol], *, backlog: int
) -> asyncio.Server:
    """Hand connections of `listener`, which is this process's alone, to protocols of `factory`.

    `backlog`: how many may wait; more are refused by the kernel.
    """
    server = await asyncio.get_running_loop().create_server(factory, sock=listener, backlog=AT_ONCE_MAX)
    listener.listen(backlog)  # asyncio has one number for both
    return server


class Accepting:
    """Hands connections of `listener` to protocols of `factory`, until `close`. `held`: connections open now."""

    def __init__(
        self,
        listener: socket.socket,
        factory: Callable[[], asyncio.BaseProtocol],
        *,
        backlog: int,
        held: Callable[[], int],
    ) -> None:
        self._listener = listener
        self._factory = factory
        self._held = held
        self._log = structlog.get_logger()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._beginning: set[asyncio.Task[None]] = set()
        listener.setblocking(False)
        listener.listen(backlog)
        self._loop.add_reader(listener, self._readable)

    def close(self) -> None:
        """Take no more, and let go of the port."""
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()

    def _readable(self) -> None:
        wait_s = pause_s(self._held() + len(self._beginning))
        if wait_s:
            self._try_after(wait_s)
        else:
            self._take()

    def _try_after(self, wait_s: float) -> None:
        self._loop.remove_reader(self._listener)
        self._timer = self._loop.call_later(wait_s, self._again)

    def _again(self) -> None:
        self._loop.add_reader(self._listener, self._readable)
        self._take()

    def _take(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another worker has it, or its client has left
        except OSError as exc:
            self._log.error("no connection can be taken", reason=exc.strerror)
            self._try_after(NO_ROOM_S)
            return
        connection.setblocking(False)
        task = self._loop.create_task(self._begin(connection), name="new connection")
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)

    async def _begin(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._factory, connection)
        except OSError:
            connection.close()  # its client has left
