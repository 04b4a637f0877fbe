"""The journal on a real disk: nothing is lost or doubled by kills, torn writes, damage, or a full or failing disk."""

from __future__ import annotations

import errno
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from farebox.journal import (
    PAYLOAD_BYTES_MAX,
    Journal,
    JournalFailed,
    JournalFull,
    JournalLocked,
    JournalVersionError,
)
from farebox.journal.format import BEGIN, END, FRAME_BYTES, RECORD_BYTES_MAX, frame, parse
from farebox.journal.outlet import HELD_BYTES_MAX
from farebox.journal.segment import HEADER_BYTES, SEGMENT_BYTES_MIN, allocate
from support.postgres import quick_disk

SMALL = SEGMENT_BYTES_MIN
WRITER = Path(__file__).parent / "support" / "journal_writer.py"


def id_of(number: int) -> bytes:
    """An id from a small number."""
    return number.to_bytes(16, "big")


def opened(folder: Path, **options: Any) -> Journal:
    """A journal with segments of a few records, so that tests meet their borders."""
    return Journal.open(folder, **{"segment_bytes": SMALL, "max_bytes": 1000 * SMALL, "fsync_ms": None} | options)


def crash(journal: Journal) -> None:
    """Leave the files as a killed process would, and let go of the lock."""
    journal._resources.close()


def drained(journal: Journal, batch: int = 7) -> list[bytes]:
    """Everything there is to drain, committed."""
    found: list[bytes] = []
    while payloads := journal.next_batch(batch):
        found += payloads
        journal.commit()
    return found


def files(folder: Path) -> list[Path]:
    """The segment files."""
    return sorted(folder.glob("*.segment"))


class Disk:
    """A disk with room for so many segments."""

    def __init__(self, room: float) -> None:
        self.room = room
        self.asked = 0

    def allocate(self, fd: int, size: int) -> None:
        self.asked += 1
        if self.room < 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= 1
        allocate(fd, size)


# -- the ordinary life ---------------------------------------------------------------------------


def test_ends_come_out_in_order_until_committed(tmp_path: Path) -> None:
    """Ends are delivered in the order they were written, and the same ones again until they are committed."""
    journal = opened(tmp_path)
    for n in range(20):
        journal.begin(id_of(n), b"begin")
    for n in reversed(range(20)):
        journal.end(id_of(n), b"end %d" % n)
    first = journal.next_batch(3)
    assert first == [b"end 19", b"end 18", b"end 17"]
    assert journal.next_batch(3) == first
    assert (journal.backlog, journal.in_flight) == (20, 0)
    journal.commit()
    assert drained(journal) == [b"end %d" % n for n in reversed(range(17))]
    assert (journal.backlog, journal.oldest_at) == (0, None)
    journal.close()


def test_a_finished_journal_leaves_nothing_to_read_again(tmp_path: Path) -> None:
    """Closed with everything drained, the folder holds no segments; with something left, it holds that."""
    journal = opened(tmp_path)
    for n in range(2):
        journal.begin(id_of(n), b"begin")
    journal.end(id_of(0), b"end")
    journal.close()
    journal = opened(tmp_path)
    assert drained(journal) == [b"end"]
    journal.end(id_of(1), b"")
    journal.close()
    assert files(tmp_path) == []


def test_an_empty_end_takes_a_call_back(tmp_path: Path) -> None:
    """A call that ends with nothing to deliver is neither delivered nor an orphan."""
    journal = opened(tmp_path)
    journal.begin(id_of(1), b"begin")
    journal.end(id_of(1), b"")
    assert (journal.backlog, drained(journal)) == (0, [])
    crash(journal)
    journal = opened(tmp_path)
    assert (journal.orphans(), drained(journal)) == ([], [])
    journal.close()


def test_an_end_without_a_begin_is_taken_while_there_is_room(tmp_path: Path) -> None:
    """An end that was never announced is kept like any other, but never in the room of those that were."""
    journal = opened(tmp_path, allocate=Disk(2).allocate)
    for n in range(4):
        journal.begin(id_of(n), b"begin")
    unannounced = 0
    with pytest.raises(JournalFull):
        while True:
            journal.end(id_of(100 + unannounced), b"u" * 700)
            unannounced += 1
    assert unannounced > 0
    for n in range(4):
        journal.end(id_of(n), b"e" * PAYLOAD_BYTES_MAX)
    assert not journal._outlet.unwritten
    assert drained(journal) == [b"u" * 700] * unannounced + [b"e" * PAYLOAD_BYTES_MAX] * 4
    journal.close()


