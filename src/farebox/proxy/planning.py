"""What one attempt would hold: its bound, the price of it at its provider, and the amount for each budget.

First by the size of the request, which costs a skim of it; where that finds no room, by counting its
tokens (`counted`), and by lowering what it may write (`clamped`). `bounds` says what a request can
use, `pricing` what that costs, `admission` how much of it a budget holds; here they are asked with the
facts of one call. Asking the budgets is `guard`'s.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from uuid import UUID

import msgspec

from farebox import admission, bounds
from farebox.accounting import Attempt
from farebox.admission import Held, Learned, Priced
from farebox.bounds import Bound
from farebox.config import Provider
from farebox.errors import NoBound, Unpriced
from farebox.holds import Hold
from farebox.pricing import Pricer
from farebox.proxy import quick
from farebox.proxy.call import Call
from farebox.proxy.quick import Known, Quick
from farebox.proxy.refusing import lacking, refusing
from farebox.records import Budget, Operation
from farebox.request import RequestFacts, read_facts
from farebox.store.budgets import Grant

Count = Callable[[Operation, bytes, Bound, str | None], Awaitable[Bound | None]]
"""(operation, decoded body, bound, model) -> the bound with its tokens counted; None where too many wait for that."""
_MODELS_MAX = 1_024
"""Providers' models whose longest answer is remembered; past it all are forgotten."""
_NOTHING = Decimal(0)
_MINUTE = timedelta(minutes=1)
_NAME_MAX = 200
"""Characters of a model's name that is remembered: a client may send any."""
_COUNTED_LEAST = 8
"""Bytes to a token, at the very best: where even that would not fit, nobody counts."""


@dataclass(slots=True)
class Plan:
    """What one attempt would hold. Made anew for each attempt, and for each way to make it smaller."""

    provider: Provider
    bound: Bound
    held: Held
    price: Priced
    hold: Hold
    facts: bytes = b""
    """What would be known of the attempt after a crash; put in by who asks."""
    body: bytes | None = None
    """The request as it goes up, where it was clamped."""
    clamped: int | None = None
    """The output limit put in, for each answer."""

    @property
    def extendable(self) -> bool:
        """Its budgets hold less than it may come to use."""
        return self.held.extendable

    def total(self, output_tokens: int) -> tuple[Decimal, int]:
        """Dollars and tokens that are to be held for so much output in all."""
        return admission.total_of(self.bound, output_tokens, self.price)


