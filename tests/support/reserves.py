"""Budgets at the database itself: asks and events that belong together, a clock to set, and the invariants."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg

from farebox.payload import encode
from farebox.records import Budget, Want
from farebox.store import Store
from farebox.store.budgets import Ask, BudgetStore, Grant, Total, WindowState
from support.events import event

LEASE_S = 30.0
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
"""When tests begin, a Sunday."""

RESET = """
SET session_replication_role = replica;
TRUNCATE farebox.usage_entry, farebox.usage_superseded, farebox.audit, farebox.budget, farebox.budget_window,
    farebox.reservation, farebox.budget_float, farebox.owner, farebox.key;
UPDATE farebox.cost_correction SET up_usd = 0, down_usd = 0;
SET session_replication_role = DEFAULT;
"""
"""Empties a database of what tests of budgets write, in less time than making another takes."""

_INVARIANTS = """
WITH held AS (
    SELECT part.id, sum(usd) AS usd, sum(tokens) AS tokens, count(*) AS calls, sum(unclosed) AS unclosed
    FROM (
        SELECT windows, held_usd, held_tokens, 0 AS unclosed FROM farebox.reservation WHERE state = 'open'
        UNION ALL
        SELECT windows, held_usd, held_tokens, (NOT closed)::int FROM farebox.budget_float
    ) AS opened, unnest(windows, held_usd, held_tokens) AS part(id, usd, tokens) GROUP BY part.id),
rows AS (
    SELECT part.id, sum(coalesce(cost_usd, 0)) AS usd,
           sum(coalesce(input_tokens, 0) + coalesce(output_tokens, 0)) AS tokens
    FROM farebox.usage_entry AS e, unnest(window_ids) AS part(id)
    WHERE NOT EXISTS (SELECT FROM farebox.usage_entry AS n WHERE n.id = e.id AND n.posting_no > e.posting_no)
    GROUP BY part.id)
SELECT w.*, held.usd AS held_usd, held.tokens AS held_tokens, held.calls, held.unclosed,
       rows.usd AS rows_usd, rows.tokens AS rows_tokens
FROM farebox.budget_window AS w LEFT JOIN held USING (id) LEFT JOIN rows USING (id) ORDER BY w.id
"""


class Teller:
    """One process's dealings with budgets. `sql`: a connection of the test's own."""

    def __init__(self, store: Store, sql: asyncpg.Connection, owner: int) -> None:
        self.store = store
        self.budgets = BudgetStore(store)
        self.sql = sql
        self.owner = owner

    @classmethod
    async def open(cls, store: Store, sql: asyncpg.Connection) -> Teller:
        """Registered at `NOON`, on a server that has been up for long."""
        teller = cls(store, sql, 0)
        await teller.up_since("2000-01-01")
        await teller.at(NOON)
        teller.owner = await teller.budgets.register("test")
        return teller

    async def at(self, moment: datetime | str) -> None:
        """From now on that is the time."""
        await self.sql.execute(
            "CREATE OR REPLACE FUNCTION farebox.clock() RETURNS timestamptz LANGUAGE sql STABLE AS "
            f"$$SELECT timestamptz '{moment}'$$"
        )

    async def up_since(self, moment: datetime | str) -> None:
        """Since when the server is up."""
        await self.sql.execute(
            "CREATE OR REPLACE FUNCTION farebox.up_since() RETURNS timestamptz LANGUAGE sql STABLE AS "
            f"$$SELECT timestamptz '{moment}'$$"
        )

    async def budget(self, name: str = "b", **fields: Any) -> Budget:
        """A budget of 10 USD a day for everybody, unless `fields` say otherwise."""
        limits = {"limit_usd", "limit_tokens", "limit_requests", "limit_open"} & fields.keys()
        plain = {"scope": "global", "window": "day"} | ({} if limits else {"limit_usd": Decimal(10)})
        return await self.budgets.put_budget(name, plain | fields, "api", "test")

    async def reserve(self, ask: Ask, *, owner: int | None = None) -> Grant:
        """One ask."""
        [grant] = await self.budgets.reserve(owner or self.owner, [ask])
        return grant

    async def extend(self, id: UUID, usd: str, tokens: int = 0, *, owner: int | None = None) -> Grant:
        """One total."""
        [grant] = await self.budgets.extend(owner or self.owner, [Total(id, Decimal(usd), tokens)])
        return grant

    async def settle(self, id: UUID, usd: str | None, **fields: Any) -> int:
        """Post the event of a call."""
        cost = None if usd is None else Decimal(usd)
        return await self.store.insert_events([encode(event(id=id, cost_usd=cost, budget_ids=["b"], **fields))])

    async def window(self, budget: Budget, subject: str = "") -> WindowState:
        """The current counter of a budget."""
        [state] = await self.budgets.standing([(budget.id, subject)])
        return state

    async def rows(self, id: UUID) -> list[asyncpg.Record]:
        """The postings of a call."""
        return await self.sql.fetch("SELECT * FROM farebox.usage_entry WHERE id = $1 ORDER BY posting_no", id)

    async def check_counters(self) -> None:
        """What holds of every counter at every moment."""
        for row in await self.sql.fetch(_INVARIANTS):
            check_window(row)

    async def check(self) -> None:
        """All invariants of the protocol, and what farebox itself looks for."""
        await self.check_counters()
        for invariant in await self.budgets.integrity(10, 10.0):
            assert invariant.state == "holds", invariant


def check_window(row: Mapping[str, Any]) -> None:
    """What holds of every counter at every moment."""
    where = {name: row[name] for name in row.keys()}  # noqa: SIM118
    assert row["reserved_usd"] == (row["held_usd"] or 0), where
    assert row["reserved_tokens"] == (row["held_tokens"] or 0), where
    assert row["open"] == (row["calls"] or 0), where
    assert row["floats"] == (row["unclosed"] or 0), where
    assert row["spent_usd"] == (row["rows_usd"] or 0), where
    assert row["spent_tokens"] == (row["rows_tokens"] or 0), where
    if row["warn"]:
        return
    for unit in ("usd", "tokens"):
        if row[f"limit_{unit}"] is not None:
            most = max(row[f"limit_{unit}"], row[f"floor_{unit}"]) + row[f"overrun_{unit}"]
            assert row[f"spent_{unit}"] + row[f"reserved_{unit}"] <= most, where


def ask(*budgets: Budget, usd: str = "1", tokens: int = 0, subject: str = "", requests: int = 1, **fields: Any) -> Ask:
    """A call that wants to hold so much in each of `budgets`."""
    call = event(budget_ids=["b"], outcome="farebox_cut", usage_source="hold", cost_usd=Decimal(usd), **fields)
    wants = tuple(Want(budget.id, subject, Decimal(usd), tokens, requests) for budget in budgets)
    return Ask(call.id, wants, encode(call))
