"""From an entry to the rates that hold for one request: the period, the variant, the context tier.

Done once for each combination that occurs and then kept by the `Pricer`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Context, Decimal, DivisionByZero, Inexact, InvalidOperation, Overflow

from farebox.pricing.buckets import MILLION
from farebox.pricing.entry import Period, Price, Rates, Variant
from farebox.pricing.modifiers import OPTIONAL, Need

ENCLOSING: Mapping[str, str] = {
    "cache_read": "input",
    "cache_write": "input",
    "cache_write_1h": "cache_write",
    "input_audio": "input",
    "input_image": "input",
    "input_video": "input",
    "cache_read_image": "cache_read",
    "reasoning": "output",
    "output_audio": "output",
    "output_image": "output",
    "output_video": "output",
}
"""Where a bucket without a rate of its own is charged: in the one around it, as publishers list prices."""

EXACT = Context(prec=120, traps=[Inexact, InvalidOperation, DivisionByZero, Overflow])
"""Raises rather than rounds. Rates have at most 40 decimal places and counts 16 digits: nothing comes near."""

_ONE = Decimal(1)

Steps = tuple[tuple[int, Decimal], ...]
"""Rates of one bucket: (above how many input tokens, rate), from the highest down; -1 always holds."""


class Table:
    """Rates by bucket for one request, every fallback resolved. A bucket that is missing has no price.

    `whole` has them as integers, shifted by `places` digits: sums of products of integers are exact
    and cheap. Where it is `usual` (input and output have a rate, reasoning none of its own) the
    commonest stand in attributes, as integers too, and where it is `silent` (as of embeddings: output has no
    rate); it is `textual` if in either case nothing but tokens costs something.
    `unit` is the price in US dollars that the integer 1 stands for, by the token; `ten` stands for ten dollars.
    """

    __slots__ = (
        *("cache_read_n", "cache_write_n", "cache_write_1h_n", "cache_write_unknown_n", "input_n", "output_n"),
        *("places", "rates", "silent", "ten", "textual", "unit", "usual", "whole"),
    )

    def __init__(self, rates: dict[str, Decimal]) -> None:
        self.rates = rates
        self.places = max(0, *(-int(rate.as_tuple().exponent) for rate in rates.values())) if rates else 0
        self.whole = whole = {name: int(EXACT.scaleb(rate, self.places)) for name, rate in rates.items()}
        self.usual = "input" in whole and "output" in whole and whole["reasoning"] == whole["output"]
        self.unit = EXACT.scaleb(_ONE, -self.places - MILLION)
        self.ten = 10 ** (self.places + MILLION + 1)
        self.silent = "input" in whole and "output" not in whole and "reasoning" not in whole
        self.textual = (self.usual or self.silent) and "requests" not in rates
        if self.usual or self.silent:
            self.input_n, self.output_n = whole["input"], whole.get("output", 0)
            self.cache_read_n, self.cache_write_n = whole["cache_read"], whole["cache_write"]
            self.cache_write_1h_n, self.cache_write_unknown_n = whole["cache_write_1h"], whole["cache_write_unknown"]

    @property
    def input(self) -> Decimal | None:
        """US dollars per million input tokens, as the other three."""
        return self.rates.get("input")

    @property
    def output(self) -> Decimal | None:
        return self.rates.get("output")

    @property
    def cache_read(self) -> Decimal | None:
        return self.rates.get("cache_read")

    @property
    def cache_write(self) -> Decimal | None:
        return self.rates.get("cache_write")


class Tariff:
    """An entry's rates for one period and set of variants: a table for each context tier."""

    __slots__ = ("base", "steps")

    def __init__(self, buckets: Mapping[str, Steps]) -> None:
        starts = sorted({start for steps in buckets.values() for start, _ in steps if start >= 0})
        tables = [(start, Table(_resolved(_at(buckets, start)))) for start in (-1, *starts)]
        self.base = tables[0][1]
        self.steps = tuple(reversed(tables[1:]))

    def table(self, input_tokens: int) -> Table:
        """The table of a request with so many input tokens, caches included: a cliff for the whole of it."""
        for start, table in self.steps:
            if input_tokens > start:
                return table
        return self.base


