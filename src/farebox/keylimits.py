"""What a key may be limited to: budgets of its own, and requests, tokens and parallel calls a minute.

The values as people give them, in the API's JSON or on the command line, and as they are shown again.
They are stored as budgets whose source is the key (`farebox.store.budgets`), so that one mechanism
counts them all; enforcing them is `farebox.budgets`'.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any
from uuid import UUID

from farebox.config.budgets import WINDOWS, BadBudget, BudgetRule, rule_of
from farebox.records import Budget

BUDGETS_MAX = 16
"""Budgets of one key."""
RATE_MAX = 10**9
"""Requests or tokens a minute, or calls at once: more is no limit."""
RATES = ("rpm", "tpm", "max_parallel")

_GIVEN = re.compile(r"\$?(?P<amount>[0-9._]+)(?P<unit>usd|tok|tokens|)(/(?P<window>[a-z]+))?")


@dataclass(frozen=True, kw_only=True)
class KeyLimits:
    """Everything one key is limited to. None: not limited. `budgets` have one window each, none twice."""

    budgets: tuple[BudgetRule, ...] = ()
    rpm: int | None = None
    tpm: int | None = None
    max_parallel: int | None = None

    def as_shown(self) -> dict[str, Any]:
        """The members of a key in the API: what was set, money as text."""
        shown = [_shown(rule) for rule in self.budgets]
        return {"budgets": shown, **{name: getattr(self, name) for name in RATES}}


NONE = KeyLimits()


@dataclass
class _Found:
    budgets: list[BudgetRule] = field(default_factory=list)
    rates: dict[str, int | None] = field(default_factory=dict)


def key_budgets(given: Sequence[Mapping[str, str | Sequence[str] | None]]) -> tuple[BudgetRule, ...]:
    """The budgets that these members describe: `limit_usd`, `limit_tokens`, `window`, policies. Raises BadBudget."""
    if len(given) > BUDGETS_MAX:
        raise BadBudget("budgets", f"has {len(given)} entries; a key has at most {BUDGETS_MAX}")
    rules = []
    for one in given:
        for name in ("name", "scope", "only"):
            if name in one:
                raise BadBudget(name, "is not given for a key's own budget: it counts this key")
        rules.append(rule_of({**one, "name": one.get("window") or "month", "scope": "key"}))
    windows = [rule.window for rule in rules]
    for window in windows:
        if windows.count(window) > 1:
            raise BadBudget("window", f"{window} is given twice; put limit_usd and limit_tokens into one budget")
    return _sorted(rules)


def parse_budgets(texts: Sequence[str]) -> tuple[BudgetRule, ...]:
    """`["25/month", "100000tok/day"]` as budgets; those of one window become one. Raises BadBudget."""
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        match = _GIVEN.fullmatch(text)
        if match is None or (match["unit"].startswith("tok") and text.startswith("$")):
            raise BadBudget(
                repr(text[:60]), f"is not AMOUNT/WINDOW, as 25/month or 100000tok/day ({', '.join(WINDOWS)})"
            )
        limits = found.setdefault(match["window"] or "month", {})
        name = "limit_tokens" if match["unit"].startswith("tok") else "limit_usd"
        if name in limits:
            raise BadBudget(repr(text), f"is a second limit of this kind for the window {match['window'] or 'month'}")
        limits[name] = match["amount"]
    return key_budgets([{**limits, "window": window} for window, limits in found.items()])


def limits_of(budgets: Iterable[Budget]) -> dict[UUID, KeyLimits]:
    """The limits of each key that has some, from the definitions that are stored, rates among them."""
    found: dict[UUID, _Found] = {}
    for budget in budgets:
        if budget.key_id is None:
            continue
        one = found.setdefault(budget.key_id, _Found())
        if budget.purpose == "budget":
            one.budgets.append(_rule(budget))
        else:
            rates = (budget.limit_requests, budget.limit_tokens, budget.limit_open)
            one.rates.update({name: rate for name, rate in zip(RATES, rates, strict=True) if rate is not None})
    return {key_id: KeyLimits(budgets=_sorted(one.budgets), **one.rates) for key_id, one in found.items()}


def _sorted(rules: Iterable[BudgetRule]) -> tuple[BudgetRule, ...]:
    """The shortest window first."""
    return tuple(sorted(rules, key=lambda rule: WINDOWS.index(rule.window)))


def _rule(budget: Budget) -> BudgetRule:
    values = {one.name: getattr(budget, one.name) for one in fields(BudgetRule)}
    return BudgetRule(**{**values, "name": budget.window})


def _shown(rule: BudgetRule) -> dict[str, Any]:
    """Limits and window always, policies where they are not the default."""
    policies = {
        one.name: getattr(rule, one.name)
        for one in fields(BudgetRule)
        if one.name not in ("name", "scope", "only", "limit_usd", "limit_tokens", "window")
        and getattr(rule, one.name) != one.default
    }
    return {"limit_usd": rule.limit_usd, "limit_tokens": rule.limit_tokens, "window": rule.window, **policies}
