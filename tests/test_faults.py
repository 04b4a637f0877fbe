"""Nothing is lost: real farebox processes are killed, starved and cut off, and the rows still say what happened.

Bounded and quick; the same at length is in `test_faults_long.py`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from farebox.embedded_postgres import EmbeddedPostgres, running_dsn
from support.crash import compare, crash_rounds
from support.disk import small_disk
from support.http import Answer, RawClient, call
from support.postgres import PostgresServer
from support.process import (
    FareboxProcess,
    Installation,
    StartFailed,
    embedded_postgres_pid,
    installed,
    state,
    until,
    until_ready,
)
from support.provider import FakeProvider, Received, Wire
from support.traffic import (
    CHAT,
    Held,
    Traffic,
    ask,
    document,
    events,
    is_whole,
    model_of,
    outcomes,
    request,
    send_document,
    settings,
    until_stored,
    well_behaved,
)


@pytest.fixture
async def provider() -> AsyncIterator[FakeProvider]:
    """A provider that answers every request properly."""
    async with FakeProvider(well_behaved) as provider:
        yield provider


# -- kill -9 -----------------------------------------------------------------------------------------


async def test_a_killed_farebox_accounts_for_every_attempt(
    provider: FakeProvider, database: str, tmp_path: Path
) -> None:
    """After kill -9 at a random moment under load there is one row for each attempt the provider saw."""
    traffic = Traffic(provider, random.Random(1))
    async with installed(tmp_path, settings(str(tmp_path / "data"), provider.base_url, database=database)) as farebox:
        tally = await crash_rounds(farebox, traffic, rounds=1, clients=20)
        last = await farebox.start()
        assert await last.stop() == 0, last.output
        assert not list(tmp_path.rglob("*.segment")), "something waits in the journal although all was delivered"
    compare(await outcomes(database), traffic, tally, clients=20)
    print(tally)


@pytest.mark.long
async def test_a_killed_farebox_with_its_own_database_accounts_for_every_attempt(
    provider: FakeProvider, tmp_path: Path
) -> None:
    """The same where Postgres goes down with farebox and is recovered by the next start."""
    traffic = Traffic(provider, random.Random(2))
    data = tmp_path / "data"
    async with installed(tmp_path, settings(str(data), provider.base_url)) as farebox:
        tally = await crash_rounds(farebox, traffic, rounds=2, clients=20)
        await farebox.start()
        dsn = await running_dsn(data)
        assert dsn is not None
        rows = await until_stored(dsn, set(traffic.seen))
        compare(rows, traffic, tally, clients=20)
    print(tally)


# -- Postgres away -----------------------------------------------------------------------------------


async def test_traffic_goes_on_while_postgres_is_away(
    provider: FakeProvider, postgres: PostgresServer, database: str, tmp_path: Path
) -> None:
    """Known keys are served without a single error, probes say what is up and what is not, every row arrives later."""
    traffic = Traffic(provider, random.Random(3))
    async with installed(tmp_path, settings(str(tmp_path / "data"), provider.base_url, database=database)) as farebox:
        process = await farebox.start()
        created = await farebox.run("keys", "create", "late", "--format", "json")
        late = json.loads(created.output)["key"]
        traffic.begin(process.port, farebox.key, 8)
        await traffic.more(20)
        await asyncio.to_thread(postgres.stop)
        try:
            assert (await until_ready(process, False))["database"] == "away"
            assert (await state(process, "/healthz"))[0] == 200
            unknown = await ask(process.port, late, "unknown", stream=False)
            assert unknown.status == 503 and unknown.header("retry-after")
            await traffic.more(200)
        finally:
            await asyncio.to_thread(postgres.start)
        assert (await until_ready(process, True))["database"] == "ok"
        assert (await ask(process.port, late, "m-late", stream=False)).status == 200
        await traffic.end()
        assert (traffic.broken, dict(traffic.refused)) == (set(), {})
        rows = await until_stored(database, set(traffic.seen))
        assert set(rows.values()) == {"complete"}
        assert rows.keys() == traffic.seen.keys() == traffic.whole | {"m-late"}
        assert await process.stop() == 0, process.output
        assert not process.log("an event was lost")


@pytest.mark.long
async def test_a_killed_embedded_postgres_comes_back_and_no_row_is_missing(
    provider: FakeProvider, tmp_path: Path
) -> None:
    """kill -9 of farebox's own database under traffic: it restarts by itself, clients notice nothing."""
    traffic = Traffic(provider, random.Random(4))
    data = tmp_path / "data"
    async with installed(tmp_path, settings(str(data), provider.base_url)) as farebox:
        process = await farebox.start()
        traffic.begin(process.port, farebox.key, 8)
        await traffic.more(50)
        pid = embedded_postgres_pid(data)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: embedded_postgres_pid(data) not in (None, pid), "Postgres is started again")
        await until_ready(process, True)
        await traffic.more(100)
        await traffic.end()
        dsn = await running_dsn(data)
        assert dsn is not None
        rows = await until_stored(dsn, set(traffic.seen))
        assert (traffic.broken, dict(traffic.refused)) == (set(), {})
        assert rows.keys() == traffic.seen.keys() == traffic.whole
        assert set(rows.values()) == {"complete"}


