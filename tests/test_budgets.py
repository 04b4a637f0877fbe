"""Budgets of a process on a real database: admitted exactly, waited for fairly, given back always."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any
from uuid import uuid4

import msgspec
import pytest
import pytest_asyncio

from farebox.budgets import Settings, waiting
from farebox.budgets.waiting import Case, Lines
from farebox.records import Want
from farebox.store.budgets import Ask, Grant
from support.budgets import PROMPT, WAIT_S, Home, Replica, put, replica, until
from support.postgres import PostgresServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEN: dict[str, Any] = {"limit_usd": Decimal(10)}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def home(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Home]:
    """Two processes for all of these tests."""
    folder = tmp_path_factory.mktemp("budgets")
    async with (
        postgres.database() as database,
        replica(database, folder / "one") as one,
        replica(database, folder / "two") as two,
    ):
        yield Home(one, two)


@pytest_asyncio.fixture(loop_scope="module")
async def one(home: Home) -> Replica:
    """A process, called by a key with 10 dollars in all."""
    return await home.key(TEN)


def money(window: Any) -> tuple[Decimal, Decimal, int]:
    """What is spent, held and open."""
    return window.spent_usd, window.reserved_usd, window.open - 1


# -- reserve, settle, release ------------------------------------------------------------------------


async def test_a_call_holds_and_settles(one: Replica) -> None:
    """What a call may cost is held while it runs and replaced by what it cost; a released one costs nothing."""
    grant = await one.reserve("4")
    assert grant.state == "open"
    assert money(await one.window()) == (0, 4, 1)
    one.settle(grant, "3.5")
    assert await one.ledger.settled(WAIT_S)
    assert money(await one.window()) == (Decimal("3.5"), 0, 0)
    grant = await one.reserve("6")
    one.budgets.release(grant.id)
    assert await one.budgets.releases.flush(WAIT_S)
    assert money(await one.window()) == (Decimal("3.5"), 0, 0)


async def test_a_running_call_holds_more(one: Replica) -> None:
    """An extension is a larger total of the same hold, granted as far as the limit goes."""
    grant = await one.reserve("4")
    more = await one.budgets.extend(grant.id, Decimal(9), 0)
    assert more is not None and more.state == "open"
    assert money(await one.window()) == (0, 9, 1)
    too_much = await one.budgets.extend(grant.id, Decimal(11), 0)
    assert too_much is not None and too_much.state == "denied"
    assert money(await one.window()) == (0, 9, 1)


async def test_many_at_once_are_admitted_exactly(one: Replica) -> None:
    """Of 300 concurrent asks for a dollar of ten exactly ten are admitted, in few statements."""
    grants = await asyncio.gather(*(one.reserve("1") for _ in range(300)))
    assert sum(grant.state == "open" for grant in grants) == 10
    assert money(await one.window()) == (0, 10, 10)


async def test_two_replicas_admit_what_one_would(home: Home) -> None:
    """Two processes racing for the last dollars admit together exactly what is affordable."""
    one, two = await home.both(TEN)
    grants = await asyncio.gather(*(running.reserve("1") for _ in range(60) for running in (one, two)))
    assert sum(grant.state == "open" for grant in grants) == 10
    assert money(await two.window()) == (0, 10, 10)


async def test_one_bad_ask_spoils_no_other(one: Replica) -> None:
    """An ask that the database can't take fails alone; those in the same statement are admitted."""
    bad, applied = one.ask_of("1")
    want = bad.wants[0]
    bad = type(bad)(bad.id, (Want(want.budget, want.subject, Decimal(-1), 0),), bad.facts)
    answers = await asyncio.gather(
        one.reserve("1"),
        one.budgets.reserve(bad, wait_s=0, applied=applied),
        one.reserve("1"),
        return_exceptions=True,
    )
    assert [getattr(answer, "state", "failed") for answer in answers] == ["open", "failed", "open"]


# -- cancelled ---------------------------------------------------------------------------------------


async def test_a_cancelled_reserve_holds_nothing(one: Replica) -> None:
    """Calls whose client leaves at any moment of the reserve leave nothing held."""
    for delay in range(30):
        asking = [asyncio.create_task(one.reserve("0.1")) for _ in range(3)]
        for _ in range(delay):
            await asyncio.sleep(0)
        for task in asking:
            task.cancel()
        for answer in await asyncio.gather(*asking, return_exceptions=True):
            if not isinstance(answer, BaseException):
                one.budgets.release(answer.id)
    await one.budgets._reserving.close()
    assert await one.budgets.releases.flush(WAIT_S)
    assert money(await one.window()) == (0, 0, 0)


