"""Prices: what holds for every usage and every price list."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from farebox.pricing import Match, Period, Price, PriceBook, Pricer, Rates, Step, Variant, shipped
from farebox.pricing.buckets import split
from farebox.pricing.tables import period, tariff
from farebox.records import Usage
from support.pricing import book, provider, used

fixed = settings(derandomize=True, database=None, deadline=None, max_examples=50)

COUNT = st.none() | st.integers(0, 10**15) | st.integers(-5, 50)
USAGES = st.builds(
    Usage,
    input_tokens=st.integers(0, 10**15) | st.integers(0, 100),
    cache_read_tokens=COUNT,
    cache_write_tokens=COUNT,
    cache_write_1h_tokens=COUNT,
    output_tokens=st.integers(0, 10**15) | st.integers(0, 100),
    reasoning_tokens=COUNT,
    audio_input_tokens=COUNT,
    audio_output_tokens=COUNT,
)
RATE = st.integers(0, 10**26).map(lambda digits: Decimal(digits).scaleb(-20)) | st.integers(0, 99).map(Decimal)
OTHERS = ("cache_read", "cache_write", "cache_write_1h", "reasoning", "input_audio", "cache_read_audio", "output_audio")
USD = st.fixed_dictionaries({"input": RATE, "output": RATE}, optional=dict.fromkeys(OTHERS, RATE))
RATES = st.builds(
    lambda usd, steps: Rates(usd, tuple(Step(above, steps[above]) for above in sorted(steps))),
    USD,
    st.dictionaries(st.integers(0, 200), USD, max_size=1),
)
DAYS = st.dates(date(2026, 1, 1), date(2026, 12, 31))
CLOCK = st.builds("{:02}:{:02}".format, st.integers(0, 23), st.integers(0, 59))
PERIODS = st.builds(
    Period,
    rates=RATES,
    since=st.none() | DAYS,
    hours=st.none() | st.tuples(CLOCK, CLOCK),
    weekdays=st.lists(st.integers(1, 7), max_size=3).map(tuple),
)
VARIANTS = st.builds(
    Variant,
    when=st.sampled_from([{"service_tier": "flex"}, {"processing": "batch"}, {"speed": "fast"}]),
    rates=RATES,
    since=st.none() | DAYS,
)
PRICES = st.builds(
    Price,
    book=st.just("b"),
    model=st.just("m"),
    match=st.just(Match(equals=("m",))),
    periods=st.lists(PERIODS, min_size=1, max_size=2).map(tuple),
    variants=st.lists(VARIANTS, max_size=2).map(tuple),
    since=st.none() | DAYS,
)
MOMENTS = st.datetimes(datetime(2026, 1, 1), datetime(2026, 12, 31), timezones=st.just(UTC))


def pricer(price: Price) -> Pricer:
    return Pricer(PriceBook((price,)), {"openai": provider("openai", price_book="b")})


def event(usage: Usage, **more: Any) -> Any:
    fields = {name: getattr(usage, name) for name in usage.__struct_fields__ if name not in ("units",)}
    return used("m", fields.pop("input_tokens"), fields.pop("output_tokens"), **fields, **more)


@fixed
@given(USAGES, st.integers(0, 10**15), st.integers(0, 10**15))
def test_buckets_are_disjoint_and_sum_to_the_total(usage: Usage, image_in: int, image_out: int) -> None:
    """However wrong the counts, no bucket is negative and all of them sum to input and output."""
    found = split(usage, image_in, image_out)
    outside = {"output", "reasoning", "output_audio", "output_image"}
    assert min(found.values()) >= 0
    assert sum(count for name, count in found.items() if name in outside) == usage.output_tokens
    assert sum(count for name, count in found.items() if name not in outside) == usage.input_tokens


@fixed
@given(PRICES, USAGES, MOMENTS)
def test_a_cost_is_the_sum_of_its_buckets(price: Price, usage: Usage, at: datetime) -> None:
    """A cost is each bucket's tokens times its rate, to the last digit, by fractions rather than decimals."""
    costing = pricer(price).cost(event(usage, at=at))
    assert costing is not None
    table = tariff(price, period(price, at), ()).table(usage.input_tokens or 0)
    expected = sum(Fraction(table.rates[name]) * count for name, count in split(usage).items() if count)
    assert Fraction(costing.usd) == expected / 1_000_000
    assert costing.usd >= 0
    exponent = costing.usd.as_tuple().exponent
    assert isinstance(exponent, int) and exponent <= 0, "an exponent above 0 is lost by some readers of numerics"


