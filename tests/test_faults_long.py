"""Nothing is lost, at length: what `test_faults.py` shows in seconds, as long and as often as it takes to trust it."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import resource
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from farebox.embedded_postgres import running_dsn
from support.chaos import KINDS, chaos, kind_of
from support.crash import compare, crash_rounds
from support.disk import fill, small_disk
from support.http import RawClient
from support.postgres import PostgresServer
from support.process import (
    FareboxProcess,
    StartFailed,
    embedded_postgres_pid,
    installed,
    open_files,
    resident_kb,
    state,
    until,
    until_ready,
)
from support.provider import FakeProvider
from support.traffic import (
    CHAT,
    Held,
    Traffic,
    ask,
    is_whole,
    model_of,
    outcomes,
    request,
    settings,
    until_stored,
    well_behaved,
)

pytestmark = pytest.mark.long


@pytest.fixture
async def provider() -> AsyncIterator[FakeProvider]:
    """A provider that answers every request properly."""
    async with FakeProvider(well_behaved) as provider:
        yield provider


@pytest.mark.parametrize("seed", [11, 12])
async def test_every_attempt_of_many_killed_lives_is_accounted_for(
    provider: FakeProvider, database: str, tmp_path: Path, seed: int
) -> None:
    """Twelve rounds of kill -9 under load: a row for each attempt the provider saw, none twice."""
    traffic = Traffic(provider, random.Random(seed))
    async with installed(tmp_path, settings(str(tmp_path / "data"), provider.base_url, database=database)) as farebox:
        tally = await crash_rounds(farebox, traffic, rounds=12, clients=20)
        last = await farebox.start()
        assert await last.stop() == 0, last.output
    compare(await outcomes(database), traffic, tally, clients=20)
    print(tally)


async def test_every_attempt_of_many_killed_lives_with_their_database_is_accounted_for(
    provider: FakeProvider, tmp_path: Path
) -> None:
    """Eight rounds on the embedded database, every other one with a kill -9 for Postgres as well."""
    traffic = Traffic(provider, random.Random(13))
    data = tmp_path / "data"

    def kill_postgres_too(number: int) -> None:
        pid = embedded_postgres_pid(data)
        if number % 2 and pid is not None:
            os.kill(pid, signal.SIGKILL)

    async with installed(tmp_path, settings(str(data), provider.base_url)) as farebox:
        tally = await crash_rounds(farebox, traffic, rounds=8, clients=20, before_kill=kill_postgres_too)
        await farebox.start()
        dsn = await running_dsn(data)
        assert dsn is not None
        compare(await until_stored(dsn, set(traffic.seen)), traffic, tally, clients=20)
    print(tally)


async def test_a_minute_without_postgres_costs_neither_a_call_nor_a_row(
    provider: FakeProvider, postgres: PostgresServer, database: str, tmp_path: Path
) -> None:
    """Sixty seconds of traffic with Postgres stopped: no client sees an error, every row is there afterwards."""
    traffic = Traffic(provider, random.Random(14))
    async with installed(tmp_path, settings(str(tmp_path / "data"), provider.base_url, database=database)) as farebox:
        process = await farebox.start()
        traffic.begin(process.port, farebox.key, 10)
        await traffic.more(20)
        await asyncio.to_thread(postgres.stop)
        try:
            for _ in range(60):
                await asyncio.sleep(1)  # the outage itself, not a wait for something
                assert (await state(process, "/healthz"))[0] == 200
                assert (await state(process, "/readyz"))[0] == 503
            during = len(traffic.whole)
        finally:
            await asyncio.to_thread(postgres.start)
        await until_ready(process, True)
        await traffic.end()
        rows = await until_stored(database, set(traffic.seen))
        assert (traffic.broken, dict(traffic.refused)) == (set(), {})
        assert rows.keys() == traffic.seen.keys() == traffic.whole
        assert set(rows.values()) == {"complete"}
        assert await process.stop() == 0, process.output
        print(f"{during} calls answered by the end of the outage, {len(rows)} rows")


async def test_a_frozen_postgres_is_no_different_from_one_that_is_away(
    provider: FakeProvider, postgres: PostgresServer, database: str, tmp_path: Path
) -> None:
    """A database that takes connections and never answers: calls go on, batches that may have arrived come once."""
    traffic = Traffic(provider, random.Random(15))
    config = settings(str(tmp_path / "data"), provider.base_url, database=database, ledger={"drain_batch_rows_max": 20})
    config["database"] |= {"statement_timeout_s": 2, "connect_timeout_s": 2}
    async with installed(tmp_path, config) as farebox:
        process = await farebox.start()
        traffic.begin(process.port, farebox.key, 8)
        for _ in range(3):
            await traffic.more(50)
            frozen = await backends(postgres)
            for pid in frozen:
                os.kill(pid, signal.SIGSTOP)
            try:
                assert (await until_ready(process, False))["database"] == "away"
                await asyncio.sleep(3)  # longer than a statement may take
            finally:
                for pid in frozen:
                    os.kill(pid, signal.SIGCONT)
            await until_ready(process, True)
        await traffic.end()
        rows = await until_stored(database, set(traffic.seen))
        assert (traffic.broken, dict(traffic.refused)) == (set(), {})
        assert rows.keys() == traffic.seen.keys() == traffic.whole
        assert await process.stop() == 0, process.output


async def backends(postgres: PostgresServer) -> list[int]:
    """The server's processes that speak to clients, the postmaster first."""
    parent = embedded_postgres_pid(postgres.folder)
    assert parent is not None
    children = Path(f"/proc/{parent}/task/{parent}/children")
    if not children.exists():
        pytest.skip("the processes of a server can't be listed here")
    return [parent, *map(int, children.read_text().split())]


