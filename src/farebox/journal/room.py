"""The row of segment files, and the promise that the end of every call under way has a place in it.

Room is counted in slots of one largest record. The last segment has `free // SLOT` of them, a
spare one as many as fit. A begin is let in only when there are as many slots as calls under way,
itself included. Each end uses at most one slot, and one that does not fit into the last segment
leaves less than one slot unused there: so the count stays true across segment borders, and an end
never meets a full disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from farebox.journal.errors import NO_ROOM, JournalFull
from farebox.journal.format import RECORD_BYTES_MAX
from farebox.journal.segment import HEADER_BYTES, SEGMENT_BYTES_MIN, Segment

SLOT = RECORD_BYTES_MAX
_FULL_RETRY_S = 0.25
"""After the disk was found full, how long begins are refused without asking it again."""


class Room:
    """The segments with records in `used`, oldest first, and empty ones with their room set aside.

    `made` is called for every new file. `max_bytes` bounds all files together; at it, and when the
    disk is full, `find` raises JournalFull; other OSErrors rise as they are.
    """

    def __init__(
        self,
        folder: Path,
        *,
        segment_bytes: int,
        max_bytes: int,
        allocate: Callable[[int, int], None],
        monotonic: Callable[[], float],
        made: Callable[[], None],
    ) -> None:
        if segment_bytes < SEGMENT_BYTES_MIN or max_bytes < 2 * segment_bytes:
            raise ValueError(f"segment_bytes must be at least {SEGMENT_BYTES_MIN}, max_bytes at least two segments")
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._max_bytes = max_bytes
        self._allocate = allocate
        self._monotonic = monotonic
        self._made = made
        self.used: deque[Segment] = deque()
        self._spares: deque[Segment] = deque()
        self._spare_slots = 0
        self._number = 0
        self._full_until = float("-inf")
        self._full_because: str | None = None

    def find(self, size: int, ends: int) -> Segment:
        """The segment to write `size` bytes to, such that `ends` ends fit after them."""
        while True:
            tail = self.used[-1]
            free = tail.size - tail.end - size
            if free >= 0:
                if ends <= free // SLOT + self._spare_slots:
                    return tail
            elif self._spares:
                spare = self._spares[0]
                if ends <= _slots(spare.size - size) + self._spare_slots - _slots(spare.size):
                    return self.next()
            self._add_spare()

    def next(self) -> Segment:
        """Go on in a spare segment; the promise says that there is one when an end needs it."""
        if not self._spares:
            self._add_spare()
        segment = self._spares.popleft()
        self._spare_slots -= _slots(segment.size)
        self.used.append(segment)
        return segment

    def take_back(self, segment: Segment) -> None:
        """Put a segment of an earlier life, read already, where it belongs. In order of number."""
        self._number = segment.number
        if segment.end > HEADER_BYTES:
            # A power cut can empty a segment and leave later ones: spares come after used ones only.
            for spare in self._spares:
                spare.remove()
            self._spares.clear()
            self._spare_slots = 0
            self.used.append(segment)
        elif segment.size >= SEGMENT_BYTES_MIN:
            self._put_aside(segment)
        else:
            segment.remove()

    def _add_spare(self) -> None:
        now = self._monotonic()
        if now < self._full_until:
            raise JournalFull(f"the journal can't grow: {self._full_because}")
        if self.bytes_held + self._segment_bytes > self._max_bytes:
            raise JournalFull("the journal is as large as ledger.journal_max_mb allows, waiting for Postgres")
        try:
            segment = Segment.create(self._folder, self._number + 1, self._segment_bytes, self._allocate)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            self._full_until = now + _FULL_RETRY_S
            self._full_because = error.strerror
            raise JournalFull(f"the journal can't grow: {error.strerror}") from error
        self._number = segment.number
        self._made()
        self._put_aside(segment)

    def _put_aside(self, segment: Segment) -> None:
        self._spares.append(segment)
        self._spare_slots += _slots(segment.size)

    @property
    def bytes_held(self) -> int:
        """Size of all files."""
        return sum(segment.size for segment in self)

    def close(self) -> None:
        """Let go of the files; they stay on disk."""
        for segment in self:
            segment.close()

    def __iter__(self) -> Iterator[Segment]:
        yield from self.used
        yield from self._spares


def _slots(size: int) -> int:
    return (size - HEADER_BYTES) // SLOT
