"""A wire between a client and farebox that counts what goes over it."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_REQUEST_LINE = re.compile(rb"[A-Z]+ /\S* HTTP/1\.1\r\n")


class Tap:
    """One listening port that leads to another."""

    def __init__(self, port: int) -> None:
        self.origin = f"http://127.0.0.1:{port}"
        self._sent: list[bytes] = []

    def heard(self, data: bytes) -> None:
        """One read. A client sends its next request after the answer to the last, so none begins inside a read."""
        self._sent.append(data)

    @property
    def requests(self) -> list[bytes]:
        """The request lines that clients sent."""
        return [line[0].strip() for data in self._sent if (line := _REQUEST_LINE.match(data)) is not None]


@asynccontextmanager
async def tapped(port: int) -> AsyncIterator[Tap]:
    """A tap on `port` of this machine."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, up: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if up:
                    tap.heard(data)
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, there_writer, True), pump(there_reader, writer, False))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    tap = Tap(server.sockets[0].getsockname()[1])
    try:
        yield tap
    finally:
        server.close()
