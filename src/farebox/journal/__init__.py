"""The local journal: what was sent to a provider and how it ended, kept on disk until Postgres has it.

`journal` is the thing itself; `format` the bytes of a record, `segment` one file of them, `room`
the promise that an end always fits, `outlet` the way out of it, `sync` the thread that talks to the disk.
"""

from farebox.journal.errors import JournalFailed, JournalFull, JournalLocked, JournalUnavailable, JournalVersionError
from farebox.journal.folder import holds_segments
from farebox.journal.format import PAYLOAD_BYTES_MAX, Orphan
from farebox.journal.journal import Journal

__all__ = [
    "PAYLOAD_BYTES_MAX",
    "Journal",
    "JournalFailed",
    "JournalFull",
    "JournalLocked",
    "JournalUnavailable",
    "JournalVersionError",
    "Orphan",
    "holds_segments",
]
