"""The definitions of budgets in Postgres: made, changed and ended, each change with its audit row.

A change applies at once: the living windows of a budget get its new limits in the same transaction.
Other processes' copies of the definitions follow when they look (`budgets_changed_since`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from farebox.errors import Conflict, NotFound
from farebox.records import Budget
from farebox.store.budget_rows import budget_of, document_of, explained
from farebox.store.store import Store


class BudgetDefinitions:
    """The calls, over a store. They raise StoreUnavailable when the database is away."""

    _store: Store

    async def list_budgets(self, include_rate: bool = False) -> list[Budget]:
        """The living budgets by name; with `include_rate` also the rates of keys."""
        return [budget_of(row) for row in await self._store.fetch("list_budgets", include_rate)]

    async def key_budgets(self, key_id: UUID | None = None) -> list[Budget]:
        """The budgets and rates that keys have of their own, by name; of one key, or of all."""
        return [budget_of(row) for row in await self._store.fetch("key_budgets", key_id)]

    async def budgets_for_key(self, key_id: UUID) -> list[Budget]:
        """All that may count the calls of a key: its own budgets and rates, and those that are no key's alone."""
        return [budget_of(row) for row in await self._store.fetch("budgets_for_key", key_id)]

    async def budgets_changed_since(self, moment: datetime) -> tuple[list[Budget], datetime]:
        """Budgets made, changed or deleted after `moment` (and a little before it), rates among them.

        With them the moment to ask with the next time. `Budget.deleted` tells those that ended; not those that ended
        with their key, which not everybody knows at once.
        """
        rows = await self._store.fetch("budgets_changed_since", moment)
        return [budget_of(row) for row in rows if row["id"] is not None], rows[0]["asked_at"]

    async def put_budget(self, name: str, fields: Mapping[str, Any], source: str, actor: str) -> Budget:
        """Make a budget, or change the one of that name: `fields` that are left out stay, or are the default.

        Raises Conflict where the config has one of that name, BadRequest for what can't be a budget.
        """
        [budget] = await self._put([{**fields, "name": name}], source, actor, whole=False)
        return budget

    async def put_budgets(self, wanted: Sequence[Mapping[str, Any]], source: str, actor: str) -> list[Budget]:
        """`put_budget` for several with their names among the fields, all or none; by name."""
        return await self._put(wanted, source, actor, whole=False)

    async def find_budget(self, text: str) -> Budget | None:
        """A living budget by its name, else by its id."""
        rows = await self._store.fetch("find_budget", text)
        return budget_of(rows[0]) if rows else None

    async def delete_budget(self, name: str, actor: str) -> Budget:
        """End a budget: it limits nothing any more. Raises NotFound; Conflict where it is the config's or a key's."""
        rows = await self._store.fetch("get_budget", name)
        if not rows:
            raise NotFound(f"There is no budget {name!r}.")
        budget = budget_of(rows[0])
        if budget.source != "api":
            raise Conflict(f"Not changed here: the budget {name} belongs to the {budget.source}, and is changed there.")
        await self._store.fetch("delete_budget", budget.id, actor)
        return msgspec.structs.replace(budget, deleted=True)

    async def end_key_budgets(self, key_id: UUID, actor: str) -> None:
        """End a key's own budgets and rates, as a part of revoking it: they limit it as long as anybody knows it."""
        await self._store.fetch("end_key_budgets", key_id, actor)

    async def sync_config(self, budgets: Sequence[Mapping[str, Any]], actor: str = "config") -> list[Budget]:
        """Make the config's budgets as these say, end its others. Harmless to repeat, and for many to do at once."""
        return await self._put(budgets, "config", actor, whole=True)

    async def set_key_limits(
        self,
        key_id: UUID,
        key_name: str,
        budgets: Sequence[Mapping[str, Any]],
        rpm: int | None,
        tpm: int | None,
        max_parallel: int | None,
        actor: str,
    ) -> list[Budget]:
        """Make a key's own budgets and rates as given, and end its others. Nothing given: it has none any more."""
        rates = {
            "rpm": {"limit_requests": rpm, "window": "minute"},
            "tpm": {"limit_tokens": tpm, "window": "minute"},
            "max_parallel": {"limit_open": max_parallel, "window": "total"},
        }
        wanted: list[dict[str, Any]] = []
        seen: dict[str, int] = {}
        for budget in budgets:
            part = str(budget.get("window") or "month")
            seen[part] = seen.get(part, 0) + 1
            suffix = part if seen[part] == 1 else f"{part}-{seen[part]}"
            wanted.append({**budget, "name": f"key:{key_name}:{suffix}", "scope": "key", "purpose": "budget"})
        for name, rate in rates.items():
            if any(rate[limit] is not None for limit in rate if limit != "window"):
                wanted.append({**rate, "name": f"key:{key_name}:{name}", "scope": "key", "purpose": "rate"})
        return await self._put(wanted, "key", actor, whole=True, key_id=key_id)

    async def _put(
        self,
        wanted: Sequence[Mapping[str, Any]],
        source: str,
        actor: str,
        *,
        whole: bool,
        key_id: UUID | None = None,
    ) -> list[Budget]:
        documents = [document_of(fields) for fields in wanted]
        with explained():
            rows = await self._store.fetch(
                "put_budgets", msgspec.json.encode(documents).decode(), source, actor, whole, key_id
            )
        return [budget_of(row) for row in rows]
