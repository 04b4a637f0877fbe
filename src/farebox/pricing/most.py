"""The most that a call within a bound can cost: every way in which it may be served, the dearest of them.

A call of text can come to be charged as plain input, cache reads or cache writes of any lifetime, and
its output as text, reasoning or images (some chat models draw unasked). Audio needs to be asked for,
which a request with a bound does not. Longer inputs may be cheaper or dearer than short ones, so
each context tier within the bound is looked at.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal

from farebox.pricing import tables
from farebox.pricing.amounts import tidy
from farebox.pricing.buckets import MILLION, PER
from farebox.pricing.entry import Price
from farebox.pricing.modifiers import STANDARD, Need, tier_needs, way_needs
from farebox.pricing.tables import EXACT, Table, Tariff

_READ = ("input", "cache_read", "cache_write", "cache_write_1h", "cache_write_unknown")
_WRITTEN = ("output", "reasoning", "output_image")
_UNSAID = frozenset({"", "auto"})
"""Tiers that leave it to the provider, or to a setting of the account."""
_ONLY_STANDARD = "standard_only"
"""Anthropic's word for the ordinary tier in a request; an answer says `standard`."""

Way = tuple[int, ...]
"""Indices of the variants of an entry that hold together; empty: the ordinary rates."""


def needs_of(tier: str | None, served: tuple[tuple[str, str], ...]) -> tuple[Need, ...]:
    """What a request asks of a price: its tier, and its speed and region by name."""
    word = (tier or "").lower()
    return (() if word == _ONLY_STANDARD else tier_needs(word)) + way_needs(dict(served))


def ways(
    price: Price, tier: str | None, served: tuple[tuple[str, str], ...], at: datetime, *, dearest: bool
) -> set[Way]:
    """The ways in which a request may be served; empty where what it asks for has no price.

    The way it asks for. With `dearest` also what the provider may choose instead: the ordinary tier, where another
    is full; any tier, where the request leaves it open or to a setting of the account; any region, which is such a
    setting too.
    """
    needs = needs_of(tier, served)
    asked = tables.variants(price, needs, at)
    if asked is None:
        return set()
    if not dearest:
        return {asked}
    named = {name for need in needs for name, _ in need}
    free = {"inference_geo"} - named | ({"service_tier"} if (tier or "").lower() in _UNSAID else set())
    items = {item for variant in price.variants for item in variant.when.items()}
    chosen = [(item,) for item in items if item[0] in free and item[1] not in STANDARD]
    bases = dict.fromkeys((needs, needs_of(None, served)))
    others = [*bases, *((*base, need) for base in bases for need in chosen)]
    found = (tables.variants(price, other, at) for other in others)
    return {asked, *(way for way in found if way is not None)}


def most_usd(tariffs: Iterable[Tariff], input_tokens: int, output_tokens: int) -> Decimal | None:
    """The most that so many tokens or fewer cost by any of `tariffs`; None where there is none or a rate is missing."""
    most: Decimal | None = None
    for tariff in tariffs:
        amount = _tariff_usd(tariff, input_tokens, output_tokens)
        if amount is None:
            return None
        most = amount if most is None else max(most, amount)
    return most


def _tariff_usd(tariff: Tariff, input_tokens: int, output_tokens: int) -> Decimal | None:
    most: Decimal | None = None
    for table in (tariff.base, *(table for start, table in tariff.steps if start < input_tokens)):
        amount = _table_usd(table, input_tokens, output_tokens)
        if amount is None:
            return None
        most = amount if most is None else max(most, amount)
    return most


def _table_usd(table: Table, input_tokens: int, output_tokens: int) -> Decimal | None:
    whole = table.whole
    if not whole or (input_tokens and "input" not in whole) or (output_tokens and "output" not in whole):
        return None
    read = max((whole[name] for name in _READ if name in whole), default=0)
    written = max((whole[name] for name in _WRITTEN if name in whole), default=0)
    usd = EXACT.scaleb(Decimal(read * input_tokens + written * output_tokens), -table.places - MILLION)
    request = table.rates.get("requests")
    return tidy(usd if request is None else EXACT.add(usd, EXACT.scaleb(request, -PER["requests"])))
