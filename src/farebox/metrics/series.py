"""Which series there are, where their values lie, and the bounds on both: the same for all workers.

A series is made when it first counts something and stays for the life of the farebox it belongs to.
Workers find each other's series in a common log that only grows, so all put the same series at the
same place, and the bounds hold for all of them together: at most `label_values_max` values of each
open label, and at most `series_max` samples. Past either, values become `other`. Room for the
series in which everything is `other` is set aside.

What a *place* is made of (memory, a file) is `storage`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

import msgspec

from farebox.metrics.families import NONE, OTHER, Family

LABEL_CHARS_MAX = 120
"""A longer value is cut there."""


class Series(NamedTuple):
    """One series: its values for the family's labels, in order, and the place of its first sample."""

    family: str
    start: int
    width: int
    values: tuple[str, ...]


class Log(Protocol):
    """The common log of series."""

    def read(self) -> list[bytes]:
        """Lines added since the last call, whoever added them."""

    def exclusive(self) -> AbstractContextManager[None]:
        """Nobody else adds while this is held."""

    def append(self, line: bytes) -> None:
        """Add one line. Only while `exclusive` is held, and after `read`."""


def clean(value: str | None) -> str:
    """A label value that can be shown: printable, of bounded length, never empty."""
    if not value:
        return NONE
    if len(value) > LABEL_CHARS_MAX:
        value = value[:LABEL_CHARS_MAX]
    if not value.isprintable():
        value = "".join(char if char.isprintable() else "?" for char in value)
    return value


class Table:
    """The series of one farebox. `place` finds or makes one; `made` lists those there are.

    `is_secret` says of a value that it must not be shown: it is `other` then.
    """

    def __init__(
        self,
        families: Iterable[Family],
        *,
        series_max: int,
        label_values_max: int,
        log: Log,
        is_secret: Callable[[str], bool],
    ) -> None:
        families = tuple(families)
        self._set_aside = sum(family.width * len(list(family.fallbacks())) for family in families)
        self._room = series_max - self._set_aside
        self._label_values_max = label_values_max
        self._log = log
        self._is_secret = is_secret
        self._places: dict[tuple[str, tuple[str, ...]], int] = {}
        self._known: dict[str, set[str]] = {
            label: set() for family in families for label in family.labels if label not in family.closed
        }
        self._families = {family.name: family for family in families}
        self._used = 0
        self._end = 0
        self.made: dict[str, list[Series]] = {family.name: [] for family in families}
        """Series by family, in the order in which they were made."""
        self.catch_up()

    @property
    def samples(self) -> int:
        """How many samples all series together have."""
        return self._end

    def name(self, label: str, value: str | None, vouched: bool = True) -> str:
        """The value that an open label has for `value`: itself, or `other` where there is no place for it.

        One that is not `vouched` for, a name that anybody could make up, gets no new place.
        """
        name, known = clean(value), self._known[label]
        if name in known or name == NONE:
            return name
        if not vouched:
            self.catch_up()  # another worker may know it
        return name if name in known or (vouched and len(known) < self._label_values_max) else OTHER

    def place(self, family: Family, values: tuple[str, ...]) -> int:
        """Where the samples of a series begin. `values` are `clean`; those that have no place count as `other`.

        The answer for the same arguments stays the same. Raises OSError when a new series can't be written down.
        """
        found = self._find(family, self._bounded(family, values))
        if found is not None:
            return found
        with self._log.exclusive():
            self.catch_up()
            bounded = self._bounded(family, values)
            found = self._find(family, bounded)
            if found is None:
                # There is room, or this is one of the series that room was set aside for.
                found = self._end
                line = msgspec.json.encode((family.name, found, family.width, bounded))
                self._log.append(line)
                self.catch_up()
            return found

    def catch_up(self) -> None:
        """Take in the series that other workers made."""
        for line in self._log.read():
            series = msgspec.json.decode(line, type=Series)
            self._end = max(self._end, series.start + series.width)
            family = self._families.get(series.family)
            if family is None or len(family.labels) != len(series.values) or family.width != series.width:
                continue  # of another release's worker
            self._places[series.family, series.values] = series.start
            self.made[series.family].append(series)
            if series.values != family.folded(series.values):
                self._used += series.width
            for label, value in zip(family.labels, series.values, strict=True):
                if label not in family.closed and value not in (NONE, OTHER):
                    self._known[label].add(value)

    def _find(self, family: Family, bounded: tuple[str, ...]) -> int | None:
        return self._places.get((family.name, bounded))

    def _bounded(self, family: Family, values: tuple[str, ...]) -> tuple[str, ...]:
        """The values this series can have. What has no room here has none anywhere: nothing is ever taken away,
        and what others added since is known before anything is made."""
        bounded = tuple([self._admit(family, label, value) for label, value in zip(family.labels, values, strict=True)])
        if (family.name, bounded) in self._places or self._used + family.width <= self._room:
            return bounded
        return family.folded(bounded)

    def _admit(self, family: Family, label: str, value: str) -> str:
        if label in family.closed:
            return value if value in family.closed[label] else OTHER
        known = self._known[label]
        if value in known or value == NONE:
            return value
        return OTHER if len(known) >= self._label_values_max or self._is_secret(value) else value
