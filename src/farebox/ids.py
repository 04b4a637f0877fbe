"""Ids of attempts: UUID version 7, so that rows made together lie together in the index (RFC 9562, 5.7)."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import msgspec

_DRAWN = 64
"""Ids for which randomness is drawn at once: a system call for each costs more than the rest of the id."""
_RANDOM_BYTES = 10
_VERSION_7 = (0x7000 << 64 | 0x8000 << 48).to_bytes(_RANDOM_BYTES)
_RANDOM_BITS = ((1 << 80) - 1 & ~(0xF000 << 64 | 0xC000 << 48)).to_bytes(_RANDOM_BYTES)
_VERSIONS = int.from_bytes(_VERSION_7 * _DRAWN)
_RANDOMS = int.from_bytes(_RANDOM_BITS * _DRAWN)
_AS_BYTES = b"\xc4\x10"
"""Says in MessagePack that 16 bytes follow."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.msgpack.Decoder(UUID).decode


def text_of(id: UUID) -> bytes:
    """An id as text: what `str` says, at a fifth of its cost."""
    return _encode(id)[1:-1]


class Ids:
    """Mints ids from `random(size)`, bytes that nobody can foretell. One for a process: a fork would mint the same."""

    __slots__ = ("_left", "_random")

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        self._left: list[bytes] = []

    def mint(self, unix_s: float) -> UUID:
        """A new id of the Unix time `unix_s`."""
        if not self._left:
            self._left = _drawn(self._random(_DRAWN * _RANDOM_BYTES))
        # msgspec makes what UUID's constructor would, at half of what is left of it without its checks.
        return _decode(_AS_BYTES + int(unix_s * 1000).to_bytes(6) + self._left.pop())


def _drawn(data: bytes) -> list[bytes]:
    """Pieces of `data` as the last 10 bytes of ids, version and variant in their places."""
    data = (int.from_bytes(data) & _RANDOMS | _VERSIONS).to_bytes(len(data))
    return [data[at : at + _RANDOM_BYTES] for at in range(0, len(data), _RANDOM_BYTES)]
