"""The client's side: aiohttp's HTTP server in front, and answers written straight to the transport.

aiohttp parses requests (strictly: that parser is a guard) and runs one handler a request. Two
things it does not do as a proxy must: it decodes and re-encodes headers and adds its own, so
`Reply` writes heads and bodies as bytes; and its error log and error page quote malformed input,
credentials included, so `Connection` answers those in its own words.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, cast

import structlog
from aiohttp import web
from aiohttp.http import HttpVersion10, HttpVersion11
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_request import BaseRequest

from farebox import paths
from farebox.errors import BadRequest, BodyTooLarge, HeadersTooLarge, InternalError, Refusal
from farebox.logs import exception_facts

Headers = Iterable[tuple[bytes, bytes]]
Handler = Callable[[BaseRequest], Awaitable["Reply"]]

HIGH_WATER_BYTES = 64 * 1024
"""Unsent bytes of one answer above which its provider is paused until the client has read some."""

_JSON = (b"Content-Type", b"application/json")
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class ClientGone(Exception):
    """The client's connection ended while it was still owed bytes."""


class Reply:
    """One answer on its way to a client. `start` once, then `write` and `drain`, then `end` or `cut`.

    aiohttp is handed this object where it expects a `StreamResponse` and asks it only for
    `prepare`, `write_eof` and `keep_alive`.
    """

    __slots__ = ("_chunked", "_delimited", "_left", "_request", "_transport", "ended", "keep_alive", "started")

    def __init__(self, request: BaseRequest) -> None:
        self._request = request
        self._transport = request.transport
        self._chunked = False
        self._delimited = True
        self._left: int | None = None
        self.keep_alive = request.keep_alive
        self.started = False
        self.ended = False

    def start(self, status: int, reason: bytes, headers: Headers, *, length: int | None) -> None:
        """Write the head. `headers` are end-to-end fields, in order; framing fields are added here.

        `length` is the body's size in bytes where it is known; without it the body is chunked, or,
        for an HTTP/1.0 client, ends with the connection.
        """
        request = self._request
        empty = request.method == "HEAD" or status in (204, 304) or status < 200
        head = [b"HTTP/1.1 %d %b\r\n" % (status, reason)]
        head += [b"%b: %b\r\n" % field for field in headers]
        if empty:
            self._left = 0
            if length is not None and status != 204:
                head.append(b"Content-Length: %d\r\n" % length)
        elif length is not None:
            self._left = length
            head.append(b"Content-Length: %d\r\n" % length)
        elif request.version >= HttpVersion11:
            self._chunked = True
            head.append(b"Transfer-Encoding: chunked\r\n")
        else:
            self._delimited = False
            self.keep_alive = False
        if not self.keep_alive:
            head.append(b"Connection: close\r\n")
        elif request.version == HttpVersion10:
            head.append(b"Connection: keep-alive\r\n")
        head.append(b"\r\n")
        self.started = True
        self._send(b"".join(head))

    def write(self, data: bytes) -> None:
        """Hand `data` to the kernel, or queue it; `congested` says when to `drain`. Raises `ClientGone`."""
        if not data:
            return
        if self._chunked:
            self._send(b"%x\r\n%b\r\n" % (len(data), data))
            return
        if self._left is not None:
            # A body longer than announced would be read as the next answer on this connection.
            data = data[: self._left]
            self._left -= len(data)
        self._send(data)

    @property
    def congested(self) -> bool:
        transport = self._transport
        return transport is not None and transport.get_write_buffer_size() > HIGH_WATER_BYTES

    async def drain(self, stall_timeout_s: float) -> None:
        """Wait until the client has read. Raises `ClientGone` when it left, or read nothing for the whole time."""
        try:
            async with asyncio.timeout(stall_timeout_s):
                await self._request.writer.drain()
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

    def cut(self) -> None:
        """Break the connection, so that what was sent can't be taken for a whole answer."""
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

    def _send(self, data: bytes) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            raise ClientGone
        transport.write(data)

    async def prepare(self, request: BaseRequest) -> None:
        """aiohttp's hook before the body: the head is already written."""

    async def write_eof(self) -> None:
        """aiohttp's hook after the handler: the body is already ended."""


def respond(
    request: BaseRequest,
    status: int,
    body: bytes,
    *,
    content_type: bytes = b"application/json",
    headers: Headers = (),
) -> Reply:
    """A whole answer of farebox's own."""
    reply = Reply(request)
    reason = _REASONS.get(status, b"Error" if status >= 400 else b"OK")
    try:
        reply.start(status, reason, [(b"Content-Type", content_type), *headers], length=len(body))
        if request.method != "HEAD":
            reply.write(body)
    except ClientGone:
        reply.keep_alive = False
    reply.ended = True
    return reply


