"""What the source says of a price in words only, or leaves out, put into numbers; nothing else is changed.

- DeepSeek's peak hours hold from Monday to Friday only ("weekends are off-peak all day", in the
  source's comments), and for the V4 models only since 2026-08-17. The one weekend between that day and
  2026-08-23, when weekends became off-peak, is priced off-peak too.
- Groq's flex tier costs what on-demand costs (its documentation: "Pricing matches the on-demand tier").
- Anthropic's `inference_geo: us` costs 1.1 times as much in every kind of token, for Opus 4.6, Sonnet 4.6
  and the models after them; older ones do not take it (its documentation on data residency).
- OpenAI's first audio chat models have audio rates of their own (its price list until they were shut
  down); the source has their text rates only.
- OpenAI's own API does not serve its open models (gpt-oss): the rates that the source has for them there are a
  router's. They are listed without a price, so that no other server is charged by them.
- Perplexity's fee for a request depends on how much it searched ("low", "medium", "high" in the usage it
  reports; its page on prices); the source has the dearest of the three, which stays where nothing is reported.
- OpenAI keeps cache writes for half an hour unless asked for twelve, which for gpt-6.1-terra cost twice as
  much ("$2.50", in the source's comments, beside 1.25). So a write of which no lifetime is told costs the
  ordinary rate. Of its other models the rate for twelve hours is not told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date
from decimal import Decimal

from msgspec.structs import replace

from farebox.pricing.buckets import TOKENS
from farebox.pricing.entry import Period, Price, Rates, Step, Variant

_V4_PEAKS_SINCE = date(2026, 8, 17)
_WEEKDAYS = (1, 2, 3, 4, 5)
_US_FACTOR = Decimal("1.1")
_WITHOUT_GEO = (
    *("claude-v1", "claude-2", "claude-3", "claude-instant", "claude-opus-4-0", "claude-opus-4-1", "claude-opus-4-5"),
    *("claude-sonnet-4-0", "claude-sonnet-4-5", "claude-haiku-4-5"),
)
_HALF_DAY_FACTOR = 2
_FEES = {Decimal(12): (Decimal(5), Decimal(8)), Decimal(14): (Decimal(6), Decimal(10))}
"""Perplexity's fees for a thousand requests: of the dearest the other two, low and medium."""
_AUDIO = {
    "gpt-4o-audio-preview": (Decimal(40), Decimal(80)),
    "gpt-4o-mini-audio-preview": (Decimal(10), Decimal(20)),
}


def amended(prices: Iterable[Price]) -> Iterator[Price]:
    """The same entries with what stands above, under the ids of their new content."""
    for price in prices:
        if price.book == "deepseek" and any(period.hours for period in price.periods):
            yield _weekdays(price)
        elif price.book == "groq":
            flex = Variant(when={"service_tier": "flex"}, rates=Rates())
            yield replace(price, id="", variants=(*price.variants, flex))
        elif price.book == "anthropic" and not price.model.startswith(_WITHOUT_GEO):
            yield replace(price, id="", variants=(*price.variants, *_us(price.periods)))
        elif price.book == "perplexity" and price.model.startswith("sonar"):
            yield replace(price, id="", variants=(*price.variants, *_searched(price)))
        elif price.book == "openai" and price.model.startswith("gpt-oss"):
            yield replace(price, id="", periods=(Period(rates=Rates()),), variants=())
        elif price.book == "openai" and price.model in _AUDIO:
            yield _audio(price)
        elif price.book == "openai" and price.model == "gpt-6.1-terra":
            yield _half_days(price)
        else:
            yield price


def _weekdays(price: Price) -> Price:
    newer = price.model == "deepseek-flash"
    if not (newer or price.model.startswith("deepseek-v4")):
        return price  # the V3 models' other hours, of which no weekends are told
    since = None if newer else _V4_PEAKS_SINCE
    periods = [replace(period, since=since, weekdays=_WEEKDAYS) if period.hours else period for period in price.periods]
    return replace(price, id="", periods=tuple(periods))


def _us(periods: tuple[Period, ...]) -> Iterator[Variant]:
    """The latest period first: of several variants that hold, the first one counts."""
    for period in reversed(periods):
        yield Variant(when={"inference_geo": "us"}, rates=_times(period.rates), since=period.since)


def _times(rates: Rates) -> Rates:
    def usd(table: dict[str, Decimal]) -> dict[str, Decimal]:
        return {bucket: rate * _US_FACTOR for bucket, rate in table.items() if bucket in TOKENS}

    return Rates(usd(rates.usd), tuple(Step(step.above, usd(step.usd)) for step in rates.steps))


def _half_days(price: Price) -> Price:
    def usd(table: dict[str, Decimal]) -> dict[str, Decimal]:
        write = table.get("cache_write")
        return (
            table
            if write is None
            else table | {"cache_write_1h": write * _HALF_DAY_FACTOR, "cache_write_unknown": write}
        )

    def rates(rates: Rates) -> Rates:
        return Rates(usd(rates.usd), tuple(Step(step.above, usd(step.usd)) for step in rates.steps))

    return replace(
        price,
        id="",
        periods=tuple(replace(period, rates=rates(period.rates)) for period in price.periods),
        variants=tuple(replace(variant, rates=rates(variant.rates)) for variant in price.variants),
    )


def _searched(price: Price) -> Iterator[Variant]:
    fees = _FEES.get(price.periods[-1].rates.usd.get("requests", Decimal(0)))
    for size, fee in zip(("low", "medium"), fees or (), strict=False):
        yield Variant(when={"search_context_size": size}, rates=Rates({"requests": fee}))
    if fees:
        yield Variant(when={"search_context_size": "high"}, rates=Rates())


def _audio(price: Price) -> Price:
    heard, spoken = _AUDIO[price.model]
    periods = [
        replace(
            period,
            rates=replace(period.rates, usd={**period.rates.usd, "input_audio": heard, "output_audio": spoken}),
        )
        for period in price.periods
    ]
    return replace(price, id="", periods=tuple(periods))
