"""Follows an event stream: bytes in, bytes to forward out, facts into the notes.

A chunk or an event that repeats the last one but for its text costs a comparison (`template`); every
other event is decoded. A fault here is farebox's own: reading stops, what is held goes on, and the
bytes pass untouched from then on.
"""

from __future__ import annotations

import re

from farebox.meter.documents import find_object
from farebox.meter.reading import Notes
from farebox.meter.sample import Sample, Text
from farebox.meter.template import Template
from farebox.meter.terminals import Tokens, Watch
from farebox.meter.wire import Kind, Wire
from farebox.meter.withhold import Withholder
from farebox.sse import Frame, Splitter

UNREADABLE_MAX = 1000
"""Events that could not be read; at one more reading stops, for this is not what it was taken for."""
PIECE_BYTES = 256 * 1024
"""Larger chunks (a compressed one may unpack to much) are read in pieces, to bound what is held at once."""
LESSONS_MAX = 64
"""Templates learned in one stream; one that keeps changing is not worth comparing with."""

_ROLE = b'"role"'
_TYPE = re.compile(rb'"type"\s{0,4}:\s{0,4}"([a-z_.]{1,64})"')
_MODEL = re.compile(rb'"model"\s{0,4}:\s{0,4}"([^"\\]{1,256})"')


