"""One answer on its way to a client, written as bytes: nothing of a provider's head is decoded and encoded again."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import unquote

from aiohttp.http import HttpVersion10, HttpVersion11

from farebox import paths
from farebox.errors import InternalError, Refusal
from farebox.server.request import Request

if TYPE_CHECKING:
    from farebox.server.connection import Connection

Headers = Iterable[tuple[bytes, bytes]]

HIGH_WATER_BYTES = 64 * 1024
"""Unsent bytes of one answer above which its provider is paused until the client has read some: asyncio's own mark."""


class ClientGone(Exception):
    """The client's connection ended while it was still owed bytes."""


def field_lines(headers: Headers) -> bytes:
    """Header fields as they stand in a head, each line with its end."""
    return b"".join([b"%b: %b\r\n" % field for field in headers])


class Reply:
    """One answer on its way to a client. `start` once, then `write` and `drain`, then `end` or `cut`.

    aiohttp is handed this object where it expects a `StreamResponse` and asks it only for
    `prepare`, `write_eof` and `keep_alive`.
    """

    __slots__ = ("_chunked", "_delimited", "_head", "_left", "_request", "_transport", "ended", "keep_alive", "started")

    def __init__(self, request: Request) -> None:
        self._request = request
        self._transport = request.protocol.transport
        self._chunked = False
        self._delimited = True
        self._head = b""
        self._left: int | None = None
        self.keep_alive = request.keep_alive
        self.started = False
        self.ended = False

    def start(self, status: int, reason: bytes, headers: Headers | bytes, *, length: int | None) -> None:
        """Set the head. `headers` are end-to-end fields, in order, or their `field_lines`; framing fields are added
        here. It goes out with the first bytes of the body, or by `flush`.

        `length` is the body's size in bytes where it is known; without it the body is chunked, or,
        for an HTTP/1.0 client, ends with the connection.
        """
        request = self._request
        framing = b""
        if request.method == "HEAD" or status in (204, 304) or status < 200:
            self._left = 0
            if length is not None and status != 204:
                framing = b"Content-Length: %d\r\n" % length
        elif length is not None:
            self._left = length
            framing = b"Content-Length: %d\r\n" % length
        elif request.version >= HttpVersion11:
            self._chunked = True
            framing = b"Transfer-Encoding: chunked\r\n"
        else:
            self._delimited = False
            self.keep_alive = False
        persistence = self._persistence()
        lines = headers if isinstance(headers, bytes) else field_lines(headers)
        self.started = True
        request.protocol.answering = request
        self._head = b"HTTP/1.1 %d %b\r\n%b%b%b\r\n" % (status, reason, lines, framing, persistence)

    def send(self, status: int, reason: bytes, lines: bytes, body: bytes, *, length: int | None) -> None:
        """`start`, `write` and `end`, for an answer with a body to a request that is not HEAD. One write where its
        length was announced. Raises `ClientGone`.
        """
        if length is None:
            # In several pieces it would have been chunked, and how it comes is not to be seen.
            self.start(status, reason, lines, length=None)
            self.write(body)
            self.end()
            return
        request, transport = self._request, self._transport
        if transport is None or transport.is_closing():
            raise ClientGone
        ordinary = request.taken and self.keep_alive and request.version == HttpVersion11
        persistence = b"" if ordinary else self._persistence()
        request.protocol.answering = request
        self.started = self.ended = True
        transport.write(
            b"HTTP/1.1 %d %b\r\n%bContent-Length: %d\r\n%b\r\n%b"
            % (status, reason, lines, len(body), persistence, body)
        )

    def _persistence(self) -> bytes:
        """The field that says whether the connection is kept, where that does not go without saying."""
        request = self._request
        if not (request.taken or (request.content.is_eof() and request.content.exception() is None)):
            # Who is answered early may stop sending, and what comes next is not the rest of the body.
            self.keep_alive = False
        if not self.keep_alive:
            return b"Connection: close\r\n"
        return b"Connection: keep-alive\r\n" if request.version == HttpVersion10 else b""

    def flush(self) -> None:
        """Send the head now, if it has not gone out. Raises `ClientGone`."""
        if self._head:
            self._send(b"")

    def write(self, data: bytes) -> None:
        """Hand `data` to the kernel, or queue it; `congested` says when to `drain`. Raises `ClientGone`."""
        if not data:
            return
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        elif self._left is not None:
            # A body longer than announced would be read as the next answer on this connection.
            data = data[: self._left]
            self._left -= len(data)
        self._send(data)

    @property
    def connection(self) -> Connection:
        """The client's."""
        return self._request.protocol

    @property
    def chunked(self) -> bool:
        """Whether pieces of the body are framed as chunks."""
        return self._chunked

    @property
    def congested(self) -> bool:
        """Whether asyncio holds more than `HIGH_WATER_BYTES` for the client, and until much of it is gone."""
        return self._request.protocol._paused

    async def drain(self, stall_timeout_s: float) -> None:
        """Wait until the client has read. Raises `ClientGone` when it left, or read nothing for the whole time."""
        try:
            async with asyncio.timeout(stall_timeout_s):
                await self._request.protocol._drain_helper()
        except TimeoutError:
            if self._transport is not None:
                self._transport.abort()
            raise ClientGone from None
        except ConnectionError:
            raise ClientGone from None

    def end(self) -> None:
        """Finish the answer: it is complete."""
        if self.ended:
            return
        self.ended = True
        if self._chunked:
            self._send(b"0\r\n\r\n")
        elif self._left:
            self.ended = False
            self.cut()
        else:
            self.flush()

    def cut(self) -> None:
        """Break the connection, so that what was sent can't be taken for a whole answer."""
        if self._head:
            with suppress(ClientGone):
                self.flush()
        self.ended = True
        self.keep_alive = False
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if not self._delimited:
            # The end of the connection would be the end of the body: reset it instead.
            sock = transport.get_extra_info("socket")
            if sock is not None and sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.close()

    def abort(self) -> None:
        """`cut` for an answer whose framing is not known here."""
        self._delimited = False
        self.cut()

    def _send(self, data: bytes) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            raise ClientGone
        if self._head:
            data, self._head = self._head + data, b""
        transport.write(data)

    async def prepare(self, request: object) -> None:
        """aiohttp's hook before the body: the head is already written."""

    async def write_eof(self) -> None:
        """aiohttp's hook after the handler: the body is already ended."""


