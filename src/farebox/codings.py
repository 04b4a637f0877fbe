"""Content codings: read what a peer sent compressed, within bounds.

Two readers share one set of stages. `decode_body` reads a whole request body for inspection and
says no, in a way a client can act on, when it cannot. `Decoder` follows a response as it passes
by and never raises: once it cannot read on it says so and yields nothing more, because the bytes
themselves go to the client whatever happens here.

Nothing here encodes, and nothing here decides which bytes travel: a compressed body is forwarded
as it came unless somebody edits the decoded copy.

Known codings (RFC 9110 section 8.4, RFC 9659): gzip and x-gzip with any number of members,
deflate in its zlib form and in the raw form some servers send, br, zstd with any number of
frames, identity; several of them in a list are undone from the last to the first.
"""

from __future__ import annotations

import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Any, Protocol

import brotli  # type: ignore[import-untyped]

from farebox.errors import BadEncoding, BodyTooLarge
from farebox.pieces import Pieces, at_once

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PIECE_BYTES = 64 * 1024
"""How much a stage hands on at once. brotli's bound is soft: a piece of its may be half as large again."""

AT_ONCE_BYTES = 512 * 1024
"""How much of a request body is decoded before others may have their turn."""

STACKED_CODINGS_MAX = 3
"""Longest list of codings read; a longer one is refused as unsupported. Real traffic has one."""

EMPTY_MEMBERS_MAX = 100
"""Members or frames without content that may follow each other; more is treated as corrupt.
They cost time and yield nothing, so the bound on output alone would not end them."""

FEED_BYTES_MAX = 16 * 1024 * 1024
"""Most that `Decoder` hands out for one `feed`; a chunk that holds more marks the decoder broken."""

ZSTD_WINDOW_LOG_MAX = 23
"""RFC 9659: a zstd content coding needs no window above 8 MiB, and decoders may refuse a larger one."""

_TOKEN = re.compile(r"[a-z0-9!#$&^_.+-]{1,24}")


class _Corrupt(ValueError):
    """The bytes are not what their coding says."""


class _Overflow(Exception):
    """A stage passed its bound."""


_FAULTS: tuple[type[Exception], ...] = (_Corrupt, zlib.error, brotli.error, zstd.ZstdError)


class _Stage(Protocol):
    """One coding being undone."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What `data` adds, in pieces; lazily, so that whoever stops asking stops the work."""

    @property
    def at_end(self) -> bool:
        """Nothing is owed: not begun, or the last member or frame is closed."""


class _Emptiness:
    """Counts members that brought nothing, to stop at too many in a row."""

    def __init__(self) -> None:
        self._row = 0
        self._brought = False

    def brought(self) -> None:
        self._brought = True

    def member_ended(self) -> None:
        self._row = 0 if self._brought else self._row + 1
        self._brought = False
        if self._row > EMPTY_MEMBERS_MAX:
            raise _Corrupt("too many empty members")


class _Gzip:
    """gzip: members follow each other; zero padding after one is skipped, as gzip itself does."""

    def __init__(self) -> None:
        self._member: Any = None
        self._members = 0
        self._emptiness = _Emptiness()

    def feed(self, data: bytes) -> Iterator[bytes]:
        while True:
            if self._member is None:
                data = data.lstrip(b"\0") if self._members else data
                if not data:
                    return
                self._member = zlib.decompressobj(wbits=31)
            piece = self._member.decompress(data, PIECE_BYTES)
            if piece:
                self._emptiness.brought()
                yield piece
            if self._member.eof:
                data, self._member = self._member.unused_data, None
                self._members += 1
                self._emptiness.member_ended()
                continue
            data = self._member.unconsumed_tail
            # A full piece may leave output inside zlib although all the input is consumed.
            if not data and len(piece) < PIECE_BYTES:
                return

    @property
    def at_end(self) -> bool:
        return self._member is None


class _Deflate:
    """deflate: RFC 9110 means the zlib form, some servers send raw deflate.

    The first byte tells them apart. A zlib header has method 8 in its low four bits; a raw stream
    with those bits would open with a stored block whose padding is not zero, which no encoder writes.
    """

    def __init__(self) -> None:
        self._stream: Any = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        if not data:
            return
        if self._stream is None:
            self._stream = zlib.decompressobj(wbits=15 if data[0] & 0x0F == 8 else -15)
        elif self._stream.eof:
            raise _Corrupt("data after the end")
        while True:
            piece = self._stream.decompress(data, PIECE_BYTES)
            if piece:
                yield piece
            if self._stream.eof:
                if self._stream.unused_data:
                    raise _Corrupt("data after the end")
                return
            data = self._stream.unconsumed_tail
            if not data and len(piece) < PIECE_BYTES:
                return

    @property
    def at_end(self) -> bool:
        return self._stream is None or bool(self._stream.eof)


class _Brotli:
    """br: one stream, no members."""

    def __init__(self) -> None:
        self._stream = brotli.Decompressor()
        self._begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        if not data:
            return
        if self._stream.is_finished():
            raise _Corrupt("data after the end")
        self._begun = True
        while True:
            piece: bytes = self._stream.process(data, output_buffer_limit=PIECE_BYTES)
            data = b""
            # can_accept_more_data() speaks of input only: a long repetition may still wait as output.
            if not piece:
                return
            yield piece

    @property
    def at_end(self) -> bool:
        return not self._begun or bool(self._stream.is_finished())


