"""Admission: what each budget holds for a call, what is learned of answers, how far expected budgets overshoot."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farebox.admission import Held, Learned, Refused, affordable, allowance_of, amounts, total_of
from farebox.admission.learned import OUTPUTS_KEPT, OUTPUTS_MIN, STARTING_TOKENS
from farebox.bounds import TOKENS_MAX, Bound
from farebox.proxy.pace import BYTES_PER_TOKEN, Pace, Verdict
from farebox.records import Budget
from support.events import event

fixed = settings(derandomize=True, database=None, deadline=None, max_examples=40)
KEY = UUID(int=9)


class Applied(NamedTuple):
    budget: Budget
    subject: str


def budget(number: int = 1, **fields: Any) -> Applied:
    defaults: dict[str, Any] = {"name": f"b{number}", "source": "api", "scope": "global", "limit_usd": Decimal(10)}
    return Applied(Budget(id=UUID(int=number), **{**defaults, **fields}), f"s{number}")


def bound(input_tokens: int = 1_000, output_tokens: int = 64_000, **fields: Any) -> Bound:
    defaults: dict[str, Any] = {"input_expected": input_tokens, "input_guess": input_tokens // 4}
    return Bound(input_tokens=input_tokens, output_tokens=output_tokens, **{**defaults, **fields})


def price(input_tokens: int, output_tokens: int, dearest: bool) -> Decimal | None:
    """A dollar for a thousand tokens of input, two for output; served at its dearest, twice that."""
    return Decimal(input_tokens + 2 * output_tokens) / 1_000 * (2 if dearest else 1)


def unpriced(input_tokens: int, output_tokens: int, dearest: bool) -> Decimal | None:
    return None


def decide(applied: Sequence[Applied], what: Bound, **more: Any) -> Held | Refused:
    asked: dict[str, Any] = {"stream": True, "learned_output": None, "price": price, **more}
    return amounts(applied, what, **asked)


def held(applied: Sequence[Applied], what: Bound, **more: Any) -> Held:
    decision = decide(applied, what, **more)
    assert isinstance(decision, Held)
    return decision


# -- amounts ---------------------------------------------------------------------------------------


def test_a_strict_budget_holds_the_bound_at_the_dearest_price() -> None:
    """Whether it streams or not and whatever was learned."""
    for stream in (True, False):
        found = held([budget(admission="strict")], bound(), stream=stream, learned_output=5)
        assert (found.wants[0].usd, found.wants[0].tokens) == (Decimal(258), 65_000)
        assert (found.strict, found.extendable, found.output_tokens) == (True, False, 64_000)


@pytest.mark.parametrize(
    ("learned", "output", "expected"),
    [(None, 64_000, 2_048), (None, 100, 100), (500, 64_000, 500), (500, 100, 100), (10**9, 64_000, 64_000)],
)
def test_an_expected_budget_holds_what_a_stream_usually_has(learned: int | None, output: int, expected: int) -> None:
    """Its input and the learned output; without history 2,048, and never more than the bound."""
    found = held([budget()], bound(1_000, output), learned_output=learned)
    assert found.wants[0].tokens == 1_000 + expected
    assert found.wants[0].usd == price(1_000, expected, False)
    assert found.extendable == (expected < output)
    assert found.output_tokens == expected and not found.strict


def test_what_does_not_stream_holds_the_bound() -> None:
    """It can be neither extended nor cut."""
    found = held([budget()], bound(), stream=False, learned_output=5)
    assert (found.wants[0].usd, found.wants[0].tokens, found.extendable) == (Decimal(258), 65_000, False)


def test_one_call_several_budgets() -> None:
    """Each holds by its own admission, in the order given; what is extended starts from the expected output."""
    rate = budget(3, purpose="rate", limit_usd=None, limit_tokens=10**6, window="minute")
    found = held([budget(1, admission="strict"), budget(2), rate], bound(), learned_output=500)
    assert [want.budget.int for want in found.wants] == [1, 2, 3]
    assert [want.subject for want in found.wants] == ["s1", "s2", "s3"]
    assert [want.tokens for want in found.wants] == [65_000, 1_500, 750]
    assert [want.usd for want in found.wants] == [Decimal(258), Decimal(2), Decimal(0)]
    assert (found.output_tokens, found.input_tokens) == (500, 1_000)
    assert found.strict and found.extendable


def test_a_second_attempt_is_no_second_request() -> None:
    """Limits on requests count the call once, however many providers were tried."""
    rate = budget(2, purpose="rate", limit_usd=None, limit_requests=5, window="minute")
    assert [want.requests for want in held([budget(), rate], bound()).wants] == [1, 1]
    assert [want.requests for want in held([budget(), rate], bound(), first=False).wants] == [0, 0]


def test_a_closer_count_lowers_what_is_expected() -> None:
    """Once counted, an expected stream holds the count; a strict budget keeps the bound until that is lower."""
    counted = bound(1_000, 64_000, input_expected=300)
    found = held([budget(1, admission="strict"), budget(2)], counted, learned_output=100)
    assert [want.tokens for want in found.wants] == [65_000, 400]
    assert total_of(counted, 100, price) == (Decimal("0.5"), 400)
    assert total_of(counted, 10**9, price)[1] == 64_300


def test_no_bound() -> None:
    """Refused by strict budgets and where the model has no allowance; else that is held, and never extended."""
    unbound = bound(reason="an image")
    refused = decide([budget(1), budget(2, admission="strict")], unbound, allowance=Decimal(1))
    assert isinstance(refused, Refused)
    assert (refused.kind, refused.budget.name, refused.reason) == ("no_bound", "b2", "an image")
    assert isinstance(decide([budget()], unbound), Refused)
    found = held([budget()], unbound, allowance=Decimal("1.5"), stream=False)
    assert (found.wants[0].usd, found.extendable) == (Decimal("1.5"), False)
    warned = held([budget(admission="strict", on_exceed="warn")], unbound)
    assert warned.wants[0].usd == 0 and not warned.strict


def test_unpriced() -> None:
    """A budget in dollars that refuses can't take it, unless told to; one in tokens, one that warns and a rate can."""
    refused = decide([budget()], bound(), price=unpriced)
    assert isinstance(refused, Refused) and refused.kind == "unpriced"
    assert held([budget()], bound(), price=unpriced, pass_unpriced=True).wants[0].usd == 0
    others = [
        budget(1, limit_usd=None, limit_tokens=10**6),
        budget(2, on_exceed="warn"),
        budget(3, purpose="rate", limit_usd=None, limit_requests=1),
    ]
    assert [want.usd for want in held(others, bound(), price=unpriced).wants] == [0, 0, 0]


