"""The ledger, from journal to PostgreSQL: every attempt one row, whatever dies, fills up or refuses in between."""

from __future__ import annotations

import asyncio
import errno
import json
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import pytest
from structlog.testing import capture_logs

from farebox.journal import Journal, JournalFailed, JournalFull
from farebox.journal.segment import SEGMENT_BYTES_MIN, allocate
from farebox.ledger import Delivery, Ledger
from farebox.payload import encode
from farebox.records import FloatHold, UsageEvent
from farebox.store import Store, StoreUnavailable, is_refusal
from farebox.store.reports import Reports
from support.events import STARTED, event
from support.postgres import PostgresServer

WAIT_S = 30.0
WRITER = Path(__file__).parent / "support" / "journal_writer.py"


class Database:
    """Stands in for the store where a test needs it to fail at will: rows by id, the first one counts."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}
        self.order: list[str] = []
        self.batches: list[int] = []
        self.away: Exception | None = None
        self.refuses: Callable[[dict[str, Any]], bool] = lambda row: False
        self.asked = asyncio.Event()

    async def write(self, events: Sequence[bytes]) -> None:
        self.asked.set()
        self.batches.append(len(events))
        await asyncio.sleep(0)
        if self.away is not None:
            raise self.away
        rows = [json.loads(e) for e in events]
        if any(self.refuses(row) for row in rows):
            raise asyncpg.CheckViolationError("no")
        for row in rows:
            if row["id"] not in self.rows:
                self.rows[row["id"]] = row
                self.order.append(row["id"])


def journal_in(folder: Path, **options: Any) -> Journal:
    """A journal as the ledger opens it, without waiting for disks."""
    return Journal.open(folder, **{"segment_bytes": 256 * 1024, "max_bytes": 64 * 1024 * 1024, "fsync_ms": 1} | options)


@asynccontextmanager
async def running(
    folder: Path,
    write: Callable[[Sequence[bytes]], Awaitable[object]],
    *,
    journal: Callable[[Path], Journal] = journal_in,
    **options: Any,
) -> AsyncIterator[Ledger]:
    """An open ledger that is drained and closed at the end, unless it crashed."""
    delivery = Delivery(write, is_refusal=is_refusal, refused_file=folder / "refused.jsonl", pause_s=0.01)
    ledger = Ledger(
        folder, open_journal=journal, deliver=delivery, **{"interval_s": 0.01, "adopt_every_s": 0.05} | options
    )
    await ledger.open()
    try:
        yield ledger
    finally:
        if ledger._tasks:
            await ledger.close(WAIT_S)


def begin(ledger: Ledger, begun: UsageEvent) -> None:
    """Announce an attempt the way the data plane does."""
    ledger.begin(begun.id, encode(begun))


def crash(ledger: Ledger) -> None:
    """Leave everything as a killed process would."""
    for task in ledger._tasks:
        task.cancel()
    ledger._tasks = []
    ledger._journal._resources.close()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something another task is about to do."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.005)


async def test_what_is_recorded_is_stored(tmp_path: Path, store: Store) -> None:
    """Attempts that begin and end become rows in PostgreSQL, once each, and the journal is empty after."""
    done = [event(session=str(n), input_tokens=n) for n in range(1200)]
    async with running(tmp_path, store.insert_events) as ledger:
        for one in done:
            begin(ledger, one)
            ledger.record(one)
        assert ledger.backlog.events == 1200
        assert await ledger.flush(WAIT_S)
        assert ledger.backlog == (0, 0.0)
    sums = (await Reports(store).sums()).total
    assert (sums.calls, sums.input_tokens) == (1200, sum(range(1200)))
    assert not list(tmp_path.glob("*/*.segment"))


async def test_rows_arrive_without_being_asked_for(tmp_path: Path) -> None:
    """A recorded event reaches the database by itself, in order, and a quick burst goes as few batches."""
    database = Database()
    async with running(tmp_path, database.write, batch_rows_max=50) as ledger:
        done = [event() for _ in range(200)]
        for one in done:
            begin(ledger, one)
            ledger.record(one)
        await until(lambda: len(database.rows) == 200)
    assert database.order == [str(one.id) for one in done]
    assert max(database.batches) == 50
    assert len(database.batches) == 4


async def test_an_attempt_that_did_not_go_out_leaves_no_row(tmp_path: Path) -> None:
    """A begin that is taken back is no row, neither now nor after a crash."""
    database = Database()
    async with running(tmp_path, database.write) as ledger:
        one = event()
        begin(ledger, one)
        assert ledger.in_flight == 1
        ledger.abandon(one.id)
        assert ledger.in_flight == 0
        assert await ledger.flush(WAIT_S)
    assert database.rows == {}


async def test_calls_in_flight_at_a_crash_are_cut(tmp_path: Path, store: Store) -> None:
    """After a crash, ends that were written are rows as they were, and begins without an end are `farebox_cut`."""
    ended, open_ones = event(outcome="complete"), [event(input_tokens=5, usage_source="estimate") for _ in range(3)]

    async def away(events: Sequence[bytes]) -> None:
        raise StoreUnavailable("away")

    async with running(tmp_path, away) as ledger:
        for one in (ended, *open_ones):
            begin(ledger, one)
        ledger.record(ended)
        crash(ledger)
        async with running(tmp_path, store.insert_events) as second:
            assert await second.flush(WAIT_S)
    rows = {row.id: row for row in (await store.list_usage()).rows}
    assert rows.keys() == {ended.id, *(one.id for one in open_ones)}
    assert rows[ended.id].outcome == "complete"
    for one in open_ones:
        row = rows[one.id]
        assert (row.outcome, row.input_tokens, row.usage_source) == ("farebox_cut", 5, "estimate")
        assert row.finished_at > STARTED


async def test_a_crash_while_draining_doubles_nothing(tmp_path: Path, store: Store) -> None:
    """When the database has a batch but the journal never learnt of it, the batch comes again and changes nothing."""
    done = [event(input_tokens=1) for _ in range(30)]
    stuck = asyncio.Event()

    async def stored_but_no_reply(events: Sequence[bytes]) -> None:
        await store.insert_events(events)
        stuck.set()
        await asyncio.Event().wait()

    async with running(tmp_path, stored_but_no_reply) as ledger:
        for one in done:
            begin(ledger, one)
            ledger.record(one)
        await stuck.wait()
        crash(ledger)
        async with running(tmp_path, store.insert_events) as second:
            assert await second.flush(WAIT_S)
    sums = (await Reports(store).sums()).total
    assert (sums.calls, sums.input_tokens) == (30, 30)


async def test_postgres_stopped_under_traffic_loses_nothing(
    tmp_path: Path, postgres: PostgresServer, store: Store
) -> None:
    """Recording goes on while PostgreSQL is down, and everything is there once it is back."""
    done = [event(input_tokens=1) for _ in range(3000)]
    async with running(tmp_path, store.insert_events, batch_rows_max=100) as ledger:
        with capture_logs() as logs:
            for number, one in enumerate(done):
                begin(ledger, one)
                if number == 1000:
                    await asyncio.to_thread(postgres.stop)
                ledger.record(one)
                if number % 50 == 0:
                    await asyncio.sleep(0)
            await until(lambda: any("database does not take them" in line["event"] for line in logs))
            backlog = ledger.backlog
            assert not await ledger.flush(0.05)
            await asyncio.to_thread(postgres.start)
            assert await ledger.flush(WAIT_S)
            assert any("takes events again" in line["event"] for line in logs)
    assert backlog.events >= 1900
    assert backlog.oldest_s > 0
    sums = (await Reports(store).sums()).total
    assert (sums.calls, sums.input_tokens) == (3000, 3000)


async def test_connections_broken_mid_drain_lose_nothing(tmp_path: Path, store: Store, database: str) -> None:
    """PostgreSQL ending the connections that are draining costs a retry, no row and no duplicate."""
    done = [event(input_tokens=1) for _ in range(3000)]
    admin = await asyncpg.connect(database, server_settings={"application_name": "admin"})
    try:
        async with running(tmp_path, store.insert_events, batch_rows_max=50) as ledger:
            for one in done:
                begin(ledger, one)
                ledger.record(one)
            for _ in range(20):
                await admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                await asyncio.sleep(0.005)
            assert await ledger.flush(WAIT_S)
    finally:
        await admin.close()
    sums = (await Reports(store).sums()).total
    assert (sums.calls, sums.input_tokens) == (3000, 3000)


async def test_an_event_that_postgres_refuses_holds_nothing_up(tmp_path: Path, store: Store) -> None:
    """One event that no schema takes is stored bare and logged; all around it are stored as they are."""
    done = [event(input_tokens=n) for n in range(40)]
    done[17].status = 70000
    done[18].usage_raw = msgspec.Raw(b"{not json")
    async with running(tmp_path, store.insert_events) as ledger:
        with capture_logs() as logs:
            for one in done:
                begin(ledger, event(id=one.id))
                ledger.record(one)
            assert await ledger.flush(WAIT_S)
        assert ledger.lost == 1
    rows = {row.id: row for row in (await store.list_usage(rows_max=100)).rows}
    assert len(rows) == 39
    assert (rows[done[17].id].input_tokens, rows[done[17].id].status) == (17, None)
    assert rows[done[17].id].error_type == "farebox_row_refused"
    assert done[18].id not in rows
    assert str(done[18].id) in (tmp_path / "refused.jsonl").read_text()
    assert sorted(line["log_level"] for line in logs if "refused" in line["event"]) == ["error", "error"]
    assert all("not json" not in str(line) for line in logs)


async def test_faults_that_are_not_the_datas_are_retried(tmp_path: Path) -> None:
    """An error that says nothing about the data (no permission, not migrated) is waited out, with nothing dropped."""
    database = Database()
    database.away = asyncpg.UndefinedTableError("not migrated")
    async with running(tmp_path, database.write) as ledger:
        one = event()
        begin(ledger, one)
        ledger.record(one)
        await until(lambda: len(database.batches) > 3)
        assert (ledger.backlog.events, ledger.lost) == (1, 0)
        database.away = None
        assert await ledger.flush(WAIT_S)
    assert list(database.rows) == [str(one.id)]


async def test_retries_come_slower_and_slower(tmp_path: Path) -> None:
    """A database that stays away is asked with growing pauses up to a bound, and it is said once in a while."""
    now = 0.0
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        pauses.append(seconds)
        if len(pauses) == 40:
            raise asyncio.CancelledError

    async def away(events: Sequence[bytes]) -> None:
        raise OSError(errno.ECONNREFUSED, "Connection refused")

    deliver = Delivery(
        away, is_refusal=is_refusal, refused_file=tmp_path / "refused", monotonic=lambda: now, sleep=sleep
    )
    with capture_logs() as logs, pytest.raises(asyncio.CancelledError):
        await deliver([b"{}"])
    assert pauses[:8] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert len(logs) == 1 + int(now // 60)


async def test_a_full_journal_refuses_calls_and_says_so_once(tmp_path: Path) -> None:
    """When there is no room begins are refused, ends of running calls are taken, and both turns are logged once."""
    room = 1

    def two_segments(fd: int, size: int) -> None:
        nonlocal room
        if room < 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        room -= 1
        allocate(fd, size)

    now = 0.0

    def journal(folder: Path) -> Journal:
        return journal_in(folder, segment_bytes=SEGMENT_BYTES_MIN, allocate=two_segments, monotonic=lambda: now)

    database = Database()
    async with running(tmp_path, database.write, journal=journal) as ledger:
        taken = []
        with capture_logs() as logs:
            for _ in range(30):
                one = event()
                try:
                    begin(ledger, one)
                    taken.append(one)
                except JournalFull:
                    pass
            assert 0 < len(taken) < 30
            assert not ledger.writable
            for one in taken:
                ledger.record(one)
            assert await ledger.flush(WAIT_S)
            assert len(database.rows) == len(taken)
            room, now = 9, 1.0
            begin(ledger, event())
        assert ledger.writable
        assert [line["event"] for line in logs] == [
            "the journal takes no new calls",
            "the journal takes calls again",
        ]


async def test_an_event_that_had_no_begin_and_no_room_is_counted_lost(tmp_path: Path) -> None:
    """Where a call was let through without a begin and its end finds no room, the loss is logged and counted."""
    room = 1

    def one_segment(fd: int, size: int) -> None:
        nonlocal room
        if room < 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        room -= 1
        allocate(fd, size)

    async def away(events: Sequence[bytes]) -> None:
        raise StoreUnavailable("away")

    def journal(folder: Path) -> Journal:
        return journal_in(folder, segment_bytes=SEGMENT_BYTES_MIN, allocate=one_segment)

    async with running(tmp_path, away, journal=journal) as ledger:
        with capture_logs() as logs:
            for _ in range(200):
                ledger.record(event())
        assert ledger.lost > 0
        assert ledger.lost + ledger.backlog.events == 200
        assert sum("lost" in line["event"] for line in logs) == ledger.lost
        crash(ledger)


async def test_a_failed_disk_refuses_new_calls(tmp_path: Path) -> None:
    """After the disk failed no call is let in, and what runs still ends as a row."""

    def sync(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    database = Database()
    one = event()
    async with running(tmp_path, database.write, journal=lambda f: journal_in(f, sync=sync)) as ledger:
        begin(ledger, one)
        await until(lambda: not ledger.writable)
        with pytest.raises(JournalFailed):
            begin(ledger, event())
        ledger.record(one)
        assert await ledger.flush(WAIT_S)
    assert list(database.rows) == [str(one.id)]


class Opener:
    """Opens journals as the ledger would, and counts how often each folder was tried."""

    def __init__(self) -> None:
        self.tried: Counter[str] = Counter()

    def __call__(self, folder: Path) -> Journal:
        self.tried[folder.name] += 1
        return journal_in(folder)


async def test_journals_of_the_dead_are_adopted(tmp_path: Path) -> None:
    """What a neighbour left is drained once it is dead, its open calls as cut ones; while it lives, nothing is."""
    database, opener = Database(), Opener()
    async with running(tmp_path, database.write, journal=opener):
        neighbour = journal_in(tmp_path / "worker-1")
        ended, cut = event(), event()
        neighbour.begin(ended.id.bytes, encode(ended))
        neighbour.begin(cut.id.bytes, encode(cut))
        neighbour.end(ended.id.bytes, encode(ended))
        await until(lambda: opener.tried["worker-1"] > 2)
        assert database.rows == {}
        neighbour._resources.close()
        await until(lambda: len(database.rows) == 2)
        await until(lambda: not list((tmp_path / "worker-1").glob("*.segment")))
    assert database.rows[str(ended.id)]["outcome"] == "complete"
    assert database.rows[str(cut.id)]["outcome"] == "farebox_cut"


async def test_processes_take_folders_of_their_own(tmp_path: Path) -> None:
    """Two ledgers over one folder use different journals, and the place of one that ended is taken again."""
    database = Database()
    async with running(tmp_path, database.write) as first, running(tmp_path, database.write) as second:
        done = [event() for _ in range(4)]
        for one, ledger in zip(done, (first, second, first, second), strict=True):
            begin(ledger, one)
            ledger.record(one)
        assert await first.flush(WAIT_S)
        assert await second.flush(WAIT_S)
    async with running(tmp_path, database.write):
        pass
    assert database.rows.keys() == {str(one.id) for one in done}
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["worker-0", "worker-1"]


async def test_a_journal_that_cannot_be_adopted_is_reported_once(tmp_path: Path) -> None:
    """A neighbour's journal in a newer format is left alone, said once, and does not stop the rest."""
    other = journal_in(tmp_path / "worker-7")
    other.begin(bytes(16), b"{}")
    other._resources.close()
    [segment] = (tmp_path / "worker-7").glob("*.segment")
    content = bytearray(segment.read_bytes())
    content[15] += 1
    segment.write_bytes(content)
    alive = journal_in(tmp_path / "worker-8")
    database, opener = Database(), Opener()
    with capture_logs() as logs:
        async with running(tmp_path, database.write, journal=opener) as ledger:
            # They are looked at in turn, so by then the unreadable one had its chances.
            await until(lambda: opener.tried["worker-8"] > 2)
            one = event()
            begin(ledger, one)
            ledger.record(one)
            assert await ledger.flush(WAIT_S)
    alive._resources.close()
    assert opener.tried["worker-7"] == 1
    assert sum("can't be adopted" in line["event"] for line in logs) == 1
    assert segment.exists()