# -- waiting -----------------------------------------------------------------------------------------


async def test_a_call_waits_for_open_holds(one: Replica) -> None:
    """A call that an open hold keeps out is admitted when that call settles for less."""
    first = await one.reserve("10")
    waiting = asyncio.create_task(one.reserve("5", wait_s=WAIT_S))
    await until(lambda: one.budgets.lines.waiting == 1)
    one.settle(first, "1")
    assert (await waiting).state == "open"
    assert one.budgets.lines.waiting == 0


async def test_a_call_waits_for_holds_of_another_process(home: Home) -> None:
    """A hold that another process gives back lets in who waits here."""
    one, two = await home.both(TEN)
    first = await one.reserve("10")
    waiting = asyncio.create_task(two.reserve("5", wait_s=WAIT_S))
    await until(lambda: two.budgets.lines.waiting == 1)
    one.budgets.release(first.id)
    assert (await waiting).state == "open"


async def test_nobody_waits_in_vain(one: Replica) -> None:
    """Where what is spent leaves no room by itself, or nothing is held, the answer comes without a wait."""
    assert (await one.reserve("11", wait_s=WAIT_S)).state == "denied"
    one.settle(await one.reserve("9"), "9")
    held = await one.reserve("1")
    assert held.state == "open"
    assert (await one.reserve("2", wait_s=WAIT_S)).state == "denied"
    assert one.budgets.lines.waiting == 0


async def test_a_wait_ends(one: Replica) -> None:
    """When its time is up a call is denied, with the counters as they are."""
    await one.reserve("10")
    grant = await one.reserve("5", wait_s=0.05)
    assert (grant.state, grant.windows[0].reserved_usd, grant.windows[0].fits) == ("denied", 10, False)


async def test_first_come_first_served(one: Replica) -> None:
    """Those who wait are admitted in the order in which they came, whatever they ask for."""
    holds = [await one.reserve("2") for _ in range(5)]
    order: list[int] = []

    async def wait(number: int, usd: str) -> None:
        assert (await one.reserve(usd, wait_s=WAIT_S)).state == "open"
        order.append(number)

    tasks = []
    for number, usd in enumerate(("2", "3", "0.5", "1", "0.5")):
        tasks.append(asyncio.create_task(wait(number, usd)))
        await until(lambda number=number: one.budgets.lines.waiting == number + 1)  # type: ignore[misc]
    for hold in holds:
        one.settle(hold, "0.1")
        assert await one.ledger.settled(WAIT_S)
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3, 4]


async def test_nobody_overtakes_a_line(one: Replica) -> None:
    """While a large call waits a small one that would fit stands behind it, and one that may not wait is told so."""
    first = await one.reserve("9")
    large = asyncio.create_task(one.reserve("5", wait_s=WAIT_S))
    await until(lambda: one.budgets.lines.waiting == 1)
    small = asyncio.create_task(one.reserve("1", wait_s=WAIT_S))
    refused = await one.reserve("1")
    assert (refused.state, [window.fits for window in refused.windows]) == ("denied", [False])
    assert (small.done(), large.done()) == (False, False)
    one.settle(first, "1")
    assert [(await large).state, (await small).state] == ["open", "open"]


async def test_who_stands_behind_asks_when_its_time_is_up(one: Replica) -> None:
    """A small call behind a large one that never fits is admitted at its own deadline, not refused with it."""
    await one.reserve("9")
    large = asyncio.create_task(one.reserve("5", wait_s=WAIT_S))
    await until(lambda: one.budgets.lines.waiting == 1)
    assert (await one.reserve("1", wait_s=0.05)).state == "open"
    large.cancel()
    await asyncio.gather(large, return_exceptions=True)


async def test_the_waiting_are_bounded(one: Replica) -> None:
    """With as many waiting as may wait the next one is answered without a wait."""
    one.budgets.change((), Settings(poll_s=0.05, waiting_max=2))
    first = await one.reserve("10")
    waiting = [asyncio.create_task(one.reserve("1", wait_s=WAIT_S)) for _ in range(2)]
    await until(lambda: one.budgets.lines.waiting == 2)
    assert (await one.reserve("1", wait_s=WAIT_S)).state == "denied"
    one.settle(first, "0")
    assert {grant.state for grant in await asyncio.gather(*waiting)} == {"open"}
    one.budgets.change((), PROMPT)


