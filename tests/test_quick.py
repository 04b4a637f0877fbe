"""What ordinary calls hold, said in one step, is what the general way says of them."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import msgspec

from farebox.accounting import Attempt
from farebox.admission import Learned
from farebox.bounds import read_ordinary
from farebox.budgets.applying import Applied
from farebox.budgets.floats import Part
from farebox.config import Metering
from farebox.errors import FareboxError
from farebox.kinds import Kind
from farebox.paths import parse
from farebox.pricing import Pricer
from farebox.proxy.call import Call
from farebox.proxy.planning import Planner
from farebox.records import Budget, Caller
from farebox.request import read_facts
from support.pricing import book, provider

AT = datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)
CALLER = Caller(kind="virtual", key_id=UUID(int=7))
MODELS = ("gpt-4o", "gpt-5-mini", "claude-sonnet-4-5", "nobody-prices-this", "openrouter/auto", "sonar")
ODD: tuple[dict[str, Any], ...] = (
    {},
    {"max_tokens": 0},
    {"n": 0},
    {"n": 3},
    {"max_completion_tokens": 10**13},
    {"tools": []},
    {"stream": True},
    {"service_tier": "flex"},
    {"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]},
    {"messages": [{"role": "user", "content": "ﷺ \u0130 ½"}]},
)


def applied(chance: random.Random) -> tuple[Applied, ...]:
    return tuple(
        Applied(
            Budget(
                id=UUID(int=n + 1),
                name=str(n),
                source="api",
                scope="global",
                limit_usd=Decimal(10),
                purpose=chance.choice(("budget", "budget", "budget", "rate")),
                on_exceed=chance.choice(("reject", "warn")),
                admission=chance.choice(("expected", "strict")),
            ),
            chance.choice(("", "all")),
        )
        for n in range(chance.randint(1, 3))
    )


def _same(pricer: Pricer) -> Pricer:
    return pricer


def call_of(body: bytes, budgets: tuple[Applied, ...], metering: Metering) -> Call:
    enforced = any(one.budget.purpose == "budget" and one.budget.on_exceed == "reject" for one in budgets)
    stands: Any = SimpleNamespace(
        target=parse("POST", "/v1/chat/completions"),
        decoded=body,
        facts=read_facts("chat", body),
        ordinary=read_ordinary("chat", body),
        applied=budgets,
        budgeted=enforced,
        caller=CALLER,
        received_at=AT,
        snapshot=SimpleNamespace(config=SimpleNamespace(metering=metering)),
    )
    return cast(Call, stands)


def test_the_short_way_holds_what_the_general_way_does() -> None:
    """For the same call the same wants, the same hold and the same answers, or the short way leaves it to the other."""
    chance = random.Random(20)
    metering, short = Metering(), 0
    for dialect in ("openai", "anthropic", "openrouter", "xai"):
        by = provider(dialect)
        planner = Planner(partial(_same, Pricer(book(), {by.name: by})), Learned(), cast(Any, None))
        for _ in range(400):
            body = msgspec.json.encode(
                {
                    "model": chance.choice(MODELS),
                    "messages": [{"role": "user", "content": "x" * chance.randint(0, 300)}],
                    **({"max_tokens": chance.randint(1, 9_000)} if chance.random() < 0.5 else {}),
                    **(chance.choice(ODD) if chance.random() < 0.5 else {}),
                }
            )
            call = call_of(body, applied(chance), metering)
            assert call.facts is not None
            kind = Kind(
                caller=CALLER,
                target=call.target,
                provider=by.name,
                dialect=dialect,
                model=call.facts.model,
                stream=call.facts.stream,
                service_tier=call.facts.service_tier,
            )
            for number in (1, 1, 2):
                attempt = Attempt(UUID(int=9), UUID(int=9), number, kind, AT, 0.0, 0.0, len(body))
                quick = planner.quick(call, attempt, by)
                if quick is None:
                    continue
                short += 1
                plan = planner.plan(call, attempt, by)
                assert (quick.part.wants, quick.hold) == (plan.held.wants, plan.hold)
                assert quick.choices == plan.bound.choices
                assert not plan.extendable
                assert quick.part == Part.of(plan.held.wants)
    assert short > 150


def test_it_is_remembered_only_as_long_as_it_stands() -> None:
    """Other budgets, other prices or another minute are looked at anew."""
    by = provider()
    prices = [Pricer(book(), {by.name: by})]
    planner, metering = Planner(lambda: prices[-1], Learned(), cast(Any, None)), Metering()
    body = b'{"model":"gpt-4o","messages":[{"role":"user","content":"hi"}],"max_tokens":5}'
    kind = Kind(
        caller=CALLER, target=call_of(body, (), metering).target, provider=by.name, dialect="openai", model="gpt-4o"
    )
    chance = random.Random(3)

    def held(budgets: tuple[Applied, ...], at: datetime = AT) -> object:
        call = call_of(body, budgets, metering)
        planner.quick(call, Attempt(UUID(int=9), UUID(int=9), 1, kind, at, 0.0, 0.0, len(body)), by)
        return kind.held

    first, other = applied(chance), applied(chance)
    assert first != other
    known = held(first)
    assert known is not None
    assert held(tuple(first)) is known
    assert held(other) is not known
    known = held(first)
    assert held(first, AT.replace(minute=1)) is not known
    known = held(first)
    prices.append(Pricer(book(), {by.name: by}))
    assert held(first) is not known


def test_what_it_refuses_the_general_way_refuses_better() -> None:
    """Where a bound or a price is missing the short way says nothing: the refusal is the general way's."""
    by = provider()
    planner, metering = Planner(lambda: Pricer(book(), {by.name: by}), Learned(), cast(Any, None)), Metering()
    budget = Budget(id=UUID(int=1), name="b", source="api", scope="global", limit_usd=Decimal(1), admission="strict")
    for model in ("nobody-prices-this", "openrouter/auto"):
        body = msgspec.json.encode({"model": model, "messages": [{"role": "user", "content": "hi"}]})
        call = call_of(body, (Applied(budget, ""),), metering)
        kind = Kind(caller=CALLER, target=call.target, provider=by.name, dialect="openai", model=model)
        attempt = Attempt(UUID(int=9), UUID(int=9), 1, kind, AT, 0.0, 0.0, len(body))
        assert planner.quick(call, attempt, by) is None
        try:
            planner.plan(call, attempt, by)
        except FareboxError:
            continue
        raise AssertionError(model)