def test_misuse_is_refused(tmp_path: Path) -> None:
    """Too large a payload or a second begin of an id is an error of the caller, and changes nothing."""
    journal = opened(tmp_path)
    journal.begin(id_of(1), b"begin")
    for attempt in (
        lambda: journal.begin(id_of(1), b"again"),
        lambda: journal.begin(id_of(2), b"x" * (PAYLOAD_BYTES_MAX + 1)),
        lambda: journal.end(id_of(1), b"x" * (PAYLOAD_BYTES_MAX + 1)),
        lambda: opened(tmp_path / "other", max_bytes=SMALL),
        lambda: opened(tmp_path / "other", segment_bytes=SMALL - 1),
    ):
        with pytest.raises(ValueError):
            attempt()
    journal.end(id_of(1), b"end")
    assert drained(journal) == [b"end"]
    journal.close()


def test_the_backlog_has_an_age(tmp_path: Path) -> None:
    """`oldest_at` is never later than the oldest end that waits, also after a restart."""
    now = 1000.0
    journal = opened(tmp_path, clock=lambda: now)
    for n in range(3):
        journal.begin(id_of(n), b"begin")
    for n in range(3):
        now += 10
        journal.end(id_of(n), b"end")
    assert journal.oldest_at == 1010
    journal.next_batch(2)
    journal.commit()
    assert journal.oldest_at == 1020
    crash(journal)
    journal = opened(tmp_path, clock=lambda: now)
    assert (journal.backlog, journal.oldest_at) == (1, 1030)
    drained(journal)
    journal.close()


def test_a_restart_knows_what_was_drained(tmp_path: Path) -> None:
    """After a crash the backlog is what waits, not what lies in the files, and only that is delivered."""
    journal = opened(tmp_path)
    for n in range(40):
        journal.begin(id_of(n), b"begin")
        journal.end(id_of(n), b"end %d" % n)
    journal.next_batch(25)
    journal.commit()
    journal.begin(id_of(99), b"begin")
    crash(journal)
    journal = opened(tmp_path)
    assert journal.backlog == 15
    assert [orphan.id for orphan in journal.orphans()] == [id_of(99)]
    assert drained(journal) == [b"end %d" % n for n in range(25, 40)]
    assert journal.backlog == 0
    crash(journal)
    journal = opened(tmp_path)
    assert (journal.backlog, drained(journal)) == (0, [])
    journal.end(id_of(99), b"end 99")
    assert drained(journal) == [b"end 99"]
    journal.close()
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: data[:-1], id="short"),
        pytest.param(lambda data: data[:9] + b"\xff" + data[10:], id="changed"),
        pytest.param(lambda data: _mark(1, 10**9), id="behind the end"),
        pytest.param(lambda data: _mark(7, 16), id="in no segment"),
        pytest.param(lambda data: _mark(1, 77), id="inside a record"),
    ],
)
def test_a_mark_that_does_not_fit_costs_nothing(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """With a mark that was lost, torn, or is of other files, everything is delivered once more."""
    journal = opened(tmp_path)
    for n in range(10):
        journal.begin(id_of(n), b"begin")
        journal.end(id_of(n), b"end %d" % n)
    journal.next_batch(4)
    journal.commit()
    crash(journal)
    mark = tmp_path / "drained"
    mark.write_bytes(damage(mark.read_bytes()))
    journal = opened(tmp_path)
    assert journal.backlog == 10
    assert drained(journal) == [b"end %d" % n for n in range(10)]
    journal.close()


def test_a_mark_of_an_earlier_life_hides_nothing(tmp_path: Path) -> None:
    """Segments that a power cut took, and new ones of the same number: the old mark does not reach into these."""
    journal = opened(tmp_path)
    for n in range(10):
        journal.begin(id_of(n), b"begin")
        journal.end(id_of(n), b"end %d" % n)
    assert len(drained(journal)) == 10
    crash(journal)
    for segment in tmp_path.glob("*.segment"):
        segment.unlink()
    journal = opened(tmp_path)
    for n in range(20):
        journal.begin(id_of(n), b"begin")
        journal.end(id_of(n), b"new %d" % n)
    crash(journal)
    journal = opened(tmp_path)
    assert drained(journal) == [b"new %d" % n for n in range(20)]
    journal.close()


def _mark(number: int, offset: int) -> bytes:
    place = struct.pack(">QQ", number, offset)
    return place + struct.pack(">I", zlib.crc32(place))


def test_drained_segments_are_deleted(tmp_path: Path) -> None:
    """However much goes through a journal, only what is not drained stays on disk."""
    journal = opened(tmp_path)
    for n in range(300):
        journal.begin(id_of(n), b"b" * 1000)
        journal.end(id_of(n), b"e" * 1000)
        if n % 10 == 9:
            assert len(drained(journal)) == 10
            assert journal.bytes_held <= 6 * SMALL
    journal.close()


@pytest.mark.long
def test_memory_stays_bounded_however_long_postgres_is_away(tmp_path: Path) -> None:
    """Tens of thousands of undrained events cost disk; reading them back costs one batch of memory."""
    journal = Journal.open(tmp_path, fsync_ms=None)
    tracemalloc.start()
    try:
        for n in range(30_000):
            journal.begin(id_of(n), b"b" * 100)
            journal.end(id_of(n), b"e" * 200)
        written = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        count = 0
        while batch := journal.next_batch(500):
            count += len(batch)
            journal.commit()
        read = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 30_000
    assert written < 2_000_000
    assert read < 5_000_000
    journal.close()


def test_what_was_just_written_is_drained_without_being_read(tmp_path: Path) -> None:
    """A drain that follows at once needs no file; a new life finds the same ends in the files."""
    journal = opened(tmp_path)
    for n in range(20):
        journal.begin(id_of(n), b"begin")
        journal.end(id_of(n), b"end %d" % n)
    [segment] = files(tmp_path)
    written = segment.read_bytes()
    segment.write_bytes(bytes(len(written)))
    assert drained(journal) == [b"end %d" % n for n in range(20)]
    crash(journal)
    (tmp_path / "drained").unlink()
    segment.write_bytes(written)
    journal = opened(tmp_path)
    assert drained(journal) == [b"end %d" % n for n in range(20)]
    journal.close()


def test_one_owner(tmp_path: Path) -> None:
    """A folder in use can't be opened a second time; let go of, it can."""
    journal = opened(tmp_path)
    with pytest.raises(JournalLocked):
        opened(tmp_path)
    journal.close()
    opened(tmp_path).close()


def test_files_are_private(tmp_path: Path) -> None:
    """Nobody else can read the journal: it says who called what."""
    journal = opened(tmp_path / "deep" / "journal")
    assert (tmp_path / "deep" / "journal").stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "deep" / "journal").iterdir())
    journal.close()


