"""How far a journal is drained, kept beside its segments, so that a restart knows what really waits.

Nothing depends on it: where it can't be read or does not fit the segments, everything in them is
delivered once more, which the receiver tolerates. So it is written without a sync as the drain goes
on. At the start it is synced: from then on it names a place in this life's files and never one of an
earlier life's, behind which other records could have been written since.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

NAME = "drained"
_PLACE = struct.Struct(">QQ")
_SUM = struct.Struct(">I")


class Place(NamedTuple):
    """Everything before `offset` of segment `number`, and all earlier segments, are drained."""

    number: int
    offset: int


class Mark:
    """The file. After a failure there is none, and the next start delivers everything again."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._fd = -1

    def read(self) -> Place | None:
        """What an earlier life noted last; None where that can't be told."""
        try:
            data = self._path.read_bytes()
        except OSError:
            return None
        place, check = data[: _PLACE.size], data[_PLACE.size :]
        if len(place) < _PLACE.size or check != _SUM.pack(crc32(place)):
            return None
        return Place(*_PLACE.unpack(place))

    def start(self, place: Place, sync: Callable[[int], None]) -> None:
        """Note where this life begins, on disk before anything else is written."""
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._write(place)
            sync(self._fd)
        except OSError:
            self._give_up()

    def move(self, place: Place) -> None:
        """Note that everything before `place` is where it belongs."""
        if self._fd >= 0:
            try:
                self._write(place)
            except OSError:
                self._give_up()

    def remove(self) -> None:
        """Nothing is left that it could be about. Raises OSError."""
        self.close()
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, place: Place) -> None:
        data = _PLACE.pack(*place)
        data += _SUM.pack(crc32(data))
        if os.pwrite(self._fd, data, 0) != len(data):
            raise OSError("the mark could not be written whole")

    def _give_up(self) -> None:
        """A place that does not move on stays true: less is drained than is. One of an earlier life must go."""
        self.close()
        self._path.unlink(missing_ok=True)