async def test_who_leaves_a_line_lets_the_next_one_ask(one: Replica) -> None:
    """A client that leaves while it waits holds nothing and keeps nobody behind it waiting."""
    await one.reserve("9")
    large = asyncio.create_task(one.reserve("5", wait_s=WAIT_S))
    await until(lambda: one.budgets.lines.waiting == 1)
    small = asyncio.create_task(one.reserve("1", wait_s=WAIT_S))
    await until(lambda: one.budgets.lines.waiting == 2)
    large.cancel()
    assert (await small).state == "open"
    assert money(await one.window()) == (0, 10, 2)


async def test_lines_of_different_counters_do_not_meet(home: Home) -> None:
    """A key that waits for its own budget keeps nobody else waiting, also where both share another budget."""
    team = f"team-{uuid4()}"
    await put(home.one.store, team, scope="team", only=[team], limit_usd=Decimal(100))
    running = await home.key(TEN)
    ann = msgspec.structs.replace(running.caller, team=team)
    bob = msgspec.structs.replace((await home.key(TEN)).caller, team=team)
    first = await running.reserve("10", ann)
    assert len(first.windows) == 2
    waiting = asyncio.create_task(running.reserve("5", ann, wait_s=WAIT_S))
    await until(lambda: running.budgets.lines.waiting == 1)
    assert (await running.reserve("5", bob, wait_s=WAIT_S)).state == "open"
    running.settle(first, "0")
    assert (await waiting).state == "open"


async def test_a_budget_that_only_warns_is_not_waited_for(home: Home) -> None:
    """A budget that warns lets calls pass over its limit, and is no reason why another one's denial would last."""
    running = await home.key({"limit_usd": Decimal(1), "on_exceed": "warn"}, TEN)
    first = await running.reserve("8")
    assert first.state == "open"
    waiting = asyncio.create_task(running.reserve("5", wait_s=WAIT_S))
    await until(lambda: running.budgets.lines.waiting == 1)
    running.settle(first, "3")
    assert (await waiting).state == "open"


async def test_parallel_requests_wait_for_a_slot(home: Home) -> None:
    """A limit on open requests is a hold like any other: the next one goes when one ends."""
    running = await home.key({"limit_open": 1})
    first = await running.reserve("0")
    assert (await running.reserve("0")).state == "denied"
    waiting = asyncio.create_task(running.reserve("0", wait_s=WAIT_S))
    await until(lambda: running.budgets.lines.waiting == 1)
    running.settle(first, "0")
    assert (await waiting).state == "open"


# -- memory ------------------------------------------------------------------------------------------


async def test_an_unknown_hold_may_be_given_back(one: Replica) -> None:
    """Releasing an id that was never reserved does no harm, and a reserve of it that arrives later is not made."""
    ask, applied = one.ask_of("1")
    one.budgets.release(ask.id)
    one.budgets.release(uuid4())
    assert await one.budgets.releases.flush(WAIT_S)
    assert (await one.budgets.reserve(ask, wait_s=0, applied=applied)).state == "gone"
    assert one.budgets.releases.waiting == 0


async def test_many_lines_share_the_asks(one: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often settlements arrive, the heads of the lines ask only so often in a second."""
    monkeypatch.setattr(waiting, "ASKS_MAX", 10)  # once in fifty seconds for so many
    asked = 0

    async def ask(case: Case) -> Grant:
        nonlocal asked
        asked += 1
        return full(case)

    def full(case: Case) -> Grant:
        [want] = case.ask.wants
        state = msgspec.structs.replace(found, budget=want.budget, subject=want.subject, fits=False)
        return Grant(case.ask.id, "denied", (state,))

    [found] = (await one.reserve("10")).windows
    lines = Lines(ask, waiting_max=500, poll_s=1000.0)
    tasks = []
    for number in range(500):
        case = Case(Ask(uuid4(), (Want(found.budget, str(number), Decimal(1), 0),), b""), frozenset())
        place = (found.budget, str(number))
        tasks.append(asyncio.create_task(lines.wait(case, place, WAIT_S, denied=full(case))))
    await until(lambda: lines.waiting == 500)
    for _ in range(1000):
        lines.wake()
    await until(lambda: asked >= 500)
    for _ in range(1000):
        lines.wake()
    for _ in range(20):
        await asyncio.sleep(0)
    assert asked == 500
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