async def test_a_journal_that_could_not_be_adopted_for_a_while_is_adopted_later(tmp_path: Path) -> None:
    """A shortage while a neighbour's journal is opened puts its rows off, not away; it is said once."""
    neighbour = journal_in(tmp_path / "worker-1")
    one = event()
    neighbour.begin(one.id.bytes, encode(one))
    neighbour._resources.close()
    short = True

    class Short(Opener):
        def __call__(self, folder: Path) -> Journal:
            if folder.name == "worker-1" and short:
                self.tried[folder.name] += 1
                raise OSError(errno.EMFILE, "Too many open files")
            return super().__call__(folder)

    database, opener = Database(), Short()
    with capture_logs() as logs:
        async with running(tmp_path, database.write, journal=opener):
            await until(lambda: opener.tried["worker-1"] > 2)
            short = False
            await until(lambda: len(database.rows) == 1)
    assert sum("can't be adopted" in line["event"] for line in logs) == 1


async def test_losses_at_the_same_time_are_all_counted(tmp_path: Path) -> None:
    """An event that is lost while another one's loss is found out counts, too: who holds money for it goes by that."""

    async def deliver(batch: Sequence[bytes]) -> int:
        ledger.lost += 1
        return len(batch)

    ledger = Ledger(tmp_path, open_journal=journal_in, deliver=deliver, interval_s=0.01)
    await ledger.open()
    one = event()
    begin(ledger, one)
    ledger.record(one)
    assert await ledger.close(WAIT_S)
    assert ledger.lost == 2


