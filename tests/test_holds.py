"""What a call is charged that a budget holds money for, and how a stream's hold keeps ahead of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest
from msgspec.structs import replace

from farebox import payload
from farebox.holds import Hold, charge, keep_output, put_hold
from farebox.proxy.pace import BYTES_PER_TOKEN, Pace, Verdict
from farebox.records import UsageEvent
from support.events import event

BUDGET = "0190b5a0-0000-7000-8000-000000000001"
EXPECTED = Hold((BUDGET,), Decimal("0.50"), 100, 400, strict=False)
STRICT = replace(EXPECTED, strict=True)


def charged(hold: Hold, *, goes_on: bool = False, **fields: Any) -> UsageEvent:
    made = event(**({"status": 200, "input_tokens": 90, "output_tokens": 50} | fields))
    charge(made, hold, goes_on=goes_on)
    return made


@pytest.mark.parametrize("hold", [EXPECTED, STRICT])
def test_the_providers_own_count_stands(hold: Hold) -> None:
    """A cost that follows from the provider's count is charged as it is, below the hold or above it."""
    for cost in (Decimal("0.01"), Decimal("9")):
        made = charged(hold, usage_source="provider", cost_usd=cost, cost_source="prices", outcome="client_gone")
        assert (made.cost_usd, made.usage_source, made.output_tokens) == (cost, "provider", 50)
        assert made.budget_ids == [BUDGET]


@pytest.mark.parametrize("outcome", ["client_gone", "upstream_cut", "farebox_cut"])
@pytest.mark.parametrize("hold", [EXPECTED, STRICT])
@pytest.mark.parametrize("source", ["estimate", "partial"])
def test_an_end_that_was_not_seen_costs_the_larger_of_hold_and_estimate(hold: Hold, outcome: Any, source: Any) -> None:
    """A guess never frees what was held, and a hold never hides what was seen."""
    less = charged(hold, usage_source=source, cost_usd=Decimal("0.01"), cost_source="prices", outcome=outcome)
    assert (less.cost_usd, less.cost_source, less.usage_source) == (hold.usd, "hold", "hold")
    assert (less.input_tokens, less.output_tokens) == (100, 400)
    more = charged(hold, usage_source=source, cost_usd=Decimal("0.51"), cost_source="prices", outcome=outcome)
    assert (more.cost_usd, more.cost_source, more.usage_source) == (Decimal("0.51"), "prices", source)


@pytest.mark.parametrize(("outcome", "told"), [("budget_cut", False), ("budget_cut", True), ("client_gone", True)])
def test_an_input_that_is_known_is_not_charged_by_its_size(outcome: Any, told: bool) -> None:
    """Where only the output is a guess, it is what was held at least, and the input what was told or counted."""
    made = event(status=200, input_tokens=9, output_tokens=50, usage_source="partial", outcome=outcome)
    assert keep_output(made, EXPECTED, input_told=told)
    assert (made.input_tokens, made.output_tokens) == (9, 400)
    made.cost_usd, made.cost_source = Decimal("0.2"), "prices"
    charge(made, EXPECTED, kept=True)
    assert (made.cost_usd, made.cost_source, made.usage_source) == (Decimal("0.2"), "prices", "partial")
    made.cost_usd = made.cost_source = None
    charge(made, EXPECTED, kept=True)
    assert (made.cost_usd, made.cost_source) == (EXPECTED.usd, "hold"), "a price that is not known is the hold"


@pytest.mark.parametrize("fields", [{"usage_source": "provider"}, {"outcome": "complete"}, {}])
def test_what_is_known_or_strict_keeps_its_counts(fields: dict[str, Any]) -> None:
    """A provider's own count, a whole answer, and a strict budget's hold are not touched before pricing."""
    facts = {"status": 200, "output_tokens": 50, "usage_source": "partial", "outcome": "client_gone"} | fields
    made = event(**facts)
    assert not keep_output(made, EXPECTED if fields else STRICT, input_told=True)
    assert made.output_tokens == 50


def test_a_guess_at_a_whole_answer_is_good_enough_but_for_a_strict_budget() -> None:
    """A provider that reports no usage is charged by farebox's count, on a strict budget by the bound."""
    facts: dict[str, Any] = {"usage_source": "estimate", "cost_usd": Decimal("0.01"), "cost_source": "prices"}
    assert charged(EXPECTED, **facts).cost_usd == Decimal("0.01")
    assert charged(STRICT, **facts).cost_usd == Decimal("0.50")
    assert charged(EXPECTED, goes_on=True, **facts).cost_usd == Decimal("0.50"), "a background response works on"


def test_an_error_the_provider_told_is_an_end_and_no_answer_is_none() -> None:
    """After a timeout the provider may still bill; after an error event it has stopped."""
    facts: dict[str, Any] = {"usage_source": "estimate", "cost_usd": Decimal("0.01"), "outcome": "upstream_error"}
    assert charged(EXPECTED, **facts).cost_usd == Decimal("0.01")
    assert charged(EXPECTED, status=None, **facts).cost_usd == Decimal("0.50")


@pytest.mark.parametrize("hold", [EXPECTED, STRICT])
def test_nothing_billable_stays_free_and_an_unknown_price_is_the_hold(hold: Hold) -> None:
    """An error costs nothing, a model without a price what was held, and no tokens are made up."""
    free = charged(hold, usage_source="none", cost_usd=Decimal(0), cost_source="none", outcome="upstream_error")
    assert (free.cost_usd, free.usage_source) == (0, "none")
    unknown = charged(hold, usage_source="provider")
    assert (unknown.cost_usd, unknown.cost_source, unknown.usage_source) == (hold.usd, "hold", "provider")
    assert (unknown.input_tokens, unknown.output_tokens) == (90, 50)
    nothing_held = charged(replace(hold, usd=Decimal(0)), usage_source="provider")
    assert nothing_held.cost_usd is None, "unknown is not 0"


