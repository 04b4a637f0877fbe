"""The thread that makes a journal's writes survive a power cut, in groups, and deletes what is done with.

Appends reach the operating system at once and survive the death of farebox; this thread asks the
disk to keep them, at most once every interval, so that the event loop never waits for a disk. It
also deletes drained segments, because what was carried forward out of one must be on disk before
the original goes. What lies in which segment is the journal's business.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable

from farebox.journal.segment import Segment

OnFault = Callable[[str, Exception], None]
"""Told once, from any thread, what failed and why."""


def sync_file(fd: int) -> None:
    """Have the disk keep what was written to `fd`. Raises OSError."""
    if hasattr(fcntl, "F_FULLFSYNC"):
        # On macOS fsync leaves the data in the drive's cache.
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    elif hasattr(os, "fdatasync"):
        os.fdatasync(fd)
    else:
        os.fsync(fd)


class Syncer:
    """Syncs segments that were marked, in groups `interval_s` apart, and removes retired ones after that.

    After a failed sync nothing is synced or removed any more and `fault` says why: the kernel
    reports a failure once and may have dropped the data, so a later success would mean nothing.
    """

    def __init__(self, folder_fd: int, *, interval_s: float, sync: Callable[[int], None], on_fault: OnFault) -> None:
        self._folder_fd = folder_fd
        self._interval_s = interval_s
        self._sync = sync
        self._on_fault = on_fault
        self.fault: OSError | None = None
        self._lock = threading.Lock()
        self._marked: list[Segment] = []
        self._retired: list[Segment] = []
        self._folder_marked = False
        self._work = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="journal sync", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def mark(self, segment: Segment) -> None:
        """Have `segment` synced with the next group. Called once a group: `segment.dirty` says that it was."""
        segment.dirty = True
        with self._lock:
            self._marked.append(segment)
        self._work.set()

    def mark_folder(self) -> None:
        """A file was made: its name must be on disk before its records count as kept."""
        with self._lock:
            self._folder_marked = True

    def retire(self, segment: Segment) -> None:
        """Delete `segment` once everything marked so far is on disk."""
        with self._lock:
            self._retired.append(segment)
        self._work.set()

    def sync_now(self, segment: Segment) -> None:
        """Have the disk keep `segment` before returning; sets `fault` where it can't. Blocks."""
        with self._lock:
            folder, self._folder_marked = self._folder_marked, False
        self._attempt([segment], [], folder)

    def close(self) -> None:
        """Sync what is marked, delete what is retired, end the thread."""
        self._stop.set()
        self._work.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._work.wait()
            self._stop.wait(self._interval_s)
            self._work.clear()
            self._round()
        self._round()

    def _round(self) -> None:
        with self._lock:
            marked, self._marked = self._marked, []
            retired, self._retired = self._retired, []
            folder, self._folder_marked = self._folder_marked, False
        for segment in marked:
            # Before the sync: a record written meanwhile marks the segment again.
            segment.dirty = False
        self._attempt(marked, retired, folder)

    def _attempt(self, written: list[Segment], retired: list[Segment], folder: bool) -> None:
        try:
            if self.fault is None:
                if folder:
                    os.fsync(self._folder_fd)
                for segment in written:
                    self._sync(segment.fd)
                for segment in retired:
                    segment.remove()
        except OSError as error:
            self.fault = error
            self._on_fault("sync", error)
        finally:
            for segment in retired:
                segment.close()
