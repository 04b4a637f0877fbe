"""Floats on a real Postgres, driven at random beside everything else that budgets do.

The machine of `test_budget_machine` with a process that holds money ahead: it takes floats, fills them up, lets calls
in out of them, settles these alone and in batches, detaches, gives back, is recalled, dies and is inherited or not.
What every float holds is known to the cent at every step, and so is whether it may be taken at all.
"""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule, run_state_machine_as_test

from farebox.payload import encode
from farebox.records import FloatHold, Want
from farebox.store.budgets import Ask, Draw, Take
from support.events import event
from support.postgres import PostgresServer
from support.reserves import LEASE_S
from test_budget_machine import _NAMES, Call, Driver, Machine, _driver, _settings

D = Decimal
_USD = st.sampled_from([D(0), D("0.000001"), D("0.01"), D("0.05"), D("0.2")])
_COSTS = st.sampled_from([D(0), D("0.01"), D("0.3"), D(2)])
_TOKENS = st.sampled_from([0, 1, 3])
_LIMITS = st.sampled_from([D(0), D(8), D(60), D(400), D(400)])
_NUMBER = st.integers(0, 50)
_FEW = 4
_SHARE = 16


class Purse:
    """What the test knows of one float: what is free of it, and what the database must hold for it."""

    def __init__(self, wants: tuple[Want, ...], owner: int) -> None:
        self.id = uuid4()
        self.wants = wants
        self.owner = owner
        self.windows: tuple[int, ...] = ()
        self.free: list[list[Any]] = []
        self.held: list[list[Any]] = []
        """By window: USD, tokens, requests."""
        self.closed = self.dead = False
        self.there = True
        self.charged = False

    def fill(self, take: Take) -> None:
        more = [[take.calls * w.usd, take.calls * w.tokens, take.calls * w.requests] for w in self.wants]
        if not self.windows:
            self.windows = tuple(window.window for window in take.windows)
            self.free, self.held = [[D(0), 0, 0] for _ in more], [[D(0), 0, 0] for _ in more]
        add(self.free, more)
        add(self.held, more)

    def part(self, times: int) -> FloatHold:
        """What a call that is so many times the ordinary one holds."""
        wants = self.wants
        return self.hold([[times * w.usd, times * w.tokens, times * w.requests] for w in wants])

    def hold(self, amounts: list[list[Any]]) -> FloatHold:
        usd, tokens, requests = zip(*amounts, strict=True)
        return FloatHold(self.id, self.windows, usd, tokens, requests)


class Drawn:
    """A call that was let in out of a float."""

    def __init__(self, purse: Purse, hold: FloatHold) -> None:
        self.id: UUID = event().id
        self.purse, self.hold = purse, hold
        self.amounts = [list(one) for one in zip(hold.usd, hold.tokens, hold.requests, strict=True)]
        self.state = "drawn"  # drawn, posted, detached, unsent


def add(sums: list[list[Any]], more: list[list[Any]], sign: int = 1) -> None:
    """`more` into `sums`, or out of them as far as they reach."""
    for row, step in zip(sums, more, strict=True):
        for place, amount in enumerate(step):
            row[place] = max(row[place] + sign * amount, 0 * row[place])


