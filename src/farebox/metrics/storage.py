"""What series and values are kept in: the memory of one process, or files that several workers share.

In the shared folder lie `series`, the common log, and one `values-SLOT` a worker: an array of 8-byte
floats of which only that worker writes, mapped into memory, so that counting is an addition and a
worker that is killed has lost nothing. A worker that takes its place goes on in the same file. The
folder is emptied when a farebox starts (`prepare`), so counters begin at 0 then and never go down
before it ends.

Why not prometheus_client's multiprocess mode: it is switched by an environment variable at import,
for the whole process; each of its workers has bounds of its own; and a scrape parses every key of
every worker again: 0.75 s for 20,000 samples and four workers, against about 0.03 s here.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, TypeAlias

from farebox.errors import FareboxError

_LOCK = "lock"
_SERIES = "series"
_VALUES = "values-"
_SAMPLE_BYTES = 8
_LOG_BYTES_MAX = 1 << 30
_ZEROS = bytes(1 << 16)


Values: TypeAlias = "list[float] | memoryview[float]"
"""One worker's samples, as floats."""


class Storage(Protocol):
    """A log of series (`read`, `exclusive`, `append`: see `series.Log`) and the values that belong to it."""

    own: Values
    """This worker's; written by nobody else. As many as there can be samples."""

    def read(self) -> list[bytes]: ...
    def exclusive(self) -> contextlib.AbstractContextManager[None]: ...
    def append(self, line: bytes) -> None: ...

    def all(self) -> list[Values]:
        """Every worker's."""

    def close(self) -> None: ...


class OneProcess:
    """For a farebox without workers. In a list, where an addition costs a third of what it does in an array."""

    def __init__(self, samples_max: int) -> None:
        self.own: Values = [0.0] * samples_max
        self._lines: list[bytes] = []

    def read(self) -> list[bytes]:
        lines, self._lines = self._lines, []
        return lines

    def exclusive(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def append(self, line: bytes) -> None:
        self._lines.append(line)

    def all(self) -> list[Values]:
        return [self.own]

    def close(self) -> None:
        pass


class Shared:
    """For worker `slot` of several. No two processes may have the same slot at the same time.

    The lock of the log is held for the few microseconds that a new series takes; a worker that dies
    with it gives it back by dying. Raises OSError when the disk has no room: the files are written
    full of zeros, since a hole in a mapped file would be a crash later.
    """

    def __init__(self, folder: Path, slot: int, samples_max: int) -> None:
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self._maps: dict[str, Values] = {}
        self._log = os.open(folder / _SERIES, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._stack.callback(os.close, self._log)
        self._read_to = 0
        try:
            self._make(f"{_VALUES}{slot}", samples_max * _SAMPLE_BYTES)
            self.own: Values = self._map(f"{_VALUES}{slot}")
        except BaseException:
            self._stack.close()
            raise

    def read(self) -> list[bytes]:
        size = os.fstat(self._log).st_size
        if size <= self._read_to:
            return []
        data = os.pread(self._log, min(size - self._read_to, _LOG_BYTES_MAX), self._read_to)
        end = data.rfind(b"\n") + 1  # a line without its end is being written, or its writer died
        self._read_to += end
        return data[:end].split(b"\n")[:-1]

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        fcntl.flock(self._log, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._log, fcntl.LOCK_UN)

    def append(self, line: bytes) -> None:
        if os.fstat(self._log).st_size != self._read_to:
            os.ftruncate(self._log, self._read_to)  # the half line of a writer that died
        line += b"\n"
        if os.write(self._log, line) != len(line):
            os.ftruncate(self._log, self._read_to)
            raise OSError("a metric's name could not be written whole")

    def all(self) -> list[Values]:
        for path in self._folder.glob(_VALUES + "*"):
            if path.name not in self._maps:
                self._map(path.name)
        return list(self._maps.values())

    def close(self) -> None:
        self._stack.close()

    def _make(self, name: str, size: int) -> None:
        """A file of zeros, which the others see only when it is whole."""
        path = self._folder / name
        if path.exists():
            return  # the worker before this one had it; its size stays, whatever the config says by now
        new = self._folder / f"new-{name}"
        with open(new, "wb", opener=_private) as file:
            for at in range(0, size, len(_ZEROS)):
                file.write(_ZEROS[: size - at])
        new.rename(path)

    def _map(self, name: str) -> Values:
        with (self._folder / name).open("r+b") as file:
            mapped = mmap.mmap(file.fileno(), 0)
        self._stack.callback(mapped.close)
        values = memoryview(mapped).cast("d")
        self._stack.callback(values.release)
        self._maps[name] = values
        return values


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@contextlib.contextmanager
def prepare(folder: Path) -> Iterator[None]:
    """The folder that workers share, made if need be and emptied; held until the end, when no worker runs any more.

    Raises `FareboxError` while another farebox holds it: theirs would be counted as ours.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(folder / _LOCK, "wb", opener=_private) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FareboxError(
                f"another farebox keeps its metrics in {folder}. Give each a database.data_dir of its own."
            ) from None
        for path in folder.iterdir():
            if path.name == _SERIES or path.name.startswith((_VALUES, "new-" + _VALUES)):
                path.unlink()
        yield
