"""Money spent and held in budgets, by a process that is not there: straight to the store."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

from farebox.payload import encode
from farebox.records import Want
from farebox.store import BudgetStore, Store
from farebox.store.budgets import Ask
from support.events import event


class Spender:
    """`hold` reserves for a call, `spend` settles one. `budget` is a budget's id, `subject` whose counter it is."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._budgets = BudgetStore(store)
        self._owner: int | None = None

    async def hold(self, budget: str | UUID, subject: str, usd: str = "0", tokens: int = 0, **facts: Any) -> UUID:
        """A call under way; its id."""
        if self._owner is None:
            self._owner = await self._budgets.register("spender")
        id, budget_id = uuid4(), UUID(str(budget))
        facts = {"id": id, "budget_ids": [str(budget_id)], **facts}
        held = encode(event(**facts, cost_usd=Decimal(usd), usage_source="hold", outcome="farebox_cut"))
        ask = Ask(id, (Want(budget_id, subject, Decimal(usd), tokens),), held)
        [grant] = await self._budgets.reserve(self._owner, [ask])
        assert grant.state == "open", grant
        return id

    async def spend(
        self,
        budget: str | UUID,
        subject: str,
        usd: str = "0",
        tokens: int = 0,
        *,
        source: str = "provider",
        **facts: Any,
    ) -> UUID:
        """A call that is over; the id of its usage row."""
        id = await self.hold(budget, subject, usd, tokens, **facts)
        counts = {"input_tokens": tokens, "output_tokens": 0, "usage_source": source, "cost_usd": Decimal(usd)}
        row = event(**{"id": id, "budget_ids": [str(budget)], **counts, **facts})
        await self._store.insert_events([encode(row)])
        return id
