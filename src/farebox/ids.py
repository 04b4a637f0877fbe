"""Ids of attempts: UUID version 7, so that rows made together lie together in the index (RFC 9562, 5.7)."""

from __future__ import annotations

from uuid import UUID


def uuid7(unix_ms: int, random: bytes) -> UUID:
    """A version 7 UUID from a Unix time in milliseconds and 10 random bytes."""
    value = (unix_ms & 0xFFFF_FFFF_FFFF) << 80 | int.from_bytes(random[:10], "big")
    value &= ~(0xF000 << 64) & ~(0xC000 << 48)
    return UUID(int=value | 0x7000 << 64 | 0x8000 << 48)
