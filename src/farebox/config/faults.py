"""What is wrong with a config file, said so that somebody can mend it.

A `Fault` names a place and the mistake; `Faults` gathers them while the file is read, so that all
are reported at once. Leaves printing and exit codes to the command line.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from farebox.errors import FareboxError

SHOWN_CHARS_MAX = 60
"""A value or key quoted in a message is cut to this many characters."""


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """A place in the file; line and column count from 1. Line 0: no place in a file (the command line)."""

    line: int
    col: int


@dataclass(frozen=True, slots=True)
class Fault:
    """One mistake. `path` is dotted (`providers.openai.base_url`, `routes[1].to[0]`), `(file)` for the whole file."""

    file: str
    line: int
    col: int
    path: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.col}" if self.line else self.file
        return f"{place}: {self.path}: {self.message}"


class ConfigError(FareboxError):
    """The config cannot be used. `faults` holds every mistake found, in the order of the file; never empty."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(map(str, self.faults)))


class Faults:
    """Gathers faults of one file and remembers where each path was read, for checks that come later."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._faults: list[Fault] = []
        self._marks: dict[str, Mark] = {}
        self._bad: set[str] = set()

    def note(self, path: str, at: Mark) -> None:
        """Remember that `path` was given at `at`."""
        self._marks[path] = at

    def given(self, path: str) -> bool:
        """Whether the file says something at `path`."""
        return path in self._marks

    def sound(self, *paths: str) -> bool:
        """Whether none of `paths` has a fault, so that a check across them means something."""
        return not any(path in self._bad for path in paths)

    def where(self, path: str) -> Mark:
        """The place of `path`, or of the nearest thing around it that the file gives."""
        while path:
            if path in self._marks:
                return self._marks[path]
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return Mark(1, 1)

    def add(self, path: str, message: str, at: Mark | None = None) -> None:
        """Record a mistake at `path`; without `at`, at the place where it was read."""
        at = at or self.where(path)
        self._bad.add(path)
        self._faults.append(Fault(self._file, at.line, at.col, path or "(file)", message))

    def raise_any(self) -> None:
        """Raise `ConfigError` if anything is wrong."""
        if self._faults:
            raise ConfigError(sorted(self._faults, key=lambda fault: (fault.line, fault.col)))


def shown(text: str) -> str:
    """`text` as it may stand in a message: quoted, escaped, cut."""
    return repr(text if len(text) <= SHOWN_CHARS_MAX else text[:SHOWN_CHARS_MAX] + "…")
