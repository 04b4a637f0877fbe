"""From the data of genai-prices to entries. The library itself is never needed to run, only to make a snapshot.

`python -m farebox.pricing.genai > src/farebox/data/prices.json.gz` makes the shipped one.

Its objects are read by their attributes, so that this module imports nothing of it; what is not known
here (a new kind of condition) is refused rather than dropped, because a price without its condition
is a wrong price. Facts only: where the data says in a comment what it cannot say in numbers, see
`amendments`.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, time
from decimal import Decimal
from typing import Any

import msgspec

from farebox.pricing.amendments import amended
from farebox.pricing.entry import Match, Period, Price, Rates, Step, Variant
from farebox.pricing.shipped import Snapshot

SHIPPED_VERSION = "0.2.3"
"""The version of genai-prices that the shipped file was made from."""
SHIPPED_AS_OF = datetime(2026, 11, 9, tzinfo=UTC)
"""The latest day of which that version's facts speak as past."""
LICENCE = "Facts from genai-prices, copyright Pydantic Services Inc. 2025 to present, MIT; text in data/README.md"

_NAMES = {
    "cache_audio_read": "cache_read_audio",
    "cache_image_read": "cache_read_image",
    "output_reasoning": "reasoning",
    "output_citation": "citation",
    "storage_searches": "file_searches",
    "social_searches": "x_searches",
    "input_document": "pages",
    "input_annotated_document": "annotated_pages",
    "input_mchars": "characters",
    "input_text_messages": "messages",
}
"""Buckets that are called otherwise there, with or without the unit they are counted in."""
_USD_MAX, _PLACES_MAX = 10**9, 40
"""A rate above, or with more decimal places, is no price; below 0 it is a word for something else (a router's -1)."""
_SUFFIXES = ("_mtok", "_kcount", "_kpages")
_FREE = (":free", "free of charge", "(free)", "included in the subscription")


class UnknownShape(ValueError):
    """The data holds something this version of farebox cannot read."""


def entries_from_genai(snapshot: Any, source: str = "genai-prices") -> list[Price]:
    """The entries of a `genai_prices.data_snapshot.DataSnapshot`, or of any list of its providers.

    In the library's order, which is the order of matching. Raises `UnknownShape`.
    """
    providers = getattr(snapshot, "providers", snapshot)
    return [price for provider in providers for price in amended(_entries(provider, source))]


def rendered(providers: Any, version: str, as_of: datetime) -> bytes:
    """The file that farebox ships: JSON in gzip, the same bytes for the same data."""
    source = f"genai-prices {version}"
    entries = tuple(entries_from_genai(providers, source=""))
    data = msgspec.json.encode(Snapshot(source=source, snapshot=as_of, licence=LICENCE, entries=entries))
    return gzip.compress(data.replace(b'{"id":', b'\n{"id":'), 9, mtime=0)


def _entries(provider: Any, source: str) -> Iterator[Price]:
    for rank, model in enumerate(provider.models):
        free = _is_free(model)
        periods = tuple(_periods(model.prices, free=free))
        yield Price(
            book=provider.id,
            model=model.id,
            match=_match(model.match),
            periods=periods,
            variants=tuple(_variant(variant) for variant in model.price_variants or ()),
            context_window=model.context_window,
            rank=rank,
            deprecated=bool(model.deprecated),
            source=source,
        )


def _is_free(model: Any) -> bool:
    """Whether a model without rates costs nothing, rather than an unknown amount."""
    said = f"{model.id} {model.name or ''} {model.price_comments or ''}".lower()
    return any(words in said for words in _FREE)


def _periods(prices: Any, *, free: bool) -> Iterator[Period]:
    if not isinstance(prices, list):
        yield Period(rates=_rates(prices, free=free))
        return
    for item in prices:
        yield Period(rates=_rates(item.prices, free=free), **_condition(item.constraint))


def _variant(variant: Any) -> Variant:
    return Variant(when=dict(variant.when), rates=_rates(variant.prices, free=False), **_condition(variant.constraint))


def _condition(constraint: Any) -> dict[str, Any]:
    if constraint is None:
        return {}
    if hasattr(constraint, "start_date"):
        return {"since": constraint.start_date}
    if hasattr(constraint, "start_time") and hasattr(constraint, "end_time"):
        return {"hours": (_clock(constraint.start_time), _clock(constraint.end_time))}
    raise UnknownShape(f"a condition of the kind {type(constraint).__name__}")


def _clock(value: time) -> str:
    if value.utcoffset():
        raise UnknownShape("a time of day that is not UTC")
    if value.second or value.microsecond:
        raise UnknownShape("a time of day with seconds")
    return value.strftime("%H:%M")


def _rates(prices: Any, *, free: bool) -> Rates:
    usd: dict[str, Decimal] = {}
    steps: dict[int, dict[str, Decimal]] = {}
    for key, value in vars(prices).items():
        if value is None or key.startswith("_"):
            continue
        bucket = _bucket(key)
        if isinstance(value, Decimal):
            usd[bucket] = _amount(value)
            continue
        usd[bucket] = _amount(value.base)
        for tier in value.tiers:
            steps.setdefault(tier.start, {})[bucket] = _amount(tier.price)
    if not usd and free:
        usd = {"input": Decimal(0), "output": Decimal(0)}
    return Rates(usd, tuple(Step(start, steps[start]) for start in sorted(steps)))


def _amount(rate: Decimal) -> Decimal:
    if not 0 <= rate <= _USD_MAX or -int(rate.as_tuple().exponent) > _PLACES_MAX:
        raise UnknownShape(f"a rate of {str(rate)[:40]}")
    return rate


def _bucket(key: str) -> str:
    """Our name of a price key: `cache_audio_read_mtok` is `cache_read_audio`. Keys of no use here keep their stem."""
    if key in _NAMES:
        return _NAMES[key]
    for suffix in _SUFFIXES:
        key = key.removesuffix(suffix)
    return _NAMES.get(key, key)


def _match(clause: Any) -> Match:
    parts: dict[str, list[Any]] = {}
    for alternative in _alternatives(clause):
        name, value = _simple(alternative)
        parts.setdefault(name, []).append(value)
    return Match(**{name: tuple(values) for name, values in parts.items()})


def _alternatives(clause: Any) -> Iterable[Any]:
    inner = getattr(clause, "or_", None)
    if inner is None:
        return (clause,)
    return [leaf for part in inner for leaf in _alternatives(part)]


_CLAUSES: Mapping[str, str] = {
    "starts_with": "starts",
    "ends_with": "ends",
    "contains": "contains",
    "regex": "regex",
    "equals": "equals",
}


def _simple(clause: Any) -> tuple[str, Any]:
    if hasattr(clause, "and_"):
        return "every", tuple(_match(inner) for inner in clause.and_)
    for attribute, name in _CLAUSES.items():
        if hasattr(clause, attribute):
            return name, getattr(clause, attribute)
    raise UnknownShape(f"a clause of the kind {type(clause).__name__}")


def _main() -> None:
    import sys

    import genai_prices
    from genai_prices.data import providers

    if genai_prices.__version__ != SHIPPED_VERSION:
        sys.exit(f"genai-prices {genai_prices.__version__} is installed, the shipped file is of {SHIPPED_VERSION}")
    sys.stdout.buffer.write(rendered(providers, SHIPPED_VERSION, SHIPPED_AS_OF))


if __name__ == "__main__":
    _main()
