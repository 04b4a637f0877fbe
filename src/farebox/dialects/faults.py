"""Reads what kind of error a provider reported: its type and code, never its message.

Messages quote prompts, so only single words are taken. Shapes known: OpenAI's and Anthropic's
`error` object, Google's with `status` (sometimes wrapped in an array), an `error` that is a string
beside `error_type` (TGI) or alone (Ollama), type and code at the root (older vLLM, Mistral),
`error_code` (Databricks), `detail` (FastAPI).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from farebox.dialects.values import mapping, word


class Fault(NamedTuple):
    """An error a provider reported. Either word may be missing."""

    type: str | None = None
    code: str | None = None


def read_fault(value: Any) -> Fault | None:
    """The fault that a response object reports in its `error` member; None if it reports none.

    Null, false and empty values are no error: many servers always send the member.
    """
    error = mapping(value).get("error")
    if not error:
        return None
    if isinstance(error, dict):
        return _from_object(error)
    return Fault(word(value.get("error_type")), word(value.get("code")))


def read_error_body(value: Any) -> Fault:
    """The fault in the body of a response whose status already says that it is an error."""
    if isinstance(value, list):
        value = value[0] if value else None
    fault = read_fault(value)
    if fault is not None:
        return fault
    body = mapping(value)
    detail = body.get("detail")
    if isinstance(detail, list) and detail:
        return Fault(word(mapping(detail[0]).get("type")))
    return Fault(
        word(body.get("type")) or word(body.get("__type")),
        word(body.get("code")) or word(body.get("error_code")),
    )


def _from_object(error: Mapping[str, Any]) -> Fault:
    status = word(error.get("status"))
    code = word(error.get("code"))
    kind = word(error.get("type"))
    if status is not None and not status.isdigit():
        # Google: the number of `code` repeats the HTTP status, the word says more.
        return Fault(kind or status, status if code is None or code.isdigit() else code)
    return Fault(kind, code)
