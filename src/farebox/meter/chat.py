"""Reads OpenAI's chat completions and legacy completions, and what the many look-alikes make of them.

Where usage may stand: the member `usage` on its own frame, on the finish chunk or on every chunk;
`x_groq.usage`; `choices[0].usage` (Moonshot); llama.cpp's `timings` if there is nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from farebox.dialects.faults import Fault, read_fault
from farebox.dialects.values import count, mapping, word
from farebox.meter.documents import Reader, read_any
from farebox.meter.reading import Notes
from farebox.meter.wire import Kind

DONE = b"[DONE]"

_MEASURES = frozenset(("choices", "usage", "x_groq", "timings", "time_info", "perf_metrics"))
"""Objects of a usage-only frame: usage in its spellings, and measurements that came along with it."""
_MESSAGES = frozenset(("error", "error_type", "message", "detail", "warning", "moderation"))
"""Texts that are addressed to somebody, unlike names, dates and the other words of an envelope."""
_TEXTS = ("content", "reasoning_content", "reasoning", "refusal", "text")


class _Answer(msgspec.Struct):
    """A chunk or a whole answer; everything optional, everything of any type."""

    id: Any = None
    model: Any = None
    service_tier: Any = None
    choices: Any = None
    usage: Any = None
    error: Any = None
    error_type: Any = None
    object: Any = None
    type: Any = None
    code: Any = None
    x_groq: Any = None
    timings: Any = None
    usage_breakdown: Any = None


_READER = Reader(_Answer)


class ChatWire:
    """`/chat/completions` and `/completions`."""

    def event(self, name: bytes, data: bytes, notes: Notes) -> Kind:
        if data.startswith(DONE):
            notes.terminal = True
            return Kind.NEWS
        answer = _READER.read(data)
        if answer is None:
            return Kind.UNREADABLE
        notes.head(answer.model, answer.service_tier, answer.id)
        choices = answer.choices if isinstance(answer.choices, list) else []
        content = news = False
        for choice in choices:
            if isinstance(choice, dict):
                has_content, has_news = _read_choice(choice, "delta", notes)
                content = content or has_content
                news = news or has_news
        if choices and not _has_more(answer):
            if news:
                return Kind.NEWS_AND_TEXT if content else Kind.NEWS
            return Kind.TEXT if content else Kind.EMPTY
        notes.report(_fault(answer) or (Fault() if name == b"error" else None))
        if answer.usage or answer.x_groq or answer.timings or answer.usage_breakdown:
            _note_usage(answer, choices, notes)
        if answer.choices == [] and isinstance(answer.usage, dict) and _is_usage_only(data):
            return Kind.USAGE_ONLY
        return Kind.NEWS_AND_TEXT if content else Kind.NEWS

    def document(self, data: bytes, notes: Notes) -> bool:
        answer = _READER.read(data)
        if answer is None:
            return False
        notes.head(answer.model, answer.service_tier, answer.id)
        for choice in answer.choices if isinstance(answer.choices, list) else []:
            if isinstance(choice, dict):
                content, _ = _read_choice(choice, "message", notes)
                notes.content = notes.content or content
        notes.report(_fault(answer))
        _note_usage(answer, [], notes)
        return True

    def event_text(self, data: bytes) -> Iterator[str]:
        return _text(data, "delta")

    def document_text(self, data: bytes) -> Iterator[str]:
        return _text(data, "message")


def _has_more(answer: _Answer) -> bool:
    """Whether anything to note stands beside the choices; in nearly every chunk nothing does."""
    return bool(
        answer.usage
        or answer.error
        or answer.x_groq
        or answer.timings
        or answer.usage_breakdown
        or answer.object == "error"
    )


def _read_choice(choice: dict[str, Any], part: str, notes: Notes) -> tuple[bool, bool]:
    """Note one choice; whether it brought generated content, and whether anything else."""
    news = False
    if choice.get("finish_reason"):
        notes.finished = news = True
    if choice.get("error"):
        news = notes.report(read_fault(choice)) or news
    if choice.get("usage"):
        news = notes.add_usage(choice["usage"]) or news
    message = choice.get(part)
    if not isinstance(message, dict):
        message = choice.get("message") if part == "delta" else None
    if isinstance(message, dict):
        if (message.get("tool_calls") or message.get("function_call")) and _read_calls(
            message, choice.get("index"), part, notes
        ):
            return True, True
        if message.get("content"):
            return True, news
    return any(_texts(choice, part)), news


def _read_calls(message: dict[str, Any], index: Any, part: str, notes: Notes) -> bool:
    """Note the tool calls of one message or delta; whether there were any."""
    found = False
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        if not isinstance(call, dict):
            continue
        found = True
        function = mapping(call.get("function") or call.get("custom"))
        arguments = function.get("arguments", function.get("input"))
        if part == "message":
            notes.tools.add(function.get("name"), arguments)
        else:
            slot = (count(index) or 0, count(call.get("index")) or 0)
            notes.tools.fragment(slot, call.get("id"), function.get("name"), arguments)
    legacy = message.get("function_call")
    if isinstance(legacy, dict) and legacy:
        found = True
        if part == "message":
            notes.tools.add(legacy.get("name"), legacy.get("arguments"))
        else:
            notes.tools.fragment(
                (count(index) or 0, "function_call"), None, legacy.get("name"), legacy.get("arguments")
            )
    return found


def _note_usage(answer: _Answer, choices: list[Any], notes: Notes) -> None:
    groq = mapping(answer.x_groq)
    notes.add_usage(groq.get("usage"))
    if len(choices) == 1 and isinstance(choices[0], dict):
        notes.add_choice_usage(count(choices[0].get("index")) or 0, answer.usage)
    elif choices:
        notes.add_usage(answer.usage)
    else:
        notes.add_own_frame(answer.usage)
    notes.add_sibling("usage_breakdown", answer.usage_breakdown or groq.get("usage_breakdown"))
    if isinstance(answer.timings, dict) and not isinstance(answer.usage, dict):
        notes.add_fallback(_from_timings(answer.timings))


def _from_timings(timings: dict[str, Any]) -> dict[str, Any]:
    """llama.cpp's own counts as a usage object: evaluated and cached prompt tokens are apart there."""
    prompt, cached, output = (count(timings.get(name)) for name in ("prompt_n", "cache_n", "predicted_n"))
    usage: dict[str, Any] = {"prompt_tokens": None if prompt is None else prompt + (cached or 0)}
    if cached is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    return {**usage, "completion_tokens": output}