def period(price: Price, at: datetime) -> int:
    """The index of the period that holds at `at` (UTC). The last of several; the first one where none does."""
    for index in range(len(price.periods) - 1, -1, -1):
        if _holds(price.periods[index], at):
            return index
    return 0


def variants(price: Price, needs: Iterable[Need], at: datetime) -> tuple[int, ...] | None:
    """The indices of the variants that serve `needs` at `at`; None where one of them has no price.

    Nor has a combination whose variants set rates for the same bucket: nobody says whether their
    discounts and premiums multiply.
    """
    chosen: list[int] = []
    taken: set[str] = set()
    for need in needs:
        found = next((found for name, value in need if (found := _served(price, name, value, at))), None)
        if found is None:
            if _is_optional(price, need):
                continue
            return None
        named = {bucket for index in found for bucket in price.variants[index].rates.usd}
        if named & taken:
            return None
        taken |= named
        chosen += found
    return tuple(chosen)


def tariff(price: Price, period_index: int, variant_indices: tuple[int, ...]) -> Tariff:
    """The rates of one period with those of the variants over them, the first variant that names a bucket winning."""
    buckets: dict[str, Steps] = {}
    for index in variant_indices:
        for name, steps in _buckets(price.variants[index].rates).items():
            buckets.setdefault(name, steps)
    for name, steps in _buckets(price.periods[period_index].rates if price.periods else Rates()).items():
        buckets.setdefault(name, steps)
    return Tariff(buckets)


def _is_optional(price: Price, need: Need) -> bool:
    names = {name for name, _ in need}
    return names <= OPTIONAL and not any(names & variant.when.keys() for variant in price.variants)


def _served(price: Price, name: str, value: str, at: datetime) -> list[int]:
    return [
        index for index, variant in enumerate(price.variants) if variant.when == {name: value} and _holds(variant, at)
    ]


def _holds(item: Period | Variant, at: datetime) -> bool:
    if item.since is not None and at.date() < item.since:
        return False
    weekdays: tuple[int, ...] = getattr(item, "weekdays", ())
    if weekdays and at.isoweekday() not in weekdays:
        return False
    if item.hours is None:
        return True
    start, end = item.hours
    now = f"{at.hour:02}:{at.minute:02}"
    return start <= now < end if start <= end else now >= start or now < end


def _buckets(rates: Rates) -> dict[str, Steps]:
    found: dict[str, list[tuple[int, Decimal]]] = {name: [(-1, rate)] for name, rate in rates.usd.items()}
    for step in rates.steps:
        for name, rate in step.usd.items():
            found.setdefault(name, []).append((step.above, rate))
    return {name: tuple(sorted(steps, reverse=True)) for name, steps in found.items()}


def _at(buckets: Mapping[str, Steps], start: int) -> dict[str, Decimal]:
    """Each bucket's rate once `start` is passed."""
    return {
        name: next(rate for above, rate in steps if above <= start)
        for name, steps in buckets.items()
        if any(above <= start for above, _ in steps)
    }


def _resolved(rates: dict[str, Decimal]) -> dict[str, Decimal]:
    """`rates` with every fallback: a bucket without a rate gets that of the enclosing one."""
    resolved = dict(rates)
    for name, outer in ENCLOSING.items():
        if name not in resolved and outer in resolved:
            resolved[name] = resolved[outer]
    if "cache_read_audio" not in resolved:
        # Cached audio without a rate is charged as audio; where audio has none either, as cached text.
        other = "input_audio" if "input_audio" in rates else "cache_read"
        if other in resolved:
            resolved["cache_read_audio"] = resolved[other]
    # The lifetime is not known: the dearer one.
    lifetimes = [resolved[name] for name in ("cache_write", "cache_write_1h") if name in resolved]
    if lifetimes:
        resolved.setdefault("cache_write_unknown", max(lifetimes))
    return resolved
