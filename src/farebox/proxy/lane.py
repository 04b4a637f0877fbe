"""The ordinary piece of a stream: from its provider's connection to its client's in one step.

Nearly every read of a stream brings one HTTP chunk with one event in it that repeats the one before but
for its text. What comes so goes out so: framing included, the very bytes, without a parser, a meter and
a framing anew in between. That saves more than their work: of a thousand streams each finds its objects
cold in the processor's caches, so the fewer are touched, the better.

Whatever is not exactly that goes the general way (`relay`), and comes out the same.
"""

from __future__ import annotations

from collections.abc import Callable

from farebox.accounting import Attempt
from farebox.meter import Meter, Template
from farebox.server import Reply

SIZE_MAX = 4 * 1024
"""Bytes of a chunk's content, at most; a larger one goes the general way."""
_TEXT_BYTES = 1024
"""Text that is handed to the meter at once: a small part of the sample that it keeps."""


def _openings() -> tuple[bytes, ...]:
    """By the size of all of a chunk: the line it opens with, as everybody writes it; no bytes open one of another."""
    lines = [b"\0"] * (SIZE_MAX + 16)
    for size in range(1, SIZE_MAX + 1):
        line = b"%x\r\n" % size
        lines[len(line) + size + 2] = line
    return tuple(lines)


_OPENINGS = _openings()


class Lane:
    """The short way of one stream. `expect` opens it, `account` tells what passed; until then it is noted here.

    halt  called where the client does not keep up, last of all: the relay goes on there and then
    """

    __slots__ = (
        "_attempt", "_connection", "_halt", "_meter", "_monotonic",
        "_seen", "_size", "_template", "_text", "_transport",
    )  # fmt: skip

    def __init__(
        self, attempt: Attempt, meter: Meter, reply: Reply, monotonic: Callable[[], float], halt: Callable[[], None]
    ) -> None:
        self._attempt = attempt
        self._meter = meter
        self._connection = reply.connection
        self._transport = reply.connection.transport
        self._monotonic = monotonic
        self._halt = halt
        self._template: Template | None = None
        self._size = 0
        """Bytes of content that passed and are not accounted for."""
        self._text = bytearray()
        """The text in them, as escaped in JSON."""
        self._seen = 0.0
        """When the last of them came."""

    def expect(self, template: Template | None) -> None:
        """What the next piece may repeat; None where it has to go the general way."""
        self._template = template

    def take(self, data: bytes) -> bool:
        """Pass `data` on, which begins where a chunk begins, if it is one chunk and ordinary; else do nothing and say
        False."""
        template, transport = self._template, self._transport
        size = len(data)
        if template is None or size >= len(_OPENINGS) or transport is None:
            return False
        opening = _OPENINGS[size]
        if not (data.startswith(opening) and data.endswith(b"\r\n")):
            return False
        text = template.text(data[len(opening) : -2])
        if text is None or transport.is_closing():
            return False
        self._seen = self._monotonic()
        self._size += size - len(opening) - 2
        self._text += text
        if len(self._text) > _TEXT_BYTES:
            self.account()
        transport.write(data)
        if self._connection._paused:
            self._halt()
        return True

    def account(self) -> None:
        """Note what passed where it belongs."""
        if self._size:
            self._attempt.answer_bytes += self._size
            self._attempt.last_byte = self._seen
            self._meter.keep(bytes(self._text))
            self._size = 0
            self._text.clear()
