"""Follows a body that is one JSON document: keeps a bounded copy and reads it when the body has ended.

Beyond the bound only the beginning and the end are kept. Vectors and images fill the middle; the
model stands near the start and the usage near the start or the end.
"""

from __future__ import annotations

import re

from farebox.dialects.faults import read_error_body
from farebox.meter.documents import LENIENT_BYTES_MAX, find_object, read_any
from farebox.meter.reading import Notes
from farebox.meter.sample import NO_TEXT, Text, measure
from farebox.meter.wire import Wire

BODY_BYTES_MAX = 1024 * 1024
"""Read whole up to this size; decoding takes about a millisecond then."""
PART_BYTES = 64 * 1024
"""Kept of the beginning and of the end of a larger body."""

_MODEL = re.compile(rb'"model"\s{0,4}:\s{0,4}"([^"\\]{1,256})"')
_BOM = b"\xef\xbb\xbf"


class BodyMeter:
    """Keeps one JSON body, and reads it once it has ended."""

    __slots__ = ("_max", "_pieces", "_size", "_tail")

    def __init__(self, *, bytes_max: int = BODY_BYTES_MAX) -> None:
        self._max = bytes_max
        self._pieces: list[bytes] = []
        self._size = 0
        self._tail: bytes | None = None

    def feed(self, chunk: bytes) -> None:
        """Keep what may be needed of `chunk`."""
        self._size += len(chunk)
        if self._tail is not None:
            self._tail = (self._tail + chunk)[-PART_BYTES:]
            return
        self._pieces.append(chunk)
        if self._size > self._max:
            kept = b"".join(self._pieces)
            self._pieces = [kept[:PART_BYTES]]
            self._tail = kept[-PART_BYTES:]

    @property
    def whole(self) -> bytes | None:
        """The body without what may stand around a document; None where it was too large to be kept."""
        if self._tail is not None:
            return None
        return b"".join(self._pieces).removeprefix(_BOM).strip()

    def read(self, wire: Wire, notes: Notes, status: int) -> None:
        """The body ended, properly or not: read it. `status` is that of the answer. Never raises."""
        try:
            self._read(wire, notes, status)
        except Exception:
            notes.unparsed += 1

    def text(self, wire: Wire) -> Text:
        """The generated text of the answer; nothing of one that was not kept whole."""
        document = self.whole
        return NO_TEXT if document is None else measure("".join(wire.document_text(document)))

    def _read(self, wire: Wire, notes: Notes, status: int) -> None:
        document = self.whole
        if document is None:
            assert self._tail is not None
            _salvage(self._pieces[0], self._tail, notes)
            notes.whole_body = self._tail.rstrip()[-1:] in (b"}", b"]")
            return
        if not document:
            return
        if status >= 400:
            _read_error(document, wire, notes)
            return
        notes.whole_body = wire.document(document, notes)
        if not notes.whole_body:
            if document[:1] in (b"{", b"["):
                _salvage(document, b"", notes)
            notes.unparsed += 1


def _read_error(document: bytes, wire: Wire, notes: Notes) -> None:
    """An error body: its kind, and the usage some providers report all the same."""
    value = read_any(document) if len(document) <= LENIENT_BYTES_MAX else None
    if value is None:
        notes.report(read_error_body(None))
        return
    notes.whole_body = True
    notes.report(read_error_body(value))
    if isinstance(value, dict):
        wire.document(document, notes)


def _salvage(head: bytes, tail: bytes, notes: Notes) -> None:
    model = _MODEL.search(head)
    if model is not None:
        notes.head(model[1].decode("utf-8", "replace"), None, None)
    for part in (head, tail):
        notes.add_usage(find_object(part, "usage"))
