"""Takes the usage-only frame out of a stream, and nothing else, without holding anything back longer than needed.

Frames are judged whole. Of a frame that is not complete yet, bytes are held only while it could
still become the usage-only frame; as soon as that is out of the question they go on, and so does
the rest of that frame when it arrives. The result is the same wherever the stream was cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from farebox.sse import Frame

HELD_BYTES_MAX = 8 * 1024
"""A frame that grows beyond this is no usage frame (they take 300 to 2,000 bytes) and goes on."""

_FIRST_DATA = re.compile(rb"(?:\xef\xbb\xbf)?(?:(?!data)[^\r\n]*+[\r\n]++)*+data:[ \t]*+(\S)")
_HAS_CHOICES = re.compile(rb'"choices"\s{0,16}:\s{0,16}(?:[^\s\[]|\[\s{0,16}[^\s\]])')
_OVERLAP = 64
"""At least as long as the longest match."""


class Withholder:
    """Passes a stream's bytes on, less the frames it is told to withhold."""

    def __init__(self) -> None:
        self._held = b""
        self._searched = 0
        self._sent = 0
        """Bytes of the frame now arriving that went on already."""
        self._dropped = False
        """The last frame was withheld."""

    def forward(self, chunk: bytes, frames: Iterable[tuple[Frame, bool]]) -> bytes:
        """What may go on now that `chunk` arrived, which completes `frames` (each with: withhold it).

        The very same object where nothing is held or withheld.
        """
        data = self._held + chunk if self._held else chunk
        pieces: list[bytes] = []
        whole = not self._held
        position = 0
        for frame, withheld in frames:
            end = position + frame.size - self._sent
            if (self._dropped and frame.joined) or (withheld and not self._sent and self._could_be(data[position:end])):
                self._dropped = True
                whole = False
            else:
                pieces.append(data[position:end])
                self._dropped = False
            self._sent = self._searched = 0
            position = end
        rest = data[position:]
        self._held = b""
        if rest and not self._sent and self._could_be(rest):
            self._held = rest
            whole = False
        elif rest:
            self._sent += len(rest)
            pieces.append(rest)
        return chunk if whole else b"".join(pieces)

    def release(self) -> bytes:
        """Everything still held; nothing is withheld of what it belongs to any more."""
        held, self._held = self._held, b""
        self._sent += len(held)
        return held

    def drop(self) -> None:
        """Withhold what is held: the last frame of a stream that ends without its empty line."""
        self._held = b""

    def _could_be(self, start: bytes) -> bool:
        """Whether a frame that starts so may be a usage-only frame."""
        if len(start) > HELD_BYTES_MAX or start.startswith(b":"):
            return False
        data = _FIRST_DATA.match(start)
        searched = max(0, self._searched - _OVERLAP)
        self._searched = len(start)
        return (data is None or data[1] == b"{") and not _HAS_CHOICES.search(start, searched)