async def test_a_long_backlog_drains_into_a_database_that_keeps_dying(
    provider: FakeProvider, postgres: PostgresServer, database: str, tmp_path: Path
) -> None:
    """Two thousand rows, Postgres killed six times on the way: each arrives, none twice."""
    traffic = Traffic(provider, random.Random(16))
    config = settings(str(tmp_path / "data"), provider.base_url, database=database, ledger={"drain_batch_rows_max": 10})
    async with installed(tmp_path, config) as farebox:
        process = await farebox.start()
        traffic.begin(process.port, farebox.key, 10)
        await traffic.more(10)
        await asyncio.to_thread(postgres.stop)
        try:
            await traffic.more(2000, timeout_s=120)
            await traffic.end()
        finally:
            await asyncio.to_thread(postgres.start)
        for _ in range(6):
            await until_ready(process, True, timeout_s=40)
            pid = embedded_postgres_pid(postgres.folder)
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await until(lambda old=pid: embedded_postgres_pid(postgres.folder) not in (None, old), "it is up again")  # type: ignore[misc]
        rows = await until_stored(database, set(traffic.seen))
        assert rows.keys() == traffic.seen.keys() == traffic.whole
        assert await process.stop() == 0, process.output


async def test_a_farebox_killed_while_postgres_is_away_loses_nothing(
    provider: FakeProvider, postgres: PostgresServer, database: str, tmp_path: Path
) -> None:
    """The journal outlives a kill -9, a start that fails for want of a database, and brings every row in the end."""
    traffic = Traffic(provider, random.Random(17))
    config = settings(str(tmp_path / "data"), provider.base_url, database=database)
    config["database"]["connect_timeout_s"] = 1
    async with installed(tmp_path, config) as farebox:
        process = await farebox.start()
        traffic.begin(process.port, farebox.key, 8)
        await traffic.more(10)
        await asyncio.to_thread(postgres.stop)
        try:
            await traffic.more(200)
            await process.kill()
            await traffic.end()
            for _ in range(2):
                with pytest.raises(StartFailed) as failed:
                    await farebox.start()
                assert failed.value.code == 1
                assert "database" in failed.value.output and "Traceback" not in failed.value.output
        finally:
            await asyncio.to_thread(postgres.start)
        again = await farebox.start()
        rows = await until_stored(database, set(traffic.seen))
        assert {rows[model] for model in traffic.whole} == {"complete"}
        assert set(rows.values()) <= {"complete", "farebox_cut"}
        assert await again.stop() == 0, again.output


async def test_a_stop_while_postgres_is_away_leaves_the_rows_to_the_next_start(
    postgres: PostgresServer, database: str, tmp_path: Path
) -> None:
    """SIGTERM with open streams and no database: exit code 0, and the next life brings every row."""
    held = Held()
    async with FakeProvider(held) as provider:
        config = settings(str(tmp_path / "data"), provider.base_url, database=database, shutdown_timeout_s=0)
        async with installed(tmp_path, config) as farebox:
            process = await farebox.start()
            calls = [asyncio.create_task(ask(process.port, farebox.key, f"m-{n}", stream=True)) for n in range(4)]
            await until(lambda: len(provider.requests) == 4, "all are under way")
            await asyncio.to_thread(postgres.stop)
            try:
                held.of("m-0").set()
                assert is_whole(await calls[0], stream=True)
                assert await process.stop() == 0, process.output
                assert process.log("events wait in the journal for the next start")
            finally:
                await asyncio.to_thread(postgres.start)
            await asyncio.gather(*calls)
            assert await outcomes(database) == {}
            again = await farebox.start()
            rows = await until_stored(database, {f"m-{n}" for n in range(4)})
            assert rows == {"m-0": "complete", "m-1": "farebox_cut", "m-2": "farebox_cut", "m-3": "farebox_cut"}
            assert await again.stop() == 0


