"""The protocol of budgets on a real Postgres, driven at random: all invariants after every step, whatever happened.

What farebox itself looks for in its books takes longer than all the rest, and stays wrong once it is: so that is asked
every few steps and at the end of each run. The same sums are made here after every step.

Hypothesis chooses calls, extensions, endings, crashes, changed limits and the time; a small model says
what each answer must be. One process drives, so that every answer is determined; who races whom is
`test_budget_locks` and `test_budget_race`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from farebox.payload import encode
from farebox.records import Budget, Want
from farebox.store import Store
from farebox.store.budgets import Ask
from farebox.store.corrections import Corrections, Cost
from support.events import event
from support.postgres import PostgresServer
from support.reserves import LEASE_S, NOON, RESET, Teller, ask

D = Decimal
_AMOUNTS = st.sampled_from([D(0), D("0.000001"), D("0.5"), D(1), D(2), D("3.75")])
_TOKENS = st.sampled_from([0, 1, 10, 40])
_LIMITS = st.sampled_from([D(0), D(1), D(4), D(8), D(20)])
_NAMES = ("day", "total", "hour", "warns")
_LOOKED_EVERY = 8
"""Steps."""


class Call:
    """What the test knows of one call."""

    def __init__(self, made: Ask) -> None:
        self.ask = made
        self.id: UUID = made.id
        self.state = "new"  # new, denied, open, settled, swept, void, returned (swept, then released)
        self.postings = 0
        self.held = {(want.budget, want.subject): want.usd for want in made.wants}
        self.charged = D(0)


class Driver:
    """A database and a loop, kept from example to example."""

    def __init__(self, postgres: PostgresServer) -> None:
        self.loop = asyncio.new_event_loop()
        self._context = postgres.database()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    async def open(self) -> None:
        dsn = await self._context.__aenter__()
        self.store, self.sql = Store(dsn, pool_size_max=2), await asyncpg.connect(dsn)
        await self.store.open()

    async def close(self) -> None:
        await self.store.close()
        await self.sql.close()
        await self._context.__aexit__(None, None, None)


class Machine(RuleBasedStateMachine):
    """The steps. `driver` must be open."""

    def __init__(self, driver: Driver) -> None:
        super().__init__()
        self.driver = driver
        self.run = driver.run
        self.calls: list[Call] = []
        self.now = NOON
        self.steps = 0

    @initialize()
    def begin(self) -> None:
        """An empty database, one owner, four budgets."""
        self.run(self.driver.sql.execute(RESET))
        self.teller: Teller = self.run(Teller.open(self.driver.store, self.driver.sql))
        shapes: dict[str, dict[str, Any]] = {
            "day": {"limit_usd": D(8)},
            "total": {"limit_usd": D(20), "limit_tokens": 200, "window": "total"},
            "hour": {"limit_tokens": 60, "limit_open": 3, "window": "hour", "scope": "team"},
            "warns": {"limit_usd": D(1), "on_exceed": "warn"},
        }
        self.budgets: dict[str, Budget] = {
            name: self.run(self.teller.budget(name, **shape)) for name, shape in shapes.items()
        }

    def chosen(self, number: int, *states: str) -> Call | None:
        calls = [call for call in self.calls if call.state in states]
        return calls[number % len(calls)] if calls else None

    # -- steps -----------------------------------------------------------------------------------

    @rule(names=st.sets(st.sampled_from(_NAMES), min_size=1), usd=_AMOUNTS, tokens=_TOKENS, requests=st.integers(0, 1))
    def reserve(self, names: set[str], usd: Decimal, tokens: int, requests: int) -> None:
        """A new call: open where every limit has room as it stands, else denied."""
        budgets = [self.budgets[name] for name in sorted(names)]
        call = Call(ask(*budgets, usd=str(usd), tokens=tokens, requests=requests))
        expected = all(self.run(self._room(want)) for want in call.ask.wants)
        grant = self.run(self.teller.reserve(call.ask))
        assert grant.state == ("open" if expected else "denied")
        assert len(grant.windows) == len(budgets)
        call.state = grant.state
        self.calls.append(call)

    async def _room(self, want: Want) -> bool:
        budget = next(one for one in self.budgets.values() if one.id == want.budget)
        [found] = await self.teller.budgets.standing([(want.budget, want.subject)]) or [None]
        spent, tokens, open = (
            (found.spent_usd + found.reserved_usd, found.spent_tokens + found.reserved_tokens, found.open)
            if found is not None
            else (D(0), 0, 0)
        )
        return budget.on_exceed == "warn" or (
            (not want.usd or budget.limit_usd is None or spent + want.usd <= budget.limit_usd)
            and (not want.tokens or budget.limit_tokens is None or tokens + want.tokens <= budget.limit_tokens)
            and (budget.limit_open is None or open < budget.limit_open)
        )

    @rule(names=st.lists(st.sampled_from(_NAMES), min_size=2, max_size=5), usd=_AMOUNTS)
    def reserve_several(self, names: list[str], usd: Decimal) -> None:
        """Calls that reserve in one statement."""
        calls = [
            Call(ask(self.budgets[name], self.budgets["total"], usd=str(usd))) for name in names if name != "total"
        ]
        for call, grant in zip(calls, self.run(self._reserve_all(calls)), strict=True):
            call.state = grant.state
            self.calls.append(call)

    async def _reserve_all(self, calls: list[Call]) -> Any:
        return await self.teller.budgets.reserve(self.teller.owner, [call.ask for call in calls])

    @rule(number=st.integers(0, 50))
    def reserve_again(self, number: int) -> None:
        """The answer was lost: the same ask again changes nothing, and sends nothing that is over."""
        call = self.chosen(number, "open", "settled", "swept", "void")
        if call is not None:
            expected = "open" if call.state == "open" else "gone"
            assert self.run(self.teller.reserve(call.ask)).state == expected

    @rule(number=st.integers(0, 50), usd=_AMOUNTS, tokens=_TOKENS)
    def extend(self, number: int, usd: Decimal, tokens: int) -> None:
        """A stream needs more; a swept one, too; one that is over gets nothing."""
        call = self.chosen(number, "open", "swept", "settled", "void")
        if call is None:
            return
        grant = self.run(self.teller.extend(call.id, str(usd), tokens))
        if call.state in ("settled", "void"):
            assert grant.state == "gone"
        elif call.state == "swept" and grant.state == "open":
            call.state = "open"
        else:
            assert grant.state in ("open", "denied")

    @rule(number=st.integers(0, 50), usd=_AMOUNTS, tokens=_TOKENS, hold=st.booleans())
    def settle(self, number: int, usd: Decimal, tokens: int, hold: bool) -> None:
        """The call is over: its truth, or what was held; a swept one only has a truth to tell."""
        call = self.chosen(number, "open", "swept")
        if call is None:
            return
        facts: dict[str, Any] = {"output_tokens": tokens}
        if hold:
            facts |= {"usage_source": "hold", "outcome": "farebox_cut"}
        posted = self.run(self.teller.settle(call.id, str(usd), **facts))
        expected = call.state == "open" or not hold
        assert posted == expected
        call.postings += posted
        if expected:
            call.state = "swept" if hold else "settled"

    @rule(number=st.integers(0, 50), usd=_AMOUNTS)
    def settle_again(self, number: int, usd: Decimal) -> None:
        """A drain that repeats itself posts nothing."""
        call = self.chosen(number, "settled")
        if call is not None:
            assert self.run(self.teller.settle(call.id, str(usd))) == 0

    @rule(number=st.integers(0, 50))
    def release(self, number: int) -> None:
        """It was not sent after all: void, whether it was denied, is open or was swept."""
        call = self.chosen(number, "open", "denied", "swept", "void")
        if call is None:
            return
        self.run(self.teller.budgets.release([call.id]))
        rows = self.run(self.teller.rows(call.id))
        if call.postings and rows[-1]["usage_source"] == "none":
            assert rows[-1]["cost_usd"] == 0
        call.postings = len(rows)
        # Should it have been sent after all, its truth may still come.
        call.state = "returned" if rows else "void"

    @rule(amount=_AMOUNTS)
    def release_before_its_reserve(self, amount: Decimal) -> None:
        """The release came first: its reserve is too late."""
        call = Call(ask(self.budgets["day"], usd=str(amount)))
        self.run(self.teller.budgets.release([call.id]))
        assert self.run(self.teller.reserve(call.ask)).state == "gone"
        call.state = "void"
        self.calls.append(call)

    @rule()
    def crash(self) -> None:
        """The owner dies; another, long there, charges what it held. The survivors' calls go on under the new one."""
        self.run(self._crash())
        for call in self.calls:
            if call.state == "open":
                call.state = "swept"
                rows = self.run(self.teller.rows(call.id))
                assert rows[-1]["usage_source"] == "hold"
                call.postings = len(rows)

    async def _crash(self) -> None:
        old, sql = self.teller.owner, self.driver.sql
        self.teller.owner = await self.teller.budgets.register("next")
        await sql.execute(
            "UPDATE farebox.owner SET steady_since = farebox.clock() - interval '1 hour' WHERE id = $1",
            self.teller.owner,
        )
        assert await self.teller.budgets.sweep(self.teller.owner, LEASE_S, 100) == 0, "it is not silent yet"
        await sql.execute("UPDATE farebox.owner SET seen = seen - interval '1 hour' WHERE id = $1", old)
        while await self.teller.budgets.sweep(self.teller.owner, LEASE_S, 3):
            pass
        assert not await self.teller.budgets.beat(old)

    @rule(name=st.sampled_from(_NAMES), usd=_LIMITS, tokens=st.sampled_from([None, 0, 30, 100]))
    def change_limit(self, name: str, usd: Decimal, tokens: int | None) -> None:
        """Up or down, at any moment."""
        changes = {"limit_usd": usd, "limit_tokens": tokens}
        self.budgets[name] = self.run(self.teller.budgets.put_budget(name, changes, "api", "test"))

    @rule(minutes=st.sampled_from([1, 59, 61, 24 * 60]))
    def pass_time(self, minutes: int) -> None:
        """Windows end under running calls. The owner is heard of all the time."""
        self.now += timedelta(minutes=minutes)
        self.run(self._pass())

    async def _pass(self) -> None:
        await self.teller.at(self.now)
        assert await self.teller.budgets.beat(self.teller.owner)

    @rule(number=st.integers(0, 50), usd=_AMOUNTS)
    def reprice(self, number: int, usd: Decimal) -> None:
        """A price is corrected; nothing is, while the call runs again after a sweep."""
        call = self.chosen(number, "settled", "swept", "open")
        if call is None:
            return
        rows = self.run(self.teller.rows(call.id))
        if not rows:
            return
        cost = Cost(call.id, len(rows), usd, "prices", "p")
        posted = self.run(Corrections(self.driver.store).post([cost]))
        assert posted == (set() if call.state == "open" else {call.id})
        call.postings = len(rows) + len(posted)

    @rule(number=st.integers(0, 50), usd=_AMOUNTS)
    def correct(self, number: int, usd: Decimal) -> None:
        """An operator knows better."""
        call = self.chosen(number, "settled", "swept")
        if call is not None and self.run(self.teller.rows(call.id)):
            self.run(self.teller.budgets.correct(call.id, usd, "ann", "because"))
            call.postings += 1

    @rule()
    def unrelated(self) -> None:
        """Calls that no budget knows."""
        self.run(self.driver.store.insert_events([encode(event(cost_usd=D(3))) for _ in range(3)]))

    @invariant()
    def the_books_are_right(self) -> None:
        """Everything that must hold after every step."""
        if hasattr(self, "teller"):
            self.steps += 1
            self.run(self.teller.check_counters() if self.steps % _LOOKED_EVERY else self.teller.check())

    def teardown(self) -> None:
        """The end of a run."""
        if hasattr(self, "teller"):
            self.run(self.teller.check())

    @invariant()
    def the_open_are_open(self) -> None:
        """The database holds for exactly the calls that run."""
        held = self.run(self.driver.sql.fetch("SELECT id FROM farebox.reservation WHERE state = 'open'"))
        if hasattr(self, "teller"):
            assert {row["id"] for row in held} == {call.id for call in self.calls if call.state == "open"}


@contextmanager
def _driver(postgres: PostgresServer) -> Iterator[Driver]:
    driver = Driver(postgres)
    driver.run(driver.open())
    try:
        yield driver
    finally:
        driver.run(driver.close())
        driver.loop.close()


def _settings(examples: int, steps: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=True,
        database=None,
        phases=(Phase.generate,),  # to shrink a failure can take longer than all the rest
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def test_no_order_of_steps_breaks_the_books(postgres: PostgresServer) -> None:
    """Whatever happens in whatever order, held and spent are what the rows say, and within the limits."""
    with _driver(postgres) as driver:
        run_state_machine_as_test(lambda: Machine(driver), settings=_settings(8, 25))


@pytest.mark.long
def test_no_long_order_of_steps_breaks_the_books(postgres: PostgresServer) -> None:
    """The same with many more and longer runs."""
    with _driver(postgres) as driver:
        run_state_machine_as_test(lambda: Machine(driver), settings=_settings(80, 50))
