"""What a journal refuses, in words for the person who runs farebox."""

from __future__ import annotations

import errno

from farebox.errors import FareboxError

NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM))
"""Errors that say the disk, the quota, the largest file size, descriptors or memory are used up: they may pass."""


class JournalUnavailable(FareboxError):
    """The journal takes no new calls. Ends of calls under way are still taken."""


class JournalFull(JournalUnavailable):
    """There is no room for more, or the journal is as large as it may become. It passes by itself."""


class JournalFailed(JournalUnavailable):
    """The disk reported an error. farebox must be restarted once it is mended."""


class JournalLocked(FareboxError):
    """Another process owns the folder."""


class JournalVersionError(FareboxError):
    """A segment was written by a newer farebox."""
