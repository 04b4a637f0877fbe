"""Connections that are memory only: what a provider says, and where its bytes are cut, is exactly what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

Heard = Callable[["Wire"], Awaitable[None] | None]


class Wire(asyncio.Transport):
    """One connection, seen from the provider. `sent` is what came up it; `on_write` is called after each write."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: Any, on_write: Heard | None = None) -> None:
        super().__init__()
        self.loop = loop
        self.protocol = protocol
        self.on_write = on_write
        self.sent = b""
        self.paused = False
        self.unsent = 0
        """What the kernel would not take yet, as the client is told."""
        self.lost = False
        self._closing = False
        protocol.connection_made(self)

    # -- what the provider does ------------------------------------------------------------------

    def say(self, data: bytes) -> None:
        """Bytes that arrive at once; none on a connection that is closed."""
        buffered = isinstance(self.protocol, asyncio.BufferedProtocol)
        while data and not self._closing:
            if buffered:
                room = self.protocol.get_buffer(-1)
                piece, data = data[: len(room)], data[len(room) :]
                room[: len(piece)] = piece
                self.protocol.buffer_updated(len(piece))
            else:
                piece, data = data, b""
                self.protocol.data_received(piece)

    def end(self) -> None:
        """The provider closes its side."""
        if not self._closing and not self.protocol.eof_received():
            self._lose(None)

    def reset(self) -> None:
        """The connection breaks."""
        if not self._closing:
            self._lose(ConnectionResetError("reset"))

    async def play(self, pieces: Sequence[bytes], ending: str = "") -> None:
        """Say the pieces, each in a turn of the event loop of its own; then `end` or `reset` if so said."""
        for piece in pieces:
            while self.paused and not self._closing:
                await asyncio.sleep(0)
            self.say(piece)
            await asyncio.sleep(0)
        while self.paused and not self._closing:
            await asyncio.sleep(0)
        if ending == "end":
            self.end()
        elif ending == "reset":
            self.reset()

    def _lose(self, exc: Exception | None) -> None:
        if not self.lost:
            self.lost = self._closing = True
            self.loop.call_soon(self.protocol.connection_lost, exc)

    # -- what the client's protocol calls --------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.lost, "written to a connection that is gone"
        if not self._closing:
            self.sent += data
            if self.on_write is not None:
                self.on_write(self)

    def close(self) -> None:
        self._lose(None)

    def abort(self) -> None:
        self._lose(None)

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def is_reading(self) -> bool:
        return not self.paused

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class Wires:
    """In the place of an `Opener`: each connection is a `Wire`, kept in `opened`.

    gate      while it is not set, nothing gets open
    failures  raised, the first one first, instead of opening
    at_once   done by the provider with a connection before its opening is known
    """

    via = None
    absolute = False
    fields: tuple[bytes, ...] = ()

    def __init__(self, on_write: Heard | None = None) -> None:
        self.opened: list[Wire] = []
        self.failures: list[Exception] = []
        self.asked = 0
        self.at_once: Callable[[Wire], None] | None = None
        self.on_write = on_write
        self.gate = asyncio.Event()
        self.gate.set()

    async def open(self, factory: Callable[[], asyncio.BaseProtocol]) -> asyncio.BaseProtocol:
        self.asked += 1
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        protocol = factory()
        wire = Wire(asyncio.get_running_loop(), protocol, self.on_write)
        self.opened.append(wire)
        if self.at_once is not None:
            self.at_once(wire)
            await asyncio.sleep(0)
        return protocol

    @property
    def alive(self) -> list[Wire]:
        return [wire for wire in self.opened if not wire.lost]
