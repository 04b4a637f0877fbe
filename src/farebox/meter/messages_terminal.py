"""How a stream of Anthropic's Messages API is ended at a limit: blocks are stopped, then comes `max_tokens`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from farebox.dialects.values import count, mapping
from farebox.meter.documents import Reader

BLOCKS_MAX = 1024
"""Blocks that may be open at a time (Anthropic opens one after the other); further ones are not stopped."""
BYTES_A_TOKEN = 4
"""For the count that a message has to name, where the caller gives none."""

_DELTAS = ("text", "thinking", "partial_json")
_INDEX = re.compile(rb'"index"\s{0,4}:\s{0,4}([0-9]{1,6})')
_START = re.compile(rb'"type"\s{0,4}:\s{0,4}"(message|content_block)_start"')


class _Event(msgspec.Struct):
    type: Any = None
    index: Any = None
    delta: Any = None
    content_block: Any = None
    message: Any = None
    usage: Any = None


_READER = Reader(_Event)


class MessagesTerminal:
    """Which blocks of one message are open, and how far the message is."""

    keeps_text = False

    def __init__(self) -> None:
        self._open: dict[int, None] = {}
        self._started = self._stop_reason = self._stopped = False
        self._output_tokens = 0

    @property
    def over(self) -> bool:
        return self._stop_reason

    def note(self, name: bytes, data: bytes) -> int:
        event = _READER.read(data)
        if event is None:
            return 0
        kind = event.type if isinstance(event.type, str) else name.decode("utf-8", "replace")
        if kind == "content_block_delta":
            return _size(mapping(event.delta), _DELTAS)
        if kind == "content_block_start":
            self._begin(count(event.index) or 0)
            return _size(mapping(event.content_block), ("text", "thinking", "name"))
        if kind == "content_block_stop":
            self._open.pop(count(event.index) or 0, None)
        elif kind == "message_start":
            self._started = True
            self._tokens(mapping(event.message).get("usage"))
        elif kind == "message_delta":
            self._tokens(event.usage)
            self._stop_reason = self._stop_reason or bool(mapping(event.delta).get("stop_reason"))
        elif kind == "message_stop":
            self._stopped = True
        return 0

    def skipped(self, head: bytes) -> None:
        start = _START.search(head)
        index = _INDEX.search(head)
        if start is not None and start[1] == b"message":
            self._started = True
        elif start is not None and index is not None:
            self._begin(int(index[1]))

    def learned(self) -> None:
        """Nothing of the text is needed again."""

    def covered(self, text: bytes, chunk: bytes) -> None:
        """Likewise."""

    def ending(self, usage: tuple[int, int] | None, output_bytes: int) -> Iterable[tuple[str | None, Any]] | None:
        """A message without a start can't be ended. Its last usage is always told, so without `usage` it is guessed."""
        if self._stopped:
            return ()
        output = usage[1] if usage is not None else max(self._output_tokens, output_bytes // BYTES_A_TOKEN)
        return self._frames(output) if self._started else None

    def _frames(self, output_tokens: int) -> Iterator[tuple[str | None, Any]]:
        if not self._stop_reason:
            for index in self._open:
                yield _event("content_block_stop", index=index)
            delta = {"stop_reason": "max_tokens", "stop_sequence": None}
            yield _event("message_delta", delta=delta, usage={"output_tokens": output_tokens})
        yield _event("message_stop")

    def _begin(self, index: int) -> None:
        if len(self._open) < BLOCKS_MAX:
            self._open[index] = None

    def _tokens(self, usage: Any) -> None:
        self._output_tokens = count(mapping(usage).get("output_tokens")) or self._output_tokens


def _event(name: str, **members: Any) -> tuple[str, dict[str, Any]]:
    return name, {"type": name, **members}


def _size(holder: Any, names: tuple[str, ...]) -> int:
    return sum(len(holder[name].encode("utf-8", "replace")) for name in names if isinstance(holder.get(name), str))
