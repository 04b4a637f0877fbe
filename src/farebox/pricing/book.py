"""An immutable index over entries: which one is for this model of this publisher on this day.

Names repeat, so the answer for a name is kept; what is kept is bounded, because clients choose names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime
from typing import TypeVar

from farebox.pricing.entry import Price
from farebox.pricing.matching import NAME_CHARS_MAX, Test, only_equals, spellings, test

NAMES_MAX = 4_096
"""Names whose answer is kept, known or not. Past it the oldest is forgotten, and searched again when it comes."""

_NOTHING: tuple[Lineage, ...] = ()
_K = TypeVar("_K")
_V = TypeVar("_V")


def keep(cache: dict[_K, _V], key: _K, value: _V, most: int) -> None:
    """Put one more into a cache of at most `most`, forgetting the oldest. Several threads may do so at once."""
    while len(cache) >= most:
        try:
            cache.pop(next(iter(cache)), None)
        except (RuntimeError, StopIteration):
            continue  # another thread was at it in that moment
    cache[key] = value


class Lineage:
    """The entries of one model of one publisher, oldest first."""

    __slots__ = ("entries", "tests")

    def __init__(self, entries: Iterable[Price]) -> None:
        self.entries = tuple(sorted(entries, key=lambda price: price.since or date.min))
        self.tests: tuple[Test, ...] = ()

    def at(self, day: date) -> int:
        """The index of the entry in force. The earliest one also stands for what came before it."""
        found = 0
        for index, price in enumerate(self.entries):
            if price.since is None or price.since <= day:
                found = index
        return found

    def on(self, day: date, name: str) -> Price | None:
        """The entry in force on a day, if it is for `name`."""
        index = self.at(day) if len(self.entries) > 1 else 0
        if len(self.entries) > 1:
            self.compile()
            if not any(self.tests[index](form) for form in spellings(name)):
                return None
        return self.entries[index]

    def compile(self) -> None:
        if not self.tests:
            self.tests = tuple(test(price.match) for price in self.entries)

    def means(self, name: str) -> bool:
        """Whether any entry, of whatever day, is for `name`."""
        self.compile()
        return any(holds(name) for holds in self.tests)


class _Shelf:
    """One publisher's models in the order they are tried."""

    def __init__(self, lineages: list[Lineage]) -> None:
        self._lineages = lineages
        self._listed: dict[str, list[int]] = {}
        self._patterns: list[int] = []
        for index, lineage in enumerate(lineages):
            if any(not only_equals(price.match) for price in lineage.entries):
                self._patterns.append(index)
                continue
            for name in {name.lower() for price in lineage.entries for name in price.match.equals}:
                self._listed.setdefault(name, []).append(index)

    def candidates(self, name: str) -> tuple[Lineage, ...]:
        """The models that `name` may mean, in order."""
        for form in spellings(name):
            found = list(self._listed.get(form, ()))
            found += [index for index in self._patterns if self._lineages[index].means(form)]
            if found:
                return tuple(self._lineages[index] for index in sorted(found))
        return _NOTHING


class PriceBook:
    """All entries, by publisher. `find` is meant to be asked often."""

    def __init__(self, entries: Iterable[Price]) -> None:
        self.entries: tuple[Price, ...] = tuple(entries)
        models: dict[str, dict[str, list[Price]]] = {}
        for price in self.entries:
            models.setdefault(price.book, {}).setdefault(price.model, []).append(price)
        self._groups = models
        self._shelves: dict[str, _Shelf] = {}
        self._ids: dict[str, Price] | None = None
        self._known: dict[tuple[str, str], tuple[Lineage, ...]] = {}

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def books(self) -> frozenset[str]:
        """The names of the publishers in it."""
        return frozenset(self._groups)

    def get(self, price_id: str) -> Price | None:
        """The entry of this id, as a row's `price_id` names it."""
        if self._ids is None:
            self._ids = {price.id: price for price in self.entries}
        return self._ids.get(price_id)

    def find(self, book: str, model: str, at: datetime) -> Price | None:
        """The entry of publisher `book` for a model name at that instant (naive: UTC); None: no price is known."""
        day = (at.astimezone(UTC) if at.tzinfo else at).date()
        for lineage in self.candidates(book, model):
            price = lineage.on(day, model)
            if price is not None:
                return price
        return None

    def candidates(self, book: str, model: str) -> tuple[Lineage, ...]:
        """Every model of `book` that a name may mean, the first that is in force deciding."""
        key = (book, model)
        known = self._known.get(key)
        if known is None:
            known = self._search(book, model)
            keep(self._known, key, known, NAMES_MAX)
        return known

    def _search(self, book: str, model: str) -> tuple[Lineage, ...]:
        if book not in self._groups or not 0 < len(model) <= NAME_CHARS_MAX:
            return _NOTHING
        shelf = self._shelves.get(book)
        if shelf is None:
            shelf = self._shelves[book] = _Shelf(list(_ordered(self._groups[book])))
        return shelf.candidates(model)


def _ordered(models: dict[str, list[Price]]) -> Iterator[Lineage]:
    """By rank and name. Of several entries of one model the latest tells its rank."""
    lineages = [Lineage(entries) for entries in models.values()]
    lineages.sort(key=lambda lineage: (lineage.entries[-1].rank, lineage.entries[-1].model))
    return iter(lineages)
