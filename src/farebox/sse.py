"""Cuts a server-sent event stream into frames, however the bytes arrive.

Follows the event stream format of the HTML standard: LF, CRLF and CR end a line, an empty line
ends a frame, a byte order mark may open the stream, `:` opens a comment, `data` lines are joined
by LF, one space after the colon is dropped. The result does not depend on where the bytes were
cut. Two things are added that a proxy needs and a browser does not: every byte belongs to exactly
one frame (`Frame.size`), so that raw frames can be passed on or left out; and a frame larger than
the bound is skipped with constant memory, keeping only its first and last bytes.

What the data means is no business of this module.
"""

from __future__ import annotations

import re

import msgspec

HEAD_BYTES = 4 * 1024
"""Kept from the start of a frame that is larger than the bound."""
TAIL_BYTES = 32 * 1024
"""Kept from its end: a usage object stands there in every known dialect."""

_LF, _CR, _COLON, _SPACE = 10, 13, 58, 32
_BOM = b"\xef\xbb\xbf"
_IDLE = re.compile(rb"(?:[\r\n]++|:[^\r\n]*+[\r\n]++)++")
"""Blank lines and whole comment lines."""


class Frame(msgspec.Struct, gc=False):
    """One piece of the stream: an event, or bytes without one.

    `data` is None where there is no event: comments and blank lines, one piece for all that follow
    each other. `size` is the length in bytes, the ending empty line included; sizes add up to the
    bytes fed. `whole` is False for an event larger than the bound: then `data` is only its
    beginning and `tail` its end. `joined` marks the LF of a CRLF whose CR ended the frame before:
    it belongs to that frame.
    """

    size: int
    data: bytes | None = None
    event: bytes = b""
    whole: bool = True
    tail: bytes = b""
    joined: bool = False


