"""Budgets while things break: the database away, processes silent, killed, and back."""

from __future__ import annotations

import asyncio
import random
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from farebox.budgets import Settings
from farebox.budgets.lives import Lives
from farebox.errors import Unavailable
from farebox.store import Store
from support.budgets import ANN, BOB, PROMPT, WAIT_S, Replica, put, replica, until
from support.postgres import PostgresServer

TESTS = Path(__file__).parent
QUICK = Settings(reserve_timeout_s=0.3, lease_s=0.5, poll_s=0.05)


async def held(store: Store) -> tuple[Decimal, Decimal, int]:
    """What the only counter says: spent, held, open."""
    async with store.connection() as connection:
        row = await connection.fetchrow("SELECT spent_usd, reserved_usd, open FROM farebox.budget_window")
        assert row is not None
        return row["spent_usd"], row["reserved_usd"], row["open"]


async def owners(store: Store) -> int:
    """How many owners are alive."""
    async with store.connection() as connection:
        number: int = await connection.fetchval("SELECT count(*) FROM farebox.owner WHERE NOT dead")
        return number


# -- the database away -------------------------------------------------------------------------------


async def test_postgres_away_and_back(postgres: PostgresServer, database: str, store: Store, tmp_path: Path) -> None:
    """While the database is away reserves fail in time and extensions say so; then all goes on and nothing is held."""
    await put(store, limit_usd=Decimal(10))
    async with replica(database, tmp_path, settings=QUICK._replace(lease_s=30)) as running:
        before = await running.reserve("1")
        after = await running.reserve("1")
        await asyncio.to_thread(postgres.stop)
        try:
            running.settle(before, "0.5")
            answers = await asyncio.gather(*(running.reserve("1") for _ in range(5)), return_exceptions=True)
            assert {type(answer) for answer in answers} == {Unavailable}
            assert all(isinstance(answer, Unavailable) and answer.headers["retry-after"] for answer in answers)
            assert running.budgets.link.away
            assert await running.budgets.extend(after.id, Decimal(2), 0) is None
            assert running.budgets.applying  # definitions stay
            running.budgets.release(after.id)
        finally:
            await asyncio.to_thread(postgres.start)
        await until(lambda: not running.budgets.link.away)
        assert await running.budgets.releases.flush(WAIT_S)
        assert await running.ledger.settled(WAIT_S)
        assert await held(store) == (Decimal("0.5"), 0, 0)
        assert (await running.reserve("9.5")).state == "open"


async def test_a_frozen_database_costs_a_call_no_more_than_its_time(
    database: str, store: Store, tmp_path: Path
) -> None:
    """A reserve that hangs in the database is answered in time, and given back when it was made after all."""
    await put(store, limit_usd=Decimal(10))
    async with replica(database, tmp_path, settings=QUICK._replace(lease_s=30)) as running:
        await running.reserve("1")
        async with store.connection() as connection, connection.transaction():
            await connection.execute("SELECT FROM farebox.budget_window FOR UPDATE")
            with pytest.raises(Unavailable):
                await running.reserve("2")
        await until(lambda: not running.budgets.link.away)
        await running.budgets._reserving.close()
        assert await running.budgets.releases.flush(WAIT_S)
        assert await held(store) == (0, 1, 1)
        assert (await running.reserve("9")).state == "open"