@fixed
@given(PRICES, USAGES, MOMENTS, st.sampled_from(["output_tokens", "input_tokens"]), st.integers(1, 10**6))
def test_more_tokens_never_cost_less(price: Price, usage: Usage, at: datetime, name: str, more: int) -> None:
    """Within one context tier a call with more tokens of a kind costs at least as much."""
    usage.audio_input_tokens = usage.audio_output_tokens = None
    flat = msgspec.structs.replace(
        price, id="", periods=tuple(msgspec.structs.replace(p, rates=Rates(p.rates.usd)) for p in price.periods)
    )
    # More input never turns cached tokens into others, so that the cost can only grow by what was added.
    usage.cache_read_tokens = min(usage.cache_read_tokens or 0, usage.input_tokens or 0)
    usage.cache_write_tokens = min(usage.cache_write_tokens or 0, (usage.input_tokens or 0) - usage.cache_read_tokens)
    usage.cache_write_1h_tokens = min(usage.cache_write_1h_tokens or 0, usage.cache_write_tokens)
    usage.reasoning_tokens = min(usage.reasoning_tokens or 0, usage.output_tokens or 0)
    larger = msgspec.structs.replace(usage, **{name: getattr(usage, name) + more})
    less, greater = pricer(flat).cost(event(usage, at=at)), pricer(flat).cost(event(larger, at=at))
    assert less is not None and greater is not None
    assert greater.usd >= less.usd


@fixed
@given(PRICES, USAGES, MOMENTS, st.text(min_size=1, max_size=12))
def test_a_tier_without_a_price_is_unknown(price: Price, usage: Usage, at: datetime, tier: str) -> None:
    """A tier that the entry has no price for never costs what the ordinary one does."""
    ordinary = {"default", "standard", "auto", "on_demand", "on-demand", "ondemand", "none"}
    priced = {"flex", "batch"}
    costing = pricer(price).cost(event(usage, at=at, service_tier=tier))
    assert (costing is None) is (tier.lower() not in ordinary | priced) or tier.lower() in priced
    unknown = pricer(price).cost(event(usage, at=at, service_tier=f"{tier}?"))
    assert unknown is None


@fixed
@given(PRICES)
def test_an_entry_survives_json(price: Price) -> None:
    """An entry goes to JSON and back without loss, and its id is told by its content alone."""
    again = msgspec.json.decode(msgspec.json.encode(price), type=Price)
    assert again == price
    assert msgspec.structs.replace(again, id="").id == price.id


@fixed
@given(st.integers(0, len(shipped().entries) - 1), USAGES, MOMENTS)
def test_every_shipped_price_can_be_charged(index: int, usage: Usage, at: datetime) -> None:
    """Every shipped entry gives a cost of at least 0, or none where it has no rate for what was used."""
    price = book().entries[index]
    one = Pricer(PriceBook((price,)), {"openai": provider("openai", price_book=price.book)})
    found = event(usage, at=at)
    found.requested_model = found.model = next(iter(price.match.equals), price.model)
    costing = one.cost(found)
    usd = price.periods[0].rates.usd
    assert costing is None or costing.usd >= 0
    if {"input", "output"} <= usd.keys() and len(price.periods) == 1 and price.match.equals:
        assert costing is not None


@fixed
@given(PRICES, MOMENTS, st.integers(-10, 10))
def test_a_moment_is_the_same_in_every_zone(price: Price, at: datetime, hours: int) -> None:
    """Dates and hours of prices are UTC's, wherever the clock that wrote the event stood."""
    usage = Usage(input_tokens=7, output_tokens=3)
    moved = at.astimezone(timezone(timedelta(hours=hours)))
    assert pricer(price).cost(event(usage, at=at)) == pricer(price).cost(event(usage, at=moved))


def test_amounts_are_exact_at_the_ends_of_their_range() -> None:
    """The largest counts at the finest and the largest rates lose nothing."""
    fine, large = Decimal("0.00000000000000000001"), Decimal(1_000_000)
    price = Price(
        book="b", model="m", match=Match(equals=("m",)), periods=(Period(Rates({"input": fine, "output": large})),)
    )
    costing = pricer(price).cost(used("m", 10**15 - 1, 10**15))
    assert costing is not None
    assert costing.usd == Decimal("1000000000000000.00000000000999999999999999")


@fixed
@given(
    PRICES,
    PRICES,
    st.lists(st.tuples(MOMENTS, st.sampled_from([None, "default", "flex", "batch"])), min_size=2, max_size=6),
    st.sampled_from([UTC, timezone(timedelta(hours=9)), None]),
)
def test_what_was_priced_before_changes_no_price(
    older: Price, newer: Price, calls: list[tuple[datetime, str | None]], zone: timezone | None
) -> None:
    """A pricer that has priced calls of any time and tier prices each like one that has priced nothing."""
    entries = (older, msgspec.structs.replace(newer, id="", since=date(2026, 6, 1)))
    openai = {"openai": provider("openai", price_book="b")}
    warm = Pricer(PriceBook(entries), openai)
    moments = [(moment, tier) for moment, tier in calls for moment in (moment, moment + timedelta(seconds=30))]
    for moment, tier in [*moments, *moments]:
        at = moment.replace(tzinfo=None) if zone is None else moment.astimezone(zone)
        call = used("m", 100, 10, started_at=at, service_tier=tier)
        assert warm.cost(call) == Pricer(PriceBook(entries), openai).cost(call)
