"""The quick look at the turns of a request: whether they are, plainly, nothing but text.

One pass in C, by structs that name every member and every type that is known to bring text only. What
passes has a bound; whatever does not is looked at again by `contents`, member by member, which is slower
and knows more. So a member that is missing here costs time and nothing else.
"""

from __future__ import annotations

from typing import Literal

import msgspec

RENDERED_TIMES = 3
"""JSON in a request that is written out anew for the model, tools, schemas and calls, counts so many times."""
_RAW = msgspec.Raw()
_Text = str | None
_TextType = Literal["text", "input_text", "output_text", "refusal"]


class _Inner(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A block of text in the result of a tool."""

    type: _TextType
    text: _Text = None
    cache_control: msgspec.Raw = _RAW


class _Part(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A block in the content of a turn: text, thinking, a call of a tool or its result."""

    type: Literal[
        "text", "input_text", "output_text", "refusal", "thinking", "redacted_thinking", "tool_use", "tool_result"
    ]
    text: _Text = None
    refusal: _Text = None
    thinking: _Text = None
    signature: _Text = None
    data: _Text = None
    id: _Text = None
    name: _Text = None
    input: msgspec.Raw = _RAW
    tool_use_id: _Text = None
    content: str | list[_Inner] | None = None
    is_error: bool | None = None
    cache_control: msgspec.Raw = _RAW
    annotations: msgspec.Raw = _RAW
    logprobs: msgspec.Raw = _RAW


class Turn(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A message of a chat."""

    role: str
    content: str | list[_Part] | None = None
    name: _Text = None
    tool_calls: msgspec.Raw = _RAW
    function_call: msgspec.Raw = _RAW
    tool_call_id: _Text = None
    refusal: _Text = None
    reasoning: _Text = None
    reasoning_content: _Text = None
    annotations: msgspec.Raw = _RAW
    prefix: bool | None = None


class _Item(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """An item of a Responses input. A reference to a stored one has no role, and none of the other types."""

    type: Literal[
        "message",
        "function_call",
        "function_call_output",
        "custom_tool_call",
        "custom_tool_call_output",
        "reasoning",
    ] = "message"
    role: _Text = None
    content: str | list[_Part] | None = None
    output: str | list[_Inner] | None = None
    summary: msgspec.Raw = _RAW
    encrypted_content: _Text = None
    arguments: msgspec.Raw = _RAW
    input: msgspec.Raw = _RAW
    id: _Text = None
    call_id: _Text = None
    name: _Text = None
    status: _Text = None
    phase: _Text = None


_TURNS = msgspec.json.Decoder(list[Turn])
_ITEMS = msgspec.json.Decoder(list[_Item])


def rendered_of(raw: msgspec.Raw, *, items: bool) -> int | None:
    """Bytes of calls of tools in a list of turns, which are plainly text; None where that can't be said.

    `items`: of a Responses input. Never raises.
    """
    try:
        return _of_items(_ITEMS.decode(raw)) if items else of_turns(_TURNS.decode(raw))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def of_turns(turns: list[Turn]) -> int:
    """Bytes of calls of tools in turns that are plainly text."""
    rendered = 0
    for turn in turns:
        if turn.tool_calls is not _RAW or turn.function_call is not _RAW:
            rendered += len(bytes(turn.tool_calls)) + len(bytes(turn.function_call))
        if type(turn.content) is list:
            rendered += _of_parts(turn.content)
    return rendered


def _of_items(items: list[_Item]) -> int | None:
    rendered = 0
    for item in items:
        if item.type == "message":
            if item.role is None:
                return None
        elif item.type == "reasoning" and item.encrypted_content is None:
            return None
        rendered += len(bytes(item.arguments)) + len(bytes(item.input))
        if type(item.content) is list:
            rendered += _of_parts(item.content)
    return rendered


def _of_parts(parts: list[_Part]) -> int:
    return sum(len(bytes(part.input)) for part in parts if part.input is not _RAW)
