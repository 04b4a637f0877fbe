"""Floats of a process: calls that hold without the database, and idle money that is in nobody's way."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from farebox.budgets import floating, service
from farebox.budgets.floats import Demand, Float, Part
from farebox.budgets.link import Link
from farebox.budgets.owner import Owner
from farebox.budgets.service import Settings
from farebox.errors import Unavailable
from farebox.records import Want
from farebox.store import Store
from farebox.store.budgets import BudgetStore, Draw, Take, WindowState
from farebox.store.failures import StoreUnavailable
from support.budgets import ANN, BOB, WAIT_S, Replica, leave_idle, put, replica, until
from support.reserves import NOON

D = Decimal


async def idle(process: Replica) -> None:
    """Wait until it has no float any more, as none was used for a long time."""
    leave_idle(process.budgets)
    await until(lambda: not len(process.budgets.floats))


async def state(process: Replica) -> WindowState:
    """The first counter, looked at."""
    ask, _ = process.ask_of("0")
    [state] = await BudgetStore(process.store).standing([(ask.wants[0].budget, ask.wants[0].subject)])
    return state


async def whole(process: Replica) -> None:
    """The books are right."""
    for invariant in await BudgetStore(process.store).integrity(10, 10.0):
        assert invariant.state == "holds", invariant


async def test_a_busy_key_draws_from_a_float(database: str, store: Store, tmp_path: Path) -> None:
    """After some calls they hold without the database, cost what they cost, and what was held ahead goes back."""
    await put(store, limit_usd=D(100))
    async with replica(database, tmp_path) as process:
        drawn = await process.float("0.01")
        process.budgets.release(process.ask_of("0.01")[0].id, drawn)
        calls = 0
        for _ in range(300):
            ask, drawn_now = process.draw("0.01")
            if drawn_now is None:
                await asyncio.sleep(0.005)
                continue
            calls += 1
            process.settle_drawn(ask, drawn_now, "0.002")
        assert calls > 200
        await idle(process)
        now = await state(process)
        assert (now.spent_usd, now.reserved_usd, now.open, now.floats) == (calls * D("0.002"), 0, 0, 0)
        assert now.requests == calls
        await whole(process)


async def test_rare_calls_get_no_float(database: str, store: Store, tmp_path: Path) -> None:
    """Three calls in a second are reserved one by one."""
    await put(store, limit_usd=D(100))
    async with replica(database, tmp_path) as process:
        for _ in range(3):
            assert process.draw("0.01")[1] is None
            assert (await process.reserve("0.01")).state == "open"
        await asyncio.sleep(0.05)
        assert not len(process.budgets.floats)


async def test_first_calls_all_at_once_get_one(
    database: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A float that was asked for before there was a counter is asked for again with the next call."""
    monkeypatch.setattr(floating, "REFUSED_S", 1000.0)
    await put(store, limit_usd=D(100))
    async with replica(database, tmp_path) as process:
        assert [process.draw("0.01")[1] for _ in range(20)] == [None] * 20
        await until(lambda: not any(one.asked_for for one in process.budgets.floats._demands.values()))
        assert not len(process.budgets.floats)
        assert (await process.reserve("0.01")).state == "open"
        assert process.draw("0.01")[1] is None
        await until(lambda: process.draw("0.01")[1] is not None)