async def test_a_killed_backend_is_not_noticed(database: str, store: Store, tmp_path: Path) -> None:
    """Connections cut under a reserve are replaced, and it is asked again: no call fails, none is held twice."""
    await put(store, limit_usd=Decimal(1000))
    async with replica(database, tmp_path) as running:
        asking: list[asyncio.Task[object]] = []
        for _ in range(20):
            asking += [asyncio.create_task(running.reserve("1")) for _ in range(5)]
            await asyncio.sleep(0.002)
            async with store.connection() as connection:
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE pid <> pg_backend_pid() AND datname = current_database() AND query ILIKE '%reserve%'"
                )
        await asyncio.gather(*asking)
        assert await held(store) == (0, 100, 100)


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_storms_of_everything_leave_nothing_held(database: str, store: Store, tmp_path: Path, seed: int) -> None:
    """Callers that wait, leave at random and are cut off by killed backends, on two processes: no limit is passed at
    any moment, nothing stays held, and what is spent is the sum of the rows."""
    await put(store, "all", limit_usd=Decimal(40))
    await put(store, "each", scope="key", limit_usd=Decimal(15), limit_open=8)
    chance = random.Random(seed)
    async with replica(database, tmp_path / "one") as one, replica(database, tmp_path / "two") as two:
        calling = [asyncio.create_task(_caller(running, chance)) for running in (one, two) for _ in range(30)]
        while not all(task.done() for task in calling):
            await asyncio.sleep(chance.random() * 0.3)
            async with store.connection() as connection:
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity WHERE"
                    " pid <> pg_backend_pid() AND datname = current_database() ORDER BY random() LIMIT 2) AS victims"
                )
                over = "SELECT count(*) FROM farebox.budget_window WHERE spent_usd + reserved_usd > limit_usd"
                assert await connection.fetchval(over) == 0
        assert sum(await asyncio.gather(*calling)) > 0
        for running in (one, two):
            await running.budgets._reserving.close()
            assert await running.budgets.releases.flush(WAIT_S)
            assert await running.ledger.settled(WAIT_S)
            assert running.budgets.lines.waiting == 0
    async with store.connection() as connection:
        windows = await connection.fetch("SELECT * FROM farebox.budget_window")
        [(spent,)] = await connection.fetch("SELECT coalesce(sum(cost_usd), 0) FROM farebox.usage")
    assert {(window["reserved_usd"], window["open"]) for window in windows} == {(0, 0)}
    assert sum(window["spent_usd"] for window in windows) == 2 * spent


async def _caller(running: Replica, chance: random.Random) -> int:
    """One client's calls, one after the other; how many were let in."""
    admitted = 0
    for _ in range(60):
        call = asyncio.create_task(_call(running, chance))
        if chance.random() < 0.25:
            await asyncio.sleep(chance.random() * 0.02)
            call.cancel()
        [answer] = await asyncio.gather(call, return_exceptions=True)
        assert isinstance(answer, bool | asyncio.CancelledError | Unavailable), answer
        admitted += answer is True
    return admitted


async def _call(running: Replica, chance: random.Random) -> bool:
    usd = Decimal(chance.randint(1, 400)) / 100
    grant = await running.reserve(str(usd), chance.choice((ANN, BOB)), wait_s=chance.choice((0, 0.05, 0.5)))
    if grant.state != "open":
        return False
    if chance.random() < 0.1:
        running.budgets.release(grant.id)
        return False
    running.begin(grant)
    try:
        await asyncio.sleep(chance.random() * 0.02)
    finally:
        running.settle(grant, str(usd * chance.randint(0, 5) / 1000), begin=False)
    return True


# -- silence -----------------------------------------------------------------------------------------


def silence(running: Replica) -> None:
    """Stop the heartbeats, as a process that hangs does."""
    for task in running.budgets.owner._tasks:
        task.cancel()


async def test_a_silent_process_is_charged_by_another(database: str, store: Store, tmp_path: Path) -> None:
    """What a silent process holds is charged after a lease; when it wakes it goes on as another owner, and the true
    cost of its call takes the place of the charge."""
    await put(store, limit_usd=Decimal(10))
    async with (
        replica(database, tmp_path / "one", settings=QUICK) as one,
        replica(database, tmp_path / "two", settings=QUICK),
    ):
        grant = await one.reserve("4")
        silence(one)
        first = one.budgets.owner.number
        async with asyncio.timeout(WAIT_S):
            while await held(store) != (4, 0, 0):
                await asyncio.sleep(0.02)
        assert (await one.reserve("1")).state == "open"
        assert one.budgets.owner.number != first and one.budgets.owner.renewed == 1
        one.settle(grant, "0.25")
        assert await one.ledger.settled(WAIT_S)
        assert await held(store) == (Decimal("0.25"), 1, 1)


@pytest.mark.long
async def test_a_beating_process_is_left_alone(database: str, store: Store, tmp_path: Path) -> None:
    """A call that runs for many leases stays held as long as its process beats."""
    await put(store, limit_usd=Decimal(10))
    async with (
        replica(database, tmp_path / "one", settings=QUICK) as one,
        replica(database, tmp_path / "two", settings=QUICK) as two,
    ):
        await one.reserve("4")
        swept = await asyncio.gather(*(_sweep_later(running, delay) for running in (one, two) for delay in (0.6, 1.2)))
        assert swept == [0, 0, 0, 0]
        assert await held(store) == (0, 4, 1)
        assert one.budgets.owner.renewed == 0


