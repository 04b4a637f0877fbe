"""A raw HTTP client: what farebox sent, byte for byte, and when."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field


@dataclass
class Answer:
    """One answer off the wire. `pieces` are the body's reads with their times; `clean` says it ended as announced."""

    status: int = 0
    reason: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    clean: bool = False

    def header(self, name: str) -> str | None:
        values = [v for k, v in self.headers if k.lower() == name.lower()]
        return ", ".join(values) if values else None

    def all(self, name: str) -> list[str]:
        return [v for k, v in self.headers if k.lower() == name.lower()]


class RawClient:
    """One connection. Requests are written as given; answers are read without any help from an HTTP library."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def __aenter__(self) -> RawClient:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def send(
        self, method: str, target: str, headers: dict[str, str] | list[tuple[str, str]], body: bytes | None = None
    ) -> None:
        fields = list(headers.items()) if isinstance(headers, dict) else list(headers)
        if not any(k.lower() == "host" for k, _ in fields):
            fields.insert(0, ("Host", f"127.0.0.1:{self.port}"))
        if body is not None and not any(k.lower() in ("content-length", "transfer-encoding") for k, _ in fields):
            fields.append(("Content-Length", str(len(body))))
        head = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields) + "\r\n"
        self.writer.write(head.encode("latin-1") + (body or b""))
        await self.writer.drain()

    async def head(self) -> Answer:
        answer = Answer()
        raw = await self.reader.readuntil(b"\r\n\r\n")
        lines = raw.decode("latin-1").split("\r\n")
        status, _, answer.reason = lines[0].partition(" ")[2].partition(" ")
        answer.status = int(status)
        answer.headers = [(k, v.strip()) for k, _, v in (line.partition(":") for line in lines[1:] if line)]
        return answer

    async def answer(self, *, has_body: bool = True) -> Answer:
        answer = await self.head()
        if not has_body or answer.status in (204, 304):
            answer.clean = True
            return answer
        try:
            if answer.header("transfer-encoding") == "chunked":
                while True:
                    size = int((await self.reader.readuntil(b"\r\n")).strip(), 16)
                    data = await self.reader.readexactly(size)
                    await self.reader.readexactly(2)
                    if not size:
                        answer.clean = True
                        break
                    self._take(answer, data)
            elif (length := answer.header("content-length")) is not None:
                left = int(length)
                while left:
                    data = await self.reader.read(left)
                    if not data:
                        break
                    left -= len(data)
                    self._take(answer, data)
                answer.clean = not left
            else:
                while data := await self.reader.read(65536):
                    self._take(answer, data)
                answer.clean = True
        except (asyncio.IncompleteReadError, ConnectionError):
            answer.clean = False
        answer.body = b"".join(data for _, data in answer.pieces)
        return answer

    async def chunk(self) -> bytes:
        """The next piece of a chunked body as it was framed; b"" at its end. For answers that are still under way."""
        size = int((await self.reader.readuntil(b"\r\n")).strip(), 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    async def chunks(self, size: int) -> bytes:
        """Chunks until `size` bytes of body are there, or the body ended."""
        body = b""
        while len(body) < size and (piece := await self.chunk()):
            body += piece
        return body

    async def rest(self) -> bytes:
        """Whatever else comes until farebox closes the connection, in whichever way."""
        data = b""
        try:
            while piece := await self.reader.read(65536):
                data += piece
        except ConnectionError:
            pass
        return data

    def abort(self) -> None:
        """Leave without a word (RST)."""
        self.writer.transport.abort()

    def _take(self, answer: Answer, data: bytes) -> None:
        answer.pieces.append((time.monotonic(), data))


async def call(
    port: int,
    target: str,
    body: bytes | None = None,
    *,
    key: str | None = None,
    method: str = "POST",
    headers: dict[str, str] | list[tuple[str, str]] | None = None,
) -> Answer:
    """One request on a connection of its own."""
    fields = list(headers.items()) if isinstance(headers, dict) else list(headers or [])
    if key is not None:
        fields.append(("Authorization", f"Bearer {key}"))
    async with RawClient(port) as client:
        await client.send(method, target, fields, body)
        return await client.answer(has_body=method != "HEAD")