class StreamMeter:
    """The reader of one event stream."""

    def __init__(
        self, wire: Wire, notes: Notes, *, withhold: bool, event_bytes_max: int, watch: Watch | None = None
    ) -> None:
        self._wire = wire
        self._notes = notes
        self._splitter = Splitter(event_bytes_max)
        self._withholder = Withholder() if withhold else None
        self.watch = watch
        self.template: Template | None = None
        """What the next chunk most likely repeats; None where it does not begin a frame."""
        self._raw: Template | None = None
        """The template of whole raw frames."""
        self._data: Template | None = None
        """The same template of the data of a frame, for those that come in pieces or together with others."""
        self._name = b""
        """The name of its events."""
        self._repeats = False
        """The last event is of that template."""
        self._lessons = 0
        self._named_role = False
        """The first event with text was one that names its role, which the others mostly do not."""
        self._stopped = False
        self._sample = Sample()
        self.keep = self._sample.add_text
        """Keep the text of a chunk that the template covers."""
        self.first_token_at: float | None = None

    @property
    def terminal(self) -> bool:
        """The event that ends the answer was fed."""
        return self._notes.terminal

    def feed(self, chunk: bytes, now: float) -> bytes:
        """Note what `chunk` says and return what may go on to the client. Never raises."""
        if self.template is not None and (text := self.template.text(chunk)) is not None:
            self.keep(text)
            if self.watch is not None:
                self.watch.covered(text, chunk)
            return chunk
        if self._stopped:
            if self.watch is not None:
                self.watch.unread(chunk)
            return chunk
        try:
            if len(chunk) > PIECE_BYTES:
                return self._read_pieces(chunk, now)
            return self._read(chunk, now)
        except Exception:
            return self._stop() + chunk

    def eof(self) -> bytes:
        """The stream ended: read what lacks its empty line, and return what was held of it."""
        withholder = self._withholder
        if self._stopped:
            return b""
        try:
            frame = self._splitter.flush()
            if frame is not None and frame.data is not None:
                kind = self._note(frame, cut=True)
                if withholder is not None and kind == Kind.USAGE_ONLY:
                    withholder.drop()
        except Exception:
            return self._stop()
        return withholder.release() if withholder is not None else b""

    @property
    def output_bytes(self) -> int:
        """Bytes of generated text so far; 0 where nobody watches."""
        return self.watch.output_bytes if self.watch is not None else 0

    @property
    def generating(self) -> bool:
        """Whether more text is to come, as far as anybody watches."""
        return self.watch is None or self.watch.generating

    @property
    def cuttable(self) -> bool:
        """Whether it is watched and can still be followed."""
        return self.watch is not None and not self._stopped and not self.watch.broken

    def cut(self, usage: Tokens | None) -> bytes | None:
        """The frames that end the stream properly here; None inside a frame, or where nothing can. Never raises."""
        # What is held is the beginning of a frame, so between two frames nothing is.
        if self.watch is None or self._stopped or not self._splitter.aligned:
            return None
        try:
            return self.watch.ending(usage)
        except Exception:
            return None

    def text(self) -> Text:
        """The generated text seen so far."""
        return self._sample.text(self._wire)

    def _stop(self) -> bytes:
        """Give up reading; what is held has to go on."""
        self._stopped = True
        self.template = self._raw = self._data = None
        self._notes.unparsed += 1
        return self._withholder.release() if self._withholder is not None else b""

    def _read_pieces(self, chunk: bytes, now: float) -> bytes:
        pieces = (chunk[at : at + PIECE_BYTES] for at in range(0, len(chunk), PIECE_BYTES))
        out = b"".join(self.feed(piece, now) for piece in pieces)
        return chunk if self._withholder is None else out

    def _read(self, chunk: bytes, now: float) -> bytes:
        begins_frame = self._splitter.aligned
        if self.watch is not None:
            self.watch.arrived(chunk)
        frames = self._splitter.feed(chunk)
        aligned = self._splitter.aligned
        kinds = [self._note(frame) for frame in frames]
        if self._notes.unparsed > UNREADABLE_MAX:
            return self._stop() + chunk
        if self._notes.content and self.first_token_at is None:
            self.first_token_at = now
        one = len(frames) == 1 and begins_frame and aligned
        if self._raw is None and self._repeats and one:
            assert self._data is not None and frames[0].data is not None
            self._raw = self._data.around(chunk, frames[0].data)
        self.template = self._raw if aligned else None
        if self._withholder is None or (one and kinds[0] != Kind.USAGE_ONLY):
            return chunk  # of one whole frame nothing is held
        return self._withholder.forward(
            chunk, ((frame, kind == Kind.USAGE_ONLY) for frame, kind in zip(frames, kinds, strict=True))
        )

    def _note(self, frame: Frame, *, cut: bool = False) -> Kind:
        """Read one frame. `cut`: it is what a stream that ended left over, so it may be no event at all."""
        data = frame.data
        self._repeats = False
        if data is None or (frame.whole and not data.strip()):
            return Kind.EMPTY
        notes = self._notes
        if not frame.whole:
            notes.unparsed += 1
            self._salvage(frame, data)
            if self.watch is not None:
                self.watch.skipped(data)
            return Kind.NEWS
        if self._data is not None and frame.event == self._name:
            text = self._data.text(data, one=True)
            if text is not None:
                self._repeats = True
                self.keep(text)
                if self.watch is not None:
                    self.watch.covered(text, data)
                return Kind.TEXT
        kind = self._wire.event(frame.event, data, notes)
        if kind == Kind.UNREADABLE:
            kind = self._note_lines(frame, data)
            if kind == Kind.UNREADABLE and not cut:
                notes.unparsed += 1
        elif self.watch is not None:
            self.watch.note(frame.event, data)
        if kind in (Kind.TEXT, Kind.NEWS_AND_TEXT):
            notes.content = True
            self._sample.add_event(data)
        if kind == Kind.TEXT:
            self._learn(frame, data)
        return kind

    def _learn(self, frame: Frame, data: bytes) -> None:
        """Expect more frames like this one, which held nothing but text."""
        if not (self._lessons or self._named_role) and _ROLE in data:
            self._named_role = True
            return
        learned = Template.learn(data, b"") if self._lessons < LESSONS_MAX else None
        if learned is not None:
            self._lessons += 1
            self._data, self._raw, self._name, self._repeats = learned, None, frame.event, True
            if self.watch is not None:
                self.watch.learned()

    def _note_lines(self, frame: Frame, data: bytes) -> Kind:
        """Read each line of the data as an event: a few servers forget the empty line between events."""
        best = Kind.UNREADABLE
        if b"\n" in data:
            for line in data.split(b"\n"):
                kind = self._wire.event(frame.event, line, self._notes)
                # Such a frame is never usage alone.
                best = max(best, min(kind, Kind.NEWS_AND_TEXT))
                if self.watch is not None and kind != Kind.UNREADABLE:
                    self.watch.note(frame.event, line)
        return best

    def _salvage(self, frame: Frame, head: bytes) -> None:
        """Read what can be read of an event larger than the bound: its end holds the usage, its start the type."""
        notes = self._notes
        found = _TYPE.search(head)
        kind = found[1] if found is not None else frame.event
        if kind.startswith(b"response.") and kind.rpartition(b".")[2] in (
            b"completed",
            b"incomplete",
            b"failed",
            b"cancelled",
        ):
            notes.terminal = True
        model = _MODEL.search(head)
        if model is not None:
            notes.head(model[1].decode("utf-8", "replace"), None, None)
        for part in (head, frame.tail):
            notes.add_usage(find_object(part, "usage"))
            notes.add_sibling("tool_usage", find_object(part, "tool_usage"))
