"""How many of an event's image tokens are input: the event has their sum, the usage object may tell them apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from farebox.records import UsageEvent

_IN = ("prompt_tokens_details", "input_tokens_details", "input_token_details")
_OUT = ("completion_tokens_details", "output_tokens_details", "output_token_details")


def image_tokens(event: UsageEvent) -> Iterator[tuple[int, int]]:
    """(input, output) image tokens as they may be split: one pair if the usage object tells, else both extremes."""
    total = event.image_tokens or 0
    raw = _object(event.usage_raw)
    inside, outside = _count(raw, _IN), _count(raw, _OUT)
    if inside + outside == total:
        yield inside, outside
        return
    yield total, 0
    yield 0, total


def _count(raw: Mapping[str, Any], names: tuple[str, ...]) -> int:
    for name in names:
        details = raw.get(name)
        count = details.get("image_tokens") if isinstance(details, dict) else None
        if isinstance(count, int) and count > 0:
            return count
    return 0


def _object(raw: Any) -> Mapping[str, Any]:
    if isinstance(raw, msgspec.Raw | bytes | str):
        try:
            raw = msgspec.json.decode(raw)
        except (msgspec.MsgspecError, RecursionError):
            return {}
    return raw if isinstance(raw, dict) else {}
