"""The data folder's files: who may use it, what version it is of, how a cluster comes to be in it whole.

data_dir/postgres          the cluster (PGDATA)
data_dir/postgres.log      what PostgreSQL says, and postgres.log.1, the piece before
data_dir/postgres.lock     held by the farebox that serves the folder
data_dir/postgres.new-*    a cluster being made; without meaning once its maker is gone
data_dir/socket            the private folder of the socket (elsewhere when the path is long)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from farebox.embedded_postgres.errors import EmbeddedPostgresError
from farebox.embedded_postgres.identity import Identity

LOG_BYTES_MAX = 8 * 1024 * 1024
"""Past this the log becomes postgres.log.1, in place of the one before."""
TAIL_BYTES = 4000
"""How much of the log's end an error quotes."""

_UNFINISHED = "postgres.new-"

SETTINGS = """
# --- Added by farebox when this cluster was made. Change them if you like: only what keeps the
# server private (socket, no TCP, fsync) is set anew at each start.
shared_buffers = 64MB
maintenance_work_mem = 32MB
max_wal_size = 256MB
min_wal_size = 64MB
wal_level = minimal             # nothing replicates from here
max_wal_senders = 0
max_logical_replication_workers = 0
max_parallel_workers_per_gather = 0     # its memory is /dev/shm, small in containers
jit = off
log_checkpoints = off
timezone = 'UTC'
log_timezone = 'UTC'
"""


class DataFolder:
    """Paths and files of one data folder. Methods block for a moment of disk; none waits."""

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir.resolve()
        self.pgdata = self.path / "postgres"
        self.log = self.path / "postgres.log"
        self._lock_path = self.path / "postgres.lock"
        self._lock: int | None = None

    def make(self) -> None:
        """Make the folder, private, unless it is there. Raises EmbeddedPostgresError where PostgreSQL could not."""
        if "\n" in str(self.path):
            raise EmbeddedPostgresError("database.data_dir has a line break in its path: choose another")
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def lock(self) -> str | None:
        """Take the folder for this process. None on success, else who has it.

        The kernel frees the lock when its holder ends, however it ends, so there is no stale lock.
        It goes with the open file: a process forked off this one without exec would hold it too.
        """
        if self._lock is not None:
            return "this process"
        descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
            os.close(descriptor)
            return f"process {holder}" if holder else "another process"
        self._to_owner(descriptor)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._lock = descriptor
        return None

    def unlock(self) -> None:
        """Give the folder up, if it is held."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def major(self) -> int | None:
        """The cluster's major version; None when there is no cluster yet."""
        try:
            return int((self.pgdata / "PG_VERSION").read_text().strip().partition(".")[0])
        except FileNotFoundError:
            pass
        except (NotADirectoryError, ValueError):
            raise EmbeddedPostgresError(f"{self.pgdata} is not a PostgreSQL data folder: move it away") from None
        try:
            # An empty folder holds nobody's data; anything else is not ours to replace.
            self.pgdata.rmdir()
        except FileNotFoundError:
            pass
        except OSError:
            raise EmbeddedPostgresError(
                f"{self.pgdata} holds files but no PostgreSQL cluster (no PG_VERSION): move it away, "
                "or give farebox another database.data_dir"
            ) from None
        return None

    def owner(self) -> tuple[int, int] | None:
        """uid and gid of the cluster, if there is one."""
        try:
            found = self.pgdata.stat()
        except FileNotFoundError:
            return None
        return found.st_uid, found.st_gid

    def fresh(self) -> Path:
        """An empty private folder to make a cluster in. What earlier attempts left is removed."""
        for old in self.path.glob(f"{_UNFINISHED}*"):
            # A new name each time, so that a dying initdb that still writes into the old one harms nothing.
            shutil.rmtree(old, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=self.path))

    def configure(self, fresh: Path) -> None:
        """Add farebox's settings to a cluster being made."""
        with (fresh / "postgresql.conf").open("a") as file:
            file.write(SETTINGS)
            file.flush()
            os.fsync(file.fileno())

    def adopt(self, fresh: Path) -> None:
        """Let a finished cluster become the folder's, in one step and durably."""
        fresh.rename(self.pgdata)
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def open_door(self, identity: Identity) -> None:
        """Set the folder's mode so that `identity` can pass and, as far as that goes, nobody else."""
        if identity.dropped and self.path.stat().st_uid == os.geteuid():
            # Another process of that uid could else walk to the socket and be superuser.
            self.path.chmod(0o711 if identity.bare else 0o700)

    def open_log(self) -> int:
        """A descriptor that appends to the log; the caller closes it."""
        descriptor = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        self._to_owner(descriptor)
        return descriptor

    def bound_log(self) -> None:
        """Begin the log anew if it is past its bound. Copies, since a running server keeps the file open."""
        try:
            if self.log.stat().st_size > LOG_BYTES_MAX:
                # Where there is no room for the copy, the room is worth more.
                with contextlib.suppress(OSError):
                    shutil.copy(self.log, self.log.with_suffix(".log.1"))
                os.truncate(self.log, 0)
        except FileNotFoundError:
            return

    def log_size(self) -> int:
        """Bytes of log so far."""
        return self.log.stat().st_size if self.log.exists() else 0

    def tail(self, since: int) -> str:
        """The log's last words, of those after byte `since`."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(since, self.log_size() - TAIL_BYTES))
                return file.read(TAIL_BYTES).decode("utf-8", "replace").strip()
        except OSError:
            return ""

    def _to_owner(self, descriptor: int) -> None:
        """What root makes in another user's data folder is that user's, who may come next."""
        if os.geteuid() == 0:
            owner = self.path.stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)


def give(top: Path, identity: Identity) -> None:
    """Make `top` and all in it `identity`'s. Nothing happens if `top` already is; links are not followed."""
    if top.lstat().st_uid == identity.uid:
        return
    for folder, _, files in os.walk(top, topdown=False):
        for name in files:
            os.chown(os.path.join(folder, name), identity.uid, identity.gid, follow_symlinks=False)
        # The top comes last: an interrupted walk is done again.
        os.chown(folder, identity.uid, identity.gid, follow_symlinks=False)
