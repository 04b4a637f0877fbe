"""The folder of PostgreSQL's Unix socket: private, with a path that fits a socket address and a DSN.

Everyone who can reach the socket is superuser (see `server`), so the folder is the lock on the
door: mode 0700, ours, never a link somebody else placed.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from farebox.embedded_postgres.errors import EmbeddedPostgresError

PORT = 5432
"""Only names the socket file; nothing listens on TCP."""
SOCKET_NAME = f".s.PGSQL.{PORT}"
SOCKET_PATH_BYTES_MAX = 103
"""Longest socket address: 104 bytes with the final NUL on macOS, 108 on Linux. One bound for both."""


def dsn(folder: Path) -> str:
    """The URL, for asyncpg and libpq, of the database farebox behind the socket in `folder`."""
    # Port and user are spelled out: clients would else take them from PGPORT and PGUSER.
    return f"postgresql://farebox@/farebox?host={quote(str(folder), safe='')}&port={PORT}"


def temporary_folders(environ: Mapping[str, str]) -> list[Path]:
    """Where a socket may go when the data folder's path is too long, best first."""
    runtime = environ.get("XDG_RUNTIME_DIR")
    return [Path(p) for p in dict.fromkeys([*([runtime] if runtime else []), tempfile.gettempdir(), "/tmp"])]


def place_socket(data_dir: Path, temporary: Sequence[Path]) -> Path:
    """Choose and make the socket's folder: inside `data_dir`, else in a private folder under one of `temporary`.

    The folder is always `…/socket`, so that its parent can stay ours when PostgreSQL runs as
    another user. The choice is the same at every start unless somebody else took the name.
    Raises EmbeddedPostgresError when no place is short and safe.
    """
    if _usable(data_dir / "socket"):
        return _made(data_dir / "socket")
    for outer in _outer_folders(data_dir, temporary):
        return _made(outer / "socket")
    places = ", ".join(map(str, temporary))
    raise EmbeddedPostgresError(
        f"the path of {data_dir} is too long for a Unix socket, or has a comma, and none of {places} can hold "
        "a private one: give database.data_dir a shorter path, or set TMPDIR to a short folder "
        "that only you (or root) can change"
    )


def make_again(folder: Path, data_dir: Path) -> None:
    """Make a socket folder that `place_socket` chose earlier exist (temporary folders get swept). Same errors."""
    if folder.parent != data_dir and not _private_outer(folder.parent):
        raise EmbeddedPostgresError(f"{folder.parent} was taken by somebody else: remove it, then restart farebox")
    _made(folder)


def discard(folder: Path, data_dir: Path) -> None:
    """Remove what `place_socket` made outside `data_dir`, as far as it is empty."""
    if folder.parent == data_dir:
        return
    for path in (folder, folder.parent):
        try:
            path.rmdir()
        except OSError:
            return


def is_private(folder: Path, owners: Collection[int]) -> bool:
    """Whether `folder` is a real folder (no link) of one of `owners` that nobody else may list or change."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    # Passing through (0711) is allowed: see Identity.bare.
    return stat.S_ISDIR(found.st_mode) and found.st_uid in owners and not found.st_mode & 0o066


def _usable(folder: Path) -> bool:
    # A comma in a DSN's host separates hosts, escaped or not.
    return "," not in str(folder) and len(os.fsencode(folder / SOCKET_NAME)) <= SOCKET_PATH_BYTES_MAX


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        # Inside a folder of ours: at worst an older mode. A link is not followed.
        if folder.is_symlink() or not folder.is_dir():
            raise EmbeddedPostgresError(f"{folder} is in the way of the socket's folder: remove it") from None
        folder.chmod(0o700)
    return folder


def _outer_folders(data_dir: Path, temporary: Sequence[Path]) -> Iterator[Path]:
    name = "farebox-" + hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:12]
    for base in temporary:
        outer = base / name
        if not _trusted(base) or not _usable(outer / "socket"):
            continue
        if _private_outer(outer):
            yield outer
        else:
            # Somebody squats on the name. postmaster.pid records the socket's place, so any other will do.
            yield Path(tempfile.mkdtemp(prefix="farebox-", dir=base))


def _private_outer(outer: Path) -> bool:
    try:
        outer.mkdir(mode=0o700)
    except FileExistsError:
        return is_private(outer, {os.geteuid()})
    return True


def _trusted(base: Path) -> bool:
    """Whether nobody but us and root can rename or replace what we put into `base`."""
    try:
        found = base.stat()
    except OSError:
        return False
    others_write = found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
    return stat.S_ISDIR(found.st_mode) and found.st_uid in {0, os.geteuid()} and not others_write
