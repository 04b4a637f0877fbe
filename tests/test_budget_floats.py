"""Floats in Postgres: what a process holds ahead, what its calls draw, and how idle money comes back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import asyncpg
import pytest

from farebox.payload import encode
from farebox.records import Budget, FloatHold, Want
from farebox.store import Store
from farebox.store.budgets import Draw, Fenced, Take
from support.events import event
from support.reserves import LEASE_S, NOON, Teller, ask

D = Decimal


@pytest.fixture
async def teller(store: Store, database: str) -> AsyncIterator[Teller]:
    """A process that reserves."""
    connection = await asyncpg.connect(database)
    yield await Teller.open(store, connection)
    await connection.close()


def wants(*budgets: Budget, usd: str = "0.01", tokens: int = 10, requests: int = 1) -> tuple[Want, ...]:
    """What each call holds."""
    return tuple(Want(budget.id, "", D(usd), tokens, requests) for budget in budgets)


async def opened(teller: Teller, *budgets: Budget) -> None:
    """Make the windows: floats are taken where calls have been."""
    made = ask(*budgets, usd="0.000001")
    await teller.reserve(made)
    await teller.budgets.release([made.id])


async def take(
    teller: Teller, *budgets: Budget, calls: int = 10, owner: int | None = None, id: UUID | None = None
) -> tuple[UUID, Take]:
    """A float for that many calls."""
    id, fresh = id or uuid4(), id is None
    took = await teller.budgets.float_take(owner or teller.owner, id, wants(*budgets), calls, fresh=fresh)
    return id, took


def hold(id: UUID, took: Take, calls: int = 1) -> FloatHold:
    """What so many calls hold of a float."""
    n = len(took.windows)
    return FloatHold(
        id, tuple(w.window for w in took.windows), (calls * D("0.01"),) * n, (calls * 10,) * n, (calls,) * n
    )


def ended(id: UUID, drawn: FloatHold, usd: str = "0.004", **fields: object) -> bytes:
    """The event of a call that held out of a float."""
    given = {"cost_usd": D(usd), "input_tokens": 3, "budget_ids": ["b"]} | fields
    return encode(event(id=id, from_float=drawn, **given))


async def test_a_float_is_reserved_like_calls(teller: Teller) -> None:
    """What a float holds is no longer there for others, and given back whole when it ends."""
    budget = await teller.budget(limit_tokens=10**6, limit_requests=1000, limit_usd=D(10))
    await opened(teller, budget)
    id, took = await take(teller, budget)
    assert took.calls == 10
    state = await teller.window(budget)
    assert (state.reserved_usd, state.reserved_tokens, state.requests) == (D("0.10"), 100, 10)
    assert (state.open, state.floats) == (1, 1)
    assert took.windows == (state,)
    await teller.check()
    await teller.budgets.float_end([id])
    await teller.budgets.float_end([id])
    state = await teller.window(budget)
    assert (state.reserved_usd, state.reserved_tokens, state.requests, state.open, state.floats) == (0, 0, 0, 0, 0)
    await teller.check()


async def test_a_float_leaves_others_enough(teller: Teller) -> None:
    """It takes a sixteenth of what any limit has left at most, and nothing where that is less than four calls."""
    for name, limits, calls in (
        ("usd", {"limit_usd": D("1.6")}, 10),
        ("less", {"limit_usd": D("1.59")}, 9),
        ("few", {"limit_usd": D("0.64")}, 4),
        ("none", {"limit_usd": D("0.63")}, 0),
        ("tokens", {"limit_tokens": 16 * 50}, 5),
        ("requests", {"limit_requests": 16 * 6}, 6),
        ("parallel", {"limit_open": 1000}, 0),
        ("warns", {"limit_usd": D("0.63"), "on_exceed": "warn"}, 0),
        ("much", {"limit_usd": D(1000)}, 64),
    ):
        budget = await teller.budget(name, **limits)
        await opened(teller, budget)
        _, took = await take(teller, budget, calls=64)
        assert (name, took.calls) == (name, calls)
    await teller.check()


async def test_a_float_needs_its_windows(teller: Teller) -> None:
    """None is taken where a window is not there yet, and none is filled up in another window than its own."""
    budget = await teller.budget()
    assert (await take(teller, budget))[1] == Take(0)
    await opened(teller, budget)
    id, _ = await take(teller, budget)
    assert (await take(teller, budget, id=id))[1].calls == 10
    assert (await teller.window(budget)).reserved_usd == D("0.20")
    await teller.at(NOON + timedelta(days=1))
    await opened(teller, budget)
    assert (await take(teller, budget, id=id))[1].calls == 0
    await teller.budgets.float_end([id])
    assert (await take(teller, budget, id=id))[1].calls == 0, "one that has ended is not made anew"
    await teller.check()


async def test_a_call_is_settled_out_of_its_float(teller: Teller) -> None:
    """Its row charges the windows, its hold leaves the float, and the same row again changes nothing."""
    first, second = await teller.budget("one"), await teller.budget("two")
    await opened(teller, first, second)
    id, took = await take(teller, second, first)
    call = uuid4()
    for _ in range(2):
        await teller.store.insert_events([ended(call, hold(id, took))])
        for budget in (first, second):
            state = await teller.window(budget)
            assert (state.spent_usd, state.reserved_usd, state.reserved_tokens) == (D("0.004"), D("0.09"), 90)
            assert (state.requests, state.open, state.spent_tokens) == (10, 1, 3)
        await teller.check()
    assert not await teller.sql.fetchval("SELECT count(*) FROM farebox.reservation WHERE state = 'open'")
    [row] = await teller.rows(call)
    assert sorted(row["window_ids"]) == sorted(w.window for w in took.windows)
    await teller.budgets.float_end([id])
    assert (await teller.window(first)).requests == 1


async def test_a_crashed_call_is_charged_at_its_hold(teller: Teller) -> None:
    """The begin that a crash leaves costs what the float held for it; the end, where it comes, corrects that."""
    budget = await teller.budget()
    await opened(teller, budget)
    id, took = await take(teller, budget)
    call, drawn = uuid4(), hold(id, took)
    begin = ended(call, drawn, "0.001", outcome="farebox_cut", usage_source="hold", input_tokens=1)
    await teller.store.insert_events([begin])
    state = await teller.window(budget)
    assert (state.spent_usd, state.spent_tokens, state.reserved_usd) == (D("0.01"), 10, D("0.09"))
    await teller.store.insert_events([ended(call, drawn)])
    state = await teller.window(budget)
    assert (state.spent_usd, state.spent_tokens, state.reserved_usd) == (D("0.004"), 3, D("0.09"))
    await teller.check()


async def test_a_batch_draws_in_one_go(teller: Teller) -> None:
    """Calls of several floats, reserved ones and free ones are settled together, whatever their order."""
    first, second = await teller.budget("one"), await teller.budget("two")
    await opened(teller, first, second)
    a, took_a = await take(teller, first)
    b, took_b = await take(teller, second, first)
    reserved = ask(second, first, usd="0.5")
    await teller.reserve(reserved)
    calls = [ended(uuid4(), hold(a, took_a)) for _ in range(3)] + [ended(uuid4(), hold(b, took_b)) for _ in range(2)]
    own = encode(event(id=reserved.id, cost_usd=D("0.3"), budget_ids=["b"]))
    assert await teller.store.insert_events([*calls[:4], own, encode(event()), calls[4], calls[0]]) == 7
    state = await teller.window(first)
    assert (state.spent_usd, state.reserved_usd) == (D("0.320"), D("0.15"))
    state = await teller.window(second)
    assert (state.spent_usd, state.reserved_usd) == (D("0.308"), D("0.08"))
    await teller.check()


async def test_what_is_unused_goes_back_and_the_rest_stays(teller: Teller) -> None:
    """A closed float holds what its calls hold, never more is given back than it has, and it is not filled up."""
    budget = await teller.budget()
    await opened(teller, budget)
    id, took = await take(teller, budget)
    for _ in range(2):
        await teller.budgets.float_give(hold(id, took, 7), closing=True)
    state = await teller.window(budget)
    assert (state.reserved_usd, state.requests, state.floats, state.open) == (D("0.03"), 3, 0, 1)
    assert (await take(teller, budget, id=id))[1].calls == 0
    await teller.budgets.float_give(hold(id, took, 1), closing=False)
    assert (await teller.window(budget)).reserved_usd == D("0.02")
    await teller.budgets.float_give(hold(id, took, 9), closing=False)
    state = await teller.window(budget)
    assert (state.reserved_usd, state.reserved_tokens, state.requests, state.open) == (0, 0, 0, 1)
    await teller.check()


async def test_what_a_float_lacks_is_an_overrun(teller: Teller) -> None:
    """A call whose float is gone is counted all the same, past the limit if it must be, and that is told."""
    budget = await teller.budget(limit_usd=D("1.6"))
    await opened(teller, budget)
    id, took = await take(teller, budget)
    await teller.budgets.float_end([id])
    full = ask(budget, usd="1.6")
    assert (await teller.reserve(full)).state == "open"
    await teller.store.insert_events([ended(uuid4(), hold(id, took))])
    state = await teller.window(budget)
    assert (state.spent_usd, state.reserved_usd, state.requests) == (D("0.004"), D("1.6"), 2)
    await teller.check()


async def test_a_recalled_float_comes_back(teller: Teller) -> None:
    """A denied ask tells of floats; while they are recalled nobody takes one; given back, the ask is granted."""
    budget = await teller.budget(limit_usd=D("1.6"))
    await opened(teller, budget)
    other = await teller.budgets.register("other")
    id, took = await take(teller, budget, owner=other)
    big = ask(budget, usd="1.6")
    denied = await teller.reserve(big)
    [state] = denied.windows
    assert (denied.state, state.floats) == ("denied", 1)
    assert await teller.budgets.float_recalled(other) == []
    assert await teller.budgets.float_recall(teller.owner, [state.window]) == [id]
    assert await teller.budgets.float_recalled(other) == [id]
    assert (await take(teller, budget))[1].calls == 0
    assert (await take(teller, budget, owner=other, id=id))[1].calls == 0
    await teller.budgets.float_give(hold(id, took, 10), closing=True)
    assert await teller.budgets.float_recall(teller.owner, [state.window]) == []
    assert (await teller.reserve(big)).state == "open"
    await teller.budgets.release([big.id])
    await teller.at(NOON + timedelta(seconds=4))
    assert (await take(teller, budget))[1].calls > 0
    await teller.check()


async def test_a_lowered_limit_recalls_floats(teller: Teller) -> None:
    """What floats hold under the old limit is asked for, and remembered as what was there."""
    budget = await teller.budget(limit_usd=D("1.6"))
    await opened(teller, budget)
    id, _ = await take(teller, budget)
    await teller.budgets.put_budget("b", {"limit_usd": D("0.05")}, "api", "test")
    assert await teller.budgets.float_recalled(teller.owner) == [id]
    await teller.check()
    await teller.budgets.float_end([id])
    await teller.check()


async def test_an_extended_call_gets_a_reservation(teller: Teller) -> None:
    """Detached, twice like once, it can be extended, and its row settles it with what its float held for it."""
    budget = await teller.budget()
    await opened(teller, budget)
    id, took = await take(teller, budget)
    call, drawn = uuid4(), hold(id, took)
    facts = ended(call, drawn, outcome="farebox_cut", usage_source="hold")
    for _ in range(2):
        await teller.budgets.float_detach(teller.owner, [Draw(call, drawn, facts)])
    assert (await teller.extend(call, "0.5", 20)).state == "open"
    state = await teller.window(budget)
    assert (state.reserved_usd, state.open, state.requests) == (D("0.59"), 2, 10)
    await teller.check()
    await teller.store.insert_events([ended(call, drawn)])
    await teller.budgets.float_detach(teller.owner, [Draw(call, drawn, facts)])
    state = await teller.window(budget)
    assert (state.spent_usd, state.reserved_usd, state.open) == (D("0.004"), D("0.09"), 1)
    await teller.check()


async def test_a_detached_call_of_a_dead_owner_is_swept(teller: Teller) -> None:
    """Its facts name the float, which is not drawn from again; the float itself stays for the journal's rows."""
    budget = await teller.budget()
    await opened(teller, budget)
    old, teller.owner = teller.owner, await teller.budgets.register("next")
    id, took = await take(teller, budget, owner=old)
    call, drawn = uuid4(), hold(id, took)
    await teller.budgets.float_detach(
        old, [Draw(call, drawn, ended(call, drawn, outcome="farebox_cut", usage_source="hold"))]
    )
    await die(teller, old, "1 hour")
    assert await teller.budgets.sweep(teller.owner, LEASE_S, 10) == 1
    state = await teller.window(budget)
    assert (state.spent_usd, state.reserved_usd, state.floats) == (D("0.01"), D("0.09"), 1)
    await teller.check()
    with pytest.raises(Fenced):
        await take(teller, budget, owner=old)


