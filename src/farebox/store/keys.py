"""Keys together with the budgets and rates they have of their own: each change of both is one transaction.

There is no moment in which a key works without the budget it was made with, and none in which half a
change can be seen. A key's limits are budgets (`farebox.store.budgets`); a key that is revoked takes them
along, which the database itself sees to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

from farebox.keylimits import NONE, KeyLimits, limits_of
from farebox.records import KeyRecord
from farebox.store.budgets import BudgetStore
from farebox.store.store import Store


class Keys:
    """Making, changing and revoking keys with their limits. `actor` stands in the audit of budgets.

    Calls raise like those of `Store` and `BudgetStore`.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def create(self, fields: Mapping[str, Any], limits: KeyLimits, actor: str) -> KeyRecord:
        """A new key of these `fields` (as `Store.create_key` takes them)."""
        async with self._store.transaction() as together:
            record = await together.create_key(**fields)
            if limits != NONE:
                await _set(together, record, limits, actor)
        return record

    async def change(
        self, id: UUID, fields: Mapping[str, Any], limits: Mapping[str, Any], actor: str
    ) -> KeyRecord | None:
        """Set the given fields of a key, and those of its `KeyLimits`; the others stay. None: no such key in use."""
        async with self._store.transaction() as together:
            # The row is locked also by a change of nothing, so that two changes of its limits follow each other.
            record = await together.change_key(id, fields)
            if record is not None and (limits or "name" in fields):
                own = (await _limits(together, id)).get(id, NONE)
                changed = replace(own, **limits)
                # A new name is written down too: the old one is free for another key, and so are its budgets' names.
                if changed != own or "name" in fields:
                    await _set(together, record, changed, actor)
        return record

    async def revoke(self, id: UUID, actor: str) -> KeyRecord | None:
        """End a key and its limits; the key as it is then. None: no such key."""
        async with self._store.transaction() as together:
            # The database ends a key's budgets with it; here it is said who did it.
            if await together.change_key(id, {}) is not None:
                await BudgetStore(together).end_key_budgets(id, actor)
            return await together.revoke_key(id)

    async def limits(self, id: UUID | None = None) -> dict[UUID, KeyLimits]:
        """The limits of each key that has some; or of this one alone."""
        return await _limits(self._store, id)


async def _limits(store: Store, id: UUID | None) -> dict[UUID, KeyLimits]:
    budgets = await BudgetStore(store).key_budgets(id)
    return limits_of(budgets)


async def _set(store: Store, record: KeyRecord, limits: KeyLimits, actor: str) -> None:
    budgets = [rule.as_fields() for rule in limits.budgets]
    await BudgetStore(store).set_key_limits(
        record.id, record.name, budgets, limits.rpm, limits.tpm, limits.max_parallel, actor
    )
