"""Whether the budgets' counters say what the rows behind them say, found out on live data in bounded time.

Each invariant is one statement, so it sees one moment of the database however busy that is. It reads a
bounded number of rows for a bounded time; what it could not read is `skipped`, never passed over in silence.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from decimal import Decimal
from typing import Literal
from uuid import UUID

import msgspec

from farebox.store.failures import StoreUnavailable
from farebox.store.store import Store

WINDOWS_MAX = 20_000
"""Counters looked at, the newest; the others are told as skipped."""
ROWS_MAX = 500_000
"""Usage rows, or open holds, read for one invariant; a window that began before the oldest is skipped."""

_INVARIANTS = {
    "integrity_limits": "spent + reserved <= limit, but for recorded overruns and lowered limits",
    "integrity_holds": "reserved = the sum of open holds, and open is their number",
    "integrity_rows": "spent = the sum of usage rows",
    "integrity_settled": "a call with its final usage row holds nothing",
}
_SKIPPED = "not read: more rows than one look may read, so {} were left out"


class Violation(msgspec.Struct, frozen=True, kw_only=True):
    """One counter that is not as it should be."""

    window: int
    budget: UUID
    subject: str
    window_start: datetime
    is_usd: Decimal
    should_usd: Decimal | None
    is_tokens: int
    should_tokens: int | None


class Invariant(msgspec.Struct, frozen=True, kw_only=True):
    """What was found out about one invariant. `checked` and `skipped` count counters (of the last one: calls)."""

    name: str
    state: Literal["holds", "broken", "not evaluated"]
    checked: int = 0
    skipped: int = 0
    reason: str | None = None
    """Why something was skipped or not evaluated."""
    violations: list[Violation] = []


async def evaluate(
    store: Store, violations_max: int, timeout_s: float, *, windows_max: int = WINDOWS_MAX, rows_max: int = ROWS_MAX
) -> list[Invariant]:
    """Every invariant, in at most `timeout_s` altogether. Raises StoreUnavailable where the database is away."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    return [
        await _one(store, query, (windows_max, rows_max, max(1, violations_max)), deadline) for query in _INVARIANTS
    ]


async def _one(store: Store, query: str, bounds: tuple[int, int, int], deadline: float) -> Invariant:
    name = _INVARIANTS[query]
    late = Invariant(name=name, state="not evaluated", reason="there was not enough time")
    left_s = deadline - asyncio.get_running_loop().time()
    if left_s <= 0:
        return late
    try:
        async with asyncio.timeout(left_s):
            rows = await store.fetch(query, *bounds)
    except TimeoutError:
        return late
    except StoreUnavailable as error:
        if asyncio.get_running_loop().time() >= deadline:
            return late
        raise error
    checked, skipped = rows[0]["checked"], rows[0]["skipped"]
    found = [
        Violation(**{field: row[field] for field in Violation.__struct_fields__})
        for row in rows
        if row["window"] is not None
    ]
    evaluated: Literal["holds", "not evaluated"] = "holds" if checked or not skipped else "not evaluated"
    return Invariant(
        name=name,
        state="broken" if found else evaluated,
        checked=checked,
        skipped=skipped,
        reason=_SKIPPED.format(skipped) if skipped else None,
        violations=found,
    )
