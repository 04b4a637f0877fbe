"""What a budget holds for a call while it runs, and what the call is charged when nobody knows what it used.

A call that a budget counts is never charged less than the truth where that can be had, and its hold
where it can't: the client left and the provider did not say, farebox or the provider broke off, the
model answered under a name without a price. Who decides how much is held is `bounds`; who holds it
is Postgres. Plain functions on values.
"""

from __future__ import annotations

from decimal import Decimal

import msgspec

from farebox.records import UsageEvent

_UNREPORTED = frozenset(("estimate", "partial"))


class Hold(msgspec.Struct, frozen=True, gc=False):
    """What is held for one attempt: the most that any of its budgets holds."""

    budget_ids: tuple[str, ...]
    usd: Decimal
    """0 where nothing could be priced, or nothing costs."""
    input_tokens: int
    output_tokens: int
    strict: bool
    """A budget among them admits only what it can pay whole, so no guess may stand for the truth."""
    binding: bool = True
    """A budget among them refuses what does not fit. Where all only warn or pace, guesses are good enough."""

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens


def put_hold(event: UsageEvent, hold: Hold) -> None:
    """Make `event` the one that a crash leaves: charged at the hold, whatever the call came to."""
    event.budget_ids = list(hold.budget_ids)
    if hold.tokens or hold.usd:
        _charge(event, hold)


def keep_output(event: UsageEvent, hold: Hold, *, input_told: bool) -> bool:
    """Before pricing: whether only the output of `event` is a guess, which then is what was held of it at least.

    So it is where the provider told the input before the end was lost, and where a budget ended the stream:
    both know how much was asked, and the size of the request, which bounded it, need not stand in for that.
    A strict budget charges no guess at all.
    """
    if hold.strict or not hold.binding or event.usage_source not in _UNREPORTED or not _end_unseen(event):
        return False
    if not (input_told or event.outcome == "budget_cut"):
        return False
    event.output_tokens = max(event.output_tokens or 0, hold.output_tokens)
    return True


def charge(event: UsageEvent, hold: Hold, *, goes_on: bool = False, kept: bool = False) -> None:
    """Charge an attempt that is over and priced; changes `event`.

    Nothing billable stays free and a provider's own count stands. Without one the larger of hold
    and estimate is charged where the end was not seen, and for a strict budget always. A cost that
    is not known is the hold. `goes_on`: the provider works on after this exchange (a background
    response), so what it said is not the end. `kept`: what `keep_output` said.
    """
    event.budget_ids = list(hold.budget_ids)
    if event.usage_source == "none" or not hold.binding or (kept and event.cost_usd is not None):
        return
    if event.usage_source in _UNREPORTED and (hold.strict or goes_on or _end_unseen(event)):
        if event.cost_usd is None or hold.usd >= event.cost_usd:
            _charge(event, hold)
    elif event.cost_usd is None and hold.usd:
        _put_cost(event, hold.usd)


def _end_unseen(event: UsageEvent) -> bool:
    """An error that the provider reported is an end; no answer at all is none: it may work on, and bill."""
    return event.outcome != "complete" and not (event.outcome == "upstream_error" and event.status is not None)


def _charge(event: UsageEvent, hold: Hold) -> None:
    event.input_tokens = max(event.input_tokens or 0, hold.input_tokens)
    event.output_tokens = max(event.output_tokens or 0, hold.output_tokens)
    if hold.usd:
        event.usage_source = "hold"
        _put_cost(event, hold.usd)


def _put_cost(event: UsageEvent, usd: Decimal) -> None:
    event.cost_usd, event.cost_source, event.price_id = usd, "hold", None
