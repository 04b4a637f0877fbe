"""What a journal refuses, in words for the person who runs farebox."""

from __future__ import annotations

import errno

from farebox.errors import FareboxError

NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
"""Errors that say the disk, the quota or the largest file size is used up: they may pass."""


class JournalUnavailable(FareboxError):
    """The journal takes no new calls. Ends of calls under way are still taken."""


class JournalFull(JournalUnavailable):
    """The disk is full, or the journal is as large as it may become. It passes once Postgres has caught up."""


class JournalFailed(JournalUnavailable):
    """The disk reported an error. farebox must be restarted once it is mended."""


class JournalLocked(FareboxError):
    """Another process owns the folder."""


class JournalVersionError(FareboxError):
    """A segment was written by a newer farebox."""