async def test_an_idle_float_refuses_nobody(
    database: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who needs what is left whole gets it, though another process and its own have floats there."""
    monkeypatch.setattr(floating, "IDLE_S", 1000.0)
    await put(store, limit_usd=D(10))
    async with replica(database, tmp_path / "1") as one, replica(database, tmp_path / "2") as two:
        for process in (one, two):
            process.budgets.release(process.ask_of("0")[0].id, await process.float("0.01"))
        assert (await state(one)).floats == 2
        assert (await one.reserve("10")).state == "open"
        assert (await two.reserve("0.01")).state == "denied"
        assert one.draw("0.01")[1] is None
        await whole(one)


async def test_idle_requests_refuse_nobody(
    database: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that a float holds ahead are given back as well, before a limit of requests refuses."""
    monkeypatch.setattr(floating, "IDLE_S", 1000.0)
    await put(store, limit_requests=100)
    async with replica(database, tmp_path / "1") as one, replica(database, tmp_path / "2") as two:
        process = await one.float("0")
        one.budgets.release(one.ask_of("0")[0].id, process)
        used = (await state(one)).requests
        assert used >= 4
        grants = [await two.reserve("0") for _ in range(100)]
        assert [grant.state for grant in grants] == ["open"] * 100
        assert (await two.reserve("0")).state == "denied"
        await whole(one)


async def test_what_calls_hold_stays_held(
    database: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A float that is asked for keeps what its calls under way hold; they settle, and it ends."""
    monkeypatch.setattr(floating, "IDLE_S", 1000.0)
    await put(store, limit_usd=D(10))
    async with replica(database, tmp_path / "1") as one, replica(database, tmp_path / "2") as two:
        other = await one.float("0.01")
        ask, drawn = one.draw("0.02")
        assert drawn is not None
        first = next(iter(one.budgets.floats._floats.values()))
        assert (await two.reserve("10")).state == "denied"
        assert first.closed
        now = await state(two)
        assert (now.reserved_usd, now.floats, now.open) == (D("0.03"), 0, 1)
        one.settle_drawn(ask, drawn, "0.015")
        one.budgets.release(ask.id, other)
        await idle(one)
        await idle(one)
        now = await state(two)
        assert (now.spent_usd, now.reserved_usd) == (D("0.015"), 0)
        assert (await two.reserve("9.985")).state == "open"
        await whole(one)


async def test_a_frozen_float_is_waited_for_once(
    database: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that does not answer keeps what it has, and others wait for it only the first time."""
    monkeypatch.setattr(service, "RECALL_S", 0.2)
    await put(store, limit_usd=D(10))
    async with replica(database, tmp_path / "1") as one, replica(database, tmp_path / "2") as two:
        await one.float("0.01")
        await one.budgets.floats.stop()
        asked = Counted(two)
        assert (await two.reserve("10")).state == "denied"
        waited = asked.recalls
        assert (await two.reserve("10")).state == "denied"
        assert waited > 2 and asked.recalls == waited + 1
        assert (await state(one)).floats == 1
        await whole(one)


async def test_a_float_that_is_being_made_refuses_nobody(database: str, store: Store, tmp_path: Path) -> None:
    """Its own process asks for all there is while the answer about a new float is under way: it waits for that."""
    await put(store, limit_usd=D(10))
    async with replica(database, tmp_path) as process:
        answered = Held(process)
        await call_often(process, answered.made)
        asking = asyncio.create_task(process.reserve("10"))
        [float] = process.budgets.floats._floats.values()
        await until(lambda: asking.done() or float.closed)
        answered.go.set()
        assert (await asking).state == "open"
        await whole(process)


async def test_a_float_of_which_nobody_heard_refuses_nobody(database: str, store: Store, tmp_path: Path) -> None:
    """The answer that a float was made is lost, and its process has no other: who wants it back gets it."""
    await put(store, limit_usd=D(10))
    async with replica(database, tmp_path / "1") as one, replica(database, tmp_path / "2") as two:
        answer = Held(one)
        await call_often(one, answer.made)
        answer.lost = True
        answer.go.set()
        await idle(one)
        assert (await state(two)).floats == 1
        assert (await two.reserve("10")).state == "open"
        await whole(one)


async def test_floats_are_bounded(database: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that become busy in one moment get no more floats than there may be."""
    monkeypatch.setattr(floating, "FLOATS_MAX", 1)
    await put(store, scope="key", limit_usd=D(10))
    async with replica(database, tmp_path) as process:
        for caller in (ANN, BOB):
            assert (await process.reserve("0.01", caller)).state == "open"
        for _ in range(10):
            for caller in (ANN, BOB):
                process.budgets.floats.draw(Part.of(process.ask_of("0.01", caller)[0].wants))
        await until(lambda: not any(one.asked_for for one in process.budgets.floats._demands.values()))
        assert len(process.budgets.floats) == 1


async def test_a_silent_database_is_not_waited_for(
    database: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Floats are in the way and asking for them gets no answer: the call is told so in time."""
    monkeypatch.setattr(service, "RECALL_S", 0.05)
    await put(store, limit_usd=D(10))
    async with replica(database, tmp_path, settings=Settings(reserve_timeout_s=0.3, poll_s=0.05)) as process:
        await process.float("0.01")

        async def silent(owner: int, windows: Sequence[int]) -> list[UUID]:
            await asyncio.Event().wait()
            return []

        process.budgets._quick.float_recall = silent  # type: ignore[method-assign]
        with pytest.raises(Unavailable):
            async with asyncio.timeout(WAIT_S):
                await process.reserve("10")


class Held:
    """Keeps the answers about new floats from a process until `go`; `lost`: for ever."""

    def __init__(self, process: Replica) -> None:
        self.made = asyncio.Event()
        self.go = asyncio.Event()
        self.lost = False
        ask = process.budgets._quick.float_take

        async def held(*args: Any, fresh: bool) -> Take:
            take = await ask(*args, fresh=fresh)
            self.made.set()
            await self.go.wait()
            if self.lost:
                raise StoreUnavailable("lost")
            return take

        process.budgets._quick.float_take = held  # type: ignore[method-assign]


async def call_often(process: Replica, enough: asyncio.Event) -> None:
    """Calls that leave nothing behind."""
    while not enough.is_set():
        ask, drawn = process.draw("0.01")
        assert drawn is None
        grant = await process.budgets.reserve(ask, wait_s=0, applied=process.ask_of("0")[1])
        process.settle(grant, "0")
        await asyncio.sleep(0.01)
    assert await process.ledger.settled(WAIT_S)


class Counted:
    """Counts how often a process asks for floats back."""

    def __init__(self, process: Replica) -> None:
        self.recalls = 0
        ask = process.budgets._quick.float_recall

        async def counted(owner: int, windows: Sequence[int]) -> list[UUID]:
            self.recalls += 1
            return await ask(owner, windows)

        process.budgets._quick.float_recall = counted  # type: ignore[method-assign]


async def test_a_crash_charges_what_was_sent(database: str, store: Store, tmp_path: Path) -> None:
    """The next life of the journal posts the begun call at its hold, and gives back what the float held beside it."""
    await put(store, limit_usd=D(10))
    async with replica(database, tmp_path / "1", boot="b") as one, replica(database, tmp_path / "2") as two:
        await one.float("0.01")
        ask, drawn = one.draw("0.02")
        assert drawn is not None
        one.begin_drawn(ask, drawn)
        await crash(one)
        async with replica(database, tmp_path / "1", boot="b") as next:
            await until(lambda: next.budgets._lives is not None and not next.budgets._lives.left)
            now = await state(two)
            assert (now.spent_usd, now.reserved_usd, now.floats, now.open) == (D("0.02"), 0, 0, 0)
            await whole(two)


async def test_an_extended_call_leaves_its_float(database: str, store: Store, tmp_path: Path) -> None:
    """More is held for it in a reservation of its own, and its row settles both."""
    await put(store, limit_usd=D(10))
    async with replica(database, tmp_path) as process:
        process.budgets.release(process.ask_of("0")[0].id, await process.float("0.01"))
        ask, drawn = process.draw("0.01")
        assert drawn is not None
        for usd in ("1", "2"):
            grant = await process.budgets.extend(ask.id, D(usd), 0, Draw(ask.id, drawn, ask.facts))
            assert grant is not None and grant.state == "open"
        assert (await state(process)).reserved_usd >= 2
        process.settle_drawn(ask, drawn, "1.5")
        await idle(process)
        now = await state(process)
        assert (now.spent_usd, now.reserved_usd, now.open) == (D("1.5"), 0, 0)
        await whole(process)


async def test_an_extension_takes_idle_money(
    database: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream is not cut for what a float holds that nobody uses."""
    monkeypatch.setattr(floating, "IDLE_S", 1000.0)
    await put(store, limit_usd=D(10))
    async with replica(database, tmp_path / "1") as one, replica(database, tmp_path / "2") as two:
        one.budgets.release(one.ask_of("0")[0].id, await one.float("0.01"))
        grant = await two.reserve("1")
        extended = await two.budgets.extend(grant.id, D(10), 0)
        assert extended is not None and extended.state == "open"
        await whole(one)


async def test_a_stop_gives_all_back(database: str, store: Store, tmp_path: Path) -> None:
    """After an ordered end nothing is held, and the owner is gone."""
    await put(store, limit_usd=D(10))
    async with replica(database, tmp_path / "1") as one:
        async with replica(database, tmp_path / "2") as two:
            two.budgets.release(two.ask_of("0")[0].id, await two.float("0.01"))
            number = two.budgets.owner.number
        now = await state(one)
        assert (now.reserved_usd, now.floats, now.open, now.requests) == (0, 0, 0, 0)
        async with store.connection() as connection:
            assert not await connection.fetchval("SELECT count(*) FROM farebox.owner WHERE id = $1", number)


# -- in memory ---------------------------------------------------------------------------------------


BUDGET = UUID(int=5)


def _want(usd: str = "1", tokens: int = 10) -> Part:
    return Part.of([Want(BUDGET, "", D(usd), tokens, 1)])


def _take(calls: int, ends_in_s: float | None = None) -> Take:
    window = WindowState(
        window=7,
        budget=BUDGET,
        subject="",
        limit_usd=D(100),
        spent_usd=D(20),
        reserved_usd=D(30),
        limit_tokens=None,
        spent_tokens=0,
        reserved_tokens=0,
        limit_requests=None,
        requests=0,
        limit_open=None,
        open=1,
        window_start=NOON,
        resets_at=None if ends_in_s is None else NOON + timedelta(seconds=ends_in_s),
        fits=True,
    )
    return Take(calls, (window,), NOON)


def _float(calls: int = 10, ends_in_s: float | None = None) -> Float:
    made = Float(BUDGET, 1, 0)
    made.fill(_take(calls, ends_in_s), _want(), asked_at=100.0)
    return made


def test_a_float_gives_no_more_than_it_has() -> None:
    """It admits while each amount is there, and tells what is left beside all that others hold."""
    float = _float(3)
    first = float.draw(_want("2"), 100.0)
    assert first is not None and first.left_usd == (D(51),)
    assert float.draw(_want("2"), 100.0) is None
    assert float.draw(_want("1", 11), 100.0) is None or float.free_tokens[0] >= 0
    assert float.free_usd[0] >= 0 and float.free_tokens[0] >= 0


def test_a_float_ends_with_its_window() -> None:
    """Not a moment after the database's clock may have passed the end, as known before it was asked."""
    float = _float(10, ends_in_s=5)
    assert float.draw(_want(), 104.9) is not None
    assert float.draw(_want(), 105.0) is None


def test_what_is_closed_is_counted_once() -> None:
    """All that was free goes back with the closing; a call that was not sent is told afterwards."""
    float = _float(10)
    drawn = float.draw(_want(), 100.0)
    assert drawn is not None
    unused = float.close()
    assert (unused.usd, unused.tokens, unused.requests) == ((D(9),), (90,), (9,))
    assert float.draw(_want(), 100.0) is None
    assert not float.put_back(drawn.hold)
    assert float.calls == 0
    open = _float(10)
    drawn = open.draw(_want(), 100.0)
    assert drawn is not None and open.put_back(drawn.hold)
    assert open.close().usd == (D(10),)


def test_a_float_is_low_below_half() -> None:
    """Then more is asked for behind the calls' back."""
    float = _float(4)
    lows = []
    for _ in range(4):
        assert float.draw(_want(), 100.0) is not None
        lows.append(float.low)
    assert lows == [False, False, True, True]


def test_demand_follows_the_last_second() -> None:
    """Four calls in a second want a float, of twice what would come in one; after a pause they don't."""
    demand = Demand(_want(), 0.0)
    sizes = []
    for number in range(150):
        demand.seen(_want(), number * 0.01)
        sizes.append(demand.wanted(number * 0.01))
    assert sizes[:4] == [0, 0, 0, 80]
    assert all(198 <= size <= 220 for size in sizes[10:])
    assert demand.wanted(3.5) == 0
    demand.seen(_want(), 10.0)
    assert demand.wanted(10.0) == 0


async def crash(process: Replica) -> None:
    """As kill -9 leaves it."""
    await process.budgets.floats.stop()
    await process.budgets.owner.close()
    for task in process.ledger._tasks:
        task.cancel()
    process.ledger._tasks = []
    process.ledger._journal._resources.close()
    process.crashed = True


async def test_many_denied_calls_look_together() -> None:
    """However many are denied on a counter, one of them asks for floats of others, and all learn what came of it."""
    asked: list[Sequence[int]] = []
    other, back = UUID(int=8), asyncio.Event()

    class Counting:
        async def float_recall(self, owner: int, windows: Sequence[int]) -> list[UUID]:
            asked.append(windows)
            return [] if back.is_set() else [other]

    full = _full(floats=1)
    floats = floating.Floats(
        cast(BudgetStore, Counting()),
        owner=cast(Owner, SimpleNamespace(number=1)),
        link=Link(),
        settled=cast(Any, None),
        lost=lambda: 0,
    )
    deadline = asyncio.get_running_loop().time() + WAIT_S
    waiting = [asyncio.ensure_future(floats.clear([full], deadline)) for _ in range(50)]
    waiting[0].cancel()
    await until(lambda: len(asked) > 2)
    back.set()
    assert await asyncio.gather(*waiting[1:]) == [True] * 49
    assert len(asked) < 50
    # What is asked afterwards is asked anew.
    before = len(asked)
    assert await floats.clear([full], deadline)
    assert len(asked) == before + 1


def _full(*, floats: int) -> WindowState:
    """A counter without room."""
    nothing = D(0)
    return WindowState(
        window=3,
        budget=UUID(int=1),
        subject="",
        limit_usd=D(1),
        spent_usd=nothing,
        reserved_usd=D(1),
        limit_tokens=None,
        spent_tokens=0,
        reserved_tokens=0,
        limit_requests=None,
        requests=0,
        limit_open=None,
        open=1,
        floats=floats,
        window_start=NOON,
        resets_at=None,
        fits=False,
    )