# -- carrying forward ----------------------------------------------------------------------------


def test_a_long_call_is_carried_forward(tmp_path: Path) -> None:
    """The segment a long call began in is deleted all the same, and after a crash the call is still known."""
    journal = opened(tmp_path)
    journal.begin(id_of(0), b"the long one")
    first = files(tmp_path)[0]
    for n in range(1, 200):
        journal.begin(id_of(n), b"b" * 500)
        journal.end(id_of(n), b"e" * 500)
        drained(journal)
    journal._syncer.close()
    assert not first.exists()
    assert journal.bytes_held <= 5 * SMALL
    crash(journal)
    journal = opened(tmp_path)
    assert [(o.id, o.payload) for o in journal.orphans()] == [(id_of(0), b"the long one")]
    journal.end(id_of(0), b"end")
    assert drained(journal)[-1] == b"end"
    journal.close()


class Platter:
    """What a power cut would leave of a folder's segments: their content when they were last synced."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: dict[str, bytes] = {}
        self.syncs = 0

    def sync(self, fd: int) -> None:
        self.syncs += 1
        for path in files(self._folder):
            with suppress(FileNotFoundError):
                if path.stat().st_ino == os.fstat(fd).st_ino:
                    self._kept[path.name] = os.pread(fd, os.fstat(fd).st_size, 0)

    def holds(self, text: bytes) -> bool:
        """Names are never used again, so what was kept of a name that is still there is what would be read."""
        return any(text in self._kept.get(name, b"") for name in os.listdir(self._folder))


@pytest.mark.parametrize("fsync_ms", [None, 0, 1])
def test_the_copy_is_on_disk_before_the_original_goes(tmp_path: Path, fsync_ms: float | None) -> None:
    """At no moment after the first deletion would a power cut forget a call that was carried forward."""
    platter = Platter(tmp_path)
    journal = opened(tmp_path, fsync_ms=fsync_ms, sync=platter.sync)
    journal.begin(id_of(0), b"the long one")
    original = files(tmp_path)[0]
    for n in range(1, 300):
        journal.begin(id_of(n), b"b" * 1000)
        journal.end(id_of(n), b"e" * 1000)
        drained(journal)
        assert original.exists() or platter.holds(b"the long one")
    journal.close()
    assert not original.exists()
    assert platter.holds(b"the long one")


def test_what_cannot_be_carried_stays_where_it_is(tmp_path: Path) -> None:
    """On a full disk a segment with a call under way is kept, the ones after it go, and nothing is lost in a crash."""
    disk = Disk(3)
    journal = opened(tmp_path, allocate=disk.allocate, monotonic=lambda: 0.0)
    calls: list[int] = []
    with pytest.raises(JournalFull):
        for n in range(100):
            journal.begin(id_of(n), b"b" * 1500)
            calls.append(n)
    long = calls.pop(0)
    for n in calls:
        journal.end(id_of(n), b"e" * 4000)
    assert drained(journal) == [b"e" * 4000] * len(calls)
    crash(journal)
    assert long in {int.from_bytes(o.id, "big") for o in opened(tmp_path, allocate=Disk(0).allocate).orphans()}


# -- sync ----------------------------------------------------------------------------------------


def test_each_append_is_on_disk_before_it_returns(tmp_path: Path) -> None:
    """With fsync_ms 0 a power cut right after `begin` or `end` takes nothing."""
    platter = Platter(tmp_path)
    journal = opened(tmp_path, fsync_ms=0, sync=platter.sync)
    for n in range(20):
        journal.begin(id_of(n), b"begin %d." % n)
        assert platter.holds(b"begin %d." % n)
        journal.end(id_of(n), b"end %d." % n)
        assert platter.holds(b"end %d." % n)
    journal.close()


def test_appends_are_synced_in_groups(tmp_path: Path) -> None:
    """With an interval everything is synced in the end, by far fewer syncs than appends."""
    platter = Platter(tmp_path)
    journal = Journal.open(tmp_path, segment_bytes=1024 * 1024, fsync_ms=20, sync=platter.sync)
    for n in range(500):
        journal.begin(id_of(n), b"begin %d." % n)
    journal.close()
    assert platter.holds(b"begin 499.")
    assert platter.syncs < 100


def test_a_disk_that_fails_to_sync_stops_new_calls(tmp_path: Path) -> None:
    """After a failed sync begins are refused, ends are still taken and drained, and nothing is deleted any more."""
    faults: list[str] = []
    failed = threading.Event()

    def sync(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def on_fault(what: str, error: Exception) -> None:
        faults.append(what)
        failed.set()

    journal = opened(tmp_path, fsync_ms=1, sync=sync, on_fault=on_fault)
    for n in range(4):
        journal.begin(id_of(n), b"b" * 4000)
    assert failed.wait(30)
    assert journal.failed
    with pytest.raises(JournalFailed):
        journal.begin(id_of(9), b"begin")
    for n in range(4):
        journal.end(id_of(n), b"e" * 4000)
    held = files(tmp_path)
    assert drained(journal) == [b"e" * 4000] * 4
    journal.close()
    assert faults == ["sync"]
    assert files(tmp_path) == held


def test_a_begin_that_could_not_be_synced_did_not_happen(tmp_path: Path) -> None:
    """With fsync_ms 0 a begin whose sync fails is refused and leaves no orphan: its call never goes out."""
    broken = False

    def sync(fd: int) -> None:
        if broken:
            raise OSError(errno.EIO, "Input/output error")

    journal = opened(tmp_path, fsync_ms=0, sync=sync)
    journal.begin(id_of(1), b"begin")
    broken = True
    with pytest.raises(JournalFailed):
        journal.begin(id_of(2), b"begin")
    crash(journal)
    journal = opened(tmp_path)
    assert [o.id for o in journal.orphans()] == [id_of(1)]
    crash(journal)


# -- a disk that is full or fails ----------------------------------------------------------------


@given(st.data(), st.integers(0, 5), st.integers(SMALL, 5 * SMALL))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_an_end_never_meets_a_full_disk(data: st.DataObject, room: int, segment_bytes: int) -> None:
    """Whatever the sizes, once the disk is full every call that was let in can end, at the largest size too."""
    with folder() as path:
        disk = Disk(room + 1)
        journal = opened(path, segment_bytes=segment_bytes, max_bytes=100 * segment_bytes, allocate=disk.allocate)
        size = st.integers(0, PAYLOAD_BYTES_MAX) | st.just(PAYLOAD_BYTES_MAX)
        chance = random.Random(data.draw(st.integers()))
        largest = data.draw(size)
        under_way: list[int] = []
        expected: list[bytes] = []
        for n in range(2000):
            try:
                journal.begin(id_of(n), b"b" * chance.randrange(largest + 1))
                under_way.append(n)
            except JournalFull:
                break
            if chance.random() < 0.4:
                ending = under_way.pop(chance.randrange(len(under_way)))
                expected.append(b"%d " % ending + b"e" * chance.randrange(4000))
                journal.end(id_of(ending), expected[-1])
        else:
            pytest.fail("the disk was never full")
        for ending in under_way:
            expected.append((b"%d " % ending).ljust(PAYLOAD_BYTES_MAX, b"e"))
            journal.end(id_of(ending), expected[-1])
        assert not journal._outlet.unwritten
        crash(journal)
        journal = opened(path, segment_bytes=segment_bytes, max_bytes=100 * segment_bytes, allocate=Disk(0).allocate)
        assert journal.orphans() == []
        assert drained(journal) == expected
        crash(journal)


@given(st.integers(0, 2**32), st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_calls_cut_off_on_a_full_disk_can_be_finished(seed: int, room: int) -> None:
    """The room set aside for ends is found again after a crash, on a disk that has none left."""
    with folder() as path:
        chance = random.Random(seed)
        journal = opened(path, allocate=Disk(room).allocate)
        begun = 0
        with pytest.raises(JournalFull):
            while True:
                journal.begin(id_of(begun), b"b" * chance.randrange(2000))
                begun += 1
        crash(journal)
        journal = opened(path, allocate=Disk(0).allocate)
        assert len(journal.orphans()) == begun
        for orphan in journal.orphans():
            journal.end(orphan.id, b"e" * PAYLOAD_BYTES_MAX)
        assert not journal._outlet.unwritten
        crash(journal)
        journal = opened(path, allocate=Disk(0).allocate)
        assert len(drained(journal)) == begun
        crash(journal)


def test_a_full_disk_is_not_asked_for_every_call(tmp_path: Path) -> None:
    """While the disk is full refusals are cheap; soon after there is room again calls are taken."""
    now = 0.0
    disk = Disk(1)
    journal = opened(tmp_path, allocate=disk.allocate, monotonic=lambda: now)
    refused = 0
    for n in range(50):
        try:
            journal.begin(id_of(n), b"begin")
        except JournalFull:
            refused += 1
    assert refused > 40
    assert disk.asked == 2
    disk.room = 1
    now = 1.0
    journal.begin(id_of(99), b"begin")
    crash(journal)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_shortage_of_files_or_memory_passes(tmp_path: Path, code: int) -> None:
    """Where the system has no descriptor or memory for another segment begins are refused until it has."""
    now, short = 0.0, False

    def allocate(fd: int, size: int) -> None:
        if short:
            raise OSError(code, os.strerror(code))
        os.ftruncate(fd, size)

    journal = opened(tmp_path, allocate=allocate, monotonic=lambda: now)
    short = True
    with pytest.raises(JournalFull, match=os.strerror(code)):
        for n in range(1000):
            journal.begin(id_of(n), b"begin")
    assert not journal.failed and not journal.has_room()
    short, now = False, 1.0
    assert journal.has_room()
    journal.begin(id_of(2000), b"begin")
    crash(journal)


def test_the_journal_has_a_largest_size(tmp_path: Path) -> None:
    """At max_bytes begins are refused, naming the setting; draining makes room again."""
    journal = opened(tmp_path, max_bytes=3 * SMALL)
    with pytest.raises(JournalFull, match="journal_max_mb"):
        for n in range(100):
            journal.begin(id_of(n), b"b" * 1000)
            journal.end(id_of(n), b"e" * 1000)
    assert journal.bytes_held == 3 * SMALL
    drained(journal)
    journal.begin(id_of(200), b"b" * 1000)
    crash(journal)


def test_no_room_at_all_is_said_at_once(tmp_path: Path) -> None:
    """On a disk without room for one segment the journal does not open, and leaves no half file."""
    with pytest.raises(JournalFull):
        opened(tmp_path, allocate=Disk(0).allocate)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    opened(tmp_path).close()


def test_ends_the_disk_refuses_reach_postgres_from_memory(tmp_path: Path) -> None:
    """Where the disk fails to take an end it is delivered all the same, and no new call is let in."""
    faults: list[str] = []
    journal = opened(tmp_path, on_fault=lambda what, error: faults.append(what))
    for n in range(3):
        journal.begin(id_of(n), b"begin")
    journal.end(id_of(0), b"end 0")
    # Writing through it fails from here on, as on a disk that went read-only.
    segment = journal._room.used[-1]
    read_only = os.open(segment.path, os.O_RDONLY)
    os.dup2(read_only, segment.fd)
    os.close(read_only)
    journal.end(id_of(1), b"end 1")
    journal.end(id_of(2), b"end 2")
    assert journal.failed
    with pytest.raises(JournalFailed):
        journal.begin(id_of(9), b"begin")
    assert journal.backlog == 3
    assert journal.next_batch(2) == [b"end 0", b"end 1"]
    assert journal.next_batch(2) == [b"end 0", b"end 1"]
    journal.commit()
    assert drained(journal) == [b"end 2"]
    assert (journal.backlog, faults) == (0, ["write"])
    crash(journal)


def test_a_real_full_disk(tmp_path: Path) -> None:
    """On a real file system without room left, begins are refused and every call under way can end."""
    with small_disk(tmp_path) as path:
        journal = Journal.open(path / "journal", segment_bytes=256 * 1024, fsync_ms=1)
        # Somebody else fills the disk.
        with (path / "other").open("wb", buffering=0) as other, pytest.raises(OSError, match="No space"):
            while True:
                other.write(bytes(64 * 1024))
        begun = 0
        with pytest.raises(JournalFull):
            while True:
                journal.begin(id_of(begun), b"b" * 400)
                begun += 1
        for n in range(begun):
            journal.end(id_of(n), b"e" * PAYLOAD_BYTES_MAX)
        assert begun > 20
        assert len(drained(journal)) == begun
        (path / "other").unlink()
        journal.close()


def test_a_limit_on_file_sizes_counts_as_full() -> None:
    """A process that may not write larger files refuses begins like on a full disk, and ends what it took."""
    program = """
