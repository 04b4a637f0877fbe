"""Budgets in Postgres: what may be spent, what was, and what is held for calls under way.

The protocol is SQL, in migration 0006, because only the database sees what all processes do; this is
how it is called, each call one statement. Which budgets apply to a call, how much to hold, and what to do
while the database is away, is `farebox.budgets`'. Settling is not here: a reservation is settled by the
usage row of its call (`Store.insert_events`).
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from uuid import UUID

from farebox.errors import NotFound
from farebox.store.budget_definitions import BudgetDefinitions
from farebox.store.budget_floats import BudgetFloats, Draw, Take
from farebox.store.budget_rows import (
    ROWS_MAX,
    Ask,
    AuditRow,
    Fenced,
    Grant,
    Standing,
    Standings,
    Total,
    WindowState,
    check_amounts,
    check_asks,
    check_distinct,
    explained,
    grants_of,
)
from farebox.store.budget_standings import BudgetStandings
from farebox.store.integrity import Invariant, Violation
from farebox.store.store import Store

__all__ = [
    "ROWS_MAX",
    "Ask",
    "AuditRow",
    "BudgetStore",
    "Draw",
    "Fenced",
    "Grant",
    "Invariant",
    "Standing",
    "Standings",
    "Take",
    "Total",
    "Violation",
    "WindowState",
]


class BudgetStore(BudgetDefinitions, BudgetStandings, BudgetFloats):
    """The calls, over a store. They raise StoreUnavailable when the database is away."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # -- the life of a process -------------------------------------------------------------------

    async def register(self, label: str) -> int:
        """A number for this process, whose reservations it will make. `label` is for people."""
        [row] = await self._store.fetch("register_owner", label)
        number: int = row["id"]
        return number

    async def beat(self, owner: int) -> bool:
        """Say that `owner` is alive; False: it was taken for dead."""
        [row] = await self._store.fetch("beat_owner", owner)
        alive: bool = row["alive"]
        return alive

    async def sweep(self, owner: int, lease_s: float, rows_max: int) -> int:
        """Charge what owners hold that were silent for `lease_s` seconds, at most `rows_max` calls; how many.

        Nothing is swept for a lease after the database, or this owner, was away. Raises Fenced.
        """
        with explained():
            [row] = await self._store.fetch("sweep_owners", owner, float(lease_s), rows_max)
        swept: int = row["swept"]
        return swept

    async def purge(self) -> None:
        """Delete what is of no use any more: old tombstones, dead owners, and windows long over."""
        await self._store.fetch("purge_budgets")

    # -- calls -----------------------------------------------------------------------------------

    async def reserve(self, owner: int, asks: Sequence[Ask]) -> list[Grant]:
        """Reserve for each ask, in order, all of its wants or none; the answers in the same order.

        Harmless to repeat: an id that is reserved answers `open` again. Raises Fenced, and BadRequest for
        amounts that can't be held.
        """
        if not asks:
            return []
        wants = [(place, want) for place, ask in enumerate(asks, 1) for want in ask.wants]
        check_asks(asks)
        with explained():
            rows = await self._store.fetch(
                "reserve",
                owner,
                [ask.id for ask in asks],
                [ask.facts.decode() for ask in asks],
                [place for place, _ in wants],
                [want.budget for _, want in wants],
                [want.subject for _, want in wants],
                [want.usd for _, want in wants],
                [want.tokens for _, want in wants],
                [want.requests for _, want in wants],
            )
        return grants_of([ask.id for ask in asks], rows)

    async def extend(self, owner: int, totals: Sequence[Total]) -> list[Grant]:
        """Raise what is held for open calls, each wholly or not at all; the answers in the same order.

        Harmless to repeat. A call that was swept meanwhile holds anew what it needs beyond what it was
        charged, in the name of `owner`. `gone`: settled or released. Raises like `reserve`.
        """
        if not totals:
            return []
        for total in totals:
            check_amounts(total.usd, total.tokens)
        check_distinct([total.id for total in totals])
        with explained():
            rows = await self._store.fetch(
                "extend",
                owner,
                [total.id for total in totals],
                [total.usd for total in totals],
                [total.tokens for total in totals],
            )
        return grants_of([total.id for total in totals], rows)

    async def release(self, ids: Sequence[UUID]) -> None:
        """Give back what is held for calls that were provably not sent, reserved yet or not. Harmless to repeat."""
        if ids:
            await self._store.fetch("release", list(ids))

    async def correct(
        self,
        id: UUID,
        cost_usd: Decimal,
        actor: str,
        reason: str,
        *,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
    ) -> Decimal | None:
        """Post what a call really cost, as an operator knows it, and used (None: as it says); its cost until then.

        Raises NotFound, Conflict while the call is running, BadRequest for a cost that can't be.
        """
        for tokens in (input_tokens, output_tokens):
            check_amounts(cost_usd, tokens or 0)
        with explained():
            rows = await self._store.fetch("correct_usage", id, cost_usd, actor, reason, input_tokens, output_tokens)
        if not rows:
            raise NotFound(f"There is no usage row {id}.")
        before: Decimal | None = rows[0]["before"]
        return before
