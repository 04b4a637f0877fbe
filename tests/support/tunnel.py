"""An HTTP proxy for CONNECT: it keeps what it was asked, and joins its client to one port or answers as it is told."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self


class Tunnel:
    """`async with Tunnel(port) as tunnel`: all tunnels lead to `port`; `answer`, where given, is said instead."""

    def __init__(self, port: int, answer: bytes | None = None) -> None:
        self._port = port
        self._answer = answer
        self.asked: list[bytes] = []
        """The heads of the requests, as they came."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError), contextlib.closing(writer):
            self.asked.append(await reader.readuntil(b"\r\n\r\n"))
            if self._answer is not None:
                writer.write(self._answer)
                return
            there = await asyncio.open_connection("127.0.0.1", self._port)
            with contextlib.closing(there[1]):
                # Head and first bytes at once: what follows the head is the provider's already.
                writer.write(b"HTTP/1.1 200 Connection established\r\nX: y\r\n\r\n")
                await asyncio.gather(_carry(reader, there[1]), _carry(there[0], writer))


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(65536):
        writer.write(piece)
        await writer.drain()
    writer.close()
