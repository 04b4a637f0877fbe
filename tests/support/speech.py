"""Whole answers as OpenAI and Anthropic give them: every member an SDK's types know, one set of numbers."""

from __future__ import annotations

import json
from typing import Any

from support.answers import DONE, frame

TEXT = "Hello! How can I help?"
WORDS = ("Hello!", " How", " can", " I", " help?")
ARGUMENTS = '{"city":"Oslo"}'
INPUT, CACHED, OUTPUT, REASONING = 19, 8, 10, 4

CHAT_USAGE = {
    "prompt_tokens": INPUT,
    "completion_tokens": OUTPUT,
    "total_tokens": INPUT + OUTPUT,
    "prompt_tokens_details": {"cached_tokens": CACHED, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": REASONING,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}
TOOL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": ARGUMENTS}}
_CHAT = {
    "id": "chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG",
    "created": 1741570283,
    "model": "gpt-4o-2024-08-06",
    "service_tier": "default",
    "system_fingerprint": "fp_44709d6fcb",
}


def body(value: Any) -> bytes:
    """JSON as providers write it."""
    return json.dumps(value, indent=2).encode() + b"\n"


# -- chat ----------------------------------------------------------------------------------------


def chat(**message: Any) -> bytes:
    """A chat completion; `message` replaces members of its message."""
    message = {"role": "assistant", "content": TEXT, "refusal": None, "annotations": [], **message}
    finish = "tool_calls" if message.get("tool_calls") else "stop"
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    return body({**_CHAT, "object": "chat.completion", "choices": [choice], "usage": CHAT_USAGE})


def _chunk(delta: dict[str, Any] | None, finish: str | None = None, **more: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
    return frame({**_CHAT, "object": "chat.completion.chunk", "choices": choices, "usage": None, **more})


def chat_stream(*, usage: bool = True, tools: bool = False, done: bool = True) -> list[bytes]:
    """A streamed chat completion, a frame each; `usage` adds the frame that include_usage causes."""
    frames = [_chunk({"role": "assistant", "content": None if tools else "", "refusal": None})]
    if tools:
        call = {"index": 0, **TOOL, "function": {"name": "get_weather", "arguments": ""}}
        frames.append(_chunk({"tool_calls": [call]}))
        frames += [
            _chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
            for piece in (ARGUMENTS[:5], ARGUMENTS[5:])
        ]
    else:
        frames += [_chunk({"content": word}) for word in WORDS]
    frames.append(_chunk({}, "tool_calls" if tools else "stop"))
    if usage:
        frames.append(_chunk(None, usage=CHAT_USAGE))
    return [*frames, DONE] if done else frames


# -- completions, embeddings, moderations, files --------------------------------------------------

_COMPLETION = {"id": "cmpl-1", "object": "text_completion", "created": 1741570283, "model": "gpt-3.5-turbo-instruct"}
_PLAIN_USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}


def completion() -> bytes:
    """A legacy completion."""
    choice = {"text": TEXT, "index": 0, "logprobs": None, "finish_reason": "length"}
    return body({**_COMPLETION, "choices": [choice], "usage": _PLAIN_USAGE})


def completion_stream() -> list[bytes]:
    """The same streamed, with the frame that include_usage causes."""
    texts = [(word, None) for word in WORDS] + [("", "length")]
    frames = [
        frame({**_COMPLETION, "choices": [{"text": t, "index": 0, "logprobs": None, "finish_reason": f}]})
        for t, f in texts
    ]
    return [*frames, frame({**_COMPLETION, "choices": [], "usage": _PLAIN_USAGE}), DONE]


def embeddings(vector: str) -> bytes:
    """One embedding, base64 as the Python SDK asks for it."""
    data = [{"object": "embedding", "index": 0, "embedding": vector}]
    usage = {"prompt_tokens": 8, "total_tokens": 8}
    return body({"object": "list", "data": data, "model": "text-embedding-3-small", "usage": usage})


def moderation() -> bytes:
    """One verdict."""
    result = {
        "flagged": False,
        "categories": {"hate": False, "violence": False},
        "category_scores": {"hate": 0.01, "violence": 0.02},
        "category_applied_input_types": {"hate": ["text"], "violence": ["text"]},
    }
    return body({"id": "modr-1", "model": "omni-moderation-latest", "results": [result]})


def models(*ids: str) -> bytes:
    """A list of models."""
    data = [{"id": id, "object": "model", "created": 1686935002, "owned_by": "system"} for id in ids]
    return body({"object": "list", "data": data})


def file_object(size: int) -> bytes:
    """What an upload is answered with."""
    return body(
        {
            "id": "file-abc123",
            "object": "file",
            "bytes": size,
            "created_at": 1741570283,
            "filename": "batch.jsonl",
            "purpose": "batch",
            "status": "processed",
        }
    )


# -- responses -----------------------------------------------------------------------------------

_PART = {"type": "output_text", "text": TEXT, "annotations": [], "logprobs": []}
_ITEM = {"id": "msg_1", "type": "message", "status": "completed", "role": "assistant", "content": [_PART]}
_FUNCTION = {
    "id": "fc_1",
    "type": "function_call",
    "status": "completed",
    "call_id": "call_1",
    "name": "get_weather",
    "arguments": ARGUMENTS,
}
_RESPONSE: dict[str, Any] = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1741570283,
    "status": "completed",
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "metadata": {},
    "model": "gpt-4o-2024-08-06",
    "output": [_ITEM],
    "parallel_tool_calls": True,
    "service_tier": "default",
    "temperature": 1.0,
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "usage": {
        "input_tokens": INPUT,
        "input_tokens_details": {"cached_tokens": CACHED},
        "output_tokens": OUTPUT,
        "output_tokens_details": {"reasoning_tokens": REASONING},
        "total_tokens": INPUT + OUTPUT,
    },
}


def response(*, tools: bool = False) -> bytes:
    """A response of the Responses API."""
    return body({**_RESPONSE, "output": [_FUNCTION] if tools else [_ITEM]})


def response_stream() -> list[bytes]:
    """The same streamed. There is no [DONE] here."""
    begun = {**_RESPONSE, "status": "in_progress", "output": [], "usage": None}
    at = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        {
            "type": "response.output_item.added",
            "output_index": 0,
            "item": {**_ITEM, "status": "in_progress", "content": []},
        },
        {"type": "response.content_part.added", "part": {**_PART, "text": ""}, **at},
        *({"type": "response.output_text.delta", "delta": word, "logprobs": [], **at} for word in WORDS),
        {"type": "response.output_text.done", "text": TEXT, "logprobs": [], **at},
        {"type": "response.content_part.done", "part": _PART, **at},
        {"type": "response.output_item.done", "output_index": 0, "item": _ITEM},
        {"type": "response.completed", "response": _RESPONSE},
    ]
    return [frame({**event, "sequence_number": n}, event=event["type"]) for n, event in enumerate(events)]