@pytest.mark.long
async def test_a_backlog_survives_a_database_that_keeps_dying(
    provider: FakeProvider, postgres: PostgresServer, database: str, tmp_path: Path
) -> None:
    """Postgres is killed again and again while the backlog drains into it: each event arrives, none twice."""
    traffic = Traffic(provider, random.Random(5))
    config = settings(str(tmp_path / "data"), provider.base_url, database=database, ledger={"drain_batch_rows_max": 10})
    async with installed(tmp_path, config) as farebox:
        process = await farebox.start()
        traffic.begin(process.port, farebox.key, 8)
        await traffic.more(10)
        await asyncio.to_thread(postgres.stop)
        try:
            await traffic.more(400)
            await traffic.end()
        finally:
            await asyncio.to_thread(postgres.start)
        stored = 0
        for _ in range(3):
            try:
                async with asyncio.timeout(20):
                    while (now := len(await outcomes(database))) <= stored:
                        await asyncio.sleep(0.005)
                stored = now
            except (OSError, TimeoutError):
                raise AssertionError("the backlog does not drain") from None
            pid = embedded_postgres_pid(postgres.folder)
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            # Its backends outlive it for a moment, and would say that the database is there.
            await until(lambda pid=pid: embedded_postgres_pid(postgres.folder) not in (None, pid), "it starts again")
            await until_ready(process, True)
        rows = await until_stored(database, set(traffic.seen))
        assert rows.keys() == traffic.seen.keys() == traffic.whole
        assert await process.stop() == 0, process.output


@pytest.mark.long
async def test_a_log_that_cannot_be_written_stops_nothing(
    provider: FakeProvider, postgres: PostgresServer, database: str, tmp_path: Path
) -> None:
    """With nobody to take its log (a closed pipe, a full disk) calls, drain and the watch on keys go on."""
    traffic = Traffic(provider, random.Random(7))
    config = settings(str(tmp_path / "data"), provider.base_url, database=database, auth={"key_poll_s": 0.1})
    async with installed(tmp_path, config) as farebox:
        process = await farebox.start()
        traffic.begin(process.port, farebox.key, 4)
        await traffic.more(10)
        process.stop_listening()
        await asyncio.to_thread(postgres.stop)
        try:
            await until_ready(process, False)
            await traffic.more(20)
        finally:
            await asyncio.to_thread(postgres.start)
        await traffic.end()
        assert (traffic.broken, dict(traffic.refused)) == (set(), {})
        await until_stored(database, set(traffic.seen))
        assert (await farebox.run("keys", "revoke", "first")).code == 0
        async with asyncio.timeout(10):
            while (await ask(process.port, farebox.key, "m-late", stream=False)).status != 401:
                await asyncio.sleep(0.05)
        assert await process.stop() == 0


