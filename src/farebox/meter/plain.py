"""Reads a whole answer of the kind that nearly all are in one typed step: no object is made that nobody asks for.

The types name every member that the wires (`chat`, `responses`, `messages`, `embeddings`) read, and
say what it has to be for the answer to be ordinary: no error, usage of a known shape (`dialects.plain`),
calls of functions with names and arguments as text. What does not fit is no fault: `read` says None and
the wires read it. Where it fits, both say the same (a property test holds them to it).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from farebox.dialects.plain import ChatUsage, EmbeddingsUsage, MessagesUsage, PlainUsage, ResponsesUsage
from farebox.dialects.profile import Profile
from farebox.dialects.values import TEXT_MAX, text
from farebox.meter.documents import exact
from farebox.meter.reading import STORED_MAX, Reading
from farebox.meter.tools import ToolTally
from farebox.records import Operation, ToolCall

Plain = tuple[Reading, dict[str, str]]
"""A whole answer as the meter would have read it, and the ids of what the provider stored along with it by kind."""


class _Function(msgspec.Struct, gc=False):
    name: str
    arguments: str


class _Call(msgspec.Struct, gc=False):
    function: _Function


class _Message(msgspec.Struct, gc=False):
    tool_calls: list[_Call] | None = None
    function_call: None = None


class _Choice(msgspec.Struct, gc=False):
    message: _Message | None = None
    error: None = None
    usage: None = None


class _Chat(msgspec.Struct, gc=False):
    usage: ChatUsage
    id: str | None = None
    model: str | None = None
    service_tier: str | None = None
    object: str | None = None
    choices: list[_Choice] | None = None
    error: None = None
    x_groq: None = None
    usage_breakdown: None = None


class _Embeddings(msgspec.Struct, gc=False):
    """Neither the vectors nor what a usage object outranks."""

    usage: EmbeddingsUsage
    id: str | None = None
    model: str | None = None
    service_tier: str | None = None
    error: None = None


class _Block(msgspec.Struct, gc=False):
    type: str
    name: str | None = None
    input: Any = None
    server_name: None = None


class _Messages(msgspec.Struct, gc=False):
    usage: MessagesUsage
    id: str | None = None
    model: str | None = None
    service_tier: str | None = None
    content: list[_Block] | None = None
    container: None = None
    error: None = None


class _Item(msgspec.Struct, gc=False):
    type: str
    id: str | None = None
    name: str | None = None
    arguments: str | None = None
    container_id: None = None
    namespace: None = None
    server_label: None = None


class _Stored(msgspec.Struct, gc=False):
    id: str


class _Response(msgspec.Struct, gc=False):
    usage: ResponsesUsage
    id: str | None = None
    model: str | None = None
    service_tier: str | None = None
    status: str | None = None
    output: list[_Item] | None = None
    conversation: _Stored | None = None
    tool_usage: None = None
    error: None = None


class _Unusual(Exception):
    """It fits its type, and yet takes the general way."""


def read(operation: Operation, document: bytes, profile: Profile) -> Plain | None:
    """What the JSON body of a success says, without whitespace around it; None where the general way must read it."""
    found = _READERS.get(operation)
    if found is None:
        return None
    decode, told = found
    try:
        answer = decode(document)
        calls, stored = told(answer)
    except (msgspec.MsgspecError, _Unusual, RecursionError, ValueError):
        return None
    said: PlainUsage = answer.usage
    model, tier, id = answer.model, answer.service_tier, answer.id
    names = f"{model}{tier}{id}"
    if len(names) > TEXT_MAX or not names.isprintable():  # else each of them is as it should be
        model, tier, id = text(model), text(tier), text(id)
    model = model or None
    usage = said.read(profile, model)
    if usage is None:
        return None
    reading = Reading(
        usage=usage,
        has_usage=True,
        plain=True,
        usage_raw=said,
        model=model,
        service_tier=said.tier or tier or None,
        response_id=id or None,
        tool_calls=calls,
        complete=True,
    )
    return reading, stored


_Told = tuple[list[ToolCall], dict[str, str]]
"""Tool calls, and what was stored."""


def _chat(answer: _Chat) -> _Told:
    if answer.object == "error":
        raise _Unusual
    tools: ToolTally | None = None
    for choice in answer.choices or ():
        if choice.message is not None and choice.message.tool_calls:
            tools = tools or ToolTally()
            for call in choice.message.tool_calls:
                tools.add(call.function.name, call.function.arguments)
    return tools.calls() if tools is not None else [], {}


def _embeddings(answer: _Embeddings) -> _Told:
    return [], {}


def _messages(answer: _Messages) -> _Told:
    tools: ToolTally | None = None
    for block in answer.content or ():
        if block.type in _WRITTEN:
            continue
        if block.type != "tool_use":
            raise _Unusual
        tools = tools or ToolTally()
        tools.add(block.name, block.input)
    return tools.calls() if tools is not None else [], {}


_WRITTEN = frozenset(("text", "thinking", "redacted_thinking"))


def _response(answer: _Response) -> _Told:
    if answer.status == "failed":
        raise _Unusual
    output = answer.output or ()
    if len(output) >= STORED_MAX:
        raise _Unusual
    tools = ToolTally()
    stored: dict[str, str] = {}
    if answer.conversation is not None and answer.conversation.id:
        stored[answer.conversation.id] = "conversation"
    for item in output:
        if item.id:
            stored[item.id] = "item"
        if item.type == "function_call" and item.name and item.arguments is not None:
            tools.add(item.name, item.arguments)
        elif item.type not in ("message", "reasoning"):
            raise _Unusual
    return tools.calls(), stored


_READERS: Mapping[Operation, tuple[Callable[[bytes], Any], Callable[[Any], _Told]]] = {
    "chat": (msgspec.json.Decoder(_Chat).decode, _chat),
    "completions": (msgspec.json.Decoder(_Chat).decode, _chat),
    "embeddings": (msgspec.json.Decoder(_Embeddings).decode, _embeddings),
    "messages": (msgspec.json.Decoder(_Messages, float_hook=exact).decode, _messages),
    "responses": (msgspec.json.Decoder(_Response).decode, _response),
}