def _fault(answer: _Answer) -> Fault | None:
    if answer.object == "error" and not answer.error:
        return Fault(word(answer.type), word(answer.code))
    members = {"error": answer.error, "error_type": answer.error_type, "code": answer.code}
    return read_fault(members) or read_fault(answer.x_groq)


def _is_usage_only(data: bytes) -> bool:
    """Whether a frame without choices carries nothing but usage: no error, no moderation result, no citations ..."""
    frame = read_any(data)
    return (
        isinstance(frame, dict)
        and all(_is_envelope(name, value) for name, value in frame.items())
        and not mapping(frame.get("x_groq")).get("error")
    )


def _is_envelope(name: str, value: Any) -> bool:
    """Whether a member may go with its frame: it is empty, a measurement, or a plain value such as an id or a date."""
    if not value or name in _MEASURES:
        return True
    return not isinstance(value, dict | list) and name not in _MESSAGES


def _texts(choice: dict[str, Any], part: str) -> Iterator[str]:
    """Generated text in one choice, whatever it is called."""
    message = choice.get(part)
    if not isinstance(message, dict) and part == "delta":
        message = choice.get("message")
    for holder in (choice, message) if isinstance(message, dict) else (choice,):
        for name in _TEXTS:
            yield from _flat(holder.get(name))
    if isinstance(message, dict):
        yield from _flat(mapping(message.get("audio")).get("transcript"))
        if mapping(message.get("audio")).get("data"):
            yield " "
    # Azure with its own data source nests deltas once more.
    nested = choice.get("messages")
    for item in nested if isinstance(nested, list) else ():
        if isinstance(item, dict):
            yield from _flat(mapping(item.get("delta")).get("content"))


def _flat(value: Any) -> Iterator[str]:
    """Text, or the texts in a list of content parts (Mistral nests thinking one deeper)."""
    if isinstance(value, str):
        if value:
            yield value
    elif isinstance(value, list):
        for part in value:
            if isinstance(part, dict):
                yield from _flat(part.get("text"))
                yield from _flat(part.get("thinking"))


def _text(data: bytes, part: str) -> Iterator[str]:
    answer = _READER.read(data)
    choices = answer.choices if answer is not None else None
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict):
            yield from _texts(choice, part)
            yield from _call_texts(mapping(choice.get(part)))


def _call_texts(message: Any) -> Iterator[str]:
    """Names and arguments of tool calls: they are generated too."""
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = mapping(mapping(call).get("function") or mapping(call).get("custom"))
        for name in ("name", "arguments", "input"):
            yield from _flat(function.get(name))
    for name in ("name", "arguments"):
        yield from _flat(mapping(message.get("function_call")).get(name))
