"""One request, as aiohttp's parser read it, and its body, as it was sent: never decoded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from io import BytesIO
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.http import HttpVersion11, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from farebox.errors import BadRequest, BodyTooLarge, Refusal
from farebox.server.receiving import may_receive, receive

if TYPE_CHECKING:
    from farebox.server.connection import Connection
    from farebox.server.reply import Reply

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Request:
    """The head's parts and where the body comes from. Stands in for aiohttp's `BaseRequest`, which costs four times
    as much to make; of that one aiohttp's connection calls `_cancel` and `_finish` and sets `_task`."""

    __slots__ = (
        "_task", "content", "headers", "keep_alive", "method", "protocol", "raw_headers", "raw_path", "taken",
        "version",
    )  # fmt: skip

    def __init__(self, message: RawRequestMessage, content: StreamReader, protocol: Connection) -> None:
        self.method: str = message.method
        self.raw_path: str = message.path
        """The target as on the request line."""
        self.version: tuple[int, int] = message.version
        self.headers: Any = message.headers
        """A case-insensitive multi-dict."""
        self.raw_headers: tuple[tuple[bytes, bytes], ...] = message.raw_headers
        self.content = content
        self.protocol = protocol
        # After a chunked body the parser would take its trailer fields for headers of the next request.
        self.keep_alive = not message.should_close and "Transfer-Encoding" not in message.headers
        """Whether another may follow on this connection."""
        if message.upgrade and not _is_told_what_follows(message):
            self.keep_alive = False
        self.taken = False
        """All of the body was there and was read."""

    @property
    def transport(self) -> asyncio.Transport | None:
        """None once the client is gone."""
        return self.protocol.transport

    @property
    def body_exists(self) -> bool:
        """Whether the head announces a body."""
        return self.content is not EMPTY_PAYLOAD

    @property
    def content_length(self) -> int | None:
        """The body's size in bytes where it is announced."""
        length = self.headers.get("Content-Length")
        return int(length) if length is not None else None

    def _cancel(self, exc: BaseException) -> None:
        self.content.set_exception(exc)
        self.protocol.body_ended()

    def _finish(self) -> None:
        pass


def _is_told_what_follows(message: RawRequestMessage) -> bool:
    """Whether aiohttp's parser hands on what comes in one piece with an offer to upgrade. Of offers that it does not
    know it drops that: what came later would be read out of step."""
    return message.method == "CONNECT" or message.headers.get("Upgrade", "").lower() == "websocket"


Handler = Callable[[Request], Awaitable["Reply"]]


SMALL_BYTES = 32 * 1024
"""A body announced with so many bytes, or fewer, is waited for whole: aiohttp keeps more before it stops reading."""


def _no_count(size: int) -> None:
    pass


def whole_body(request: Request, limit: int) -> bytes | None:
    """The request body where all of it is here, else None. Raises `BodyTooLarge` past `limit` bytes."""
    content = request.content
    if content is EMPTY_PAYLOAD:
        body = b""
    elif not content._eof or content._exception is not None:
        return None
    elif len(content._buffer) == 1 and not request.protocol.holds_back:
        body = content._buffer.popleft()  # `read_nowait`, less its account for those who read on: seven calls
    else:
        body = content.read_nowait()
    request.taken = True
    if len(body) > limit:
        raise BodyTooLarge(f"The request body has {len(body)} bytes; at most {limit} are taken.")
    return body


async def read_body(
    request: Request, limit: int, stall_timeout_s: float, *, count: Callable[[int], None] = _no_count
) -> bytes:
    """The request body as sent.

    Raises `BodyTooLarge` past `limit` bytes, `BadRequest` when the client breaks off or stalls.
    `count` is told of bytes before they are kept; what it raises ends the reading.
    """
    length = request.content_length
    if length is not None and length > limit:
        raise BodyTooLarge(f"The request body has {length} bytes; at most {limit} are taken.")
    send_continue(request)
    try:
        if length is not None and length <= SMALL_BYTES and request.body_exists:
            count(length)
            await request.protocol.body_came(request.content, stall_timeout_s)
            request.taken = True
            return request.content.read_nowait()
        piece: bytes = request.content.read_nowait()
        if may_receive(request, piece):
            count(len(piece))
            return await receive(request, piece, stall_timeout_s, count)
        # Kept as it comes: joining 50 MB at the end would hold up everybody else for 28 ms.
        kept, size = BytesIO(), 0
        while piece or (piece := await _next_piece(request, stall_timeout_s)):
            size += len(piece)
            if size > limit:
                raise BodyTooLarge(f"The request body passes the {limit} bytes that are taken.")
            count(len(piece))
            kept.write(piece)
            piece = b""
    except _BROKEN_OFF as exc:
        # The stream keeps it, and with its traceback it would keep these frames and what they kept of the body.
        raise BadRequest(BROKEN_OFF) from exc.with_traceback(None)
    return kept.getvalue()


class Upload:
    """The request body piece by piece, as sent. Raises when the client breaks off or stalls, and is `broken` then."""

    def __init__(self, request: Request, stall_timeout_s: float) -> None:
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


async def _next_piece(request: Request, stall_timeout_s: float) -> bytes:
    content = request.content
    # What broke off is at its end as well, but not whole.
    if content.at_eof() and content.exception() is None:
        return b""
    async with asyncio.timeout(stall_timeout_s):
        return await content.readany()


def send_continue(request: Request) -> None:
    """Tell a client that waits for `100 Continue` to go on. Called once the caller is known to be let in."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= HttpVersion11:
        transport = request.transport
        if transport is not None and not transport.is_closing():
            transport.write(_CONTINUE)