async def test_a_living_process_adopts_the_journal_of_a_dead_one(database: str, tmp_path: Path) -> None:
    """Of two processes on one folder one is killed; the other brings its rows without being restarted."""
    held = Held()
    async with FakeProvider(held) as provider:
        data = str(tmp_path / "data")
        lazy = settings(data, provider.base_url, database=database, ledger={"drain_interval_ms": 60000})
        async with installed(tmp_path, lazy) as farebox:
            doomed = await farebox.start()
            farebox.write(settings(data, provider.base_url, database=database))
            living = await farebox.start()
            held.of("done").set()
            assert is_whole(await ask(doomed.port, farebox.key, "done", stream=True), stream=True)
            call = asyncio.create_task(ask(doomed.port, farebox.key, "open", stream=True))
            await until(lambda: len(provider.requests) == 2, "a call is under way")
            await doomed.kill()
            await asyncio.gather(call, return_exceptions=True)
            assert await until_stored(database, {"done", "open"}) == {"done": "complete", "open": "farebox_cut"}
            assert len(living.log("adopting the journal")) == 1
            assert await living.stop() == 0


# -- shortages ---------------------------------------------------------------------------------------


async def test_a_full_disk_under_the_embedded_database_passes(provider: FakeProvider, tmp_path: Path) -> None:
    """Journal and Postgres on one full disk: first rows wait, then calls are refused; with room all is as before."""
    traffic = Traffic(provider, random.Random(19))
    with small_disk(tmp_path / "disk", 220 * 1024) as disk:
        async with installed(tmp_path, settings(str(disk / "data"), provider.base_url)) as farebox:
            process = await farebox.start()
            traffic.begin(process.port, farebox.key, 8)
            for _ in range(2):
                await traffic.more(50)
                fill(disk / "filler")
                async with asyncio.timeout(60):
                    while (await state(process, "/readyz"))[1]["journal"] == "ok":
                        await asyncio.sleep(0.05)
                assert (await state(process, "/healthz"))[0] == 200
                (disk / "filler").unlink()
                await until_ready(process, True, timeout_s=60)
            await traffic.end()
            dsn = await running_dsn(disk / "data")
            assert dsn is not None
            rows = await until_stored(dsn, set(traffic.seen))
            assert rows.keys() == traffic.seen.keys() == traffic.whole
            assert set(rows.values()) == {"complete"}
            assert (traffic.broken, set(traffic.refused), traffic.retry_after_missing) == (set(), {503}, 0)
            assert await process.stop() == 0, process.output
            assert not process.log("an event was lost")


async def test_a_farebox_killed_on_a_full_disk_starts_on_it_again(
    postgres: PostgresServer, database: str, tmp_path: Path
) -> None:
    """The journal that could not grow is read, its open calls are finished in the room set aside for them."""
    held = Held()
    async with FakeProvider(held) as provider:
        with small_disk(tmp_path / "disk", 2560) as disk:
            config = settings(str(disk), provider.base_url, database=database)
            async with installed(tmp_path, config) as farebox:
                process = await farebox.start()
                calls = [asyncio.create_task(ask(process.port, farebox.key, f"m-{n}", stream=True)) for n in range(100)]
                await until(lambda: len(provider.requests) == 100, "all are under way")
                await asyncio.to_thread(postgres.stop)
                try:
                    for n in range(50):
                        held.of(f"m-{n}").set()
                    done = await asyncio.gather(*calls[:50])
                    assert all(is_whole(answer, stream=True) for answer in done)
                    fill(disk / "filler")
                    await process.kill()
                    await asyncio.gather(*calls, return_exceptions=True)
                finally:
                    await asyncio.to_thread(postgres.start)
                again = await farebox.start()
                rows = await until_stored(database, {f"m-{n}" for n in range(100)})
                assert rows == {f"m-{n}": "complete" if n < 50 else "farebox_cut" for n in range(100)}
                assert await again.stop() == 0, again.output


@pytest.mark.skipif(sys.platform != "linux", reason="another process's limits are set by prlimit")
async def test_running_out_of_descriptors_passes(provider: FakeProvider, database: str, tmp_path: Path) -> None:
    """A flood of idle connections takes every descriptor: no row is lost by it, and with them gone all is as before."""
    traffic = Traffic(provider, random.Random(20))
    async with installed(tmp_path, settings(str(tmp_path / "data"), provider.base_url, database=database)) as farebox:
        process = await farebox.start()
        traffic.begin(process.port, farebox.key, 6)
        await traffic.more(50)
        limit = open_files(process.pid) + 4
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (limit, 4096))
        idle = [await asyncio.open_connection("127.0.0.1", process.port) for _ in range(60)]
        await until(lambda: open_files(process.pid) >= limit, "every descriptor is taken")
        await asyncio.sleep(3)  # the shortage itself, not a wait for something
        for _, writer in idle:
            writer.close()
        await traffic.more(200)
        await traffic.end()
        rows = await until_stored(database, set(traffic.seen))
        assert {rows[model] for model in traffic.whole} == {"complete"}
        # What could not be connected to has a row that says so.
        assert {rows[model] for model in rows.keys() - traffic.whole} <= {"upstream_error", "client_gone"}
        assert set(traffic.refused) <= {502, 503}
        assert (await state(process, "/readyz"))[0] == 200
        assert await process.stop() == 0, process.output
        assert not process.log("an event was lost")


