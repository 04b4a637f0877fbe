"""One file of the journal: a fixed size, all of it set aside on disk before the first record.

Setting the room aside is what lets an end be written when the disk has filled up since its begin.
(On a file system that copies on write, such as ZFS, no program can be promised that; there a full
disk may reach `write`, and the journal says what happens then.) What records mean is the
journal's business.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from farebox.journal.errors import JournalVersionError
from farebox.journal.format import FILE_HEADER, RECORD_BYTES_MAX, Parsed, Record, parse

SUFFIX = ".segment"
HEADER_BYTES = len(FILE_HEADER)
SEGMENT_BYTES_MIN = HEADER_BYTES + 4 * RECORD_BYTES_MAX
UNFINISHED = ".unfinished"
_CHUNK_BYTES = 256 * 1024
_ZEROS = bytes(64 * 1024)
_SECTOR_BYTES = 4096


class Segment:
    """An open segment file. `end` is where the next record goes."""

    __slots__ = ("damaged", "dirty", "end", "fd", "number", "path", "size")

    def __init__(self, path: Path, fd: int, number: int, size: int) -> None:
        self.path = path
        self.fd = fd
        self.number = number
        self.size = size
        self.end = HEADER_BYTES
        self.dirty = False
        """Written since the last sync began."""
        self.damaged = 0
        """Bytes found by `recover` that were written and make no record."""

    @classmethod
    def create(cls, folder: Path, number: int, size: int, allocate: Callable[[int, int], None]) -> Segment:
        """Make a segment with all its room on disk. Raises OSError, and leaves nothing behind then."""
        path = folder / f"{number:016d}{SUFFIX}"
        unfinished = path.with_suffix(UNFINISHED)
        fd = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            allocate(fd, size)
            os.pwrite(fd, FILE_HEADER, 0)
            # A crash before this leaves a file that `folder.segments_in` removes, never half a segment.
            os.rename(unfinished, path)
        except BaseException:
            os.close(fd)
            unfinished.unlink(missing_ok=True)
            raise
        return cls(path, fd, number, size)

    @classmethod
    def reopen(cls, path: Path) -> Segment:
        """A segment that was left by an earlier life. Raises OSError, JournalVersionError."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            header = os.pread(fd, HEADER_BYTES, 0)
            if header[:-1] == FILE_HEADER[:-1] and header != FILE_HEADER:
                raise JournalVersionError(
                    f"{path} was written by a newer farebox; start that version again, or move the file away"
                )
            return cls(path, fd, int(path.stem), os.fstat(fd).st_size)
        except BaseException:
            os.close(fd)
            raise

    def write(self, record: bytes) -> int:
        """Put `record` at `end` and return its offset; the caller has made sure that it fits.

        Raises OSError; what was torn by it is skipped over, here and by whoever reads. (A mapped file costs
        more where it is synced every 20 ms, since each sync has every page fault that is touched again: 2.7 us a
        record against 1.5, its share of the syncs included. And a disk that fails would kill the process.)
        """
        at = self.end
        written = os.pwrite(self.fd, record, at)
        self.end = at + written
        while written < len(record):
            more = os.pwrite(self.fd, record[written:], self.end)
            if more == 0:
                raise OSError(errno.EIO, "the disk takes no more bytes")
            written += more
            self.end += more
        return at

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the file; a sector the disk can't read comes as zeros, so that the rest is not lost with it."""
        try:
            return os.pread(self.fd, length, offset)
        except OSError:
            return b"".join(
                self._read_sector(at, min(_SECTOR_BYTES, offset + length - at))
                for at in range(offset, offset + length, _SECTOR_BYTES)
            )

    def _read_sector(self, offset: int, length: int) -> bytes:
        try:
            return os.pread(self.fd, length, offset).ljust(length, b"\0")
        except OSError:
            return bytes(length)

    def chunks(self, start: int, stop: int) -> Iterator[Parsed]:
        """What lies between two offsets, piece by piece."""
        while start < stop:
            length = min(_CHUNK_BYTES, stop - start)
            # A file cut short by a power loss reads as if its room had never been written.
            data = self.read(start, length).ljust(length, b"\0")
            found = parse(data, start, final=start + length >= stop)
            yield found
            start = found.stop

    def recover(self) -> Iterator[Record]:
        """Every record that can be read; afterwards `end` stands behind the last of them.

        What was torn after that is zeroed, so that the next record is not followed by the rest of a longer one.
        """
        damage_end = 0
        for found in self.chunks(HEADER_BYTES, self.size):
            for record in found.records:
                self.end = record.stop
                yield record
            if found.damaged:
                self.damaged += found.damaged
                damage_end = found.stop
        self._zero(self.end, damage_end)

    def _zero(self, start: int, stop: int) -> None:
        while start < stop:
            start += os.pwrite(self.fd, _ZEROS[: stop - start], start)

    def remove(self) -> None:
        """Close and delete the file. Raises OSError."""
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def allocate(fd: int, size: int) -> None:
    """Set `size` bytes aside on disk, reading as zeros. Raises OSError when there is no room."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size)
            return
        except OSError as error:
            # musl reports what the file system can't do; glibc writes the blocks itself.
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    written = 0
    while written < size:
        written += os.pwrite(fd, _ZEROS[: size - written], written)
