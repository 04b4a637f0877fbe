"""The models of a running farebox: what is stored, held in memory, and kept young in the background.

A request is answered from memory alone. Two tasks keep that true: one looks, every `poll_s`, whether
any list in Postgres changed (another worker, another replica or `farebox models refresh` may have
fetched it) and takes it over; the other has the providers asked that are due. While the database is
away, what was known stays.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from types import MappingProxyType

import structlog

from farebox.config import Config, Provider
from farebox.logs import exception_facts
from farebox.models import shelf
from farebox.models.refresh import Refresher
from farebox.models.shelf import Known, Offer, Shelf
from farebox.paths import Target
from farebox.pricing import Pricer, Quote
from farebox.records import Caller
from farebox.store import ModelLists

_VIEWS_MAX = 64
"""Lists held ready, by what a key may use; past that the one unused for longest is worked out again."""
_QUOTES_S = 300.0
"""How old a price in a list may be: prices change at fixed hours."""
_A_TURN = 20
"""Models looked at before other calls get their turn."""


class Catalogue:
    """Which models there are, at which provider, and who gets to see them.

    `pricer` gives the prices in force; `known(provider)` what can be said without asking. `start` before
    use, `close` at the end.
    """

    def __init__(
        self,
        config: Config,
        *,
        lists: ModelLists,
        refresher: Refresher,
        pricer: Callable[[], Pricer],
        known: Callable[[Provider], Known],
        now: Callable[[], datetime],
    ) -> None:
        self.config = config
        """The one in force."""
        self._lists = lists
        self._refresher = refresher
        self._pricer = pricer
        self._known = known
        self._now = now
        self._log = structlog.get_logger()
        self._shelf: Shelf = MappingProxyType({})
        self._built: tuple[tuple[int, int], Config, Pricer] | None = None
        self._built_at = now()
        self._views: OrderedDict[object, Sequence[Offer]] = OrderedDict()
        self._viewed: tuple[Config, Shelf] | None = None
        self._look, self._ask = asyncio.Event(), asyncio.Event()
        self._eager = True
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Take over what is stored, and go on from there in the background. No provider is waited for."""
        try:
            await self.look()
        except Exception as exc:
            self._log.warning("the stored lists of models can't be read", **exception_facts(exc))
        self._tasks = [
            asyncio.create_task(self._repeat(self._look, self.look), name="models poll"),
            asyncio.create_task(self._repeat(self._ask, self._ask_due), name="models refresh"),
        ]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def providers_changed(self, config: Config) -> None:
        """Another config is in force: take its providers' lists, and ask those that have none."""
        self.config = config
        self._eager = True
        self._look.set()
        self._ask.set()

    async def listing(self, caller: Caller, config: Config, target: Target, tags: Mapping[str, str]) -> Sequence[Offer]:
        """What `caller` may use and would get by `config`'s routes, each model once. `tags` are the request's."""
        held = self._viewed
        if held is None or held[0] is not config or held[1] is not self._shelf:
            held = self._viewed = (config, self._shelf)
            self._views.clear()
        key = (caller.models, caller.providers, tuple(sorted({**tags, **caller.tags}.items())))
        view = self._views.get(key)
        if view is None:
            view = await _view(held[1], config, caller, target, tags)
            if self._viewed is not held:
                return view  # what it was made from is out of date already
            self._views[key] = view
            if len(self._views) > _VIEWS_MAX:
                self._views.popitem(last=False)
        self._views.move_to_end(key)
        return view

    def one(self, caller: Caller, config: Config, target: Target, tags: Mapping[str, str], id: str) -> Offer | None:
        """The entry `id` of that list; None when it has none."""
        return shelf.offered(self._shelf, config, caller, target, tags, id)

    @property
    def shelf(self) -> Shelf:
        """Everything that every provider has."""
        return self._shelf

    async def look(self) -> None:
        """Take over what changed in database, config or prices. Raises when the database is away."""
        config, pricer, now = self.config, self._pricer(), self._now()
        built = (await self._lists.version(), config, pricer)
        fresh = now - self._built_at < timedelta(seconds=_QUOTES_S)
        if fresh and self._built is not None and all(a is b or a == b for a, b in zip(built, self._built, strict=True)):
            return
        self._shelf = await read_shelf(config, self._lists, pricer, self._known, now)
        self._built, self._built_at = built, now

    async def _ask_due(self) -> None:
        eager, self._eager = self._eager, False
        try:
            if await self._refresher.ask_due(self.config, eager=eager):
                self._look.set()
        except BaseException:
            self._eager = self._eager or eager
            raise

    async def _repeat(self, wake: asyncio.Event, work: Callable[[], Awaitable[None]]) -> None:
        """Do `work`, now and then every `poll_s`, or as soon as `wake` is set. A fault is logged once in a row."""
        away = False
        while True:
            try:
                await work()
                away = False
            except Exception as exc:
                if not away:
                    self._log.warning("the lists of models can't be kept up; known ones stay", **exception_facts(exc))
                away = True
            try:
                async with asyncio.timeout(self.config.models.poll_s):
                    await wake.wait()
            except TimeoutError:
                pass
            wake.clear()


async def _view(
    shelf_: Shelf, config: Config, caller: Caller, target: Target, tags: Mapping[str, str]
) -> Sequence[Offer]:
    """`shelf.listed`, with pauses: asking the routes for thousands of models takes a while."""
    found = []
    for number, id in enumerate(shelf.names(shelf_)):
        offer = shelf.offered(shelf_, config, caller, target, tags, id)
        if offer is not None:
            found.append(offer)
        if number % _A_TURN == 0:
            await asyncio.sleep(0)
    return tuple(found)


async def read_shelf(
    config: Config, lists: ModelLists, pricer: Pricer, known: Callable[[Provider], Known], now: datetime
) -> Shelf:
    """What is stored of every provider of `config`, with its prices of `now`."""
    providers = config.providers
    held = {one.provider: one for one in await lists.read((p.name, p.base_url) for p in providers.values())}
    stocks = {}
    for name, provider in providers.items():
        stock = shelf.stock(provider, held.get(name), known(provider))
        quotes: dict[str, Quote | None] = {}
        for number, id in enumerate(stock.offers):
            quotes[id] = pricer.quote(name, id, now)
            if number % _A_TURN == 0:
                await asyncio.sleep(0)
        stocks[name] = shelf.stock(provider, held.get(name), known(provider), quotes)
    return MappingProxyType(stocks)