import resource, signal, sys, tempfile
from pathlib import Path
from farebox.journal import Journal, JournalFull
with tempfile.TemporaryDirectory() as folder:
    journal = Journal.open(Path(folder), segment_bytes=64 * 1024, fsync_ms=1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (32 * 1024, resource.RLIM_INFINITY))
    begun = 0
    try:
        while True:
            journal.begin(begun.to_bytes(16, "big"), b"b" * 100)
            begun += 1
    except JournalFull:
        pass
    for n in range(begun):
        journal.end(n.to_bytes(16, "big"), b"e" * 4096)
    found = []
    while batch := journal.next_batch(100):
        found += batch
        journal.commit()
    assert len(found) == begun > 5, (len(found), begun)
    assert not journal.failed
    journal.close()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# -- crashes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_kill_9_at_any_moment(tmp_path: Path, seed: int) -> None:
    """After each of several kills in the middle of it all, every call that was begun is known, and ended once."""
    chance = random.Random(seed)
    begun: set[int] = set()
    ended: set[int] = set()
    delivered: dict[int, bytes] = {}
    unsaid: set[int] = set()
    first = 0
    for _ in range(3):
        said = run_and_kill(tmp_path, first, lines=chance.randrange(1, 3000))
        for verb, *numbers in said:
            {"b": begun, "e": ended, "d": set()}[verb].update(numbers)
            if verb == "d":
                assert set(numbers) <= begun | unsaid
                delivered |= dict.fromkeys(numbers, b"")
        journal = Journal.open(tmp_path, segment_bytes=64 * 1024, max_bytes=64 * 1024 * 1024)
        open_now = {int.from_bytes(o.id, "big") for o in journal.orphans()}
        assert begun - ended <= open_now | set(payloads_of(journal)) | set(delivered)
        # A kill may fall between the doing and the saying of one thing.
        assert len(open_now - (begun - ended)) <= 1
        unsaid |= open_now - begun
        crash(journal)
        first = max([*begun, *open_now, first]) + 1
    journal = Journal.open(tmp_path, segment_bytes=64 * 1024, max_bytes=64 * 1024 * 1024)
    for orphan in journal.orphans():
        journal.end(orphan.id, b"cut %d" % int.from_bytes(orphan.id, "big"))
    found = payloads_of(journal)
    assert set(found) | set(delivered) >= begun
    assert all(found.get(n, b"end").startswith((b"end", b"cut")) for n in begun)
    drained(journal)
    journal.close()
    assert files(tmp_path) == []


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    """The folder of a killed process can be taken over at once."""
    run_and_kill(tmp_path, 0, lines=5)
    Journal.open(tmp_path).close()


