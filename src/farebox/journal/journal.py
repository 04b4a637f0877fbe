"""The journal: begins and ends go in, ends come out in order, and nothing in between is lost.

One folder, one owner (locked for the owner's life), a row of segment files of a fixed size.
`begin` writes down that a call goes out, `end` how it ended; both reach the operating system
before they return, so a killed process loses neither. The drain has them from the `outlet`.

A segment whose ends are all drained is deleted. Calls still under way that began in it are carried
forward first: their begins are written again at the end of the journal, and synced, before it
goes. What survives a crash is read at `open`: begins without an end are the `orphans`; ends behind
the `mark` are delivered, some of them perhaps again, which the receiver must tolerate.

Not thread-safe: one thread uses a journal. What payloads mean, retrying, and adopting the
journals of the dead are the ledger's business.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from farebox.journal.errors import NO_ROOM, JournalFailed, JournalFull, JournalUnavailable
from farebox.journal.folder import lock, segments_in
from farebox.journal.format import BEGIN, END, FRAME_BYTES, PAYLOAD_BYTES_MAX, RECORD_BYTES_MAX, Orphan, Record, frame
from farebox.journal.mark import Mark
from farebox.journal.outlet import HELD_BYTES_MAX, Drained, Outlet
from farebox.journal.room import SLOT, Room
from farebox.journal.segment import HEADER_BYTES, Segment, allocate
from farebox.journal.sync import OnFault, Syncer, sync_file

_FAILED = "the journal's disk failed; no new calls are taken until farebox is restarted"
_CARRY_MAX = 256
"""Begins carried forward in one step, so that the event loop is not held up; the rest follows with the next."""


class Journal:
    """An open journal. Made by `Journal.open`."""

    def __init__(
        self,
        room: Room,
        syncer: Syncer,
        mark: Mark,
        outlet: Outlet,
        resources: ExitStack,
        *,
        fsync_ms: float | None,
        clock: Callable[[], float],
        on_fault: OnFault,
    ) -> None:
        self._room = room
        self._syncer = syncer
        self._resources = resources
        self._fsync_ms = fsync_ms
        self._sync_each = fsync_ms == 0
        self._clock = clock
        self._on_fault = on_fault
        self._failed = False
        self._open: dict[bytes, tuple[Segment, int, int]] = {}
        """Begins without an end: id -> the segment, the offset and the length of the record."""
        self._orphans: list[bytes] = []
        self._mark = mark
        self._seen_at = 0.0
        self._outlet = outlet
        self.damaged_bytes = 0
        """Bytes found at `open` that were written and make no record: a few are normal after a crash."""

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        segment_bytes: int = 16 * 1024 * 1024,
        max_bytes: int = 1024 * 1024 * 1024,
        fsync_ms: float | None = 20,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        allocate: Callable[[int, int], None] = allocate,
        sync: Callable[[int], None] = sync_file,
        on_fault: OnFault = lambda what, error: None,
        held_bytes_max: int = HELD_BYTES_MAX,
    ) -> Journal:
        """Lock `folder` (made if absent) and read what an earlier life left. Blocks, for seconds if there is a lot.

        segment_bytes  size of new files; `max_bytes` bounds all of them together, then begins are refused
        fsync_ms       None: never sync. 0: each append is on disk before it returns. Else: groups this far apart
        held_bytes_max bounds the latest ends that are kept in memory as well
        on_fault       told of a disk that failed (what was tried, the error), from any thread

        Raises JournalLocked, JournalFull (no room for the first segment), JournalVersionError, OSError.
        """
        with ExitStack() as resources:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            resources.callback(os.close, lock(folder))
            folder_fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            resources.callback(os.close, folder_fd)
            syncer = Syncer(folder_fd, interval_s=(fsync_ms or 0) / 1000, sync=sync, on_fault=on_fault)
            room = Room(
                folder,
                segment_bytes=segment_bytes,
                max_bytes=max_bytes,
                allocate=allocate,
                monotonic=monotonic,
                made=syncer.mark_folder,
            )
            resources.callback(room.close)
            syncer.start()
            resources.callback(syncer.close)
            mark = Mark(folder)
            resources.callback(mark.close)
            outlet = Outlet(room, held_bytes_max=held_bytes_max)
            journal = cls(room, syncer, mark, outlet, resources, fsync_ms=fsync_ms, clock=clock, on_fault=on_fault)
            journal._recover(folder)
            mark.start(outlet.place, sync)
            journal._resources = resources.pop_all()
            return journal

    # -- appending -----------------------------------------------------------------------------

    def begin(self, id: bytes, payload: bytes) -> None:
        """Write down that call `id` (16 bytes) goes out. Raises JournalFull or JournalFailed.

        After it returned, `end` of the same id can't fail. ValueError: too large, or begun already.
        """
        if self._failed or self._syncer.fault is not None:
            raise JournalFailed(_FAILED)
        if len(payload) > PAYLOAD_BYTES_MAX or id in self._open:
            raise ValueError("payload too large, or this id has begun already")
        record = frame(BEGIN, id, payload, self._clock())
        segment, at = self._append(record, len(self._open) + 1)
        self._open[id] = segment, at, len(record)
        if self._sync_each or not segment.dirty:
            self._written(segment)
            if self._syncer.fault is not None:
                # Where each append is synced: the call won't go out, so nothing may be left of it.
                self.end(id, b"")
                raise JournalFailed(_FAILED)

    def end(self, id: bytes, payload: bytes) -> int:
        """Write down how call `id` ended; an empty payload says that there is nothing to deliver. The `backlog` then.

        Never fails for an id that has begun; ValueError: too large. For one that has not begun, room
        must be found as for a begin, and JournalFull or JournalFailed says that it was not.
        """
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise ValueError("payload too large")
        now = self._clock()
        record = frame(END, id, payload, now)
        if self._open.pop(id, None) is None:
            segment, _ = self._append(record, len(self._open))
        else:
            segment = self._room.used[-1]
            try:
                if segment.size - segment.end < len(record):
                    segment = self._room.next()
                segment.write(record)
            except (OSError, JournalFull) as error:
                return self._end_unwritten(id, payload, now, error)
        if self._sync_each or not segment.dirty:
            self._written(segment)
        if payload:
            self._outlet.add(segment, payload, now)
        return self._outlet.backlog

    def _append(self, record: bytes, ends: int) -> tuple[Segment, int]:
        """Write `record` where `ends` ends still fit after it: the segment and the offset."""
        segment, size = self._room.used[-1], len(record)
        try:
            if segment.size - segment.end < size + ends * SLOT:
                # Not in this one alone: it is nearly full, or there are very many.
                segment = self._room.find(size, ends)
            return segment, segment.write(record)
        except OSError as error:
            if error.errno in NO_ROOM:
                raise JournalFull(f"the journal can't be written: {error.strerror}") from error
            self._fail("write", error)
            raise JournalFailed(_FAILED) from error

    def _end_unwritten(self, id: bytes, payload: bytes, now: float, error: Exception) -> int:
        """Keep in memory an end that the disk did not take. Should farebox die before it is delivered, its begin is
        an orphan."""
        if isinstance(error, OSError) and error.errno not in NO_ROOM:
            self._fail("write", error)
        elif not self._outlet.unwritten:
            self._on_fault("write", error)
        self._outlet.add_unwritten(id, payload, now)
        return self._outlet.backlog

    def _written(self, segment: Segment) -> None:
        if self._sync_each:
            self._syncer.sync_now(segment)
        elif self._fsync_ms is not None and not segment.dirty:
            self._syncer.mark(segment)

    def _fail(self, what: str, error: Exception) -> None:
        if not self._failed:
            self._failed = True
            self._on_fault(what, error)

    # -- draining ------------------------------------------------------------------------------

    def next_batch(self, rows_max: int) -> list[bytes]:
        """Up to `rows_max` payloads of ends, oldest first; the same ones again until `commit`. Empty: none are left."""
        payloads = self._outlet.next_batch(rows_max)
        if not payloads:
            self.commit()
        return payloads

    def commit(self) -> None:
        """The last batch is where it belongs: go on behind it, and delete what is done with."""
        if self._outlet.commit():
            self._mark.move(self._outlet.place)
            self._delete_drained()

    def _delete_drained(self) -> None:
        """Delete what lies behind the cursor, carrying forward what has begun there and goes on.

        A segment that can't be carried from for lack of room stays, and the ones after it go all the
        same. Begins in it may then have lost their ends, and after a crash they would be orphans
        once more; their ids are known where the ends went.
        """
        for segment in list(self._room.used):
            if segment is self._outlet.segment or self.failed:
                return
            try:
                if not self._carry(segment):
                    return
            except JournalUnavailable:
                continue
            self._room.used.remove(segment)
            self._syncer.retire(segment)

    def _carry(self, segment: Segment) -> bool:
        """Write the open begins of `segment` again, up to a number; whether none is left in it."""
        left = [(id, at, length) for id, (lies_in, at, length) in self._open.items() if lies_in is segment]
        for id, at, length in left[:_CARRY_MAX]:
            target, copied_at = self._append(segment.read(at, length), len(self._open))
            self._open[id] = target, copied_at, length
            if not target.dirty:
                # Also where appends are never synced: the original is deleted after this sync.
                self._syncer.mark(target)
        return len(left) <= _CARRY_MAX

    # -- facts ---------------------------------------------------------------------------------

    @property
    def backlog(self) -> int:
        """Ends not yet drained."""
        return self._outlet.backlog

    @property
    def oldest_at(self) -> float | None:
        """Unix seconds of the oldest end not yet drained, or a little before it; None without a backlog."""
        return self._outlet.oldest_at

    @property
    def in_flight(self) -> int:
        """Begins without an end."""
        return len(self._open)

    @property
    def failed(self) -> bool:
        """The disk reported an error: begins are refused until a restart."""
        return self._failed or self._syncer.fault is not None

    def has_room(self) -> bool:
        """Whether a begin would be taken now. Asks the disk, so it is for those who wonder, not for every call."""
        try:
            self._room.find(RECORD_BYTES_MAX, len(self._open) + 1)
        except (JournalFull, OSError):
            return False
        return not self.failed

    @property
    def bytes_held(self) -> int:
        """Size of all segment files."""
        return self._room.bytes_held

    def orphans(self) -> list[Orphan]:
        """Begins without an end that an earlier life left, oldest first; each leaves the list with its `end`."""
        found = []
        for id in self._orphans:
            began = self._open.get(id)
            if began is not None:
                segment, at, length = began
                found.append(Orphan(id, segment.read(at, length)[FRAME_BYTES:], self._seen_at))
        return found

    # -- life ----------------------------------------------------------------------------------

    def _recover(self, folder: Path) -> None:
        before = Drained(self._mark.read())
        for path in segments_in(folder):
            segment = Segment.reopen(path)
            try:
                for record in segment.recover():
                    before.pass_by(segment.number, record)
                    self._replay(record, segment)
            except BaseException:
                segment.close()
                raise
            self.damaged_bytes += segment.damaged
            self._room.take_back(segment)
            if segment.end > HEADER_BYTES and self._fsync_ms is not None:
                # The life that wrote it may have died before its sync.
                self._syncer.mark(segment)
        if not self._room.used:
            self._room.next()
        self._orphans = list(self._open)
        self._outlet.begin_at(before)

    def _replay(self, record: Record, segment: Segment) -> None:
        self._seen_at = max(self._seen_at, record.written_at)
        self._open.pop(record.id, None)
        if record.kind == BEGIN:
            self._open[record.id] = segment, record.start, record.stop - record.start

    def close(self) -> None:
        """Sync, and let go of the folder. A journal with nothing left in it leaves no segments behind."""
        done = not self.backlog and not self._open and not self.failed
        self._write_unwritten()
        self._syncer.close()
        if done:
            for segment in self._room:
                segment.remove()
            self._mark.remove()
        self._resources.close()

    def _write_unwritten(self) -> None:
        """Try once more to put on disk what only memory holds, before it goes."""
        for id, payload in self._outlet.unwritten:
            try:
                segment, _ = self._append(frame(END, id, payload, self._clock()), len(self._open))
            except JournalUnavailable as error:
                self._on_fault("close", error)
                return
            if not segment.dirty:
                self._syncer.mark(segment)
