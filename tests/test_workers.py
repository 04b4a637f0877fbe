"""Several workers on one port: real processes, which are killed one by one and together, and rows that stay exact."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import re
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from farebox.accepting import NO_ROOM_S, PAUSE_S_MAX, Accepting, pause_s
from farebox.supervisor.patience import FIRST_S, LONGEST_S, STEADY_S, Patience
from support.clock import Leaps
from support.http import call
from support.process import (
    FareboxProcess,
    Installation,
    StartFailed,
    embedded_postgres_pid,
    installed,
    lives,
    until,
    worker_pids,
)
from support.provider import FakeProvider
from support.traffic import Held, Traffic, ask, is_whole, outcomes, settings, until_stored, well_behaved

ADMIN = "admin-token-of-the-fault-tests"


@pytest.fixture
async def provider() -> AsyncIterator[FakeProvider]:
    """A provider that answers every request properly."""
    async with FakeProvider(well_behaved) as provider:
        yield provider


def workers_of(number: int, folder: Path, url: str, database: str | None, **sections: Any) -> dict[str, Any]:
    """A config for so many workers; keys are followed quickly."""
    config = settings(str(folder / "data"), url, database=database, **sections)
    config["server"]["workers"] = number
    config.setdefault("auth", {})["key_poll_s"] = 0.05
    return config


@contextmanager
def only(process: FareboxProcess, pid: int) -> Iterator[None]:
    """While this lasts `pid` is the one worker that runs; the others are stopped (SIGSTOP)."""
    others = [other for other in worker_pids(process.pid) if other != pid]
    for other in others:
        os.kill(other, signal.SIGSTOP)
    try:
        yield
    finally:
        for other in others:
            os.kill(other, signal.SIGCONT)


async def metrics(port: int) -> str:
    """What a scrape gets."""
    return (await call(port, "/metrics", method="GET")).body.decode()


async def answers(process: FareboxProcess, key: str, model: str, *, stream: bool = True) -> int:
    """The status of one call, on a connection of its own."""
    answer = await ask(process.port, key, model, stream=stream)
    assert answer.status != 200 or is_whole(answer, stream=stream)
    return answer.status


async def all_gone(pids: list[int]) -> None:
    await until(lambda: not any(map(lives, pids)), "no process is left", timeout_s=40)


# -- the wait before another try ---------------------------------------------------------------------


def test_patience_grows_with_each_early_end_and_has_a_bound() -> None:
    """The first restart is almost at once, the next ones ever later, never later than the bound."""
    patience = Patience().after(0)
    waits = []
    for _ in range(20):
        waits.append(patience.next_s)
        patience = patience.longer().after(STEADY_S / 2)
    assert waits[0] == FIRST_S and waits == sorted(waits) and waits[-1] == LONGEST_S
    assert patience.after(STEADY_S) == Patience()


# -- one port for several ------------------------------------------------------------------------------


class Greeter(asyncio.Protocol):
    """Says who it is to everybody who connects."""

    def __init__(self, name: bytes) -> None:
        self._name = name

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self._name)  # type: ignore[attr-defined]
        transport.close()


class Port(socket.socket):
    """A port that has no room for the first connection."""

    full = 1

    def accept(self) -> tuple[socket.socket, Any]:
        if self.full:
            self.full -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


async def greeted(port: socket.socket) -> bytes:
    reader, writer = await asyncio.open_connection(*port.getsockname())
    try:
        return await reader.read()
    finally:
        writer.close()


def test_who_holds_more_waits_longer_but_never_long() -> None:
    """A worker without connections tries at once; the pause grows with what it holds, up to its bound."""
    pauses = [pause_s(held) for held in (0, 1, 10, 100, 300, 1000, 10**6)]
    assert pauses[0] == pauses[1] == 0 and pauses == sorted(pauses)
    assert 0 < pauses[3] < pauses[-1] <= PAUSE_S_MAX


async def test_a_connection_goes_to_the_worker_that_holds_fewer() -> None:
    """Of two that share a port the idle one takes nearly all that comes; alone, the busy one takes it as well."""
    with socket.create_server(("127.0.0.1", 0)) as port:
        busy = Accepting(port.dup(), lambda: Greeter(b"busy"), backlog=64, held=lambda: 1000)
        idle = Accepting(port.dup(), lambda: Greeter(b"idle"), backlog=64, held=lambda: 0)
        took = Counter([await greeted(port) for _ in range(40)])
        assert took[b"idle"] > 3 * took[b"busy"], took  # the busy one gets what comes just as its pause ends
        idle.close()
        assert {await greeted(port) for _ in range(5)} == {b"busy"}
        busy.close()


async def test_a_system_without_room_is_asked_again() -> None:
    """When no connection can be taken for want of descriptors, that is said, and those that wait are taken later."""
    with socket.create_server(("127.0.0.1", 0)) as port, capture_logs() as said:
        full = Port(fileno=os.dup(port.fileno()))
        accepting = Accepting(full, lambda: Greeter(b"hello"), backlog=64, held=lambda: 0)
        waiting = asyncio.create_task(greeted(port))
        await until(lambda: bool(said), "it is said")
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await Leaps().by(NO_ROOM_S)
        assert await waiting == b"hello"
        accepting.close()
    assert [line["reason"] for line in said] == ["Too many open files"]


# -- serving together --------------------------------------------------------------------------------


async def test_two_workers_serve_one_port_as_one_farebox(database: str, tmp_path: Path, provider: FakeProvider) -> None:
    """Each answers alone, a revoked key is refused by each, the metrics are of both, and a stop leaves nothing."""
    async with installed(tmp_path, workers_of(2, tmp_path, provider.base_url, database)) as farebox:
        process = await farebox.start()
        pids = worker_pids(process.pid)
        assert len(pids) == 2 and process.output.count("is up.") == 1
        for number, pid in enumerate(pids):
            with only(process, pid):
                assert await answers(process, farebox.key, f"alone-{number}") == 200
                assert (await call(process.port, "/readyz", method="GET")).status == 200
        traffic = Traffic(provider, random.Random(1))
        traffic.begin(process.port, farebox.key, 8)
        await traffic.more(60)
        await traffic.end()
        assert not traffic.broken and not traffic.refused
        rows = await until_stored(database, set(traffic.seen))
        assert rows.keys() == traffic.seen.keys() and set(rows.values()) == {"complete"}
        for pid in pids:  # either of them knows of all calls
            with only(process, pid):
                text = await metrics(process.port)
                counted = re.findall(r"^farebox_requests_total\{.*\} (\d+)", text, re.MULTILINE)
                assert sum(map(int, counted)) == len(rows)

        listed = json.loads((await call(process.port, "/farebox/api/keys", method="GET", key=ADMIN)).body)
        [first] = listed["data"]
        await call(process.port, f"/farebox/api/keys/{first['id']}", method="DELETE", key=ADMIN)
        for pid in pids:
            with only(process, pid):
                async with asyncio.timeout(5):
                    while await answers(process, farebox.key, "revoked") != 401:
                        await asyncio.sleep(0.05)
        assert await process.stop() == 0
        assert not any(map(lives, pids))
        stopped = [line.get("worker") for line in process.log("stopped")]
        assert stopped[-1] is None and set(stopped) == {0, 1, None}
        assert not [line for line in process.log("") if line["level"] in ("error", "warning")], process.output


@pytest.mark.long
async def test_a_stop_of_several_finishes_what_ends_in_time_and_cuts_the_rest(database: str, tmp_path: Path) -> None:
    """Open calls of every worker go on until the deadline, then they are cut; each is one row; the exit code is 0."""
    held = Held()
    async with FakeProvider(held) as provider:
        config = workers_of(2, tmp_path, provider.base_url, database, server={"port": 0, "shutdown_timeout_s": 1})
        config["server"] |= {"workers": 2, "admin_token": ADMIN}
        async with installed(tmp_path, config) as farebox:
            process = await farebox.start()
            calls: dict[str, asyncio.Task[Any]] = {}
            for number, pid in enumerate(worker_pids(process.pid)):
                with only(process, pid):
                    for name in (f"in-time-{number}", f"too-long-{number}"):
                        asked = len(provider.requests)
                        calls[name] = asyncio.create_task(ask(process.port, farebox.key, name, stream=True))
                        await until(lambda asked=asked: len(provider.requests) > asked, "the call is under way")  # type: ignore[misc]
            process.signal(signal.SIGINT)
            await process.says('"stopping"')
            for name in calls:
                if name.startswith("in-time"):
                    held.of(name).set()
            done = {name: await task for name, task in calls.items()}
            assert await process.wait() == 0
            assert {name: answer.clean for name, answer in done.items()} == {n: n.startswith("in-") for n in done}
            assert await outcomes(database) == {
                name: "complete" if name.startswith("in-") else "farebox_cut" for name in done
            }
            with socket.socket() as probe:
                assert probe.connect_ex(("127.0.0.1", process.port)) != 0


# -- one of them dies --------------------------------------------------------------------------------


async def kill_under_load(
    farebox: Installation, traffic: Traffic, process: FareboxProcess, *, rounds: int, clients: int
) -> None:
    """kill -9 a worker at a random moment, again and again, while clients go on calling."""
    rng = traffic.rng
    traffic.begin(process.port, farebox.key, clients)
    for number in range(rounds):
        await traffic.asked(rng.randint(2, 4 * clients))
        await asyncio.sleep(rng.uniform(0, 0.03))  # not to wait for anything: the moment is to be any
        victim = rng.choice(worker_pids(process.pid))
        os.kill(victim, signal.SIGKILL)
        await until(lambda n=number: len(process.log("a worker took the place")) > n, "it is replaced", timeout_s=60)  # type: ignore[misc]
    await traffic.more(2 * clients)
    await traffic.end()


def check_rows(rows: dict[str, str], traffic: Traffic, *, clients: int, rounds: int) -> Counter[str]:
    """One row for each attempt the provider saw; whole answers are `complete`; what was cut says so."""
    seen = traffic.seen
    assert max(seen.values()) == 1
    assert not seen.keys() - rows.keys()
    assert {model: rows[model] for model in traffic.whole if rows[model] != "complete"} == {}
    assert {rows[model] for model in rows.keys() - seen.keys()} <= {"farebox_cut"}  # journalled, and not sent
    assert len(rows.keys() - seen.keys()) <= clients * rounds
    found = Counter(rows[model] for model in seen)
    assert set(found) <= {"complete", "farebox_cut"}
    return found


async def test_a_worker_that_is_killed_is_replaced_and_its_calls_are_rows(
    database: str, tmp_path: Path, provider: FakeProvider
) -> None:
    """After kill -9 of a worker under load another takes its place, and soon every attempt has exactly one row."""
    async with installed(tmp_path, workers_of(2, tmp_path, provider.base_url, database)) as farebox:
        process = await farebox.start()
        traffic = Traffic(provider, random.Random(5))
        await kill_under_load(farebox, traffic, process, rounds=1, clients=8)
        rows = await until_stored(database, set(traffic.seen), timeout_s=15)  # nothing was stopped for it
        check_rows(rows, traffic, clients=8, rounds=1)
        assert len(worker_pids(process.pid)) == 2
        [line] = process.log("a worker ended")
        assert line["exit"] == -signal.SIGKILL and line["worker"] in (0, 1)
        assert await process.stop() == 0


@pytest.mark.long
async def test_many_kills_of_single_workers_lose_and_double_nothing(
    database: str, tmp_path: Path, provider: FakeProvider
) -> None:
    """Kill after kill among three workers under load: as many rows as attempts, and some calls were really cut."""
    async with installed(tmp_path, workers_of(3, tmp_path, provider.base_url, database)) as farebox:
        process = await farebox.start()
        traffic = Traffic(provider, random.Random(9))
        await kill_under_load(farebox, traffic, process, rounds=8, clients=16)
        rows = await until_stored(database, set(traffic.seen))
        found = check_rows(rows, traffic, clients=16, rounds=8)
        assert found["farebox_cut"] > 0, "no call was in flight at any kill: this shows nothing"
        assert await process.stop() == 0


@pytest.mark.long
async def test_a_worker_that_is_asked_to_stop_is_replaced_without_harm(database: str, tmp_path: Path) -> None:
    """SIGTERM to one worker lets its calls finish, and another takes its place."""
    held = Held()
    async with (
        FakeProvider(held) as provider,
        installed(tmp_path, workers_of(2, tmp_path, provider.base_url, database)) as farebox,
    ):
        process = await farebox.start()
        [one, _] = worker_pids(process.pid)
        with only(process, one):
            under_way = asyncio.create_task(ask(process.port, farebox.key, "long", stream=True))
            await until(lambda: bool(provider.requests), "the call is under way")
        os.kill(one, signal.SIGTERM)
        await process.says('"stopping"')
        held.of("long").set()
        assert is_whole(await under_way, stream=True)
        await process.says("a worker took the place")
        assert process.log("a worker ended")[0]["exit"] == 0 and not lives(one)
        assert await until_stored(database, {"long"}) == {"long": "complete"}
        assert await process.stop() == 0


@pytest.mark.long
async def test_a_worker_that_hangs_at_the_stop_is_killed(database: str, tmp_path: Path, provider: FakeProvider) -> None:
    """A stop ends although a worker does not; what it had is settled at the next start."""
    config = workers_of(2, tmp_path, provider.base_url, database)
    config["server"]["shutdown_timeout_s"] = 0
    async with installed(tmp_path, config) as farebox:
        process = await farebox.start()
        assert await answers(process, farebox.key, "m-1") == 200
        pids = worker_pids(process.pid)
        os.kill(pids[0], signal.SIGSTOP)
        assert await process.stop() == 0
        assert process.log("a worker did not stop") and not any(map(lives, pids))
        process = await farebox.start()
        assert await until_stored(database, {"m-1"}) == {"m-1": "complete"}
        assert await process.stop() == 0


# -- the supervisor dies -----------------------------------------------------------------------------


@pytest.mark.long
async def test_workers_do_not_outlive_their_supervisor(database: str, tmp_path: Path, provider: FakeProvider) -> None:
    """After kill -9 of the supervisor under load its workers stop in order, and the next start settles the rest."""
    config = workers_of(2, tmp_path, provider.base_url, database)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        config["server"]["port"] = probe.getsockname()[1]
    async with installed(tmp_path, config) as farebox:
        process = await farebox.start()
        pids = worker_pids(process.pid)
        traffic = Traffic(provider, random.Random(3))
        traffic.begin(process.port, farebox.key, 6)
        await traffic.asked(12)
        os.kill(process.pid, signal.SIGKILL)
        await traffic.end()
        await all_gone(pids)
        # Not by the bound after which an orphan ends whatever it does.
        await until(lambda: len(process.log("stopped")) == 2, "both workers say that they stopped")
        process = await farebox.start()
        rows = await until_stored(database, set(traffic.seen))
        assert check_rows(rows, traffic, clients=6, rounds=1)["complete"] == len(traffic.seen), "calls could finish"
        assert await answers(process, farebox.key, "again") == 200
        assert await process.stop() == 0


@pytest.mark.long
async def test_workers_share_one_embedded_postgres_which_goes_last(tmp_path: Path, provider: FakeProvider) -> None:
    """One Postgres for all, restarted when it dies, gone after the stop; after kill -9 of everything all is settled."""
    data = tmp_path / "data"
    async with installed(tmp_path, workers_of(2, tmp_path, provider.base_url, None)) as farebox:
        process = await farebox.start()
        postgres = embedded_postgres_pid(data)
        assert postgres is not None and process.output.count("embedded database ready") == 1
        assert await answers(process, farebox.key, "m-1") == 200
        os.kill(postgres, signal.SIGKILL)
        await until(lambda: process.output.count("embedded database ready") == 2, "the database is back", timeout_s=60)
        assert await answers(process, farebox.key, "m-2") == 200
        pids = worker_pids(process.pid)
        os.kill(process.pid, signal.SIGKILL)
        await all_gone(pids)
        process = await farebox.start()
        listed = await farebox.run("usage", "--format", "json")
        assert listed.code == 0, listed
        pids, postgres = worker_pids(process.pid), embedded_postgres_pid(data)
        assert postgres is not None
        rows: list[Any] = []
        async with asyncio.timeout(20):
            while len(rows) < 2:
                found = await call(process.port, "/farebox/api/usage", method="GET", key=_token(data))
                rows = json.loads(found.body)["data"]
        assert {row["requested_model"]: row["outcome"] for row in rows} == {"m-1": "complete", "m-2": "complete"}
        assert await process.stop() == 0
        assert not any(map(lives, [*pids, postgres]))


def _token(data: Path) -> str:
    return (data / "admin-token").read_text().strip()


# -- starting ----------------------------------------------------------------------------------------


@pytest.mark.long
async def test_what_keeps_one_worker_from_starting_keeps_several_from_it(
    database: str, tmp_path: Path, provider: FakeProvider
) -> None:
    """A port in use, a journal that can't be made, a bad number: the same words and exit codes, nothing left behind."""
    config = workers_of(1, tmp_path, provider.base_url, database)
    async with installed(tmp_path, config) as farebox:
        with pytest.raises(StartFailed) as none:
            await farebox.start("--workers", "0")
        assert none.value.code == 2, none.value.output
        assert "--workers: must be a whole number from 1 to 64" in none.value.output
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            number = str(taken.getsockname()[1])
            ends = []
            for workers in ("1", "2"):
                with pytest.raises(StartFailed) as used:
                    await farebox.start("--workers", workers, "--port", number)
                ends.append((used.value.code, used.value.output))
        assert ends[0] == ends[1] and ends[0][0] == 1 and "Is another farebox running?" in ends[0][1]
        (tmp_path / "data" / "journal").write_text("")
        ends = []
        for workers in ("1", "2"):
            with pytest.raises(StartFailed) as failed:
                await farebox.start("--workers", workers)
            ends.append((failed.value.code, failed.value.output.splitlines()[-1]))
        assert ends[0][0] == ends[1][0] == 1, ends