@pytest.mark.parametrize("kept", range(FRAME_BYTES + 12))
def test_a_torn_record_is_as_if_never_written(tmp_path: Path, kept: int) -> None:
    """A write of which only the first bytes arrived loses itself and nothing else, and the journal goes on."""
    journal = opened(tmp_path)
    journal.begin(id_of(1), b"begin 1")
    journal.begin(id_of(2), b"begin 2")
    segment = journal._room.used[-1]
    os.pwrite(segment.fd, frame(END, id_of(1), b"torn payload", 0.0)[:kept], segment.end)
    crash(journal)
    journal = opened(tmp_path)
    assert [o.id for o in journal.orphans()] == [id_of(1), id_of(2)]
    journal.end(id_of(1), b"x")
    crash(journal)
    journal = opened(tmp_path)
    assert journal.damaged_bytes == 0
    assert [o.id for o in journal.orphans()] == [id_of(2)]
    assert drained(journal) == [b"x"]
    crash(journal)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damage_takes_only_what_it_touches(data: st.DataObject) -> None:
    """Bytes that rot, or a hole a power cut left, cost the records they lie in; all others are found."""
    records = [
        frame(data.draw(st.sampled_from([BEGIN, END])), id_of(n), data.draw(st.binary(max_size=200)), 1.0)
        for n in range(data.draw(st.integers(1, 12)))
    ]
    written = b"".join(records)
    start = data.draw(st.integers(0, len(written) - 1))
    stop = data.draw(st.integers(start + 1, len(written)))
    filler = data.draw(st.sampled_from([b"\0", b"\x1e", b"f", b"\xff"]))
    damaged = written[:start] + filler * (stop - start) + written[stop:]
    untouched, offset = [], 0
    for n, record in enumerate(records):
        if damaged[offset : offset + len(record)] == record:
            untouched.append(n)
        offset += len(record)
    found = parse(damaged + bytes(500), 0, final=True)
    assert [int.from_bytes(r.id, "big") for r in found.records] == untouched


