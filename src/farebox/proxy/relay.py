"""Provider to client: the loop every byte of an answer goes through, with the meter reading along."""

from __future__ import annotations

from collections.abc import Callable

from farebox.accounting import Attempt, Ending
from farebox.config import Config
from farebox.meter import Meter, Reading
from farebox.proxy.call import Call, Clock
from farebox.proxy.lane import Lane
from farebox.proxy.settle import Settler
from farebox.proxy.whole import head_lines
from farebox.server import ClientGone, Reply
from farebox.upstream import Answer, Head, UpstreamError


def make_meter(
    config: Config, attempt: Attempt, head: Head, *, withhold: bool, cuttable: bool = False, choices: int = 1
) -> Meter:
    """The meter for one answer. A compressed one is read from a decoded copy, and nothing of it can be withheld.

    `cuttable`: a budget may have to end it before its time, which then has so many `choices`.
    """
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
        cuttable=cuttable,
        choices=choices,
    )


_CUT_BYTES = 64 * 1024
"""What may still come until an event ends, where a stream is to be cut; past it the connection is."""
_USAGE_IF_ASKED = frozenset(("chat", "completions"))
"""Where a stream tells its usage only to those who asked for it."""


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
        ticket = call.ticket
        meter = call.meter = make_meter(
            call.snapshot.config,
            attempt,
            head,
            withhold=injected,
            cuttable=ticket is not None and ticket.pace is not None,
            choices=ticket.choices if ticket is not None else 1,
        )
        if (claim := call.claim) is not None:
            claim.begin(attempt.provider, head, call.facts)
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
            if ending == "budget":
                answer.close()  # first of all: what it goes on to say would cost
                whole = await self._end_cut(call, meter, reply)
                return self._over(call, reply, whole=whole)
            if call.attempt is not None or not head.framed:  # else it is settled, and ended where it should
                reading = call.reading()
                if ending == "whole" and not head.framed and attempt.target.metered and _looks_cut(reading):
                    ending, error = "broken", "unframed_end"
                await self._settler.settle(call, reading, ending, error=error)
            if claim is not None:
                await claim.kept(meter)
        finally:
            answer.close()
            if claim is not None:
                claim.close(meter)  # also where the client has gone
        return self._over(call, reply, whole=ending == "whole")

    def _over(self, call: Call, reply: Reply, *, whole: bool) -> Reply:
        if whole and not call.gone:
            reply.end()
        else:
            reply.cut()
        return reply

    def _start(self, call: Call, reply: Reply, head: Head, length: int | None) -> None:
        try:
            reply.start(head.status, head.reason, head_lines(call, head), length=length)
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
        passing = _Passing(call, attempt, answer, meter, reply, self._clock.monotonic, self._settler, length)
        lane = passing.lane.take if passing.lane is not None else None
        stall_s = call.snapshot.config.limits.client_stall_timeout_s
        if not peeked and not answer.ready:
            passing.flush()
        try:
            waits = bool(peeked) and passing.take(peeked)
            while waits or not await answer.pipe(passing.take, lane):
                waits = False
                if passing.last:
                    await self._settle_last(call, meter, passing)
                if passing.pace_due and not await self._paced(call, meter, passing):
                    return "budget", None
                if reply.congested and not call.gone:
                    try:
                        await reply.drain(stall_s)
                    except ClientGone:
                        call.client_left()
        except UpstreamError as exc:
            passing.write(meter.eof())
            return "broken", exc.kind
        finally:
            passing.account()
        attempt.last_byte = self._clock.monotonic()
        passing.write(meter.eof())
        return "whole", None

    async def _settle_last(self, call: Call, meter: Meter, passing: _Passing) -> None:
        """Write the row, which takes waiting, and let the last bytes go."""
        await self._settler.settle(call, meter.finish(), "whole")
        if call.claim is not None:
            await call.claim.kept(meter)  # the client's next request may name what this one made
        passing.release()

    async def _paced(self, call: Call, meter: Meter, passing: _Passing) -> bool:
        """Hold more for what is still to come; False where the stream is to end here, for nothing more can be held."""
        pace = passing.pace
        assert pace is not None
        if not passing.cut_by and not await pace.keep_up(meter.output_bytes):
            passing.cut_by = passing.attempt.answer_bytes + _CUT_BYTES
        return not passing.cut_by or not _may_end(call, meter, passing.attempt.answer_bytes >= passing.cut_by)

    async def _end_cut(self, call: Call, meter: Meter, reply: Reply) -> bool:
        """Settle a stream whose budget is used up and end it as its dialect ends one at its limit; whether it could be.

        A compressed one can't be added to: it breaks off, for going on would spend what is not there.
        """
        used = await self._settler.settle(call, meter.finish(), "budget")
        asked = call.facts is not None and (call.facts.include_usage or call.target.operation not in _USAGE_IF_ASKED)
        terminal = meter.cut(used if asked else None)
        if terminal is None:
            return False
        if terminal and not call.gone:
            try:
                reply.write(terminal)
            except ClientGone:
                call.client_left()
        return True


