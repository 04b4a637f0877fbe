"""Floats in the one lock order: shown by stopping all who touch them halfway, and under load.

Floats by id, reservations by id, windows by id, postings.
"""

from __future__ import annotations

import asyncio
from decimal import Decimal
from uuid import UUID, uuid4

import pytest

from farebox.payload import encode
from farebox.records import FloatHold, Want
from farebox.store import Store
from farebox.store.budgets import Draw, Fenced
from farebox.store.owners import Owners
from support.events import event
from support.reserves import LEASE_S
from test_budget_locks import _POSTING, _RESERVATION, _WINDOW, Scene, Work, scene, sessions

__all__ = ["scene", "sessions"]

D = Decimal
_FLOAT = "SELECT FROM farebox.budget_float WHERE id = $1 FOR UPDATE"
_NEW = "INSERT INTO farebox.reservation (id, state, done_at) VALUES ($1, 'void', now())"


async def test_windows_are_locked_by_their_number(scene: Scene) -> None:
    """Whoever waits for the high window has the low one; who waits for the low one has no other yet."""
    for make in (*_WITH_FLOATS, _take, _recall, _orphan):
        work = await make(scene)
        async with scene.stopped(_WINDOW, scene.high, work.run()):
            assert await scene.taken(_WINDOW, scene.low), make.__name__
        work = await make(scene)
        async with scene.stopped(_WINDOW, scene.low, work.run()):
            assert not await scene.taken(_WINDOW, scene.high), make.__name__
    await scene.teller.check()


async def test_floats_come_before_windows(scene: Scene) -> None:
    """Whoever waits for a window has its floats; who waits for a float has no window."""
    for make in _WITH_FLOATS:
        work = await make(scene)
        async with scene.stopped(_WINDOW, scene.low, work.run()):
            assert await scene.taken(_FLOAT, work.id), make.__name__
        work = await make(scene)
        async with scene.stopped(_FLOAT, work.id, work.run()):
            assert not await scene.taken(_WINDOW, scene.low), make.__name__
    await scene.teller.check()


async def test_floats_come_before_reservations(scene: Scene) -> None:
    """Whoever waits for a float has no reservation and posted nothing; who waits for a reservation has its float."""
    for make in (_settle, _settle_detached, _detach):
        work = await make(scene)
        async with scene.stopped(_FLOAT, work.id, work.run()):
            assert not await scene.taken(_NEW if make is not _settle_detached else _RESERVATION, work.call), (
                make.__name__
            )
            assert not await scene.taken(_POSTING, work.call), make.__name__
        for lock in (_NEW,) if make is _detach else (_RESERVATION,) if make is _settle_detached else ():
            work = await make(scene)
            async with scene.stopped(lock, work.call, work.run()):
                assert await scene.taken(_FLOAT, work.id), make.__name__
    await scene.teller.check()


async def test_who_settles_and_who_detaches_a_call_find_each_other(scene: Scene) -> None:
    """A settlement out of a float that waits for a detach charges the reservation; a detach that waits makes none."""
    sql = scene.teller.sql
    for first, second in (_detach, _settle), (_settle, _detach):
        one, id = await _room(scene), event().id
        works = [await make(scene, one, id) for make in (first, second)]
        async with scene.stopped(_WINDOW, scene.low, works[0].run()):
            waiting = asyncio.ensure_future(works[1].run())
            await asyncio.sleep(0.05)
            assert not waiting.done()
        await waiting
        assert await sql.fetchval("SELECT count(*) FROM farebox.reservation WHERE id = $1", id) == 0
        assert await sql.fetchval("SELECT count(*) FROM farebox.usage_entry WHERE id = $1", id) == 1
        held = await sql.fetchval("SELECT held_usd FROM farebox.budget_float WHERE id = $1", one.id)
        assert held == [D(7), D(7)]
        await scene.teller.check()


async def test_no_float_is_made_for_the_dead(scene: Scene, store: Store) -> None:
    """Whoever declares an owner dead waits for a float it is just making, and finds it; after that it makes none."""
    teller, owners = scene.teller, Owners(store)
    owner, label = await teller.budgets.register("dying"), "dying"
    id = uuid4()
    async with scene.stopped(_WINDOW, scene.low, teller.budgets.float_take(owner, id, wants(scene), 8, fresh=True)):
        fencing = asyncio.ensure_future(owners.fence([label]))
        await asyncio.sleep(0.05)
        assert not fencing.done()
    await fencing
    assert await owners.floats_held_by([label]) == [id]
    with pytest.raises(Fenced):
        await teller.budgets.float_take(owner, uuid4(), wants(scene), 8, fresh=True)
    await teller.budgets.float_end([id])
    await teller.check()


async def test_no_deadlock_with_floats(scene: Scene) -> None:
    """Processes that take, fill, draw, settle, detach, recall and end over the same windows: none ever."""
    await _load(scene, rounds=8)


@pytest.mark.long
async def test_no_deadlock_with_floats_for_long(scene: Scene) -> None:
    """The same for longer."""
    await _load(scene, rounds=300)


