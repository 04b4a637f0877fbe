"""Reads Anthropic's Messages API and the servers that imitate it.

Usage comes in two places: `message_start` has input, caches with their lifetimes and a first
output count; each `message_delta` is cumulative and overwrites what it reports.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from farebox.dialects.faults import Fault, read_fault
from farebox.dialects.values import count, mapping
from farebox.meter.chat import DONE
from farebox.meter.documents import Reader
from farebox.meter.reading import Notes
from farebox.meter.wire import Kind

_CALLS = frozenset(("tool_use", "server_tool_use", "mcp_tool_use"))
_DELTAS = ("text", "thinking", "partial_json")


class _Event(msgspec.Struct):
    """A stream event, or a whole message; everything optional, everything of any type."""

    type: Any = None
    message: Any = None
    delta: Any = None
    usage: Any = None
    content_block: Any = None
    index: Any = None
    error: Any = None
    id: Any = None
    model: Any = None
    service_tier: Any = None
    content: Any = None
    container: Any = None
    stop_reason: Any = None


_READER = Reader(_Event)


class MessagesWire:
    """`/v1/messages`."""

    def event(self, name: bytes, data: bytes, notes: Notes) -> Kind:
        if data.startswith(DONE):
            notes.finished = True
            return Kind.NEWS
        event = _READER.read(data)
        if event is None:
            return Kind.UNREADABLE
        kind = event.type if isinstance(event.type, str) else name.decode("utf-8", "replace")
        if kind == "content_block_delta":
            return _read_delta(event, notes)
        if kind == "content_block_start":
            return _read_block(event, notes)
        if kind == "message_start":
            _read_start(event, notes)
        elif kind == "message_delta":
            _read_message_delta(event, notes)
        elif kind == "message_stop":
            notes.terminal = True
        elif kind == "error" or event.error:
            notes.report(read_fault({"error": event.error}) or Fault())
        else:
            return Kind.EMPTY
        return Kind.NEWS

    def document(self, data: bytes, notes: Notes) -> bool:
        message = _READER.read(data)
        if message is None:
            return False
        notes.head(message.model, message.service_tier, message.id)
        notes.add_usage(message.usage)
        notes.report(read_fault({"error": message.error}))
        notes.add_stored("container", mapping(message.container).get("id"))
        for block in message.content if isinstance(message.content, list) else []:
            if isinstance(block, dict):
                notes.content = True
                _read_written(block, notes)
                if block.get("type") in _CALLS:
                    notes.tools.add(_name(block), block.get("input"))
        return True

    def event_text(self, data: bytes) -> Iterator[str]:
        event = _READER.read(data)
        if event is not None:
            block, delta = mapping(event.content_block), mapping(event.delta)
            yield from (block[key] for key in ("text", "name") if isinstance(block.get(key), str))
            yield from (delta[key] for key in _DELTAS if isinstance(delta.get(key), str))

    def document_text(self, data: bytes) -> Iterator[str]:
        message = _READER.read(data)
        content = message.content if message is not None else None
        for block in content if isinstance(content, list) else ():
            if isinstance(block, dict):
                yield from (block[key] for key in ("text", "thinking", "name") if isinstance(block.get(key), str))
                if block.get("type") in _CALLS and block.get("input"):
                    yield msgspec.json.encode(block["input"], enc_hook=str).decode("utf-8", "replace")


def _read_start(event: _Event, notes: Notes) -> None:
    message = mapping(event.message)
    notes.head(message.get("model"), message.get("service_tier"), message.get("id"))
    if notes.add_usage(message.get("usage")):
        notes.provisional = True
    notes.report(read_fault(message))
    notes.add_stored("container", mapping(message.get("container")).get("id"))


def _read_message_delta(event: _Event, notes: Notes) -> None:
    delta = mapping(event.delta)
    notes.head(delta.get("model"), None, None)
    notes.add_stored("container", mapping(delta.get("container")).get("id"))
    # A few servers put the usage into the delta itself.
    for usage in (mapping(delta.get("usage")), mapping(event.usage)):
        if notes.add_usage(usage) and count(usage.get("output_tokens")) is not None:
            notes.provisional = False
    if delta.get("stop_reason"):
        notes.finished = True


def _read_block(event: _Event, notes: Notes) -> Kind:
    """The start of a content block: here a tool call has its name."""
    block = mapping(event.content_block)
    _read_written(block, notes)
    if block.get("type") in _CALLS:
        notes.tools.start(_slot(event), block.get("id"), _name(block), block.get("input"))
        return Kind.NEWS_AND_TEXT
    return Kind.NEWS_AND_TEXT if any(block.get(key) for key in ("text", "thinking")) else Kind.EMPTY


def _read_written(block: Any, notes: Notes) -> None:
    """Note the files that code, which ran at the provider, wrote."""
    if str(block.get("type", "")).endswith("code_execution_tool_result"):
        written = mapping(block.get("content")).get("content")
        for one in written if isinstance(written, list) else ():
            notes.add_stored("file", mapping(one).get("file_id"))


def _read_delta(event: _Event, notes: Notes) -> Kind:
    delta = mapping(event.delta)
    arguments = delta.get("partial_json")
    if isinstance(arguments, str):
        notes.tools.grow(_slot(event), arguments)
        return Kind.NEWS_AND_TEXT if arguments else Kind.NEWS
    return Kind.TEXT if any(delta.get(key) for key in _DELTAS) else Kind.EMPTY


def _slot(event: _Event) -> int:
    return count(event.index) or 0


def _name(block: Any) -> Any:
    """The tool's name, after its server's where it runs on one."""
    name, server = block.get("name"), block.get("server_name")
    return f"{server}.{name}" if isinstance(server, str) and isinstance(name, str) and server else name
