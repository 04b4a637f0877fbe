"""Budgets in Postgres: reserve, extend, settle, release, sweep, and what each must never do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from farebox.errors import BadRequest, Conflict, NotFound
from farebox.payload import encode
from farebox.records import Want
from farebox.store import Store
from farebox.store.budgets import Ask, BudgetStore, Fenced, Total
from farebox.store.corrections import Corrections, Cost
from farebox.store.integrity import evaluate
from farebox.store.keys import Keys
from support.events import event
from support.pgbouncer import pgbouncer
from support.postgres import PostgresServer
from support.reserves import LEASE_S, NOON, RESET, Teller, ask

D = Decimal


@pytest.fixture(scope="module")
def kept(postgres: PostgresServer) -> Iterator[str]:
    """A database for all of these tests."""
    loop, context = asyncio.new_event_loop(), postgres.database()
    yield loop.run_until_complete(context.__aenter__())
    loop.run_until_complete(context.__aexit__(None, None, None))
    loop.close()


@pytest.fixture
async def database(kept: str) -> str:
    """The same, with nothing in it."""
    connection = await asyncpg.connect(kept)
    await connection.execute(RESET)
    await connection.close()
    return kept


@pytest.fixture
async def sql(database: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the test's own."""
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


@pytest.fixture
async def teller(store: Store, sql: asyncpg.Connection) -> Teller:
    """A process that reserves."""
    return await Teller.open(store, sql)


# -- reserve -----------------------------------------------------------------------------------------


async def test_reserve_holds_what_fits_and_no_more(teller: Teller) -> None:
    """Calls are admitted up to exactly the limit, and the refused one says what stands in its way."""
    budget = await teller.budget(limit_usd=D("2.5"))
    first, second, third = ask(budget), ask(budget, usd="1.5"), ask(budget, usd="0.000000000001")
    assert (await teller.reserve(first)).state == "open"
    [state] = (await teller.reserve(second)).windows
    assert (state.reserved_usd, state.spent_usd, state.open, state.requests, state.fits) == (D("2.5"), 0, 2, 2, True)
    denied = await teller.reserve(third)
    assert denied.state == "denied"
    [state] = denied.windows
    assert (state.budget, state.subject, state.limit_usd, state.fits) == (budget.id, "", D("2.5"), False)
    assert (state.reserved_usd, state.open) == (D("2.5"), 2)
    assert await teller.sql.fetchval("SELECT count(*) FROM farebox.reservation") == 2
    await teller.check()


async def test_every_limit_is_guarded(teller: Teller) -> None:
    """Dollars, tokens, requests and parallel calls each stop at their own limit."""
    cases: list[tuple[dict[str, Any], int]] = [
        ({"limit_tokens": 25}, 2),
        ({"limit_requests": 3}, 3),
        ({"limit_open": 2}, 2),
        ({"limit_usd": D(100), "limit_tokens": 10}, 1),
        ({"limit_usd": D(0)}, 0),
    ]
    for limit, most in cases:
        budget = await teller.budget(str(limit), **limit)
        grants = [await teller.reserve(ask(budget, tokens=10)) for _ in range(5)]
        assert [grant.state for grant in grants] == ["open"] * most + ["denied"] * (5 - most)
    await teller.check()


async def test_what_costs_nothing_always_fits(teller: Teller) -> None:
    """A call that holds nothing of a limit passes it, even where the limit is over already."""
    budget = await teller.budget(limit_usd=D(1), limit_tokens=5, limit_requests=1)
    assert (await teller.reserve(ask(budget, usd="1", tokens=5))).state == "open"
    assert (await teller.reserve(ask(budget, usd="0", tokens=0))).state == "denied"
    assert (await teller.reserve(ask(budget, usd="0", tokens=0, requests=0))).state == "open"


async def test_a_slot_is_free_again_when_its_call_is_over(teller: Teller) -> None:
    """Settling, releasing and sweeping each give back the parallel slot; a request counts once and stays counted."""
    budget = await teller.budget(limit_open=1, limit_requests=10)
    settled, released = ask(budget), ask(budget)
    await teller.reserve(settled)
    await teller.settle(settled.id, "0")
    await teller.reserve(released)
    await teller.budgets.release([released.id])
    state = await teller.window(budget)
    assert (state.open, state.requests) == (0, 1)


async def test_several_budgets_are_all_or_nothing(teller: Teller) -> None:
    """A call that one of its budgets refuses leaves no trace in the others, and names each of them."""
    wide, narrow = await teller.budget("wide", limit_usd=D(100)), await teller.budget("narrow", limit_usd=D(1))
    assert (await teller.reserve(ask(wide, narrow))).state == "open"
    denied = await teller.reserve(ask(wide, narrow))
    assert {state.budget: state.fits for state in denied.windows} == {wide.id: True, narrow.id: False}
    assert (await teller.window(wide)).reserved_usd == 1
    await teller.check()


async def test_a_batch_is_served_in_its_order(teller: Teller) -> None:
    """Asks of one call are granted one after the other, each seeing what those before it hold."""
    budget, other = await teller.budget(limit_usd=D(5)), await teller.budget("other", limit_usd=D(3))
    asks = [ask(budget, usd="3"), ask(budget, other, usd="3"), ask(budget, other, usd="2"), ask(other, usd="1")]
    grants = await teller.budgets.reserve(teller.owner, asks)
    assert [grant.state for grant in grants] == ["open", "denied", "open", "open"]
    assert [grant.id for grant in grants] == [one.id for one in asks]
    assert [state.reserved_usd for state in grants[2].windows] == [5, 2]
    assert await teller.sql.fetchval("SELECT count(*) FROM farebox.reservation") == 3
    await teller.check()


async def test_subjects_have_counters_of_their_own(teller: Teller) -> None:
    """What one team spends is not another's."""
    budget = await teller.budget(scope="team", limit_usd=D(1))
    assert (await teller.reserve(ask(budget, subject="red"))).state == "open"
    assert (await teller.reserve(ask(budget, subject="blue"))).state == "open"
    assert (await teller.reserve(ask(budget, subject="red"))).state == "denied"


async def test_reserving_again_gives_the_same_answer(teller: Teller) -> None:
    """An ask whose answer was lost is repeated: open stays open, held once; a settled or released id is gone."""
    budget = await teller.budget()
    one = ask(budget, usd="4")
    for _ in range(3):
        grant = await teller.reserve(one)
        assert (grant.state, grant.windows[0].reserved_usd) == ("open", 4)
    await teller.settle(one.id, "3")
    assert (await teller.reserve(one)).state == "gone"
    other = ask(budget)
    await teller.budgets.release([other.id])
    assert await teller.reserve(other) == await teller.reserve(other)
    assert (await teller.reserve(other)).state == "gone"
    assert (await teller.window(budget)).spent_usd == 3
    await teller.check()


async def test_twins_hold_once(teller: Teller) -> None:
    """One ask sent eight times at once, over two budgets, is open for all who sent it and held once."""
    budgets = [await teller.budget(name, limit_usd=D(1)) for name in ("b", "c")]
    one = ask(*budgets)
    grants = await asyncio.gather(*(teller.reserve(one) for _ in range(8)))
    assert {grant.state for grant in grants} == {"open"}
    assert [(await teller.window(budget)).reserved_usd for budget in budgets] == [1, 1]
    await teller.check()


