"""Prometheus metrics: counted from the same event as the row, bounded, over all workers together.

`families` names them, `series` says which series there are and keeps them within bounds, `storage`
holds the values, `reading` turns an event into amounts, `text` writes the exposition. Who may read
it is the control plane's business.
"""

from __future__ import annotations

from pathlib import Path

from farebox.config import Metrics as Settings
from farebox.errors import FareboxError
from farebox.metrics.metrics import Metrics, Sources
from farebox.metrics.storage import OneProcess, Shared, Storage, prepare
from farebox.metrics.text import CONTENT_TYPE

__all__ = ["CONTENT_TYPE", "Metrics", "Sources", "open_storage", "prepare"]


def open_storage(settings: Settings, folder: Path, slot: int | None) -> Storage:
    """Where the values of this process are: in its memory, or with a `slot` in `folder`, which was `prepare`d.

    Raises `FareboxError` where that folder can't be written, or its disk has no room.
    """
    if slot is None:
        return OneProcess(settings.series_max)
    try:
        return Shared(folder, slot, settings.series_max)
    except OSError as exc:
        raise FareboxError(
            f"the metrics can't be kept in {folder}: {exc.strerror}. "
            "It takes 8 bytes for each of metrics.series_max, once a worker"
        ) from exc
