"""Provider to client: the loop every byte of an answer goes through, with the meter reading along."""

from __future__ import annotations

from farebox.accounting import Attempt, Ending
from farebox.config import Config
from farebox.meter import Meter, Reading
from farebox.proxy.call import Call, Clock
from farebox.proxy.settle import Settler
from farebox.server import ClientGone, Reply
from farebox.upstream import Answer, Head, UpstreamError


def make_meter(config: Config, attempt: Attempt, head: Head, *, withhold: bool) -> Meter:
    """The meter for one answer. A compressed one is read from a decoded copy, and nothing of it can be withheld."""
    return Meter(
        operation=attempt.target.operation,
        family=attempt.target.family,
        profile=config.providers[attempt.provider].profile,
        stream=attempt.stream,
        withhold_usage=withhold and not head.content_encoding,
        status=head.status,
        content_type=head.content_type,
        content_encoding=head.content_encoding,
        event_bytes_max=config.limits.event_bytes_max,
    )


class Relay:
    """Passes answers on, piece by piece as they arrive."""

    def __init__(self, settler: Settler, clock: Clock) -> None:
        self._settler = settler
        self._clock = clock

    async def run(self, call: Call, attempt: Attempt, answer: Answer, *, injected: bool, peeked: bytes) -> Reply:
        """Send `answer` to the client and settle its attempt.

        `injected`: farebox asked for the usage frame, so it is withheld. `peeked`: what was read of
        the body already.
        """
        head = answer.head
        meter = call.meter = make_meter(call.snapshot.config, attempt, head, withhold=injected)
        reply = call.reply = Reply(call.request)
        # A body that a frame may be taken out of has no length that could be announced.
        length = None if injected and head.status < 400 else head.length
        try:
            if length == 0 or head.status in (204, 304) or call.request.method == "HEAD":
                # The head is all there is: the row is written before it, as it is before any last byte.
                meter.eof()
                await self._settler.settle(call, meter.finish(), "whole")
            self._start(call, reply, head, length)
            ending, error = await self._pump(call, attempt, answer, meter, reply, peeked, length)
            reading = call.reading()
            if ending == "whole" and not head.framed and attempt.target.metered and _looks_cut(reading):
                ending, error = "broken", "unframed_end"
            await self._settler.settle(call, reading, ending, error=error)
        finally:
            answer.close()
        if ending == "whole" and not call.gone:
            reply.end()
        else:
            reply.cut()
        return reply

    def _start(self, call: Call, reply: Reply, head: Head, length: int | None) -> None:
        headers = list(head.headers)
        if call.snapshot.config.server.response_headers:
            headers.append((b"x-farebox-request-id", str(call.request_id).encode()))
        try:
            reply.start(head.status, head.reason, headers, length=length)
        except ClientGone:
            call.client_left()

    async def _pump(
        self,
        call: Call,
        attempt: Attempt,
        answer: Answer,
        meter: Meter,
        reply: Reply,
        peeked: bytes,
        length: int | None,
    ) -> tuple[Ending, str | None]:
        monotonic = self._clock.monotonic
        stall_s = call.snapshot.config.limits.client_stall_timeout_s
        while True:
            try:
                chunk = peeked or await answer.read()
            except UpstreamError as exc:
                self._write(call, reply, meter.eof())
                return "broken", exc.kind
            peeked = b""
            now = attempt.last_byte = monotonic()
            if not chunk:
                self._write(call, reply, meter.eof())
                return "whole", None
            attempt.answer_bytes += len(chunk)
            out = meter.feed(chunk, now)
            if call.attempt is not None and (meter.terminal or attempt.answer_bytes == length):
                # These are the last bytes that matter: a client that has them may stop reading,
                # and farebox may die, but the row is written.
                if not meter.terminal:
                    out += meter.eof()
                await self._settler.settle(call, meter.finish(), "whole")
            self._write(call, reply, out)
            if reply.congested and not call.gone:
                try:
                    await reply.drain(stall_s)
                except ClientGone:
                    call.client_left()

    def _write(self, call: Call, reply: Reply, data: bytes) -> None:
        if data and not call.gone:
            try:
                reply.write(data)
            except ClientGone:
                call.client_left()


def _looks_cut(reading: Reading | None) -> bool:
    """Whether a stream that could be read stopped before anything in it said that it was over."""
    if reading is None or not reading.stream or reading.unparsed_events:
        return False
    return not reading.complete and not reading.in_band_error
