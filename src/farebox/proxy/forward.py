"""Providers in turn: send the request, fall back where that is safe, hand the answer to the relay.

Another provider is tried only before the client has a byte, and only when the request provably
did not arrive, or the provider said it is not the time (429, 502, 503). After a timeout the first
provider may still bill, so that takes the route's `retry_sent`. Every attempt is a row.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING
from uuid import UUID

import structlog

from farebox import rows, splice
from farebox.accounting import Attempt
from farebox.config import Provider
from farebox.errors import BadRequest, FareboxError, Unavailable, UpstreamTimeout, UpstreamUnreachable
from farebox.ids import Ids
from farebox.kinds import kind_of
from farebox.proxy.call import Call, Clock
from farebox.proxy.relay import Relay, make_meter
from farebox.proxy.routes import route_of
from farebox.proxy.settle import Settler
from farebox.proxy.whole import Whole
from farebox.server import BROKEN_OFF, ClientGone, Reply, Upload
from farebox.upstream import Answer, Upstream, UpstreamError

if TYPE_CHECKING:
    from farebox.proxy.guard import Guard

Body = bytes | AsyncIterator[bytes] | None

_FALLBACK_STATUSES = frozenset((429, 502, 503))
_LEARNED_MAX = 4096
"""(provider, model) pairs remembered as refusing stream_options; past that the oldest is learnt again."""
_PEEK_BYTES = 64 * 1024
_PEEK_S = 5.0
"""How much of an error that may not be passed on is read, and for how long."""


class Forwarder:
    """Carries one call to the providers its route names."""

    def __init__(
        self,
        *,
        ids: Ids,
        begin: Callable[[UUID, bytes], None],
        settler: Settler,
        relay: Relay,
        whole: Whole,
        clock: Clock,
        guard: Guard | None = None,
    ) -> None:
        self._guard = guard
        self._ids = ids
        self._begin = begin
        self._settler = settler
        self._relay = relay
        self._whole = whole
        self._clock = clock
        self._learned: OrderedDict[tuple[str, str | None], None] = OrderedDict()

    async def run(self, call: Call) -> Reply:
        """Answer `call` from the first provider that will. Raises `Refusal` when none does."""
        route = route_of(call)
        failure: UpstreamError | None = None
        waiting = list(route.providers)
        number = 0
        plain = False
        while waiting:
            if call.gone:
                raise ClientGone  # a further attempt would be for nobody
            number += 1
            provider = waiting[0]
            attempt = self._attempt(call, provider, number)
            answer = await self._send(call, attempt, provider, plain=plain)
            plain = False
            if isinstance(answer, UpstreamError):
                failure = answer
                if failure.sent and not (failure.timeout and route.retry_sent and _resendable(call)):
                    break
                waiting.pop(0)
                continue
            if (reply := self._whole.pass_on(call, attempt, provider, answer)) is not None:
                return reply
            status = answer.head.status
            if len(waiting) > 1 and status in _FALLBACK_STATUSES and _resendable(call):
                await self._abandon(call, attempt, answer, await _peek(answer))
                waiting.pop(0)
                continue
            peeked = b""
            if call.injected and provider.stream_options == "learn" and status in (400, 422):
                peeked = await _peek(answer)
                if plain := b"stream_options" in peeked or b"include_usage" in peeked:
                    self._learn(provider, attempt.model)
                    await self._abandon(call, attempt, answer, peeked)
                    continue
            return await self._relay.run(call, attempt, answer, injected=call.injected, peeked=peeked)
        if failure is not None and failure.timeout:
            raise UpstreamTimeout(f"The provider did not answer in time ({failure.kind}).")
        raise UpstreamUnreachable(f"No provider could be reached ({failure.kind if failure else 'none'}).")

    async def _send(self, call: Call, attempt: Attempt, provider: Provider, *, plain: bool) -> Answer | UpstreamError:
        """Send the request to one provider; the attempt is in the journal before its first byte goes up.

        So is what budgets hold for it. Raises `Refusal` where they have no room, or the journal has none. A failure
        that it returns is settled.
        """
        guard = self._guard
        call.ticket = None
        if guard is not None and (call.applied or call.snapshot.config.metering.unpriced == "refuse"):
            asked = guard.admit(call, attempt, provider)
            if asked is not None:
                await asked
        ticket = call.ticket
        try:
            if call.gone:
                raise ClientGone  # it left while its budgets were asked
            upstream = call.snapshot.upstreams[provider.name]
            body = call.body if ticket is None or ticket.body is None else ticket.body
            call.injected = False
            if attempt.kind.stream and not plain:
                body = self._asking(call, provider, body)
            start = self._start(call, upstream, body is not call.body)
            self._journal(call, attempt)
        except BaseException:
            if guard is not None and ticket is not None:
                guard.release(ticket)
            raise
        call.attempt = attempt
        attempt.sent = self._clock.monotonic()
        try:
            answer = upstream.begin(call.head.method, start, body) if isinstance(body, bytes) else None
            if answer is None:
                length = call.request.content_length if isinstance(body, Upload) else None
                answer = await upstream.send(call.head.method, start, body, length=length)
            elif not answer.begun:
                await answer.started()
        except UpstreamError as failure:
            if isinstance(body, Upload) and body.broken:
                await self._settler.settle(call, None, "client", error="broken_request")
                raise body.refusal or BadRequest(BROKEN_OFF) from None
            await self._settler.settle(call, None, "broken", error=failure.kind, unsent=not failure.sent)
            return failure
        attempt.status = answer.head.status
        attempt.upstream_request_id = answer.head.request_id
        return answer

    def _asking(self, call: Call, provider: Provider, body: Body) -> Body:
        """The body of a stream's request as it goes up, with farebox's own ask for usage in it where it can be.

        `call.injected` says whether it is.
        """
        facts = call.facts
        if (
            facts is None
            or facts.include_usage
            or call.target.operation not in ("chat", "completions")
            or provider.stream_options == "skip"
            or (provider.base_url, facts.model) in self._learned
        ):
            return body
        readable = call.decoded if body is call.body else body
        assert isinstance(readable, bytes)
        spliced = splice.include_usage(readable, facts)
        if spliced is None:
            return body
        call.injected = True
        return spliced

    def _start(self, call: Call, upstream: Upstream, rewritten: bool) -> bytes:
        """The head that goes up, without its body's framing. The next call with the same head sends the same."""
        head = call.head
        # What may have to be cut has to be readable: a terminal can't be put into a compressed stream.
        identity = call.injected or (call.ticket is not None and call.ticket.pace is not None)
        key = (upstream, identity, rewritten)
        start: bytes | None = head.memo.get(key)
        if start is None:
            fields = upstream.fields(
                head.raw,
                credentials=call.snapshot.config.auth.mode == "passthrough",
                identity=identity,
                # What was spliced or clamped is a decoded body.
                without=b"content-encoding" if rewritten else b"",
            )
            url = upstream.url(call.target.suffix, versioned=call.target.versioned)
            start = head.memo[key] = upstream.start(head.method, url, fields)
        return start

    def _attempt(self, call: Call, provider: Provider, number: int) -> Attempt:
        facts, identity = call.facts, call.identity
        first = number == 1
        started_at = call.received_at if first else self._clock.now()
        received = call.received if first else self._clock.monotonic()
        return Attempt(
            # The first attempt carries the request's id: without a fallback the two are the same.
            call.request_id if first else self._ids.mint(started_at.timestamp()),
            call.request_id,
            number,
            kind_of(call.head, call.caller, provider, facts),
            started_at,
            received,
            received,
            len(call.decoded),
            identity.session,
            identity.end_user,
        )

    def _journal(self, call: Call, attempt: Attempt) -> None:
        ticket = call.ticket
        facts = ticket.facts if ticket is not None else rows.begun(attempt)
        try:
            self._begin(attempt.id, facts)
        except FareboxError as exc:
            if ticket is not None or call.snapshot.config.metering.on_ledger_failure == "refuse":
                raise Unavailable(
                    "farebox can't write its ledger now, so it takes no calls.", headers={"retry-after": "5"}
                ) from exc

    async def _abandon(self, call: Call, attempt: Attempt, answer: Answer, peeked: bytes) -> None:
        """Settle an attempt whose answer the client will not see: another attempt follows."""
        meter = make_meter(call.snapshot.config, attempt, answer.head, withhold=False)
        meter.feed(peeked, self._clock.monotonic())
        meter.eof()
        answer.close()
        await self._settler.settle(call, meter.finish(), "whole")

    def _learn(self, provider: Provider, model: str | None) -> None:
        # By its address: under the same name a later config may have another one.
        self._learned[provider.base_url, model] = None
        while len(self._learned) > _LEARNED_MAX:
            self._learned.popitem(last=False)
        structlog.get_logger().info(
            "this provider refuses stream_options: its streams are sent as they are, usage is estimated",
            provider=provider.name,
        )


def _resendable(call: Call) -> bool:
    """Whether the request can be sent again: a streamed upload is gone once it was read."""
    return call.body is None or isinstance(call.body, bytes)


async def _peek(answer: Answer) -> bytes:
    """The beginning of a body, as much as arrives within the bounds above."""
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_PEEK_S):
            while size < _PEEK_BYTES and (piece := await answer.read()):
                pieces.append(piece)
                size += len(piece)
    except (TimeoutError, UpstreamError):
        pass
    except BaseException:
        answer.close()
        raise
    return b"".join(pieces)
