"""Ordinary rows, in one step: those of attempts that go out, and of those that an ordinary answer ended.

What `accounting`, `holds`, `pricing` and `payload` find out of any attempt is said here of most, with less work:
what an attempt has in common with others of its kind was found out and written as JSON before (`kinds`). Where
anything is out of the ordinary the general way is taken, or None is the answer and the caller takes it; where
nothing is, both ways write the same bytes, to which a property test holds them.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from uuid import UUID

import msgspec

from farebox import payload
from farebox.accounting import BYTES_PER_TOKEN, Attempt, first_token_ms, provisional, spans_ms
from farebox.dialects.plain import PlainUsage
from farebox.jsontext import BACKSLASH
from farebox.kinds import NAME_CHARS_MAX, Ended, Kind
from farebox.meter import Reading
from farebox.payload import BYTES_MAX
from farebox.pricing import Pricer
from farebox.pricing.modifiers import is_plain
from farebox.records import FloatHold, Outcome, ToolCall, UsageSource

_encode = msgspec.json.Encoder().encode
_NOTHING = msgspec.Raw()


class _Begin(msgspec.Struct, omit_defaults=True, gc=False):
    """What is journalled of an attempt before its first byte goes up: of a `UsageEvent` what is known by then.

    Made by position. Of a hold the rest of the event too: it is charged at that after a crash.
    """

    id: UUID
    request_id: UUID
    attempt: int
    started_at: datetime
    end_user: str | None = None
    session: str | None = None
    provider: msgspec.Raw = _NOTHING
    """And all that `kinds.Common` has."""
    usage_source: UsageSource = "none"
    input_tokens: int | None = None
    finished_at: datetime | None = None
    outcome: Outcome | None = None
    output_tokens: int | None = None
    cost_usd: Decimal | None = None
    cost_source: str | None = None
    from_float: FloatHold | None = None
    budget_ids: tuple[str, ...] | None = None


def begun(attempt: Attempt) -> bytes:
    """What is journalled of an attempt before its first byte goes up, as `payload.encode` would say it.

    A crash makes the row of it that `provisional` is.
    """
    kind, hold = attempt.kind, attempt.hold
    if kind.begun is None:
        return payload.encode(provisional(attempt))
    source: UsageSource = "none"
    read: int | None = None
    if kind.estimated:
        source, read = "estimate", -(-attempt.request_bytes // BYTES_PER_TOKEN)
    made = _Begin(
        attempt.id,
        attempt.request_id,
        attempt.number,
        attempt.started_at,
        attempt.end_user,
        attempt.session,
        kind.begun,
        source,
        read,
    )
    if hold is not None:
        made.finished_at, made.outcome = attempt.started_at, "farebox_cut"
        made.from_float, made.budget_ids = attempt.drawn, hold.budget_ids
        if hold.usd or hold.tokens:
            made.input_tokens, made.output_tokens = max(read or 0, hold.input_tokens), hold.output_tokens
        if hold.usd:
            made.usage_source, made.cost_usd, made.cost_source = "hold", hold.usd, "hold"
    return _encoded(made) or payload.encode(provisional(attempt))


class Row(msgspec.Struct, omit_defaults=True, gc=False):
    """What a `UsageEvent` says of an attempt of a kind that an ordinary answer ended. Made by position."""

    id: UUID
    request_id: UUID
    attempt: int
    started_at: datetime
    finished_at: datetime
    end_user: str | None = None
    session: str | None = None
    provider: msgspec.Raw = _NOTHING
    """And all that `kinds.Common` has."""
    upstream_request_id: str | None = None
    input_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_write_1h_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    audio_input_tokens: int | None = None
    audio_output_tokens: int | None = None
    usage_raw: PlainUsage | None = None
    cost_usd: Decimal | None = None
    cost_source: msgspec.Raw | None = None
    """And the `price_id`."""
    from_float: FloatHold | None = None
    budget_ids: tuple[str, ...] | None = None
    duration_ms: float | None = None
    ttft_ms: float | None = None
    upstream_ms: float | None = None
    overhead_ms: float | None = None
    tool_calls_count: int = 0
    tool_calls: list[ToolCall] = []


Ordinary = tuple[Row, Kind, Ended, bytes]
"""An ordinary row, what it has in common with others, and its JSON."""


def ordinary(attempt: Attempt, reading: Reading, finished: float, pricer: Pricer) -> Ordinary | None:
    """The row of an attempt that was answered whole to the end, as `accounting.account` and `pricer` would have it.

    None where anything takes a closer look: an answer that is not `plain`, a price by more than the tokens of text,
    a hold that stands in for a price.
    """
    kind, usage, raw = attempt.kind, reading.usage, reading.usage_raw
    if not reading.plain or attempt.status != 200 or not kind.target.metered or not isinstance(raw, PlainUsage):
        return None
    ended = kind.ended
    if ended is None or ended.model != reading.model or ended.tier_told != reading.service_tier:
        ended = _ended(kind, reading)
    if ended is None or ended.row is None:
        return None
    standing = ended.standing
    if standing is None or standing.era is not pricer.era or not standing.since <= attempt.started_at < standing.until:
        standing = ended.standing = pricer.standing(
            kind.provider, ended.model, kind.model, ended.service_tier, attempt.started_at
        )
    hold = attempt.hold
    if standing.source is None:
        if hold is not None:
            return None
        usd = None
    elif (usd := standing.text_usd(usage)) is None or (raw.place is not None and not is_plain(raw)):
        return None
    whole_ms, upstream_ms, overhead_ms = spans_ms(attempt, finished)
    row = Row(
        attempt.id,
        attempt.request_id,
        attempt.number,
        attempt.started_at,
        attempt.started_at + timedelta(0, finished - attempt.received),
        attempt.end_user,
        attempt.session,
        ended.row,
        attempt.upstream_request_id,
        usage.input_tokens,
        usage.cache_read_tokens,
        usage.cache_write_tokens,
        usage.cache_write_1h_tokens,
        usage.output_tokens,
        usage.reasoning_tokens,
        usage.audio_input_tokens,
        usage.audio_output_tokens,
        raw,
        usd,
        standing.source,
        attempt.drawn,
        hold.budget_ids if hold is not None else None,
        whole_ms,
        None if reading.first_token_at is None else first_token_ms(attempt, reading.first_token_at),
        upstream_ms,
        overhead_ms,
    )
    if reading.tool_calls:
        row.tool_calls = reading.tool_calls
        row.tool_calls_count = sum([call.count for call in reading.tool_calls])
    json = _encoded(row)
    return None if json is None else (row, kind, ended, json)


def _ended(kind: Kind, reading: Reading) -> Ended | None:
    """What answers like this one have in common, remembered with the kind; None where their names are too long."""
    if len(reading.model or "") + len(reading.service_tier or "") > NAME_CHARS_MAX:
        return None
    ended = kind.ended = Ended(kind, reading.model, reading.service_tier)
    return ended


def _encoded(made: _Begin | Row) -> bytes | None:
    """As `payload.encode`; None where that must see to it. What is escaped may be what Postgres does not take."""
    try:
        json = _encode(made)
    except UnicodeEncodeError:
        return None
    return json if len(json) <= BYTES_MAX and BACKSLASH not in json else None
