"""What one attempt is written down as: facts in, one `UsageEvent` out. Plain functions, no clock, no I/O.

`proxy` gathers the facts while bytes pass; here they become the row. Two questions are answered:
how did it end (`outcome_of`), and how are its tokens known (`account`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal
from uuid import UUID

import msgspec

from farebox.holds import Hold, put_hold
from farebox.kinds import Kind
from farebox.meter import Reading
from farebox.paths import Target
from farebox.records import FloatHold, Outcome, Usage, UsageEvent, UsageSource

BYTES_PER_TOKEN = 4
"""The roughest estimate there is, for a `begin` that no `end` follows: tokens are not counted then."""

Ending = Literal["whole", "broken", "client", "shutdown", "budget"]
"""How the relay of an attempt stopped: the provider ended its body properly; it broke off or timed
out; the client left and farebox stopped reading; farebox itself shut down; a budget was used up."""


class Attempt(msgspec.Struct, eq=False, gc=False):
    """One request sent to one provider, as far as it has got. Times are monotonic seconds."""

    id: UUID
    request_id: UUID
    number: int
    kind: Kind
    started_at: datetime
    received: float
    sent: float
    request_bytes: int
    session: str | None = None
    end_user: str | None = None
    status: int | None = None
    upstream_request_id: str | None = None
    last_byte: float | None = None
    answer_bytes: int = 0
    hold: Hold | None = None
    """What budgets hold for it; None where none counts it. Replaced whole when it grows."""
    drawn: FloatHold | None = None
    """What it holds out of a float; None where it was reserved on its own."""

    @property
    def target(self) -> Target:
        return self.kind.target

    @property
    def provider(self) -> str:
        return self.kind.provider

    @property
    def model(self) -> str | None:
        """As the request names it."""
        return self.kind.model

    @property
    def stream(self) -> bool:
        """Whether the request asks for a stream."""
        return self.kind.stream

    @property
    def service_tier(self) -> str | None:
        """The tier the request asks for."""
        return self.kind.service_tier


@dataclass(frozen=True, slots=True)
class Estimate:
    """farebox's own count, for what the provider did not say."""

    input_tokens: int | None = None
    output_tokens: int | None = None


