"""Keeps enough of a stream's text to estimate its tokens later, as it came: nothing of it is decoded now.

Most answers report their usage, so their text is never needed. Of events that repeat the one before
(`template`) only the text is kept, of others the event; each up to a bound, beyond which they are
only measured and the rest is extrapolated by bytes.
"""

from __future__ import annotations

from typing import NamedTuple

from farebox.meter.escapes import unescape
from farebox.meter.wire import Wire

SAMPLE_BYTES_MAX = 16 * 1024
"""Bytes of text kept of a stream, and again of events that had to be decoded (some sixty of OpenAI's size). Beyond it
text is measured, not kept. The first piece is kept whatever its size: it may be all there is."""
TEXT_CHARS_MAX = 16 * 1024
"""Characters of text handed out as the sample."""


class Text(NamedTuple):
    """Generated text: a bounded sample, and how much there was in all (extrapolated if need be)."""

    sample: str
    chars_total: int
    bytes_total: int


NO_TEXT = Text("", 0, 0)


class Sample:
    """The text of one stream, in the order in which it came as far as it is kept."""

    __slots__ = ("_events_kept", "_events_total", "_pieces", "_run", "_text_total")

    def __init__(self) -> None:
        self._pieces: list[bytes | bytearray] = []
        """Events as bytes, and runs of text as bytearrays."""
        self._run: bytearray | None = None
        """The last piece, where that is a run of text."""
        self._text_total = 0
        self._events_kept = self._events_total = 0

    def add_text(self, text: bytes) -> None:
        """Note text as it stands in JSON, escaped."""
        self._text_total += len(text)
        if self._text_total <= SAMPLE_BYTES_MAX or self._text_total == len(text):
            if self._run is None:
                self._run = bytearray()
                self._pieces.append(self._run)
            self._run += text

    def add_event(self, data: bytes) -> None:
        """Note the data of one event with text in it."""
        size = len(data)
        self._events_total += size
        if self._events_kept < SAMPLE_BYTES_MAX and (size <= SAMPLE_BYTES_MAX or not self._events_kept):
            self._events_kept += size
            self._pieces.append(data)
            self._run = None

    def text(self, wire: Wire) -> Text:
        """Decode what was kept."""
        text_kept = sum([len(piece) for piece in self._pieces if isinstance(piece, bytearray)])
        pieces: list[str] = []
        chars = size = 0.0
        for piece in self._pieces:
            if isinstance(piece, bytearray):
                text, factor = unescape(bytes(piece)), self._text_total / (text_kept or 1)
            else:
                text, factor = "".join(wire.event_text(piece)), self._events_total / self._events_kept
            pieces.append(text)
            chars += len(text) * factor
            size += len(text.encode("utf-8", "replace")) * factor
        return Text("".join(pieces)[:TEXT_CHARS_MAX], round(chars), round(size))


def measure(text: str) -> Text:
    """`text` with a bounded sample of it."""
    return Text(text[:TEXT_CHARS_MAX], len(text), len(text.encode("utf-8", "replace")))
