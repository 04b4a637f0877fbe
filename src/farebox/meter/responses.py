"""Reads OpenAI's Responses API: whole responses, and streams that end in a terminal event with a snapshot.

Items are counted when they are done; the snapshot's own list may be missing or may repeat them,
so it counts only where no item event came.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from farebox.dialects.faults import Fault, read_fault
from farebox.dialects.values import mapping, word
from farebox.meter.chat import DONE
from farebox.meter.documents import Reader
from farebox.meter.reading import Notes
from farebox.meter.wire import Kind

_TERMINAL = frozenset(
    ("response.completed", "response.incomplete", "response.failed", "response.cancelled", "response.canceled")
)
_SNAPSHOTS = frozenset(("response.created", "response.in_progress", "response.queued"))
_ARGUMENTS = ("arguments", "input", "code")


class _Event(msgspec.Struct):
    """A stream event; everything optional, everything of any type."""

    type: Any = None
    response: Any = None
    item: Any = None
    delta: Any = None
    error: Any = None
    error_type: Any = None
    code: Any = None
    usage: Any = None


class _Response(msgspec.Struct):
    """A whole response."""

    id: Any = None
    model: Any = None
    service_tier: Any = None
    status: Any = None
    error: Any = None
    error_type: Any = None
    usage: Any = None
    tool_usage: Any = None
    output: Any = None
    conversation: Any = None


_EVENTS = Reader(_Event)
_RESPONSES = Reader(_Response)


class ResponsesWire:
    """`/responses`."""

    def event(self, name: bytes, data: bytes, notes: Notes) -> Kind:
        if data.startswith(DONE):
            notes.finished = True
            return Kind.NEWS
        event = _EVENTS.read(data)
        if event is None:
            return Kind.UNREADABLE
        kind = event.type if isinstance(event.type, str) else name.decode("utf-8", "replace")
        if kind.endswith(".delta"):
            return Kind.TEXT if isinstance(event.delta, str) and event.delta else Kind.EMPTY
        if kind == "response.output_item.done":
            return Kind.NEWS if _read_item(event.item, notes) else Kind.EMPTY
        if kind in _TERMINAL or kind in _SNAPSHOTS:
            _read_snapshot(mapping(event.response), notes, terminal=kind in _TERMINAL)
            if kind == "response.failed":
                notes.report(Fault())
        elif kind == "error" or event.error:
            notes.report(_event_fault(event))
            notes.terminal = True
        elif isinstance(event.usage, dict):
            notes.add_usage(event.usage)
        else:
            return Kind.EMPTY
        return Kind.NEWS

    def document(self, data: bytes, notes: Notes) -> bool:
        response = _RESPONSES.read(data)
        if response is None:
            return False
        _read_snapshot({name: getattr(response, name) for name in response.__struct_fields__}, notes, terminal=True)
        if response.status == "failed":
            notes.report(Fault())
        return True

    def event_text(self, data: bytes) -> Iterator[str]:
        event = _EVENTS.read(data)
        if event is not None and isinstance(event.delta, str):
            yield event.delta

    def document_text(self, data: bytes) -> Iterator[str]:
        response = _RESPONSES.read(data)
        output = response.output if response is not None else None
        for item in output if isinstance(output, list) else ():
            yield from _item_text(mapping(item))


def _read_snapshot(response: Any, notes: Notes, *, terminal: bool) -> None:
    """Note a response as it stands; the items of its list only if none came as events."""
    notes.head(response.get("model"), response.get("service_tier"), response.get("id"))
    notes.add_usage(response.get("usage"))
    notes.add_sibling("tool_usage", response.get("tool_usage"))
    notes.add_stored("conversation", mapping(response.get("conversation")).get("id"))
    if not terminal:
        return
    notes.terminal = True
    notes.report(read_fault(response))
    output = response.get("output")
    if not notes.items:
        for item in output if isinstance(output, list) else ():
            _read_item(item, notes)


def _read_item(item: Any, notes: Notes) -> bool:
    """Note one finished output item; whether it is a call."""
    if not isinstance(item, dict):
        return False
    notes.items += 1
    notes.add_stored("item", item.get("id"))
    notes.add_stored("container", item.get("container_id"))
    kind = item.get("type")
    if not isinstance(kind, str) or not kind.endswith("_call"):
        notes.content = True
        return False
    arguments = next((item[name] for name in _ARGUMENTS if isinstance(item.get(name), str)), None)
    notes.tools.add(_name(item, kind), arguments)
    if kind == "web_search_call":
        # Opening a page is free, only searches are billed; without an action it was one.
        if mapping(item.get("action")).get("type", "search") == "search":
            notes.count_unit("web_searches")
    elif kind == "file_search_call":
        notes.count_unit("file_searches")
    return True


def _name(item: dict[str, Any], kind: str) -> str:
    """A call's name, after its namespace or server; hosted tools go by their type."""
    name = item.get("name")
    if not isinstance(name, str) or not name:
        return kind.removesuffix("_call")
    place = item.get("namespace") or item.get("server_label")
    return f"{place}.{name}" if isinstance(place, str) and place else name


def _event_fault(event: _Event) -> Fault:
    """An error event: its members stand at the root, in some servers one deeper."""
    nested = read_fault({"error": event.error, "error_type": event.error_type})
    return nested or Fault(None, word(event.code))


def _item_text(item: Any) -> Iterator[str]:
    for holder in (item.get("content"), item.get("summary")):
        for part in holder if isinstance(holder, list) else ():
            for name in ("text", "refusal"):
                value = mapping(part).get(name)
                if isinstance(value, str):
                    yield value
    for name in ("name", *_ARGUMENTS):
        if isinstance(item.get(name), str):
            yield item[name]