# -- the journal's disk ------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for two journal segments of a megabyte."""
    with small_disk(tmp_path / "disk", 2560) as place:
        yield place


LONG_NAMES = [("x-farebox-tags", ",".join(f"tag{n}={'v' * 100}" for n in range(15)))]
"""Labels that make a record large, so that a journal is full soon."""


class Flood:
    """Calls until the journal refuses, and what became of them."""

    def __init__(self, process: FareboxProcess, key: str) -> None:
        self._process = process
        self._key = key
        self.accepted: set[str] = set()
        self._numbers = iter(range(1_000_000))

    async def one(self) -> Answer:
        model = f"flood-{next(self._numbers)}"
        answer = await ask(self._process.port, self._key, model, stream=False, headers=LONG_NAMES)
        if answer.status == 200:
            self.accepted.add(model)
        return answer

    async def until_refused(self) -> Answer:
        """The first refusal."""
        refusals: list[Answer] = []

        async def some() -> None:
            while not refusals:
                answer = await self.one()
                if answer.status != 200:
                    refusals.append(answer)

        async with asyncio.timeout(60):
            await asyncio.gather(*(some() for _ in range(8)))
        return refusals[0]

    async def until_accepted(self) -> None:
        """Try again until calls are taken."""
        async with asyncio.timeout(30):
            while (await self.one()).status != 200:
                await asyncio.sleep(0.05)


async def fills_up(farebox: Installation, held: Held, postgres: PostgresServer, database: str) -> None:
    """The whole story of a journal without room: see the tests that call this."""
    process = await farebox.start()
    key = farebox.key
    streams = [asyncio.create_task(ask(process.port, key, f"held-{n}", stream=n < 2)) for n in range(3)]
    flood = Flood(process, key)
    await flood.one()
    await asyncio.to_thread(postgres.stop)
    try:
        refused = await flood.until_refused()
        while (await flood.one()).status == 200:
            pass  # the calls that ended meanwhile made room for a few
        assert refused.status == 503 and refused.header("retry-after")
        assert json.loads(refused.body)["error"]["type"]
        messages = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hey"}]}
        body = json.dumps(messages).encode()
        anthropic = await call(process.port, "/v1/messages", body, key=key, headers=LONG_NAMES)
        assert anthropic.status == 503 and anthropic.header("retry-after")
        assert json.loads(anthropic.body)["type"] == "error"
        ready = await until_ready(process, False)
        assert (ready["database"], ready["journal"]) == ("away", "not writable")
        assert (await state(process, "/healthz"))[0] == 200
        for n in range(3):
            held.of(f"held-{n}").set()
        for n, stream in enumerate(streams):
            assert is_whole(await stream, stream=n < 2), "a running call does not finish on a full disk"
    finally:
        await asyncio.to_thread(postgres.start)
    assert (await until_ready(process, True))["journal"] == "ok", "a probe alone must find out that there is room"
    await flood.until_accepted()
    answered = flood.accepted | {f"held-{n}" for n in range(3)}
    rows = await until_stored(database, answered)
    assert rows == dict.fromkeys(answered, "complete")
    assert await process.stop() == 0, process.output
    assert not process.log("an event was lost")


async def patient(received: Received, wire: Wire, held: Held) -> None:
    """Holds what is to be held, answers all else."""
    if model_of(received).startswith("held-"):
        await held(received, wire)
    else:
        await send_document(wire, document(model_of(received), 2))


@pytest.fixture
async def holding() -> AsyncIterator[tuple[FakeProvider, Held]]:
    held = Held()
    async with FakeProvider(lambda received, wire: patient(received, wire, held)) as provider:
        yield provider, held


