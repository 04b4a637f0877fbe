"""One output item of a Responses stream that is not finished yet: its parts, its text so far, how it is closed.

Text is kept as escaped in JSON, members as raw JSON: nothing is decoded before the stream is cut.
How much may be kept in all is the caller's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from farebox.meter.escapes import unescape

ITEMS_MAX = 1024
"""Items kept of one response, and parts of one item."""

STREAMED = {
    "response.output_text": "text",
    "response.refusal": "refusal",
    "response.reasoning_text": "text",
    "response.reasoning_summary_text": "text",
    "response.function_call_arguments": "arguments",
    "response.mcp_call_arguments": "arguments",
    "response.custom_tool_call_input": "input",
    "response.code_interpreter_call_code": "code",
}
"""Texts that come as `….delta` events, and the member that has all of it in `….done`."""

_PART_TYPES = {
    "response.output_text": "output_text",
    "response.refusal": "refusal",
    "response.reasoning_text": "reasoning_text",
    "response.reasoning_summary_text": "summary_text",
}
_SUMMARY = "response.reasoning_summary_text"
_UNFINISHED = {"web_search_call": "failed", "image_generation_call": "failed"}
"""What the status of an item is called that will not be finished, where the API knows no `incomplete` for it."""

_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ANY = msgspec.json.Decoder()


class _Text:
    """A text that is being streamed."""

    __slots__ = ("escaped", "said")

    def __init__(self) -> None:
        self.escaped = bytearray()
        self.said = False
        """Its `….done` came."""


class _Part:
    """A part that began."""

    __slots__ = ("annotations", "ended", "raw")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.ended = False
        self.annotations: list[bytes] = []


class OpenItem:
    """An item between `output_item.added` and `output_item.done`. `size` is what it keeps, in bytes."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._texts: dict[tuple[str, int], _Text] = {}
        self._parts: dict[tuple[bool, int], _Part] = {}
        """By (part of the summary, index)."""
        self.size = len(raw)
        self.streamed = False
        self._full = False
        """Text of it was not kept, so no more is: what is kept must have no hole."""

    def grow(self, kind: str, place: int, text: bytes) -> None:
        """More of the text of this kind; the caller took room for it."""
        self.streamed = True
        self.size += len(text)
        if self._full:
            return
        found = self._texts.get((kind, place))
        if found is None:
            if len(self._texts) >= ITEMS_MAX:
                return
            found = self._texts[kind, place] = _Text()
        found.escaped += text

    def overflow(self) -> None:
        """More text came than there is room for."""
        self.streamed = self._full = True

    def said(self, kind: str, place: int) -> None:
        """The whole text of this kind came."""
        text = self._texts.get((kind, place))
        if text is not None:
            text.said = True

    def begin_part(self, summary: bool, place: int, raw: bytes) -> None:
        self.size += len(raw)
        if len(self._parts) < ITEMS_MAX:
            self._parts[summary, place] = _Part(raw)

    def end_part(self, summary: bool, place: int) -> None:
        """A part is finished: what was kept of it goes, for it came whole."""
        part = self._parts.get((summary, place))
        if part is None:
            return
        self.size -= len(part.raw) + sum(map(len, part.annotations))
        part.raw, part.ended, part.annotations = b"{}", True, []
        for key in [key for key in self._texts if key[0] in _PART_TYPES and self._key(*key) == (summary, place)]:
            self.size -= len(self._texts.pop(key).escaped)

    def keep_part(self, summary: bool, place: int, raw: bytes) -> None:
        """The finished part; the caller took room for it."""
        part = self._parts.get((summary, place))
        if part is not None:
            part.raw = raw
            self.size += len(raw)

    def annotate(self, place: int, raw: bytes) -> None:
        self.size += len(raw)
        part = self._parts.get((False, place))
        if part is not None and len(part.annotations) < ITEMS_MAX:
            part.annotations.append(raw)

    def closing(self, index: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """The events that close what is open, this item at last, less their types and numbers."""
        base = {"item_id": self._members().get("id"), "output_index": index}
        for (kind, place), text in self._texts.items():
            where = dict(base)
            if kind in _PART_TYPES:
                where["summary_index" if kind == _SUMMARY else "content_index"] = place
            if not text.said:
                extra: dict[str, Any] = {"logprobs": []} if kind == "response.output_text" else {}
                yield f"{kind}.done", {**where, STREAMED[kind]: unescape(bytes(text.escaped)), **extra}
        for (summary, place), part in self._parts.items():
            if not part.ended:
                name = "reasoning_summary_part" if summary else "content_part"
                at = "summary_index" if summary else "content_index"
                yield f"response.{name}.done", {**base, at: place, "part": self._part(summary, place)}
        yield "response.output_item.done", {"output_index": index, "item": self.incomplete()}

    def incomplete(self) -> dict[str, Any]:
        """The item as far as it came."""
        item: dict[str, Any] = self._members()
        kind = _plain(item.get("type"))
        if "status" in item:
            item["status"] = _UNFINISHED.get(kind, "incomplete")
        for (text_kind, _), text in self._texts.items():
            if text_kind not in _PART_TYPES:
                item[STREAMED[text_kind]] = unescape(bytes(text.escaped))
        # Some servers begin no part before they send its text.
        keys = {*self._parts, *(self._key(*key) for key in self._texts if key[0] in _PART_TYPES)}
        for name, summary in (("content", False), ("summary", True)):
            places = sorted(place for of, place in keys if of is summary)
            if places:
                item[name] = [self._part(summary, place) for place in places]
        return item

    def _part(self, summary: bool, place: int) -> Any:
        """A part with its text so far."""
        part = self._parts.get((summary, place))
        if part is not None and part.ended:
            return msgspec.Raw(part.raw)
        made: dict[str, Any] = {}
        if part is not None:
            made = dict(_decoded(part.raw))
            if part.annotations:
                made["annotations"] = [msgspec.Raw(raw) for raw in part.annotations]
        for (kind, at), text in self._texts.items():
            if kind in _PART_TYPES and self._key(kind, at) == (summary, place):
                made = {"type": _PART_TYPES[kind], **made, STREAMED[kind]: unescape(bytes(text.escaped))}
                if kind == "response.output_text":
                    made.setdefault("annotations", [])
        return made

    def _members(self) -> dict[str, Any]:
        return dict(_decoded(self._raw))

    @staticmethod
    def _key(kind: str, place: int) -> tuple[bool, int]:
        return kind == _SUMMARY, place


def text_size(item: bytes) -> int:
    """Bytes of generated text in a whole item."""
    try:
        value = _ANY.decode(item)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return 0
    if not isinstance(value, dict):
        return 0
    holders = [value]
    for name in ("content", "summary"):
        parts = value.get(name)
        holders += [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    texts = [holder.get(name) for holder in holders for name in ("name", "text", *_TEXT_MEMBERS)]
    return sum(len(text.encode("utf-8", "replace")) for text in texts if isinstance(text, str))


_TEXT_MEMBERS = ("refusal", "arguments", "input", "code")


def _decoded(raw: bytes) -> dict[str, msgspec.Raw]:
    try:
        return _MEMBERS.decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        return {}


def _plain(value: Any) -> str:
    return bytes(value).decode("utf-8", "replace").strip('"') if isinstance(value, msgspec.Raw) else ""