def test_no_budget_holds_nothing() -> None:
    """No budget, no hold."""
    assert held([], bound()) == Held(wants=(), input_tokens=0, output_tokens=0, strict=False, extendable=False)


@fixed
@given(st.integers(0, TOKENS_MAX), st.integers(0, TOKENS_MAX), st.booleans(), st.none() | st.integers(0, TOKENS_MAX))
def test_amounts_are_never_negative_and_always_storable(i: int, o: int, stream: bool, learned: int | None) -> None:
    """Whatever the bound: tokens within what sums hold, dollars not negative, expected never above strict."""
    found = held([budget(1, admission="strict"), budget(2)], bound(i, o), stream=stream, learned_output=learned)
    strict, expected = found.wants
    assert 0 <= expected.tokens <= strict.tokens <= TOKENS_MAX
    assert 0 <= expected.usd <= strict.usd


# -- what a remainder pays ---------------------------------------------------------------------------


@fixed
@given(
    st.integers(0, 5_000), st.integers(0, 10**6), st.none() | st.integers(0, 3_000), st.none() | st.integers(0, 10**6)
)
def test_what_is_affordable_is_the_most(i: int, o: int, usd: int | None, tokens: int | None) -> None:
    """It is paid for, one token more is not, and the bound is never passed."""
    what = bound(i, o)
    found = affordable(what, price, usd=None if usd is None else Decimal(usd), tokens=tokens)

    def pays(output: int) -> bool:
        cost = price(i, output, True)
        assert cost is not None
        return (usd is None or cost <= usd) and (tokens is None or i + output <= tokens)

    assert 0 <= found <= o
    assert found == 0 or pays(found)
    assert found == o or not pays(found + 1)
    assert affordable(what, unpriced, usd=Decimal(1), tokens=None) == 0