async def _sweep_later(running: Replica, delay_s: float) -> int:
    await asyncio.sleep(delay_s)
    return await running.budgets.owner._chores.sweep(running.budgets.owner.number, QUICK.lease_s, 100)


# -- ends --------------------------------------------------------------------------------------------


async def test_an_orderly_end_leaves_nothing(database: str, store: Store, tmp_path: Path) -> None:
    """After a stop no owner is left alive, nothing is held, and the next life of the journal has nothing to find."""
    await put(store, limit_usd=Decimal(10))
    async with replica(database, tmp_path, boot="boot") as running:
        running.settle(await running.reserve("1"), "1")
        running.budgets.release((await running.reserve("2")).id)
    assert await held(store) == (1, 0, 0)
    assert await owners(store) == 0
    assert Lives(tmp_path / "worker-0", "boot").left == ()


async def test_the_next_life_gives_back_what_was_never_sent(database: str, store: Store, tmp_path: Path) -> None:
    """After a crash a call in the journal is charged its hold, one reserved but not begun costs nothing."""
    await put(store, limit_usd=Decimal(10))
    async with replica(database, tmp_path / "one", boot="boot") as one:
        sent = await one.reserve("3")
        one.begin(sent)
        await one.reserve("5")
        crash(one)
        async with replica(database, tmp_path / "one", boot="boot") as next_life:
            assert next_life.ledger.folder == one.ledger.folder
            async with asyncio.timeout(WAIT_S):
                while await held(store) != (3, 0, 0):
                    await asyncio.sleep(0.01)
            assert next_life.budgets._lives is not None
            await until(lambda: next_life.budgets._lives.left == ())  # type: ignore[union-attr]


async def test_who_adopts_a_journal_gives_back_what_was_never_sent(database: str, store: Store, tmp_path: Path) -> None:
    """A neighbour that finishes a dead process's journal charges what was begun and gives back the rest, at once."""
    await put(store, limit_usd=Decimal(10))
    async with replica(database, tmp_path, boot="boot") as one, replica(database, tmp_path, boot="boot") as two:
        assert one.ledger.folder != two.ledger.folder
        sent = await one.reserve("3")
        one.begin(sent)
        await one.reserve("5")
        await two.reserve("1")
        crash(one)
        async with asyncio.timeout(WAIT_S):
            while await held(store) != (3, 1, 1):
                await asyncio.sleep(0.01)


@pytest.mark.long
async def test_after_kill_9_only_what_was_begun_is_charged(database: str, store: Store, tmp_path: Path) -> None:
    """The same with a real process that is killed: its begun call costs its hold, the other one nothing, at once."""
    await put(store, limit_usd=Decimal(10))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "support.budget_holder",
        database,
        str(tmp_path),
        cwd=TESTS,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(WAIT_S):
            while b"held" not in await process.stdout.readline():
                assert process.returncode is None
        assert await held(store) == (0, 8, 2)
    finally:
        process.kill()
        await process.wait()
    async with replica(database, tmp_path, boot="boot", settings=PROMPT._replace(lease_s=3600)):
        async with asyncio.timeout(WAIT_S):
            while await held(store) != (3, 0, 0):
                await asyncio.sleep(0.01)


async def test_after_a_reboot_what_is_held_is_charged(database: str, store: Store, tmp_path: Path) -> None:
    """Where the machine was down a reserve without a begin may have been sent: it is left for the sweep to charge."""
    await put(store, limit_usd=Decimal(10))
    async with replica(database, tmp_path / "one", boot="boot") as one:
        await one.reserve("5")
        crash(one)
        async with replica(database, tmp_path / "one", boot="later", settings=QUICK):
            async with asyncio.timeout(WAIT_S):
                while await held(store) != (5, 0, 0):
                    await asyncio.sleep(0.02)


def crash(running: Replica) -> None:
    """Leave everything as kill -9 does."""
    silence(running)
    for task in running.ledger._tasks:
        task.cancel()
    running.ledger._tasks = []
    running.ledger._journal._resources.close()
    running.crashed = True
