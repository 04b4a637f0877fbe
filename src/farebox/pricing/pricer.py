"""What one call costs: usage x price -> an exact amount, or unknown.

Nothing is guessed: a model without a price, a tier, a speed or a region without one, a unit without
one, a count that is not known, all give no cost, which is not 0. Sums are not rounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

import msgspec

from farebox.config import Provider
from farebox.dialects import PROFILES, Profile
from farebox.dialects.usage import read_usage
from farebox.pricing import most, tables
from farebox.pricing.amounts import ZERO, text_usd, tidy, tokens_usd, units_usd
from farebox.pricing.book import Lineage, PriceBook, keep
from farebox.pricing.buckets import Counts
from farebox.pricing.configured import Overrides
from farebox.pricing.entry import Price
from farebox.pricing.images import image_tokens
from farebox.pricing.modifiers import PLAIN, Need, Served, served, tier_needs
from farebox.pricing.most import Most
from farebox.pricing.publishers import NAMED_BY_OPERATOR, NONE, book_of, lookups
from farebox.pricing.tables import EXACT, Table, Tariff
from farebox.records import UsageEvent

NAMES_MAX = 4_096
"""Models of providers whose entries are kept at hand, ways in which they are bounded or served. Past it the oldest is
forgotten, and searched again."""
TARIFFS_MAX = 16_384
"""Worked-out rates kept. Past it the oldest are forgotten, and worked out again."""

_IMAGES = frozenset({"input_image", "output_image"})


class Quote(msgspec.Struct, frozen=True, kw_only=True):
    """What a model costs in the ordinary tier and the lowest context tier. None: there is no such price."""

    price_id: str
    input_usd_per_mtok: Decimal | None
    output_usd_per_mtok: Decimal | None
    cache_read_usd_per_mtok: Decimal | None
    cache_write_usd_per_mtok: Decimal | None
    context_window: int | None
    max_output_tokens: int | None


class Costing(NamedTuple):
    """An amount and the entry it comes from."""

    usd: Decimal
    price_id: str


_Found = tuple[Price, Tariff]
"""An entry and its rates."""
Asked = tuple[str, str, str | None, tuple[tuple[str, str], ...], bool]
"""How a call is to be served: provider, model, tier, speed and the like, and whether the dearest way counts."""
MostStanding = tuple[datetime, datetime, Most]
_MINUTE = timedelta(minutes=1)
_encode = msgspec.json.Encoder().encode


class Standing:
    """What the pricer of an `era` found for calls of one model and tier from `since` to before `until`.

    What holds changes with the minute, no faster. It does not know its pricer: to remember it keeps no book alive.
    """

    __slots__ = ("era", "found", "since", "source", "until")

    def __init__(self, era: object, at: datetime, found: _Found | None) -> None:
        self.era = era
        self.since = at.replace(second=0, microsecond=0)
        self.until = self.since + _MINUTE
        self.found = found
        self.source: msgspec.Raw | None = None
        """The JSON of `cost_source`, and after it of `price_id` with its name; None where there is no price."""
        if found is not None:
            self.source = msgspec.Raw(b'"prices","price_id":' + _encode(found[0].id))

    def text_usd(self, counts: Counts) -> Decimal | None:
        """What a call for text costs; None where there is no price, or it depends on more than the tokens."""
        if self.found is None:
            return None
        tariff = self.found[1]
        return text_usd(tariff.table(counts.input_tokens or 0) if tariff.steps else tariff.base, counts)


class _Candidate(NamedTuple):
    """A model's entries as found under a name. `borrowed`: in the book of a publisher whose models a cloud sells."""

    lineage: Lineage
    name: str
    borrowed: bool


