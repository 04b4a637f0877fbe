"""How a request was served, beside its tokens: the tier, the speed, the region, other models at work inside.

Read from the event and, only where its bytes mention one of the names, from the raw usage object.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from farebox.config.prices import ORDINARY_TIERS
from farebox.dialects.plain import PlainUsage
from farebox.dialects.raw import LEFT_OUT, lacks
from farebox.records import UsageEvent

STANDARD = ORDINARY_TIERS | {""}
"""Words that mean the ordinary tier; an answer may name none."""

Need = tuple[tuple[str, str], ...]
"""Alternatives, each the name and value of a variant: one of them must have a price."""

_TIERS: Mapping[str, Need] = {
    "batch": (("processing", "batch"), ("service_tier", "batch")),
    # OpenAI's two names of one tier.
    "priority": (("service_tier", "priority"), ("service_tier", "fast")),
    "fast": (("service_tier", "fast"), ("service_tier", "priority")),
}
OPTIONAL = frozenset({"search_context_size"})
"""What makes no difference to a price that has no variant of it at all."""
_SPEEDS = frozenset({"", "standard", "normal", "default"})
_PLACES = frozenset({"", "global", "not_available", "default", "unknown"})
_LEFT_OUT = LEFT_OUT.encode()
_READ = frozenset({"speed", "inference_geo", "iterations", "usage_breakdown", "tool_usage"})


class Part(NamedTuple):
    """A share of the answer that another model may have made, with its own usage object."""

    model: str | None
    usage: Mapping[str, Any]


class Served(NamedTuple):
    """What the raw usage object says beside counts."""

    needs: tuple[Need, ...] = ()
    parts: tuple[Part, ...] = ()
    """Not empty: they are the whole of the tokens, and the counts at the top are not to be priced."""
    unpriceable: bool = False
    """It used something whose price cannot be told from what is reported."""


PLAIN = Served()


def tier_needs(tier: str | None) -> tuple[Need, ...]:
    """What a tier asks of the price: nothing for the ordinary one."""
    word = (tier or "").lower()
    if word in STANDARD:
        return ()
    return (_TIERS.get(word, (("service_tier", word),)),)


def served(event: UsageEvent) -> Served:
    """What `usage_raw` says; `PLAIN` for nearly every call, at the cost of a few byte searches."""
    raw = event.usage_raw
    if raw is None:
        return PLAIN
    if isinstance(raw, PlainUsage):
        if is_plain(raw):
            return PLAIN
        raw = msgspec.to_builtins(raw)
    elif not isinstance(raw, dict):
        data = raw.encode() if isinstance(raw, str) else bytes(raw) if isinstance(raw, msgspec.Raw | bytes) else b""
        if not _names_any(data):
            return PLAIN
        try:
            raw = msgspec.json.decode(data)
        except (msgspec.MsgspecError, RecursionError):
            return PLAIN
        if not isinstance(raw, dict):
            return PLAIN
    needs = [*way_needs(raw)]
    if size := _word(raw.get("search_context_size")):
        needs.append((("search_context_size", size),))
    # Groq's compound systems: other models, and tools whose fees no member tells. And what was too large to keep.
    unpriceable = _draws(raw) or bool(raw.get("usage_breakdown")) or lacks(raw, _READ)
    return Served(tuple(needs), tuple(_parts(raw)), unpriceable)


def is_plain(raw: PlainUsage) -> bool:
    """Whether what a plain usage object says beside counts makes no difference to the price."""
    return raw.place is None or raw.place.lower() in _PLACES


def _names_any(data: bytes) -> bool:
    """Whether any member that is read here is named. Written out: a loop costs three times as much."""
    return (
        b"speed" in data
        or b"inference_geo" in data
        or b"iterations" in data
        or b"usage_breakdown" in data
        or b"image_gen" in data
        or b"search_context_size" in data
        or _LEFT_OUT in data
    )


def way_needs(said: Mapping[str, Any]) -> tuple[Need, ...]:
    """What `speed` and `inference_geo` ask of the price, in a usage object or a request; nothing if ordinary."""
    needs: list[Need] = []
    speed, place = _word(said.get("speed")), _word(said.get("inference_geo"))
    if speed not in _SPEEDS:
        needs.append((("speed", speed),))
    if place not in _PLACES:
        needs.append((("inference_geo", place),))
    return tuple(needs)


def _parts(raw: Mapping[str, Any]) -> Iterator[Part]:
    """Anthropic's `iterations`: entries that replace the totals in the bill."""
    iterations = raw.get("iterations")
    for entry in iterations if isinstance(iterations, list) else ():
        if isinstance(entry, dict):
            yield Part(_name(entry.get("model")), entry)


def _draws(raw: Mapping[str, Any]) -> bool:
    """Whether a hosted tool made images: tokens of an image model that the usage does not name."""
    tools = raw.get("tool_usage")
    drawn = tools.get("image_gen") if isinstance(tools, dict) else None
    return isinstance(drawn, dict) and any(isinstance(count, int) and count > 0 for count in drawn.values())


def _word(value: Any) -> str:
    return value.lower() if isinstance(value, str) else ""


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
