"""One connection to a provider: bytes in, an answer's head and body pieces out, as they arrive.

No task and no future lives here for a piece of a body. What the kernel has is read into one buffer
that all connections of a pool share, parsed (llhttp, strict), and handed to the `Answer` under way
before the event loop goes on to anything else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from farebox.upstream.errors import UpstreamError

if TYPE_CHECKING:
    from farebox.upstream.answer import Answer

FIELD_BYTES_MAX = 64 * 1024
"""Longest header line taken from a provider; a longer one counts as a broken answer."""
FIELDS_MAX = 256
"""Header lines of one answer, at most."""
HEAD_BYTES_MAX = 256 * 1024
"""Largest head; also what else may come between two pieces of a body (chunk extensions, trailers)."""
UNSENT_BYTES_MAX = 256 * 1024
"""Bytes of a request's body handed to the kernel ahead; past it the client's upload waits."""


class _Unwanted(Exception):
    """A bound above is passed, a field holds a NUL, an interim answer a body. For the parser, which fails with it."""


def _parser(link: Link) -> HttpResponseParser:
    """Takes what others take from servers: folded fields, odd bytes in values, spaces after a chunk's size."""
    parser = HttpResponseParser(link)
    parser.set_dangerous_leniencies(
        lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
    )
    return parser