async def test_a_reserve_that_meets_its_end_holds_nothing(teller: Teller) -> None:
    """Repeated reserves, settlements and releases of one id at once: whoever comes first, nothing stays held."""
    budget = await teller.budget(limit_usd=D(100))
    asks = [ask(budget) for _ in range(10)]
    await teller.budgets.reserve(teller.owner, asks[:5])
    works = [teller.reserve(one) for one in asks]
    works += [teller.settle(one.id, "0.5") for one in asks[:5]]  # type: ignore[misc]
    works += [teller.budgets.release([one.id]) for one in asks[5:]]  # type: ignore[misc]
    await asyncio.gather(*works)
    state = await teller.window(budget)
    assert (state.reserved_usd, state.open, state.spent_usd) == (0, 0, D("2.5"))
    await teller.check()


async def test_a_repeated_reserve_stays_in_its_window(teller: Teller) -> None:
    """An ask repeated after midnight answers for the day it was reserved in, and holds nothing in the new one."""
    budget = await teller.budget()
    one = ask(budget)
    await teller.at("2026-03-01 23:59:59+00")
    before = await teller.reserve(one)
    await teller.at("2026-03-02 00:00:01+00")
    again = await teller.reserve(one)
    assert (again.state, again.windows[0].window) == ("open", before.windows[0].window)
    assert await teller.budgets.standing([(budget.id, "")]) == []


async def test_a_budget_that_warns_lets_pass_and_says_so(teller: Teller) -> None:
    """Over its limit a warning budget admits, with fits False; another one's refusal still counts."""
    warns = await teller.budget("warns", limit_usd=D(1), on_exceed="warn")
    grants = [await teller.reserve(ask(warns)) for _ in range(3)]
    assert [(grant.state, grant.windows[0].fits) for grant in grants] == [
        ("open", True),
        ("open", False),
        ("open", False),
    ]
    stops = await teller.budget("stops", limit_usd=D(0))
    assert (await teller.reserve(ask(warns, stops))).state == "denied"
    await teller.check()


async def test_amounts_that_are_none_are_refused(teller: Teller) -> None:
    """NaN, infinities, negatives and the absurd are refused where they come in, and nothing is held."""
    budget = await teller.budget()
    one = ask(budget)
    for usd in ("NaN", "sNaN", "Infinity", "-Infinity", "-0.01", "1e30"):
        with pytest.raises(BadRequest):
            await teller.reserve(Ask(one.id, (Want(budget.id, "", D(usd), 0),), one.facts))
        with pytest.raises(BadRequest):
            await teller.extend(one.id, usd)
        with pytest.raises(BadRequest):
            await teller.budgets.correct(one.id, D(usd), "me", "why")
    for tokens, requests in ((-1, 0), (10**18, 0), (0, -1), (0, 10**18)):
        with pytest.raises(BadRequest):
            await teller.reserve(Ask(one.id, (Want(budget.id, "", D(1), tokens, requests),), one.facts))
    assert await teller.sql.fetchval("SELECT count(*) FROM farebox.reservation") == 0


async def test_the_database_refuses_them_too(teller: Teller) -> None:
    """SQL by hand can't hold, extend to, post or set a limit of what is no amount."""
    budget = await teller.budget()
    one = ask(budget)
    await teller.reserve(one)
    reserve = "SELECT farebox.reserve($1, $2, '{\"{}\"}', '{1}', $3, '{\"\"}', $4, '{0}', '{1}')"
    for usd in (D("NaN"), D("Infinity"), D("-Infinity"), D("-0.01")):
        calls: list[tuple[str, tuple[Any, ...]]] = [
            (reserve, (teller.owner, [uuid4()], [budget.id], [usd])),
            ("SELECT farebox.extend($1, $2, $3, '{0}')", (teller.owner, [one.id], [usd])),
            ("UPDATE farebox.budget SET limit_usd = $1", (usd,)),
            ("UPDATE farebox.budget_window SET spent_usd = $1", (usd,)),
            ("UPDATE farebox.reservation SET held_usd = $1", ([usd],)),
        ]
        for statement, values in calls:
            with pytest.raises((asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)):
                await teller.sql.execute(statement, *values)
        with pytest.raises((asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)):
            await teller.settle(one.id, str(usd))
    await teller.check()


async def test_amounts_stay_exact(teller: Teller) -> None:
    """Nothing is rounded: a trillionth of a cent is held, spent and given back as it is."""
    budget = await teller.budget(limit_usd=D("0.3"))
    asks = [ask(budget, usd="0.1") for _ in range(3)]
    assert {(await teller.reserve(one)).state for one in asks} == {"open"}
    await teller.settle(asks[0].id, "0.00000000000001")
    state = await teller.window(budget)
    assert (state.spent_usd, state.reserved_usd) == (D("0.00000000000001"), D("0.2"))


async def test_bad_asks_are_refused(teller: Teller) -> None:
    """An id or a counter that stands twice, no budget at all, or one there never was: a clear error."""
    budget = await teller.budget()
    one = ask(budget)
    twice = Ask(one.id, (*one.wants, *one.wants), one.facts)
    unknown = Ask(one.id, (Want(uuid4(), "", D(1), 0),), one.facts)
    for asks in ([one, one], [twice], [Ask(one.id, (), b"{}")], [unknown]):
        with pytest.raises(BadRequest):
            await teller.budgets.reserve(teller.owner, asks)
    assert await teller.budgets.reserve(teller.owner, []) == []


# -- extend ------------------------------------------------------------------------------------------


async def test_extend_raises_to_a_total(teller: Teller) -> None:
    """A hold grows to the total asked for, once; denied, or asked for less, it stays as it was."""
    budget = await teller.budget()
    one, other = ask(budget, usd="2", tokens=10), ask(budget, usd="1")
    await teller.budgets.reserve(teller.owner, [one, other])
    for _ in range(2):
        grant = await teller.extend(one.id, "5", 30)
        assert (grant.state, grant.windows[0].reserved_usd, grant.windows[0].reserved_tokens) == ("open", 6, 30)
    denied = await teller.extend(one.id, "9.5", 30)
    assert (denied.state, denied.windows[0].fits) == ("denied", False)
    assert (await teller.extend(one.id, "1", 1)).state == "open"
    state = await teller.window(budget)
    assert (state.reserved_usd, state.reserved_tokens, state.open, state.requests) == (6, 30, 2, 2)
    assert (await teller.extend(uuid4(), "1")).state == "gone"
    await teller.check()


async def test_extend_is_all_or_nothing_and_leaves_strict_holds(teller: Teller) -> None:
    """Of two windows the one that holds the bound already stays; where the other can't grow, none does."""
    strict, expected = await teller.budget("strict"), await teller.budget("expected", limit_usd=D(3))
    call = ask(strict, expected)
    wants = (Want(strict.id, "", D(8), 0), Want(expected.id, "", D(1), 0))
    await teller.reserve(Ask(call.id, wants, call.facts))
    assert (await teller.extend(call.id, "3")).state == "open"
    assert [(await teller.window(b)).reserved_usd for b in (strict, expected)] == [8, 3]
    assert (await teller.extend(call.id, "9")).state == "denied"
    assert [(await teller.window(b)).reserved_usd for b in (strict, expected)] == [8, 3]
    await teller.check()


