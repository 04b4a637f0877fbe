"""How a stream of chat completions, or of legacy completions, is ended at a limit.

Every choice that has no finish reason yet gets a frame with `length`, in the envelope (id, model,
created ...) of the stream's own chunks; then comes the usage frame if it was asked for, and `[DONE]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from farebox.dialects.values import count
from farebox.meter.chat import DONE
from farebox.meter.documents import Reader, read_any

CHOICES_MAX = 128
"""Choices told apart (OpenAI's own limit of `n`); further ones get no finish frame."""
ENVELOPE_BYTES_MAX = 16 * 1024
"""Of a chunk that is kept as the pattern of the last frames. Larger ones are no pattern."""

_ENVELOPE = ("id", "object", "created", "model", "service_tier", "system_fingerprint", "provider")
_TEXTS = ("content", "refusal", "text")
_ARGUMENTS = ("name", "arguments", "input")
_THOUGHTS = ("reasoning_content", "reasoning")
"""Two names for the same text; servers that send both repeat it."""


class _Chunk(msgspec.Struct):
    choices: Any = None
    usage: Any = None


_READER = Reader(_Chunk)


class ChatTerminal:
    """The choices of one stream and a chunk that shows its envelope."""

    keeps_text = False

    def __init__(self, choices: int, *, legacy: bool) -> None:
        self._legacy = legacy
        self._open: dict[int, bool] = {}
        """By index: whether the choice has no finish reason yet."""
        self._asked = min(choices, CHOICES_MAX)
        self._pattern: bytes | None = None
        self._usage_sent = False
        self._done = False

    @property
    def over(self) -> bool:
        return len(self._open) >= max(1, self._asked) and not any(self._open.values())

    def note(self, name: bytes, data: bytes) -> int:
        if data.startswith(DONE):
            self._done = True
            return 0
        chunk = _READER.read(data)
        if chunk is None:
            return 0
        choices = chunk.choices if isinstance(chunk.choices, list) else []
        if choices:
            if len(data) <= ENVELOPE_BYTES_MAX:
                self._pattern = data
        elif chunk.usage:
            self._usage_sent = True
        size = 0
        for choice in choices:
            if isinstance(choice, dict):
                size += self._choice(choice)
        return size

    def skipped(self, head: bytes) -> None:
        pass

    def learned(self) -> None:
        """Nothing of the text is needed again."""

    def covered(self, text: bytes, chunk: bytes) -> None:
        """Likewise."""

    def ending(self, usage: tuple[int, int] | None, output_bytes: int) -> Iterable[tuple[str | None, Any]] | None:
        if self._done:
            return ()
        envelope = self._envelope()
        return None if envelope is None else self._frames(envelope, usage)

    def _frames(self, envelope: dict[str, Any], usage: tuple[int, int] | None) -> Iterator[tuple[str | None, Any]]:
        indexes = sorted({*self._open, *range(self._asked)} or {0})
        for index in indexes:
            if self._open.get(index, True):
                yield None, {**envelope, "choices": [self._finish(index)]}
        if usage is not None and not self._usage_sent:
            tokens = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
            yield None, {**envelope, "choices": [], "usage": tokens}
        yield None, DONE

    def _finish(self, index: int) -> dict[str, Any]:
        said: dict[str, Any] = {"text": ""} if self._legacy else {"delta": {}}
        return {"index": index, **said, "logprobs": None, "finish_reason": "length"}

    def _envelope(self) -> dict[str, Any] | None:
        """The members that all chunks of this stream share; None before the first one."""
        chunk = read_any(self._pattern) if self._pattern is not None else None
        if not isinstance(chunk, dict):
            return None
        names = (*_ENVELOPE, "usage") if chunk.get("usage", 0) is None else _ENVELOPE
        return {name: value for name, value in chunk.items() if name in names}

    def _choice(self, choice: dict[str, Any]) -> int:
        index = choice.get("index")
        if type(index) is not int or index < 0:
            index = count(index) or 0
        if choice.get("finish_reason"):
            if index in self._open or len(self._open) < CHOICES_MAX:
                self._open[index] = False
        elif index not in self._open and len(self._open) < CHOICES_MAX:
            self._open[index] = True
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            delta = choice.get("message")
        text = choice.get("text")
        return (_size(text) if text else 0) + (_delta_size(delta) if isinstance(delta, dict) else 0)


def _delta_size(delta: dict[str, Any]) -> int:
    """Bytes of text in a delta: all that is generated, whatever it is called."""
    size = thoughts = 0
    for name, value in delta.items():
        if not value:
            continue
        if name in _TEXTS:
            size += _size(value)
        elif name == "tool_calls":
            for call in value if isinstance(value, list) else ():
                if isinstance(call, dict):
                    size += _call_size(call.get("function") or call.get("custom"))
        elif name in _THOUGHTS:
            thoughts = thoughts or _size(value)
        elif name == "function_call":
            size += _call_size(value)
        elif name == "audio" and isinstance(value, dict):
            size += _size(value.get("transcript"))
    return size + thoughts


def _call_size(function: Any) -> int:
    """Bytes of a call's name and arguments."""
    if not isinstance(function, dict):
        return 0
    return sum([_size(value) for name, value in function.items() if name in _ARGUMENTS])


def _size(value: Any) -> int:
    """Bytes of a text, or of the texts in a list of content parts."""
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "replace"))
    if isinstance(value, list):
        return sum(_size(part.get("text")) + _size(part.get("thinking")) for part in value if isinstance(part, dict))
    return 0