async def test_a_begin_that_cannot_be_read_is_not_silent(tmp_path: Path) -> None:
    """An orphan whose payload is no event is logged and counted as lost, and does not come back."""
    journal = journal_in(tmp_path / "worker-0")
    journal.begin(UUID(int=7).bytes, b"rubbish")
    journal._resources.close()
    database = Database()
    with capture_logs() as logs:
        async with running(tmp_path, database.write) as ledger:
            assert ledger.lost == 1
    assert any(line.get("id") == str(UUID(int=7)) for line in logs)
    assert not list(tmp_path.glob("*/*.segment"))


async def test_a_stop_without_postgres_keeps_everything(tmp_path: Path, store: Store) -> None:
    """Closed while the database is away, the ledger says what waits, and the next life delivers it."""

    async def away(events: Sequence[bytes]) -> None:
        raise StoreUnavailable("away")

    done = [event() for _ in range(20)]
    delivery = Delivery(away, is_refusal=is_refusal, refused_file=tmp_path / "refused.jsonl", pause_s=0.01)
    ledger = Ledger(tmp_path, open_journal=journal_in, deliver=delivery)
    await ledger.open()
    for one in done:
        begin(ledger, one)
        ledger.record(one)
    with capture_logs() as logs:
        assert not await ledger.close(0.05)
    assert [line["events"] for line in logs if "next start" in line["event"]] == [20]
    async with running(tmp_path, store.insert_events) as second:
        assert await second.flush(WAIT_S)
    sums = (await Reports(store).sums()).total
    assert sums.calls == 20


