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
from farebox.meter import Reading
from farebox.paths import Target
from farebox.records import Begun, BegunHeld, Caller, FloatHold, Outcome, Usage, UsageEvent, UsageSource

BYTES_PER_TOKEN = 4
"""The roughest estimate there is, for a `begin` that no `end` follows: tokens are not counted then."""

_ORDINARY_TIERS = frozenset({None, "", "auto", "default", "standard", "standard_only", "on_demand"})

Ending = Literal["whole", "broken", "client", "shutdown", "budget"]
"""How the relay of an attempt stopped: the provider ended its body properly; it broke off or timed
out; the client left and farebox stopped reading; farebox itself shut down; a budget was used up."""


class Attempt(msgspec.Struct, eq=False):
    """One request sent to one provider, as far as it has got. Times are monotonic seconds."""

    id: UUID
    request_id: UUID
    number: int
    caller: Caller
    target: Target
    provider: str
    dialect: str
    model: str | None
    stream: bool
    session: str | None
    end_user: str | None
    tags: dict[str, str]
    request_bytes: int
    started_at: datetime
    received: float
    sent: float
    service_tier: str | None = None
    """The tier the request asks for."""
    status: int | None = None
    upstream_request_id: str | None = None
    last_byte: float | None = None
    answer_bytes: int = 0
    hold: Hold | None = None
    """What budgets hold for it; None where none counts it. Replaced whole when it grows."""
    drawn: FloatHold | None = None
    """What it holds out of a float; None where it was reserved on its own."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """farebox's own count, for what the provider did not say."""

    input_tokens: int | None = None
    output_tokens: int | None = None


def begun(attempt: Attempt) -> Begun:
    """What is journalled of an attempt for which nothing is held, before its first byte goes up.

    A crash makes the row of it that `provisional` would be.
    """
    caller, target = attempt.caller, attempt.target
    estimated = _estimated(target)
    return Begun(
        attempt.id,
        attempt.request_id,
        attempt.number,
        attempt.started_at,
        attempt.provider,
        attempt.dialect,
        target.endpoint,
        target.operation,
        caller.key_id,
        caller.key_name,
        caller.team,
        caller.project,
        attempt.end_user,
        attempt.session,
        attempt.tags,
        attempt.model,
        _asked_tier(attempt),
        attempt.stream,
        "estimate" if estimated else "none",
        -(-attempt.request_bytes // BYTES_PER_TOKEN) if estimated else None,
    )


def begun_held(attempt: Attempt, hold: Hold) -> BegunHeld:
    """What is journalled of an attempt with a hold: the members of its `provisional` event, at half the cost."""
    caller, target = attempt.caller, attempt.target
    read: int | None = None
    written: int | None = None
    source: UsageSource = "none"
    if _estimated(target):
        source, read = "estimate", -(-attempt.request_bytes // BYTES_PER_TOKEN)
    usd = hold.usd if hold.usd else None
    if usd is not None or hold.input_tokens + hold.output_tokens:
        read, written = max(read or 0, hold.input_tokens), hold.output_tokens
    if usd is not None:
        source = "hold"
    return BegunHeld(
        attempt.id,
        attempt.request_id,
        attempt.number,
        attempt.started_at,
        attempt.provider,
        attempt.dialect,
        target.endpoint,
        target.operation,
        caller.key_id,
        caller.key_name,
        caller.team,
        caller.project,
        attempt.end_user,
        attempt.session,
        attempt.tags,
        attempt.model,
        _asked_tier(attempt),
        attempt.stream,
        source,
        read,
        attempt.started_at,
        "farebox_cut",
        written,
        usd,
        None if usd is None else "hold",
        attempt.drawn,
        list(hold.budget_ids),
    )


def provisional(attempt: Attempt) -> UsageEvent:
    """The event a crash would leave, with what is held for it."""
    event = _event(attempt, "farebox_cut", finished=attempt.received)
    if _estimated(attempt.target):
        event.usage_source = "estimate"
        event.input_tokens = math.ceil(attempt.request_bytes / BYTES_PER_TOKEN)
    if attempt.hold is not None:
        put_hold(event, attempt.hold)
    return event


def _estimated(target: Target) -> bool:
    """Whether a call of which nothing is known but its request used tokens, for all that is known."""
    return target.metered and target.operation != "moderations"


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
        event.ttft_ms = _ms(reading.first_token_at - attempt.received)


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
    caller, target = attempt.caller, attempt.target
    duration = finished - attempt.received
    event = UsageEvent(
        id=attempt.id,
        request_id=attempt.request_id,
        attempt=attempt.number,
        started_at=attempt.started_at,
        finished_at=attempt.started_at + timedelta(0, duration),
        key_id=caller.key_id,
        key_name=caller.key_name,
        team=caller.team,
        project=caller.project,
        end_user=attempt.end_user,
        session=attempt.session,
        tags=attempt.tags,
        provider=attempt.provider,
        dialect=attempt.dialect,
        endpoint=target.endpoint,
        operation=target.operation,
        requested_model=attempt.model,
        stream=attempt.stream,
        status=attempt.status,
        outcome=outcome,
        upstream_request_id=attempt.upstream_request_id,
        service_tier=_asked_tier(attempt),
        from_float=attempt.drawn,
    )
    if outcome != "farebox_cut" or duration > 0:
        event.duration_ms = _ms(duration)
        if attempt.last_byte is not None:
            upstream = attempt.last_byte - attempt.sent
            event.upstream_ms = _ms(upstream)
            event.overhead_ms = max(0.0, _ms(duration - upstream))
    return event


def _asked_tier(attempt: Attempt) -> str | None:
    """The tier that was asked for, where it is none of the ordinary ones: what holds until an answer names another.

    An `auto` that no answer explains says nothing, and stays out of the row.
    """
    tier = attempt.service_tier
    return None if tier in _ORDINARY_TIERS else tier


def _ms(seconds: float) -> float:
    """Milliseconds, to the microsecond."""
    return round(seconds * 1e6) / 1000
