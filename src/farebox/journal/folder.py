"""The folder of a journal: whose it is, and which files lie in it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from farebox.journal.errors import JournalLocked
from farebox.journal.segment import SUFFIX, UNFINISHED

_LOCK = "lock"


def lock(folder: Path) -> int:
    """Take the folder for as long as the descriptor is open. Raises JournalLocked, OSError."""
    fd = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise JournalLocked(f"another farebox process uses {folder}") from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def segments_in(folder: Path) -> list[Path]:
    """The segment files of `folder`, oldest first; files whose making a crash interrupted are removed."""
    for path in folder.glob("*" + UNFINISHED):
        path.unlink(missing_ok=True)
    return sorted(path for path in folder.glob("*" + SUFFIX) if path.stem.isdigit())


def holds_segments(folder: Path) -> bool:
    """Whether a journal lies in `folder`."""
    return next(folder.glob("*" + SUFFIX), None) is not None