def refuse(request: BaseRequest, refusal: Refusal, request_id: str | None = None, *, close: bool = False) -> Reply:
    """The answer for a refusal, in the dialect of the request's path."""
    body = refusal.body(paths.family_of(request.path if request.path else "/"), request_id)
    headers = [(k.encode(), v.encode("latin-1", "replace")) for k, v in refusal.headers.items()]
    if request_id:
        headers.append((b"x-farebox-request-id", request_id.encode()))
    if refusal.status == 401:
        headers.append((b"WWW-Authenticate", b"Bearer"))
    reply = respond(request, refusal.status, body, headers=headers)
    if close:
        reply.keep_alive = False
    return reply


async def read_body(request: BaseRequest, limit: int, stall_timeout_s: float) -> bytes:
    """The request body as sent, never decoded.

    Raises `BodyTooLarge` past `limit` bytes, `BadRequest` when the client breaks off or stalls.
    """
    length = request.content_length
    if length is not None and length > limit:
        raise BodyTooLarge(f"The request body has {length} bytes; at most {limit} are taken.")
    send_continue(request)
    pieces: list[bytes] = []
    size = 0
    try:
        while piece := await _next_piece(request, stall_timeout_s):
            size += len(piece)
            if size > limit:
                raise BodyTooLarge(f"The request body passes the {limit} bytes that are taken.")
            pieces.append(piece)
    except (TimeoutError, ConnectionError, web.RequestPayloadError) as exc:
        raise BadRequest("The request body did not arrive whole.") from exc
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def stream_body(request: BaseRequest, stall_timeout_s: float) -> AsyncIterator[bytes]:
    """The request body piece by piece, as sent. Raises when the client breaks off or stalls."""
    while piece := await _next_piece(request, stall_timeout_s):
        yield piece


async def _next_piece(request: BaseRequest, stall_timeout_s: float) -> bytes:
    content = request.content
    if content.at_eof():
        return b""
    async with asyncio.timeout(stall_timeout_s):
        return await content.readany()


def send_continue(request: BaseRequest) -> None:
    """Tell a client that waits for `100 Continue` to go on. Called once the caller is known to be let in."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= HttpVersion11:
        transport = request.transport
        if transport is not None and not transport.is_closing():
            transport.write(_CONTINUE)


class Connection(RequestHandler):
    """aiohttp's connection, which also says when the client leaves, and keeps quiet about malformed input."""

    __slots__ = ("on_lost",)

    def __init__(self, manager: Server, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self.on_lost: Callable[[], None] | None = None

    def connection_lost(self, exc: BaseException | None) -> None:
        on_lost, self.on_lost = self.on_lost, None
        super().connection_lost(exc)
        if on_lost is not None:
            on_lost()

    def handle_error(
        self, request: BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """aiohttp's hook for a request that did not parse or a handler that raised. Nothing of either is quoted."""
        name = type(exc).__name__ if exc is not None else "unknown"
        refusal: Refusal
        if status >= 500:
            structlog.get_logger().error("request failed", **(exception_facts(exc) if exc is not None else {}))
            refusal = InternalError("farebox failed while handling this request; its log says where.")
        elif name == "LineTooLong":
            refusal = HeadersTooLarge("The request line or a header is longer than server.header_bytes_max.")
        else:
            structlog.get_logger().info("malformed request", error=name)
            refusal = BadRequest("This is not a well-formed HTTP request.")
        return cast(web.StreamResponse, refuse(request, refusal, close=True))

    def log_exception(self, *args: Any, **kw: Any) -> None:
        exc = kw.get("exc_info")
        facts = exception_facts(exc) if isinstance(exc, BaseException) else {}
        structlog.get_logger().error("connection failed", **facts)


class Server(web.Server):
    """Makes a `Connection` for each client."""

    def __call__(self) -> RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)


def make_server(
    handler: Handler, *, keepalive_timeout_s: float, header_bytes_max: int, headers_max: int, lingering_s: float = 5.0
) -> Server:
    """The protocol factory for `loop.create_server`. Request bodies are handed on as sent, never decompressed."""
    return Server(
        cast(Any, handler),
        keepalive_timeout=keepalive_timeout_s,
        max_line_size=max(header_bytes_max, paths.TARGET_BYTES_MAX + 64),
        max_field_size=header_bytes_max,
        max_headers=headers_max,
        lingering_time=lingering_s,
        auto_decompress=False,
        access_log=None,
    )


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
