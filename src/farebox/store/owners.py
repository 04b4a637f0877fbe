"""Owners of reservations at their end: that one ended in order, and what one that crashed still holds."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from farebox.store.store import Store


class Owners:
    """The calls, over a store. They raise StoreUnavailable when the database is away."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def end(self, owner: int) -> bool:
        """Say that an owner makes no reservation any more; False: it still holds some, and stays, to be swept."""
        return bool(await self._store.fetch("end_owner", owner))

    async def floats_of(self, owner: int) -> list[UUID]:
        """Ids of all floats of an owner."""
        return [row["id"] for row in await self._store.fetch("floats_of", owner)]

    async def fence(self, labels: Sequence[str]) -> None:
        """Declare the owners with these labels dead, whose processes are gone."""
        await self._store.fetch("fence_owners", list(labels))

    async def floats_held_by(self, labels: Sequence[str], rows_max: int = 1000) -> list[UUID]:
        """Ids of the floats of the owners with these labels, `rows_max` at most."""
        return [row["id"] for row in await self._store.fetch("floats_held_by", list(labels), rows_max)]

    async def held_by(self, labels: Sequence[str], rows_max: int = 1000) -> list[UUID]:
        """Ids of the open reservations of the owners with these labels, `rows_max` at most."""
        return [row["id"] for row in await self._store.fetch("held_by", list(labels), rows_max)]
