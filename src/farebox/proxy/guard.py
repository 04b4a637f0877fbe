"""Budgets on the way of one call: which count it, what each attempt holds, and what happens where there is no room.

`Guard` is asked once for a call (`check`) and once for each attempt (`admit`), which ends as a
`Ticket`: the hold is there before a byte goes up, in the same bytes in Postgres and in the journal.
Where a budget has no room, the ways out are tried in this order: the input is counted instead of
bounded by its size; the output is clamped, where all that refuse allow it; open holds are waited
for; then the caller is told. What a hold is worth is `bounds`' to say, who has room is `budgets`',
what an attempt is charged in the end `holds`'. A stream's hold grows by `pace`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from decimal import Decimal
from typing import Literal, Protocol
from uuid import UUID

import msgspec
from msgspec.structs import replace

from farebox import rows
from farebox.accounting import Attempt
from farebox.bounds import read_ordinary
from farebox.budgets.applying import Applied
from farebox.budgets.floats import Drawn, Part
from farebox.config import Provider
from farebox.doubts import check_repeated, plainly_once
from farebox.errors import PathClosed, Unavailable, Unpriced
from farebox.pricing.publishers import book_of
from farebox.proxy.call import Call, Clock
from farebox.proxy.pace import Pace, Verdict
from farebox.proxy.planning import Plan, Planner
from farebox.proxy.quick import Quick
from farebox.proxy.refusing import refusal, refusing, remaining_usd
from farebox.records import Budget, Caller, FloatHold
from farebox.store.budgets import Ask, Draw, Grant

SETTLING_S = 0.25
"""How long even a call that may not wait waits for open holds: a client that calls one after the other may meet
another process before its last call, whose end it has seen, is settled. Where no hold is in the way the answer comes
at once."""


_NOTHING = Decimal(0)


class Budgets(Protocol):
    """The budgets of this process, as far as a call meets them."""

    def applying(self, caller: Caller, model: str | None, session: str | None) -> tuple[Applied, ...]: ...

    async def reserve(self, ask: Ask, *, wait_s: float, applied: Sequence[Applied]) -> Grant:
        """Raises `Unavailable`; whatever it raises, a cancellation too, nothing is held."""

    def draw(self, part: Part, applied: Sequence[Applied]) -> Drawn | None: ...

    async def extend(self, id: UUID, usd: Decimal, tokens: int, draw: Draw | None = None) -> Grant | None: ...

    def release(self, id: UUID, drawn: FloatHold | None = None) -> None: ...


class Ticket(msgspec.Struct, eq=False, gc=False):
    """One attempt's leave to go up. It ends in the attempt's event, or, if nothing went up, in `Guard.release`."""

    id: UUID
    facts: bytes
    """The event a crash would leave: what the database has, and what the journal gets."""
    body: bytes | None = None
    """The request with its output clamped; None: it goes up as it is."""
    clamped: int | None = None
    """The output limit that was put in."""
    remaining_usd: Decimal | None = None
    choices: int = 1
    """Answers asked for."""
    drawn: FloatHold | None = None
    """What is held for it out of a float; None where it has a reservation."""
    pace: Pace | None = None
    """Of a stream that may have to ask for more, and then be cut."""


class Guard:
    """Stands between a call and its provider. One for a process; knows no call beyond its end."""

    def __init__(self, budgets: Budgets, planner: Planner, clock: Clock, warned: Callable[[str], None]) -> None:
        """`warned(name)`: a budget that only warns let a call pass that it has no room for."""
        self._budgets = budgets
        self._warned = warned
        self._planner = planner
        self._clock = clock

    # -- once for a call -------------------------------------------------------------------------

    def check(self, call: Call) -> None:
        """Find the budgets that count `call`, which then knows them, and refuse what could spend past them.

        Raises `PathClosed` for a path that may cost what nobody counts, `BadRequest` for a body that
        farebox and a provider could read differently. Costs a look into memory for a call without a budget.
        """
        model = call.facts.model if call.facts is not None else None
        if call.target.deployment not in (None, model):
            model = None  # what answers there is not known by what the body says
        applied = self._budgets.applying(call.caller, model, call.identity.session)
        if not applied:
            return
        enforced = _enforced(applied)
        if not call.target.metered:
            if not call.target.billable and not _converses(call):
                return
            if enforced:
                raise PathClosed(call.request.method, call.target.path)
            # Nothing says what it uses; that it is a request can be counted.
            applied = tuple(one for one in applied if one.budget.purpose == "rate")
        elif enforced:
            ordinary = call.ordinary = read_ordinary(call.target.operation, call.decoded)
            if ordinary is None or not (ordinary.once or plainly_once(call.decoded)):
                check_repeated(call.outline, inputs=call.target.operation == "responses")
        call.applied, call.budgeted = applied, enforced

    def enforces(self, caller: Caller) -> bool:
        """Whether a budget that refuses may count a call of `caller`, whatever it asks for."""
        return _enforced(self._budgets.applying(caller, None, None))

    # -- once for an attempt ---------------------------------------------------------------------

    def admit(self, call: Call, attempt: Attempt, provider: Provider) -> Awaitable[None] | None:
        """Hold what `attempt` may cost at `provider`; sets its `hold` and the call's `ticket`, if a budget counts it.

        What it returns is to be awaited, and does that; None: it is done, since no budget counts it or a float has
        room. Raises `BudgetExceeded`, `RateLimited`, `NoBound`, `Unpriced`, or `Unavailable` where the database
        can't be asked. Whatever it raises, a cancellation too, nothing stays held.
        """
        metering = call.snapshot.config.metering
        if metering.unpriced == "refuse" and call.target.metered and not self._planner.priced(call, provider):
            raise Unpriced((call.facts.model if call.facts is not None else None) or "", provider.name)
        if not call.applied:
            return None
        quick = self._planner.quick(call, attempt, provider)
        if quick is not None and (drawn := self._budgets.draw(quick.part, call.applied)) is not None:
            self._drawn_at_once(call, attempt, quick, drawn)
            return None
        plan = self._planner.plan(call, attempt, provider)
        if quick is None and (drawn := self._budgets.draw(Part.of(plan.held.wants), call.applied)) is not None:
            self._drawn(call, attempt, plan, drawn)
            return None
        return self._reserve(call, attempt, plan)

    async def _reserve(self, call: Call, attempt: Attempt, plan: Plan) -> None:
        """`admit` where no float has room: the database is asked."""
        budgets = {one.budget.id: one.budget for one in call.applied}
        try:
            plan, grant = await self._ladder(call, attempt, plan, budgets)
        except Unavailable:
            if call.budgeted:
                raise
            attempt.hold = None
            return
        if grant.state == "denied":
            attempt.hold = None
            status: Literal[402, 429] = 429 if call.snapshot.config.metering.refusal_status == 429 else 402
            wants = {want.budget: want for want in plan.held.wants}
            raise refusal(grant.windows, wants, budgets, now=self._clock.now(), status=status)
        try:
            for window in grant.windows:
                if not window.fits:  # of a granted ask that can only be said where the budget merely warns
                    self._warned(budgets[window.budget].name)
            call.ticket = self._ticket(call, attempt, plan, remaining_usd(grant.windows, budgets))
        except BaseException:
            self._budgets.release(attempt.id)
            raise

    def release(self, ticket: Ticket) -> None:
        """Give back what is held for an attempt of which provably nothing went up. Does not wait."""
        self._budgets.release(ticket.id, ticket.drawn)

    def _drawn(self, call: Call, attempt: Attempt, plan: Plan, drawn: Drawn) -> None:
        """A float had room: the ordinary way of a budget that is far from its limit, without the database."""
        try:
            attempt.hold, attempt.drawn = plan.hold, drawn.hold
            plan.facts = rows.begun(attempt)
            counted = [place for place, one in enumerate(call.applied) if _enforced((one,))]
            call.ticket = self._ticket(call, attempt, plan, _least(drawn.left_usd, counted))
        except BaseException:
            self._budgets.release(attempt.id, drawn.hold)
            raise

    def _drawn_at_once(self, call: Call, attempt: Attempt, quick: Quick, drawn: Drawn) -> None:
        """The same for an ordinary call, which has no pace."""
        try:
            attempt.hold, attempt.drawn = quick.hold, drawn.hold
            facts, remaining = rows.begun(attempt), _least(drawn.left_usd, quick.counted)
            call.ticket = Ticket(attempt.id, facts, None, None, remaining, quick.choices, drawn.hold)
        except BaseException:
            self._budgets.release(attempt.id, drawn.hold)
            raise

    async def _ladder(
        self, call: Call, attempt: Attempt, plan: Plan, budgets: Mapping[UUID, Budget]
    ) -> tuple[Plan, Grant]:
        """Ask, and where the answer is no, ask for less; then wait."""
        grant = await self._ask(call, attempt, plan)
        if (
            grant.state == "denied"
            and (counted := await self._planner.counted(call, attempt, plan, grant, budgets)) is not None
        ):
            plan = counted
            grant = await self._ask(call, attempt, plan)
        if (
            grant.state == "denied"
            and (clamped := self._planner.clamped(call, attempt, plan, grant, budgets)) is not None
        ):
            less = await self._ask(call, attempt, clamped)
            if less.state != "denied":
                return clamped, less
        if grant.state == "denied":
            patience = (_wait_s(budgets[window.budget]) for window in refusing(grant.windows, budgets))
            grant = await self._ask(call, attempt, plan, wait_s=max(SETTLING_S, min(patience, default=0.0)))
        return plan, grant

    async def _ask(self, call: Call, attempt: Attempt, plan: Plan, *, wait_s: float = 0.0) -> Grant:
        attempt.hold = plan.hold
        plan.facts = rows.begun(attempt)
        ask = Ask(attempt.id, plan.held.wants, plan.facts)
        call.reserving = True
        try:
            grant = await self._budgets.reserve(ask, wait_s=wait_s, applied=call.applied)
        finally:
            call.reserving = False
        if grant.state == "gone":
            raise Unavailable("The hold for this call was given up.", headers={"retry-after": "1"})
        return grant

    def _ticket(self, call: Call, attempt: Attempt, plan: Plan, remaining: Decimal | None) -> Ticket:
        extendable = call.budgeted and attempt.stream and plan.extendable
        return Ticket(
            attempt.id,
            plan.facts,
            body=plan.body,
            clamped=plan.clamped,
            remaining_usd=remaining,
            choices=plan.bound.choices,
            drawn=attempt.drawn,
            pace=self._pace(call, attempt, plan) if extendable else None,
        )

    # -- while it streams ------------------------------------------------------------------------

    def _pace(self, call: Call, attempt: Attempt, plan: Plan) -> Pace:
        # A key's tokens a minute are no reason to cut what was let in.
        counted = (one.budget for one in call.applied if one.budget.purpose == "budget")
        counts_tokens = any(budget.limit_tokens is not None for budget in counted)
        drawn = attempt.drawn
        draw = Draw(attempt.id, drawn, plan.facts) if drawn is not None else None

        async def ask(output_tokens: int) -> Verdict:
            usd, tokens = plan.total(output_tokens)
            grant = await self._budgets.extend(attempt.id, usd, tokens if counts_tokens else 0, draw)
            if grant is None or grant.state == "gone":
                return "runs_on"  # what it uses beyond its hold is an overrun of its row's budgets
            if grant.state == "open":
                if (hold := attempt.hold) is not None:
                    output = max(hold.output_tokens, output_tokens)
                    attempt.hold = replace(hold, usd=max(hold.usd, usd), output_tokens=output)
                return "held"
            return "cut"  # those that let a stream run on deny nothing: they hold what they can

        return Pace(plan.held.output_tokens, plan.bound.output_tokens, ask)


def _converses(call: Call) -> bool:
    """Whether starting or continuing a conversation may run a model, as at Mistral: elsewhere it only stores."""
    if call.request.method != "POST" or call.target.endpoint not in ("/v1/conversations", "/v1/conversations/{id}"):
        return False
    providers, named = call.snapshot.config.providers, call.target.provider
    reached = providers.values() if named is None else [providers[named]] if named in providers else []
    return any("mistral" in (provider.dialect, _book(provider)) for provider in reached)


def _book(provider: Provider) -> str:
    return book_of(price_book=provider.price_book, base_url=provider.base_url, dialect=provider.dialect)


def _wait_s(budget: Budget) -> float:
    # A pace is answered with 429 and `retry-after`, which SDKs heed by themselves.
    return budget.wait_s if budget.purpose == "budget" else 0.0


def _enforced(applied: Sequence[Applied]) -> bool:
    for one in applied:  # most are the first: `any` would take twice as long
        budget = one.budget
        if budget.purpose == "budget" and budget.on_exceed == "reject":
            return True
    return False


def _least(left_usd: Sequence[Decimal | None], counted: Sequence[int]) -> Decimal | None:
    """The least that is left of the counters in these places; None where none of them limits dollars."""
    least: Decimal | None = None
    for place in counted:
        left = left_usd[place]
        if left is not None and (least is None or left < least):
            least = left
    return _NOTHING if least is not None and least < 0 else least