class Splitter:
    """Bytes in, frames out; at most `event_bytes_max` bytes (and `TAIL_BYTES`) are held."""

    def __init__(self, event_bytes_max: int) -> None:
        self._max = event_bytes_max
        self._buffer = bytearray()
        self._searched = 0
        """How far `_buffer` is known to hold no end of the frame."""
        self._begun = False
        self._mark = 0
        """Length of a byte order mark at the start of the first frame."""
        self._after_cr = False
        self._in_comment = False
        self._skipped: _Skipped | None = None

    @property
    def aligned(self) -> bool:
        """The next byte starts a frame."""
        return (
            self._begun and not self._buffer and not self._after_cr and not self._in_comment and self._skipped is None
        )

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes."""
        if self.aligned and _is_one(data) and len(data) <= self._max:
            return [Frame(len(data), data[6:-2])]
        frames: list[Frame] = []
        if self._after_cr and data:
            self._after_cr = False
            if data[0] == _LF:
                frames.append(Frame(1, joined=True))
                data = data[1:]
        if not data:
            return frames
        if self._buffer:
            self._buffer += data
            used = self._split(self._buffer, frames)
            del self._buffer[:used]
        else:
            used = self._split(data, frames)
            if used < len(data):
                self._buffer += data[used:] if used else data
        self._bound()
        return frames

    def flush(self) -> Frame | None:
        """What is left at the end of the stream, as if its empty line had come; None if nothing is.

        The standard discards it. Providers do end streams without the last empty line, and the
        usage may stand there.
        """
        rest, skipped = bytes(self._buffer), self._skipped
        self._buffer.clear()
        self._skipped = None
        if skipped is not None:
            skipped.add(rest)
            return skipped.frame()
        if not rest:
            return None
        size = len(rest)
        return _event(rest[self._mark :].rstrip(b"\r\n"), size, self._max)

    def _split(self, buffer: bytes | bytearray, frames: list[Frame]) -> int:
        """Append the frames that `buffer` completes; the number of bytes they take."""
        start = 0
        if not self._begun:
            if len(buffer) < len(_BOM) and _BOM.startswith(bytes(buffer)):
                return 0
            self._begun = True
            self._mark = len(_BOM) if buffer.startswith(_BOM) else 0
        position = self._mark
        has_cr = b"\r" in buffer
        length = len(buffer)
        while position < length:
            byte = buffer[position]
            if self._in_comment:
                position = self._comment(buffer, position, has_cr)
                frames.append(Frame(position - start))
            elif self._skipped is None and byte in (_LF, _CR, _COLON):
                position = self._idle(buffer, position)
                frames.append(Frame(position - start))
            else:
                end, after = self._find_end(buffer, max(position, self._searched), has_cr)
                if end < 0:
                    break
                frames.append(self._close(bytes(buffer[position:end]), after - start))
                position = after
            self._searched = self._mark = 0
            start = position
        # The last three bytes may hold the beginning of an ending.
        self._searched = max(0, length - start - 3)
        return start

    def _find_end(self, buffer: bytes | bytearray, position: int, has_cr: bool) -> tuple[int, int]:
        """Where the frame's lines end and where the next frame begins; -1 if not in `buffer`.

        Single-byte searches throughout: they run at memory speed, a search for two bytes does not.
        """
        length = len(buffer)
        while True:
            end = buffer.find(b"\n", position)
            if has_cr:
                cr = buffer.find(b"\r", position, end if end >= 0 else length)
                end = cr if cr >= 0 else end
            if end < 0 or end + 1 == length:
                return -1, -1
            after = end + 1
            if buffer[end] == _CR and buffer[after] == _LF:
                after += 1
                if after == length:
                    return -1, -1
            if buffer[after] == _LF or buffer[after] == _CR:
                return end, self._line_end(buffer, after)
            position = after

    def _line_end(self, buffer: bytes | bytearray, position: int) -> int:
        """The position after the line ending at `position`."""
        if buffer[position] == _CR:
            if position + 1 == len(buffer):
                self._after_cr = True
            elif buffer[position + 1] == _LF:
                return position + 2
        return position + 1

    def _idle(self, buffer: bytes | bytearray, position: int) -> int:
        """The position after the blank and comment lines at `position`; a comment need not be complete."""
        match = _IDLE.match(buffer, position)
        end = match.end() if match is not None else position
        if end < len(buffer):
            self._in_comment = buffer[end] == _COLON
            return len(buffer) if self._in_comment else end
        self._after_cr = buffer[end - 1] == _CR
        return end

    def _comment(self, buffer: bytes | bytearray, position: int, has_cr: bool) -> int:
        """The position after the rest of a comment line, or of what there is of it: comments are never held."""
        end = buffer.find(b"\n", position)
        if has_cr:
            cr = buffer.find(b"\r", position, end if end >= 0 else len(buffer))
            end = cr if cr >= 0 else end
        self._in_comment = end < 0
        return len(buffer) if end < 0 else self._line_end(buffer, end)

    def _close(self, block: bytes, size: int) -> Frame:
        skipped = self._skipped
        if skipped is None:
            return _event(block, size, self._max)
        self._skipped = None
        skipped.add(block)
        skipped.size += size - len(block)
        return skipped.frame()

    def _bound(self) -> None:
        """Stop holding a frame that grew too large; from here on only its ending is looked for."""
        buffer = self._buffer
        # Up to two bytes may belong to an ending that is not complete.
        if len(buffer) <= (self._max + self._mark + 2 if self._skipped is None else 3):
            return
        if self._skipped is None:
            self._skipped = _Skipped()
        # The ending may have begun in the last three bytes.
        self._skipped.size += self._mark
        self._skipped.add(bytes(buffer[self._mark : -3]))
        del buffer[:-3]
        self._searched = self._mark = 0


class _Skipped:
    """A frame larger than the bound while it passes: its length, its first and its last bytes."""

    def __init__(self) -> None:
        self.size = 0
        self._head = b""
        self._tail = b""

    def add(self, data: bytes) -> None:
        if len(self._head) < HEAD_BYTES:
            self._head += data[: HEAD_BYTES - len(self._head)]
        self._tail = (self._tail + data)[-TAIL_BYTES:] if len(data) < TAIL_BYTES else data[-TAIL_BYTES:]
        self.size += len(data)

    def frame(self) -> Frame:
        event, data = _fields(self._head)
        return Frame(self.size, data or b"", event, False, self._tail.rstrip(b"\r\n"))


def _is_one(data: bytes) -> bool:
    """Whether `data`, which begins where a frame begins, is one of the most ordinary kind: a line of data and an empty
    one."""
    return (
        data.endswith(b"\n\n")
        and data.startswith(b"data: ")
        and data.find(b"\n") == len(data) - 2
        and b"\r" not in data
    )


def _event(block: bytes, size: int, event_bytes_max: int) -> Frame:
    """The frame of a block of lines without its ending empty line."""
    if len(block) > event_bytes_max:
        skipped = _Skipped()
        skipped.add(block)
        skipped.size = size
        return skipped.frame()
    if block.startswith(b"data:") and b"\n" not in block and b"\r" not in block:
        return Frame(size, block[6:] if block[5:6] == b" " else block[5:])
    event, data = _fields(block)
    return Frame(size, data, event)


def _fields(block: bytes) -> tuple[bytes, bytes | None]:
    """The event name (empty if none) and the data (None if none) of a block of lines."""
    event = b""
    data: list[bytes] = []
    for line in block.splitlines():
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value[1:] if value[:1] == b" " else value)
        elif field == b"event":
            event = value[1:] if value[:1] == b" " else value
    return event, b"\n".join(data) if data else None