def test_allowances_go_by_the_first_glob() -> None:
    """In the order written, case ignored; none without a line."""
    lines = {"gpt-5*": Decimal(3), "gpt-*": Decimal(2)}
    assert [allowance_of(lines, model) for model in ("GPT-5-mini", "gpt-4o", "claude", None)] == [3, 2, None, None]
    assert allowance_of({"*": Decimal(1)}, None) == 1


# -- what is learned ---------------------------------------------------------------------------------


def seen(learned: Learned, outputs: Sequence[int | None], model: str = "m", **fields: Any) -> None:
    usual = {"outcome": "complete", "usage_source": "provider", "key_id": KEY, "requested_model": model}
    for tokens in outputs:
        learned.observe(event(**{**usual, "output_tokens": tokens, **fields}))


def test_the_quantile_is_an_output_that_was() -> None:
    """95 of 100 are no longer; of a few, the longest; of fewer than eight, nothing is known."""
    learned = Learned()
    seen(learned, [7] * (OUTPUTS_MIN - 1))
    assert learned.output_tokens(KEY, "m") is None
    seen(learned, [9])
    assert learned.output_tokens(KEY, "m") == 9
    seen(learned, range(1, 101), model="other")
    assert learned.output_tokens(KEY, "other") == 95
    assert learned.output_tokens(UUID(int=1), "m") is None and learned.output_tokens(KEY, None) is None


def test_it_follows_what_changes() -> None:
    """Only the last outputs count."""
    learned = Learned()
    seen(learned, [50_000] * 500)
    seen(learned, [500] * (OUTPUTS_KEPT - 1))
    assert learned.output_tokens(KEY, "m") == 500
    seen(learned, [60_000] * 7)
    assert learned.output_tokens(KEY, "m") == 60_000


@pytest.mark.parametrize(
    "fields",
    [
        {"outcome": "client_gone"},
        {"outcome": "budget_cut"},
        {"usage_source": "estimate"},
        {"usage_source": "hold"},
        {"output_tokens": None},
        {"output_tokens": 0},
        {"output_tokens": -5},
    ],
)
def test_interrupted_answers_teach_nothing(fields: dict[str, Any]) -> None:
    """A cut answer is shorter than it would have been, and a guess is no fact."""
    learned = Learned()
    seen(learned, [10] * 20, **fields)
    assert len(learned) == 0


def test_it_has_an_end() -> None:
    """Past the bound the pair not seen for longest is forgotten, its quantile too."""
    learned = Learned(pairs_max=3)
    for model in "abc":
        seen(learned, [5] * 10, model=model)
    assert learned.output_tokens(KEY, "a") == 5
    seen(learned, [6], model="a")
    seen(learned, [5] * 10, model="d")
    assert len(learned) == 3
    assert [learned.output_tokens(KEY, model) for model in "abcd"] == [6, None, 5, 5]


# -- the overshoot of expected budgets ---------------------------------------------------------------


class Stream(msgspec.Struct, frozen=True):
    """One call as it really goes: `chunks` bytes of text, `density` tokens in a byte, `hidden` tokens of thinking."""

    input_bound: int
    output_bound: int
    input_counted: int
    input_true: int
    chunks: list[int]
    density: float
    hidden: int

    @property
    def bound(self) -> Bound:
        return bound(self.input_bound, self.output_bound, input_expected=min(self.input_counted, self.input_bound))