async def test_text_that_postgres_cannot_hold_is_mended(tmp_path: Path, store: Store) -> None:
    """NUL, lone surrogates and endless names from clients become rows, not refusals."""
    odd = event(session="a\0b", end_user="\udc80", tags={"\0": "\ud800"}, model="m" * 9000)
    async with running(tmp_path, store.insert_events) as ledger:
        ledger.begin(odd.id, encode(odd))
        ledger.record(odd)
        assert await ledger.flush(WAIT_S)
        assert ledger.lost == 0
    [row] = (await store.list_usage()).rows
    assert (row.session, row.end_user, row.model, row.error_type) == ("a\ufffdb", "?", "m" * 200, None)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 5))])
async def test_kill_9_under_load(tmp_path: Path, store: Store, seed: int) -> None:
    """Processes killed while they journal, several in a row: in PostgreSQL each begun attempt is one row."""
    begun: set[int] = set()
    number = 0
    for life in range(3):
        program = [sys.executable, "-c", LIFE, str(tmp_path / "worker-0"), str(seed * 1_000_000 + number)]
        process = subprocess.Popen(program, stdout=subprocess.PIPE)
        assert process.stdout is not None
        lines = [await asyncio.to_thread(process.stdout.readline) for _ in range(50 + 137 * (seed + life))]
        process.kill()
        lines += process.stdout.read().splitlines(keepends=True)
        process.stdout.close()
        process.wait()
        begun |= {int(line) for line in lines if line.endswith(b"\n")}
        number += 100_000
    async with running(tmp_path, store.insert_events) as ledger:
        assert await ledger.flush(WAIT_S)
    found, after = set(), None
    while True:
        page = await store.list_usage(after=after, rows_max=1000)
        found |= {row.id.int for row in page.rows}
        assert {row.outcome for row in page.rows} <= {"complete", "farebox_cut"}
        after = page.next
        if after is None:
            break
    assert begun <= found
    # A kill may fall between a begin and saying so, once a life.
    assert len(found - begun) <= 3
    assert len((await Reports(store).sums(by=["outcome"])).groups) == 2


