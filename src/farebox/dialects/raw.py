"""What is kept of a usage object that is too large to keep: its plain members, and the names of the others.

A price may depend on more than the counts: on Anthropic's `iterations`, on `speed`. Where such a
member had to go its name stays behind, so that whoever prices the call later, without it, knows
that it can't, instead of finding another amount.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

LEFT_OUT = "farebox_left_out"
"""The member with the names of those left out; `true`: too many to name."""

_MEMBERS_MAX = 16
_CHARS_MAX = 64
_BITS_MAX = 64


def shortened(raw: Mapping[str, Any]) -> dict[str, Any]:
    """`raw` within some 4 kB: the first numbers and words of its own, and `LEFT_OUT`. Applied again it is the same."""
    before = raw.get(LEFT_OUT)
    kept: dict[str, Any] = {}
    left: list[str] = list(before) if isinstance(before, list) else []
    for name, value in raw.items():
        if name == LEFT_OUT:
            continue
        if len(kept) < _MEMBERS_MAX and _is_plain(name, value):
            kept[name] = value
        else:
            left.append(name)
    named = before is not True and len(left) <= _MEMBERS_MAX and all(len(name) <= _CHARS_MAX for name in left)
    return {**kept, LEFT_OUT: left if named else True}


def nothing_kept() -> dict[str, Any]:
    """What stands for a usage object of which nothing could be kept."""
    return {LEFT_OUT: True}


def lacks(raw: Mapping[str, Any], names: Collection[str]) -> bool:
    """Whether one of `names` was, or may have been, left out of `raw`."""
    left = raw.get(LEFT_OUT)
    return left is True or (isinstance(left, list) and any(name in names for name in left))


def _is_plain(name: str, value: Any) -> bool:
    if isinstance(value, dict | list) or len(name) > _CHARS_MAX:
        return False
    # Not by its digits: Python refuses to write out an integer of thousands of them.
    return value.bit_length() <= _BITS_MAX if isinstance(value, int) else len(str(value)) <= _CHARS_MAX
