"""What there is and who gets to see it: the lists of all providers, merged as the routes would send calls.

Values in, values out. A `Shelf` is made from what is stored and what is known without asking; `listed`
asks `routing` about each model, so that a list never promises what a call would not get.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Literal, NamedTuple

from farebox import routing
from farebox.config import Config, Provider
from farebox.errors import Refusal
from farebox.paths import Target
from farebox.pricing import Quote
from farebox.records import Caller, Model, ModelList

Source = Literal["provider", "shipped"]
"""Who says that the model is there.

provider  the provider, when it was last asked with success
shipped   it never was: the models farebox knows prices of, as of the snapshot it came with
"""


class Known(NamedTuple):
    """Models that are known without asking a provider, and as of when (None: always)."""

    models: tuple[Model, ...] = ()
    as_of: datetime | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """One model at one provider. Token limits are the provider's, else the price book's; None: not known."""

    model: Model
    provider: str
    source: Source
    as_of: datetime | None
    context_length: int | None
    max_output_tokens: int | None
    quote: Quote | None
    """What it costs; None: not known."""

    def age_s(self, now: datetime) -> int | None:
        """Seconds since this was known to be true; None where it does not age."""
        return None if self.as_of is None else max(0, int((now - self.as_of).total_seconds()))


@dataclass(frozen=True, slots=True)
class Stock:
    """What one provider has. `held`: what is stored of it, None for nothing."""

    provider: Provider
    source: Source
    as_of: datetime | None
    offers: Mapping[str, Offer]
    held: ModelList | None = None


Shelf = Mapping[str, Stock]
"""The stock of each provider, by its name, in the order of the config."""

_NO_QUOTES: Mapping[str, Quote | None] = MappingProxyType({})


def stock(
    provider: Provider, held: ModelList | None, known: Known, quotes: Mapping[str, Quote | None] = _NO_QUOTES
) -> Stock:
    """What `provider` has: its own last list, or, as long as it never gave one, what is known without it.

    `quotes`: what its models cost, as far as that is known.
    """
    source: Source = "shipped"
    models: Iterable[Model] = known.models
    as_of = known.as_of
    if held is not None and held.models is not None:
        source, models, as_of = "provider", held.models, held.fetched_at
    offers = {}
    for model in models:
        quote = quotes.get(model.id)
        offers[model.id] = Offer(
            model=model,
            provider=provider.name,
            source=source,
            as_of=as_of,
            context_length=model.context_length or (quote.context_window if quote is not None else None),
            max_output_tokens=model.max_output_tokens or (quote.max_output_tokens if quote is not None else None),
            quote=quote,
        )
    return Stock(provider, source, as_of, MappingProxyType(offers), held)


def listed(shelf: Shelf, config: Config, caller: Caller, target: Target, tags: Mapping[str, str]) -> Iterator[Offer]:
    """What `caller` may use and would get, each model once: the offer of the provider it would be sent to."""
    for id in names(shelf):
        offer = sent_to(shelf, config, caller, target, tags, id)
        if offer is not None:
            yield offer


def names(shelf: Shelf) -> Iterator[str]:
    """Every model there is, once, in the order of the providers."""
    return iter(dict.fromkeys(id for stock in shelf.values() for id in stock.offers))


def sent_to(
    shelf: Shelf, config: Config, caller: Caller, target: Target, tags: Mapping[str, str], id: str
) -> Offer | None:
    """The offer of the provider that a call for model `id` would be sent to; None where it would be refused,
    or the provider does not have it.

    Only the first provider of a route counts: the others are for when it can't be reached, and one that
    does not know a model does answer.
    """
    try:
        route = routing.choose(config, caller, target, id, tags)
    except Refusal:
        return None
    there = shelf.get(route.providers[0].name)
    return there.offers.get(id) if there is not None else None
