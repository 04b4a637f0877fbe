"""Reads bodies without generated text: embeddings of several providers, moderations, and whatever else.

Where the count stands: `usage` (OpenAI and most; Voyage reports only a total), the sum of
`predictions[].embeddings.statistics.token_count` (Vertex), `inputTextTokenCount` (Bedrock Titan),
`meta.billed_units` (Cohere), `prompt_eval_count` (Ollama), `input_token_count` (watsonx),
`usageMetadata` (Gemini).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from farebox.dialects.faults import read_fault
from farebox.dialects.values import count, first, mapping
from farebox.meter.documents import Reader
from farebox.meter.reading import Notes
from farebox.meter.wire import Kind


class _Statistics(msgspec.Struct):
    token_count: Any = None


class _Embeddings(msgspec.Struct):
    statistics: _Statistics | None = None


class _Prediction(msgspec.Struct):
    """What Vertex says of one text; its vector is skipped."""

    embeddings: _Embeddings | None = None


class _Answer(msgspec.Struct):
    """The members beside the vectors, which are skipped."""

    id: Any = None
    model: Any = None
    service_tier: Any = None
    usage: Any = None
    error: Any = None
    error_type: Any = None
    code: Any = None
    predictions: msgspec.Raw = msgspec.Raw()
    meta: Any = None
    inputTextTokenCount: Any = None
    prompt_eval_count: Any = None
    input_token_count: Any = None
    usageMetadata: Any = None


_READER = Reader(_Answer)
_PREDICTIONS = msgspec.json.Decoder(list[_Prediction])


class EmbeddingsWire:
    """`/embeddings`, `/moderations`."""

    def event(self, name: bytes, data: bytes, notes: Notes) -> Kind:
        return Kind.NEWS if self.document(data, notes) else Kind.UNREADABLE

    def document(self, data: bytes, notes: Notes) -> bool:
        answer = _READER.read(data)
        if answer is None:
            # A bare array of vectors (Hugging Face feature extraction) is a whole answer too.
            return data[:1] == b"[" and data.rstrip()[-1:] == b"]"
        notes.head(answer.model, answer.service_tier, answer.id)
        notes.add_usage(answer.usage)
        notes.report(read_fault({"error": answer.error, "error_type": answer.error_type, "code": answer.code}))
        elsewhere = _elsewhere(answer)
        if elsewhere is not None:
            notes.add_fallback({"input_tokens": elsewhere})
        return True

    def event_text(self, data: bytes) -> Iterator[str]:
        return iter(())

    def document_text(self, data: bytes) -> Iterator[str]:
        return iter(())


def _elsewhere(answer: _Answer) -> int | None:
    """Input tokens, where they are not reported as usage."""
    billed = mapping(mapping(answer.meta).get("billed_units"))
    metadata = mapping(answer.usageMetadata)
    found = first(
        answer.inputTextTokenCount,
        billed.get("input_tokens"),
        answer.prompt_eval_count,
        answer.input_token_count,
        metadata.get("promptTokenCount"),
    )
    return _predicted(answer.predictions) if found is None else found


def _predicted(predictions: Any) -> int | None:
    """The sum of the counts that Vertex gives with each vector; None if it gives none."""
    if not isinstance(predictions, msgspec.Raw) or not bytes(predictions):
        return None
    try:
        texts = _PREDICTIONS.decode(predictions)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return None
    counted = [
        value
        for text in texts
        if text.embeddings is not None
        and text.embeddings.statistics is not None
        and (value := count(text.embeddings.statistics.token_count)) is not None
    ]
    return sum(counted) if counted else None
