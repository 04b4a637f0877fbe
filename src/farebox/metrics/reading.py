"""What an event says to the metrics: plain functions from a `UsageEvent` to words and amounts."""

from __future__ import annotations

from decimal import Decimal

from farebox.records import UsageEvent
from farebox.rows import Row

_COUNT_MAX = 2**63 - 1
"""A count that the store's column can't hold is NULL in the row, so it is nothing here."""

_KINDS = {
    "connect": "connect",
    "connect_timeout": "connect",
    "dns": "connect",
    "tls": "connect",
    "proxy": "connect",
    "response_timeout": "timeout",
    "idle_timeout": "timeout",
    "farebox_fault": "farebox",
}


def token_counts(event: UsageEvent | Row) -> tuple[int, int, int, int, int]:
    """Tokens in disjoint types: (input, cache_read, cache_write, output, reasoning). They sum to `total_tokens`.

    A part that is said to be larger than its whole counts as far as the whole goes: reads before writes.
    """
    total_in, total_out = event.input_tokens or 0, event.output_tokens or 0
    if not (0 <= total_in <= _COUNT_MAX and 0 <= total_out <= _COUNT_MAX):
        total_in, total_out = _count(total_in), _count(total_out)
    if not (event.cache_read_tokens or event.cache_write_tokens or event.reasoning_tokens):
        return total_in, 0, 0, total_out, 0  # most; the rest takes three times as long
    read = min(_count(event.cache_read_tokens), total_in)
    write = min(_count(event.cache_write_tokens), total_in - read)
    reasoning = min(_count(event.reasoning_tokens), total_out)
    return total_in - read - write, read, write, total_out - reasoning, reasoning


def error_kind(event: UsageEvent) -> str | None:
    """Which of `families.ERROR_KINDS` a provider failed with; None when it did not fail.

    4xx, 429, 5xx    the answer's status
    connect          no connection: refused, unreachable, no such name, TLS, a proxy that would not
    timeout          no answer, or no further byte of one, in time
    broken           what came was no answer, or the connection was lost before one
    cut              a 2xx answer that ended early
    in_band          an error inside a 2xx answer
    farebox          a fault of farebox's own ended the attempt
    """
    if event.outcome not in ("upstream_error", "upstream_cut"):
        return None
    if event.error_type == "connection" and event.error_code in _KINDS:
        return _KINDS[event.error_code]
    if event.outcome == "upstream_cut":
        return "cut"
    if event.status is None:
        return "broken"
    if event.status < 400:
        return "in_band"
    if event.status == 429:
        return "429"
    return "4xx" if event.status < 500 else "5xx"


def answered(event: UsageEvent) -> bool:
    """Whether the provider took the request: what its client named (a model, say) then exists."""
    return event.status is not None and event.status < 400


def seconds_per_token(event: UsageEvent) -> float | None:
    """Seconds for each output token after the first, of a stream that was complete."""
    if not event.stream or event.outcome != "complete":
        return None
    return pace(event.output_tokens, event.duration_ms, event.ttft_ms)


def pace(output_tokens: int | None, duration_ms: float | None, ttft_ms: float | None) -> float | None:
    """Seconds for each token after the first; None where that can't be said."""
    if ttft_ms is None or duration_ms is None:
        return None
    further = _count(output_tokens) - 1
    return max(0.0, duration_ms - ttft_ms) / 1000 / further if further > 0 else None


def drift(event: UsageEvent) -> Decimal | None:
    """The cost by farebox's prices less the provider's own figure, where both are known."""
    if event.cost_source != "prices" or event.cost_usd is None or event.provider_cost_usd is None:
        return None
    return event.cost_usd - event.provider_cost_usd


def _count(value: int | None) -> int:
    return value if value is not None and 0 <= value <= _COUNT_MAX else 0
