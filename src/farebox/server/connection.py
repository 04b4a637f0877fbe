"""A client's connection: aiohttp parses what comes on it, and one handler answers each request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import structlog
from aiohttp import web
from aiohttp.http import HttpRequestParser, RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import ERROR, RequestHandler

from farebox import paths
from farebox.errors import BadRequest, HeadersTooLarge, InternalError, Refusal
from farebox.logs import exception_facts
from farebox.server.reply import Reply, refuse
from farebox.server.request import Handler, Request
from farebox.waiter import Waiter

_OVER = web.PayloadAccessError()


RECEIVE_BYTES = 120 * 1024
"""Asked of the kernel at once. asyncio asks for 256 KiB, which the allocator takes from the system and gives back for
every request: 13.5 us a read against 1.3."""


class _Turn(Waiter):
    """Where a connection waits for requests. aiohttp takes it for its future; whoever receives wakes it, at the end."""

    __slots__ = ()

    def done(self) -> bool:
        return self.step is None

    def set_result(self, _: None) -> None:
        pass


class Connection(RequestHandler):
    """aiohttp's connection, which also says when the client leaves, and keeps quiet about malformed input.

    A request is taken up the moment it is there, before the event loop turns to anything else.
    """

    __slots__ = ("_body_due", "_body_timer", "_turn", "answering", "on_lost", "refused", "task")

    def __init__(self, manager: Server, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self.on_lost: Callable[[], None] | None = None
        self.answering: Request | None = None
        """The request whose answer has begun and is not over."""
        self.refused = manager.refused
        self._turn = _Turn(self._loop)
        self._body_due = 0.0
        """The loop's time at which more of a body must have come; 0 while nobody waits for any."""
        self._body_timer: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Serve this connection's requests, one after the other: aiohttp's loop, without its task, request and
        response for each of them."""
        task = asyncio.current_task()
        assert task is not None
        self.task: asyncio.Task[None] = task
        """Carries the requests; known once here, for to ask for it costs 0.3 µs."""
        turn: Any = self._turn
        try:
            while not self._force_close:
                if not self._messages:
                    self._waiter = turn
                    try:
                        await turn
                    finally:
                        self._waiter = None
                message, payload = self._messages.popleft()
                in_pieces = not payload.is_eof()
                if self._parser is not None and not in_pieces:
                    self._parser.message_consumed()
                if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
                    self._resume_reading_if_drained()
                if isinstance(message, RawRequestMessage):
                    request = Request(message, payload, self)
                    reply = await self._answer(request)
                else:
                    request = Request(ERROR, payload, self)
                    reply = self._malformed_reply(request, message)
                self._keepalive = reply.keep_alive
                if not (request.taken or payload.is_eof()):
                    await self._linger(request)
                    payload.set_exception(_OVER)
                elif in_pieces:
                    self._all_came()
                if not self._keepalive or self._close or self._force_close:
                    break
                self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
                if self._keepalive_handle is None:
                    self._keepalive_handle = self._loop.call_at(
                        self._next_keepalive_close_time, self._process_keepalive
                    )
                del message, payload, request, reply  # an idle connection keeps nothing of its last request
        except asyncio.CancelledError:
            # The client has left, or farebox stops. Raised on, the task would keep it, with this frame and so with
            # itself: memory that only the garbage collector gives back, of each connection.
            self.force_close()
        except Exception as exc:
            self.log_exception(exc_info=exc)
            self.force_close()
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()

    async def _answer(self, request: Request) -> Reply:
        """The handler's answer, or what stands for it where the handler raises."""
        handler: Any = self._request_handler
        current: Any = request
        self._request_in_progress = True
        self._current_request = current
        try:
            reply: Reply = await handler(request)
        except asyncio.CancelledError:
            raise
        except Exception as exc:
            reply = self._failed(request, exc)
        finally:
            self._current_request = None
            self._request_in_progress = False
            if self._handler_waiter is not None:
                self._handler_waiter.set_result(None)
        self.answering = None
        if self._upgraded:
            await self.finish_response(cast(Any, request), cast(Any, reply), None)
        return reply

    def _all_came(self) -> None:
        """A body that was not here when its request was taken up has come and was read. The parser counts a message
        when it ends: told earlier that it is done with, it would count it for ever, and stop after some such ones.
        It may have stopped behind this one; nobody else would make it go on."""
        if self._parser is not None:
            self._parser.message_consumed()
            if not self._reading_paused:
                self.data_received(b"")

    async def _linger(self, request: Request) -> None:
        """Read on for a while what nobody wants: closing on a client that still sends could lose it its answer."""
        await asyncio.sleep(0)  # who sent it on to a provider was told to stop, and lets go of it now
        current: Any = request
        payload = request.content
        self._current_request = current  # whoever tells it of the client's end ends the reading
        try:
            if not self._force_close and self._lingering_time:
                # What ends the body before its time ends this as well.
                with suppress(TimeoutError, ConnectionError, web.RequestPayloadError):
                    async with asyncio.timeout(self._lingering_time):
                        while not payload.is_eof():
                            await payload.readany()
        finally:
            self._current_request = None
        if not payload.is_eof() and not self._force_close:
            self.close()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """aiohttp's hook for a body that was read: it would look for more to parse, and there is more only where
        the parser was paused (2.5 µs a request)."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    @property
    def holds_back(self) -> bool:
        """Whether reading is paused, so that the parser may have more than it has handed on."""
        return self._reading_paused or self._buffer_paused

    def renew_parser(self) -> None:
        """Parse what comes next as a new request: the body of the last one did not pass through the parser."""
        self._parser = HttpRequestParser(
            self,
            self._loop,
            self._read_bufsize,
            max_line_size=self.max_line_size,
            max_field_size=self.max_field_size,
            max_headers=self.max_headers,
            payload_exception=web.RequestPayloadError,
            auto_decompress=False,
            max_msg_queue_size=self._max_msg_queue_size,
        )

    def data_received(self, data: bytes) -> None:
        if self._close and self._current_request is not None and not self._current_request.content.is_eof():
            # It takes no further request, but what the last one is made of: aiohttp would drop it.
            self._close = False
            super().data_received(data)
            self._close = True
        else:
            super().data_received(data)
        if self._messages and not isinstance(self._messages[-1][0], RawRequestMessage):
            self._malformed()
        if self._messages or self._body_due:
            self._turn.wake()

    async def body_came(self, content: StreamReader, stall_timeout_s: float) -> None:
        """Wait until all of a body is here that is so small that nothing of it has to be taken meanwhile: that of an
        SDK which sends the head by itself. No future, and a timer that serves many such waits.

        Raises `TimeoutError` when nothing comes for so long, and what ends the body before its time.
        """
        came = -1
        try:
            while not content._eof and content._exception is None:
                if content.total_bytes > came:
                    came, self._body_due = content.total_bytes, self._loop.time() + stall_timeout_s
                    if self._body_timer is None or self._body_timer.when() > self._body_due:
                        self._set_body_timer()
                elif self._loop.time() >= self._body_due:
                    raise TimeoutError
                await self._turn
        finally:
            self._body_due = 0.0
        if content._exception is not None:
            raise content._exception

    def body_ended(self) -> None:
        """Its content was told that it breaks off: who waits for it goes on, unless that is cancelled first."""
        if self._body_due:
            self._loop.call_soon(self._turn.wake)

    def _set_body_timer(self) -> None:
        if self._body_timer is not None:
            self._body_timer.cancel()
        self._body_timer = self._loop.call_at(self._body_due, self._look_for_body)

    def _look_for_body(self) -> None:
        self._body_timer = None
        if self._body_due > self._loop.time():
            self._set_body_timer()
        elif self._body_due:
            self._turn.wake()

    def _malformed(self) -> None:
        """What came last does not parse. If it was to be part of a body, whoever reads that body is told:
        aiohttp would let them wait for the rest."""
        error: Any = self._messages[-1][0]
        error.exc.with_traceback(None)  # which has a frame that keeps the error, and with it all of this connection
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
        if hasattr(transport, "max_size"):  # asyncio's own; another loop reads in its own way
            transport.max_size = RECEIVE_BYTES
        manager = cast(Server, self._manager)
        if len(manager._connections) > manager.connections_max:
            self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        on_lost, self.on_lost = self.on_lost, None
        super().connection_lost(exc)
        if self._body_timer is not None:
            self._body_timer.cancel()
        if on_lost is not None:
            on_lost()

    def _failed(self, request: Request, exc: Exception) -> Reply:
        """The handler raised. Nothing of it is quoted."""
        structlog.get_logger().error("request failed", **exception_facts(exc))
        if self.answering is request:
            # A second head would be read as part of the first one's body.
            reply = Reply(request)
            reply.abort()
            return reply
        refusal = InternalError("farebox failed while handling this request; its log says where.")
        return refuse(request, refusal, close=True)

    def _malformed_reply(self, request: Request, error: Any) -> Reply:
        """What came does not parse. Nothing of it is quoted."""
        name = type(error.exc).__name__
        refusal: Refusal
        if name == "LineTooLong":
            refusal = HeadersTooLarge("The request line or a header is longer than server.header_bytes_max.")
        else:
            structlog.get_logger().info("malformed request", error=name)
            refusal = BadRequest("This is not a well-formed HTTP request.")
        return refuse(request, refusal, close=True)

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