# -- soak --------------------------------------------------------------------------------------------

SOAK_S = 60
WARM_UP_S = 15
CLIENTS = 16


class Soak:
    """Clients that ask for every kind of misbehaviour, some of which leave early, for a while."""

    def __init__(self, provider: FakeProvider) -> None:
        self.rng = random.Random(18)
        self.seen: Counter[str] = Counter()
        self.strange: list[str] = []
        self._provider = provider
        self._numbers = itertools.count()
        self._stopping = False

    async def client(self, port: int, key: str) -> None:
        while not self._stopping:
            leaver = self.rng.random() < 0.2
            kind = self.rng.choice(list(KINDS))
            model = f"{kind}-{'leaver-' if leaver else ''}{next(self._numbers)}"
            try:
                async with asyncio.timeout(60), RawClient(port) as client:
                    body = json.dumps(request(model, stream=self.rng.random() < 0.7)).encode()
                    await client.send("POST", CHAT, [("Authorization", f"Bearer {key}")], body)
                    if leaver:
                        await asyncio.sleep(self.rng.uniform(0, 0.1))  # not to wait: the moment is to be any
                        client.abort()
                        continue
                    answer = await client.answer()
            except (ConnectionError, asyncio.IncompleteReadError) as exc:
                self.strange.append(f"{model}: {type(exc).__name__}")
                continue
            if kind == "proper" and not (answer.status == 200 and answer.clean):
                self.strange.append(f"{model}: {answer.status} {answer.clean}")
            if kind in ("cut", "reset", "short", "bad_chunk") and answer.status == 200 and answer.clean:
                self.strange.append(f"{model}: a truncated answer looks whole")

    def collect(self) -> None:
        """Count what the provider saw and let go of it: a soak would fill this process's memory."""
        taken, self._provider.requests[:] = list(self._provider.requests), []
        self.seen.update(model_of(received) for received in taken)

    async def run(self, process: FareboxProcess, key: str, seconds: float) -> None:
        """So long; then until the calls under way are over."""
        self._stopping = False
        clients = [asyncio.create_task(self.client(process.port, key)) for _ in range(CLIENTS)]
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while loop.time() < end:
            await asyncio.sleep(1)
            self.collect()
        self._stopping = True
        await asyncio.gather(*clients)
        self.collect()


@pytest.mark.skipif(sys.platform != "linux", reason="memory and descriptors are read from /proc")
async def test_a_provider_at_its_worst_costs_no_row_and_no_memory(database: str, tmp_path: Path) -> None:
    """A minute of cuts, resets, garbage, huge lines and silence: a row per attempt that says how it ended."""
    async with FakeProvider(chaos) as provider:
        config = settings(str(tmp_path / "data"), provider.base_url, database=database)
        async with installed(tmp_path, config) as farebox:
            process = await farebox.start()
            soak = Soak(provider)
            await soak.run(process, farebox.key, WARM_UP_S)
            warm_kb, warm_files = resident_kb(process.pid), open_files(process.pid)
            await soak.run(process, farebox.key, SOAK_S)
            end_kb, end_files = resident_kb(process.pid), open_files(process.pid)
            print(f"{sum(soak.seen.values())} attempts, {warm_kb} -> {end_kb} kB, {warm_files} -> {end_files} files")
            rows = await until_stored(database, set(soak.seen))
            assert max(soak.seen.values()) == 1
            assert {model for model in rows if model not in soak.seen and rows[model] != "client_gone"} == set()
            wrong = {model: outcome for model, outcome in rows.items() if outcome not in allowed(model)}
            assert not wrong, dict(list(wrong.items())[:10])
            assert not soak.strange, soak.strange[:10]
            assert end_kb < 1.25 * warm_kb + 20_000, "memory grows"
            assert end_files <= warm_files + 2 * CLIENTS, "descriptors leak"
            assert await process.stop() == 0, process.output
            assert process.log("stopping")[0]["open_calls"] == 0
            assert not [line for line in process.log("") if line["level"] == "error"], process.output[-3000:]


def allowed(model: str) -> frozenset[str]:
    """The outcomes that a row of `model` may have."""
    _, outcomes = KINDS[kind_of(model)]
    return outcomes | {"client_gone"} if "-leaver-" in model else outcomes
