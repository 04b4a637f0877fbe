"""Budgets whose counters are set rather than spent: for what looks at them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import UUID

from farebox.store import Store
from farebox.store.budgets import BudgetStore


async def spend(
    store: Store, budget: UUID, usd: str, *, subject: str = "all", tokens: int = 0, start: str = "now()"
) -> None:
    """Set what a counter has spent, as if calls had."""
    async with store.connection() as connection:
        await connection.execute(
            f"""
            INSERT INTO farebox.budget_window (budget_id, subject, window_start, window_end, limit_usd, limit_tokens,
                                               spent_usd, spent_tokens)
            SELECT id, $2, date_trunc('day', {start}), date_trunc('day', {start}) + interval '1 day', limit_usd,
                   limit_tokens, $3, $4
            FROM farebox.budget WHERE id = $1
            ON CONFLICT (budget_id, subject, window_start) DO UPDATE
            SET spent_usd = excluded.spent_usd, spent_tokens = excluded.spent_tokens
            """,
            *(budget, subject, Decimal(usd), tokens),
        )


async def put(store: Store, name: str = "b", **fields: Any) -> UUID:
    plain_fields: dict[str, Any] = {"scope": "global", "window": "day", "limit_usd": Decimal(100)}
    return (await BudgetStore(store).put_budget(name, plain_fields | fields, "api", "test")).id
