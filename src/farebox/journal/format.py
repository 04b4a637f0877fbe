"""How the journal's records look on disk, and how they are found again in bytes that may be damaged.

Pure: bytes in, records out. A record is a frame, an id and a payload:

    magic 3 | kind 1 | crc32 4 | payload length 4 | written at 8 (Unix seconds) | id 16 | payload

The checksum covers everything after itself and is seeded with the kind. Room that was never
written is zeros, so a segment needs no count of its records. A torn or rotten record does not
hide what follows it: the parser looks for the next magic and goes on there. The magic holds
control characters, which JSON never holds unescaped, so that no client can put a record into a
record.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple
from zlib import crc32

from farebox import payload

FILE_HEADER = b"farebox-journal\x01"
"""Opens every segment file; the last byte is the version of the format."""
PAYLOAD_BYTES_MAX = payload.BYTES_MAX
"""The journal sets room for one payload of this size aside with every begin; larger ones are refused."""

BEGIN = b"B"
END = b"E"

_MAGIC = b"\x1ef\x02"
_HEAD = Struct("<3scI")
_BODY = Struct("<Id16s")
_FRAME = Struct("<3scIId16s")
_pack_body, _pack_frame = _BODY.pack, _FRAME.pack
FRAME_BYTES = _FRAME.size
RECORD_BYTES_MAX = FRAME_BYTES + PAYLOAD_BYTES_MAX


class Record(NamedTuple):
    """One record as it was read; `start` and `stop` are offsets in the file it was read from."""

    kind: bytes
    id: bytes
    written_at: float
    payload: bytes
    start: int
    stop: int


class Orphan(NamedTuple):
    """A begin without an end, left by a life that crashed. `seen_at`: when that life last wrote (Unix seconds)."""

    id: bytes
    payload: bytes
    seen_at: float


class Parsed(NamedTuple):
    """What `parse` found: the records, the offset it got to, and how many bytes were written but make no record."""

    records: list[Record]
    stop: int
    damaged: int


def frame(kind: bytes, id: bytes, payload: bytes, written_at: float) -> bytes:
    """One record, ready to be written. `id` is 16 bytes, `payload` at most `PAYLOAD_BYTES_MAX`."""
    length = len(payload)
    crc = crc32(payload, crc32(_pack_body(length, written_at, id), kind[0]))
    return _pack_frame(_MAGIC, kind, crc, length, written_at, id) + payload


def parse(data: bytes, offset: int, *, final: bool) -> Parsed:
    """The records in `data`, which lies at `offset` and starts at a record, in damage or in unwritten room.

    Without `final` more bytes follow: then what may be cut off by the end of `data` is left alone,
    and the next call starts at `stop`. `data` must be longer than one record then.
    """
    records: list[Record] = []
    position, end, damaged = 0, len(data), 0
    while end - position >= FRAME_BYTES:
        magic, kind, crc, length, written_at, id = _FRAME.unpack_from(data, position)
        stop = position + FRAME_BYTES + length
        if magic == _MAGIC and length <= PAYLOAD_BYTES_MAX:
            if stop > end and not final:
                break
            if stop <= end and crc32(data[position + _HEAD.size : stop], kind[0]) == crc:
                payload = data[position + FRAME_BYTES : stop]
                records.append(Record(kind, id, written_at, payload, offset + position, offset + stop))
                position = stop
                continue
        follows = _next_magic(data, position + 1, final)
        damaged += _written(data[position:follows])
        position = follows
    if final:
        damaged += _written(data[position:])
        position = end
    return Parsed(records, offset + position, damaged)


def _next_magic(data: bytes, start: int, final: bool) -> int:
    found = data.find(_MAGIC, start)
    if found >= 0:
        return found
    # The magic itself may be cut off by the end of `data`.
    return len(data) if final else max(start, len(data) - len(_MAGIC) + 1)


def _written(data: bytes) -> int:
    return len(data.strip(b"\0"))