@given(st.lists(st.binary(max_size=300), max_size=20), st.integers(RECORD_BYTES_MAX + 1, 3 * RECORD_BYTES_MAX))
def test_reading_in_pieces_is_reading_whole(payloads: list[bytes], piece: int) -> None:
    """Wherever pieces end, the same records are found at the same places."""
    written = b"".join(frame(END, id_of(n), p * 10, 1.0) for n, p in enumerate(payloads)) + bytes(9000)
    whole = parse(written, 0, final=True)
    assert [r.payload for r in whole.records] == [p * 10 for p in payloads]
    found, at = [], 0
    while at < len(written):
        part = parse(written[at : at + piece], at, final=at + piece >= len(written))
        found += part.records
        assert part.damaged == 0
        at = part.stop
    assert found == whole.records


def test_a_forged_record_inside_a_payload_is_not_found() -> None:
    """Text a client made up can't be taken for a record: JSON escapes the bytes that open one."""
    forged = frame(END, id_of(66), b"{}", 1.0)
    assert any(byte < 0x20 for byte in forged[:3])


def test_unfinished_and_empty_files_are_swept_up(tmp_path: Path) -> None:
    """What a crash leaves of a segment that was being made is removed or used, and is never in the way."""
    opened(tmp_path).close()
    (tmp_path / "0000000000000007.unfinished").write_bytes(b"half")
    (tmp_path / "0000000000000008.segment").write_bytes(b"")
    (tmp_path / "0000000000000009.segment").write_bytes(bytes(SMALL))
    journal = opened(tmp_path, allocate=Disk(0).allocate)
    assert [path.name for path in files(tmp_path)] == ["0000000000000009.segment"]
    journal.begin(id_of(1), b"begin")
    crash(journal)


