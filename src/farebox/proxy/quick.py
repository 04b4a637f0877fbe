"""What ordinary calls hold, in one step: a chat request of plain text, answered whole, at prices that stand.

`bounds`, `admission` and `planning` find out of any call what its budgets are to hold; here the same is said of
most calls with less work: what depends on the kind of a call, on its budgets and on the minute is worked out once and
remembered with the kind. A property test holds both ways to the same. Where anything is out of the ordinary, or
the float has no room, None is the answer and the planner's the way.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

from farebox.accounting import Attempt
from farebox.bounds import TOKENS_MAX, kind_of_model
from farebox.budgets.applying import Applied
from farebox.budgets.floats import Key, key_of
from farebox.config import Provider
from farebox.holds import Hold
from farebox.pricing.most import Most
from farebox.proxy.call import Call
from farebox.records import Want

_NOTHING = Decimal(0)


class Quick(NamedTuple):
    """What a call holds: a want for each of its budgets, and the most of them."""

    wants: tuple[Want, ...]
    key: Key
    hold: Hold
    choices: int
    counted: tuple[int, ...]
    """Places of the budgets that refuse, whose rest is told to the client."""


class Known:
    """What calls of one kind that the same budgets count have in common, for a minute."""

    __slots__ = (
        *("applied", "assumed", "binding", "budget_ids", "counted", "era", "key", "most", "since", "strict"),
        *("template", "unlimited", "until"),
    )

    def __init__(self, era: object, applied: tuple[Applied, ...], assumed: int) -> None:
        self.era = era
        """Of the pricer whose prices these are: to know itself would keep its whole book."""
        self.applied = applied
        self.assumed = assumed
        self.since: datetime
        self.until: datetime
        self.most: Most | None = None
        """None: its calls are not ordinary."""
        self.template = self.unlimited = 0
        budgets = [one.budget for one in applied]
        self.key: Key = key_of((budget.id, one.subject) for budget, one in zip(budgets, applied, strict=True))
        self.budget_ids = tuple([str(budget.id) for budget in budgets])
        self.counted = tuple(
            [n for n, budget in enumerate(budgets) if budget.purpose == "budget" and budget.on_exceed == "reject"]
        )
        self.strict = any(budgets[n].admission == "strict" for n in self.counted)


def work_out(
    known: Known, attempt: Attempt, provider: Provider, longest: int | None, minute: tuple[datetime, datetime, Most]
) -> Known:
    """`known`, with what it is to say. `longest`: tokens of the longest answer; `minute`: the dearest prices."""
    kind = attempt.kind
    reason, known.template = kind_of_model(kind.model)
    known.since, known.until, most = minute
    known.unlimited = longest if longest is not None and longest > 0 else known.assumed
    paced = any(one.budget.purpose != "budget" for one in known.applied)
    if reason is None and 0 < known.unlimited <= TOKENS_MAX and not paced and provider.profile.reasoning != "additive":
        known.most = most
    return known


def plan(known: Known, call: Call, attempt: Attempt) -> Quick | None:
    """What `attempt`, the first of `call`, holds; None where that takes a closer look."""
    request, most = call.ordinary, known.most
    if request is None or most is None:
        return None
    limit = known.unlimited if request.limit is None else request.limit
    read, written = request.size + known.template, limit * request.choices
    if read + written > TOKENS_MAX:
        return None
    usd = most.usd(read, written)
    if usd is None:
        return None
    tokens = read + written
    wants = tuple([Want(one.budget.id, one.subject, usd, tokens) for one in known.applied])
    hold = Hold(known.budget_ids, usd, read, written, known.strict, call.budgeted)
    return Quick(wants, known.key, hold, request.choices, known.counted)
