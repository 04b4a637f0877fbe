"""The shipped prices against genai-prices itself: the same data, the same models for the same names."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from importlib.metadata import version
from importlib.resources import files
from types import SimpleNamespace
from typing import Any

import pytest

from farebox.pricing import Price, PriceBook, shipped
from farebox.pricing.genai import SHIPPED_AS_OF, SHIPPED_VERSION, UnknownShape, entries_from_genai, rendered
from farebox.pricing.publishers import FALLBACKS

genai_prices = pytest.importorskip("genai_prices")
pytestmark = pytest.mark.skipif(
    version("genai-prices") != SHIPPED_VERSION, reason=f"the shipped file is of genai-prices {SHIPPED_VERSION}"
)


def providers() -> list[Any]:
    from genai_prices.data import providers

    return list(providers)


def test_the_shipped_file_is_what_the_library_gives() -> None:
    """Made again from the version it names, the file has the same text, and names that version and its licence."""
    data = files("farebox").joinpath("data", "prices.json.gz").read_bytes()
    again = rendered(providers(), SHIPPED_VERSION, SHIPPED_AS_OF)
    assert gzip.decompress(data) == gzip.decompress(again), "run: python -m farebox.pricing.genai > FILE"
    assert data[4:8] == b"\0\0\0\0", "the file would differ each time it is made"
    facts = shipped()
    assert facts.source == f"genai-prices {SHIPPED_VERSION}"
    assert facts.snapshot == SHIPPED_AS_OF
    assert "MIT" in facts.licence


def test_every_model_of_every_publisher_is_there() -> None:
    """No provider, model, variant, dated price or context tier of the library is missing."""
    by_name = {(price.book, price.model): price for price in shipped().entries}
    assert len(by_name) == sum(len(provider.models) for provider in providers())
    for provider in providers():
        for model in provider.models:
            price = by_name[provider.id, model.id]
            dated = model.prices if isinstance(model.prices, list) else [None]
            assert len(price.periods) == len(dated)
            assert len(price.variants) >= len(model.price_variants or ())
            assert price.context_window == model.context_window


def _names(provider: Any) -> Iterator[str]:
    for model in provider.models:
        yield model.id
        yield f"{model.id}-20270101"
        yield from _texts(model.match)


def _texts(clause: Any) -> Iterator[str]:
    for inner in [*getattr(clause, "or_", ()), *getattr(clause, "and_", ())]:
        yield from _texts(inner)
    for name in ("equals", "starts_with", "ends_with", "contains"):
        if hasattr(clause, name):
            text = getattr(clause, name)
            yield from (text, f"{text}-x", f"x-{text}", text.upper())


@pytest.mark.parametrize("step", [10, pytest.param(1, marks=pytest.mark.long)])
def test_names_mean_the_same_models(step: int) -> None:
    """Of some ten thousand names each means the model that the library takes it for; farebox knows more snapshots."""
    index = PriceBook(shipped().entries)
    known = all_names = 0
    for provider in providers():
        others = [one for one in providers() if one.id in FALLBACKS.get(provider.id, ())]
        for name in list(_names(provider))[::step]:
            theirs = provider.find_model(name)
            ours = index.find(provider.id, name, datetime(2026, 11, 1, tzinfo=UTC))
            all_names += 1
            if theirs is not None:
                known += 1
                assert ours is not None and ours.model == theirs.id, (provider.id, name)
            elif ours is not None:
                assert name.endswith("-20270101"), (provider.id, name)
        assert sorted(provider.fallback_model_providers or ()) == sorted(one.id for one in others)
    assert known > 9_000 // step and all_names > known


def test_the_publishers_own_hosts_are_known() -> None:
    """Each URL in the tests that the library takes for a publisher's is that publisher's here too."""
    import re

    from farebox.pricing import book_of
    from support.pricing import HOSTS

    for url in HOSTS.values():
        found = [provider.id for provider in providers() if re.match(provider.api_pattern, url)]
        ours = book_of(price_book=None, base_url=url, dialect="vllm")
        assert ours == "huggingface" or ours in found, url


# -- shapes the data may take ---------------------------------------------------------------------------


def model(prices: Any, **fields: Any) -> Any:
    """A model as the library would give it."""
    defaults = {"id": "m", "match": SimpleNamespace(equals="m"), "price_variants": None, "context_window": None}
    nothing = {"deprecated": None, "name": None, "price_comments": None}
    return SimpleNamespace(**{**defaults, **nothing, "prices": prices, **fields})


def entry(one: Any) -> Price:
    (price,) = entries_from_genai([SimpleNamespace(id="p", models=[one])])
    return price


def test_tiers_of_single_rates_become_steps() -> None:
    """Rates with tiers of their own are told as steps, each with the rates that change there."""
    tiered = SimpleNamespace(
        base=Decimal(1),
        tiers=[SimpleNamespace(start=10, price=Decimal(2)), SimpleNamespace(start=20, price=Decimal(3))],
    )
    other = SimpleNamespace(base=Decimal(5), tiers=[SimpleNamespace(start=20, price=Decimal(6))])
    prices = SimpleNamespace(input_mtok=tiered, output_mtok=other, cache_audio_read_mtok=Decimal(7), junk_mtok=None)
    rates = entry(model(prices)).periods[0].rates
    assert rates.usd == {"input": 1, "output": 5, "cache_read_audio": 7}
    assert [(step.above, step.usd) for step in rates.steps] == [(10, {"input": 2}), (20, {"input": 3, "output": 6})]


@pytest.mark.parametrize(
    ("fields", "usd"),
    [
        ({"id": "m:free"}, {"input": 0, "output": 0}),
        ({"name": "Model (free)"}, {"input": 0, "output": 0}),
        ({"price_comments": "Free of charge, see the docs"}, {"input": 0, "output": 0}),
        ({"price_comments": "No longer listed"}, {}),
        ({}, {}),
    ],
)
def test_no_rates_are_free_only_where_it_is_said(fields: dict[str, Any], usd: dict[str, int]) -> None:
    """A model without rates costs 0 where its name or a comment says it is free; else its price is unknown."""
    assert entry(model(SimpleNamespace(), **fields)).periods[0].rates.usd == usd


def _conditional(**constraint: Any) -> Any:
    rates = SimpleNamespace(input_mtok=Decimal(1))
    return model([SimpleNamespace(prices=rates, constraint=SimpleNamespace(**constraint))])


def test_characters_are_not_tokens() -> None:
    """A speech model's price per million characters has a bucket of its own: no token has a price there."""
    assert entry(model(SimpleNamespace(input_mchars=Decimal(15)))).periods[0].rates.usd == {"characters": Decimal(15)}


def test_conditions() -> None:
    """Start dates and daily hours become periods."""
    assert entry(_conditional(start_date=date(2026, 1, 2))).periods[0].since == date(2026, 1, 2)
    hours = entry(_conditional(start_time=time(23, 30), end_time=time(4, 0, tzinfo=UTC))).periods[0].hours
    assert hours == ("23:30", "04:00")


@pytest.mark.parametrize(
    "one",
    [
        _conditional(end_date=date(2026, 1, 2)),
        _conditional(start_time=time(1, 0, 30), end_time=time(2, 0)),
        _conditional(start_time=time(1, 0, tzinfo=timezone(timedelta(hours=1))), end_time=time(2, 0)),
        model(SimpleNamespace(), match=SimpleNamespace(sounds_like="m")),
    ],
)
def test_what_cannot_be_said_is_refused(one: Any) -> None:
    """A condition or a clause of an unknown kind is an error, not a price without it."""
    with pytest.raises(UnknownShape):
        entry(one)
