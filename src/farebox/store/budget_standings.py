"""Looks at budgets in Postgres: what stands in their counters, who changed them, and whether the books are right."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from farebox.store.budget_rows import (
    ROWS_MAX,
    AuditRow,
    Standing,
    Standings,
    WindowState,
    budget_of,
    json_of,
    window_of,
)
from farebox.store.integrity import Invariant, evaluate
from farebox.store.store import Store


class BudgetStandings:
    """The calls, over a store. They raise StoreUnavailable when the database is away."""

    _store: Store

    async def integrity(self, rows_max: int, timeout: float) -> list[Invariant]:
        """Whether the counters say what the rows behind them say, in `timeout` seconds; `rows_max` violations each."""
        return await evaluate(self._store, rows_max, timeout)

    async def overview(
        self,
        *,
        name: str | None = None,
        source: str | None = None,
        scope: str | None = None,
        subject: str | None = None,
        key_id: UUID | None = None,
        include_rate: bool = False,
        after: tuple[str, str] | None = None,
        rows_max: int = 100,
    ) -> Standings:
        """Living budgets with each of their current counters, by name and subject; a budget without any has None.

        `after`: the place a page before named. At most `ROWS_MAX` rows.
        """
        rows_max = max(1, min(rows_max, ROWS_MAX))
        filters = (name, source, scope, subject, key_id, include_rate)
        rows = await self._store.fetch("budget_overview", *filters, *(after or (None, None)), rows_max + 1)
        found = [
            Standing(budget_of(row), window_of(row) if row["counter"] is not None else None) for row in rows[:rows_max]
        ]
        if len(rows) <= rows_max:
            return Standings(found, None)
        last = found[-1]
        return Standings(found, (last.budget.name, last.counter.subject if last.counter is not None else ""))

    async def standing(self, pairs: Sequence[tuple[UUID, str]]) -> list[WindowState]:
        """The current counters of these budgets for these subjects, where anything was counted."""
        rows = await self._store.fetch("budget_standing", [pair[0] for pair in pairs], [pair[1] for pair in pairs])
        return [window_of(row) for row in rows]

    async def bounds(self, budgets: Sequence[UUID]) -> dict[UUID, tuple[datetime, datetime | None]]:
        """When the current window of each budget began and when it ends (None: never), counted in or not."""
        rows = await self._store.fetch("budget_bounds", list(budgets)) if budgets else []
        return {row["id"]: (row["window_start"], row["resets_at"]) for row in rows}

    async def audit(
        self, *, before: int | None = None, kind: str | None = None, name: str | None = None, rows_max: int = 100
    ) -> list[AuditRow]:
        """Changes, newest first, `before` the number of a row; at most `ROWS_MAX`. The last row's id asks for more."""
        rows = await self._store.fetch("audit_page", before, kind, name, max(1, min(rows_max, ROWS_MAX)))
        return [
            AuditRow(**{**dict(row), "before": json_of(row["before"]), "after": json_of(row["after"])}) for row in rows
        ]
