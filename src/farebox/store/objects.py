"""Whose the providers' stored objects are, as it is kept in Postgres for all replicas.

What is an object and who may reach it is decided in `farebox.objects` and the proxy; here are only the calls.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple
from uuid import UUID

from farebox.store.store import Store

ID_CHARS_MAX = 512
"""A longer id is nobody's: no provider makes one."""


class StoredObject(NamedTuple):
    """An object that a provider stores, and the key it was made with."""

    id: str
    provider: str
    kind: str
    key_id: UUID


class ObjectStore:
    """Calls on `farebox.stored_object`. Raises what `Store` raises."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def keep(self, objects: Sequence[StoredObject]) -> list[StoredObject]:
        """Write down who made these; those that are somebody else's already, as they are. Harmless to repeat."""
        rows = await self._store.fetch(
            "keep_objects",
            [one.id for one in objects],
            [one.provider for one in objects],
            [one.kind for one in objects],
            [one.key_id for one in objects],
        )
        return [StoredObject(*row) for row in rows]

    async def find(self, ids: Collection[str], providers: Collection[str] | None) -> list[StoredObject]:
        """The objects with these ids at one of `providers`, or anywhere where that is None."""
        rows = await self._store.fetch("find_objects", list(ids), None if providers is None else list(providers))
        return [StoredObject(*row) for row in rows]

    async def forget(self, objects: Sequence[tuple[str, str]]) -> None:
        """Objects, by id and provider, that are no more. Harmless to repeat."""
        await self._store.fetch("forget_objects", [id for id, _ in objects], [provider for _, provider in objects])