class Planner:
    """Plans attempts by the prices in force and by what was learned of other calls."""

    def __init__(self, pricer: Callable[[], Pricer], learned: Learned, count: Count) -> None:
        self._pricer = pricer
        self._learned = learned
        self._count = count
        self._longest: dict[tuple[str, str | None], tuple[datetime, datetime, int | None]] = {}
        self._longest_by: Pricer | None = None
        """Who said so: with a new one all is forgotten, so that no price list of before is kept alive."""

    def priced(self, call: Call, provider: Provider) -> bool:
        """Whether a price is known of what the call asks for; of what costs nothing it is."""
        if call.target.operation == "moderations":
            return True
        tier = call.facts.service_tier if call.facts is not None else None
        told = 0 if call.target.operation == "embeddings" else 1
        return _price(self._pricer(), provider, call, tier, call.received_at, ())(1, told, False) is not None

    def quick(self, call: Call, attempt: Attempt, provider: Provider) -> Quick | None:
        """What an ordinary call holds, as `plan` has it; None where it takes a closer look."""
        kind = attempt.kind
        if call.ordinary is None or kind.stream or attempt.number > 1:
            return None
        pricer, at = self._pricer(), attempt.started_at
        known = kind.held
        if (
            not isinstance(known, Known)
            or known.era is not pricer.era
            or not known.since <= at < known.until
            or not (known.applied is call.applied or known.applied == call.applied)
        ):
            model = kind.model
            if model is None or call.target.deployment is not None:
                return None
            known = kind.held = Known(
                call,
                attempt,
                provider,
                era=pricer.era,
                longest=self._longest_output(pricer, provider.name, model, at),
                most=pricer.most((provider.name, model, kind.service_tier, (), True), at),
            )
        return quick.plan(known, call.ordinary)

    def plan(self, call: Call, attempt: Attempt, provider: Provider) -> Plan:
        """By the size of the request. Raises `NoBound`, and `Unpriced` where dollars can't be held."""
        pricer = self._pricer()
        facts = call.facts
        if facts is None or not call.target.metered:
            nothing = bounds.bound_of("moderations", b"", RequestFacts(), max_output=0, assumed_max_output=0)
            return self._made(call, attempt, provider, nothing)
        bound = bounds.bound_of(
            call.target.operation,
            call.decoded,
            facts,
            max_output=self._longest_output(pricer, provider.name, _model(call), attempt.started_at),
            assumed_max_output=call.snapshot.config.metering.max_output_tokens,
            reasons_beside=provider.profile.reasoning == "additive",
            ordinary=call.ordinary,
        )
        return self._made(call, attempt, provider, bound)

    def _longest_output(self, pricer: Pricer, provider: str, model: str | None, at: datetime) -> int | None:
        """What a model can write at most. Remembered for the minute: a new price list is a new pricer.

        Saves 6 us of the 70 that a plan takes.
        """
        key = provider, model
        if self._longest_by is not pricer:
            self._longest.clear()
            self._longest_by = pricer
        known = self._longest.get(key)
        if known is not None and known[0] <= at < known[1]:
            return known[2]
        minute = at.replace(second=0, microsecond=0)
        quote = pricer.quote(provider, model, at) if model is not None else None
        longest = bounds.longest_output(
            model,
            listed=quote.max_output_tokens if quote is not None else None,
            window=quote.context_window if quote is not None else None,
        )
        if len(self._longest) >= _MODELS_MAX:
            self._longest.clear()
        if len(model or "") <= _NAME_MAX:
            self._longest[key] = minute, minute + _MINUTE, longest
        return longest

    async def counted(
        self, call: Call, attempt: Attempt, plan: Plan, grant: Grant, budgets: Mapping[UUID, Budget]
    ) -> Plan | None:
        """`plan` with its input counted; None where that makes it no smaller, or can't help."""
        size = plan.bound.input_tokens // _COUNTED_LEAST
        least = msgspec.structs.replace(plan.bound, input_tokens=size, input_expected=size)
        wants = {want.budget: want for want in self._made(call, attempt, plan.provider, least).held.wants}
        short = refusing(grant.windows, budgets)
        if plan.bound.reason is not None or any(lacking(window, wants[window.budget]) for window in short):
            return None
        bound = await self._count(call.target.operation, call.decoded, plan.bound, _model(call))
        if bound is None or bound.input_expected >= plan.bound.input_expected:
            return None
        return self._made(call, attempt, plan.provider, bound)

    def clamped(
        self, call: Call, attempt: Attempt, plan: Plan, grant: Grant, budgets: Mapping[UUID, Budget]
    ) -> Plan | None:
        """`plan` with its output lowered to what those that refuse can pay, where each of them allows that."""
        short = refusing(grant.windows, budgets)
        if call.facts is None or not short or not all(budgets[window.budget].clamp for window in short):
            return None
        if any(budgets[window.budget].purpose == "rate" for window in short) or plan.bound.reason is not None:
            return None
        most = plan.bound.output_tokens
        for window in short:
            usd = None if window.limit_usd is None else window.limit_usd - window.spent_usd - window.reserved_usd
            left = window.limit_tokens
            tokens = None if left is None else left - window.spent_tokens - window.reserved_tokens
            # As that budget counts it: the most, or what it expects of a stream.
            dearest = budgets[window.budget].admission == "strict" or not attempt.stream
            most = min(most, admission.affordable(plan.bound, plan.price, usd=usd, tokens=tokens, dearest=dearest))
        body = bounds.clamp(call.decoded, call.target.operation, call.facts, most)
        if body is None:
            return None
        limit = read_facts(call.target.operation, body).output_tokens_max
        if limit is None:
            return None
        output = min(plan.bound.output_tokens, limit * plan.bound.choices)
        bound = msgspec.structs.replace(plan.bound, output_tokens=output)
        clamped = self._made(call, attempt, plan.provider, bound)
        clamped.body, clamped.clamped = body, limit
        return clamped

    def _made(self, call: Call, attempt: Attempt, provider: Provider, bound: Bound) -> Plan:
        metering = call.snapshot.config.metering
        model = _model(call)
        price: Priced = _price(self._pricer(), provider, call, attempt.service_tier, attempt.started_at, bound.served)
        if call.target.operation == "moderations" or not call.target.metered:
            price = _free
        held = admission.amounts(
            call.applied,
            bound,
            stream=attempt.stream,
            learned_output=self._learned.output_tokens(call.caller.key_id, model),
            price=price,
            # Asked for only where it is used: the search costs 2 us.
            allowance=admission.allowance_of(metering.allowances_usd, model) if bound.reason is not None else None,
            first=attempt.number == 1,
            pass_unpriced=metering.unpriced == "pass",
        )
        if isinstance(held, admission.Refused):
            if held.kind == "unpriced":
                raise Unpriced(model or "", provider.name)
            raise NoBound(held.reason, held.budget.name)
        hold = Hold(
            budget_ids=tuple([str(one.budget) for one in held.wants]),
            usd=max([one.usd for one in held.wants], default=_NOTHING),
            input_tokens=held.input_tokens,
            output_tokens=held.output_tokens,
            strict=held.strict,
            binding=call.budgeted,
        )
        return Plan(provider, bound, held, price, hold)


def _price(
    pricer: Pricer,
    provider: Provider,
    call: Call,
    tier: str | None,
    at: datetime,
    served: tuple[tuple[str, str], ...],
) -> Priced:
    model, by = _model(call), provider.name
    claimed = call.facts.model if call.facts is not None and call.facts.model != model else None

    def price(input_tokens: int, output_tokens: int, dearest: bool) -> Decimal | None:
        if model is None:
            return None
        usd = pricer.bound(by, model, tier, input_tokens, output_tokens, at, dearest=dearest, served=served)
        if usd is None or claimed is None:
            return usd
        # Beside a deployment the body's model is only a claim; it may make the hold larger.
        other = pricer.bound(by, claimed, tier, input_tokens, output_tokens, at, dearest=dearest, served=served)
        return max(usd, other or usd)

    return price


def _model(call: Call) -> str | None:
    """What is asked: the deployment that an Azure path names, which answers whatever the body says; else its model."""
    return call.target.deployment or (call.facts.model if call.facts is not None else None)


def _free(input_tokens: int, output_tokens: int, dearest: bool) -> Decimal | None:
    """What costs nothing at any provider: a moderation, and what is not metered."""
    return Decimal(0)