class Link(asyncio.BufferedProtocol):
    """A connection. `begin` one exchange at a time; `over` is told when it is free again, or gone.

    buffer  what is received into; read and used up before the event loop turns to another connection
    over    (link, reusable): called once after each exchange, and when an idle connection ends
    """

    __slots__ = (
        "_answer", "_between", "_bodiless", "_buffer", "_excess", "_head", "_head_bytes", "_headers",
        "_keeps", "_loop", "_over", "_parser", "_paused", "_pieces", "_reason", "_seen", "_status", "_timer",
        "_timer_at", "_transport", "_unblocked", "_uploading", "_whole", "born", "idle_since",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop, buffer: memoryview, over: Callable[[Link, bool], None]) -> None:
        self._loop = loop
        self._buffer = buffer
        self._over = over
        self._transport: asyncio.Transport | None = None
        self._parser: HttpResponseParser | None = _parser(self)
        self._answer: Answer | None = None
        self._between = False
        """The next byte begins a chunk, or ends the body."""
        self._bodiless = False
        self._headers: list[tuple[bytes, bytes]] = []
        self._status = 0
        self._reason = b""
        self._pieces: list[bytes] = []
        self._head_bytes = 0
        self._head = self._whole = self._excess = self._keeps = False
        self._uploading = False
        self._unblocked: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._seen = 0.0
        self._paused = False
        self.born = self.idle_since = loop.time()

    # -- the exchange --------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        """Whether a request can be sent on it, as far as is known."""
        transport = self._transport
        return transport is not None and self._answer is None and not transport.is_closing()

    def begin(
        self,
        answer: Answer,
        data: bytes,
        now: float,
        rest: bytes | None = None,
        *,
        bodiless: bool = False,
        uploading: bool = False,
    ) -> None:
        """Send `data`, a request's head with its body or the beginning of it; what comes back goes to `answer`.

        `now`: the loop's time. `rest`: of the body, sent after it. `bodiless`: the answer has a head only (HEAD).
        `uploading`: `write` and `sent` follow.
        """
        self._answer = answer
        self._bodiless = bodiless
        self._uploading = uploading
        self._head = self._whole = self._excess = self._between = False
        self._head_bytes = 0
        self._seen = now
        if self._transport is not None:
            self._transport.write(data)
            if rest is not None:
                self._transport.write(rest)
        if self._timer is None or self._timer_at > answer.head_by or self._timer_at > now + answer.idle_timeout_s:
            self._watch()

    async def write(self, data: bytes) -> None:
        """Send more of the request's body; waits while the provider does not take it."""
        transport = self._transport
        if transport is None or self._answer is None:
            return
        transport.write(data)
        if transport.get_write_buffer_size() > UNSENT_BYTES_MAX:
            self._unblocked = self._loop.create_future()
            try:
                await self._unblocked
            finally:
                self._unblocked = None

    def serves(self, answer: Answer) -> bool:
        """Whether `answer`'s exchange is the one under way."""
        return self._answer is answer

    def sent(self, answer: Answer) -> None:
        """The request that `answer` answers is whole."""
        if self._answer is not answer:
            return
        self._uploading = False
        self._seen = self._loop.time()
        self._watch()

    def pause(self) -> None:
        """Read no more for now."""
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._seen = self._loop.time()
            self._transport.resume_reading()
            self._watch()

    def abandon(self) -> None:
        """Give up the exchange, and with it the connection: what else it brings belongs to nobody."""
        if self._answer is not None or self._uploading:
            self._answer = None
            self._uploading = False
            self.close()
            self._over(self, False)

    def close(self) -> None:
        """End the connection."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._parser = None  # it holds this object's methods: a cycle
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
        if self._unblocked is not None and not self._unblocked.done():
            self._unblocked.set_result(None)

    def _release(self, now: float, *, reusable: bool) -> None:
        self._answer = None
        self.idle_since = now
        if self._uploading:
            self._uploading = reusable = False  # answered early: the rest of the request is not wanted
        elif reusable and self._transport is not None and self._transport.get_write_buffer_size():
            reusable = False  # so it was here: the next request would have to wait behind that rest
        if not reusable:
            self.close()
        elif self._paused:
            self.resume()
        self._over(self, reusable)

    def _fail(self, error: UpstreamError) -> None:
        answer, self._answer = self._answer, None
        self._uploading = False
        self.close()
        self._over(self, False)
        if answer is not None:
            answer.fail(error)

    # -- asyncio's calls -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        answer, parser = self._answer, self._parser
        if answer is None or parser is None:
            # Nobody asked: it would be taken for the answer to the next request, which may be another client's.
            self._end_unasked()
            return
        now = self._seen = self._loop.time()
        data = self._buffer[:nbytes]
        if self._between and (lane := answer.lane) is not None and lane(bytes(data)):
            return
        if not (self._head or self._head_bytes or self._bodiless) and answer.begin_whole(bytes(data)):
            self._release(now, reusable=True)
            answer.told()
            return
        self._parse(answer, parser, data)

    def _parse(self, answer: Answer, parser: HttpResponseParser, data: memoryview) -> None:
        fault = False
        had_head = self._head
        news = False
        try:
            parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            # After the head of an answer to HEAD nothing is read: the parser, which does not know, may stumble there.
            fault = not (self._bodiless and self._head)
        # A line that gives a size ends with a line feed: the last byte tells whether one has begun.
        self._between = self._between and data[-1] == 0x0A
        if not self._pieces:
            # Of a head, but also of trailers and chunk extensions, a provider can send without end.
            self._head_bytes += len(data)
            fault = fault or self._head_bytes > HEAD_BYTES_MAX
        if fault and not had_head:
            # The client has nothing yet: it is told, rather than handed an answer that breaks.
            self._fail(UpstreamError("broken_answer", sent=True))
            return
        if not had_head and self._head:
            headers, self._headers = self._headers, []
            if not answer.begin(self._status, self._reason, tuple(headers)):
                self._fail(UpstreamError("broken_answer", sent=True))
                return
            news = True
        if self._pieces:
            self._head_bytes = 0
            pieces, self._pieces = self._pieces, []
            news = answer.feed(pieces[0] if len(pieces) == 1 else b"".join(pieces)) or news
            if self._answer is not answer:
                answer.told()
                return  # whoever took it has given up
        if fault and not self._whole:
            self._fail(UpstreamError("broken_body", sent=True))
        elif self._whole:
            self._release(self._seen, reusable=self._keeps and not fault and not self._excess)
            answer.finish()
            answer.told()
        elif news:
            answer.told()

    def eof_received(self) -> None:
        return None  # closed on both sides: nobody answers after half a connection

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        answer = self._answer
        if answer is None:
            self._end_unasked()
        elif not self._head:
            self._fail(UpstreamError("disconnected" if exc is None else "connection_lost", sent=True))
        elif exc is not None or answer.head.framed:
            self._fail(UpstreamError("broken_body", sent=True))
        else:
            self._release(self._loop.time(), reusable=False)
            answer.finish()
            answer.told()

    def pause_writing(self) -> None:
        pass  # `write` asks how much is unsent

    def resume_writing(self) -> None:
        if self._unblocked is not None and not self._unblocked.done():
            self._unblocked.set_result(None)

    def _end_unasked(self) -> None:
        told = self._parser is None
        self.close()
        if not told:
            self._over(self, False)

    # -- the parser's calls --------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._head:
            self._excess = True  # a second answer to one request
            return
        self._headers = []
        self._reason = b""

    def on_status(self, reason: bytes) -> None:
        if not self._head:
            self._reason += reason
            if len(self._reason) > FIELD_BYTES_MAX:
                raise _Unwanted

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head:  # else it is a trailer, which is hop-by-hop
            self._headers.append((name, value.rstrip(b" \t")))  # llhttp leaves it; "5 " is no length
            if len(name) + len(value) > FIELD_BYTES_MAX or len(self._headers) > FIELDS_MAX or b"\0" in value:
                raise _Unwanted

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        if self._head:
            return
        self._status = self._parser.get_status_code()
        if not 100 <= self._status < 200:
            self._head = True
            if self._bodiless:
                self._whole, self._keeps = True, False

    def on_body(self, data: bytes) -> None:
        if not self._head:
            raise _Unwanted  # an interim answer has none: what follows it can be read in two ways
        if not self._whole:
            self._pieces.append(data)

    def on_chunk_header(self) -> None:
        self._between = False

    def on_chunk_complete(self) -> None:
        self._between = True

    def on_message_complete(self) -> None:
        assert self._parser is not None
        if self._head and not self._whole:
            self._whole = True
            self._keeps = self._parser.should_keep_alive()

    # -- time ----------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Let a timer fire when the exchange is due to fail; one that fires too early is set again then."""
        answer = self._answer
        if answer is None:
            return
        due = self._due(answer)
        if self._timer is None:
            self._set_timer(due)
        elif self._timer_at > due:
            self._timer.cancel()
            self._set_timer(due)

    def _set_timer(self, due: float) -> None:
        self._timer_at = due
        self._timer = self._loop.call_at(due, self._look)

    def _due(self, answer: Answer) -> float:
        if self._paused:
            return self._loop.time() + answer.idle_timeout_s
        if self._head:
            return self._seen + answer.idle_timeout_s
        if self._uploading:
            return answer.head_by
        return min(self._seen + answer.idle_timeout_s, answer.head_by)

    def _look(self) -> None:
        self._timer = None
        answer = self._answer
        if answer is None:
            return
        if self._due(answer) > self._loop.time():
            self._watch()
        elif self._head:
            self._fail(UpstreamError("idle_timeout", sent=True, timeout=True))
        else:
            self._fail(UpstreamError("response_timeout", sent=True, timeout=True))