async def test_extends_of_one_call_see_each_other(teller: Teller) -> None:
    """Two extensions in one statement can't both take the last dollar."""
    budget = await teller.budget(limit_usd=D(3))
    one, other = ask(budget), ask(budget)
    await teller.budgets.reserve(teller.owner, [one, other])
    grants = await teller.budgets.extend(teller.owner, [Total(one.id, D(2), 0), Total(other.id, D(2), 0)])
    assert [grant.state for grant in grants] == ["open", "denied"]
    await teller.check()


async def test_a_swept_call_extends_by_what_it_was_not_charged(teller: Teller) -> None:
    """A call that was swept while it ran reserves anew beyond its charge, and its truth settles all of it."""
    budget = await teller.budget()
    one = ask(budget, usd="2")
    await teller.reserve(one)
    owner = await _sweep(teller)
    state = await teller.window(budget)
    assert (state.spent_usd, state.reserved_usd, state.open) == (2, 0, 0)
    for _ in range(2):
        grant = await teller.extend(one.id, "5", owner=owner)
        [state] = grant.windows
        assert (grant.state, state.spent_usd, state.reserved_usd, state.open) == ("open", 2, 3, 1)
    assert (await teller.extend(one.id, "11", owner=owner)).state == "denied"
    await teller.check()
    await teller.settle(one.id, "4.5")
    state = await teller.window(budget)
    assert (state.spent_usd, state.reserved_usd, state.open) == (D("4.5"), 0, 0)
    assert await teller.sql.fetchval("SELECT overrun_usd FROM farebox.budget_window") == 0
    assert (await teller.extend(one.id, "6", owner=owner)).state == "gone"
    await teller.check()


async def test_a_swept_call_that_is_swept_again_is_charged_all_it_held(teller: Teller) -> None:
    """Swept, extended, and left once more: the charge is the hold before and the hold after."""
    budget = await teller.budget()
    one = ask(budget, usd="2", tokens=7)
    await teller.reserve(one)
    owner = await _sweep(teller)
    await teller.extend(one.id, "5", 20, owner=owner)
    await _sweep(teller, owner)
    state = await teller.window(budget)
    assert (state.spent_usd, state.spent_tokens, state.reserved_usd) == (5, 20, 0)
    assert [row["cost_usd"] for row in await teller.rows(one.id)] == [2, 5]
    await teller.check()


async def test_an_extension_that_is_denied_to_a_swept_call_leaves_nothing(teller: Teller) -> None:
    """Where there is no money for the rest of a swept call, only its charge stays."""
    budget = await teller.budget(limit_usd=D(3))
    one = ask(budget, usd="2")
    await teller.reserve(one)
    owner = await _sweep(teller)
    assert (await teller.extend(one.id, "4", owner=owner)).state == "denied"
    assert await teller.sql.fetchval("SELECT count(*) FROM farebox.reservation") == 0
    await teller.check()


# -- settle ------------------------------------------------------------------------------------------


async def test_the_row_takes_the_place_of_the_hold(teller: Teller) -> None:
    """Posting the event frees the hold and spends the cost, in each budget, once however often it is posted."""
    usd, tokens = await teller.budget(), await teller.budget("tokens", limit_tokens=100)
    one = ask(usd, tokens, usd="4", tokens=50)
    await teller.reserve(one)
    assert await teller.settle(one.id, "3", input_tokens=10, output_tokens=5) == 1
    assert await teller.settle(one.id, "3", input_tokens=10, output_tokens=5) == 0
    for budget in (usd, tokens):
        state = await teller.window(budget)
        assert (state.spent_usd, state.spent_tokens, state.reserved_usd, state.open) == (3, 15, 0, 0)
    [row] = await teller.rows(one.id)
    assert len(row["window_ids"]) == 2
    assert await teller.sql.fetchval("SELECT count(*) FROM farebox.reservation") == 0
    await teller.check()


async def test_settling_never_fails_for_money(teller: Teller) -> None:
    """A bill above the hold is posted whole and recorded as an overrun; a further call is refused."""
    budget = await teller.budget(limit_tokens=100, limit_usd=D(10))
    one = ask(budget, usd="9", tokens=90)
    await teller.reserve(one)
    assert await teller.settle(one.id, "12", input_tokens=150) == 1
    row = await teller.sql.fetchrow("SELECT * FROM farebox.budget_window")
    assert (row["spent_usd"], row["overrun_usd"], row["overrun_tokens"]) == (12, 3, 60)
    assert (await teller.reserve(ask(budget, usd="0.1"))).state == "denied"
    await teller.check()


async def test_a_hold_costs_what_was_held(teller: Teller) -> None:
    """An event that knows only the hold costs the most that was held for it, extensions included, in every budget."""
    one_budget, other = await teller.budget(), await teller.budget("other", limit_tokens=100)
    call = ask(one_budget, other)
    wants = (Want(one_budget.id, "", D(3), 5), Want(other.id, "", D(2), 9))
    await teller.reserve(Ask(call.id, wants, call.facts))
    await teller.extend(call.id, "4", 0)
    await teller.settle(call.id, "1", usage_source="hold", outcome="farebox_cut", input_tokens=4)
    [row] = await teller.rows(call.id)
    assert (row["cost_usd"], row["cost_source"], row["input_tokens"], row["output_tokens"]) == (4, "hold", 4, 5)
    await teller.check()


async def test_an_unknown_cost_spends_nothing(teller: Teller) -> None:
    """A row whose cost is not known counts as nothing in the sums, here as in every report."""
    budget = await teller.budget()
    one = ask(budget)
    await teller.reserve(one)
    await teller.settle(one.id, None)
    assert (await teller.window(budget)).spent_usd == 0
    await teller.check()


async def test_a_batch_of_events_settles_at_once(teller: Teller, database: str) -> None:
    """One insert settles many calls, with others between that no budget knows."""
    budget = await teller.budget(limit_usd=D(1000))
    asks = [ask(budget) for _ in range(20)]
    await teller.budgets.reserve(teller.owner, asks)
    events = [encode(event(id=one.id, cost_usd=D("0.25"))) for one in asks]
    assert await teller.store.insert_events([*events, encode(event(cost_usd=D(7)))]) == 21
    state = await teller.window(budget)
    assert (state.spent_usd, state.reserved_usd, state.open) == (5, 0, 0)
    await teller.check()


async def test_the_late_truth_corrects_the_hold(teller: Teller) -> None:
    """A swept call that ended all the same is charged its true cost, and the hold never returns."""
    budget = await teller.budget()
    cheap, dear = ask(budget, usd="3"), ask(budget, usd="3")
    await teller.budgets.reserve(teller.owner, [cheap, dear])
    await _sweep(teller)
    assert (await teller.window(budget)).spent_usd == 6
    assert await teller.settle(cheap.id, "1") == 1
    assert await teller.settle(dear.id, "5", outcome="farebox_cut", usage_source="estimate") == 1
    assert await teller.settle(cheap.id, "3", outcome="farebox_cut", usage_source="hold") == 0
    assert await teller.settle(dear.id, "3", outcome="farebox_cut", usage_source="hold") == 0
    assert await teller.settle(dear.id, "2", outcome="farebox_cut", usage_source="estimate") == 0
    row = await teller.sql.fetchrow("SELECT * FROM farebox.budget_window")
    assert (row["spent_usd"], row["overrun_usd"]) == (6, 2)
    rows = await teller.rows(cheap.id)
    assert [row["cost_usd"] for row in rows] == [3, 1]
    assert rows[0]["window_ids"] == rows[1]["window_ids"]
    await teller.check()