class FloatMachine(Machine):
    """The steps that floats add."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(driver)
        self.purses: list[Purse] = []
        self.drawn: list[Drawn] = []

    @initialize()
    def begin(self) -> None:
        """Budgets that have room for floats, each with its window: floats are taken where calls have been."""
        super().begin()
        for name in ("day", "total", "warns"):
            self.change_limit(name, D(400), 20_000)
        for names in ({"day", "total"}, {"total", "warns"}):
            self.take(names, D("0.05"), 1, 1, 40, True, 4)

    @rule(name=st.sampled_from(_NAMES), usd=_LIMITS, tokens=st.sampled_from([None, 0, 100, 20_000]))
    def change_limit(self, name: str, usd: Decimal, tokens: int | None) -> None:
        """Up or down, at any moment; floats there are recalled."""
        super().change_limit(name, usd, tokens)

    @rule(chance=st.integers(0, 3))
    def crash(self, chance: int) -> None:
        """As ever, and less often."""
        if not chance:
            super().crash()

    @rule(seconds=st.sampled_from([1, 4]))
    def moments_pass(self, seconds: int) -> None:
        """A window is barred for three seconds."""
        self.now += timedelta(seconds=seconds)
        self.run(self._pass())

    def purse(self, number: int, **states: bool) -> Purse | None:
        found = [p for p in self.purses if all(getattr(p, name) is value for name, value in states.items())]
        return found[number % len(found)] if found else None

    def drew(self, number: int, *states: str) -> Drawn | None:
        found = [one for one in self.drawn if one.state in states]
        return found[number % len(found)] if found else None

    def running(self, purse: Purse) -> list[Drawn]:
        return [one for one in self.drawn if one.purse is purse and one.state == "drawn"]

    # -- floats ----------------------------------------------------------------------------------

    @rule(
        names=st.sets(st.sampled_from(("day", "total", "warns")), min_size=1, max_size=2),
        usd=_USD,
        tokens=_TOKENS,
        requests=st.integers(0, 1),
        calls=st.sampled_from([3, 8, 40]),
        opened=st.sampled_from([True, True, True, False]),
        lets_in=st.integers(0, 6),
    )
    def take(
        self, names: set[str], usd: Decimal, tokens: int, requests: int, calls: int, opened: bool, lets_in: int
    ) -> None:
        """As much as leaves others fifteen parts of sixteen, where that is enough to be worth it; and some calls."""
        wants = tuple(Want(self.budgets[name].id, "", usd, tokens, requests) for name in sorted(names))
        purse = Purse(wants, self.teller.owner)
        if opened:
            for want in wants:
                self.run(self.driver.sql.execute("SELECT farebox.open_window($1, '')", want.budget))
        expected = self.run(self._expected(purse, calls))
        take = self.run(self._take(purse, calls, fresh=True))
        assert take.calls == expected
        if take.calls:
            purse.fill(take)
            self.purses.append(purse)
            for _ in range(lets_in):
                self._draw(purse, 1)

    @precondition(lambda self: self.purse(0, charged=False, there=True))
    @rule(number=_NUMBER, calls=st.sampled_from([3, 8, 40]))
    def fill_up(self, number: int, calls: int) -> None:
        """Only what is still open, in the windows of now, and its own process's."""
        purse = self.purse(number, charged=False)
        if purse is None:
            return
        may = purse.there and not purse.closed and purse.owner == self.teller.owner
        expected = self.run(self._expected(purse, calls)) if may else 0
        take = self.run(self._take(purse, calls, fresh=False))
        assert take.calls == expected
        if take.calls:
            purse.fill(take)

    async def _take(self, purse: Purse, calls: int, *, fresh: bool) -> Take:
        return await self.teller.budgets.float_take(self.teller.owner, purse.id, purse.wants, calls, fresh=fresh)

    async def _expected(self, purse: Purse, calls: int) -> int:
        most = D(calls)
        for place, want in enumerate(purse.wants):
            w = await self.driver.sql.fetchrow(
                "SELECT *, no_floats_until > farebox.clock() AS barred FROM farebox.budget_window "
                "WHERE budget_id = $1 AND subject = '' AND window_start <= farebox.clock() "
                "AND window_end > farebox.clock() ORDER BY window_start DESC LIMIT 1",
                want.budget,
            )
            if w is None or w["barred"] or w["limit_open"] is not None:
                return 0
            if purse.windows and purse.windows[place] != w["id"]:
                return 0
            used = {
                "usd": w["spent_usd"] + w["reserved_usd"],
                "tokens": w["spent_tokens"] + w["reserved_tokens"],
                "requests": w["requests"],
            }
            for unit, amount in (("usd", want.usd), ("tokens", want.tokens), ("requests", want.requests)):
                limit = w[f"limit_{unit}"]
                if amount and limit is not None:
                    most = min(most, (D(limit) - used[unit]) // (_SHARE * amount))
        return int(most) if most >= _FEW else 0

    @precondition(lambda self: self.purse(0, closed=False, dead=False))
    @rule(number=_NUMBER)
    def close(self, number: int) -> None:
        """Nothing is let in any more, and what is free goes back, however often it is told."""
        purse = self.purse(number, closed=False, dead=False)
        if purse is None:
            return
        unused = purse.hold(purse.free)
        add(purse.held, purse.free, -1)
        add(purse.free, [list(row) for row in purse.free], -1)
        purse.closed = True
        for _ in range(2):
            self.run(self.teller.budgets.float_give(unused, closing=True))

    @precondition(lambda self: self.purse(0, closed=True, dead=False, there=True))
    @rule(number=_NUMBER)
    def end(self, number: int) -> None:
        """The last of its calls is in the books."""
        purse = self.purse(number, closed=True, dead=False, there=True)
        if purse is None or self.running(purse):
            return
        for _ in range(2):
            self.run(self.teller.budgets.float_end([purse.id]))
        purse.there = False

    @rule(name=st.sampled_from(("day", "total", "warns")))
    def recall(self, name: str) -> None:
        """All who have something to spare on a window hear of it; its own owner is not waited for."""
        self.run(self._recall(name))

    async def _recall(self, name: str) -> None:
        windows = [
            row["id"]
            for row in await self.driver.sql.fetch(
                "SELECT id FROM farebox.budget_window WHERE budget_id = $1", self.budgets[name].id
            )
        ]
        budgets, owner = self.teller.budgets, self.teller.owner
        left = [p for p in self.purses if p.there and not (p.closed or p.charged)]
        open = {p.id for p in left if set(windows) & set(p.windows)}
        own = {p.id for p in self.purses if p.id in open and p.owner == owner}
        assert set(await budgets.float_recall(owner, windows)) == open - own
        assert set(await budgets.float_recalled(owner)) >= own

    # -- their calls -----------------------------------------------------------------------------

    @precondition(lambda self: self.purse(0, closed=False, dead=False))
    @rule(number=_NUMBER, times=st.integers(1, 3))
    def draw(self, number: int, times: int) -> None:
        """A call is let in without the database, where there is that much."""
        purse = self.purse(number, closed=False, dead=False)
        if purse is None:
            return
        self._draw(purse, times)

    def _draw(self, purse: Purse, times: int) -> None:
        one = Drawn(purse, purse.part(times))
        places = [(at, unit) for at in range(len(purse.free)) for unit in range(3)]
        if all(purse.free[at][unit] >= one.amounts[at][unit] for at, unit in places):
            add(purse.free, one.amounts, -1)
            self.drawn.append(one)

    @precondition(lambda self: self.drew(0, "drawn"))
    @rule(number=_NUMBER, usd=_COSTS, tokens=_TOKENS, hold=st.booleans())
    def post(self, number: int, usd: Decimal, tokens: int, hold: bool) -> None:
        """Its end is posted, or, after a crash, its beginning; twice like once."""
        one = self.drew(number, "drawn")
        if one is None:
            return
        posted = self.run(self.driver.store.insert_events([self._event(one, usd, tokens, hold=hold)]))
        assert posted == 1
        self._posted(one)
        assert self.run(self.driver.store.insert_events([self._event(one, usd, tokens, hold=hold)])) == 0

    @precondition(lambda self: self.drew(0, "drawn"))
    @rule(number=_NUMBER, usd=_COSTS, size=st.integers(2, 6))
    def post_several(self, number: int, usd: Decimal, size: int) -> None:
        """Calls of several floats, one that reserved, one that nobody budgets, some twice: in one statement."""
        some = [one for one in self.drawn if one.state == "drawn"][number % 5 :][:size]
        events = [self._event(one, usd, n, hold=n % 2 == 0) for n, one in enumerate(some)]
        events += [encode(event(cost_usd=D(3)))]
        reserved = self.chosen(number, "open")
        if reserved is not None:
            events.append(encode(event(id=reserved.id, cost_usd=usd, budget_ids=["b"])))
        assert self.run(self.driver.store.insert_events(events[::-1] + events[:2])) == len(events)
        for one in some:
            self._posted(one)
        if reserved is not None:
            reserved.state = "settled"
            reserved.postings += 1

    @precondition(lambda self: self.drew(0, "posted"))
    @rule(number=_NUMBER, usd=_COSTS)
    def truth_after_the_hold(self, number: int, usd: Decimal) -> None:
        """A row that knew nothing but the hold is corrected, and one that knew is not; no float is touched."""
        one = self.drew(number, "posted")
        if one is None:
            return
        last = self.run(self.teller.rows(one.id))[-1]
        cut = last["usage_source"] == "hold"
        assert self.run(self.driver.store.insert_events([self._event(one, usd, 1, hold=False)])) == cut

    def _event(self, one: Drawn, usd: Decimal, tokens: int, *, hold: bool) -> bytes:
        facts: dict[str, Any] = {"usage_source": "hold", "outcome": "farebox_cut"} if hold else {}
        return encode(
            event(id=one.id, cost_usd=usd, output_tokens=tokens, budget_ids=["b"], from_float=one.hold, **facts)
        )

    def _posted(self, one: Drawn) -> None:
        one.state = "posted"
        add(one.purse.held, one.amounts, -1)

    @precondition(lambda self: self.drew(0, "drawn"))
    @rule(number=_NUMBER)
    def detach(self, number: int) -> None:
        """It gets a reservation of its own, and goes on like any other call."""
        one = self.drew(number, "drawn")
        if one is None:
            return
        facts = self._event(one, max(one.hold.usd), 0, hold=True)
        for _ in range(2):
            self.run(self.teller.budgets.float_detach(self.teller.owner, [Draw(one.id, one.hold, facts)]))
        add(one.purse.held, one.amounts, -1)
        one.state = "detached"
        wants = tuple(
            Want(want.budget, want.subject, usd, tokens, requests)
            for want, usd, tokens, requests in zip(
                one.purse.wants, one.hold.usd, one.hold.tokens, one.hold.requests, strict=True
            )
        )
        call = Call(Ask(one.id, wants, facts))
        call.state = "open"
        self.calls.append(call)

    @precondition(lambda self: self.drew(0, "detached"))
    @rule(number=_NUMBER, usd=_COSTS)
    def post_detached(self, number: int, usd: Decimal) -> None:
        """Its event still says where it came from, which moves nothing any more."""
        one = self.drew(number, "detached")
        if one is None:
            return
        call = next(call for call in self.calls if call.id == one.id)
        if call.state in ("open", "swept"):
            assert self.run(self.driver.store.insert_events([self._event(one, usd, 1, hold=False)])) == 1
            call.state = "settled"
            call.postings += 1

    @precondition(lambda self: self.drew(0, "drawn"))
    @rule(number=_NUMBER)
    def not_sent(self, number: int) -> None:
        """It goes back into its float, or, if that is closed, to the database."""
        one = self.drew(number, "drawn")
        if one is None or one.purse.dead:
            return
        one.state = "unsent"
        if not one.purse.closed:
            add(one.purse.free, one.amounts)
            return
        self.run(self.teller.budgets.float_give(one.hold, closing=False))
        add(one.purse.held, one.amounts, -1)

    # -- the gone --------------------------------------------------------------------------------

    async def _crash(self) -> None:
        """A fenced owner's floats stay: they cover what it sends."""
        await super()._crash()
        # That nobody comes for a day is a step of its own.
        await self.driver.sql.execute("UPDATE farebox.owner SET seen = seen + interval '10 years' WHERE dead")
        for purse in self.purses:
            purse.dead = True

    @precondition(lambda self: self.purse(0, dead=True, there=True))
    @rule(number=_NUMBER, usd=_COSTS)
    def inherit(self, number: int, usd: Decimal) -> None:
        """Somebody has the journal: all that is in it is posted, and nothing stays held; what was charged is undone."""
        purse = self.purse(number, dead=True, there=True)
        if purse is None:
            return
        for n, one in enumerate(self.running(purse)):
            assert self.run(self.driver.store.insert_events([self._event(one, usd, n, hold=n % 2 == 0)])) == 1
            self._posted(one)
        self.run(self.teller.budgets.float_end([purse.id]))
        if purse.charged:
            assert self.run(self.teller.rows(purse.id))[-1]["cost_usd"] == 0
        purse.there = False

    @precondition(lambda self: self.purse(0, dead=True, there=True, charged=False))
    @rule()
    def nobody_comes(self) -> None:
        """For a day: what is left of the floats of the dead is charged, as what else they held was."""
        left = [purse for purse in self.purses if purse.dead and purse.there and not purse.charged]
        if not left:
            return
        self.run(self._nobody_comes())
        for purse in left:
            purse.charged = True
            rows = self.run(self.teller.rows(purse.id))
            assert rows[-1]["cost_usd"] == max(row[0] for row in purse.held) or rows[-1]["cost_usd"] is None
            add(purse.held, [list(row) for row in purse.held], -1)

    async def _nobody_comes(self) -> None:
        sql, budgets, owner = self.driver.sql, self.teller.budgets, self.teller.owner
        self.now += timedelta(hours=1)
        await self.teller.at(self.now)
        await sql.execute("UPDATE farebox.owner SET seen = farebox.clock() - interval '25 hours' WHERE dead")
        await sql.execute(
            "UPDATE farebox.owner SET seen = farebox.clock(), steady_since = farebox.clock() - interval '1 hour', "
            "gap_max = $2 * interval '1 s' WHERE id = $1",
            owner,
            LEASE_S / 2,
        )
        for _ in range(len(self.purses) + 2):
            await budgets.sweep(owner, LEASE_S, 3)
        await sql.execute("UPDATE farebox.owner SET seen = seen + interval '10 years' WHERE dead")

    @invariant()
    def floats_hold_what_they_must(self) -> None:
        """The database holds for each float what is free of it, and what its calls hold that no row says."""
        if not hasattr(self, "teller"):
            return
        rows = self.run(self.driver.sql.fetch("SELECT * FROM farebox.budget_float"))
        expected = {p.id: p for p in self.purses if p.there and not p.charged}
        assert {row["id"] for row in rows} == expected.keys()
        for row in rows:
            purse = expected[row["id"]]
            held = [list(one) for one in zip(row["held_usd"], row["held_tokens"], row["held_requests"], strict=True)]
            assert (held, row["closed"]) == (purse.held, purse.closed)
            needed = [[D(0), 0, 0] for _ in purse.windows]
            add(needed, purse.free)
            for one in self.running(purse):
                add(needed, one.amounts)
            assert needed == held

    @invariant()
    def every_row_is_counted(self) -> None:
        """A call that came out of a float is charged to the float's windows, whatever became of the float."""
        posted = {one.id: set(one.hold.windows) for one in self.drawn if one.state == "posted"}
        if posted:
            rows = self.run(
                self.driver.sql.fetch(
                    "SELECT * FROM farebox.usage_entry WHERE id = ANY ($1) ORDER BY posting_no", list(posted)
                )
            )
            assert {row["id"]: set(row["window_ids"]) for row in rows} == posted


def test_no_order_of_steps_breaks_the_books_of_floats(postgres: PostgresServer) -> None:
    """Whatever happens in whatever order, a float holds what it must, and all else stays as without floats."""
    with _driver(postgres) as driver:
        run_state_machine_as_test(lambda: FloatMachine(driver), settings=_settings(10, 40))


@pytest.mark.long
def test_no_long_order_of_steps_breaks_the_books_of_floats(postgres: PostgresServer) -> None:
    """The same with many more and longer runs."""
    with _driver(postgres) as driver:
        run_state_machine_as_test(lambda: FloatMachine(driver), settings=_settings(100, 60))