LIFE = """
import os, sys
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID
from farebox.journal import Journal
from farebox.payload import cut, encode
from farebox.records import FloatHold, UsageEvent

journal = Journal.open(Path(sys.argv[1]), segment_bytes=64 * 1024, max_bytes=1 << 28)
for orphan in journal.orphans():
    journal.end(orphan.id, cut(orphan.payload, orphan.seen_at))
number, now, open_ones = int(sys.argv[2]), datetime.now(UTC), []
while True:
    number += 1
    one = UsageEvent(id=UUID(int=number), request_id=UUID(int=number), attempt=1, started_at=now, finished_at=now,
        provider="p", dialect="d", endpoint="e", operation="chat", outcome="farebox_cut")
    journal.begin(one.id.bytes, encode(one))
    os.write(1, b"%d\\n" % number)
    open_ones.append(one)
    if number % 3 and len(open_ones) > 5:
        done = open_ones.pop(number % 5)
        done.outcome = "complete"
        journal.end(done.id.bytes, encode(done))
"""


async def test_settled_waits_for_what_was_recorded_and_for_no_more(tmp_path: Path) -> None:
    """Whoever waits for its own events is done when they are stored, though others keep coming; it hurries a lazy drain
    and says when time was up."""
    database = Database()
    stored = 0

    def count() -> None:
        nonlocal stored
        stored += 1

    async with running(tmp_path, database.write, interval_s=3600, stored=count) as ledger:
        assert await ledger.settled(0)
        ledger.record(event())
        waiting = asyncio.create_task(ledger.settled(WAIT_S))
        while not waiting.done():
            ledger.record(event())
            await asyncio.sleep(0)
        assert await waiting
        assert ledger.backlog.events > 0
        assert stored > 0
        database.away = OSError()
        ledger.record(event())
        assert not await ledger.settled(0.05)
        database.away = None