async def test_repricing_moves_what_was_spent(teller: Teller) -> None:
    """A corrected cost moves the budgets its call was charged to, up and down; a call that runs again is left alone."""
    budget = await teller.budget()
    one, other = ask(budget, usd="3"), ask(budget, usd="2")
    await teller.budgets.reserve(teller.owner, [one, other])
    await teller.settle(one.id, "3")
    owner = await _sweep(teller)
    await teller.extend(other.id, "4", owner=owner)
    corrections = Corrections(teller.store)
    costs = [Cost(call.id, 1, D(1), "prices", "p") for call in (one, other)]
    assert await corrections.post(costs) == {one.id}
    state = await teller.window(budget)
    assert (state.spent_usd, state.reserved_usd) == (3, 2)
    assert await corrections.post([Cost(one.id, 2, D("2.5"), "prices", "p")]) == {one.id}
    assert await teller.sql.fetchval("SELECT overrun_usd FROM farebox.budget_window") == D("1.5")
    await teller.check()


async def test_an_operator_corrects_a_hold(teller: Teller) -> None:
    """One who knows what a crashed call cost posts it, with a reason: the budget has its money back."""
    budget = await teller.budget(window="total", limit_usd=D(3))
    one = ask(budget, usd="3")
    await teller.reserve(one)
    with pytest.raises(NotFound):
        await teller.budgets.correct(uuid4(), D(1), "ann", "typo")
    with pytest.raises(NotFound):
        await teller.budgets.correct(one.id, D(1), "ann", "no row yet")
    owner = await _sweep(teller)
    assert (await teller.reserve(ask(budget), owner=owner)).state == "denied"
    assert await teller.budgets.correct(one.id, D("0.5"), "ann", "the provider's bill") == 3
    assert (await teller.reserve(ask(budget), owner=owner)).state == "open"
    [row] = await teller.budgets.audit(kind="usage")
    assert (row.actor, row.action, row.name) == ("ann", "correct", str(one.id))
    assert (row.before, row.after) == ({"cost_usd": "3"}, {"cost_usd": "0.5", "reason": "the provider's bill"})
    await teller.extend(one.id, "1", owner=owner)
    with pytest.raises(Conflict):
        await teller.budgets.correct(one.id, D(0), "ann", "again")
    await teller.check()


# -- release -----------------------------------------------------------------------------------------


async def test_a_release_gives_all_back(teller: Teller) -> None:
    """What was provably not sent holds nothing, spends nothing and makes no row; its id is used up."""
    budget = await teller.budget(limit_usd=D(1), limit_tokens=10, limit_requests=1)
    one = ask(budget, tokens=10)
    await teller.reserve(one)
    for _ in range(2):
        await teller.budgets.release([one.id])
    state = await teller.window(budget)
    assert (state.reserved_usd, state.reserved_tokens, state.requests, state.open) == (0, 0, 0, 0)
    assert await teller.rows(one.id) == []
    assert (await teller.reserve(one)).state == "gone"
    assert (await teller.extend(one.id, "1")).state == "gone"
    assert (await teller.reserve(ask(budget, tokens=10))).state == "open"
    await teller.check()


async def test_a_release_before_its_reserve_wins(teller: Teller) -> None:
    """A reserve that arrives after its release is gone, and holds nothing."""
    budget = await teller.budget()
    one = ask(budget)
    await teller.budgets.release([one.id, one.id])
    assert (await teller.reserve(one)).state == "gone"
    assert await teller.budgets.standing([(budget.id, "")]) == []
    await teller.check()


async def test_a_release_of_a_swept_call_costs_nothing_after_all(teller: Teller) -> None:
    """A call charged by a sweep and then known not to be sent is corrected to nothing; a settled one is not touched."""
    budget = await teller.budget()
    one, settled = ask(budget, usd="3", tokens=9), ask(budget)
    await teller.budgets.reserve(teller.owner, [one, settled])
    await teller.settle(settled.id, "1", input_tokens=5)
    await _sweep(teller)
    await teller.budgets.release([one.id, settled.id])
    await teller.budgets.release([one.id, settled.id])
    state = await teller.window(budget)
    assert (state.spent_usd, state.spent_tokens) == (1, 5)
    _, last = await teller.rows(one.id)
    assert (last["cost_usd"], last["usage_source"], last["output_tokens"]) == (0, "none", None)
    await teller.check()


async def test_tombstones_last_a_day(teller: Teller) -> None:
    """What was released stays known for a day; then, and with old windows and dead owners, it is deleted."""
    await teller.at("2026-03-01 12:00+00")
    budget = await teller.budget()
    [rate] = await teller.budgets.set_key_limits(uuid4(), "k", [], 5, None, None, "me")
    first, minute = ask(budget), ask(rate)
    await teller.budgets.reserve(teller.owner, [first, minute])
    await teller.budgets.release([first.id, minute.id])
    counts = "SELECT (SELECT count(*) FROM farebox.reservation), (SELECT count(*) FROM farebox.budget_window)"
    for moment, left in (("03-02 11:59", (2, 2)), ("03-02 12:02", (0, 1)), ("03-02 12:02", (0, 1))):
        await teller.at(f"2026-{moment}+00")
        await teller.budgets.purge()
        assert tuple(await teller.sql.fetchrow(counts)) == left
    await teller.at("2027-06-01 00:00+00")
    await teller.budgets.purge()
    assert tuple(await teller.sql.fetchrow(counts)) == (0, 0)


async def test_totals_are_kept_as_long_as_their_budget(teller: Teller) -> None:
    """A counter over all time stays however old it is, and goes long after its budget was deleted."""
    budget = await teller.budget(scope="session", window="total")
    await teller.reserve(one := ask(budget))
    await teller.settle(one.id, "1")
    left = "SELECT count(*) FROM farebox.budget_window"
    await teller.at("2999-01-01")
    await teller.budgets.purge()
    assert await teller.sql.fetchval(left) == 1
    await teller.budgets.delete_budget("b", "ann")
    await teller.budgets.purge()
    assert await teller.sql.fetchval(left) == 0


# -- owners ------------------------------------------------------------------------------------------


async def test_the_silent_are_swept_and_fenced(teller: Teller) -> None:
    """An owner silent for a lease is charged its holds, with the facts it gave, and must not reserve any more."""
    budget = await teller.budget()
    one = ask(budget, usd="2", key_name="ci", model="m")
    await teller.reserve(one)
    other = await _sweep(teller)
    [row] = await teller.rows(one.id)
    assert (row["outcome"], row["usage_source"], row["cost_usd"], row["key_name"], row["model"]) == (
        *("farebox_cut", "hold", 2),
        *("ci", "m"),
    )
    assert not await teller.budgets.beat(teller.owner)
    for call in (teller.reserve(ask(budget)), teller.extend(one.id, "3")):
        with pytest.raises(Fenced):
            await call
    with pytest.raises(Fenced):
        await teller.budgets.sweep(teller.owner, LEASE_S, 10)
    assert await teller.budgets.beat(other)
    assert await teller.settle(one.id, "1") == 1, "its running calls settle all the same"
    await teller.check()


