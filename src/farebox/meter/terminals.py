"""Ends a stream that farebox has to end, as its dialect ends one that reached its output limit.

A stream whose budget is used up must not just stop: clients would take it for a broken connection,
throw away what they have and ask again. So it gets what the provider would have sent at the
output limit: finish reasons, the closing of what is open, the terminal event. This module writes
frames and decides when that can be done; what has to be said is known to `chat_terminal`,
`messages_terminal` and `responses_terminal`, which watch the events of a stream that may have to
be cut. A stream that nobody will cut is not watched and pays nothing.

Whether to cut is the caller's decision, and so is what becomes of the upstream.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import msgspec

from farebox.meter.chat_terminal import ChatTerminal
from farebox.meter.escapes import size_of
from farebox.meter.messages_terminal import MessagesTerminal
from farebox.meter.responses_terminal import ResponsesTerminal
from farebox.records import Family, Operation

Tokens = tuple[int, int]
"""Input and output tokens, as farebox counts them."""

_ENCODER = msgspec.json.Encoder(decimal_format="number")


class Terminal(Protocol):
    """What one dialect remembers of a stream, and its last frames. Bounded, and it never raises for what it reads."""

    @property
    def keeps_text(self) -> bool:
        """Whether it wants to be told of `learned` and `covered`."""

    @property
    def over(self) -> bool:
        """Whether all is said and only the frames that end the stream are missing, its usage maybe among them."""

    def note(self, name: bytes, data: bytes) -> int:
        """Remember an event, given its name (maybe empty) and data; the bytes of generated text in it."""

    def skipped(self, head: bytes) -> None:
        """Remember an event too large to be read, of which this is the beginning."""

    def learned(self) -> None:
        """The event noted last became the template."""

    def covered(self, text: bytes, chunk: bytes) -> None:
        """More frames of the template came: `chunk`, with this text in them, as escaped in JSON."""

    def ending(self, usage: Tokens | None, output_bytes: int) -> Iterable[tuple[str | None, Any]] | None:
        """The frames that end the stream here, as event names and data (a value, or bytes as they are);
        none when it has ended, None when the dialect can't end it yet."""


class Watch:
    """Watches one stream that may have to be cut."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._follows = terminal.keeps_text
        self._newline: bytes | None = None
        self._after_cr = False
        self._noted = 0
        """Text in the event noted last."""
        self._counts = False
        """The template's text is generated text."""
        self.output_bytes = 0
        """Bytes of generated text so far, as UTF-8: text, reasoning, refusals, arguments of tool calls."""
        self._over_at: int | None = None
        """Text there was when all of it was said to be over."""
        self.broken = False
        """Watching failed, which is a fault of farebox's own: nothing is known of how to end the stream."""

    def arrived(self, chunk: bytes) -> None:
        """See how the stream ends its lines; called before the events of `chunk` are noted."""
        if self._newline is None:
            position = chunk.find(b"\n")
            if position >= 0:
                crlf = chunk[position - 1 : position] == b"\r" if position else self._after_cr
                self._newline = b"\r\n" if crlf else b"\n"
            self._after_cr = chunk.endswith(b"\r")

    def note(self, name: bytes, data: bytes) -> None:
        """An event that could be read. Never raises: who watches must not stop the reading."""
        try:
            self._noted = self._terminal.note(name, data)
        except Exception:
            self.broken, self._noted = True, len(data)
        self.output_bytes += self._noted

    def skipped(self, head: bytes) -> None:
        """An event larger than can be read: an image, or a snapshot that repeats what came. It is not counted."""
        try:
            self._terminal.skipped(head)
        except Exception:
            self.broken = True

    def learned(self) -> None:
        self._counts = self._noted > 0
        self._terminal.learned()

    def covered(self, text: bytes, chunk: bytes) -> None:
        """More frames of the template came: `chunk`, with this text in them, as escaped in JSON."""
        if self._counts:
            self.output_bytes += size_of(text) if b"\\" in text else len(text)
        if self._follows:
            self._terminal.covered(text, chunk)

    def unread(self, chunk: bytes) -> None:
        """Bytes that nobody reads any more: all of them may be text."""
        self.output_bytes += len(chunk)

    @property
    def generating(self) -> bool:
        """Whether more text is to come: not once all of it is over, unless more came all the same."""
        if self.broken or not self._terminal.over:
            return True
        if self._over_at is None:
            self._over_at = self.output_bytes
        return self.output_bytes > self._over_at

    def ending(self, usage: Tokens | None) -> bytes | None:
        """The terminal frames; the stream must stand between two frames."""
        if self.broken:
            return None
        frames = self._terminal.ending(usage, self.output_bytes)
        if frames is None:
            return None
        newline = self._newline or b"\n"
        out: list[bytes] = []
        for name, value in frames:
            if name is not None:
                out += (b"event: ", name.encode(), newline)
            out += (b"data: ", value if isinstance(value, bytes) else _ENCODER.encode(value), newline, newline)
        return b"".join(out)


def watch(operation: Operation, family: Family, choices: int) -> Watch | None:
    """The watch for a stream; None for an operation that has none. `choices`: how many answers were asked for."""
    if operation in ("chat", "completions"):
        return Watch(ChatTerminal(choices, legacy=operation == "completions"))
    if operation == "responses":
        return Watch(ResponsesTerminal())
    if operation == "messages" and family == "anthropic":
        return Watch(MessagesTerminal())
    return None