def test_a_power_cut_may_empty_a_segment_in_the_middle(tmp_path: Path) -> None:
    """A segment whose content never reached the disk does not hide the later ones, and new records follow those."""
    journal = opened(tmp_path)
    for n in range(12):
        journal.begin(id_of(n), b"b")
        journal.end(id_of(n), b"%d " % n + b"e" * 4000)
    crash(journal)
    first, second, *_ = files(tmp_path)
    lost = {r.id for r in parse(second.read_bytes()[HEADER_BYTES:], 0, final=True).records if r.kind == END}
    second.write_bytes(bytes(SMALL))
    journal = opened(tmp_path)
    assert not second.exists()
    journal.begin(id_of(50), b"b")
    journal.end(id_of(50), b"50 ")
    ids = [int(p.split()[0]) for p in drained(journal)]
    assert ids == [n for n in range(12) if id_of(n) not in lost] + [50]
    crash(journal)
    assert first != second


def test_a_newer_format_is_left_alone(tmp_path: Path) -> None:
    """A journal from a newer farebox is neither read nor changed."""
    journal = opened(tmp_path)
    journal.begin(id_of(1), b"begin")
    crash(journal)
    [path] = files(tmp_path)
    content = bytearray(path.read_bytes())
    content[HEADER_BYTES - 1] += 1
    path.write_bytes(content)
    with pytest.raises(JournalVersionError, match="newer farebox"):
        opened(tmp_path)
    assert path.read_bytes() == content


