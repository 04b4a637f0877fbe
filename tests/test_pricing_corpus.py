"""Every recorded billable body, metered and priced, beside what genai-prices makes of the same counts."""

from __future__ import annotations

import decimal
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from functools import cache
from importlib.metadata import version
from typing import Any, NamedTuple

import msgspec
import pytest

from farebox.config import Provider
from farebox.pricing import Pricer, book_of
from farebox.pricing.genai import SHIPPED_VERSION
from farebox.records import UsageEvent
from support.corpus import MANIFEST, Body, bodies
from support.pricing import book, used

genai_prices = pytest.importorskip("genai_prices")
pytestmark = [
    pytest.mark.skipif(not MANIFEST.exists(), reason="the shared corpus is not here"),
    pytest.mark.skipif(version("genai-prices") != SHIPPED_VERSION, reason=f"the figures are of {SHIPPED_VERSION}"),
]

LIFETIME = "a cache write whose lifetime is not reported: here at the dearer rate, there at the cheaper"
COMPACTION = "work that the counts at the top leave out: here by its entries, there by the counts at the top"
AUDIO = "an audio model whose audio rates are not in their data: here at the published ones, there as text"
ROUNDING = "audio by the second: there rounded at the 28th digit, here at the 40th"
FEE = "a fee for the request by how much was searched: here the one for that, there the dearest"
SEARCHES = "a search that the list has no price for: here unknown, there not charged"
NO_OUTPUT = "output of a model that is listed without an output rate: here unknown, there not charged"
SNAPSHOT = "a snapshot younger than the list: here its model's price, there none"
ASKED = "an answer whose model has no price: here what was asked for, there none"

DIFFERENT = {
    **dict.fromkeys(("7beacb535eaa", "94348be07395", "d1b6b0110e32", "d723f4ed400e", "e7f37ddb0655"), LIFETIME),
    "3b1a40f9c395": COMPACTION,
    **dict.fromkeys(("2df940689c6f", "5b5c012521f8"), AUDIO),
    "a8aa2e2b58ac": ROUNDING,
    **dict.fromkeys(
        (
            *("0224ff09ea95", "19ff43a7219e", "42a83ce307d8", "43d7aac65a37", "4706c5079b65", "8525fb281904"),
            *("9f620172166b", "a1829a08da4e", "a23d855b0ab9", "adcc508949f0", "afb44b2730e2", "cb94fdfb7f51"),
            *("d74c92b4eeca", "dd33c9681c34", "e83af4ae489f", "f2208c428094", "f75e653c7fb0"),
        ),
        FEE,
    ),
}
"""Bodies that both price, and not alike."""
ONLY_THERE = {
    **dict.fromkeys(("032abb519450", "de8b1d4fc73d", "6ce53c1435dc", "ec08134a613e"), SEARCHES),
    **dict.fromkeys(("b59e692af342", "ddf992f56809"), NO_OUTPUT),
}
"""Bodies without a price here."""
FIGURES = {"bodies": 731, "equal": 528, "different": 26, "only here": 8, "only there": 6, "neither": 163}

REPORTED = {
    ("openrouter", "exact"): 27,
    ("xai", "exact"): 21,
    ("perplexity", "exact"): 6,
    ("perplexity", "drift"): 13,
}
"""Bodies in which the provider reports an amount and that have a price here, and whether the two are equal."""


class Compared(NamedTuple):
    """One body: what it used, what it costs here and there (None: no price)."""

    body: Body
    event: UsageEvent
    ours: Decimal | None
    theirs: Decimal | None

    @property
    def verdict(self) -> str:
        if self.ours is None:
            return "neither" if self.theirs is None else "only there"
        if self.theirs is None:
            return "only here"
        return "equal" if self.ours == self.theirs else "different"


def metered(body: Body) -> UsageEvent | None:
    """What the body used, through farebox's own meter; None where it reports nothing billable."""
    meter = body.meter()
    meter.feed(body.data, 1.0)
    meter.eof()
    reading = meter.finish()
    if not reading.has_usage:
        return None
    event = used(reading.model, None, by=body.provider, requested_model=(body.row.get("request") or {}).get("model"))
    event.operation, event.service_tier, event.usage_raw = body.api, reading.service_tier, reading.usage_raw
    for name in reading.usage.__struct_fields__:
        setattr(event, name, getattr(reading.usage, name))
    return event


def theirs(event: UsageEvent, book_name: str) -> Decimal | None:
    """The library's price of the same counts, from the same publisher, at the same time; None where it has none."""
    counts: dict[str, Any] = {
        "cache_read_tokens": event.cache_read_tokens,
        "cache_write_tokens": event.cache_write_tokens,
        "cache_write_1h_tokens": event.cache_write_1h_tokens,
        "output_reasoning_tokens": event.reasoning_tokens,
        "input_audio_tokens": event.audio_input_tokens,
        "output_audio_tokens": event.audio_output_tokens,
        "output_citation_tokens": event.units.get("citation_tokens"),
        "web_searches": event.units.get("web_searches"),
        "storage_searches": event.units.get("file_searches"),
        "audio_seconds": event.units.get("seconds"),
        "input_audio_seconds": event.units.get("seconds"),
    }
    given = {name: count for name, count in counts.items() if count}
    usage = genai_prices.Usage(input_tokens=event.input_tokens or 0, output_tokens=event.output_tokens or 0, **given)
    context = {"service_tier": event.service_tier} if event.service_tier else None
    try:
        found = genai_prices.calc_price(
            usage,
            event.model or event.requested_model or "",
            provider_id=book_name,
            genai_request_timestamp=event.started_at,
            price_context=context,
        )
    except LookupError:
        return None
    return Decimal(found.total_price)


