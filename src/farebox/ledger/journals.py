"""Journals as the config wants them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import structlog

from farebox.config import Ledger
from farebox.journal import Journal
from farebox.logs import exception_facts


def opener(settings: Ledger) -> Callable[[Path], Journal]:
    """What opens the journal in a folder, of the size and with the syncs that `settings` say. Raises what it raises."""

    def on_fault(what: str, error: Exception) -> None:
        structlog.get_logger().error("the journal's disk failed", what=what, **exception_facts(error))

    def open_journal(folder: Path) -> Journal:
        return Journal.open(
            folder,
            segment_bytes=settings.segment_mb << 20,
            max_bytes=settings.journal_max_mb << 20,
            fsync_ms=settings.fsync_ms,
            on_fault=on_fault,
        )

    return open_journal
