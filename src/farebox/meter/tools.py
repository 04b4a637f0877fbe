"""Counts tool calls by name without keeping their arguments: only how many bytes they had.

Stands below the wires, which know where a call is written in each API family. Memory is bounded:
names by length and number, calls that are still being streamed by number.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import msgspec

from farebox.records import ToolCall

NAME_CHARS_MAX = 128
NAMES_MAX = 64
"""Distinct names kept for one exchange; the calls of further ones are counted under `OTHER`."""
OPEN_CALLS_MAX = 1024
"""Streamed calls told apart; fragments of further ones are not attributed."""
OTHER = "other"
UNNAMED = "unnamed"

_ENCODER = msgspec.json.Encoder(decimal_format="number")


class _Call(msgspec.Struct):
    """One call that is being streamed: its id, the name it is counted under, the bytes of its arguments so far."""

    id: str
    name: str
    size: int


class ToolTally:
    """The tool calls of one exchange."""

    def __init__(self) -> None:
        self._names: dict[str, list[int]] = {}
        self._open: dict[Hashable, _Call] = {}

    def __bool__(self) -> bool:
        return bool(self._names)

    def add(self, name: Any, arguments: Any = None) -> None:
        """Count one complete call."""
        self._count(self._key(name), 1, size_of(arguments))

    def start(self, slot: Hashable, call_id: Any, name: Any, arguments: Any) -> None:
        """Count a call that begins at `slot`, its place in the stream."""
        call = _Call(call_id if isinstance(call_id, str) else "", self._key(name), size_of(arguments))
        self._count(call.name, 1, call.size)
        if slot in self._open or len(self._open) < OPEN_CALLS_MAX:
            self._open[slot] = call

    def grow(self, slot: Hashable, arguments: Any) -> None:
        """Count more of the arguments of the call at `slot`."""
        call = self._open.get(slot)
        if call is not None:
            size = size_of(arguments)
            call.size += size
            self._count(call.name, 0, size)

    def fragment(self, slot: Hashable, call_id: Any, name: Any, arguments: Any) -> None:
        """Count a fragment that may begin a call at `slot` or continue the one there.

        It begins another one if it brings both a name and an id that is not the id of the call
        there: some servers put every call at index 0. A name alone may be repeated, and an id
        alone may be invented anew for each fragment; neither begins a call.
        """
        call = self._open.get(slot)
        named = isinstance(name, str) and name != ""
        identified = isinstance(call_id, str) and call_id != ""
        if call is None or (named and identified and call.id not in ("", call_id)):
            self.start(slot, call_id, name, arguments)
            return
        if identified and not call.id:
            call.id = call_id
        if named and call.name == UNNAMED:
            self._rename(call, self._key(name))
        self.grow(slot, arguments)

    def calls(self) -> list[ToolCall]:
        """What was counted so far, in the order in which the names first came up."""
        return [ToolCall(name, count, size) for name, (count, size) in self._names.items()]

    def _rename(self, call: _Call, name: str) -> None:
        self._count(call.name, -1, -call.size)
        if self._names[call.name][0] == 0:
            del self._names[call.name]
        call.name = name
        self._count(name, 1, call.size)

    def _count(self, name: str, calls: int, size: int) -> None:
        entry = self._names.setdefault(name, [0, 0])
        entry[0] += calls
        entry[1] += size

    def _key(self, value: Any) -> str:
        """The name a call is counted under: bounded, and `OTHER` once there are too many."""
        name = value if isinstance(value, str) and value else UNNAMED
        name = name[:NAME_CHARS_MAX].encode("utf-8", "replace").decode().replace("\0", "")
        return name if name in self._names or len(self._names) < NAMES_MAX else OTHER


def size_of(arguments: Any) -> int:
    """Bytes of UTF-8 that arguments take: of the text as sent, or of the compact JSON of a value."""
    if isinstance(arguments, str):
        return len(arguments.encode("utf-8", "replace"))
    if not isinstance(arguments, dict | list) or not arguments:
        return 0
    try:
        return len(_ENCODER.encode(arguments))
    except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError):
        return 0