async def test_one_who_beats_keeps_what_it_holds(teller: Teller) -> None:
    """No sweep touches an owner that was heard of within the lease, nor its sweeper's own holds."""
    budget = await teller.budget()
    await teller.reserve(ask(budget))
    other = await _steady(teller, beating=[teller.owner])
    await teller.reserve(ask(budget), owner=other)
    assert await teller.budgets.sweep(other, LEASE_S, 10) == 0
    assert (await teller.window(budget)).open == 2


async def test_after_an_outage_everyone_gets_a_lease(teller: Teller) -> None:
    """A sweeper that was itself cut off, or whose server just started, sweeps nobody for a whole lease."""
    budget = await teller.budget()
    await teller.reserve(ask(budget))
    other = await _steady(teller)
    now = datetime(2026, 3, 1, 13, tzinfo=UTC)
    await teller.at(now)  # an hour later: the database was away
    assert await teller.budgets.sweep(other, LEASE_S, 10) == 0, "it has not even been heard of again"
    for _ in range(6):
        assert await teller.budgets.beat(other)
        assert await teller.budgets.sweep(other, LEASE_S, 10) == 0
        now += timedelta(seconds=LEASE_S / 6)
        await teller.at(now)
    assert await teller.budgets.beat(other)
    await teller.up_since(now - timedelta(seconds=1))
    assert await teller.budgets.sweep(other, LEASE_S, 10) == 0, "the server has just started"
    await teller.up_since("2000-01-01")
    assert await teller.budgets.sweep(other, LEASE_S, 10) == 1


async def test_a_sweep_is_bounded_and_goes_on(teller: Teller) -> None:
    """One sweep charges so many calls at most; the next ones the rest; then there is nothing left."""
    budget = await teller.budget(limit_usd=D(100))
    await teller.budgets.reserve(teller.owner, [ask(budget) for _ in range(5)])
    other = await _steady(teller)
    assert [await teller.budgets.sweep(other, LEASE_S, 2) for _ in range(4)] == [2, 2, 1, 0]
    assert (await teller.window(budget)).spent_usd == 5
    await teller.check()


async def test_a_swept_call_that_held_no_money_has_no_known_cost(teller: Teller) -> None:
    """Where only requests or tokens were held, and the model has no price, its row says so and not that it was free."""
    paces = [await teller.budget("rpm", limit_requests=5), await teller.budget("tpm", limit_tokens=50)]
    known, unknown = event(budget_ids=["b"], cost_usd=D(0)), event(budget_ids=["b"], cost_usd=None)
    wants = tuple(Want(budget.id, "", D(0), 7) for budget in paces)
    for call in (known, unknown):
        assert (await teller.reserve(Ask(call.id, wants, encode(call)))).state == "open"
    owner = await _sweep(teller)
    for call, cost in ((known, 0), (unknown, None)):
        [row] = await teller.rows(call.id)
        assert (row["cost_usd"], row["usage_source"], row["output_tokens"]) == (cost, "hold", 7)
    assert (await teller.extend(unknown.id, "0", 9, owner=owner)).state == "open"
    await _sweep(teller, owner)
    assert [row["cost_usd"] for row in await teller.rows(unknown.id)] == [None, None]
    await teller.check()


async def test_facts_that_can_not_be_posted_do_not_hold_up_a_sweep(teller: Teller) -> None:
    """A call whose facts the ledger refuses is charged without them, and those beside it with theirs."""
    budget = await teller.budget()
    good, bad, nothing = ask(budget, model="m"), ask(budget, usd="2"), ask(budget, usd="3")
    bad = Ask(bad.id, bad.wants, bad.facts.replace(b'"farebox_cut"', b'"farebox_cut","key_name":"\\u0000"'))
    await teller.budgets.reserve(teller.owner, [good, bad, Ask(nothing.id, nothing.wants, b"{}")])
    await _sweep(teller, swept=3)
    assert (await teller.window(budget)).spent_usd == 6
    assert [(await teller.rows(one.id))[0]["model"] for one in (good, bad, nothing)] == ["m", None, None]
    await teller.check()


# -- windows -----------------------------------------------------------------------------------------


_CALENDAR = [
    ("minute", "UTC", "2026-03-01 12:34:56+00", "2026-03-01 12:34+00", "2026-03-01 12:35+00"),
    ("hour", "Asia/Kolkata", "2026-03-01 12:10+00", "2026-03-01 11:30+00", "2026-03-01 12:30+00"),
    ("hour", "Europe/Berlin", "2026-10-25 00:30+00", "2026-10-25 00:00+00", "2026-10-25 01:00+00"),
    ("hour", "Europe/Berlin", "2026-10-25 01:30+00", "2026-10-25 01:00+00", "2026-10-25 02:00+00"),
    ("day", "UTC", "2026-03-01 23:59:59.999999+00", "2026-03-01 00:00+00", "2026-03-02 00:00+00"),
    ("day", "Asia/Kolkata", "2026-03-01 18:29+00", "2026-02-28 18:30+00", "2026-03-01 18:30+00"),
    ("day", "Europe/Berlin", "2026-03-29 12:00+00", "2026-03-28 23:00+00", "2026-03-29 22:00+00"),
    ("day", "Europe/Berlin", "2026-10-25 12:00+00", "2026-10-24 22:00+00", "2026-10-25 23:00+00"),
    ("day", "Australia/Lord_Howe", "2026-04-04 20:00+00", "2026-04-04 13:00+00", "2026-04-05 13:30+00"),
    # Santiago's clocks go forward at midnight: the day begins at one.
    ("day", "America/Santiago", "2026-09-06 12:00+00", "2026-09-06 04:00+00", "2026-09-07 03:00+00"),
    ("day", "America/Santiago", "2026-09-05 12:00+00", "2026-09-05 04:00+00", "2026-09-06 04:00+00"),
    # Havana's go back to midnight at one: there are two midnights, and the day begins with the first.
    ("day", "America/Havana", "2026-11-01 04:30+00", "2026-11-01 04:00+00", "2026-11-02 05:00+00"),
    ("day", "America/Havana", "2026-10-31 12:00+00", "2026-10-31 04:00+00", "2026-11-01 04:00+00"),
    ("week", "Europe/Berlin", "2026-03-29 21:00+00", "2026-03-22 23:00+00", "2026-03-29 22:00+00"),
    ("month", "America/New_York", "2026-03-01 04:59+00", "2026-02-01 05:00+00", "2026-03-01 05:00+00"),
    ("month", "UTC", "2028-02-29 12:00+00", "2028-02-01 00:00+00", "2028-03-01 00:00+00"),
    ("total", "Europe/Berlin", "2026-03-01 00:00+00", "1970-01-01 00:00+00", None),
]


