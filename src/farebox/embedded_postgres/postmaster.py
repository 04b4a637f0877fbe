"""What can be read of a PostgreSQL server from outside: its postmaster.pid, its processes, its socket.

Nothing here signals a process. A pid in a file is a claim, not a handle.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from farebox.embedded_postgres.errors import EmbeddedPostgresError
from farebox.embedded_postgres.sockets import SOCKET_NAME, dsn, is_private

_PROC = Path("/proc")
_PS_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class PostmasterFile:
    """postmaster.pid: the server's pid, its socket's folder, and whether it takes connections."""

    pid: int
    socket_folder: Path
    ready: bool


def read_postmaster_file(pgdata: Path) -> PostmasterFile | None:
    """The file as it is now, perhaps of a server long dead; None when absent or half-written."""
    try:
        lines = (pgdata / "postmaster.pid").read_text().splitlines()
        # Pid, data folder, start time, port, socket folder, TCP address, shared memory, status.
        return PostmasterFile(int(lines[0]), Path(lines[4]), lines[7].strip() == "ready")
    except (FileNotFoundError, NotADirectoryError, ValueError, IndexError):
        return None


def accepts(socket_folder: Path) -> bool:
    """Whether a server listens on the socket in this folder. Never blocks."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(socket_folder / SOCKET_NAME))
        except BlockingIOError:
            return True  # its queue is full, so it is there
        except OSError:
            return False
    return True


def serving_dsn(data_dir: Path) -> str | None:
    """The DSN of the server that serves `data_dir` now, or None. Raises EmbeddedPostgresError when not ours to ask."""
    pgdata = data_dir.resolve() / "postgres"
    try:
        found = read_postmaster_file(pgdata)
        owners = {pgdata.stat().st_uid} if found is not None else set()
    except PermissionError:
        raise EmbeddedPostgresError(f"{pgdata} belongs to another user: run this as that user") from None
    if found is None or not found.ready:
        return None
    # The file may be old and its temporary folder somebody else's by now.
    private = is_private(found.socket_folder, owners)
    return dsn(found.socket_folder) if private and accepts(found.socket_folder) else None


def occupants(pgdata: Path) -> list[int]:
    """Pids of PostgreSQL processes at work in `pgdata`: a server, or what a killed one left behind."""
    if (_PROC / "self" / "cwd").exists():
        return sorted(_linux_occupants(pgdata))
    recorded = read_postmaster_file(pgdata)
    return [recorded.pid] if recorded is not None and _is_postgres(recorded.pid) else []


def disown_stale_pid(pgdata: Path) -> None:
    """Let the next server pass a postmaster.pid whose writer is dead but whose pid another process has by now.

    PostgreSQL would refuse to start, since it only asks whether that pid lives. Deleting the file
    would also delete the shared memory key in it, by which PostgreSQL finds leftovers. Writing our
    own pid into it says the same and keeps the key: a server takes the pids of its parent and
    grandparent for stale. Call this only under the folder's lock and without occupants.
    """
    path = pgdata / "postmaster.pid"
    try:
        first, newline, rest = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return
    if first.strip().isdigit() and _alive(int(first)):
        with path.open("r+b") as file:
            file.truncate(0)
            file.write(str(os.getpid()).encode() + newline + rest)


def _linux_occupants(pgdata: Path) -> Iterator[int]:
    try:
        home = pgdata.stat()
    except FileNotFoundError:
        return
    for entry in os.scandir(_PROC):
        if not entry.name.isdigit():
            continue
        try:
            # A shell that merely stands in the folder is none of ours.
            if not Path(entry.path, "comm").read_text().startswith("postgres"):
                continue
            # Each of PostgreSQL's processes keeps its data folder as working directory.
            at = Path(entry.path, "cwd").stat()
        except OSError:
            continue  # gone, or another user's
        if (at.st_dev, at.st_ino) == (home.st_dev, home.st_ino):
            yield int(entry.name)


def _is_postgres(pid: int) -> bool:
    try:
        command = ["ps", "-o", "comm=", "-p", str(pid)]
        told = subprocess.run(command, capture_output=True, text=True, timeout=_PS_TIMEOUT_S, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return False
    return os.path.basename(told.strip()).startswith("postgres")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # signal 0 delivers nothing
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