def provider_of(body: Body) -> Provider:
    host = body.row["host"] or "recorded.invalid"
    return Provider(name=body.provider, dialect=body.provider, base_url=f"https://{host}")


def _compared() -> Iterator[Compared]:
    for body in bodies():
        if not (body.creates and body.row["status"] < 400):
            continue
        event = metered(body)
        if event is None:
            continue
        provider = provider_of(body)
        name = book_of(price_book=None, base_url=provider.base_url, dialect=provider.dialect)
        pricer = Pricer(book(), {provider.name: provider})
        costing = pricer.cost(event)
        pricer.price(event)
        yield Compared(body, event, costing.usd if costing else None, theirs(event, name))


@cache
def compared() -> tuple[Compared, ...]:
    return tuple(_compared())


def test_figures(record_property: Any) -> None:
    """So many bodies are priced alike, differently, by one of the two only and by neither; a change is noticed."""
    found = Counter(one.verdict for one in compared())
    found["bodies"] = len(compared())
    classes = Counter((DIFFERENT | ONLY_THERE).values())
    classes.update(_only_here(one) for one in compared() if one.verdict == "only here")
    for name in FIGURES:
        print(f"{name:12} {found[name]:5}")
    for reason, number in classes.most_common():
        print(f"{number:5}  {reason}")
    record_property("figures", dict(found))
    assert dict(found) == FIGURES


def test_every_difference_is_named() -> None:
    """What is priced differently, or only there, is exactly what is listed with a reason."""
    assert {one.body.id for one in compared() if one.verdict == "different"} == set(DIFFERENT)
    assert {one.body.id for one in compared() if one.verdict == "only there"} == set(ONLY_THERE)


def of(body_id: str) -> Compared:
    return next(one for one in compared() if one.body.id == body_id)


@pytest.mark.parametrize("body_id", DIFFERENT)
def test_a_difference_is_for_the_reason_named(body_id: str) -> None:
    """With the reason taken away, each body that is priced differently is priced alike."""
    one = of(body_id)
    event = msgspec.structs.replace(one.event)
    ours, reason = one.ours, DIFFERENT[one.body.id]
    assert ours is not None and one.theirs is not None
    if reason == LIFETIME:
        event.cache_write_1h_tokens = 0
        assert ours > one.theirs
    elif reason == COMPACTION:
        event.usage_raw = None
        assert ours > one.theirs
    elif reason == FEE:
        event.usage_raw = None
        assert ours < one.theirs
    elif reason == AUDIO:
        event.audio_input_tokens = event.audio_output_tokens = 0
        assert ours > one.theirs
    provider = provider_of(one.body)
    again = Pricer(book(), {provider.name: provider}).cost(event)
    assert again is not None
    assert decimal.Context(prec=28).plus(again.usd) == one.theirs


@pytest.mark.parametrize("body_id", ONLY_THERE)
def test_what_only_they_price_lacks_a_price_here(body_id: str) -> None:
    """Without the search, or the output, that no rate is listed for, the body costs here what it costs there."""
    one = of(body_id)
    event = msgspec.structs.replace(one.event, provider_cost_usd=None)
    if ONLY_THERE[one.body.id] == SEARCHES:
        event.units = {}
    else:
        event.output_tokens = 0
    provider = provider_of(one.body)
    again = Pricer(book(), {provider.name: provider}).cost(event)
    assert again is not None and again.usd == one.theirs


def _only_here(one: Compared) -> str:
    event = one.event
    return SNAPSHOT if event.model and event.model.startswith("gpt-5-2026") else ASKED


def test_what_only_farebox_prices() -> None:
    """Bodies priced here only are snapshots younger than the list, or answers that name a model no list has."""
    found = Counter(_only_here(one) for one in compared() if one.verdict == "only here")
    assert found == {SNAPSHOT: 3, ASKED: 5}
    assert {one.event.requested_model for one in compared() if one.verdict == "only here"} == {None, "babbage-002"}


def test_reported_amounts() -> None:
    """A reported amount is ours to the last digit that it has; where we have none it is the cost."""
    reported = [one for one in compared() if one.event.provider_cost_usd is not None]
    without = [one for one in reported if one.ours is None]
    assert all(one.event.cost_source == "provider" for one in without)
    assert all(one.event.cost_usd == one.event.provider_cost_usd for one in without)
    drift = Counter(
        (one.body.provider, "exact" if one.ours == one.event.provider_cost_usd else "drift")
        for one in reported
        if one.ours is not None
    )
    for (name, verdict), number in sorted(drift.items()):
        print(f"{name:12} {verdict:6} {number:4}")
    assert drift == REPORTED
    for one in reported:
        if one.ours is not None and one.ours != one.event.provider_cost_usd:
            # Perplexity rounds at the fifth decimal place; twice it gave the fee for the request alone.
            assert one.body.provider == "perplexity"
            alone = one.body.id in ("4706c5079b65", "8525fb281904")
            tokens = (one.event.input_tokens or 0) + (one.event.output_tokens or 0) if alone else 0  # sonar: 1 per M
            reported_usd = one.event.provider_cost_usd or Decimal(0)
            assert abs(one.ours - Decimal(tokens) / 10**6 - reported_usd) <= Decimal("0.00001"), one.body.id
