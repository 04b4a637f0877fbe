"""The price of a bound: no usage within it costs more, whatever entry, tier, region, hour and length of input."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farebox.pricing import Match, Period, Price, PriceBook, Pricer, Rates, Step, Variant
from farebox.pricing.amounts import tidy
from farebox.pricing.most import Most
from farebox.pricing.tables import Tariff, tariff
from support.pricing import NOON, book, configured, provider, publishers, used

fixed = settings(derandomize=True, database=None, deadline=None, max_examples=40)
TOKENS = st.integers(0, 3_000_000) | st.integers(0, 40)
RATE = st.integers(0, 10**6).map(lambda digits: Decimal(digits).scaleb(-4))
USD = st.fixed_dictionaries(
    {"input": RATE, "output": RATE},
    optional=dict.fromkeys(("cache_read", "cache_write", "cache_write_1h", "reasoning", "requests"), RATE),
)
RATES = st.builds(
    lambda usd, steps: Rates(usd, tuple(Step(above, steps[above]) for above in sorted(steps))),
    USD,
    st.dictionaries(
        st.sampled_from([10, 20, 200_000]), USD.map(lambda usd: {**usd, "requests": Decimal(1)}), max_size=2
    ),
)
WAYS = [{"service_tier": "priority"}, {"service_tier": "flex"}, {"inference_geo": "us"}, {"speed": "fast"}]


def counts(draw: random.Random, input_max: int, output_max: int) -> dict[str, int | None]:
    """Counts of a call within a bound, as wrong as providers report them."""
    asked, told = draw.randint(0, input_max), draw.randint(0, output_max)
    parts = {
        name: draw.choice([None, 0, draw.randint(0, whole + 3)])
        for name, whole in (
            ("cache_read_tokens", asked),
            ("cache_write_tokens", asked),
            ("cache_write_1h_tokens", asked),
            ("reasoning_tokens", told),
        )
    }
    return {"input_tokens": asked, "output_tokens": told, **parts}


@fixed
@given(
    st.lists(st.builds(Period, rates=RATES, hours=st.none() | st.just(("08:00", "12:30"))), min_size=1, max_size=2),
    st.lists(st.builds(Variant, when=st.sampled_from(WAYS), rates=RATES), max_size=3),
    TOKENS,
    TOKENS,
    st.sampled_from([None, "auto", "default", "flex", "priority", "standard_only"]),
    st.sampled_from([(), (("speed", "fast"),), (("inference_geo", "us"),), (("speed", "standard"),)]),
    st.randoms(use_true_random=False),
)
def test_no_usage_costs_more_than_its_bound(
    periods: list[Period],
    variants: list[Variant],
    input_max: int,
    output_max: int,
    tier: str | None,
    served: tuple[tuple[str, str], ...],
    draw: random.Random,
) -> None:
    """Over made-up entries: what the request asked for, and with `dearest` what it left open or falls back to."""
    price = Price(book="b", model="m", match=Match(equals=("m",)), periods=tuple(periods), variants=tuple(variants))
    pricer = Pricer(PriceBook((price,)), {"openai": provider("openai", price_book="b")})
    asked = pricer.bound("openai", "m", tier, input_max, output_max, NOON, dearest=False, served=served)
    most = pricer.bound("openai", "m", tier, input_max, output_max, NOON, dearest=True, served=served)
    assert (asked is None) == (most is None)
    if asked is None or most is None:
        return
    assert asked <= most
    raw = dict(served)
    plain = None if tier == "standard_only" else tier
    for _ in range(5):
        usage = counts(draw, input_max, output_max)
        costing = pricer.cost(used("m", **usage, service_tier=plain, usage_raw=raw))  # type: ignore[arg-type]
        assert costing is not None and costing.usd <= asked
        choices = ["default", tier] if tier in ("flex", "priority") else [plain]
        if tier in (None, "auto"):
            choices += ["flex", "priority", "default"]
        geo = raw if "inference_geo" in raw else {**raw, "inference_geo": draw.choice(["us", "global"])}
        costing = pricer.cost(used("m", **usage, service_tier=draw.choice(choices), usage_raw=geo))  # type: ignore[arg-type]
        unsaid_both = costing is not None and costing.usd > most
        assert not unsaid_both


def by_tables(tariffs: list[Tariff], input_tokens: int, output_tokens: int) -> Decimal | None:
    """The same by the rates themselves, table by table: what `Most` works out once."""
    amounts: list[Decimal] = []
    for one in tariffs:
        for table in (one.base, *(table for start, table in one.steps if start < input_tokens)):
            rates = table.rates
            if not rates or (input_tokens and "input" not in rates) or (output_tokens and "output" not in rates):
                return None
            read = [rates[name] for name in rates if name.startswith(("input", "cache")) and "audio" not in name]
            written = [rates[name] for name in ("output", "reasoning", "output_image") if name in rates]
            usd = max(read, default=Decimal(0)) * input_tokens + max(written, default=Decimal(0)) * output_tokens
            amounts.append(usd / 1_000_000 + rates.get("requests", Decimal(0)) / 1_000)
    return max(amounts, default=None)


@fixed
@given(st.lists(RATES, max_size=3), TOKENS, TOKENS)
def test_rates_taken_once_say_what_the_tables_say(rates: list[Rates], input_tokens: int, output_tokens: int) -> None:
    """The dearest way, worked out ahead, is the dearest of all tables that count for so much input."""
    made = [Price(book="b", model="m", match=Match(equals=("m",)), periods=(Period(rates=one),)) for one in rates]
    tariffs = [tariff(price, 0, ()) for price in made]
    usd = Most(tariffs).usd(input_tokens, output_tokens)
    assert usd == by_tables(tariffs, input_tokens, output_tokens)
    assert usd is None or str(usd) == str(tidy(usd))


def test_a_remembered_bound_changes_with_the_minute() -> None:
    """A pricer that was asked before says at each minute what one that was not says, whatever the zone of the time."""
    hours = (Period(rates=Rates({"input": Decimal(2), "output": Decimal(2)}), hours=("08:00", "12:30")),)
    ordinary = (Period(rates=Rates({"input": Decimal(1), "output": Decimal(1)})),)
    price = Price(book="b", model="m", match=Match(equals=("m",)), periods=(*ordinary, *hours))

    def asked(pricer: Pricer, at: datetime) -> Decimal | None:
        return pricer.bound("openai", "m", None, 10**6, 0, at, dearest=True)

    def fresh() -> Pricer:
        return Pricer(PriceBook((price,)), {"openai": provider("openai", price_book="b")})

    kept, seen = fresh(), set()
    start = datetime(2026, 11, 16, 7, 58, 30, tzinfo=UTC)
    for minutes in (0, 1, 2, 3, 200, 271, 272, 273, 0):
        at = start + timedelta(minutes=minutes)
        for told in (at, at.replace(tzinfo=None), at.astimezone(timezone(timedelta(hours=5)))):
            assert asked(kept, told) == asked(fresh(), told)
            seen.add(asked(kept, told))
    assert len(seen) == 2


def shipped_models() -> list[tuple[str, str]]:
    """(provider, model) of entries of the shipped book, a spread of each publisher and each kind."""
    names = {pricer_book: name for name, pricer_book in publishers()._books.items()}
    found = []
    for price in book().entries:
        by = names.get(price.book)
        odd = bool(price.variants) or any(period.rates.steps or period.hours for period in price.periods)
        if by is not None and price.match.equals and (odd or hash_of(price.model) % 5 == 0):
            found.append((by, price.match.equals[0]))
    return found


def hash_of(text: str) -> int:
    return sum(text.encode())


def test_the_shipped_prices_keep_it() -> None:
    """Over several hundred shipped entries, hours of the day, tiers and lengths of input."""
    pricer, draw, priced = publishers(), random.Random(4), 0
    for by, model in shipped_models():
        at = datetime(2026, 11, 16, tzinfo=UTC) + timedelta(minutes=draw.randrange(7 * 24 * 60))
        tier = draw.choice([None, None, "flex", "priority"])
        input_max, output_max = draw.choice([(900, 300), (150_000, 9_000), (300_000, 64_000), (1_200_000, 100_000)])
        most = pricer.bound(by, model, tier, input_max, output_max, at, dearest=True)
        for _ in range(4):
            usage = counts(draw, input_max, output_max)
            event = used(model, **usage, by=by, at=at, service_tier=tier)
            costing = pricer.cost(event)
            if most is not None and costing is not None:
                priced += 1
                assert costing.usd <= most, (by, model, tier, usage)
            elif costing is not None:
                assert not (usage["input_tokens"] and usage["output_tokens"]), (by, model, tier, usage)
    assert priced > 500


@pytest.mark.parametrize(
    ("tier", "served", "dearest", "usd"),
    [
        (None, (), False, "30"),
        (None, (), True, "66"),  # priority, which the account may have chosen
        ("default", (), True, "33"),  # nor is its region the request's to say
        ("flex", (), False, "15"),
        ("flex", (), True, "33"),  # flex may be full
        (None, (("inference_geo", "us"),), False, "33"),
        ("ultra", (), False, None),
        (None, (("speed", "fast"),), True, None),
    ],
)
def test_the_way_of_serving(
    tier: str | None, served: tuple[tuple[str, str], ...], dearest: bool, usd: str | None
) -> None:
    """Each tier and region has its price; one without any makes the call unpriced."""
    ways = {("service_tier", "flex"): 5, ("service_tier", "priority"): 22, ("inference_geo", "us"): 11}
    price = Price(
        book="b",
        model="m",
        match=Match(equals=("m",)),
        periods=(Period(Rates({"input": Decimal(10), "output": Decimal(20)})),),
        variants=tuple(
            Variant({name: value}, Rates({"input": Decimal(rate), "output": Decimal(2 * rate)}))
            for (name, value), rate in ways.items()
        ),
    )
    pricer = Pricer(PriceBook((price,)), {"openai": provider("openai", price_book="b")})
    found = pricer.bound("openai", "m", tier, 10**6, 10**6, NOON, dearest=dearest, served=served)
    assert found == (None if usd is None else Decimal(usd))


def test_what_is_not_priced_has_no_bound() -> None:
    """An unknown model, an entry without rates, and output without a rate are unpriced; embeddings need no output."""
    pricer = Pricer(PriceBook(()), {"local": configured("{half: {input_usd_per_mtok: 1}}")})
    assert pricer.bound("local", "nobody", None, 1, 1, NOON, dearest=True) is None
    assert pricer.bound("local", "half", None, 1, 1, NOON, dearest=True) is None
    assert pricer.bound("local", "half", None, 10**6, 0, NOON, dearest=True) == 1
    assert publishers().bound("openai", "no-such-model", None, 1, 1, NOON, dearest=False) is None


def test_what_is_free_costs_nothing() -> None:
    """A local model at 0 is priced, at 0, whatever the bound."""
    pricer = Pricer(PriceBook(()), {"local": configured('{"*": {input_usd_per_mtok: 0, output_usd_per_mtok: 0}}')})
    assert pricer.bound("local", "llama", None, 10**12, 10**12, NOON, dearest=True) == 0


def test_fees_and_writes_are_in_it() -> None:
    """The fee of the request is there, and input at the rate of the dearest cache write."""
    prices = (
        "{m: {input_usd_per_mtok: 3, output_usd_per_mtok: 15, cache_write_usd_per_mtok: 3.75, "
        "cache_write_1h_usd_per_mtok: 6, request_usd: 0.005}}"
    )
    pricer = Pricer(PriceBook(()), {"local": configured(prices)})
    assert pricer.bound("local", "m", None, 10**6, 10**6, NOON, dearest=False) == Decimal("21.005")


@pytest.mark.parametrize(
    ("rates", "usd"),
    [
        ({"input": 1, "output": 2, "reasoning": 5}, 6),
        ({"input": 1, "output": 2, "output_image": 30}, 31),
        ({"input": 1, "output": 2, "output_audio": 80, "input_audio": 40}, 3),
        ({"input": 1, "output": 2, "cache_write": 3, "cache_write_1h": 7, "cache_write_unknown": 4}, 9),
        ({"input": 1, "output": 2, "cache_read": 9}, 11),
        ({"input": 4, "output": 2, "cache_read": 1}, 6),
    ],
)
def test_the_dearest_bucket_counts(rates: dict[str, int], usd: int) -> None:
    """Of all buckets that tokens of text may fall into, the dearest; audio would have to be asked for."""
    period = Period(Rates({name: Decimal(rate) for name, rate in rates.items()}))
    price = Price(book="b", model="m", match=Match(equals=("m",)), periods=(period,))
    pricer = Pricer(PriceBook((price,)), {"openai": provider("openai", price_book="b")})
    assert pricer.bound("openai", "m", None, 10**6, 10**6, NOON, dearest=False) == usd
