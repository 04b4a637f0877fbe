"""Ids of attempts: UUID version 7, so that rows made together lie together in the index (RFC 9562, 5.7)."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID, SafeUUID

import msgspec

_DRAWN = 64
"""Ids for which randomness is drawn at once: a system call for each costs more than the rest of the id."""
_RANDOM_BYTES = 10
_VERSION_7 = 0x7000 << 64 | 0x8000 << 48
_RANDOM_BITS = (1 << 80) - 1 & ~(0xF000 << 64 | 0xC000 << 48)
_set = object.__setattr__
_UNSAID = SafeUUID.unknown


_encode = msgspec.json.Encoder().encode


def text_of(id: UUID) -> bytes:
    """An id as text: what `str` says, at a fifth of its cost."""
    return _encode(id)[1:-1]


class Ids:
    """Mints ids from `random(size)`, bytes that nobody can foretell. One for a process: a fork would mint the same."""

    __slots__ = ("_left", "_random")

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        self._left: list[int] = []

    def mint(self, unix_s: float) -> UUID:
        """A new id of the Unix time `unix_s`."""
        if not self._left:
            self._left = _drawn(self._random(_DRAWN * _RANDOM_BYTES))
        # As UUID's constructor does, less what it checks: 0.4 us of 0.7.
        id = UUID.__new__(UUID)
        _set(id, "int", int(unix_s * 1000) << 80 | self._left.pop())
        _set(id, "is_safe", _UNSAID)
        return id


def _drawn(data: bytes) -> list[int]:
    """Pieces of `data` as the low 80 bits of ids, version and variant in their places."""
    return [
        int.from_bytes(data[at : at + _RANDOM_BYTES], "big") & _RANDOM_BITS | _VERSION_7
        for at in range(0, len(data), _RANDOM_BYTES)
    ]
