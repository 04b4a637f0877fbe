"""What a caller whose budgets have no room is told: counters as they were found -> a refusal. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Literal
from uuid import UUID

from farebox.errors import BudgetExceeded, RateLimit, RateLimited, Refusal, Shortfall
from farebox.records import Budget, Want

if TYPE_CHECKING:
    from farebox.store.budgets import WindowState

Limit = Literal["USD", "tokens", "requests", "parallel"]


def lacking(window: WindowState, want: Want) -> Limit | None:
    """The limit of a counter that `want` would pass, the dearest first; None if it fits."""
    if _passes(window.limit_usd, window.spent_usd, window.reserved_usd, want.usd):
        return "USD"
    if _passes(window.limit_tokens, window.spent_tokens, window.reserved_tokens, want.tokens):
        return "tokens"
    if _passes(window.limit_requests, window.requests, 0, want.requests):
        return "requests"
    if window.limit_open is not None and window.open >= window.limit_open:
        return "parallel"
    return None


def refusing(windows: Iterable[WindowState], budgets: Mapping[UUID, Budget]) -> list[WindowState]:
    """The counters that keep a call out. One that only warns says that it is full and does not."""
    return [window for window in windows if not window.fits and budgets[window.budget].on_exceed == "reject"]


def refusal(
    windows: Sequence[WindowState],
    wants: Mapping[UUID, Want],
    budgets: Mapping[UUID, Budget],
    *,
    now: datetime,
    status: Literal[402, 429],
) -> Refusal:
    """Why a call is not admitted. Money outranks speed: waiting a minute would not help who has none."""
    short = refusing(windows, budgets)
    empty = [window for window in short if budgets[window.budget].purpose == "budget"]
    if empty:
        return BudgetExceeded([_shortfall(w, wants[w.budget], budgets[w.budget]) for w in empty], status=status)
    rates = [window for window in windows if budgets[window.budget].purpose == "rate"]
    kinds = [lacking(window, wants[window.budget]) for window in short]
    what: Literal["requests", "tokens", "parallel"] = "parallel"
    if "requests" in kinds:
        what = "requests"
    elif "tokens" in kinds:
        what = "tokens"
    needed = max((wants[window.budget].tokens for window in short if window.limit_tokens is not None), default=None)
    return RateLimited(
        what,
        now=now,
        requests=next(_requests(rates), None),
        tokens=next(_tokens(rates), None),
        parallel_max=next((window.limit_open for window in rates if window.limit_open is not None), None),
        needed=needed if what == "tokens" else None,
    )


def remaining_usd(windows: Iterable[WindowState], budgets: Mapping[UUID, Budget]) -> Decimal | None:
    """What the tightest budget in dollars that refuses has left, what is held taken off; None without one."""
    left = [
        window.limit_usd - window.spent_usd - window.reserved_usd
        for window in windows
        if window.limit_usd is not None
        and budgets[window.budget].purpose == "budget"
        and budgets[window.budget].on_exceed == "reject"
    ]
    return max(Decimal(0), min(left)) if left else None


def _passes(limit: Decimal | int | None, spent: Decimal | int, held: Decimal | int, want: Decimal | int) -> bool:
    # A call that needs nothing fits a counter that is full.
    return limit is not None and want > 0 and spent + held + want > limit


def _shortfall(window: WindowState, want: Want, budget: Budget) -> Shortfall:
    kind = lacking(window, want)
    limit: Decimal | int | None = window.limit_usd
    spent: Decimal | int = window.spent_usd
    held: Decimal | int = window.reserved_usd
    needed: Decimal | int = want.usd
    unit: Literal["USD", "tokens", "requests"] = "USD"
    # It may have found room meanwhile, so the counter can look as if it had some: then it is told by what it limits.
    if kind == "tokens" or (kind is None and limit is None):
        limit, spent, held, needed = window.limit_tokens, window.spent_tokens, window.reserved_tokens, want.tokens
        unit = "tokens"
    if kind == "requests" or limit is None:
        limit, spent, held, needed, unit = window.limit_requests, window.requests, 0, want.requests, "requests"
    return Shortfall(
        budget=budget.name,
        scope=budget.scope,
        window=budget.window,
        unit=unit,
        limit=limit or 0,
        spent=spent,
        held=held,
        needed=needed,
        resets_at=window.resets_at,
    )


def _requests(rates: Iterable[WindowState]) -> Iterator[RateLimit]:
    for window in rates:
        if window.limit_requests is not None and window.resets_at is not None:
            yield RateLimit(window.limit_requests, window.limit_requests - window.requests, window.resets_at)


def _tokens(rates: Iterable[WindowState]) -> Iterator[RateLimit]:
    for window in rates:
        if window.limit_tokens is not None and window.resets_at is not None:
            left = window.limit_tokens - window.spent_tokens - window.reserved_tokens
            yield RateLimit(window.limit_tokens, left, window.resets_at)
