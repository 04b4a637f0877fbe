"""From a provider's usage object to one scale: input with all caches in it, output with all reasoning in it.

Providers differ in what their two main numbers include. Wherever the numbers themselves decide
it, they are asked first: a `total_tokens` that exceeds input + output by exactly the reasoning
tokens says that reasoning was left out of the output, and so for audio and for caches. A `Profile`
decides only what remains open. Usage is a snapshot: `merge` keeps the last word of each field,
nothing here ever adds two objects of one generation.

What is not done here: finding the objects in streams and bodies (`meter`), and pricing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any, Literal, NamedTuple

import msgspec

from farebox.dialects.profile import Profile
from farebox.dialects.values import count, first, largest, mapping, money, number
from farebox.records import Operation, Usage

MEMBERS_MAX = 256
"""Members kept of one usage object; further ones are dropped. Real objects have about twenty."""
_DEPTH_MAX = 4
_DETAILS_IN = ("prompt_tokens_details", "prompt_token_details", "input_tokens_details", "input_token_details")
_DETAILS_OUT = (
    "completion_tokens_details",
    "completion_token_details",
    "output_tokens_details",
    "output_token_details",
)
_TICKS_PER_USD = 10**10


class Account(NamedTuple):
    """A usage object read. `unexplained`: what nothing accounts for in the provider's total (may be negative)."""

    usage: Usage
    unexplained: int | None = None


def merge(old: Mapping[str, Any], new: Mapping[str, Any], depth: int = _DEPTH_MAX) -> dict[str, Any]:
    """`old` overlaid by a later snapshot `new`, member by member.

    Null says nothing and replaces nothing. Nor does a zero replace a number above zero: counts of
    one generation only grow, so the zero is a skeleton (Ollama and Perplexity send such objects).
    """
    merged = dict(old)
    for name, value in new.items():
        before = merged.get(name)
        if value is None:
            merged.setdefault(name, None)
        elif isinstance(value, dict) and isinstance(before, dict) and depth:
            merged[name] = merge(before, value, depth - 1)
        elif number(value) == 0 and (number(before) or 0) > 0:
            continue
        elif name in merged or len(merged) < MEMBERS_MAX:
            merged[name] = value
    return merged