class JournalLife(RuleBasedStateMachine):
    """Any sequence of calls, drains, crashes and restarts, beside a plain model of what must be known.

    Ends come from memory, from the files, or from both in turn.
    """

    @initialize(held=st.sampled_from([0, 6000, HELD_BYTES_MAX]))
    def start(self, held: int) -> None:
        self.held = held
        self.folder = Path(tempfile.mkdtemp(dir=quick_disk()))
        self.number = 0
        self.under_way: list[int] = []
        self.waiting: list[int] = []
        self.delivered: set[int] = set()
        self.journal = opened(self.folder, held_bytes_max=self.held)

    @rule(count=st.integers(1, 5), size=st.integers(0, 2000))
    def begin(self, count: int, size: int) -> None:
        for _ in range(count):
            self.number += 1
            self.journal.begin(id_of(self.number), (b"b%d " % self.number).ljust(size, b"."))
            self.under_way.append(self.number)

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), size=st.integers(0, PAYLOAD_BYTES_MAX))
    def end(self, data: st.DataObject, size: int) -> None:
        ending = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        self.journal.end(id_of(ending), (b"%d " % ending).ljust(size, b"."))
        self.waiting.append(ending)

    @rule(rows=st.integers(1, 8), committed=st.booleans())
    def drain(self, rows: int, committed: bool) -> None:
        batch = [int(payload.split()[0]) for payload in self.journal.next_batch(rows)]
        assert batch == self.waiting[:rows]
        if committed:
            self.journal.commit()
            self.delivered.update(batch)
            del self.waiting[: len(batch)]

    @rule(torn=st.binary(max_size=60))
    def crash_and_restart(self, torn: bytes) -> None:
        tail = self.journal._room.used[-1]
        os.pwrite(tail.fd, torn[: tail.size - tail.end], tail.end)
        crash(self.journal)
        self.journal = opened(self.folder, held_bytes_max=self.held)
        orphans = {int.from_bytes(o.id, "big"): o.payload.split()[0] for o in self.journal.orphans()}
        assert orphans == {n: b"b%d" % n for n in self.under_way}
        again = [int(payload.split()[0]) for payload in drained(self.journal)]
        assert again == self.waiting
        assert len(set(again)) == len(again)
        self.delivered.update(again)
        self.waiting.clear()

    @rule()
    def close_and_restart(self) -> None:
        self.journal.close()
        if not self.under_way and not self.waiting:
            assert files(self.folder) == []
        self.journal = opened(self.folder, held_bytes_max=self.held)
        if self.waiting or self.under_way:
            self.crash_and_restart(b"")

    @invariant()
    def numbers_agree(self) -> None:
        if hasattr(self, "journal"):
            assert self.journal.in_flight == len(self.under_way)
            assert self.journal.backlog == len(self.waiting)

    def teardown(self) -> None:
        if hasattr(self, "journal"):
            crash(self.journal)
            shutil.rmtree(self.folder)


JournalLife.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestJournalLife = JournalLife.TestCase


# -- help ----------------------------------------------------------------------------------------


@contextmanager
def folder() -> Iterator[Path]:
    """A folder for one example."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@contextmanager
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes; skips the test where none may be mounted."""
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if sys.platform != "linux" or mount is None or umount is None or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    path = tmp_path / "disk"
    path.mkdir()
    made = subprocess.run([mount, "-t", "tmpfs", "-o", "size=2m", "farebox-test", str(path)], capture_output=True)
    if made.returncode != 0:
        pytest.skip("a small disk can't be mounted here")
    try:
        yield path
    finally:
        subprocess.run([umount, str(path)], check=True)


def run_and_kill(path: Path, first: int, *, lines: int) -> list[tuple[Any, ...]]:
    """Let a writer work until it has said so many things, kill it, and return all that it said."""
    process = subprocess.Popen([sys.executable, str(WRITER), str(path), str(first)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(lines)]
    process.kill()
    said += process.stdout.read().splitlines(keepends=True)
    process.stdout.close()
    assert process.wait() == -9
    complete = [line.split() for line in said if line.endswith(b"\n")]
    return [(verb.decode(), *map(int, numbers)) for verb, *numbers in complete]


def payloads_of(journal: Journal) -> dict[int, bytes]:
    """Undrained payloads by the number they carry, each of them once."""
    found = [(int(payload.split()[1]), payload) for payload in journal.next_batch(1_000_000)]
    assert len(dict(found)) == len(found), "delivered twice"
    return dict(found)
