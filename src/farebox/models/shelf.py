"""What there is and who gets to see it: the lists of all providers, merged as the routes would send calls.

Values in, values out. A `Shelf` is made from what is stored and what is known without asking; `listed`
asks `routing` about each model: whose offer a call would get, or that only `/p/PROVIDER` leads to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType
from typing import Literal, NamedTuple

from farebox import paths, routing
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
    routed: bool = True
    """Whether a call for this model gets here by the routes; if not, only `/p/PROVIDER` leads here."""

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
    """What `caller` may use, each model once: the offer of the provider it would be sent to, else anybody's."""
    for id in names(shelf):
        offer = offered(shelf, config, caller, target, tags, id)
        if offer is not None:
            yield offer


def names(shelf: Shelf) -> Iterator[str]:
    """Every model there is, once, in the order of the providers."""
    return iter(dict.fromkeys(id for stock in shelf.values() for id in stock.offers))


def offered(
    shelf: Shelf, config: Config, caller: Caller, target: Target, tags: Mapping[str, str], id: str
) -> Offer | None:
    """The offer of the provider that a call for model `id` would be sent to; where that one does not have it, or no
    rule is for the call, the first that `caller` may address by name. None where nobody is left."""
    return _sent_to(shelf, config, caller, target, tags, id) or _addressed(shelf, config, caller, id)


def _sent_to(
    shelf: Shelf, config: Config, caller: Caller, target: Target, tags: Mapping[str, str], id: str
) -> Offer | None:
    """The others of a route are for when the one before can't be reached, and one that does not know a model
    does answer. So they count only behind one that never gave a list, of which nobody knows that.
    """
    try:
        route = routing.choose(config, caller, target, id, tags)
    except Refusal:
        return None
    for provider in route.providers:
        there = shelf.get(provider.name)
        if there is None:
            continue
        if id in there.offers or there.source == "provider":
            return there.offers.get(id)
    return None


def _addressed(shelf: Shelf, config: Config, caller: Caller, id: str) -> Offer | None:
    for name, there in shelf.items():
        if id not in there.offers:
            continue
        try:
            routing.choose(config, caller, paths.parse("GET", f"/p/{name}/models"), id, {})
        except Refusal:
            continue
        return replace(there.offers[id], routed=False)
    return None
