"""Whether the books are right, asked of the database on live data: `GET /farebox/api/integrity`.

Evaluating reads many rows, so it happens once at a time: who asks while it goes on gets the same answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from farebox.admin import queries
from farebox.server import Request
from farebox.store import BudgetStore, Store
from farebox.store.budgets import Invariant

TIME_S = 20.0
"""How long all invariants may take; what is not read by then is `not evaluated`."""
VIOLATIONS_MAX = 20
"""Violations named for each invariant."""
_WORDS = {"holds": "ok", "broken": "violated"}

Query = dict[str, str]


class IntegrityApi:
    """Answers `/integrity`: 200 whatever was found; `status` says it in a word."""

    def __init__(self, store: Store, now: Callable[[], datetime]) -> None:
        self._budgets = BudgetStore(store)
        self._now = now
        self._under_way: asyncio.Task[dict[str, Any]] | None = None
        self.actions: Mapping[tuple[str, str], Callable[[Request, str, Query], Awaitable[tuple[int, Any]]]] = {
            ("GET", "/integrity"): self._answer
        }

    async def _answer(self, _: Request, __: str, query: Query) -> tuple[int, Any]:
        queries.check_known(query, frozenset())
        if self._under_way is None or self._under_way.done():
            self._under_way = asyncio.create_task(self._evaluate(), name="integrity")
        return 200, await asyncio.shield(self._under_way)

    async def _evaluate(self) -> dict[str, Any]:
        at = self._now()
        return {"at": at, **found(await self._budgets.integrity(VIOLATIONS_MAX, TIME_S))}


def found(invariants: Sequence[Invariant]) -> dict[str, Any]:
    """`status` is `violated` where anything is, `ok` where all was looked at, else `not evaluated`."""
    rows = [_row(invariant) for invariant in invariants]
    states = {row["status"] for row in rows}
    status = next((word for word in ("violated", "not evaluated") if word in states), "ok")
    return {"status": status, "invariants": rows}


def _row(invariant: Invariant) -> dict[str, Any]:
    members = msgspec.structs.asdict(invariant)
    state = members.pop("state")
    violations = [msgspec.structs.asdict(violation) for violation in members.pop("violations")]
    return {"name": members.pop("name"), "status": _WORDS.get(state, state), **members, "violations": violations}
