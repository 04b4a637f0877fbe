"""The one conversation every SDK has: a question, an answer that calls a tool, the tool's result, a last answer.

The provider's side of it, as OpenAI streams it over chat completions and over responses, with the
usage of each turn. The SDKs' side are the `talk` scripts.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from support.answers import DONE, frame
from support.speech import body

MODEL, SNAPSHOT = "gpt-4o", "gpt-4o-2024-08-06"
QUESTION = "How warm is it in Oslo, in degrees Celsius?"
RESULT = "minus 7"
TOOL, ARGUMENTS = "get_weather", {"city": "Oslo", "unit": "°C"}
_CALL_ID, _ITEM_ID = "call_hbpYkZNxUyJc0mSZ3kgTqIqV", "fc_68e9a0d4f1b08197"


@dataclass(frozen=True)
class Turn:
    """What the model says in one turn and what it reports for it."""

    words: tuple[str, ...]
    calls: bool
    input: int
    cached: int
    output: int
    reasoning: int

    @property
    def text(self) -> str:
        return "".join(self.words)

    @property
    def seen(self) -> dict[str, Any]:
        """What an SDK should have seen of it."""
        calls = [{"name": TOOL, "arguments": ARGUMENTS}] if self.calls else []
        return {"text": self.text, "tool_calls": calls}

    @property
    def numbers(self) -> dict[str, int]:
        return {"input": self.input, "cached": self.cached, "output": self.output, "reasoning": self.reasoning}


TURNS = (
    Turn(("Let", " me", " look", "."), True, input=83, cached=64, output=31, reasoning=12),
    Turn(("It", " is", " -7", " °C", " in", " Oslo", "."), False, input=127, cached=0, output=9, reasoning=0),
)


# -- chat completions ----------------------------------------------------------------------------


def chat(turn: Turn, *, usage: bool = True) -> list[bytes]:
    """A turn over chat completions, a frame each; `usage`: with the frame that include_usage causes."""
    frames = [_chunk({"role": "assistant", "content": "", "refusal": None})]
    frames += [_chunk({"content": word}) for word in turn.words]
    if turn.calls:
        function = {"name": TOOL, "arguments": ""}
        frames.append(_chunk({"tool_calls": [{"index": 0, "id": _CALL_ID, "type": "function", "function": function}]}))
        frames += [
            _chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}) for piece in _argument_pieces()
        ]
    frames.append(_chunk({}, "tool_calls" if turn.calls else "stop"))
    if usage:
        frames.append(_chunk(None, usage=_chat_usage(turn)))
    return [*frames, DONE]


def _chunk(delta: dict[str, Any] | None, finish: str | None = None, **more: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
    return frame(
        {
            "id": "chatcmpl-CGSbhP05yVK6UddcCirjjbqYBCuqe",
            "object": "chat.completion.chunk",
            "created": 1760141537,
            "model": SNAPSHOT,
            "service_tier": "default",
            "system_fingerprint": "fp_44709d6fcb",
            "choices": choices,
            "usage": None,
            "obfuscation": "p4dd1ng",
            **more,
        }
    )


def _chat_usage(turn: Turn) -> dict[str, Any]:
    return {
        "prompt_tokens": turn.input,
        "completion_tokens": turn.output,
        "total_tokens": turn.input + turn.output,
        "prompt_tokens_details": {"cached_tokens": turn.cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": turn.reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


# -- responses -----------------------------------------------------------------------------------


def responses(turn: Turn) -> list[bytes]:
    """A turn over responses, an event each. There is no [DONE]."""
    items = [*_message_events(turn), *(_call_events() if turn.calls else ())]
    output = [event["item"] for event in items if event["type"] == "response.output_item.done"]
    usage = {
        "input_tokens": turn.input,
        "input_tokens_details": {"cached_tokens": turn.cached},
        "output_tokens": turn.output,
        "output_tokens_details": {"reasoning_tokens": turn.reasoning},
        "total_tokens": turn.input + turn.output,
    }
    begun = {**_RESPONSE, "id": f"resp_68e9a0d3{turn.input}"}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        *items,
        {
            "type": "response.completed",
            "response": {
                **begun,
                "status": "completed",
                "service_tier": "default",
                "output": output,
                "usage": usage,
                "completed_at": 1760141539,
            },
        },
    ]
    return [frame({**event, "sequence_number": n}, event=event["type"]) for n, event in enumerate(events)]


_RESPONSE: dict[str, Any] = {
    "object": "response",
    "created_at": 1760141537,
    "status": "in_progress",
    "background": False,
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "model": SNAPSHOT,
    "output": [],
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "auto",
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "usage": None,
    "user": None,
}


def _message_events(turn: Turn) -> Iterable[dict[str, Any]]:
    at = {"item_id": "msg_68e9a0d3ff5c", "output_index": 0}
    part = {"type": "output_text", "annotations": [], "logprobs": []}
    item = {"id": at["item_id"], "type": "message", "role": "assistant"}
    yield {
        "type": "response.output_item.added",
        "output_index": 0,
        "item": {**item, "status": "in_progress", "content": []},
    }
    yield {"type": "response.content_part.added", **at, "content_index": 0, "part": {**part, "text": ""}}
    for word in turn.words:
        more = {"content_index": 0, "delta": word, "logprobs": [], "obfuscation": "p4dd1ng"}
        yield {"type": "response.output_text.delta", **at, **more}
    yield {"type": "response.output_text.done", **at, "content_index": 0, "text": turn.text, "logprobs": []}
    done = {**part, "text": turn.text}
    yield {"type": "response.content_part.done", **at, "content_index": 0, "part": done}
    yield {
        "type": "response.output_item.done",
        "output_index": 0,
        "item": {**item, "status": "completed", "content": [done]},
    }


def _call_events() -> Iterable[dict[str, Any]]:
    at = {"item_id": _ITEM_ID, "output_index": 1}
    item = {"id": _ITEM_ID, "type": "function_call", "call_id": _CALL_ID, "name": TOOL}
    yield {
        "type": "response.output_item.added",
        "output_index": 1,
        "item": {**item, "status": "in_progress", "arguments": ""},
    }
    for piece in _argument_pieces():
        yield {"type": "response.function_call_arguments.delta", **at, "delta": piece, "obfuscation": "p4d"}
    arguments = "".join(_argument_pieces())
    yield {"type": "response.function_call_arguments.done", **at, "arguments": arguments}
    yield {
        "type": "response.output_item.done",
        "output_index": 1,
        "item": {**item, "status": "completed", "arguments": arguments},
    }


def _argument_pieces() -> list[str]:
    text = json.dumps(ARGUMENTS, ensure_ascii=False)
    return [text[at : at + 6] for at in range(0, len(text), 6)]


ARGUMENT_BYTES = len("".join(_argument_pieces()).encode())


# -- embeddings ----------------------------------------------------------------------------------

EMBEDDED, VECTOR = 11, [0.5, -0.25, 1.0]


def embeddings(*, as_base64: bool) -> bytes:
    """One embedding, in the coding that was asked for."""
    vector: Any = base64.b64encode(struct.pack("<3f", *VECTOR)).decode() if as_base64 else VECTOR
    data = [{"object": "embedding", "index": 0, "embedding": vector}]
    usage = {"prompt_tokens": EMBEDDED, "total_tokens": EMBEDDED}
    return body({"object": "list", "data": data, "model": "text-embedding-3-small", "usage": usage})