async def _load(scene: Scene, *, rounds: int) -> None:
    teller = scene.teller
    windows = [scene.low, scene.high]

    async def process(number: int) -> None:
        owner = await teller.budgets.register(f"p{number}")
        for round in range(rounds):
            made = [await _float(scene, owner=owner, backwards=bool((number + n) % 2)) for n in range(2)]
            held = [one for one in made if one.windows]
            calls = [(event().id, one) for one in held for _ in range(3)]
            events = [encode(event(id=id, cost_usd=D("0.5"), budget_ids=["b"], from_float=one)) for id, one in calls]
            draws = [Draw(id, one, event_) for (id, one), event_ in zip(calls, events, strict=True)]
            await asyncio.gather(
                teller.store.insert_events(events if round % 2 else events[::-1]),
                teller.store.insert_events(events[::-1]),
                teller.budgets.float_detach(owner, draws[:2]),
                teller.budgets.float_recall(owner, windows[::-1]) if round % 4 == 3 else asyncio.sleep(0),
                *(teller.budgets.float_give(one, closing=True) for one in held[::-1]),
                teller.budgets.reserve(owner, [scene.fresh() for _ in range(2)]),
            )
            await teller.store.insert_events(events)
            await teller.budgets.float_end([one.id for one in made])

    await asyncio.gather(*(process(number) for number in range(5)))
    await teller.check()
    await scene.looker.execute("SELECT pg_stat_clear_snapshot()")
    assert await scene.looker.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == 0
    assert await scene.looker.fetchval("SELECT count(*) FROM farebox.budget_float") == 0


# -- what is stopped halfway -------------------------------------------------------------------------


class OfCall(Work):
    """Something to do about the float `id` for the call `call`."""

    call: UUID


def wants(scene: Scene, *, backwards: bool = True) -> tuple[Want, ...]:
    budgets = reversed(scene.budgets[:2]) if backwards else scene.budgets[:2]
    return tuple(Want(budget.id, "", D(1), 0) for budget in budgets)


async def _float(scene: Scene, *, owner: int | None = None, backwards: bool = True) -> FloatHold:
    """A float over the high window and the low one; what a call holds of it."""
    id, asked = uuid4(), wants(scene, backwards=backwards)
    took = await scene.teller.budgets.float_take(owner or scene.teller.owner, id, asked, 8, fresh=True)
    n = len(asked) if took.calls else 0
    return FloatHold(id, tuple(w.window for w in took.windows) if n else (), (D(1),) * n, (0,) * n, (1,) * n)


async def _room(scene: Scene) -> FloatHold:
    """No window is barred by what was tried before."""
    await scene.teller.sql.execute("UPDATE farebox.budget_window SET no_floats_until = NULL")
    made = await _float(scene)
    assert made.windows
    return made


async def _take(scene: Scene) -> Work:
    await scene.teller.sql.execute("UPDATE farebox.budget_window SET no_floats_until = NULL")
    return Work(None, lambda: _float(scene))


async def _fill(scene: Scene) -> Work:
    one, teller = await _room(scene), scene.teller
    return Work(one.id, lambda: teller.budgets.float_take(teller.owner, one.id, wants(scene), 8, fresh=False))


async def _give(scene: Scene) -> Work:
    one = await _room(scene)
    return Work(one.id, lambda: scene.teller.budgets.float_give(one, closing=True))


async def _end(scene: Scene) -> Work:
    one = await _room(scene)
    return Work(one.id, lambda: scene.teller.budgets.float_end([one.id]))


async def _recall(scene: Scene) -> Work:
    await scene.teller.sql.execute("UPDATE farebox.budget_window SET no_floats_until = NULL")
    return Work(None, lambda: scene.teller.budgets.float_recall(scene.teller.owner, [scene.high, scene.low]))


async def _settle(scene: Scene, one: FloatHold | None = None, id: UUID | None = None) -> OfCall:
    one, id = one or await _room(scene), id or event().id
    row = encode(event(id=id, cost_usd=D("0.5"), budget_ids=["b"], from_float=one))
    work = OfCall(one.id, lambda: scene.teller.store.insert_events([row]))
    work.call = id
    return work


async def _detach(scene: Scene, one: FloatHold | None = None, id: UUID | None = None) -> OfCall:
    one, id = one or await _room(scene), id or event().id
    facts = encode(event(id=id, cost_usd=D(1), budget_ids=["b"], usage_source="hold", outcome="farebox_cut"))
    work = OfCall(one.id, lambda: scene.teller.budgets.float_detach(scene.teller.owner, [Draw(id, one, facts)]))
    work.call = id
    return work


async def _settle_detached(scene: Scene) -> OfCall:
    """Of a call that has its reservation already."""
    one, id = await _room(scene), event().id
    await (await _detach(scene, one, id)).run()
    return await _settle(scene, one, id)


async def _orphan(scene: Scene) -> Work:
    """The float of one that is dead for a day."""
    teller, sql = scene.teller, scene.teller.sql
    await sql.execute("UPDATE farebox.budget_window SET no_floats_until = NULL")
    gone, teller.owner = teller.owner, await teller.budgets.register("next")
    made = await _float(scene, owner=gone)
    assert made.windows
    await sql.execute("UPDATE farebox.owner SET steady_since = steady_since - interval '1 hour'")
    await sql.execute("UPDATE farebox.owner SET dead = true, seen = seen - interval '2 days' WHERE id = $1", gone)
    return Work(made.id, lambda: teller.budgets.sweep(teller.owner, LEASE_S, 10))


_WITH_FLOATS = (_fill, _give, _end, _settle, _settle_detached, _detach)
