"""Where ends come out of a journal: oldest first, in batches, the same ones again until they are committed.

The files are what counts, and a million ends that wait for Postgres cost disk and no memory. But mostly the
drain follows at once: so the latest ends are also held in memory, up to a bound, and a batch of them need not be
read and checked again (4 us a row). Past the bound the oldest are let go of, and are read from the files.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import NamedTuple

from farebox.journal.format import END, Record
from farebox.journal.mark import Place
from farebox.journal.room import Room
from farebox.journal.segment import HEADER_BYTES, Segment

HELD_BYTES_MAX = 1024 * 1024
"""Ends held in memory beside the files; past it the oldest of them are only in the files."""
_HELD_OVERHEAD = 200
"""About what an end costs in memory besides its payload."""


_Held = tuple[Segment, int, bytes, float]
"""An end in memory: its segment, the offset behind it, the payload, when it was written."""


class _Batch(NamedTuple):
    segment: Segment
    offset: int
    rows: int
    unwritten: int
    newest_at: float


class Drained:
    """What lies before the mark of an earlier life, found out while its records pass by in order."""

    def __init__(self, place: Place | None) -> None:
        self.place = place or Place(0, 0)
        self.fits = False
        """Whether the mark names the end of a record that is there. If not, it tells nothing."""
        self.ends = 0
        """Ends before it."""
        self.waiting = 0
        """Ends behind it."""
        self.first_at = 0.0
        """When the first end of all was written."""
        self.next_at = 0.0
        """When the first one behind the mark was."""

    def pass_by(self, number: int, record: Record) -> None:
        behind = (number, record.start) >= self.place
        if number == self.place.number and self.place.offset in (record.start, record.stop):
            self.fits = True
        if record.kind == END and record.payload:
            self.first_at = self.first_at or record.written_at
            if behind:
                self.waiting += 1
                self.next_at = self.next_at or record.written_at
            else:
                self.ends += 1


class Outlet:
    """The ends of the segments in `room`, behind a cursor. `begin_at` before anything else."""

    def __init__(self, room: Room, *, held_bytes_max: int = HELD_BYTES_MAX) -> None:
        self._room = room
        self._held_bytes_max = held_bytes_max
        self._held: deque[_Held] = deque()
        self._held_bytes = 0
        self._held_since = Place(0, 0)
        """Every end behind it that is in the files, and not drained, is in `_held` too."""
        self.unwritten: deque[tuple[bytes, bytes]] = deque()
        """Ends the disk did not take although room was set aside for them. Bounded by the calls under way when
        that began, since no begin is taken then."""
        self.backlog = 0
        """Ends not yet drained."""
        self._oldest_at = 0.0
        self.segment: Segment
        """The one the cursor is in: those before it are drained."""
        self._offset: int
        self._batch: _Batch | None = None

    def begin_at(self, before: Drained) -> None:
        """Go on where an earlier life said that it stopped, or at the very beginning."""
        tail = self._room.used[-1]
        self._held_since = Place(tail.number, tail.end)
        self.segment, self._offset = self._room.used[0], HEADER_BYTES
        self.backlog, self._oldest_at = before.ends + before.waiting, before.first_at
        marked = next((s for s in self._room.used if before.fits and s.number == before.place.number), None)
        if marked is not None:
            self.segment, self._offset = marked, before.place.offset
            self.backlog, self._oldest_at = before.waiting, before.next_at

    @property
    def place(self) -> Place:
        """Everything before it is drained."""
        return Place(self.segment.number, self._offset)

    @property
    def oldest_at(self) -> float | None:
        """Unix seconds of the oldest end not yet drained, or a little before it; None without a backlog."""
        return self._oldest_at if self.backlog else None

    def add(self, segment: Segment, payload: bytes, now: float) -> None:
        """An end was written: the last record of `segment`."""
        if not self.backlog:
            self._oldest_at = now
        self.backlog += 1
        self._held.append((segment, segment.end, payload, now))
        self._held_bytes += len(payload) + _HELD_OVERHEAD
        while self._held_bytes > self._held_bytes_max:
            self._let_go()

    def add_unwritten(self, id: bytes, payload: bytes, now: float) -> None:
        """An end could not be written. It goes to Postgres from memory."""
        self.unwritten.append((id, payload))
        if payload:
            self._oldest_at = self._oldest_at if self.backlog else now
            self.backlog += 1

    def _let_go(self) -> None:
        segment, stop, payload, _ = self._held.popleft()
        self._held_bytes -= len(payload) + _HELD_OVERHEAD
        self._held_since = Place(segment.number, stop)

    def next_batch(self, rows_max: int) -> list[bytes]:
        """Up to `rows_max` payloads of ends, oldest first; the same ones again until `commit`. Empty: none are left."""
        read = self._remember if self.place >= self._held_since else self._read
        payloads = read(rows_max)
        return payloads if len(payloads) == rows_max else self._add_unwritten(payloads, rows_max)

    def _remember(self, rows_max: int) -> list[bytes]:
        """The next ends from memory."""
        held = list(islice(self._held, rows_max))
        segment, stop, _, newest_at = held[-1] if held else (self.segment, self._offset, b"", 0.0)
        if len(held) < rows_max:
            # Behind the last end there are only begins.
            segment = self._room.used[-1]
            stop = segment.end
        self._batch = _Batch(segment, stop, len(held), 0, newest_at)
        return [payload for _, _, payload, _ in held]

    def _read(self, rows_max: int) -> list[bytes]:
        """The next ends from the files."""
        payloads: list[bytes] = []
        newest_at = 0.0
        for segment in [s for s in self._room.used if s.number >= self.segment.number]:
            offset = self._offset if segment is self.segment else HEADER_BYTES
            for found in segment.chunks(offset, segment.end):
                for record in found.records:
                    if record.kind != END or not record.payload:
                        continue
                    payloads.append(record.payload)
                    newest_at = record.written_at
                    if len(payloads) == rows_max:
                        self._batch = _Batch(segment, record.stop, rows_max, 0, newest_at)
                        return payloads
            self._batch = _Batch(segment, segment.end, len(payloads), 0, newest_at)
        return payloads

    def _add_unwritten(self, payloads: list[bytes], rows_max: int) -> list[bytes]:
        """Complete a batch that reached the end of the files with what only memory holds."""
        more = [payload for _, payload in self.unwritten if payload][: rows_max - len(payloads)]
        assert self._batch is not None
        self._batch = self._batch._replace(rows=len(payloads) + len(more), unwritten=len(more))
        return payloads + more

    def commit(self) -> bool:
        """The last batch is where it belongs: go on behind it. False: there was none."""
        batch, self._batch = self._batch, None
        if batch is None:
            return False
        self.segment, self._offset = batch.segment, batch.offset
        self.backlog -= batch.rows
        self._oldest_at = batch.newest_at or self._oldest_at
        if batch.unwritten:
            self._delivered(batch.unwritten)
        self._let_go_before(self.place)
        return True

    def _let_go_before(self, place: Place) -> None:
        """Forget what need not be held: it is drained."""
        held, number, offset = self._held, place.number, place.offset
        freed = 0
        while held:
            segment, stop, payload, _ = held[0]
            if segment.number > number or (segment.number == number and stop > offset):
                break
            held.popleft()
            freed += len(payload) + _HELD_OVERHEAD
        self._held_bytes -= freed

    def _delivered(self, rows: int) -> None:
        """Forget the first `rows` of what only memory held. Ends with nothing to deliver stay for `close` to write."""
        for id, payload in [self.unwritten.popleft() for _ in range(len(self.unwritten))]:
            if payload and rows:
                rows -= 1
            else:
                self.unwritten.append((id, payload))
