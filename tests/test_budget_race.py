"""Two replicas race for the money of twenty keys while backends are killed, and replicas killed and paused.

The truth is the provider's: what it was asked for and what it billed. Whatever happened, the truth of each strict
budget is within its limit, what was billed is charged, and nothing stays held. `FAREBOX_RACE_SEEDS=100` races more.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections import Counter
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import pytest

from farebox.store import Store, StoreUnavailable
from farebox.store.budgets import BudgetStore
from support.racer import callers_of

pytestmark = pytest.mark.long

SEEDS = range(int(os.environ.get("FAREBOX_RACE_SEEDS", "10")))
REPLICAS, CALLERS, KEYS = 2, 100, 20
LEASE_S = 0.5
END_S = 60.0
STARTS_MAX = 10
TESTS = Path(__file__).resolve().parent


class Race(NamedTuple):
    """What is raced for. `limits`: by scope, at the beginning, and so much more with each raise; any of them may be
    what ends it."""

    seconds: float
    limits: dict[str, Decimal]
    bound_max: int
    """Cents that a call may cost."""
    raised_every: int
    """Rounds of trouble."""


CROWD = Race(3.0, {"key": Decimal(4), "team": Decimal(15), "global": Decimal(50)}, 60, 4)
"""Every call is about a tenth of its key's money: each last cent is fought for."""
AFLOAT = Race(6.0, {"key": Decimal(4), "team": Decimal(15), "global": Decimal(50)}, 2, 40)
"""Every call is about a hundredth: processes hold ahead, until there is less, and again when limits are raised."""