# -- messages ------------------------------------------------------------------------------------

FRESH, READ, WRITTEN = 3, 100, 20
"""Anthropic's input_tokens leave caches out: on farebox's scale the input is all three."""
_MESSAGE: dict[str, Any] = {
    "id": "msg_01XFDUDYJgAACzvnptvVoYEL",
    "type": "message",
    "role": "assistant",
    "model": "claude-test-1",
    "content": [{"type": "text", "text": TEXT}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {
        "input_tokens": FRESH,
        "cache_creation_input_tokens": WRITTEN,
        "cache_read_input_tokens": READ,
        "output_tokens": OUTPUT,
        "service_tier": "standard",
    },
}
_TOOL_USE = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Oslo"}}


def message(*, tools: bool = False) -> bytes:
    """A message of Anthropic's Messages API."""
    content = {"content": [_TOOL_USE], "stop_reason": "tool_use"} if tools else {}
    return body({**_MESSAGE, **content})


def message_stream(*, tools: bool = False) -> list[bytes]:
    """The same streamed, a ping among it."""
    begun = {**_MESSAGE, "content": [], "stop_reason": None, "usage": {**_MESSAGE["usage"], "output_tokens": 1}}
    block = {**_TOOL_USE, "input": {}} if tools else {"type": "text", "text": ""}
    pieces = (ARGUMENTS[:5], ARGUMENTS[5:]) if tools else WORDS
    kind, member = ("input_json_delta", "partial_json") if tools else ("text_delta", "text")
    stop = {"stop_reason": "tool_use" if tools else "end_turn", "stop_sequence": None}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": begun},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "ping"},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": kind, member: piece}} for piece in pieces),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": stop, "usage": {"output_tokens": OUTPUT}},
        {"type": "message_stop"},
    ]
    return [frame(event, event=event["type"]) for event in events]