async def test_events_with_a_budget_go_soon_and_together(tmp_path: Path) -> None:
    """They do not wait as long as others; those that end shortly after one another, or while a batch is on its way, are
    one batch."""
    sizes: list[int] = []
    gone, answer = asyncio.Event(), asyncio.Event()

    async def write(events: Sequence[bytes]) -> None:
        sizes.append(len(events))
        gone.set()
        await answer.wait()

    async def three(ledger: Ledger) -> None:
        for _ in range(3):
            ledger.record(event(budget_ids=("b",)))
            await asyncio.sleep(0.001)

    async with running(tmp_path, write, interval_s=3600, gather_s=0.3) as ledger:
        await three(ledger)
        await gone.wait()
        await three(ledger)
        answer.set()
        await until(lambda: not ledger.backlog.events)
        assert sizes == [3, 3]


async def test_nobody_waits_for_what_a_float_held(tmp_path: Path) -> None:
    """An event whose call drew from a float takes its time like one without a budget."""
    database, hold = Database(), FloatHold(UUID(int=1), (1,), (Decimal(1),), (0,), (1,))
    async with running(tmp_path, database.write, interval_s=3600, gather_s=0.001) as ledger:
        ledger.record(event(budget_ids=("b",), from_float=hold))
        await asyncio.sleep(0.05)
        assert ledger.backlog.events == 1
        assert await ledger.settled(WAIT_S)


async def test_who_needs_the_money_waits_for_no_company(tmp_path: Path) -> None:
    """An event with a budget goes at once where somebody waits until it is settled."""
    database = Database()
    async with running(tmp_path, database.write, interval_s=3600, gather_s=3600) as ledger:
        ledger.record(event(budget_ids=("b",)))
        assert await ledger.settled(WAIT_S)
        assert ledger.backlog.events == 0