async def test_a_full_disk_refuses_new_calls_and_loses_none(
    holding: tuple[FakeProvider, Held], postgres: PostgresServer, database: str, tmp_path: Path, disk: Path
) -> None:
    """On a really full disk new calls get 503 in their dialect, running ones finish and are recorded, and it passes."""
    provider, held = holding
    config = settings(str(disk), provider.base_url, database=database)
    async with installed(tmp_path, config) as farebox:
        await fills_up(farebox, held, postgres, database)


async def test_a_journal_at_its_bound_refuses_new_calls_and_loses_none(
    holding: tuple[FakeProvider, Held], postgres: PostgresServer, database: str, tmp_path: Path
) -> None:
    """The same at ledger.journal_max_mb, where no small disk can be mounted."""
    provider, held = holding
    config = settings(str(tmp_path / "data"), provider.base_url, database=database, ledger={"journal_max_mb": 2})
    async with installed(tmp_path, config) as farebox:
        await fills_up(farebox, held, postgres, database)


async def test_calls_may_pass_a_full_journal_and_each_loss_is_counted(
    holding: tuple[FakeProvider, Held], postgres: PostgresServer, database: str, tmp_path: Path
) -> None:
    """With on_ledger_failure: pass every call is answered; each has a row or a line in the log that it has none."""
    provider, _ = holding
    config = settings(
        str(tmp_path / "data"),
        provider.base_url,
        database=database,
        ledger={"journal_max_mb": 2},
        metering={"on_ledger_failure": "pass"},
    )
    async with installed(tmp_path, config) as farebox:
        process = await farebox.start()
        flood = Flood(process, farebox.key)

        async def until_one_is_lost() -> None:
            while "an event was lost" not in process.output:
                assert (await flood.one()).status == 200

        await flood.one()
        await asyncio.to_thread(postgres.stop)
        try:
            async with asyncio.timeout(60):
                await asyncio.gather(*(until_one_is_lost() for _ in range(8)))
            for _ in range(5):
                assert (await flood.one()).status == 200
        finally:
            await asyncio.to_thread(postgres.start)
        await until_ready(process, True)
        assert (await flood.one()).status == 200
        assert await process.stop() == 0, process.output
        rows = await outcomes(database)
        assert rows.keys() <= flood.accepted == provider_models(provider)
        assert set(rows.values()) == {"complete"}
        lost = len(process.log("an event was lost"))
        assert lost >= 6
        assert len(rows) + lost == len(flood.accepted)


def provider_models(provider: FakeProvider) -> set[str]:
    return {model_of(received) for received in provider.requests}


async def test_a_disk_without_room_for_a_journal_is_said_at_the_start(
    provider: FakeProvider, database: str, tmp_path: Path, disk: Path
) -> None:
    """farebox does not come up without a journal; it says why and exits with 1."""
    (disk / "filler").write_bytes(bytes(2 * 1024 * 1024))
    config = settings(str(disk), provider.base_url, database=database)
    async with installed(tmp_path, config) as farebox:
        with pytest.raises(StartFailed) as failed:
            await farebox.start()
        assert failed.value.code == 1
        assert "No space left on device" in failed.value.output and "Traceback" not in failed.value.output


