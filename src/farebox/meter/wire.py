"""What every API family's reader (a wire) has to offer, and how it tells what an event was."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import Protocol

from farebox.meter.reading import Notes


class Kind(IntEnum):
    """What one event of a stream turned out to be."""

    UNREADABLE = 0
    """Not what this family sends: not JSON, not an object."""
    EMPTY = 1
    """Nothing to note and no content."""
    TEXT = 2
    """Generated content and nothing else to note."""
    NEWS = 3
    """Something was noted, with or without content."""
    NEWS_AND_TEXT = 4
    USAGE_ONLY = 5
    """A frame that only exists because usage was asked for: no choices, no other payload."""


class Wire(Protocol):
    """Reads one API family. Holds no state: everything learned goes into the notes."""

    def event(self, name: bytes, data: bytes, notes: Notes) -> Kind:
        """Note what one event of a stream says."""

    def document(self, data: bytes, notes: Notes) -> bool:
        """Note what a whole JSON body says; whether it could be read."""

    def event_text(self, data: bytes) -> Iterator[str]:
        """The generated text in one event."""

    def document_text(self, data: bytes) -> Iterator[str]:
        """The generated text in a whole body."""