async def test_windows_follow_the_calendar(sql: asyncpg.Connection) -> None:
    """A window begins and ends where clocks of its zone say, also when these change, and at the odd offsets."""
    for window, zone, now, start, end in _CALENDAR:
        row = await sql.fetchrow(
            "SELECT window_start = $4::text::timestamptz AS starts, "
            "window_end = coalesce($5::text, 'infinity')::timestamptz AS ends, b.* "
            "FROM farebox.window_bounds($1, $2, $3::text::timestamptz) AS b",
            *(window, zone, now, start, end),
        )
        assert row["starts"] and row["ends"], row


_CHANGES = {
    "Europe/Berlin": ("2026-03-29", "2026-10-25"),
    "America/Havana": ("2026-03-08", "2026-11-01"),
    "America/Santiago": ("2026-04-05", "2026-09-06"),
    "Africa/Cairo": ("2026-04-24", "2026-10-30"),
    "Asia/Kathmandu": ("2026-01-01",),
}


async def test_windows_join(sql: asyncpg.Connection) -> None:
    """Around every odd change of clocks each moment has one window, and windows leave no gap."""
    for zone, days in _CHANGES.items():
        odd = await sql.fetch(
            """
            SELECT kind, moment FROM unnest($2::text[]) AS day, unnest('{hour,day,week,month}'::text[]) AS kind,
                generate_series(
                    day::timestamptz - interval '30 h', day::timestamptz + interval '50 h', '31 min') AS moment
            CROSS JOIN LATERAL farebox.window_bounds(kind, $1, moment) AS b
            CROSS JOIN LATERAL farebox.window_bounds(kind, $1, b.window_end) AS next
            WHERE NOT (b.window_start <= moment AND moment < b.window_end AND next.window_start = b.window_end)
            """,
            zone,
            list(days),
        )
        assert odd == [], zone


async def test_a_call_over_midnight_is_charged_where_it_reserved(teller: Teller) -> None:
    """The fresh day admits at once, whatever is still open; yesterday's call is charged to yesterday."""
    budget = await teller.budget(limit_usd=D(1))
    old, new = ask(budget), ask(budget)
    await teller.at("2026-03-01 23:59:59+00")
    yesterday = (await teller.reserve(old)).windows[0]
    assert yesterday.resets_at == datetime(2026, 3, 2, tzinfo=UTC)
    await teller.at("2026-03-02 00:00:00+00")
    grant = await teller.reserve(new)
    assert (grant.state, grant.windows[0].reserved_usd, grant.windows[0].requests) == ("open", 1, 1)
    assert (await teller.extend(old.id, "0.5")).state == "open"
    await teller.settle(old.id, "0.75")
    rows = await teller.sql.fetch("SELECT spent_usd, reserved_usd FROM farebox.budget_window ORDER BY window_start")
    assert [tuple(row) for row in rows] == [(D("0.75"), 0), (0, 1)]
    await teller.check()


async def test_a_refused_call_makes_no_window(teller: Teller) -> None:
    """Calls too large for a fresh window are refused without a row: invented sessions can't fill the table."""
    budget = await teller.budget(scope="session", limit_usd=D(1))
    grant = await teller.reserve(ask(budget, usd="2", subject="s-1"))
    assert (grant.state, grant.windows[0].window, grant.windows[0].fits) == ("denied", 0, False)
    assert await teller.sql.fetchval("SELECT count(*) FROM farebox.budget_window") == 0


# -- definitions -------------------------------------------------------------------------------------


async def test_a_limit_holds_from_the_moment_it_is_changed(teller: Teller) -> None:
    """Raised it admits at once, lowered it refuses at once; what was there already stays, as the floor."""
    budget = await teller.budget(limit_usd=D(2), limit_tokens=100)
    await teller.reserve(ask(budget, usd="2", tokens=50))
    assert (await teller.reserve(ask(budget))).state == "denied"
    raised = await teller.budgets.put_budget("b", {"limit_usd": D(4)}, "api", "ann")
    assert (raised.id, raised.limit_tokens, raised.window) == (budget.id, 100, "day")
    assert (await teller.reserve(ask(budget, usd="2"))).state == "open"
    await teller.budgets.put_budget("b", {"limit_usd": D(1), "limit_tokens": 20}, "api", "ann")
    row = await teller.sql.fetchrow("SELECT * FROM farebox.budget_window")
    assert (row["limit_usd"], row["floor_usd"], row["floor_tokens"]) == (1, 4, 50)
    assert (await teller.reserve(ask(budget, usd="0.1"))).state == "denied"
    await teller.check()
    await teller.budgets.put_budget("b", {"limit_usd": D(9), "limit_tokens": None}, "api", "ann")
    assert tuple(await teller.sql.fetchrow("SELECT floor_usd, floor_tokens FROM farebox.budget_window")) == (0, 0)
    await teller.check()


async def test_another_way_of_counting_is_another_budget(teller: Teller) -> None:
    """A new window, scope or zone under an old name starts to count anew, and what is open still settles."""
    budget = await teller.budget(limit_usd=D(1))
    one = ask(budget)
    await teller.reserve(one)
    other = await teller.budgets.put_budget("b", {"window": "month"}, "api", "ann")
    assert (other.id != budget.id, other.limit_usd) == (True, 1)
    assert (await teller.reserve(ask(other))).state == "open"
    # Whoever has not heard of it yet is counted where the new one does not look, and must not be free for that.
    for subject in ("", "fresh"):
        assert (await teller.reserve(ask(budget, usd="50", subject=subject))).state == "denied"
    await teller.settle(one.id, "1")
    assert [b.id for b in await teller.budgets.list_budgets()] == [other.id]
    await teller.check()


async def test_a_deleted_budget_limits_nothing(teller: Teller) -> None:
    """It is gone at once, also for processes that still ask with it; its open calls settle; its name is free again."""
    budget = await teller.budget(limit_usd=D(1))
    one = ask(budget)
    await teller.reserve(one)
    assert (await teller.budgets.delete_budget("b", "ann")).deleted
    assert (await teller.reserve(ask(budget, usd="99"))).state == "open"
    assert (await teller.reserve(ask(budget, usd="99", subject="new"))).state == "open"
    await teller.settle(one.id, "1")
    assert (await teller.budget()).id != budget.id
    with pytest.raises(NotFound):
        await teller.budgets.delete_budget("no such", "ann")
    await teller.check()


async def test_every_change_is_audited(teller: Teller) -> None:
    """Who made, changed and ended a budget stands in the audit with what it was and became; no change makes no row."""
    await teller.budget(limit_usd=D("0.50"))
    await teller.budget(limit_usd=D("0.50"))
    await teller.budgets.put_budget("b", {"limit_usd": D(3)}, "api", "ann")
    await teller.budgets.delete_budget("b", "bob")
    rows = await teller.budgets.audit(kind="budget", name="b")
    assert [(row.actor, row.action) for row in rows] == [("bob", "delete"), ("ann", "change"), ("test", "create")]
    assert (rows[1].before["limit_usd"], rows[1].after["limit_usd"]) == ("0.50", "3")
    assert (rows[2].before, rows[0].after) == (None, None)
    assert await teller.budgets.audit(before=rows[1].id) == rows[2:]
    for statement in ("UPDATE farebox.audit SET actor = 'me'", "DELETE FROM farebox.audit", "TRUNCATE farebox.audit"):
        with pytest.raises(asyncpg.RestrictViolationError):
            await teller.sql.execute(statement)