# -- stopping ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "signals",
    # One Ctrl-C has a test of its own, below.
    [pytest.param((signal.SIGINT,), marks=pytest.mark.long), (signal.SIGTERM, signal.SIGTERM)],
)
async def test_a_stop_finishes_what_ends_in_time_and_cuts_the_rest(
    database: str, tmp_path: Path, signals: tuple[signal.Signals, ...]
) -> None:
    """After the signal nobody new is let in; calls end well or visibly broken; each has its row; the exit code is 0."""
    held = Held()
    async with FakeProvider(held) as provider:
        config = settings(str(tmp_path / "data"), provider.base_url, database=database, shutdown_timeout_s=1)
        async with installed(tmp_path, config) as farebox:
            process = await farebox.start()
            names = {"in-time": True, "too-long": True, "in-time-document": False, "too-long-document": False}
            calls = {
                name: asyncio.create_task(ask(process.port, farebox.key, name, stream=stream))
                for name, stream in names.items()
            }
            await until(lambda: provider_models(provider) == names.keys(), "all are under way")
            async with RawClient(process.port) as idle, RawClient(process.port) as half:
                await half.send(
                    "POST", CHAT, [("Authorization", f"Bearer {farebox.key}"), ("Content-Length", "100")], b'{"mod'
                )
                process.signal(signals[0])
                await process.says('"stopping"')
                for number in signals[1:]:
                    process.signal(number)
                await until(lambda: not listens(process.port), "the port is closed")
                held.of("in-time").set()
                held.of("in-time-document").set()
                for name in ("in-time", "in-time-document"):
                    assert is_whole(await calls[name], stream=names[name])
                cut = await calls["too-long"]
                assert cut.status == 200 and cut.body and not cut.clean
                with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                    await calls["too-long-document"]
                assert await process.wait() == 0, process.output
                assert await idle.reader.read() == b""
            rows = await outcomes(database)
            assert rows == {
                "in-time": "complete",
                "in-time-document": "complete",
                "too-long": "farebox_cut",
                "too-long-document": "farebox_cut",
            }
            assert not [line for line in process.log("") if line["level"] == "error"], process.output


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.long
async def test_ctrl_c_in_a_terminal_stops_everything_in_order(tmp_path: Path) -> None:
    """SIGINT to the whole process group, as a terminal sends it, does not take the database away from the last rows."""
    held = Held()
    async with FakeProvider(held) as provider:
        data = tmp_path / "data"
        async with installed(tmp_path, settings(str(data), provider.base_url, shutdown_timeout_s=0)) as farebox:
            process = await farebox.start()
            open_call = asyncio.create_task(ask(process.port, farebox.key, "m", stream=True))
            await until(lambda: len(provider.requests) == 1, "it is under way")
            os.killpg(process.pid, signal.SIGINT)
            assert await process.wait() == 0, process.output
            await open_call
            assert not process.log("events wait in the journal")
            # The database alone: another farebox would bring in what this one left behind.
            postgres = EmbeddedPostgres(data)
            await postgres.start()
            try:
                assert await outcomes(postgres.dsn) == {"m": "farebox_cut"}
            finally:
                await postgres.stop()


@pytest.mark.long
async def test_a_stop_while_starting_is_a_stop(provider: FakeProvider, tmp_path: Path) -> None:
    """SIGTERM before farebox is up: exit code 0, no database left running, and the next start is an ordinary one."""
    data = tmp_path / "data"
    async with installed(tmp_path, settings(str(data), provider.base_url)) as farebox:
        process = await farebox.spawn()
        await process.says("making the embedded database")
        process.signal(signal.SIGTERM)
        assert await process.wait() == 0, process.output
        assert await running_dsn(data) is None
        again = await farebox.start()
        assert (await state(again, "/readyz"))[0] == 200
        assert await again.stop() == 0, again.output


# -- two on one folder -------------------------------------------------------------------------------


@pytest.mark.long
async def test_a_second_farebox_on_the_same_folder_is_told_so(provider: FakeProvider, tmp_path: Path) -> None:
    """It exits with 1 and names the process that has the embedded database; the first one is not disturbed."""
    async with installed(tmp_path, settings(str(tmp_path / "data"), provider.base_url)) as farebox:
        first = await farebox.start()
        with pytest.raises(StartFailed) as failed:
            await farebox.start()
        assert failed.value.code == 1
        assert "in use by another farebox" in failed.value.output and str(first.pid) in failed.value.output
        assert "Traceback" not in failed.value.output
        assert is_whole(await ask(first.port, farebox.key, "m", stream=True), stream=True)