STREAMS = st.builds(
    Stream,
    input_bound=st.integers(1, 3_000),
    output_bound=st.integers(1, 20_000),
    input_counted=st.integers(1, 3_000),
    input_true=st.integers(0, 3_000),
    chunks=st.lists(st.integers(0, 3_000), max_size=30),
    density=st.sampled_from([0.1, 0.25, 0.33, 0.5, 1.0]),
    hidden=st.just(0) | st.integers(0, 5_000),
)


class Window:
    """One counter, guarded as Postgres guards it."""

    def __init__(self, limit: Decimal) -> None:
        self.limit, self.spent, self.reserved = limit, Decimal(0), Decimal(0)

    def add(self, usd: Decimal) -> bool:
        if usd > 0 and self.spent + self.reserved + usd > self.limit:
            return False
        self.reserved += usd
        return True


async def run(stream: Stream, window: Window, learned: int | None) -> Decimal:
    """One stream under an expected budget, as `proxy` leads it: what it may overshoot by the formula."""
    what = stream.bound
    first = held([budget()], what, learned_output=learned)
    holding, output_held = first.wants[0].usd, first.output_tokens
    if not window.add(holding):
        return Decimal(0)
    cut_after = None

    async def ask(output_tokens: int) -> Verdict:
        nonlocal holding, output_held
        await asyncio.sleep(0)
        total, _ = total_of(what, output_tokens, price)
        if not window.add(total - holding):
            return "cut"
        holding, output_held = total, output_tokens
        return "held"

    pace = Pace(first.output_tokens, what.output_tokens if first.extendable else first.output_tokens, ask)
    text = last = 0
    for chunk in stream.chunks:
        if stream.density * (text + chunk) + stream.hidden > stream.output_bound:
            break  # the model stops at its limit
        text, last = text + chunk, chunk
        if pace.due(text) and not await pace.keep_up(text):
            cut_after = text
            break
        await asyncio.sleep(0)
    await pace.stop()
    thought = min(stream.hidden, stream.output_bound)
    written = min(int(stream.density * text) + thought, stream.output_bound)
    read = min(stream.input_true, stream.input_bound)
    cost = price(read, written, False)
    most = price(what.input_tokens, what.output_tokens, False)
    assert cost is not None and most is not None
    window.reserved -= holding
    window.spent += cost
    dense = Decimal(str(stream.density))
    out = max(Decimal(0), BYTES_PER_TOKEN * dense - 1) * output_held + dense * last + thought + BYTES_PER_TOKEN * dense
    over = (2 * out + max(0, read - what.input_expected)) / 1_000
    assert cost - holding <= min(over, most - holding) or cost <= holding, (cut_after, output_held)
    return max(Decimal(0), cost - holding)


@fixed
@given(st.lists(STREAMS, min_size=1, max_size=8), st.integers(0, 60), st.none() | st.integers(1, 4_000))
def test_the_overshoot_is_within_the_formula(streams: list[Stream], limit: int, learned: int | None) -> None:
    """Concurrent streams of any density, thinking and pacing: spent is at most the limit and each one's formula."""

    async def all_of_them() -> None:
        window = Window(Decimal(limit))
        overs = await asyncio.gather(*(run(stream, window, learned) for stream in streams))
        assert window.reserved == 0
        assert window.spent <= window.limit + sum(overs)

    asyncio.run(all_of_them())


def test_agents_with_long_limits_are_admitted() -> None:
    """100 streams with limits of 64,000 tokens fit into 25 dollars, which the bounds of 24 would not."""

    def dollars(input_tokens: int, output_tokens: int, dearest: bool) -> Decimal | None:
        return Decimal(3 * input_tokens + 15 * output_tokens) / 10**6

    def fit(admission: str) -> int:
        window = Window(Decimal(25))
        agent = budget(admission=admission)
        wants = [held([agent], bound(30_000, 64_000), price=dollars).wants[0].usd for _ in range(100)]
        return sum(window.add(usd) for usd in wants)

    assert (fit("expected"), fit("strict")) == (100, 23)
    assert STARTING_TOKENS == 2_048
