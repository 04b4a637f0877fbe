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
from typing import NamedTuple

from farebox.pricing import tables
from farebox.pricing.amounts import tidy
from farebox.pricing.buckets import PER
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


class _Line(NamedTuple):
    """One table, as far as text is concerned: whole numbers per token."""

    start: int
    """Counts for inputs above it; -1: for any."""
    known: bool
    """False: nothing has a rate there, not even a call without a token."""
    read: int | None
    """None: it has no rate for that."""
    written: int | None
    table: Table
    """What such a number is worth (`unit`), and how many make ten dollars."""
    request: Decimal | None
    """US dollars for the request itself."""


class Most:
    """The dearest of some tariffs, worked out for any number of tokens: what is the same for each call, taken once."""

    __slots__ = ("_lines",)

    def __init__(self, tariffs: Iterable[Tariff]) -> None:
        self._lines = tuple([_line(start, table) for one in tariffs for start, table in ((-1, one.base), *one.steps)])

    def usd(self, input_tokens: int, output_tokens: int) -> Decimal | None:
        """The most that so many tokens or fewer cost; None where there is no tariff or a rate is missing."""
        most: Decimal | None = None
        for start, known, read, written, table, request in self._lines:
            if start >= input_tokens:
                continue
            if not known or (read is None and input_tokens) or (written is None and output_tokens):
                return None
            total = (read or 0) * input_tokens + (written or 0) * output_tokens
            usd = EXACT.multiply(table.unit, total)
            if request is not None:
                usd = tidy(EXACT.add(usd, request))
            elif total < table.ten:
                usd = EXACT.normalize(usd)  # all that `tidy` does to less than ten dollars, for a third of the time
            else:
                usd = tidy(usd)
            if most is None or usd > most:
                most = usd
        return most


def _line(start: int, table: Table) -> _Line:
    whole, request = table.whole, table.rates.get("requests")
    return _Line(
        start,
        bool(whole),
        max(whole[name] for name in _READ if name in whole) if "input" in whole else None,
        max(whole[name] for name in _WRITTEN if name in whole) if "output" in whole else None,
        table,
        None if request is None else EXACT.scaleb(request, -PER["requests"]),
    )