class _Passing:
    """What happens to each piece, the moment it arrives: it is read by the meter and written to the client.

    `take` says True where more is to be done than can be done at once: the row, which takes waiting, is to be
    written before the `last` bytes go out, the hold is to be extended (`pace_due`), or the client does not keep up.
    """

    __slots__ = (
        "_call", "_claim", "_length", "_meter", "_monotonic", "_reply", "_settler",
        "attempt", "cut_by", "held", "lane", "last", "pace", "pace_due",
    )  # fmt: skip

    def __init__(
        self,
        call: Call,
        attempt: Attempt,
        answer: Answer,
        meter: Meter,
        reply: Reply,
        monotonic: Callable[[], float],
        settler: Settler,
        length: int | None,
    ) -> None:
        self._call = call
        self._settler = settler
        self._meter = meter
        self._reply = reply
        self._monotonic = monotonic
        self._length = length
        self._claim = call.claim if call.claim is not None and call.claim.reads else None
        self.attempt = attempt
        self.pace = call.ticket.pace if call.ticket is not None else None
        self.pace_due = self.last = False
        self.held = b""
        """The last bytes, until the row is written."""
        self.cut_by = 0
        """Bytes of the answer at which it is cut wherever it stands; 0 as long as nothing is to be cut."""
        self.lane: Lane | None = None
        """The short way for the ordinary piece; None where each has to be looked at for more than its usage."""
        if reply.chunked and self.pace is None and self._claim is None:
            self.lane = Lane(attempt, meter, reply, monotonic, answer.halt)

    def take(self, chunk: bytes) -> bool:
        """Pass a piece on; whether something is to be done before the next."""
        meter, attempt, call, lane = self._meter, self.attempt, self._call, self.lane
        if lane is not None:
            lane.account()
        now = attempt.last_byte = self._monotonic()
        attempt.answer_bytes += len(chunk)
        out = meter.feed_frame(chunk, now) if self.cut_by else meter.feed(chunk, now)
        if lane is not None:
            lane.expect(meter.expected)
        elif self._claim is not None:
            self._claim.feed(chunk, meter)
        self.pace_due = False
        unsettled = call.attempt is not None
        if unsettled and (meter.terminal or attempt.answer_bytes == self._length):
            # The last bytes that matter: a client that has them may stop reading, and farebox may die, but the row is
            # written.
            if not meter.terminal:
                out += meter.eof()
            if call.claim is not None or not self._settler.at_once(call, meter.finish(), "whole"):
                self.last, self.held = True, out
                return True
        if out and not call.gone:
            try:
                self._reply.write(out)
            except ClientGone:
                call.client_left()
        if self.pace is not None and unsettled and self.pace.due(meter.output_bytes) and meter.generating:
            self.pace_due = True
            return True
        return self._reply.congested and not call.gone

    def account(self) -> None:
        """Note what went the short way."""
        if self.lane is not None:
            self.lane.account()

    def release(self) -> None:
        """The row is written: the last bytes go out."""
        self.last, out, self.held = False, self.held, b""
        self.write(out)

    def write(self, data: bytes) -> None:
        """Write to the client, if it is still there."""
        if data and not self._call.gone:
            try:
                self._reply.write(data)
            except ClientGone:
                self._call.client_left()

    def flush(self) -> None:
        """Send the head although nothing of the body is there."""
        if not self._call.gone:
            try:
                self._reply.flush()
            except ClientGone:
                self._call.client_left()


def _may_end(call: Call, meter: Meter, late: bool) -> bool:
    """Whether a stream to be cut ends here: between two frames, or where waiting for that is of no use."""
    return late or call.gone or not meter.cuttable or meter.cut(None) is not None


def _looks_cut(reading: Reading | None) -> bool:
    """Whether a stream that could be read stopped before anything in it said that it was over."""
    if reading is None or not reading.stream or reading.unparsed_events:
        return False
    return not reading.complete and not reading.in_band_error
