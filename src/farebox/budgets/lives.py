"""Which owners made the reservations behind a journal: so that a crash charges only what may have been sent.

Every call is in the journal before its first byte goes up. So once all that a dead process left in its
journal has reached Postgres, what its owners still hold was provably never sent, and is given back by
whoever has the journal now, instead of being charged after a lease. That holds as long as the machine
stayed up: a journal survives its process, but its last moments may not survive a power loss. A file
beside the segments says which owners, and in which life of the machine. It knows them by their labels,
which are minted for each life of a process, so that in another database they mean nobody.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import structlog

_FILE = "owners.json"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class _Lives(msgspec.Struct):
    boot: str
    owners: list[str]


def boot_id() -> str | None:
    """What tells one life of this machine from the next; None where it does not say, as on macOS."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip() or None
    except OSError:
        return None


class Lives:
    """The owners of one journal, `folder`, which the caller has locked. `boot`: as `boot_id`.

    `whole`: all of the journal could be read. If not, a begin may be missing in it, and nothing that was
    held until now is ever given back for it.
    """

    def __init__(self, folder: Path, boot: str | None, *, whole: bool = True) -> None:
        self._file = folder / _FILE
        self._boot = boot
        self._owners: list[str] = []
        if not whole:
            self._write()
        self.left = self._read() if whole else ()
        """Labels of the owners of earlier lives of the journal, in this life of the machine, as far as is known."""
        self._owners = list(self.left)

    def add(self, owner: str) -> None:
        """Write down an owner's label, before it reserves anything."""
        self._owners.append(owner)
        self._write()

    def settled(self) -> None:
        """Nothing is held any more by the owners that were left."""
        self._owners = [owner for owner in self._owners if owner not in self.left]
        self.left = ()
        self._write()

    def ended(self) -> None:
        """This life leaves nothing behind."""
        self._owners = list(self.left)
        self._write()

    def _read(self) -> tuple[str, ...]:
        try:
            lives = msgspec.json.decode(self._file.read_bytes(), type=_Lives)
        except (OSError, msgspec.MsgspecError):
            return ()
        return tuple(lives.owners) if self._boot is not None and lives.boot == self._boot else ()

    def _write(self) -> None:
        """Whole or not at all. No sync: what a power loss takes is of no use after it."""
        if self._boot is None:
            return
        beside = self._file.with_suffix(".new")
        try:
            if self._owners:
                beside.write_bytes(msgspec.json.encode(_Lives(self._boot, self._owners)))
                os.replace(beside, self._file)
            else:
                self._file.unlink(missing_ok=True)
        except OSError as error:
            # Then a crash charges what it left, after a lease.
            structlog.get_logger().warning("the owners of the journal can't be written down", reason=error.strerror)