class Pricer:
    """Prices events with one book and one set of providers. Immutable: a new book or config is a new pricer."""

    def __init__(self, book: PriceBook, providers: Mapping[str, Provider]) -> None:
        self.book = book
        self.era = object()
        """Its own: what it found (`Standing`) is known by it."""
        self._books = {
            name: book_of(price_book=one.price_book, base_url=one.base_url, dialect=one.dialect)
            for name, one in providers.items()
        }
        self._overrides = {name: Overrides(one) for name, one in providers.items() if one.prices}
        self._known: dict[tuple[str, str | None, str | None], tuple[_Candidate, ...]] = {}
        self._tariffs: dict[tuple[str, int, tuple[int, ...]], Tariff] = {}
        self._mosts: dict[Asked, MostStanding] = {}
        self._standings: dict[tuple[str, str | None, str | None, str | None], Standing] = {}

    def price(self, event: UsageEvent) -> None:
        """Set `cost_usd`, `cost_source` and `price_id` of `event`, and nothing else.

        `prices`: by the entry that `price_id` names. `provider`: no entry can say, but the provider
        reported an amount. None: unknown. An event with nothing billable keeps what it has.
        """
        if event.usage_source == "none":
            return
        costing = self.cost(event)
        if costing is not None:
            event.cost_usd, event.price_id = costing
            event.cost_source = "prices"
        else:
            event.cost_usd, event.price_id = event.provider_cost_usd, None
            event.cost_source = None if event.provider_cost_usd is None else "provider"

    def cost(self, event: UsageEvent) -> Costing | None:
        """What `event` costs by the entries; None where anything this needs is not known."""
        if event.input_tokens is None or (event.output_tokens is None and event.operation != "embeddings"):
            return None
        how = served(event)
        if how is PLAIN:
            asked, tier, at = event.requested_model, event.service_tier, event.started_at
            found = self.standing(event.provider, event.model, asked, tier, at).found
        elif how.unpriceable:
            return None
        else:
            needs = tier_needs(event.service_tier) + how.needs
            found = self._find(event.provider, event.model, event.requested_model, needs, _utc(event.started_at))
        if found is None:
            return None
        price, tariff = found
        table = tariff.table(event.input_tokens) if tariff.steps else tariff.base
        amount = self._parts_usd(event, how) if how.parts else _tokens_usd(event, table)
        if amount is not None and (event.units or "requests" in table.rates):
            beside = units_usd(table, event.units)
            amount = None if beside is None else EXACT.add(amount, beside)
        return None if amount is None else Costing(tidy(amount), price.id)

    def quote(self, provider_name: str, model: str, at: datetime) -> Quote | None:
        """The rates of a model as a provider lists it; None where no price is known. `at`: naive is UTC."""
        found = self._find(provider_name, model, None, (), _utc(at))
        if found is None or not found[1].base.rates:
            return None
        price, rates = found[0], found[1].base
        return Quote(
            price_id=price.id,
            input_usd_per_mtok=rates.input,
            output_usd_per_mtok=rates.output,
            cache_read_usd_per_mtok=rates.cache_read,
            cache_write_usd_per_mtok=rates.cache_write,
            context_window=price.context_window,
            max_output_tokens=price.max_output,
        )

    def bound(
        self,
        provider: str,
        model: str,
        tier: str | None,
        input_tokens: int,
        output_tokens: int,
        at: datetime,
        *,
        dearest: bool,
        served: tuple[tuple[str, str], ...] = (),
    ) -> Decimal | None:
        """The most that a call of text with so many tokens, or fewer, costs in US dollars; None: unpriced.

        By the entry of `model` as the request names it; an answer under another name may be dearer. `tier` is the
        service tier asked for, `served` its `speed` and `inference_geo` by name. `dearest`: also as the provider may
        serve it instead. `at` must be the `started_at` that the row will have: prices differ by the hour.
        """
        return self.most((provider, model, tier, served, dearest), at)[2].usd(input_tokens, output_tokens)

    def most(self, asked: Asked, at: datetime) -> MostStanding:
        """From when to before when what bounds such calls stands, and that."""
        # What holds may change with the minute, no faster.
        known = self._mosts.get(asked)
        if known is None or at.tzinfo is not UTC or not known[0] <= at < known[1]:
            known = self._most(asked, _utc(at))
        return known

    def _most(self, key: Asked, at: datetime) -> MostStanding:
        provider, model, tier, served, dearest = key
        found = self._entry(provider, model, None, at)
        tariffs: tuple[Tariff, ...] = ()
        if found is not None:
            price, borrowed = found
            # A cloud may price another's models otherwise than its publisher as soon as it is not the ordinary way.
            plain = {()} if not most.needs_of(tier, served) else set()
            ways = plain if borrowed else most.ways(price, tier, served, at, dearest=dearest)
            period = tables.period(price, at)
            tariffs = tuple(self._tariff(price, period, way) for way in ways)
        minute = at.replace(second=0, microsecond=0)
        standing = minute, minute + _MINUTE, Most(tariffs)
        keep(self._mosts, key, standing, NAMES_MAX)
        return standing

    def standing(self, provider: str, model: str | None, asked: str | None, tier: str | None, at: datetime) -> Standing:
        """What holds at `at` for calls that ask for no more than a `tier`. `asked`: the model as requests name it."""
        key = (provider, model, asked, tier)
        standing = self._standings.get(key)
        if standing is None or at.tzinfo is not UTC or not standing.since <= at < standing.until:
            at = _utc(at)
            standing = Standing(self.era, at, self._find(provider, model, asked, tier_needs(tier), at))
            keep(self._standings, key, standing, NAMES_MAX)
        return standing

    def _parts_usd(self, event: UsageEvent, how: Served) -> Decimal | None:
        """The sum over the models that worked on an answer, each at its own price and context tier."""
        needs, at = tier_needs(event.service_tier) + how.needs, _utc(event.started_at)
        profile = PROFILES.get(event.dialect) or Profile(name=event.dialect)
        total = ZERO
        for part in how.parts:
            model = part.model or event.model
            usage = read_usage(part.usage, operation=event.operation, profile=profile, model=model).usage
            asked = event.requested_model if part.model is None else None
            found = self._find(event.provider, model, asked, needs, at)
            if found is None or usage.input_tokens is None or usage.output_tokens is None:
                return None
            amount = tokens_usd(found[1].table(usage.input_tokens), usage)
            if amount is None:
                return None
            total = EXACT.add(total, amount)
        return total

    def _find(
        self, provider: str, model: str | None, asked: str | None, needs: tuple[Need, ...], at: datetime
    ) -> _Found | None:
        """The entry in force and its rates; None without an entry, or where it has no price for `needs`."""
        found = self._entry(provider, model, asked, at)
        if found is None:
            return None
        price, borrowed = found
        chosen = (tables.variants(price, needs, at) if not borrowed else None) if needs else ()
        return None if chosen is None else (price, self._tariff(price, tables.period(price, at), chosen))

    def _entry(self, provider: str, model: str | None, asked: str | None, at: datetime) -> tuple[Price, bool] | None:
        """The entry in force, and whether it is borrowed."""
        key = (provider, model, asked)
        known = self._known.get(key)
        if known is None:
            known = tuple(self._search(provider, model, asked))
            keep(self._known, key, known, NAMES_MAX)
        for candidate in known:
            price = candidate.lineage.on(at.date(), candidate.name)
            if price is not None:
                return price, candidate.borrowed
        return None

    def _tariff(self, price: Price, period: int, variants: tuple[int, ...]) -> Tariff:
        key = (price.id, period, variants)
        tariff = self._tariffs.get(key)
        if tariff is None:
            tariff = tables.tariff(price, period, variants)
            keep(self._tariffs, key, tariff, TARIFFS_MAX)
        return tariff

    def _search(self, provider: str, model: str | None, asked: str | None) -> Iterator[_Candidate]:
        """Where to look, in order: the provider's own prices, then its book; the answer's model, then the one asked."""
        names = [*dict.fromkeys(name for name in (model, asked) if name)]
        own = self._overrides.get(provider)
        if own is not None:
            for name in names:
                yield from (_Candidate(lineage, name, borrowed=False) for lineage in own.find(name))
        main = self._books.get(provider, NONE)
        if main in NAMED_BY_OPERATOR:
            names = names[:1]
        for name in names:
            for book, spelled in lookups(main, name, asked):
                borrowed = book != main and not book.startswith(main)
                for lineage in self.book.candidates(book, spelled):
                    yield _Candidate(lineage, spelled, borrowed)


def _tokens_usd(event: UsageEvent, table: Table) -> Decimal | None:
    """Of several ways to split the image tokens, the dearer."""
    if not event.image_tokens or not table.rates.keys() & _IMAGES:
        return tokens_usd(table, event)
    amounts = [tokens_usd(table, event, *split) for split in image_tokens(event)]
    known = [amount for amount in amounts if amount is not None]
    return max(known) if len(known) == len(amounts) else None


def _utc(at: datetime) -> datetime:
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
