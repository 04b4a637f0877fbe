"""A head that comes again is known by its bytes: nothing of it is parsed then.

A client sends each of its requests with the same head, but for the length of the body. What the parser
made of these bytes once it would make of them again, so a connection keeps the head of its last request
as it came, around the digits of Content-Length. Only what is certain is known so: the parser stood
between two requests, all of the body came with the head, and nothing behind it. Everything else is parsed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from aiohttp.http import RawRequestMessage

from farebox.heads import RequestHead

if TYPE_CHECKING:
    from farebox.server.request import Handler

KNOWN_BYTES_MAX = 4 * 1024
"""Bytes of a head that is kept with its connection; a longer one is parsed every time."""
_DIGITS_MAX = 9
_LENGTH_FIELDS = (b"\r\nContent-Length: ", b"\r\ncontent-length: ")


class Opening(NamedTuple):
    """How a request begins: the bytes of its head before and after the digits of its length, both counted."""

    before: bytes
    after: bytes
    length: int
    """Of the body, in bytes."""
    size: int
    """Of the head, in bytes."""


def read_opening(data: bytes, message: RawRequestMessage) -> Opening | None:
    """How `data` begins, of which the parser has made `message`; None where that is not beyond doubt."""
    size = data.find(b"\r\n\r\n") + 4
    found = max(data.find(field, 0, size) for field in _LENGTH_FIELDS)
    if size < 4 or found < 0 or message.upgrade or "Transfer-Encoding" in message.headers:
        return None
    at = found + len(_LENGTH_FIELDS[0])
    digits = data[at : data.find(b"\r", at)]
    if not digits.isdigit() or len(digits) > _DIGITS_MAX:
        return None
    before, after = data[:at], data[at + len(digits) : size]
    # The request line, the fields and the empty line, one each: then none is folded, and none ends in another way.
    lines = len(message.raw_headers) + 2
    if not (lines == data.count(b"\r\n", 0, size) == data.count(b"\n", 0, size) == data.count(b"\r", 0, size)):
        return None
    return Opening(before, after, int(digits), size)


class Known:
    """One head as it came, and what it says. Holds credentials: it is not printed."""

    __slots__ = ("_after", "_before", "_sizes", "handler", "head", "read_by", "target")

    def __init__(self, opening: Opening, target: str, head: RequestHead, read_by: object, handler: Handler) -> None:
        """`target` as on the request line. `read_by`: whose reading of it `head` is; another may say otherwise.
        `handler` answers such requests."""
        self._before = opening.before
        self._after = opening.after
        self._sizes = len(opening.before), len(opening.after)
        self.target = target
        self.handler = handler
        self.head = head
        self.read_by = read_by

    def body_in(self, data: bytes) -> bytes | None:
        """The body, where `data` is this head again and all of its body, and nothing else; else None."""
        if not data.startswith(self._before):
            return None
        at, rest = self._sizes
        stop = data.find(b"\r", at, at + _DIGITS_MAX + 1)
        digits = data[at:stop]
        if stop < 0 or not data.startswith(self._after, stop) or not digits.isdigit():
            return None
        body = data[stop + rest :]
        return body if len(body) == int(digits) else None
