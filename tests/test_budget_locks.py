"""One lock order for all who touch budgets: shown by stopping each of them halfway, and under load.

Reservations by id, windows by id, postings, cost_correction. Whoever keeps to it can't stand in a circle,
so that no deadlock has to be found and retried.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import asyncpg
import pytest

from farebox.payload import encode
from farebox.records import Budget, Want
from farebox.store import Store
from farebox.store.budgets import Ask
from farebox.store.corrections import Corrections, Cost
from support.events import event
from support.reserves import LEASE_S, Teller, ask

D = Decimal
_WINDOW = "SELECT FROM farebox.budget_window WHERE id = $1 FOR UPDATE"
_RESERVATION = "SELECT FROM farebox.reservation WHERE id = $1 FOR UPDATE"
_TOTAL = "SELECT FROM farebox.cost_correction WHERE $1::text IS NULL FOR UPDATE"
_POSTING = """
INSERT INTO farebox.usage_entry (id, posting_no, request_id, attempt, started_at, finished_at, provider, dialect,
    endpoint, operation, outcome)
VALUES ($1, 1, $1, 1, now(), now(), 'p', 'd', 'e', 'chat', 'complete')
"""


@pytest.fixture
async def sessions(database: str) -> AsyncIterator[list[asyncpg.Connection]]:
    """Three connections: for the clock, to stand in the way, and to look."""
    connections = [await asyncpg.connect(database) for _ in range(3)]
    yield connections
    for connection in connections:
        await connection.close()


class Scene:
    """Two windows, `low` and `high` by id, and calls that want something of both, the high one first."""

    def __init__(self, teller: Teller, blocker: asyncpg.Connection, looker: asyncpg.Connection) -> None:
        self.teller, self.blocker, self.looker = teller, blocker, looker
        self.budgets: list[Budget] = []
        self.low = self.high = 0

    async def begin(self) -> None:
        self.budgets = [await self.teller.budget(name, limit_usd=D(1000)) for name in ("low", "high")]
        for budget in self.budgets:
            await self.held([budget])
        self.low, self.high = [(await self.teller.window(budget)).window for budget in self.budgets]
        assert self.low < self.high

    async def held(self, budgets: list[Budget] | None = None) -> Ask:
        """A call that is open, over the high window and the low one."""
        made = self.fresh(budgets)
        assert (await self.teller.reserve(made)).state == "open"
        return made

    def fresh(self, budgets: list[Budget] | None = None) -> Ask:
        """A call that has not reserved yet."""
        made = ask()
        chosen = budgets or list(reversed(self.budgets))
        return Ask(made.id, tuple(Want(budget.id, "", D(1), 0) for budget in chosen), made.facts)

    @asynccontextmanager
    async def stopped(self, lock: str, on: Any, work: Awaitable[Any]) -> AsyncIterator[None]:
        """`work` while it waits for a lock that is held against it; afterwards it comes through."""
        transaction = self.blocker.transaction()
        await transaction.start()
        await self.blocker.execute(lock, on)
        task = asyncio.ensure_future(work)
        try:
            await self.until_it_waits(task)
            yield
        finally:
            await transaction.rollback()
        await task

    async def until_it_waits(self, task: asyncio.Future[Any]) -> None:
        mine = self.blocker.get_server_pid()
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid))"
        async with asyncio.timeout(20):
            while not await self.looker.fetchval(waiting, mine):
                assert not task.done(), "it needed no such lock"
                await asyncio.sleep(0.005)

    async def taken(self, lock: str, on: Any) -> bool:
        """Whether somebody has that lock now."""
        transaction = self.looker.transaction()
        await transaction.start()
        try:
            await self.looker.execute("SET LOCAL lock_timeout = '20ms'")
            await self.looker.execute(lock, on)
        except asyncpg.LockNotAvailableError:
            return True
        finally:
            await transaction.rollback()
        return False


@pytest.fixture
async def scene(store: Store, sessions: list[asyncpg.Connection]) -> Scene:
    """Ready to play."""
    clock, blocker, looker = sessions
    scene = Scene(await Teller.open(store, clock), blocker, looker)
    await scene.begin()
    return scene


async def test_windows_are_locked_by_their_number(scene: Scene) -> None:
    """Whoever waits for the high window has the low one; who waits for the low one has no other yet."""
    for make in _WORKS:
        work = await make(scene)
        async with scene.stopped(_WINDOW, scene.high, work.run()):
            assert await scene.taken(_WINDOW, scene.low), make.__name__
        work = await make(scene)
        async with scene.stopped(_WINDOW, scene.low, work.run()):
            assert not await scene.taken(_WINDOW, scene.high), make.__name__
    await scene.teller.check()


async def test_reservations_come_before_windows(scene: Scene) -> None:
    """Whoever waits for a window has the reservations it needs; who waits for a reservation has no window."""
    for make in (_settle, _extend, _release):
        work = await make(scene)
        async with scene.stopped(_WINDOW, scene.low, work.run()):
            assert await scene.taken(_RESERVATION, work.id), make.__name__
        work = await make(scene)
        async with scene.stopped(_RESERVATION, work.id, work.run()):
            assert not await scene.taken(_WINDOW, scene.low), make.__name__
    await scene.teller.check()


async def test_windows_come_before_postings_and_sums(scene: Scene) -> None:
    """Who waits for a window has posted nothing yet; who waits for the sum of corrections has its windows."""
    work = await _settle(scene)
    async with scene.stopped(_WINDOW, scene.high, work.run()):
        assert not await scene.taken(_POSTING, work.id)
    for make in (_reprice, _correct):
        work = await make(scene)
        async with scene.stopped(_WINDOW, scene.high, work.run()):
            assert not await scene.taken(_TOTAL, None), make.__name__
        work = await make(scene)
        async with scene.stopped(_TOTAL, None, work.run()):
            assert await scene.taken(_WINDOW, scene.high), make.__name__
    await scene.teller.check()


async def test_a_refusal_waits_for_nobody(scene: Scene) -> None:
    """A call that can't fit is refused while others hold every lock there is: storms of them don't stand in line."""
    full = await scene.teller.budget("full", limit_usd=D(1))
    await scene.held([full])
    window = (await scene.teller.window(full)).window
    async with scene.blocker.transaction():
        for number in (scene.low, window):
            await scene.blocker.execute(_WINDOW, number)
        async with asyncio.timeout(20):
            assert (await scene.teller.reserve(scene.fresh([scene.budgets[0], full]))).state == "denied"


async def test_the_last_cent_goes_to_one(scene: Scene) -> None:
    """Whoever waits while another takes the last of a window sees it taken, with one budget as with several."""
    for names in (["x"], ["y", "z"]):
        budgets = [await scene.teller.budget(name, limit_usd=D(3)) for name in names]
        await scene.held(budgets)
        first, second = scene.fresh(budgets), scene.fresh(budgets)
        transaction = scene.blocker.transaction()
        await transaction.start()
        await scene.blocker.execute(
            "SELECT farebox.reserve($1, $2, '{\"{}\"}', $3, $4, $5, $6, $7, $8)",
            *(scene.teller.owner, [first.id], [1] * len(names), [budget.id for budget in budgets], [""] * len(names)),
            *([D(2)] * len(names), [0] * len(names), [1] * len(names)),
        )
        task = asyncio.ensure_future(scene.teller.reserve(second))
        await scene.until_it_waits(task)
        await transaction.commit()
        assert (await task).state == "denied"
    await scene.teller.check()


async def test_nobody_is_born_with_an_old_limit(scene: Scene) -> None:
    """A window that opens while its limit is changed waits for the change, and has the new limit."""
    budget = await scene.teller.budget("fresh", limit_usd=D(5))
    change = "UPDATE farebox.budget SET limit_usd = 1 WHERE id = $1"
    transaction = scene.blocker.transaction()
    await transaction.start()
    await scene.blocker.execute(change, budget.id)
    task = asyncio.ensure_future(scene.teller.reserve(ask(budget, usd="3")))
    await scene.until_it_waits(task)
    await transaction.commit()
    grant = await task
    assert (grant.state, grant.windows[0].limit_usd) == ("denied", 1)


async def test_no_deadlock_under_load(scene: Scene, database: str) -> None:
    """Reserves, drains, extensions, releases, limit changes, reprices over shared budgets in both orders: none ever."""
    await _load(scene, database, calls=120)


@pytest.mark.long
async def test_no_deadlock_under_a_long_load(scene: Scene, database: str) -> None:
    """The same for longer."""
    await _load(scene, database, calls=4000)


async def _load(scene: Scene, database: str, *, calls: int) -> None:
    teller = scene.teller
    for number in range(4):
        scene.budgets.append(await teller.budget(f"b{number}", limit_usd=D(10**6), scope="team"))
    done: list[Ask] = []

    async def caller(number: int) -> None:
        for round in range(calls // 12):
            budgets = scene.budgets if (number + round) % 2 else list(reversed(scene.budgets))
            # New subjects all the time: windows are made in the midst of it.
            asks = [
                Ask(made.id, tuple(Want(b.id, f"s{round % 7}", D(1), 0) for b in budgets[part:]), made.facts)
                for part, made in enumerate((ask(), ask()))
            ]
            await teller.budgets.reserve(teller.owner, asks if number % 3 else asks[::-1])
            await teller.extend(asks[0].id, "2")
            if number % 4 == 0:
                await teller.budgets.release([asks[1].id, asks[0].id])
                continue
            events = [encode(event(id=one.id, cost_usd=D("1.5"), budget_ids=["b"])) for one in asks]
            await teller.store.insert_events(events if round % 2 else events[::-1])
            done.extend(asks)

    async def changer() -> None:
        for round in range(calls // 12):
            order = scene.budgets if round % 2 else list(reversed(scene.budgets))
            wanted = [{"name": b.name, "limit_usd": D(10**6 + round)} for b in order]
            await teller.budgets.put_budgets(wanted, "api", "test")

    async def pricer() -> None:
        corrections = Corrections(teller.store)
        for round in range(calls // 12):
            await corrections.post([Cost(one.id, 1, D(round + 1), "prices", "p") for one in done[-10:]])
            await asyncio.sleep(0)

    await asyncio.gather(*(caller(number) for number in range(12)), changer(), pricer())
    await teller.check()
    await scene.looker.execute("SELECT pg_stat_clear_snapshot()")
    assert await scene.looker.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == 0
    assert await scene.looker.fetchval("SELECT sum(open) FROM farebox.budget_window") == 2


# -- what is stopped halfway -------------------------------------------------------------------------


class Work:
    """Something to do about the call `id`."""

    def __init__(self, id: Any, run: Callable[[], Awaitable[Any]]) -> None:
        self.id, self.run = id, run


async def _reserve(scene: Scene) -> Work:
    made = scene.fresh()
    return Work(made.id, lambda: scene.teller.reserve(made))


async def _extend(scene: Scene) -> Work:
    made = await scene.held()
    return Work(made.id, lambda: scene.teller.extend(made.id, "2"))


async def _settle(scene: Scene) -> Work:
    made = await scene.held()
    return Work(made.id, lambda: scene.teller.settle(made.id, "1"))


async def _release(scene: Scene) -> Work:
    made = await scene.held()
    return Work(made.id, lambda: scene.teller.budgets.release([made.id]))


async def _reprice(scene: Scene) -> Work:
    work = await _settle(scene)
    await work.run()
    cost = Cost(work.id, 1, D(2), "prices", "p")
    return Work(work.id, lambda: Corrections(scene.teller.store).post([cost]))


async def _correct(scene: Scene) -> Work:
    work = await _settle(scene)
    await work.run()
    return Work(work.id, lambda: scene.teller.budgets.correct(work.id, D(3), "ann", "because"))


async def _sweep(scene: Scene, *left: Ask) -> Work:
    teller = scene.teller
    old, teller.owner = teller.owner, await teller.budgets.register("next")
    for one in left or [scene.fresh()]:
        await scene.teller.reserve(one, owner=old)
    await teller.sql.execute("UPDATE farebox.owner SET steady_since = steady_since - interval '1 hour'")
    await teller.sql.execute("UPDATE farebox.owner SET seen = seen - interval '1 hour' WHERE id = $1", old)
    return Work(None, lambda: teller.budgets.sweep(teller.owner, LEASE_S, 10))


async def _sweep_one_by_one(scene: Scene) -> Work:
    """Facts that can't be posted, of a call in the high window and, after it, of one in the low window."""
    ids = sorted((ask().id, ask().id))
    left = zip(ids, reversed(scene.budgets), strict=True)
    return await _sweep(
        scene, *(Ask(id, (Want(budget.id, "", D(1), 0),), b'{"started_at": "never"}') for id, budget in left)
    )


async def _change(scene: Scene) -> Work:
    wanted = [{"name": budget.name, "limit_usd": D(2000)} for budget in reversed(scene.budgets)]
    now = [{"name": budget.name, "limit_usd": D(1000)} for budget in scene.budgets]
    await scene.teller.budgets.put_budgets(now, "api", "test")
    return Work(None, lambda: scene.teller.budgets.put_budgets(wanted, "api", "test"))


_WORKS = (_reserve, _extend, _settle, _release, _reprice, _correct, _sweep, _sweep_one_by_one, _change)