class Provider:
    """Bills each call at once, before it answers: anything up to its bound."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.billed: dict[UUID, tuple[str, str, Decimal]] = {}
        """Key, team and cost by id."""
        self.drawn: set[UUID] = set()
        """Those that held out of a float."""

    async def __aenter__(self) -> Provider:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while line := await reader.readline():
                id, key, team, bound, how = line.decode().split()
                # As often the whole bound as something below it.
                cents = self._random.choice((int(bound), self._random.randint(0, int(bound))))
                assert UUID(id) not in self.billed, "sent twice"
                self.billed[UUID(id)] = (key, team, Decimal(cents) / 100)
                if how == "drawn":
                    self.drawn.add(UUID(id))
                writer.write(b"%d\n" % cents)
        writer.close()

    def truth(self) -> dict[tuple[str, str], Decimal]:
        """What was billed, by scope and subject."""
        sums: dict[tuple[str, str], Decimal] = {}
        for key, team, cost in self.billed.values():
            for counter in (("key", key), ("team", team), ("global", "all")):
                sums[counter] = sums.get(counter, Decimal(0)) + cost
        return sums


class Racers:
    """The replicas, each with a journal of its own."""

    def __init__(self, folder: Path, given: dict[str, Any]) -> None:
        self._folder = folder
        self._given = given
        self.running: list[asyncio.subprocess.Process] = []
        self._moved: dict[int, str] = {}

    @property
    def folders(self) -> list[str]:
        """All journals there are."""
        return [*(f"replica-{number}" for number in range(REPLICAS)), *self._moved.values()]

    def move(self, number: int) -> None:
        """Let replica `number` go on without its journal: what it held is swept, and its truth comes late."""
        self._moved[number] = f"moved-{number}"

    async def start(self, number: int) -> asyncio.subprocess.Process:
        """Replica `number`, on the journal it had before unless it has moved."""
        return await self.spawn(self._moved.get(number, f"replica-{number}"), callers=CALLERS, say="ready")

    async def spawn(self, folder: str, *, callers: int, say: str) -> asyncio.subprocess.Process:
        """A process on a journal. One whose first connection is killed is started again."""
        given = {**self._given, "folder": str(self._folder / folder), "callers": callers}
        for _ in range(STARTS_MAX):
            given["seed"] = f"{self._given['seed']}-{folder}-{len(self.running)}"
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "support.racer", json.dumps(given)),
                cwd=TESTS,
                stdout=asyncio.subprocess.PIPE,
            )
            self.running.append(process)
            assert process.stdout is not None
            async with asyncio.timeout(END_S):
                while line := (await process.stdout.readline()).decode().strip():
                    if line == say:
                        return process
            await process.wait()
        raise AssertionError("a replica does not come up")

    async def kill(self, process: asyncio.subprocess.Process) -> None:
        """kill -9."""
        if process.returncode is None:
            process.kill()
        await process.wait()

    async def close(self) -> None:
        for process in self.running:
            await self.kill(process)


async def limits(store: Store, race: Race, times: int) -> None:
    """Strict budgets of keys, of teams, and of all; with each raise the last cents are raced for again."""
    for scope, limit in race.limits.items():
        fields = {"scope": scope, "window": "total", "limit_usd": limit * times, "admission": "strict", "wait_s": 0.1}
        await BudgetStore(store).put_budget(scope, fields, "api", "test")


async def trouble(
    race: Race,
    seed: int,
    racers: Racers,
    replicas: list[asyncio.subprocess.Process],
    db: asyncpg.Connection,
    store: Store,
) -> None:
    """Kill backends, kill replicas, pause replicas, raise limits; see each time that no window is over its limit."""
    chance, ends = random.Random(seed), asyncio.get_running_loop().time() + race.seconds
    busy: dict[int, asyncio.Task[None]] = {}
    rounds = kills = 0

    async def restart(number: int) -> None:
        await racers.kill(replicas[number])
        if chance.random() < 0.4:
            racers.move(number)
        replicas[number] = await racers.start(number)

    try:
        while asyncio.get_running_loop().time() < ends or not kills:
            await asyncio.sleep(chance.uniform(0.02, 0.15))
            rounds += 1
            what, number = chance.random(), chance.randrange(REPLICAS)
            if what < 0.5:
                await db.execute(
                    "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid() "
                    "ORDER BY random() LIMIT $1) AS found",
                    chance.randint(1, 3),
                )
            elif number not in busy or busy[number].done():
                if what < 0.7 or not kills:
                    busy[number] = asyncio.create_task(restart(number))
                    kills += 1
                elif what < 0.8:
                    busy[number] = asyncio.create_task(pause(replicas[number], LEASE_S * chance.uniform(0.3, 2.5)))
            if rounds % race.raised_every == 0:
                with suppress(StoreUnavailable):  # its own backend may be the one that was killed
                    await limits(store, race, 1 + rounds // race.raised_every)
            over = await db.fetch(
                "SELECT * FROM farebox.budget_window WHERE spent_usd + reserved_usd > limit_usd + overrun_usd"
            )
            assert over == []
    finally:
        await asyncio.gather(*busy.values())


async def pause(process: asyncio.subprocess.Process, seconds: float) -> None:
    """Long enough to be taken for dead, or not quite."""
    process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(seconds)
    process.send_signal(signal.SIGCONT)


async def settled(racers: Racers, db: asyncpg.Connection) -> None:
    """Replicas without callers bring in what the journals hold, and sweep what the dead still held."""
    last = [await racers.spawn(folder, callers=0, say="drained") for folder in racers.folders]
    held = "SELECT (SELECT count(*) FROM farebox.reservation WHERE state = 'open') + count(*) FROM farebox.budget_float"
    async with asyncio.timeout(END_S):
        while await db.fetchval(held):
            await asyncio.sleep(0.1)
    for process in last:
        process.terminate()
        assert await process.wait() == 0


def counter(scope: str, subject: str) -> tuple[str, str]:
    """A window by the names that the provider was told."""
    return scope, f"key-{UUID(subject).int - 1}" if scope == "key" else subject


async def invariants(db: asyncpg.Connection, provider: Provider) -> None:
    windows = await db.fetch(
        """
        SELECT b.scope, w.*, coalesce(rows.usd, 0) AS rows_usd
        FROM farebox.budget_window AS w JOIN farebox.budget AS b ON b.id = w.budget_id
        LEFT JOIN (
            SELECT window_id, sum(cost_usd) AS usd FROM (
                SELECT DISTINCT ON (id) id, cost_usd, window_ids FROM farebox.usage_entry ORDER BY id, posting_no DESC
            ) AS newest CROSS JOIN LATERAL unnest(window_ids) AS window_id GROUP BY 1
        ) AS rows ON rows.window_id = w.id
        """
    )
    truth = provider.truth()
    counters = {counter(w["scope"], w["subject"]): w for w in windows}
    assert counters.keys() >= truth.keys()
    for name, w in counters.items():
        assert (w["reserved_usd"], w["open"], w["floats"], w["overrun_usd"]) == (0, 0, 0, 0), name
        assert w["spent_usd"] == w["rows_usd"], name
        billed = truth.get(name, Decimal(0))
        assert billed <= w["spent_usd"] <= w["limit_usd"], name


async def rows(db: asyncpg.Connection, provider: Provider) -> Counter[str]:
    """Each billed call has a row at its cost, or, where its process was killed before it knew, at its hold."""
    newest = await db.fetch(
        "SELECT DISTINCT ON (id) id, cost_usd, usage_source, posting_no FROM farebox.usage_entry "
        "ORDER BY id, posting_no DESC"
    )
    by_id = {row["id"]: row for row in newest}
    for id, (_, _, cost) in provider.billed.items():
        row = by_id[id]
        assert row["cost_usd"] == cost if row["usage_source"] == "provider" else row["cost_usd"] >= cost
    for id, row in by_id.items():
        # Nobody was sent: charged at the hold after a crash, or given back.
        assert id in provider.billed or row["usage_source"] in ("hold", "none")
    return Counter(row["usage_source"] + (" late" if row["posting_no"] > 1 else "") for row in newest)


@pytest.mark.parametrize("seed", SEEDS)
async def test_no_race_overspends(database: str, store: Store, tmp_path: Path, seed: int) -> None:
    """After two replicas of 100 callers on 20 keys, and every kill and pause, the provider billed no strict budget
    more than its limit; spent is the rows, which are no less than the bills; and nothing is held."""
    provider = await run(CROWD, database, store, tmp_path, seed)
    assert len(provider.billed) > 100, "hardly anything was sent: this shows nothing"


@pytest.mark.parametrize("seed", SEEDS)
async def test_no_race_afloat_overspends(database: str, store: Store, tmp_path: Path, seed: int) -> None:
    """The same where calls hold out of floats, which die with their replicas and are inherited with their journals."""
    provider = await run(AFLOAT, database, store, tmp_path, seed)
    assert len(provider.drawn) > 100, "hardly anything was held ahead: this shows nothing"


async def run(race: Race, database: str, store: Store, folder: Path, seed: int) -> Provider:
    await limits(store, race, 1)
    db = await asyncpg.connect(database)
    assert len(callers_of(KEYS)) == KEYS
    async with Provider(seed) as provider:
        given = {"database": database, "port": provider.port, "seed": seed, "keys": KEYS, "lease_s": LEASE_S}
        given |= {"bound_max": race.bound_max}
        racers = Racers(folder, given)
        try:
            replicas = [await racers.start(number) for number in range(REPLICAS)]
            await trouble(race, seed, racers, replicas, db, store)
            for process in replicas:
                await racers.kill(process)
            await settled(racers, db)
        finally:
            await racers.close()
        await invariants(db, provider)
        sources = await rows(db, provider)
        truth = provider.truth()
    await db.close()
    print(
        f"seed {seed}: {len(provider.billed)} calls, {len(provider.drawn)} out of floats, billed "
        f"{truth['global', 'all']} USD, rows {dict(sources)}"
    )
    return provider