@pytest.mark.long
async def test_journals_of_the_dead_are_adopted(database: str, tmp_path: Path) -> None:
    """Two processes share a folder and an external database, both die; the next start brings the rows of both."""
    held = Held()
    async with FakeProvider(held) as provider:
        config = settings(
            str(tmp_path / "data"), provider.base_url, database=database, ledger={"drain_interval_ms": 60000}
        )
        async with installed(tmp_path, config) as farebox:
            lives = [await farebox.start(), await farebox.start()]
            calls = []
            for number, process in enumerate(lives):
                held.of(f"done-{number}").set()
                assert is_whole(await ask(process.port, farebox.key, f"done-{number}", stream=True), stream=True)
                calls.append(asyncio.create_task(ask(process.port, farebox.key, f"open-{number}", stream=True)))
            await until(lambda: len(provider.requests) == 4, "two are under way")
            for process in lives:
                await process.kill()
            await asyncio.gather(*calls, return_exceptions=True)
            assert await outcomes(database) == {}
            farebox.write(settings(str(tmp_path / "data"), provider.base_url, database=database))
            process = await farebox.start()
            rows = await until_stored(database, {"done-0", "done-1", "open-0", "open-1"})
            assert rows == {
                "done-0": "complete",
                "done-1": "complete",
                "open-0": "farebox_cut",
                "open-1": "farebox_cut",
            }
            assert len(process.log("adopting the journal")) == 1
            assert await process.stop() == 0


# -- clients that leave ------------------------------------------------------------------------------


async def endless(received: Received, wire: Wire) -> None:
    """Streams until farebox hangs up; documents after a moment."""
    model = model_of(received)
    if not json.loads(received.body)["stream"]:
        await asyncio.sleep(0.02)
        await send_document(wire, document(model, 3))
        return
    await wire.head(200, [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")])
    while True:
        await wire.chunk(events(model, 1, usage=False)[0])
        await asyncio.sleep(0.005)


async def leaves(client: RawClient, how: int, rng: random.Random) -> None:
    """One of the moments at which a client may hang up, and one of two ways to do it."""
    if how == 1:
        await asyncio.sleep(rng.uniform(0, 0.05))  # not to wait for anything: the moment is to be any
    elif how >= 2:
        await client.head()
        if how == 3:
            for _ in range(rng.randint(1, 5)):
                await client.chunk()
    if rng.random() < 0.5:
        client.abort()


async def test_three_hundred_clients_that_hang_up_leave_one_row_each_and_nothing_open(
    database: str, tmp_path: Path
) -> None:
    """Aborts at any moment: one row per attempt, no call still in flight, every connection to the provider let go."""
    rng = random.Random(6)
    async with FakeProvider(endless) as provider:
        config = settings(str(tmp_path / "data"), provider.base_url, database=database)
        async with installed(tmp_path, config) as farebox:
            process = await farebox.start()
            gate = asyncio.Semaphore(50)
            streams = {f"m-{number}" for number in range(300) if number % 5}

            async def one(number: int) -> None:
                model = f"m-{number}"
                async with gate, RawClient(process.port) as client:
                    body = json.dumps(request(model, stream=model in streams)).encode()
                    await client.send("POST", CHAT, [("Authorization", f"Bearer {farebox.key}")], body)
                    await leaves(client, rng.randrange(4) if model in streams else rng.randrange(2), rng)

            await asyncio.gather(*(one(number) for number in range(300)))
            await until(lambda: provider.gone >= len(provider_models(provider) & streams), "no stream goes on")
            seen = provider_models(provider)
            rows = await until_stored(database, seen)
            assert {rows[model] for model in seen & streams} == {"client_gone"}
            # A document is read to its end for its usage, whoever is there to take it.
            assert {rows[model] for model in seen - streams} <= {"client_gone", "complete"}
            assert {rows[model] for model in rows.keys() - seen} <= {"client_gone"}
            assert len(seen & streams) >= 100
            assert await process.stop() == 0, process.output
            assert process.log("stopping")[0]["open_calls"] == 0
            assert not [line for line in process.log("") if line["level"] == "error"], process.output
            assert await outcomes(database) == rows
