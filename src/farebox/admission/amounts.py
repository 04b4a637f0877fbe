"""From a call's bound to what each of its budgets is asked to hold, or why one of them can't take it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Literal, Protocol

import msgspec

from farebox.admission.learned import STARTING_TOKENS
from farebox.bounds import TOKENS_MAX, Bound
from farebox.records import Budget, Want

_ZERO = Decimal(0)


class Applies(Protocol):
    """A budget that a call answers to, and whose counter of it."""

    @property
    def budget(self) -> Budget: ...

    @property
    def subject(self) -> str: ...


class Priced(Protocol):
    """What so many tokens cost at most, US dollars; None: unpriced. Never less for more of either."""

    def __call__(self, input_tokens: int, output_tokens: int, dearest: bool, /) -> Decimal | None: ...


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """The call can be held.

    wants          one for each budget, in the order given
    input_tokens   what the largest of them holds
    output_tokens  the same; for an extendable call what the extendable ones hold
    strict         a budget among them holds the bound because it must
    extendable     a budget among them holds less than the bound and may be asked for more
    """

    wants: tuple[Want, ...]
    input_tokens: int
    output_tokens: int
    strict: bool
    extendable: bool


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """`budget` can't take the call. `reason`: why there is no bound; the name of nothing where it is unpriced."""

    kind: Literal["no_bound", "unpriced"]
    budget: Budget
    reason: str = ""


def amounts(
    applied: Iterable[Applies],
    bound: Bound,
    *,
    stream: bool,
    learned_output: int | None,
    price: Priced,
    allowance: Decimal | None = None,
    first: bool = True,
    pass_unpriced: bool = False,
) -> Held | Refused:
    """What each budget is to hold.

    `allowance`: the model's, for a call without a bound; None: budgets that refuse have none for it. `first`: the
    call was not counted by another attempt yet. `pass_unpriced`: what has no price holds 0 dollars. A budget that only
    warns never refuses here.
    """
    most = _Sum(bound.input_tokens, bound.output_tokens, dearest=True)
    # A call that can neither ask for more nor be cut is held whole, and priced once.
    whole = not stream and bound.reason is None
    expected = most if whole else _expected(bound, learned_output=learned_output, allowance=allowance)
    requests = 1 if first else 0
    wants: list[Want] = []
    held: list[_Sum] = []
    strict = extendable = False
    for one in applied:
        budget = one.budget
        if budget.purpose == "rate":
            tokens = bound.input_guess + _usual_output(bound, learned_output)
            wants.append(Want(budget.id, one.subject, _ZERO, min(TOKENS_MAX, tokens), requests))
            continue
        enforced = budget.on_exceed == "reject"
        demanding = budget.admission == "strict"
        if bound.reason is not None and enforced and (demanding or allowance is None):
            return Refused(kind="no_bound", budget=budget, reason=bound.reason)
        amount = most if demanding and bound.reason is None else expected
        usd = amount.usd(price)
        if usd is None and enforced and budget.limit_usd is not None and not pass_unpriced:
            return Refused(kind="unpriced", budget=budget)
        wants.append(Want(budget.id, one.subject, usd or _ZERO, amount.tokens, requests))
        held.append(amount)
        strict |= demanding and enforced
        extendable |= amount.output_tokens < bound.output_tokens and bound.reason is None
    outputs = [amount.output_tokens for amount in held if not extendable or amount is not most]
    return Held(
        wants=tuple(wants),
        input_tokens=max([amount.input_tokens for amount in held], default=0),
        output_tokens=max(outputs, default=0),
        strict=strict,
        extendable=extendable,
    )


def total_of(bound: Bound, output_tokens: int, price: Priced) -> tuple[Decimal, int]:
    """What a stream's expected budgets hold in all once they hold so much output: US dollars, and tokens."""
    total = _Sum(bound.input_expected, min(output_tokens, bound.output_tokens), dearest=False)
    return total.usd(price) or _ZERO, total.tokens


def affordable(bound: Bound, price: Priced, *, usd: Decimal | None, tokens: int | None, dearest: bool = True) -> int:
    """Tokens of output that so much money and so many tokens pay beside the input; 0 if none. None: no such limit.

    At most the bound's. `dearest`: as a budget counts it that holds the bound; else as an expected one does a stream.
    `price` is asked some forty times, which is for the rare call that would else be refused.
    """
    read = bound.input_tokens if dearest else bound.input_expected
    most = bound.output_tokens
    if tokens is not None:
        most = min(most, tokens - read)
    if usd is None or most <= 0:
        return max(0, most)
    least = 0
    while least < most:
        middle = (least + most + 1) // 2
        cost = price(read, middle, dearest)
        if cost is not None and cost <= usd:
            least = middle
        else:
            most = middle - 1
    return least


def allowance_of(allowances: Mapping[str, Decimal], model: str | None) -> Decimal | None:
    """The amount of the first glob that fits a model's name, case ignored; None where none does."""
    name = (model or "").lower()
    return next((usd for glob, usd in allowances.items() if fnmatchcase(name, glob.lower())), None)


class _Sum:
    """Tokens to hold, and how they are priced."""

    __slots__ = ("_dearest", "_fixed_usd", "_usd", "input_tokens", "output_tokens", "tokens")

    def __init__(
        self, input_tokens: int, output_tokens: int, *, dearest: bool, fixed_usd: Decimal | None = None
    ) -> None:
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens
        self.tokens = min(TOKENS_MAX, input_tokens + output_tokens)
        self._dearest = dearest
        self._fixed_usd = fixed_usd
        self._usd: Decimal | None = None

    def usd(self, price: Priced) -> Decimal | None:
        if self._fixed_usd is not None:
            return self._fixed_usd
        if self._usd is None:
            self._usd = price(self.input_tokens, self.output_tokens, self._dearest)
        return self._usd


def _expected(bound: Bound, *, learned_output: int | None, allowance: Decimal | None) -> _Sum:
    """What an expected budget holds of a stream, and of a call without a bound."""
    output = _usual_output(bound, learned_output)
    if bound.reason is not None:
        return _Sum(bound.input_expected, output, dearest=False, fixed_usd=allowance or _ZERO)
    return _Sum(bound.input_expected, output, dearest=False)


def _usual_output(bound: Bound, learned_output: int | None) -> int:
    usual = STARTING_TOKENS * bound.choices if learned_output is None else learned_output
    return min(bound.output_tokens, usual)
