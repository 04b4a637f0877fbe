"""A scripted provider: a raw TCP server that records what it was sent and answers exactly the bytes it is told."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Self


@dataclass
class Received:
    """One request as it came over the wire."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    connection: int

    def header(self, name: str) -> str | None:
        values = [v for k, v in self.headers if k.lower() == name.lower()]
        return ", ".join(values) if values else None


class Wire:
    """The answering side of one request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.closed = False

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self, status: int = 200, headers: Iterable[tuple[str, str]] = (), *, reason: str = "OK") -> None:
        lines = [f"HTTP/1.1 {status} {reason}", *(f"{k}: {v}" for k, v in headers), "", ""]
        await self.send("\r\n".join(lines).encode("latin-1"))

    async def chunk(self, data: bytes) -> None:
        if data:
            await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.send(b"0\r\n\r\n")

    async def upload(self) -> AsyncIterator[bytes]:
        """The pieces of a chunked request body as they arrive; for a provider with `reads_bodies` off."""
        while size := int(await self.reader.readuntil(b"\n"), 16):
            yield await self.reader.readexactly(size)
            await self.reader.readline()
        await self.reader.readline()

    async def hung_up(self) -> None:
        """Until farebox closes its side: nothing else may come on this connection."""
        try:
            assert not await self.reader.read(1), "farebox sent more on a connection that was to be closed"
        except ConnectionError:
            pass
        self.close()

    def close(self) -> None:
        self.closed = True
        self.writer.close()

    def reset(self) -> None:
        """Break the connection with an RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()


Script = Callable[[Received, Wire], Awaitable[None]]


def plain(
    body: bytes,
    *,
    status: int = 200,
    content_type: str = "application/json",
    headers: Iterable[tuple[str, str]] = (),
    pieces: int = 1,
) -> Script:
    """A whole answer with a Content-Length, written in `pieces`."""

    async def script(_: Received, wire: Wire) -> None:
        extra = [("Content-Type", content_type), ("Content-Length", str(len(body))), *headers]
        await wire.head(status, extra)
        step = max(1, -(-len(body) // pieces))
        for at in range(0, len(body), step):
            await wire.send(body[at : at + step])
            await asyncio.sleep(0)

    return script


def stream(
    parts: Iterable[bytes],
    *,
    status: int = 200,
    content_type: str = "text/event-stream",
    headers: Iterable[tuple[str, str]] = (),
    gap_s: float = 0.0,
    framing: str = "chunked",
    cut: str | None = None,
) -> Script:
    """A streamed answer. `framing`: chunked or close; `cut`: None (proper end), close or reset instead of an end."""

    async def script(_: Received, wire: Wire) -> None:
        fields = [("Content-Type", content_type), *headers]
        fields.append(("Transfer-Encoding", "chunked") if framing == "chunked" else ("Connection", "close"))
        await wire.head(status, fields)
        for part in parts:
            await (wire.chunk(part) if framing == "chunked" else wire.send(part))
            await asyncio.sleep(gap_s)
        if cut == "reset":
            wire.reset()
        elif cut == "close" or framing != "chunked":
            wire.close()
        else:
            await wire.end()

    return script


@dataclass
class FakeProvider:
    """`async with FakeProvider() as provider`. Each request takes the next of `scripts`, then `default`."""

    default: Script | None = None
    requests: list[Received] = field(default_factory=list)
    scripts: deque[Script] = field(default_factory=deque)
    gone: int = 0
    """Connections on which farebox hung up before the script was done."""
    failures: list[Exception] = field(default_factory=list)
    """What went wrong in scripts."""
    reads_bodies: bool = True
    """Off: a script gets its request as soon as the head is there, and takes the body from `Wire.upload`."""
    tls: ssl.SSLContext | None = None

    async def __aenter__(self) -> Self:
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections = 0
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 22, ssl=self.tls)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        return self.origin + "/v1"

    def then(self, *scripts: Script) -> Self:
        self.scripts.extend(scripts)
        return self

    def forget(self) -> None:
        """As if new: no requests seen, no answers scripted."""
        self.requests.clear()
        self.scripts.clear()
        self.default = None
        self.gone = 0
        self.failures.clear()
        self.reads_bodies = True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._connections += 1
        number = self._connections
        try:
            while (request := await _read_request(reader, number)) is not None:
                if self.reads_bodies:
                    request.body = await _read_body(reader, request)
                self.requests.append(request)
                script = self.scripts.popleft() if self.scripts else self.default
                assert script is not None, "the provider was asked more often than it was told answers"
                wire = Wire(reader, writer)
                await script(request, wire)
                if wire.closed:
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            self.gone += 1
        except asyncio.CancelledError:
            pass
        except Exception as exc:
            self.failures.append(exc)
        finally:
            self._tasks.discard(task)
            writer.close()


async def _read_request(reader: asyncio.StreamReader, number: int) -> Received | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    lines = head.decode("latin-1").split("\r\n")
    method, target, _ = lines[0].split(" ")
    headers = [(k, v.strip()) for k, _, v in (line.partition(":") for line in lines[1:] if line)]
    return Received(method, target, headers, b"", number)


async def _read_body(reader: asyncio.StreamReader, request: Received) -> bytes:
    if request.header("transfer-encoding") != "chunked":
        return await reader.readexactly(int(request.header("content-length") or 0))
    body = b""
    while size := int(await reader.readuntil(b"\n"), 16):
        body += await reader.readexactly(size)
        await reader.readline()
    await reader.readline()
    return body
