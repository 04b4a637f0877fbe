"""A provider's own prices, from its config to entries like those of a book.

Each entry is of the book `config:PROVIDER` and named by its glob; the first one written that fits wins.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

from farebox.config import Provider
from farebox.config.prices import ModelPrices, Rates, TierRates
from farebox.pricing import entry
from farebox.pricing.book import Lineage
from farebox.pricing.buckets import PER
from farebox.pricing.entry import Match, Period, Price, Step, Variant
from farebox.pricing.matching import spellings
from farebox.pricing.tables import EXACT

PREFIX = "config:"
_BUCKETS = {
    "input_usd_per_mtok": "input",
    "output_usd_per_mtok": "output",
    "cache_read_usd_per_mtok": "cache_read",
    "cache_write_usd_per_mtok": "cache_write",
    "cache_write_1h_usd_per_mtok": "cache_write_1h",
    "audio_input_usd_per_mtok": "input_audio",
    "audio_output_usd_per_mtok": "output_audio",
    "image_input_usd_per_mtok": "input_image",
    "image_output_usd_per_mtok": "output_image",
}
_SECONDS_PER_HOUR = 3_600


def config_entries(provider: Provider) -> list[Price]:
    """The entries of what `provider` says in `prices`, in its order."""
    return list(_entries(provider))


def _entries(provider: Provider) -> Iterator[Price]:
    for rank, (glob, prices) in enumerate(provider.prices.items()):
        yield Price(
            book=PREFIX + provider.name,
            model=glob,
            match=Match(globs=(glob,)),
            periods=tuple(_periods(prices)),
            variants=tuple(
                Variant(when=_when(tier), rates=entry.Rates(_usd(rates), _steps(rates)))
                for tier, rates in prices.tiers.items()
            ),
            rank=rank,
            source="config",
        )


class Overrides:
    """One provider's own prices, as they are looked up."""

    def __init__(self, provider: Provider) -> None:
        self._lineages = tuple(Lineage((price,)) for price in config_entries(provider))

    def find(self, model: str) -> tuple[Lineage, ...]:
        """The first entry whose glob fits a spelling of `model`; empty where none does."""
        forms = tuple(spellings(model))
        for lineage in self._lineages:
            if any(lineage.means(form) for form in forms):
                return (lineage,)
        return ()


def _periods(prices: ModelPrices) -> Iterator[Period]:
    extra = _others(prices)
    yield Period(rates=entry.Rates(_usd(prices) | extra, _steps(prices)))
    for day in sorted(prices.dated):
        rates = prices.dated[day]
        yield Period(rates=entry.Rates(_usd(rates) | extra, _steps(rates)), since=day)


def _usd(rates: Rates) -> dict[str, Decimal]:
    return {bucket: value for name, bucket in _BUCKETS.items() if (value := getattr(rates, name)) is not None}


def _steps(rates: TierRates) -> tuple[Step, ...]:
    return tuple(Step(above, _usd(rates.above[above])) for above in sorted(rates.above))


def _others(prices: ModelPrices) -> dict[str, Decimal]:
    """What is not counted in tokens: written for one, kept per thousand (characters: per million; audio: per hour)."""
    found: dict[str, Decimal] = {}
    for name, usd in prices.units_usd.items():
        if name == "seconds":
            found["audio_hours"] = EXACT.multiply(usd, _SECONDS_PER_HOUR)
        else:
            found[name] = EXACT.scaleb(usd, PER.get(name, 3))
    if prices.request_usd is not None:
        found["requests"] = EXACT.scaleb(prices.request_usd, PER["requests"])
    return found


def _when(tier: str) -> dict[str, str]:
    return {"processing": "batch"} if tier == "batch" else {"service_tier": tier}
