"""How a stream of OpenAI's Responses API is ended at a limit: what is open is closed, then `response.incomplete`.

The API closes in order: the text (`….done` with all of it), its part, its item (`incomplete`), and
at last the response, with every item of its output. So all of that is kept, as JSON and not
decoded, up to a bound: `OUTPUT_BYTES_MAX`. Of an answer that is longer the text kept ends there,
and items that have no room are missing from the last snapshot; clients got both as deltas.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from farebox.meter.escapes import size_of
from farebox.meter.responses_items import ITEMS_MAX, STREAMED, OpenItem, text_size

OUTPUT_BYTES_MAX = 1024 * 1024
"""Kept of the output: finished items, and the text of open ones. Four times the longest answers sold today."""
SNAPSHOT_BYTES_MAX = 256 * 1024
"""Kept of the response object; of a larger one (long instructions, many tools) only the plain members."""

_SNAPSHOTS = frozenset(("response.created", "response.in_progress", "response.queued"))
_TERMINAL = frozenset(("response.completed", "response.incomplete", "response.failed", "response.cancelled", "error"))
_SEQUENCE = re.compile(rb'"sequence_number"\s{0,2}:\s{0,2}([0-9]{1,15})')
_TYPE = re.compile(rb'"type"\s{0,4}:\s{0,4}"([a-z_.]{1,64})"')
_OUTPUT_INDEX = re.compile(rb'"output_index"\s{0,4}:\s{0,4}([0-9]{1,6})')


class _Event(msgspec.Struct):
    type: str | None = None
    sequence_number: int | None = None
    output_index: int | None = None
    content_index: int | None = None
    summary_index: int | None = None
    delta: msgspec.Raw = msgspec.Raw(b"")
    item: msgspec.Raw = msgspec.Raw(b"")
    part: msgspec.Raw = msgspec.Raw(b"")
    response: msgspec.Raw = msgspec.Raw(b"")
    annotation: msgspec.Raw = msgspec.Raw(b"")

    @property
    def index(self) -> int:
        """Which item it is about."""
        return self.output_index or 0

    @property
    def place(self) -> int:
        """Which part of that."""
        return self.content_index or self.summary_index or 0


_EVENTS = msgspec.json.Decoder(_Event)
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])


class ResponsesTerminal:
    """One response as far as it came: its object, its finished items, the open ones with their text."""

    keeps_text = True

    def __init__(self) -> None:
        self._snapshot: bytes | None = None
        self._finished: dict[int, bytes] = {}
        self._open: dict[int, OpenItem] = {}
        self._ended = False
        self._sequence: int | None = None
        self._covered: bytes | None = None
        """The last chunk that was covered since `_sequence` was read: it has a later one."""
        self._kept = 0
        self._last = self._template = (0, "", 0)
        """Output index, kind of text and place of the delta noted last, and of the template's."""

    @property
    def over(self) -> bool:
        return self._ended

    def note(self, name: bytes, data: bytes) -> int:
        try:
            event = _EVENTS.decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return 0
        kind = event.type or name.decode("utf-8", "replace")
        if event.sequence_number is not None:
            self._sequence, self._covered = event.sequence_number, None
        if kind.endswith(".delta"):
            return self._delta(kind.removesuffix(".delta"), event)
        if kind in _SNAPSHOTS:
            self._snapshot = _bounded(bytes(event.response)) or self._snapshot
        elif kind in _TERMINAL:
            self._ended = True
        elif kind == "response.output_item.added":
            self._add(event)
        elif kind == "response.output_item.done":
            return self._finish(event)
        elif (item := self._open.get(event.index)) is not None:
            self._change(item, kind, event)
        return 0

    def skipped(self, head: bytes) -> None:
        """An item too large to be read is left out; a response object, and this can't be ended."""
        kind, place = _TYPE.search(head), _OUTPUT_INDEX.search(head)
        if kind is not None and kind[1] == b"response.output_item.done" and place is not None:
            self._drop(int(place[1]))
        elif kind is not None and kind[1].decode() in _TERMINAL:
            self._ended = True

    def learned(self) -> None:
        self._template = self._last

    def covered(self, text: bytes, chunk: bytes) -> None:
        self._covered = chunk
        index, kind, place = self._template
        item = self._open.get(index)
        if item is not None:
            self._grow(item, kind, place, text)

    def ending(self, usage: tuple[int, int] | None, output_bytes: int) -> Iterable[tuple[str | None, Any]] | None:
        """A response whose object never came can't be ended. Without `usage` the last snapshot has none."""
        if self._ended:
            return ()
        try:
            snapshot: dict[str, Any] = dict(_MEMBERS.decode(self._snapshot or b""))
        except msgspec.MsgspecError:
            return None
        return self._frames(snapshot, usage)

    def _frames(self, snapshot: dict[str, Any], usage: tuple[int, int] | None) -> Iterator[tuple[str, dict[str, Any]]]:
        number = self._last_sequence()
        output: dict[int, Any] = {index: msgspec.Raw(item) for index, item in self._finished.items()}
        for index, item in sorted(self._open.items()):
            for kind, members in item.closing(index):
                number = None if number is None else number + 1
                yield _event(kind, number, members)
            output[index] = item.incomplete()
        snapshot["status"] = "incomplete"
        snapshot["incomplete_details"] = {"reason": "max_output_tokens"}
        snapshot["output"] = [output[index] for index in sorted(output)]
        snapshot["usage"] = None if usage is None else _usage(*usage)
        yield _event("response.incomplete", None if number is None else number + 1, {"response": snapshot})

    def _last_sequence(self) -> int | None:
        found = _SEQUENCE.findall(self._covered) if self._covered is not None else []
        return int(found[-1]) if found else self._sequence

    def _delta(self, kind: str, event: _Event) -> int:
        delta = bytes(event.delta)
        if kind not in STREAMED or not delta.startswith(b'"'):
            return 0
        text = delta[1:-1]
        self._last = event.index, kind, event.place
        item = self._open.get(event.index)
        if item is not None:
            self._grow(item, kind, event.place, text)
        return size_of(text)

    def _grow(self, item: OpenItem, kind: str, place: int, text: bytes) -> None:
        if self._room(len(text)):
            item.grow(kind, place, text)
        else:
            item.overflow()

    def _change(self, item: OpenItem, kind: str, event: _Event) -> None:
        """A part of an open item began or ended, or got an annotation."""
        place, part = event.place, bytes(event.part)
        if kind in ("response.content_part.added", "response.reasoning_summary_part.added"):
            if self._room(len(part)):
                item.begin_part("summary" in kind, place, part)
        elif kind in ("response.content_part.done", "response.reasoning_summary_part.done"):
            self._kept -= item.size
            item.end_part("summary" in kind, place)
            if self._kept + item.size + len(part) <= OUTPUT_BYTES_MAX:
                item.keep_part("summary" in kind, place, part)
            self._kept += item.size
        elif kind == "response.output_text.annotation.added":
            annotation = bytes(event.annotation)
            if annotation and self._room(len(annotation)):
                item.annotate(place, annotation)
        elif kind.endswith(".done") and kind.removesuffix(".done") in STREAMED:
            item.said(kind.removesuffix(".done"), place)

    def _add(self, event: _Event) -> None:
        item = bytes(event.item)
        if item and len(self._open) < ITEMS_MAX and self._room(len(item)):
            self._open[event.index] = OpenItem(item)

    def _finish(self, event: _Event) -> int:
        """Keep a finished item; of one that came without deltas its text is counted now."""
        was = self._drop(event.index)
        item = bytes(event.item)
        if item and len(self._finished) < ITEMS_MAX and self._room(len(item)):
            self._finished[event.index] = item
        return 0 if was is not None and was.streamed else text_size(item)

    def _drop(self, index: int) -> OpenItem | None:
        item = self._open.pop(index, None)
        if item is not None:
            self._kept -= item.size
        return item

    def _room(self, size: int) -> bool:
        """Take room for so many bytes if there is that much."""
        if self._kept + size > OUTPUT_BYTES_MAX:
            return False
        self._kept += size
        return True


def _bounded(response: bytes) -> bytes:
    """A response object; of a large one only what is neither a list nor an object."""
    if len(response) <= SNAPSHOT_BYTES_MAX:
        return response
    try:
        members = _MEMBERS.decode(response)
    except (msgspec.MsgspecError, RecursionError):
        return b""
    plain = {name: value for name, value in members.items() if bytes(value)[:1] not in (b"{", b"[")}
    small = msgspec.json.encode({name: value for name, value in plain.items() if len(bytes(value)) <= 1024})
    return small if len(small) <= SNAPSHOT_BYTES_MAX else b""


def _event(kind: str, number: int | None, members: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    sequence = {} if number is None else {"sequence_number": number}
    return kind, {"type": kind, **sequence, **members}


def _usage(input_tokens: int, output_tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": input_tokens + output_tokens,
    }