def test_budgets_that_refuse_nobody_leave_guesses_as_they_are() -> None:
    """A key that is only warned, or only paced, has the rows of one without a budget."""
    free = replace(EXPECTED, binding=False)
    guessed = charged(free, usage_source="estimate", outcome="client_gone")
    assert (guessed.usage_source, guessed.cost_usd, guessed.budget_ids) == ("estimate", None, [BUDGET])


def test_what_a_crash_leaves_keeps_its_budgets_and_its_hold_however_large_it_is() -> None:
    """Cut off, shrunk, or refused by the database: an event still says which budgets it is charged to, and what."""
    made = event(tags={"t": "x" * 9000}, usage_raw={"a": "b" * 9000}, tool_calls=[])
    put_hold(made, EXPECTED)
    now = datetime.now(UTC)
    begun = payload.encode(made)
    for data in (begun, payload.cut(begun, now.timestamp()), payload.bare(begun, now)):
        members = json.loads(data)
        assert members["budget_ids"] == [BUDGET]
        assert (Decimal(members["cost_usd"]), members["cost_source"]) == (EXPECTED.usd, "hold")
        assert (members["usage_source"], members["input_tokens"], members["output_tokens"]) == ("hold", 100, 400)
        assert msgspec.json.decode(data, type=UsageEvent).id == made.id


@pytest.mark.parametrize("cost", ["NaN", "-1", "Infinity", "x", None])
def test_a_bare_event_has_no_cost_that_is_none(cost: str | None) -> None:
    """What is left of an event that the database refused can't be refused for its money."""
    body = json.dumps({"id": str(UUID(int=1)), "budget_ids": [BUDGET, "x"], "cost_usd": cost, "cost_source": "hold"})
    members = json.loads(payload.bare(body.encode(), datetime.now(UTC)))
    assert (members["budget_ids"], members.get("cost_usd"), members.get("cost_source")) == ([BUDGET], None, None)


# -- a stream's hold ------------------------------------------------------------------------------


class Asked:
    """Answers what `say` tells for a total; notes what was asked."""

    def __init__(self, say: Callable[[int], Verdict]) -> None:
        self.totals: list[int] = []
        self.say = say
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, total: int) -> Verdict:
        self.totals.append(total)
        await self.gate.wait()
        return self.say(total)


async def run(pace: Pace, upto: int, *, step: int = 30) -> int | None:
    """Let a stream come to `upto` tokens; at how many it was cut, None if it was not."""
    for size in range(0, upto * BYTES_PER_TOKEN + 1, step):
        if pace.due(size) and not await pace.keep_up(size):
            return size // BYTES_PER_TOKEN
        await asyncio.sleep(0)
    return None


async def test_a_hold_is_always_ahead_of_its_stream() -> None:
    """More is asked for before what is held is used, seldom, and never beyond the bound."""
    asked = Asked(lambda total: "held")
    pace = Pace(400, 64_000, asked)
    assert await run(pace, 64_000, step=300) is None
    assert asked.totals == sorted(set(asked.totals)) and asked.totals[-1] == 64_000
    assert len(asked.totals) < 30


async def test_a_short_answer_asks_for_nothing() -> None:
    """Within three quarters of its hold a stream costs no round trip."""
    asked = Asked(lambda total: "held")
    assert await run(Pace(400, 64_000, asked), 299) is None
    assert asked.totals == []


async def test_a_stream_waits_only_when_its_hold_is_used_up() -> None:
    """While the question is under way the rest of the hold is used; then the stream stands still."""
    asked = Asked(lambda total: "held")
    asked.gate.clear()
    pace = Pace(400, None, asked)
    assert await run(pace, 399) is None
    waiting = asyncio.create_task(pace.keep_up(400 * BYTES_PER_TOKEN))
    await asyncio.sleep(0.01)
    assert not waiting.done() and asked.totals == [656]
    asked.gate.set()
    assert await waiting


async def test_the_last_money_is_spent_before_a_stream_is_cut() -> None:
    """Where a slice is denied less is asked for, and what is held is used to its end."""
    asked = Asked(lambda total: "held" if total <= 500 else "cut")
    at = await run(Pace(400, 64_000, asked), 1000, step=3)
    assert at is not None and 400 < at <= 500
    assert max(total for total in asked.totals if total <= 500) >= at


async def test_a_denial_is_no_last_word() -> None:
    """Others may end while the rest of a hold is used: then the stream goes on."""
    answers = iter(["cut", "cut"])
    asked = Asked(lambda total: next(answers, "held"))  # type: ignore[arg-type, return-value]
    assert await run(Pace(400, 64_000, asked), 600, step=3) is None


async def test_who_may_overrun_runs_on_and_keeps_asking() -> None:
    """An overrun is no end: the stream goes on, and asks at each slice."""
    asked = Asked(lambda total: "runs_on")
    assert await run(Pace(400, 4_000, asked), 4_000) is None
    assert 3 < len(asked.totals) < 12


async def test_nothing_is_asked_for_once_a_stream_is_over() -> None:
    """`stop` comes back when no question is under way: nothing may be held for what is settled."""
    asked = Asked(lambda total: "held")
    asked.gate.clear()
    pace = Pace(400, None, asked)
    assert await pace.keep_up(350 * BYTES_PER_TOKEN)
    await asyncio.sleep(0)
    stopping = asyncio.create_task(pace.stop())
    await asyncio.sleep(0.01)
    assert not stopping.done() and asked.totals
    asked.gate.set()
    await stopping