# -- a new config ------------------------------------------------------------------------------------


@pytest.mark.long
async def test_every_worker_takes_the_new_config_and_so_does_one_that_comes_later(
    database: str, tmp_path: Path
) -> None:
    """SIGHUP reaches all; with a fault in the file a worker that is replaced still gets the config in force."""
    async with (
        FakeProvider(well_behaved) as one,
        FakeProvider(well_behaved) as two,
        installed(tmp_path, workers_of(2, tmp_path, one.base_url, database)) as farebox,
    ):
        process = await farebox.start()
        farebox.write(workers_of(2, tmp_path, two.base_url, database))
        process.signal(signal.SIGHUP)
        await process.says("config reloaded")
        for pid in worker_pids(process.pid):
            with only(process, pid):
                assert await answers(process, farebox.key, f"m-{pid}") == 200
        assert (len(one.requests), len(two.requests)) == (0, 2)
        farebox.config.write_text("server: {workers: none}")
        process.signal(signal.SIGHUP)
        await process.says("the config has a fault")
        async with asyncio.timeout(30):  # one of the workers is told to count it, which may be the victim
            while 'farebox_config_reloads_total{result="failed"} 1' not in await metrics(process.port):
                await asyncio.sleep(0.05)
        [victim, _] = worker_pids(process.pid)
        os.kill(victim, signal.SIGKILL)
        await process.says("a worker took the place")
        for pid in worker_pids(process.pid):
            with only(process, pid):
                assert await answers(process, farebox.key, f"n-{pid}") == 200
        assert (len(one.requests), len(two.requests)) == (0, 4)
        text = await metrics(process.port)
        assert 'farebox_config_reloads_total{result="ok"} 1' in text
        assert 'farebox_config_reloads_total{result="failed"} 1' in text
        assert len(process.log("config reloaded")) == len(process.log("the config has a fault")) == 1
        assert await process.stop() == 0