def is_skeleton(usage: Mapping[str, Any]) -> bool:
    """Whether an object reports nothing but zeros, as some providers attach to every chunk."""
    known = [
        value
        for name in ("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "total_tokens")
        if (value := count(usage.get(name))) is not None
    ]
    return bool(known) and not any(known)


def read_usage(raw: Mapping[str, Any], *, operation: Operation, profile: Profile, model: str | None) -> Account:
    """Put one merged usage object on the common scale; fields that were not reported stay None.

    The object's own members say which wire family wrote it, for some servers answer one family's
    path with another's object. `model` is the answer's model.
    """
    if isinstance(raw.get("tokens"), dict):
        raw = {**raw, **raw["tokens"]}  # Cohere's own: what was processed, beside `billed_units`
    messages = operation == "messages" and "input_tokens" in raw
    if not messages and ("prompt_tokens" in raw or "completion_tokens" in raw):
        account = _read_openai(raw, profile, model)
    elif operation == "messages" or "cache_read_input_tokens" in raw or "cache_creation_input_tokens" in raw:
        account = Account(_read_messages(raw))
    elif operation == "embeddings":
        account = Account(Usage(input_tokens=first(raw.get("input_tokens"), raw.get("total_tokens"))))
    else:
        account = _read_openai(raw, profile, model)
    usage = account.usage
    if operation == "embeddings" and usage.input_tokens is not None and usage.output_tokens is None:
        usage.output_tokens, usage.reasoning_tokens = 0, None  # the protocol has no output
    usage.units = _units(raw)
    usage.provider_cost_usd = _provider_cost(raw)
    return account


class _Counts(msgspec.Struct):
    """The numbers of an OpenAI-shaped object before it is settled what includes what."""

    input: int | None
    output: int | None
    total: int | None
    read: int | None
    write: int | None
    reasoning: int | None
    audio_in: int | None


def _read_openai(raw: Mapping[str, Any], profile: Profile, model: str | None) -> Account:
    """Chat, completions, responses and their look-alikes."""
    inside = _details(raw, _DETAILS_IN)
    outside = _details(raw, _DETAILS_OUT)
    creation = mapping(raw.get("cache_creation"))
    hit, miss = count(raw.get("prompt_cache_hit_tokens")), count(raw.get("prompt_cache_miss_tokens"))
    counts = _Counts(
        input=first(raw.get("prompt_tokens"), raw.get("input_tokens")),
        output=first(raw.get("completion_tokens"), raw.get("output_tokens")),
        total=count(raw.get("total_tokens")),
        read=largest(
            inside.get("cached_tokens"),
            raw.get("cached_tokens"),
            raw.get("num_cached_tokens"),
            raw.get("cache_read_input_tokens"),
            hit,
        ),
        write=largest(
            inside.get("cache_write_tokens"),
            inside.get("cache_creation_tokens"),
            inside.get("created_cache_tokens"),
            raw.get("created_cache_tokens"),
            raw.get("cache_creation_input_tokens"),
            raw.get("cache_created_input_tokens"),
            _sum(creation.values()),
        ),
        reasoning=largest(outside.get("reasoning_tokens"), outside.get("thinking_tokens"), raw.get("reasoning_tokens")),
        audio_in=largest(inside.get("audio_tokens"), raw.get("audio_prompt_tokens")),
    )
    if counts.input is None and hit is not None and miss is not None:
        counts.input = hit + miss
    unexplained = _settle(counts, raw, profile, model)
    lifetimes = mapping(inside.get("cache_write_tokens_details"))
    usage = Usage(
        input_tokens=counts.input,
        cache_read_tokens=counts.read,
        cache_write_tokens=counts.write,
        cache_write_1h_tokens=first(creation.get("ephemeral_1h_input_tokens"), lifetimes.get("ttl_12h_tokens")),
        output_tokens=counts.output,
        reasoning_tokens=counts.reasoning,
        audio_input_tokens=counts.audio_in,
        audio_output_tokens=count(outside.get("audio_tokens")),
        image_tokens=_sum((inside.get("image_tokens"), outside.get("image_tokens"), raw.get("image_tokens"))),
    )
    return Account(usage, unexplained)


def _settle(counts: _Counts, raw: Mapping[str, Any], profile: Profile, model: str | None) -> int | None:
    """Move into input and output what was reported beside them; the residual that stays unexplained."""
    residual = None
    if counts.input is not None and counts.output is not None and counts.total is not None:
        residual = counts.total - counts.input - counts.output
    if counts.reasoning and counts.output is not None and _adds_reasoning(raw, profile):
        counts.output += counts.reasoning
        residual = 0 if residual == counts.reasoning else residual
    elif residual is None:
        if counts.output is None and counts.input is not None and hides_thinking(profile, model):
            counts.output = None if counts.total is None else max(0, counts.total - counts.input)
        _settle_by_size(counts, profile)
    elif residual > 0:
        residual = _explain(counts, residual, profile)
        if residual and counts.output is not None and hides_thinking(profile, model):
            counts.output += residual
            residual = 0
    _drop_contradictions(counts)
    return residual


def _adds_reasoning(raw: Mapping[str, Any], profile: Profile) -> bool:
    """Whether reasoning stands beside the output whatever the total says, which may not include it either.

    Perplexity is known by its members even behind a plain profile.
    """
    is_search = "citation_tokens" in raw or "num_search_queries" in raw
    return profile.reasoning == "additive" or (profile.reasoning == "auto" and is_search)


Beside = Literal["reasoning", "audio_in", "read", "write"]


def _explain(counts: _Counts, residual: int, profile: Profile) -> int:
    """Account for a total above input + output by parts reported beside them; 0 if they fit exactly."""
    names: list[Beside] = ["audio_in", "read", "write"]
    if profile.reasoning != "included":
        names.insert(0, "reasoning")
    parts = [(name, value) for name in names if (value := getattr(counts, name))]
    for size in range(1, len(parts) + 1):
        for chosen in combinations(parts, size):
            if sum(value for _, value in chosen) == residual:
                _move(counts, chosen)
                return 0
    return residual


def _move(counts: _Counts, chosen: Iterable[tuple[Beside, int]]) -> None:
    for name, value in chosen:
        if name == "reasoning":
            counts.output = (counts.output or 0) + value
        else:
            counts.input = (counts.input or 0) + value


def _settle_by_size(counts: _Counts, profile: Profile) -> None:
    """Without a total to ask: a part larger than the whole cannot be inside it."""
    if counts.output is not None and counts.reasoning and profile.reasoning == "auto":
        counts.output += counts.reasoning if counts.reasoning > counts.output else 0
    cached = (counts.read or 0) + (counts.write or 0)
    if counts.input is not None and cached > counts.input:
        counts.input += cached


def _drop_contradictions(counts: _Counts) -> None:
    """Keep the buckets disjoint where the total vouches for input and output but a part exceeds its whole.

    Grok on Azure reports more cached tokens than prompt tokens, with a total that leaves no room
    for them. What such a number means is unknown, so it is not reported: the input is then priced
    as uncached, the higher plausible rate. The raw object keeps it.
    """
    if counts.input is not None and (counts.read or 0) + (counts.write or 0) > counts.input:
        counts.read = counts.read if (counts.read or 0) == 0 else None
        counts.write = counts.write if (counts.write or 0) == 0 else None
    if counts.output is not None and counts.reasoning is not None:
        counts.reasoning = min(counts.reasoning, counts.output)


def _read_messages(raw: Mapping[str, Any]) -> Usage:
    """Anthropic Messages: three disjoint input counts, thinking inside the output.

    `iterations`, where present, stays in the raw object: its entries may run on other models.
    """
    creation = mapping(raw.get("cache_creation"))
    uncached = count(raw.get("input_tokens"))
    read = count(raw.get("cache_read_input_tokens"))
    write = first(raw.get("cache_creation_input_tokens"), _sum(creation.values()))
    return Usage(
        input_tokens=None if uncached is None else uncached + (read or 0) + (write or 0),
        cache_read_tokens=read,
        cache_write_tokens=write,
        cache_write_1h_tokens=count(creation.get("ephemeral_1h_input_tokens")),
        output_tokens=count(raw.get("output_tokens")),
        reasoning_tokens=first(
            mapping(raw.get("output_tokens_details")).get("thinking_tokens"),
            mapping(raw.get("output_tokens_details")).get("reasoning_tokens"),
        ),
    )


def _units(raw: Mapping[str, Any]) -> dict[str, int | float]:
    """What is billed beside tokens, where the usage object says so; zeros are left out."""
    tools = mapping(raw.get("server_tool_use"))
    routed = mapping(raw.get("server_tool_use_details"))
    hosted = mapping(raw.get("server_side_tool_usage_details"))
    units = {
        "web_searches": largest(
            tools.get("web_search_requests"),
            routed.get("web_search_requests"),
            hosted.get("web_search_calls"),
            raw.get("num_search_queries"),
        ),
        "x_searches": count(hosted.get("x_search_calls")),
        "sources": count(raw.get("num_sources_used")),
        "citation_tokens": count(raw.get("citation_tokens")),
        "seconds": count(raw.get("prompt_audio_seconds")),
    }
    return {name: value for name, value in units.items() if value}


def _provider_cost(raw: Mapping[str, Any]) -> Any:
    """The provider's own figure in US dollars as an exact Decimal, or None.

    Ticks and `cost` objects of zero are placeholders (Grok on Azure; Perplexity until the last
    chunk); a plain `cost` of zero is a price: OpenRouter has free models.
    """
    ticks = number(raw.get("cost_in_usd_ticks"))
    if ticks and (usd := money(ticks / _TICKS_PER_USD)) is not None:
        return usd
    cost = raw.get("cost")
    if isinstance(cost, dict):
        return money(cost.get("total_cost")) or None
    amount = money(cost)
    return money(raw.get("estimated_cost")) if amount is None else amount


def _details(raw: Mapping[str, Any], names: tuple[str, ...]) -> Mapping[str, Any]:
    for name in names:
        details = raw.get(name)
        if isinstance(details, dict):
            return details
    return {}


def _sum(values: Iterable[Any]) -> int | None:
    """The sum of those values that are counts; None if none is."""
    counted = [value for item in values if (value := count(item)) is not None]
    return sum(counted) if counted else None


def hides_thinking(profile: Profile, model: str | None) -> bool:
    """Google's compatible endpoint leaves thinking out of the output, whoever stands in front of it."""
    return profile.hides_thinking or (model is not None and model.rpartition("/")[2].startswith("gemini"))
