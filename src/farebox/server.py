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
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any, cast

import structlog
from aiohttp import web
from aiohttp.http import HttpVersion10, HttpVersion11, RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import ERROR, RequestHandler
from aiohttp.web_request import BaseRequest

from farebox import paths
from farebox.errors import BadRequest, BodyTooLarge, HeadersTooLarge, InternalError, Refusal
from farebox.logs import exception_facts

Headers = Iterable[tuple[bytes, bytes]]
Handler = Callable[[BaseRequest], Awaitable["Reply"]]

HIGH_WATER_BYTES = 64 * 1024
"""Unsent bytes of one answer above which its provider is paused until the client has read some."""

_OVER = web.PayloadAccessError()
_JSON = (b"Content-Type", b"application/json")
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class ClientGone(Exception):
    """The client's connection ended while it was still owed bytes."""


class Reply:
    """One answer on its way to a client. `start` once, then `write` and `drain`, then `end` or `cut`.

    aiohttp is handed this object where it expects a `StreamResponse` and asks it only for
    `prepare`, `write_eof` and `keep_alive`.
    """

    __slots__ = ("_chunked", "_delimited", "_head", "_left", "_request", "_transport", "ended", "keep_alive", "started")

    def __init__(self, request: BaseRequest) -> None:
        self._request = request
        self._transport = request.transport
        self._chunked = False
        self._delimited = True
        self._head = b""
        self._left: int | None = None
        # After a chunked body the parser would take its trailer fields for headers of the next request.
        self.keep_alive = request.keep_alive and "Transfer-Encoding" not in request.headers
        self.started = False
        self.ended = False

    def start(self, status: int, reason: bytes, headers: Headers, *, length: int | None) -> None:
        """Set the head. `headers` are end-to-end fields, in order; framing fields are added here. It goes out
        with the first bytes of the body, or by `flush`.

        `length` is the body's size in bytes where it is known; without it the body is chunked, or,
        for an HTTP/1.0 client, ends with the connection.
        """
        request = self._request
        if not request.content.is_eof() or request.content.exception() is not None:
            # Who is answered early may stop sending, and what comes next is not the rest of the body.
            self.keep_alive = False
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
        cast(Connection, request.protocol).answering = request
        self._head = b"".join(head)

    def flush(self) -> None:
        """Send the head now, if it has not gone out. Raises `ClientGone`."""
        if self._head:
            self._send(b"")

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

    async def prepare(self, request: BaseRequest) -> None:
        """aiohttp's hook before the body: the head is already written."""

    async def write_eof(self) -> None:
        """aiohttp's hook after the handler: the body is already ended."""
        cast(Connection, self._request.protocol).answering = None