@pytest.mark.long
async def test_a_worker_that_hangs_does_not_keep_the_others_from_a_new_config(database: str, tmp_path: Path) -> None:
    """A worker that does not answer is replaced, and its successor has the new config like all others."""
    async with (
        FakeProvider(well_behaved) as one,
        FakeProvider(well_behaved) as two,
        installed(tmp_path, workers_of(2, tmp_path, one.base_url, database)) as farebox,
    ):
        process = await farebox.start()
        farebox.write(workers_of(2, tmp_path, two.base_url, database))
        for number, hung in enumerate(worker_pids(process.pid), 1):
            os.kill(hung, signal.SIGSTOP)
            process.signal(signal.SIGHUP)
            for what in ("config reloaded", "a worker took the place"):
                await until(lambda n=number, w=what: len(process.log(w)) == n, what, timeout_s=60)  # type: ignore[misc]
        for pid in worker_pids(process.pid):
            with only(process, pid):
                assert await answers(process, farebox.key, f"m-{pid}") == 200
        assert (len(one.requests), len(two.requests)) == (0, 2)
        assert await process.stop() == 0


@pytest.mark.long
async def test_a_worker_that_comes_while_another_is_told_has_the_new_config(database: str, tmp_path: Path) -> None:
    """A worker started with the old config, ready before any other has taken the new one, is told of it as well."""
    async with (
        FakeProvider(well_behaved) as one,
        FakeProvider(well_behaved) as two,
        installed(tmp_path, workers_of(2, tmp_path, one.base_url, database)) as farebox,
    ):
        process = await farebox.start()
        [slow, other] = worker_pids(process.pid)
        farebox.write(workers_of(2, tmp_path, two.base_url, database))
        os.kill(slow, signal.SIGSTOP)
        os.kill(other, signal.SIGKILL)
        process.signal(signal.SIGHUP)
        await process.says("a worker took the place")
        os.kill(slow, signal.SIGCONT)
        await process.says("config reloaded")
        for pid in worker_pids(process.pid):
            with only(process, pid):
                assert await answers(process, farebox.key, f"m-{pid}") == 200
        assert (len(one.requests), len(two.requests)) == (0, 2)
        assert await process.stop() == 0
