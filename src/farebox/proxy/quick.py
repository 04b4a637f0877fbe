"""What ordinary calls hold, in one step: a chat request of plain text, answered whole, at prices that stand.

`bounds`, `admission` and `planning` find out of any call what its budgets are to hold; here the same is said of
most calls with less work: what depends on the kind of a call, on its budgets and on the minute is worked out once and
remembered with the kind. A property test holds both ways to the same. Where anything is out of the ordinary, or
the float has no room, None is the answer and the planner's the way.
"""

from __future__ import annotations

import msgspec

from farebox.accounting import Attempt
from farebox.bounds import TOKENS_MAX, Ordinary, kind_of_model
from farebox.budgets.floats import Part, key_of
from farebox.config import Provider
from farebox.holds import Hold
from farebox.pricing.pricer import MostStanding
from farebox.proxy.call import Call


class Quick(msgspec.Struct, frozen=True, gc=False):
    """What a call holds: its part of a float, the same for each of its budgets, and the most of them."""

    part: Part
    hold: Hold
    choices: int
    counted: tuple[int, ...]
    """Places of the budgets that refuse, whose rest is told to the client."""


class Known:
    """What calls of one kind that the same budgets count have in common, for a minute."""

    __slots__ = (
        *("applied", "budget_ids", "counted", "counters", "era", "key", "most", "requests", "since", "strict"),
        *("template", "unlimited", "until"),
    )

    def __init__(
        self,
        call: Call,
        attempt: Attempt,
        provider: Provider,
        *,
        era: object,
        longest: int | None,
        most: MostStanding,
    ) -> None:
        """`era`: of the pricer whose prices these are, which itself would keep its whole book.

        `longest`: tokens of the longest answer; `most`: the dearest prices, and the minute of which they are.
        """
        self.era = era
        self.since, self.until, dearest = most
        self.applied = call.applied
        budgets = [one.budget for one in call.applied]
        self.counters = tuple([(one.budget.id, one.subject) for one in call.applied])
        self.key = key_of(self.counters)
        self.requests = (1,) * len(budgets)
        self.budget_ids = tuple([str(budget.id) for budget in budgets])
        self.counted = tuple(
            [n for n, budget in enumerate(budgets) if budget.purpose == "budget" and budget.on_exceed == "reject"]
        )
        self.strict = any(budgets[n].admission == "strict" for n in self.counted)
        assumed = call.snapshot.config.metering.max_output_tokens
        self.unlimited = longest if longest is not None and longest > 0 else assumed
        reason, self.template = kind_of_model(attempt.kind.model)
        paced = any(budget.purpose != "budget" for budget in budgets)
        odd = paced or provider.profile.reasoning == "additive" or not 0 < self.unlimited <= TOKENS_MAX
        self.most = None if odd or reason is not None else dearest
        """None: its calls are not ordinary."""


def plan(known: Known, request: Ordinary) -> Quick | None:
    """What the first attempt of a call holds; None where that takes a closer look."""
    if known.most is None:
        return None
    limit = known.unlimited if request.limit is None else request.limit
    read, written = request.size + known.template, limit * request.choices
    tokens = read + written
    if tokens > TOKENS_MAX:
        return None
    usd = known.most.usd(read, written)
    if usd is None:
        return None
    each = len(known.counters)
    part = Part(known.counters, known.key, (usd,) * each, (tokens,) * each, known.requests)
    # Its texts were looked through because a budget of them refuses: so they bind.
    hold = Hold(known.budget_ids, usd, read, written, known.strict, bool(known.counted))
    return Quick(part, hold, request.choices, known.counted)