class _Zstd:
    """zstd: frames follow each other, skippable ones included."""

    def __init__(self) -> None:
        self._frame: zstd.ZstdDecompressor | None = None
        self._emptiness = _Emptiness()

    def feed(self, data: bytes) -> Iterator[bytes]:
        while True:
            if self._frame is None:
                if not data:
                    return
                self._frame = zstd.ZstdDecompressor(
                    options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG_MAX}
                )
            piece = self._frame.decompress(data, PIECE_BYTES)
            data = b""
            if piece:
                self._emptiness.brought()
                yield piece
            if self._frame.eof:
                data, self._frame = self._frame.unused_data, None
                self._emptiness.member_ended()
            elif self._frame.needs_input:
                return

    @property
    def at_end(self) -> bool:
        return self._frame is None


_STAGES: dict[str, type[_Gzip] | type[_Deflate] | type[_Brotli] | type[_Zstd]] = {
    "gzip": _Gzip,
    "x-gzip": _Gzip,
    "deflate": _Deflate,
    "br": _Brotli,
    "zstd": _Zstd,
}


def _stages(content_encoding: str) -> list[_Stage]:
    """Fresh stages in the order in which they undo the header's list; empty for identity.

    Raises BadEncoding for a coding that is not known or a list that is too long.
    """
    names = [name.strip().lower() for name in content_encoding.split(",")]
    names = [name for name in names if name not in ("", "identity")]
    if len(names) > STACKED_CODINGS_MAX:
        raise BadEncoding(f"more than {STACKED_CODINGS_MAX} content-encodings on top of each other are not supported")
    for name in names:
        if name not in _STAGES:
            shown = f"content-encoding '{name}'" if _TOKEN.fullmatch(name) else "this content-encoding"
            raise BadEncoding(f"{shown} is not supported: use gzip, deflate, br, zstd or identity")
    return [_STAGES[name]() for name in reversed(names)]


def _bounded(pieces: Iterator[bytes], bytes_max: int) -> Iterator[bytes]:
    """The same pieces; _Overflow instead of the one that passes the bound."""
    total = 0
    for piece in pieces:
        total += len(piece)
        if total > bytes_max:
            raise _Overflow
        yield piece


def _undo(stages: Sequence[_Stage], data: bytes, bytes_max: int) -> Iterator[bytes]:
    """`data` through all stages, lazily; each stage may yield `bytes_max`, for what one stage
    makes of nothing another may have had to unpack from gigabytes."""

    def through(stage: _Stage, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            yield from stage.feed(piece)

    pieces: Iterator[bytes] = iter((data,))
    for stage in stages:
        pieces = _bounded(through(stage, pieces), bytes_max)
    return pieces


def decode_body(data: bytes, content_encoding: str, limit: int) -> bytes:
    """The body without its content codings; the same object where there are none.

    `limit` bounds the result, in bytes, and what each coding of a list unpacks to. An empty body
    is empty in every coding. Raises BodyTooLarge past the limit; BadEncoding for an unknown
    coding, a corrupt body or one that ends early.
    """
    return at_once(decoding(data, content_encoding, limit))


def decoding(data: bytes, content_encoding: str, limit: int) -> Pieces[bytes]:
    """`decode_body`, in pieces."""
    stages = _stages(content_encoding)
    too_large = BodyTooLarge(f"the request body is larger than {limit} bytes once decoded")
    if not stages or not data:
        if len(data) > limit:
            raise too_large
        return data
    body, due = BytesIO(), AT_ONCE_BYTES
    try:
        for piece in _undo(stages, data, limit):
            if body.write(piece) and body.tell() >= due:
                due = body.tell() + AT_ONCE_BYTES
                yield
    except _Overflow:
        raise too_large from None
    except _FAULTS:
        raise BadEncoding("the request body does not decode as its content-encoding says") from None
    if not all(stage.at_end for stage in stages):
        raise BadEncoding("the request body ends before its content-encoding does")
    return body.getvalue()


class Decoder:
    """A response's content coding, undone as the bytes pass by. Never raises.

    `broken` becomes true, with the reason in `fault`, when the coding is unknown, the bytes are
    corrupt, or one chunk would unpack to more than `feed_bytes_max`. What was handed out before
    stays a true prefix; from then on every `feed` yields nothing.
    """

    def __init__(self, content_encoding: str, *, feed_bytes_max: int = FEED_BYTES_MAX) -> None:
        self._feed_bytes_max = feed_bytes_max
        self._stages: list[_Stage] = []
        self.fault: str | None = None
        try:
            self._stages = _stages(content_encoding)
        except BadEncoding as error:
            self.fault = error.message

    @property
    def broken(self) -> bool:
        return self.fault is not None

    @property
    def identity(self) -> bool:
        """There is no coding to undo: `feed` returns what it is given."""
        return not self._stages and self.fault is None

    @property
    def complete(self) -> bool:
        """Every coding came to its end: a body that stops here was not cut."""
        return self.fault is None and all(stage.at_end for stage in self._stages)

    def feed(self, data: bytes) -> bytes:
        """The decoded bytes that `data` makes readable; may be empty, at most `feed_bytes_max`."""
        if self.fault is not None:
            return b""
        if not self._stages:
            return data
        out: list[bytes] = []
        try:
            for piece in _undo(self._stages, data, self._feed_bytes_max):
                out.append(piece)  # noqa: PERF402 - what came before a fault is kept
        except _Overflow:
            self._fail("one chunk of the response unpacks to more than is read")
        except _FAULTS:
            self._fail("the response does not decode as its content-encoding says")
        return b"".join(out)

    def _fail(self, fault: str) -> None:
        self.fault = fault
        self._stages = []  # their windows are up to 16 MiB each
