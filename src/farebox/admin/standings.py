"""How a budget and one of its counters are shown, to the API and on the command line alike.

Dollars are exact decimal texts without exponent, however long, tokens whole numbers. `limit`, `spent`, `reserved` and
`remaining` say the same once more in the budget's own `unit`: dollars where it limits them, else tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Context, Decimal, Inexact
from typing import Any

from farebox.digits import digits
from farebox.records import Budget, KeyRecord
from farebox.store import BudgetStore
from farebox.store.budgets import Standing, WindowState

_EXACT = Context(prec=1_000, traps=[Inexact])
"""Differences of amounts with twenty places and twelve digits before them: the usual 28 digits would round."""
_POLICIES = ("thresholds", "on_exceed", "admission", "clamp", "wait_s", "on_extend_denied")


Bounds = tuple[datetime, datetime | None]
"""When a window began and when it ends; None: never."""


def key_names(keys: Iterable[KeyRecord]) -> dict[str, str]:
    """Key names by id: counters know keys by their id, people by their name."""
    return {str(key.id): key.name for key in keys}


def as_definition(budget: Budget) -> dict[str, Any]:
    """A budget without any figure of its counters."""
    return {
        "id": budget.id,
        "name": budget.name,
        "source": budget.source,
        "scope": budget.scope,
        "only": list(budget.only),
        "key_id": budget.key_id,
        "limit_usd": None if budget.limit_usd is None else format(budget.limit_usd, "f"),
        "limit_tokens": budget.limit_tokens,
        "window": budget.window,
        "timezone": budget.timezone,
        "thresholds": [usd(part) for part in budget.thresholds],
        **{name: getattr(budget, name) for name in _POLICIES[1:]},
    }


async def as_rows(
    budgets: BudgetStore, standings: Sequence[Standing], names: Mapping[str, str]
) -> list[dict[str, Any]]:
    """A page of them; `names` as of `key_names`. One more statement where a budget has no counter yet."""
    unborn = [standing.budget.id for standing in standings if standing.counter is None]
    bounds = await budgets.bounds(unborn)
    return [as_row(one.budget, one.counter, names, bounds.get(one.budget.id)) for one in standings]


def as_row(
    budget: Budget, counter: WindowState | None, names: Mapping[str, str] = {}, bounds: Bounds | None = None
) -> dict[str, Any]:
    """A budget with one of its counters. Without a counter nothing was spent yet in the window that `bounds` tells."""
    row = as_definition(budget)
    # A key's own budget has one counter, which is known before anything is counted.
    subject = counter.subject if counter is not None else str(budget.key_id) if budget.key_id is not None else None
    row["subject"] = subject
    row["subject_name"] = subject_name(budget, subject, names)
    row |= _dollars(budget.limit_usd, counter) | _tokens(budget.limit_tokens, counter)
    began, ends = (counter.window_start, counter.resets_at) if counter is not None else bounds or (None, None)
    row["open"] = counter.open if counter is not None else 0
    row["window_start"] = began if budget.window != "total" else None
    row["resets_at"] = ends
    row["unit"] = unit = "usd" if budget.limit_usd is not None else "tokens"
    return row | {name: row[f"{name}_{unit}"] for name in ("limit", "spent", "reserved", "remaining")}


def _dollars(limit: Decimal | None, counter: WindowState | None) -> dict[str, str | None]:
    spent, reserved = (counter.spent_usd, counter.reserved_usd) if counter is not None else (Decimal(0), Decimal(0))
    left = None if limit is None else max(Decimal(0), _EXACT.subtract(_EXACT.subtract(limit, spent), reserved))
    return {"spent_usd": usd(spent), "reserved_usd": usd(reserved), "remaining_usd": usd(left)}


def _tokens(limit: int | None, counter: WindowState | None) -> dict[str, int | None]:
    spent, reserved = (counter.spent_tokens, counter.reserved_tokens) if counter is not None else (0, 0)
    left = None if limit is None else max(0, limit - spent - reserved)
    return {"spent_tokens": spent, "reserved_tokens": reserved, "remaining_tokens": left}


def subject_name(budget: Budget, subject: str | None, names: Mapping[str, str]) -> str | None:
    """Whose counter it is, for people: a key by its name, also where it stands before a session's."""
    if subject is None or budget.scope == "global":
        return None
    if budget.scope not in ("key", "session"):
        return subject
    key, slash, session = subject.partition("/")
    return names.get(key, key) + slash + session


def usd(amount: Decimal | None) -> str | None:
    """An exact amount in digits, without idle zeros."""
    return None if amount is None else digits(amount)
