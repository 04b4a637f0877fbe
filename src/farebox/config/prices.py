"""The settings of a provider's own prices: what its models cost there, whatever a price book says.

Amounts are exact: from the text of the file to a Decimal, never through a float. What they mean for a
call is in `farebox.pricing`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from types import MappingProxyType
from typing import Any

from farebox.config.kinds import Bad, Choice, Day, Line, Map, Money, Pairs, Whole, setting

USD_PER_MTOK_MAX = 1_000_000
_PER_MTOK = Money(USD_PER_MTOK_MAX)
ORDINARY_TIERS = frozenset({"default", "standard", "auto", "on_demand", "on-demand", "ondemand", "none"})
"""Words by which providers name the ordinary tier in an answer."""
_UNITS = ("web_searches", "file_searches", "x_searches", "sources", "images", "pages", "characters", "seconds")


def _none() -> Mapping[Any, Any]:
    return MappingProxyType({})


def _rate(doc: str, show: str) -> dict[str, Any]:
    return setting(_PER_MTOK, doc, show)


@dataclass(frozen=True)
class Tier(Line):
    """The name of a service tier that has prices of its own, in lower case: case does not count in answers either."""

    what: str = "a service tier"
    chars_max: int = 64

    def parse(self, text: str) -> str:
        word: str = super().parse(text).lower()
        if word in ORDINARY_TIERS:
            raise Bad("an answer that says so is priced by the lines beside tiers; write its rates there")
        return word


@dataclass(frozen=True, kw_only=True)
class Rates:
    """US dollars per million tokens. None: as the enclosing kind of tokens, at last input or output."""

    input_usd_per_mtok: Decimal | None = field(
        default=None,
        metadata=_rate("US dollars per million input tokens that no other line is for. Amounts are exact.", "1.25"),
    )
    output_usd_per_mtok: Decimal | None = field(
        default=None,
        metadata=_rate("Output, reasoning included. Left out: a call with output has an unknown cost.", "10"),
    )
    cache_read_usd_per_mtok: Decimal | None = field(
        default=None, metadata=_rate("Input read from a cache. Left out: as input.", "0.125")
    )
    cache_write_usd_per_mtok: Decimal | None = field(
        default=None, metadata=_rate("Input written to a cache. Left out: as input.", "1.5625")
    )
    cache_write_1h_usd_per_mtok: Decimal | None = field(
        default=None, metadata=_rate("Input written to a cache for an hour or more. Left out: as cache_write.", "2.5")
    )
    audio_input_usd_per_mtok: Decimal | None = field(
        default=None, metadata=_rate("Audio in the input. Left out: as input.", "32")
    )
    audio_output_usd_per_mtok: Decimal | None = field(
        default=None, metadata=_rate("Audio in the output. Left out: as output.", "64")
    )
    image_input_usd_per_mtok: Decimal | None = field(
        default=None, metadata=_rate("Images in the input. Left out: as input.", "5")
    )
    image_output_usd_per_mtok: Decimal | None = field(
        default=None, metadata=_rate("Images in the output. Left out: as output.", "40")
    )


@dataclass(frozen=True, kw_only=True)
class TierRates(Rates):
    """Rates with context tiers."""

    above: Mapping[int, Rates] = field(
        default_factory=_none,
        metadata=setting(
            Map(Whole(0, 10**12), Rates),
            "Rates of requests with more input tokens than this, caches included: then of all their tokens. What a "
            "tier leaves out costs as below it.",
            "{272000: {input_usd_per_mtok: 2.5, output_usd_per_mtok: 15}}",
        ),
    )


@dataclass(frozen=True, kw_only=True)
class ModelPrices(TierRates):
    """Everything a model may cost at one provider."""

    tiers: Mapping[str, TierRates] = field(
        default_factory=_none,
        metadata=setting(
            Map(Tier(), TierRates),
            "Rates by the service tier that the answer names: flex, priority, batch ... An answer from a tier that is "
            "not here has an unknown cost; default, standard, auto and on_demand are the lines above.",
            "{flex: {input_usd_per_mtok: 0.625, output_usd_per_mtok: 5}}",
        ),
    )
    dated: Mapping[date, TierRates] = field(
        default_factory=_none,
        metadata=setting(
            Map(Day(), TierRates),
            "Rates that replace the ones above from a day on (UTC), whole.",
            "{2027-01-01: {input_usd_per_mtok: 1, output_usd_per_mtok: 8}}",
        ),
    )
    units_usd: Mapping[str, Decimal] = field(
        default_factory=_none,
        metadata=setting(
            Pairs(Choice(_UNITS), Money(USD_PER_MTOK_MAX)),
            "US dollars for one of what is not counted in tokens: web_searches, file_searches, x_searches, sources, "
            "images, pages, characters, seconds (of audio). Units that are used and not here: an unknown cost.",
            "{web_searches: 0.01}",
        ),
    )
    request_usd: Decimal | None = field(
        default=None,
        metadata=setting(Money(USD_PER_MTOK_MAX), "US dollars for each request, beside tokens.", "0.005"),
    )
