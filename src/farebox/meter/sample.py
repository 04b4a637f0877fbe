"""Keeps enough of a stream's text-bearing events to estimate its tokens later, without decoding any of it now.

Most answers report their usage, so their text is never needed; this keeps raw bytes (references to
chunks that passed anyway) up to a bound and decodes them only when asked.
"""

from __future__ import annotations

from typing import NamedTuple

from farebox.meter.wire import Wire
from farebox.sse import Splitter

SAMPLE_BYTES_MAX = 64 * 1024
"""Raw bytes after which nothing more is kept of a stream: about 300 events of OpenAI's size. The rest is
extrapolated. The last chunk kept may reach beyond, and a first one is kept whatever its size."""
TEXT_CHARS_MAX = 16 * 1024
"""Characters of text handed out as the sample."""


class Text(NamedTuple):
    """Generated text: a bounded sample, and how much there was in all (extrapolated if need be)."""

    sample: str
    chars_total: int
    bytes_total: int


NO_TEXT = Text("", 0, 0)


class Sample:
    """Raw events that carry text, up to `SAMPLE_BYTES_MAX` bytes of them; the rest are only measured."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self._total = 0

    def add(self, frames: bytes) -> None:
        """Note whole frames as they came."""
        size = len(frames)
        self._total += size
        if self._size < SAMPLE_BYTES_MAX and (size <= SAMPLE_BYTES_MAX or not self._pieces):
            self._size += size
            self._pieces.append(frames)

    def add_event(self, data: bytes) -> None:
        """Note the data of one event."""
        self.add(b"data:" + data.replace(b"\n", b" ") + b"\n\n")

    def text(self, wire: Wire) -> Text:
        """Decode what was kept."""
        pieces: list[str] = []
        frames = b"".join(self._pieces)
        for frame in Splitter(len(frames)).feed(frames):
            if frame.data is not None:
                pieces.extend(wire.event_text(frame.data))
        return measure("".join(pieces), self._total / self._size if self._size else 0.0)


def measure(text: str, factor: float = 1.0) -> Text:
    """`text` as a bounded sample of an answer that was `factor` times as long."""
    size = len(text.encode("utf-8", "replace"))
    return Text(text[:TEXT_CHARS_MAX], round(len(text) * factor), round(size * factor))