def provisional(attempt: Attempt) -> UsageEvent:
    """The event a crash would leave, with what is held for it."""
    event = _event(attempt, "farebox_cut", finished=attempt.received)
    if attempt.kind.estimated:
        event.usage_source = "estimate"
        event.input_tokens = -(-attempt.request_bytes // BYTES_PER_TOKEN)
    if attempt.hold is not None:
        put_hold(event, attempt.hold)
    return event


def outcome_of(attempt: Attempt, reading: Reading | None, ending: Ending, *, gone: bool) -> Outcome:
    """How an attempt ended.

    An error the provider reported outranks how the connection went; what farebox did itself
    outranks what it did to the bytes.
    """
    if attempt.status is None:
        if ending == "shutdown":
            return "farebox_cut"
        return "client_gone" if ending == "client" else "upstream_error"
    if attempt.status >= 400 or _failed_in_band(attempt, reading):
        return "upstream_error"
    if ending == "shutdown":
        return "farebox_cut"
    if ending == "budget":
        return "budget_cut"
    if gone or ending == "client":
        return "client_gone"
    if ending == "broken":
        return "upstream_cut"
    if reading is not None and attempt.target.metered and reading.stream and not reading.complete:
        return "upstream_cut"
    return "complete"


def needs_estimate(attempt: Attempt, reading: Reading | None) -> bool:
    """Whether tokens must be counted by farebox: something billable was, or may have been, used and not reported."""
    operation = attempt.target.operation
    if operation in ("other", "moderations"):
        return False
    if attempt.status is None or reading is None:
        return True
    if attempt.status >= 300:
        return False  # refused, or sent elsewhere: nothing was generated here
    if not input_told(reading):
        return True
    if operation == "embeddings":
        return False
    return reading.usage.output_tokens is None or reading.output_provisional or not reading.complete


def input_told(reading: Reading | None) -> bool:
    """Whether the provider reported the tokens of the input."""
    return reading is not None and reading.has_usage and reading.usage.input_tokens is not None


def by_size(attempt: Attempt, reading: Reading | None) -> Estimate:
    """A count that needs no tokenizer, for when there is no time to count."""
    output = reading.output_bytes_total if reading is not None else 0
    return Estimate(math.ceil(attempt.request_bytes / BYTES_PER_TOKEN), math.ceil(output / BYTES_PER_TOKEN))


def account(
    attempt: Attempt,
    reading: Reading | None,
    outcome: Outcome,
    estimate: Estimate | None,
    *,
    finished: float,
    error: str | None = None,
    unsent: bool = False,
) -> UsageEvent:
    """The row of an attempt that is over.

    `estimate` is farebox's count where `needs_estimate` asked for one; `error` the bounded kind of
    a failure that is not the provider's own; `unsent` says that provably nothing reached the provider.
    """
    event = _event(attempt, outcome, finished=finished)
    if error is not None:
        event.error_code = error
        event.error_type = "connection"
    if reading is not None:
        _copy(event, reading, attempt)
    event.usage_source = _fill(event, attempt, reading, estimate, unsent=unsent)
    if event.usage_source == "none" and attempt.target.metered:
        event.cost_usd = Decimal(0)
        event.cost_source = "none"
    return event


def _failed_in_band(attempt: Attempt, reading: Reading | None) -> bool:
    """An error inside a 2xx answer. What a stored job or response says of its own past is not one."""
    return reading is not None and reading.in_band_error and attempt.target.metered


def _fill(
    event: UsageEvent, attempt: Attempt, reading: Reading | None, estimate: Estimate | None, *, unsent: bool
) -> UsageSource:
    """Complete the token counts from `estimate` and say how they are known."""
    known_input = event.input_tokens is not None
    known_output = event.output_tokens is not None
    if unsent or estimate is None:
        return "provider" if known_input or known_output else "none"
    if not known_input:
        event.input_tokens = estimate.input_tokens
    if attempt.target.operation != "embeddings":
        seen = estimate.output_tokens or 0
        event.output_tokens = max(event.output_tokens or 0, seen)
    return "partial" if known_input or known_output else "estimate"


def _copy(event: UsageEvent, reading: Reading, attempt: Attempt) -> None:
    event.model = reading.model
    event.unparsed_events = reading.unparsed_events
    failed = (attempt.status or 0) >= 400 or _failed_in_band(attempt, reading)
    if failed and (reading.error_type is not None or reading.error_code is not None):
        event.error_type, event.error_code = reading.error_type, reading.error_code
    if not attempt.target.metered:
        return  # A stored response, batch or run tells its usage again to everyone who reads it.
    if reading.has_usage:
        _copy_usage(event, reading.usage)
        event.usage_raw = reading.usage_raw
    event.service_tier = reading.service_tier or event.service_tier
    if reading.tool_calls:
        event.tool_calls = reading.tool_calls
        event.tool_calls_count = sum([call.count for call in reading.tool_calls])
    if reading.first_token_at is not None:
        event.ttft_ms = first_token_ms(attempt, reading.first_token_at)


def _copy_usage(event: UsageEvent, usage: Usage) -> None:
    """Written out: a loop over the names costs twice as much."""
    event.input_tokens = usage.input_tokens
    event.cache_read_tokens = usage.cache_read_tokens
    event.cache_write_tokens = usage.cache_write_tokens
    event.cache_write_1h_tokens = usage.cache_write_1h_tokens
    event.output_tokens = usage.output_tokens
    event.reasoning_tokens = usage.reasoning_tokens
    event.audio_input_tokens = usage.audio_input_tokens
    event.audio_output_tokens = usage.audio_output_tokens
    event.image_tokens = usage.image_tokens
    event.units = usage.units
    event.provider_cost_usd = usage.provider_cost_usd


def _event(attempt: Attempt, outcome: Outcome, *, finished: float) -> UsageEvent:
    kind = attempt.kind
    caller, target = kind.caller, kind.target
    event = UsageEvent(
        id=attempt.id,
        request_id=attempt.request_id,
        attempt=attempt.number,
        started_at=attempt.started_at,
        finished_at=attempt.started_at + timedelta(0, finished - attempt.received),
        end_user=attempt.end_user,
        session=attempt.session,
        provider=kind.provider,
        dialect=kind.dialect,
        endpoint=target.endpoint,
        operation=target.operation,
        key_id=caller.key_id,
        key_name=caller.key_name,
        team=caller.team,
        project=caller.project,
        tags=kind.tags,
        requested_model=kind.model,
        service_tier=kind.asked_tier,
        stream=kind.stream,
        status=attempt.status,
        outcome=outcome,
        upstream_request_id=attempt.upstream_request_id,
        from_float=attempt.drawn,
    )
    if outcome != "farebox_cut" or finished > attempt.received:
        event.duration_ms, event.upstream_ms, event.overhead_ms = spans_ms(attempt, finished)
    return event


def spans_ms(attempt: Attempt, finished: float) -> tuple[float, float | None, float | None]:
    """How long an attempt took in all, at the provider, and in farebox: milliseconds, to the microsecond."""
    whole = round((finished - attempt.received) * 1e6)
    if attempt.last_byte is None:
        return whole / 1000, None, None
    upstream = round((attempt.last_byte - attempt.sent) * 1e6)
    return whole / 1000, upstream / 1000, (whole - upstream) / 1000 if whole > upstream else 0.0


def first_token_ms(attempt: Attempt, first_token_at: float) -> float:
    """From the request's arrival to the first token of its answer: milliseconds, to the microsecond."""
    return round((first_token_at - attempt.received) * 1e6) / 1000