def respond(
    request: Request,
    status: int,
    body: bytes,
    *,
    content_type: bytes = b"application/json",
    headers: Headers = (),
    close: bool = False,
) -> Reply:
    """A whole answer of farebox's own. `close`: the last one on its connection."""
    reply = Reply(request)
    if close:
        reply.keep_alive = False
    reason = _REASONS.get(status, b"Error" if status >= 400 else b"OK")
    try:
        reply.start(status, reason, [(b"Content-Type", content_type), *headers], length=len(body))
        if request.method != "HEAD":
            reply.write(body)
        reply.flush()
    except ClientGone:
        reply.keep_alive = False
    reply.ended = True
    return reply


def refuse(request: Request, refusal: Refusal, request_id: str | None = None, *, close: bool = False) -> Reply:
    """The answer for a refusal, in the dialect of the request; it is counted."""
    request.protocol.refused(refusal.code or InternalError.code)
    # Both families list models at the same path; only Anthropic's clients say so.
    anthropic = "anthropic-version" in request.headers
    family = "anthropic" if anthropic else paths.family_of(unquote(request.raw_path))
    body = refusal.body(family, request_id)
    headers = [(k.encode(), v.encode("latin-1", "replace")) for k, v in refusal.headers.items()]
    if request_id:
        headers.append((b"x-farebox-request-id", request_id.encode()))
    if refusal.status == 401:
        headers.append((b"WWW-Authenticate", b"Bearer"))
    return respond(request, refusal.status, body, headers=headers, close=close)


_REASONS = {
    200: b"OK",
    201: b"Created",
    204: b"No Content",
    400: b"Bad Request",
    401: b"Unauthorized",
    402: b"Payment Required",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    409: b"Conflict",
    413: b"Content Too Large",
    415: b"Unsupported Media Type",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
}