_NONSENSE: list[dict[str, Any]] = [
    {"limit_usd": D("NaN")},
    {"limit_usd": D("-1")},
    {"limit_usd": D("Infinity")},
    {"limit_usd": 0.5},
    {"limit_usd": None},
    {"limit_tokens": -1},
    {"window": "fortnight"},
    {"timezone": "Mars/Phobos"},
    {"timezone": "FOO+5"},
    {"scope": "planet"},
    {"thresholds": [D(0)]},
    {"wait_s": -1.0},
    {"name": "key:mine"},
    {"name": ""},
]


async def test_what_is_no_budget_is_refused(teller: Teller) -> None:
    """A definition that makes no sense is refused whole, and nothing is stored or audited."""
    plain = {"name": "b", "scope": "global", "limit_usd": D(1)}
    for fields in _NONSENSE:
        with pytest.raises(BadRequest):
            await teller.budgets.put_budgets([{**plain, "name": "good"}, {**plain, **fields}], "api", "ann")
    assert await teller.budgets.list_budgets() == []
    assert await teller.budgets.audit() == []


async def test_the_config_has_its_own(teller: Teller) -> None:
    """The config's budgets are what it says, no more and no less, and the API can't touch them."""
    mine = await teller.budget("mine")
    wanted = [{"name": n, "scope": "team", "limit_usd": D(1), "wait_s": 1.0} for n in ("x", "y")]
    first = await teller.budgets.sync_config(wanted)
    assert await teller.budgets.sync_config(wanted) == first
    del wanted[0]["wait_s"]
    x, z = await teller.budgets.sync_config([wanted[0], {"name": "z", "scope": "global", "limit_tokens": 5}])
    assert (x.id, x.wait_s, z.limit_usd, z.source) == (first[0].id, 5.0, None, "config")
    for call in (
        teller.budgets.put_budget("x", {"limit_usd": D(9)}, "api", "ann"),
        teller.budgets.delete_budget("x", "ann"),
    ):
        with pytest.raises(Conflict):
            await call
    assert [b.name for b in await teller.budgets.list_budgets()] == ["mine", "x", "z"]
    assert (await teller.budgets.sync_config([])) == []
    assert await teller.budgets.list_budgets() == [mine]
    [taken] = await teller.budgets.sync_config(
        [{"name": "mine", "scope": "global", "window": "day", "limit_usd": D(2)}]
    )
    assert (taken.id, taken.source, taken.limit_usd) == (mine.id, "config", 2)
    assert len(await teller.budgets.audit(name="x")) == 3


async def test_many_processes_put_the_same_config(teller: Teller) -> None:
    """Eight at once write it down once."""
    wanted = [{"name": f"b{n}", "scope": "team", "limit_usd": D(n + 1)} for n in range(5)]
    answers = await asyncio.gather(*(BudgetStore(teller.store).sync_config(wanted) for _ in range(8)))
    assert all(answer == answers[0] for answer in answers)
    assert len(await teller.budgets.audit()) == 5


async def test_keys_have_budgets_and_rates(teller: Teller) -> None:
    """A key's own limits are set together, keep their counters when changed or renamed, and end with the key."""
    key = await teller.store.create_key(name="ci", secret_hash=bytes(32))
    other = await teller.store.create_key(name="other", secret_hash=bytes(31) + b"1")
    limits = [{"limit_usd": D(5), "window": "day"}, {"limit_tokens": 9, "window": "day"}]
    made = await teller.budgets.set_key_limits(key.id, "ci", limits, 10, 500, 2, "ann")
    assert [(b.name, b.purpose) for b in made] == [
        ("key:ci:day", "budget"),
        ("key:ci:day-2", "budget"),
        ("key:ci:max_parallel", "rate"),
        ("key:ci:rpm", "rate"),
        ("key:ci:tpm", "rate"),
    ]
    assert {(b.scope, b.source, b.key_id) for b in made} == {("key", "key", key.id)}
    await teller.budgets.set_key_limits(other.id, "other", limits, None, None, None, "ann")
    assert len(await teller.budgets.list_budgets()) == 4
    assert len(await teller.budgets.list_budgets(include_rate=True)) == 7
    renamed = await teller.budgets.set_key_limits(key.id, "new:name", limits[:1], 20, None, None, "ann")
    assert [(b.name, b.id) for b in renamed] == [("key:new:name:day", made[0].id), ("key:new:name:rpm", made[3].id)]
    with pytest.raises(Conflict):
        await teller.budgets.delete_budget("key:new:name:day", "ann")
    await teller.store.revoke_key(key.id)
    assert [b.key_id for b in await teller.budgets.list_budgets(include_rate=True)] == [other.id, other.id]
    [ended, *_] = await teller.budgets.audit(name="key:new:name:rpm")
    assert ended.action == "delete"
    assert await teller.budgets.set_key_limits(key.id, "late", limits, 1, 1, 1, "ann") == [], "it stays revoked"


async def test_a_budget_that_comes_back_to_the_config_has_spent_what_it_had(teller: Teller) -> None:
    """Left out once and there again it goes on counting where it was; counted otherwise it is another one."""
    plain: dict[str, Any] = {"name": "c", "scope": "global", "limit_usd": D(5)}
    [budget] = await teller.budgets.sync_config([plain])
    left = ask(budget, usd="4")
    await teller.reserve(left)
    assert await teller.budgets.sync_config([]) == []
    assert (await teller.reserve(ask(budget, usd="50"))).state == "open", "it limits nothing meanwhile"
    [back] = await teller.budgets.sync_config([plain | {"limit_usd": D(6)}])
    assert (back.id, back.limit_usd, (await teller.reserve(ask(back))).state) == (budget.id, 6, "denied")
    assert [row.action for row in await teller.budgets.audit(name="c")] == ["create", "delete", "create"]
    await teller.budgets.sync_config([])
    [other] = await teller.budgets.sync_config([plain | {"window": "day"}])
    assert other.id != budget.id
    await teller.check()


async def test_who_lets_streams_overrun_does_not_keep_others_from_holding(teller: Teller) -> None:
    """A full budget that overruns, or a full pace, holds no more; a budget that cuts holds all the same, or denies."""
    cuts = await teller.budget("cuts", limit_usd=D(4))
    lets = await teller.budget("lets", limit_usd=D(1), on_extend_denied="overrun")
    one = ask(lets, cuts)
    await teller.reserve(one)
    for _ in range(2):
        assert (await teller.extend(one.id, "3")).state == "open"
        assert ((await teller.window(lets)).reserved_usd, (await teller.window(cuts)).reserved_usd) == (1, 3)
    assert (await teller.extend(one.id, "5")).state == "denied"
    await teller.settle(one.id, "3")
    overruns = await teller.sql.fetch("SELECT overrun_usd FROM farebox.budget_window ORDER BY overrun_usd")
    assert [row["overrun_usd"] for row in overruns] == [0, 2]
    await teller.check()