def respond(
    request: BaseRequest,
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


def refuse(request: BaseRequest, refusal: Refusal, request_id: str | None = None, *, close: bool = False) -> Reply:
    """The answer for a refusal, in the dialect of the request; it is counted."""
    cast(Connection, request.protocol).refused(refusal.code or InternalError.code)
    # Both families list models at the same path; only Anthropic's clients say so.
    anthropic = "anthropic-version" in request.headers
    family = "anthropic" if anthropic else paths.family_of(request.path if request.path else "/")
    body = refusal.body(family, request_id)
    headers = [(k.encode(), v.encode("latin-1", "replace")) for k, v in refusal.headers.items()]
    if request_id:
        headers.append((b"x-farebox-request-id", request_id.encode()))
    if refusal.status == 401:
        headers.append((b"WWW-Authenticate", b"Bearer"))
    return respond(request, refusal.status, body, headers=headers, close=close)


def _no_count(size: int) -> None:
    pass


async def read_body(
    request: BaseRequest, limit: int, stall_timeout_s: float, *, count: Callable[[int], None] = _no_count
) -> bytes:
    """The request body as sent, never decoded.

    Raises `BodyTooLarge` past `limit` bytes, `BadRequest` when the client breaks off or stalls.
    `count` is told the size of each piece before it is kept; what it raises ends the reading.
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
            count(len(piece))
            pieces.append(piece)
    except _BROKEN_OFF as exc:
        raise BadRequest(BROKEN_OFF) from exc
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class Upload:
    """The request body piece by piece, as sent. Raises when the client breaks off or stalls, and is `broken` then."""

    def __init__(self, request: BaseRequest, stall_timeout_s: float) -> None:
        self._request = request
        self._stall_timeout_s = stall_timeout_s
        self.broken = False
        self.refusal: Refusal | None = None
        """Why it broke off, where that was not the client's doing."""

    def __aiter__(self) -> Upload:
        return self

    async def __anext__(self) -> bytes:
        try:
            piece = await _next_piece(self._request, self._stall_timeout_s)
        except _BROKEN_OFF:
            self.broken = True
            raise
        if not piece:
            raise StopAsyncIteration
        return piece


BROKEN_OFF = "The request body did not arrive whole."
_BROKEN_OFF = (TimeoutError, ConnectionError, web.RequestPayloadError)


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

    __slots__ = ("answering", "on_lost", "refused")

    def __init__(self, manager: Server, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self.on_lost: Callable[[], None] | None = None
        self.answering: BaseRequest | None = None
        """The request whose answer has begun and is not over."""
        self.refused = manager.refused

    async def start(self) -> None:
        """Serve this connection's requests, one after the other: aiohttp's loop without a task for each of them."""
        try:
            while not self._force_close:
                if not self._messages:
                    self._waiter = self._loop.create_future()
                    try:
                        await self._waiter
                    finally:
                        self._waiter = None
                if not await self._serve(*self._messages.popleft()):
                    break
        except asyncio.CancelledError:
            self.force_close()
            raise
        except Exception as exc:
            self.log_exception(exc_info=exc)
            self.force_close()
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()

    async def _serve(self, message: Any, payload: StreamReader) -> bool:
        """Answer one request; whether another may follow on this connection."""
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()
        assert self._request_factory is not None and self._request_handler is not None
        handler: Any = self._request_handler
        if not isinstance(message, RawRequestMessage):
            handler, message = self._make_error_handler(message), ERROR
        request = self._request_factory(message, payload, self, cast(Any, None), cast(Any, self._task_handler))
        try:
            answer, reset = await self._handle_request(request, None, handler)
        except ConnectionError:
            return False
        finally:
            request._task = cast(Any, None)  # a cycle
        if reset:
            return False
        self._keepalive = bool(answer.keep_alive)
        if not payload.is_eof():
            await self._linger(payload)
        payload.set_exception(_OVER)
        if not self._keepalive or self._close or self._force_close:
            return False
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(self._next_keepalive_close_time, self._process_keepalive)
        return True

    async def _linger(self, payload: StreamReader) -> None:
        """Read on for a while what nobody wants: closing on a client that still sends could lose it its answer."""
        await asyncio.sleep(0)  # who sent it on to a provider was told to stop, and lets go of it now
        if not self._force_close and self._lingering_time:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._lingering_time):
                    while not payload.is_eof():
                        await payload.readany()
        if not payload.is_eof() and not self._force_close:
            self.close()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._messages and not isinstance(self._messages[-1][0], RawRequestMessage):
            self._malformed()

    def _malformed(self) -> None:
        """What came last does not parse. If it was to be part of a body, whoever reads that body is told:
        aiohttp would let them wait for the rest."""
        if len(self._messages) > 1:
            content = self._messages[-2][1]
        elif self._current_request is not None:
            content = self._current_request.content
        else:
            return
        if not content.is_eof():
            self._messages.pop()
            content.set_exception(web.RequestPayloadError("malformed"))
            content.feed_eof()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        manager = cast(Server, self._manager)
        if len(manager._connections) > manager.connections_max:
            self.force_close()

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
            if self.answering is request:
                # A second head would be read as part of the first one's body.
                reply = Reply(request)
                reply.abort()
                return cast(web.StreamResponse, reply)
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
    """Makes a `Connection` for each client; past `connections_max` a new one is closed at once.

    `refused` is told the code of every refusal that is answered, whoever refuses.
    """

    def __init__(self, handler: Any, *, connections_max: int, refused: Callable[[str], None], **kwargs: Any) -> None:
        super().__init__(handler, **kwargs)
        self.connections_max = connections_max
        self.refused = refused

    def change(
        self, *, keepalive_timeout_s: float, header_bytes_max: int, headers_max: int, connections_max: int
    ) -> None:
        """Follow a new config: connections that are open keep what they began with."""
        self._kwargs.update(_bounds(keepalive_timeout_s, header_bytes_max, headers_max))
        self.connections_max = connections_max

    def __call__(self) -> RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)


def make_server(
    handler: Handler,
    *,
    keepalive_timeout_s: float,
    header_bytes_max: int,
    headers_max: int,
    connections_max: int = 20_000,
    lingering_s: float = 5.0,
    refused: Callable[[str], None] = lambda code: None,
) -> Server:
    """The protocol factory for `loop.create_server`. Request bodies are handed on as sent, never decompressed."""
    return Server(
        cast(Any, handler),
        connections_max=connections_max,
        refused=refused,
        lingering_time=lingering_s,
        auto_decompress=False,
        access_log=None,
        **_bounds(keepalive_timeout_s, header_bytes_max, headers_max),
    )


def _bounds(keepalive_timeout_s: float, header_bytes_max: int, headers_max: int) -> dict[str, Any]:
    """aiohttp's names for what the config bounds."""
    return {
        "keepalive_timeout": keepalive_timeout_s,
        "max_line_size": max(header_bytes_max, paths.TARGET_BYTES_MAX + 64),
        "max_field_size": header_bytes_max,
        "max_headers": headers_max,
    }


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
