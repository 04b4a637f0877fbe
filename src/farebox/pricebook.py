"""The price book of a running process: seeded, loaded, looked at again, and handed to whoever prices a call.

Postgres has the book, so that all processes price alike and a price list fetched with `farebox prices
sync` is in force everywhere within one poll. The facts shipped with farebox are put there where what
is there is older. Prices that the config sets go along, not to be read again, but because a row's
price_id must lead somewhere. While the database is away the book in memory stays in force.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import structlog

from farebox.config import Provider
from farebox.following import follow
from farebox.logs import exception_facts
from farebox.pricing import PriceBook, Pricer, config_entries, shipped, unknown_books
from farebox.records import UsageEvent
from farebox.store import PriceLists, Store
from farebox.store.prices import CONFIG, PUBLISHED, digest_of

_UNPUT_MAX = 16
"""Configs whose prices wait to be written down while the database is away; past it the oldest are forgotten."""
_LAST_PUT_S = 2.0
"""How long a stop may take to write down the prices of a config that came right before it."""


class Prices:
    """The prices in force. `start`, then `price` for every call from any thread, `close` at the end.

    `poll_s`: how often a newer list is looked for, with one small query.
    """

    def __init__(
        self,
        lists: PriceLists,
        providers: Mapping[str, Provider],
        *,
        poll_s: float,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._lists = lists
        self._providers = providers
        self._poll_s = poll_s
        self._now = now
        self._book = PriceBook(())
        self._revision: int | None = None
        self._unput = [providers]
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._log = structlog.get_logger()
        self.pricer = Pricer(self._book, providers)
        """Replaced whole when prices or providers change."""

    async def start(self) -> None:
        """Bring the database's book up to date, load it, and begin to watch it. Raises StoreUnavailable."""
        book, revision = await seeded(self._lists)
        self._put_in_force(book, revision)
        self._warn()
        await self._put_own()
        following = follow("prices", self._look, wake=self._wake, poll_s=lambda: self._poll_s)
        self._task = asyncio.create_task(following, name="prices")

    async def close(self) -> None:
        """Watch no longer; the prices stay."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        try:
            async with asyncio.timeout(_LAST_PUT_S):
                await self._put_own()
        except Exception as error:
            self._log.warning("the config's own prices could not be written down", **exception_facts(error))

    def price(self, event: UsageEvent) -> None:
        """Set what the call cost, by the prices in force now."""
        self.pricer.price(event)

    def change(self, providers: Mapping[str, Provider], *, poll_s: float) -> None:
        """Price by these providers from now on, and look as often as that.

        A provider that is gone is known until the next change or list: its last calls are still to be priced.
        """
        self._poll_s = poll_s
        known = {**self._providers, **providers}
        self._providers = providers
        self.pricer = Pricer(self._book, known)
        self._warn()
        self._unput = [*self._unput, providers][-_UNPUT_MAX:]
        self._wake.set()

    def _warn(self) -> None:
        for provider in unknown_books(self._providers.values(), self._book.books):
            self._log.warning(
                "no price list has the name in price_book: calls cost an unknown amount",
                provider=provider.name,
                price_book=provider.price_book,
            )

    # -- the database's book -----------------------------------------------------------------------

    def _put_in_force(self, book: PriceBook, revision: int) -> None:
        self._book, self._revision = book, revision
        self.pricer = Pricer(book, self._providers)

    async def _look(self) -> None:
        newest = await self._lists.newest()
        if newest is not None and newest.revision != self._revision:
            book = await loaded(self._lists, newest.revision)
            self._put_in_force(book, newest.revision)
            self._log.info("another price list is in force", revision=newest.revision, prices=len(book))
        await self._put_own()

    async def _put_own(self) -> None:
        """Of every config since the last time, also of one that was soon changed again: calls were priced by it."""
        while self._unput:
            providers = self._unput[0]
            await put_configured(self._lists, providers, self._now())
            self._unput = [others for others in self._unput if others is not providers]


async def put_configured(lists: PriceLists, providers: Mapping[str, Provider], now: datetime) -> None:
    """Write down the prices that the config sets, so that each price_id they give leads somewhere.

    Replicas with the same config write them once.
    """
    known = await lists.digests(CONFIG)
    for name, provider in providers.items():
        own = config_entries(provider)
        if known.get(CONFIG + name, digest_of(())) != digest_of(own):
            await lists.put(CONFIG + name, "config", now, own)


async def current_pricer(store: Store, providers: Mapping[str, Provider]) -> Pricer:
    """A pricer for a command, by the book in force, which is seeded if no farebox has served yet."""
    book, _ = await seeded(PriceLists(store))
    return Pricer(book, providers)


async def seeded(lists: PriceLists) -> tuple[PriceBook, int]:
    """The book in force and its revision, after what is shipped was put there if that is the younger."""
    facts, newest = shipped(), await lists.newest()
    if newest is None or newest.snapshot < facts.snapshot or newest.source == "shipped":
        if newest is not None and newest.digest == digest_of(facts.entries):
            return PriceBook(facts.entries), newest.revision
        revision = await lists.put(PUBLISHED, "shipped", facts.snapshot, facts.entries)
        if revision is not None:
            return PriceBook(facts.entries), revision
        newest = await lists.newest()  # another process was first, or a younger one's are there
        assert newest is not None
    return await loaded(lists, newest.revision), newest.revision


async def loaded(lists: PriceLists, revision: int) -> PriceBook:
    """The book of one revision."""
    prices, unread = await lists.load(revision)
    if unread:
        structlog.get_logger().error(
            "prices can't be read, their models cost an unknown amount: a newer farebox wrote them", prices=len(unread)
        )
    return PriceBook(prices)