@pytest.mark.parametrize("how", ["by farebox", "by hand"])
async def test_a_revoked_key_is_limited_to_its_last_call(teller: Teller, how: str) -> None:
    """Processes that have not heard of the end of a key yet hold it to its budgets, and are not told they ended."""
    key = await teller.store.create_key(name="ci", secret_hash=bytes(32))
    [budget] = await teller.budgets.set_key_limits(key.id, "ci", [{"limit_usd": D(5)}], None, None, None, "ann")
    assert (await teller.reserve(ask(budget))).state == "open"
    _, since = await teller.budgets.budgets_changed_since(datetime.now(UTC))
    if how == "by hand":
        await teller.store.revoke_key(key.id)
    else:
        await Keys(teller.store).revoke(key.id, "ann")
    for subject in ("", "fresh"):
        assert (await teller.reserve(ask(budget, usd="50", subject=subject))).state == "denied"
    changed, _ = await teller.budgets.budgets_changed_since(since)
    assert [(one.id, one.deleted) for one in changed] == [(budget.id, False)]
    assert await teller.budgets.list_budgets() == []


async def test_limits_taken_from_a_living_key_are_gone_at_once(teller: Teller) -> None:
    """What a key is rid of limits nothing any more, also for processes that still ask with it, which are told."""
    key = await teller.store.create_key(name="ci", secret_hash=bytes(32))
    [budget] = await teller.budgets.set_key_limits(key.id, "ci", [{"limit_usd": D(5)}], None, None, None, "ann")
    assert (await teller.reserve(ask(budget))).state == "open"
    await teller.budgets.set_key_limits(key.id, "ci", [], None, None, None, "ann")
    assert (await teller.reserve(ask(budget, usd="50"))).state == "open"
    await teller.store.revoke_key(key.id)
    changed, _ = await teller.budgets.budgets_changed_since(datetime.now(UTC))
    assert [(one.id, one.deleted) for one in changed] == [(budget.id, True)]


async def test_changes_are_found_by_their_time(teller: Teller) -> None:
    """What was made, changed or ended since a moment is told, deleted ones as such, with the moment to go on from."""
    _, since = await teller.budgets.budgets_changed_since(datetime.now(UTC) + timedelta(hours=1))
    a, b = await teller.budget("a"), await teller.budget("b")
    changed, later = await teller.budgets.budgets_changed_since(since)
    assert {one.id for one in changed} == {a.id, b.id}
    await teller.budgets.delete_budget("a", "ann")
    changed, _ = await teller.budgets.budgets_changed_since(later)
    assert {one.id: one.deleted for one in changed} == {a.id: True, b.id: False}


# -- looks -------------------------------------------------------------------------------------------


async def test_the_overview_pages_through_all(teller: Teller) -> None:
    """Every living budget is there with each current counter, once, whatever the size of a page; unused ones empty."""
    used, _ = await teller.budget("used", scope="team"), await teller.budget("idle")
    await teller.at("2026-03-01 12:00+00")
    await teller.reserve(ask(used, subject="gone"))
    await teller.at("2026-03-02 12:00+00")
    for subject in ("c", "a", "b"):
        await teller.reserve(ask(used, subject=subject))
    expected = [("idle", None), ("used", "a"), ("used", "b"), ("used", "c")]
    for rows_max in (1, 2, 3, 10):
        found, after = [], None
        while True:
            page = await teller.budgets.overview(rows_max=rows_max, after=after)
            found += [(row.budget.name, row.counter and row.counter.subject) for row in page.rows]
            after = page.next
            if after is None:
                break
        assert found == expected
    [row] = (await teller.budgets.overview(name="used", subject="b")).rows
    assert row.counter is not None and row.counter.reserved_usd == 1
    assert (await teller.budgets.overview(scope="global")).rows[0].counter is None
    assert (await teller.budgets.overview(source="config")).rows == []


async def test_integrity_finds_what_is_wrong(teller: Teller) -> None:
    """Counters moved by hand are named, with what they are and what they should be."""
    budget = await teller.budget()
    one, other = ask(budget), ask(budget)
    await teller.budgets.reserve(teller.owner, [one, other])
    await teller.settle(one.id, "1")
    assert {one.state for one in await teller.budgets.integrity(10, 10.0)} == {"holds"}
    await teller.sql.execute("UPDATE farebox.budget_window SET spent_usd = 11, reserved_usd = 2")
    limits, holds, rows, settled = await teller.budgets.integrity(10, 10.0)
    assert [one.state for one in (limits, holds, rows, settled)] == ["broken", "broken", "broken", "holds"]
    assert [(v.is_usd, v.should_usd) for one in (limits, holds, rows) for v in one.violations] == [
        (13, 10),
        (2, 1),
        (11, 1),
    ]
    assert limits.violations[0].budget == budget.id


async def test_integrity_is_bounded(teller: Teller) -> None:
    """What a look may not read is told as not evaluated, with the reason, and never taken for right."""
    budget = await teller.budget()
    asks = [ask(budget) for _ in range(4)]
    await teller.budgets.reserve(teller.owner, asks)
    now = datetime.now(UTC)
    for one in asks[:2]:
        await teller.settle(one.id, "1", started_at=now, finished_at=now)
    _, holds, rows, _ = await evaluate(teller.store, 10, 10.0, rows_max=1)
    assert {one.state for one in (holds, rows)} == {"not evaluated"}
    assert rows.skipped == 1 and rows.reason is not None
    assert {one.state for one in await evaluate(teller.store, 10, 0.0)} == {"not evaluated"}


async def test_it_works_through_a_pooler(teller: Teller, database: str) -> None:
    """Through PgBouncer in transaction mode, where each statement may have another connection, all of it holds."""
    async with pgbouncer(database, server_connections=2) as through:
        store = Store(through, pool_size_max=8)
        await store.open()
        try:
            pooled = Teller(store, teller.sql, teller.owner)
            budget = await pooled.budget(limit_usd=D(10))

            async def one_call(number: int) -> str:
                call = ask(budget)
                grant = await pooled.reserve(call)
                if grant.state == "open" and number % 2:
                    await pooled.settle(call.id, "1")
                return grant.state

            states = await asyncio.gather(*(one_call(number) for number in range(40)))
            assert states.count("open") == 10
            assert await pooled.budgets.beat(teller.owner)
            await pooled.check()
        finally:
            await store.close()


# -- help --------------------------------------------------------------------------------------------


async def _steady(teller: Teller, beating: list[int] | None = None) -> int:
    """Another owner, heard of without a gap for a lease, through which only `beating` were heard of beside it."""
    now = NOON
    await teller.at(now)
    await teller.sql.execute("UPDATE farebox.owner SET seen = farebox.clock() WHERE NOT dead")
    other = await teller.budgets.register("other")
    await teller.budgets.sweep(other, LEASE_S, 10)
    for _ in range(5):
        now += timedelta(seconds=LEASE_S / 4)
        await teller.at(now)
        for owner in [other, *(beating or [])]:
            assert await teller.budgets.beat(owner)
    return other


async def _sweep(teller: Teller, silent: int | None = None, swept: int | None = None) -> int:
    """Let all others fall silent and be swept; the owner that swept."""
    other = await _steady(teller)
    found = await teller.budgets.sweep(other, LEASE_S, 100)
    assert found == swept if swept is not None else found
    return other