async def test_a_float_nobody_can_account_for_is_charged_after_a_day(teller: Teller) -> None:
    """What a lost machine held ahead is charged; if its journal turns up after all, only what it says."""
    budget = await teller.budget(window="total")
    await opened(teller, budget)
    old, teller.owner = teller.owner, await teller.budgets.register("next")
    id, took = await take(teller, budget, owner=old)
    await die(teller, old, "25 hours")
    assert [await teller.budgets.sweep(teller.owner, LEASE_S, 10) for _ in range(3)] == [0, 1, 0]
    state = await teller.window(budget)
    assert (state.spent_usd, state.reserved_usd, state.floats, state.open) == (D("0.10"), 0, 0, 0)
    [row] = await teller.rows(id)
    assert (row["outcome"], row["usage_source"], row["budget_ids"]) == ("farebox_cut", "hold", [str(budget.id)])
    await teller.check()
    await teller.store.insert_events([ended(uuid4(), hold(id, took))])
    await teller.budgets.float_end([id])
    assert (await teller.window(budget)).spent_usd == D("0.004")
    await teller.check()


async def die(teller: Teller, owner: int, ago: str) -> None:
    """Have `owner` silent for so long, and everybody else steady."""
    await teller.sql.execute("UPDATE farebox.owner SET steady_since = steady_since - interval '30 hours'")
    await teller.sql.execute(f"UPDATE farebox.owner SET seen = seen - interval '{ago}' WHERE id = $1", owner)
