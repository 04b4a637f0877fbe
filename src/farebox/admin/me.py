"""What a key holder may know: `GET /farebox/api/me` with a farebox key, and nothing else of the control plane.

The key's own budgets with everything in them, its rate limits, what it used and its last sessions. Of a
budget that it shares (with its team, project or user, or with everybody) the limit, what is left and when
it resets: a refusal and `x-farebox-budget-remaining-usd` tell a caller as much, and without it nobody
could plan. Who else spends from it, and how many they are, is not told; nor is any other key's figure.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from farebox.admin import queries
from farebox.admin.standings import as_row
from farebox.budgets.applying import Applied, Definitions
from farebox.errors import Forbidden, MethodNotAllowed
from farebox.keylimits import NONE, RATES, limits_of
from farebox.records import Budget, Caller
from farebox.server import Request
from farebox.store import BudgetStore, Store, UsageFilter
from farebox.store.reports import Reports

PATH = "/me"
SESSIONS_MAX = 20
"""Sessions shown, the last seen first."""
DAYS = 30
"""How far back totals and sessions go, unless `since` says."""
_OWN = ("key", "session")
_BY_CALL = ("session", "model")
_OTHERS = frozenset(f"{what}{unit}" for what in ("spent", "reserved") for unit in ("", "_usd", "_tokens")) | {"open"}
"""Of a shared budget: what is others' as much as the key's."""
_LEFT = frozenset(("remaining", "remaining_usd", "remaining_tokens"))
_KEY = ("key_id", "key_name", "team", "project", "user", "models", "providers", "tags", "expires_at")
_TOTALS = ("calls", "total_tokens", "cost_usd", "unknown_cost", "errors")

Query = dict[str, str]


class MeApi:
    """Answers `GET /me`. `identify` finds the caller by the request's headers and raises `Refusal`."""

    def __init__(
        self,
        store: Store,
        *,
        identify: Callable[[Mapping[str, str]], Awaitable[Caller]],
        now: Callable[[], datetime],
    ) -> None:
        self._budgets = BudgetStore(store)
        self._reports = Reports(store)
        self._identify = identify
        self._now = now

    async def answer(self, request: Request, query: Query) -> tuple[int, Any]:
        """Everything in one object; `since` moves where totals and sessions begin."""
        caller = await self._identify(request.headers)
        if request.method != "GET":
            raise MethodNotAllowed(f"{request.method} is not a method of /farebox/api{PATH}.")
        if caller.key_id is None:
            raise Forbidden("This answers for a farebox key, and the request has none.")
        queries.check_known(query, frozenset(("since",)))
        since = queries.read_filter(query).since or self._now() - timedelta(days=DAYS)
        own = UsageFilter(key_id=caller.key_id, since=since)
        definitions = await self._budgets.budgets_for_key(caller.key_id)
        sessions, _ = await self._reports.sessions(own, rows_max=SESSIONS_MAX)
        totals = await self._reports.spend(own)
        limits = limits_of(definitions).get(caller.key_id, NONE)
        return 200, {
            "key": {name.removeprefix("key_"): getattr(caller, name) for name in _KEY},
            "budgets": await self._standings(definitions, caller),
            "rate_limits": {name: getattr(limits, name) for name in RATES},
            "since": since,
            "totals": {name: getattr(totals, name) for name in _TOTALS},
            "sessions": [session.as_row() for session in sessions],
        }

    async def _standings(self, definitions: Sequence[Budget], caller: Caller) -> list[dict[str, Any]]:
        budgets = [budget for budget in definitions if budget.purpose == "budget"]
        applied = Definitions(budgets).applying(caller, None, None)
        # Counters by call are many, or others': their definitions say what there is to know.
        counted = [one for one in applied if one.budget.scope not in _BY_CALL]
        states = await self._budgets.standing([(one.budget.id, one.subject) for one in counted])
        counters = {(state.budget, state.subject): state for state in states}
        bounds = await self._budgets.bounds([one.budget.id for one in applied])
        rows = []
        for one in applied:
            row = as_row(one.budget, counters.get((one.budget.id, one.subject)), bounds=bounds.get(one.budget.id))
            rows.append(_told(one, row))
        return rows


def _told(applied: Applied, row: dict[str, Any]) -> dict[str, Any]:
    """As much of a budget's row as its caller may see, and whether it is shared."""
    scope = applied.budget.scope
    hidden = {"id", "key_id", "only", "subject", "subject_name", "source", "thresholds"}
    if scope != "key":
        hidden |= _OTHERS
    if scope in _BY_CALL:
        hidden |= _LEFT
    return {name: value for name, value in row.items() if name not in hidden} | {"shared": scope not in _OWN}
