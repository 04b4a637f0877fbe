"""Holds given back in the background: until it succeeds, in any order of faults, within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID

from farebox.budgets.releases import Releases
from farebox.store import StoreUnavailable
from support.budgets import WAIT_S, until


class Database:
    """Stands in for the store where it is to fail at will."""

    def __init__(self) -> None:
        self.away = False
        self.tries = 0
        self.released: list[UUID] = []

    async def release(self, ids: Sequence[UUID]) -> None:
        self.tries += 1
        if self.away:
            raise StoreUnavailable("away")
        self.released += ids


def ids(number: int) -> list[UUID]:
    return [UUID(int=n + 1) for n in range(number)]


async def test_what_cannot_be_given_back_now_is_given_back_later() -> None:
    """While the database is away releases wait, and a flush says so; once it is back all are made, in order."""
    database = Database()
    database.away = True
    releases = Releases(database.release)
    releases.start()
    for id in ids(700):
        releases.add(id)
    assert not await releases.flush(0.05)
    assert (releases.waiting, database.tries > 0) == (700, True)
    database.away = False
    assert await releases.flush(WAIT_S)
    assert (releases.waiting, database.released) == (0, ids(700))
    await releases.close()


async def test_the_same_hold_is_given_back_once() -> None:
    """An id that is added again while it waits is released once, and whoever waits for room is told."""
    database, told = Database(), asyncio.Event()
    releases = Releases(database.release, released=told.set)
    for _ in range(3):
        releases.add(UUID(int=1))
    releases.start()
    await until(told.is_set)
    assert database.released == [UUID(int=1)]
    await releases.close()


async def test_too_many_releases_forget_the_oldest() -> None:
    """Past their bound the oldest are given up, and counted: their holds are charged when the process ends."""
    database = Database()
    releases = Releases(database.release, waiting_max=10)
    for id in ids(13):
        releases.add(id)
    releases.start()
    assert await releases.flush(WAIT_S)
    assert (database.released, releases.forgotten) == (ids(13)[3:], 3)
    await releases.close()
