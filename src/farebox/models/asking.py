"""Where a provider's list of models lies, and how to read it: bytes in, models out.

Shapes known, from the providers' API references and recorded answers: OpenAI's `data`, with the fields
that OpenRouter, Groq, Mistral, Fireworks, Together, vLLM, llama.cpp, Copilot and others add; a bare
list (Together); `models` with names (Ollama's own, Cohere's); Anthropic's pages. A provider without a
list answers 404, which is a failure like any other. Prices that a list quotes are not read: what a
call costs is the price book's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import msgspec

from farebox.config import Provider
from farebox.dialects import PROFILES
from farebox.records import Model
from farebox.routing import MODEL_CHARS_MAX

_ANTHROPIC_PAGE = "/models?limit=1000"
_AZURE_LIST = "/models?api-version=2024-10-21"
"""The newest dated version that is generally available. It lists what the resource may deploy: what is
deployed, and under which names, only the management API tells."""
_LINE_CHARS_MAX = 200
_TOKENS_MAX = 10**12
_CONTEXT = (
    ("context_length",),
    ("context_window",),
    ("max_context_length",),
    ("max_model_len",),
    ("max_input_tokens",),
    ("context_size",),
    ("meta", "n_ctx"),
    ("capabilities", "limits", "max_context_window_tokens"),
)
"""OpenRouter, Together, Fireworks, Moonshot, SambaNova; Groq; Mistral; vLLM, SGLang; Anthropic; Novita; llama.cpp
(what it was started with, not `n_ctx_train`); Copilot."""
_OUTPUT = (
    ("max_output_tokens",),
    ("max_completion_tokens",),
    ("top_provider", "max_completion_tokens"),
    ("capabilities", "limits", "max_output_tokens"),
)
"""Novita; Groq, SambaNova; OpenRouter; Copilot. Anthropic's is `max_tokens`. vLLM's `max_model_len` is no limit of the
output alone: a client that asked for so much would be refused."""


class Unreadable(ValueError):
    """The answer is no list of models."""


class Ask(NamedTuple):
    """One request of a list: what follows the base URL (after its version if `versioned`), and headers."""

    suffix: str
    versioned: bool
    headers: Mapping[str, str]


class Listing(NamedTuple):
    """One page of a list. `after`: the id after which the next one begins, None on the last."""

    models: list[Model]
    after: str | None


def ask(provider: Provider, after: str | None = None) -> Ask:
    """The request for `provider`'s list, or for the page that begins after the model `after`."""
    headers = {"Accept": "application/json"}
    if _is_anthropic(provider):
        page = _ANTHROPIC_PAGE + (f"&after_id={quote(after, safe='')}" if after is not None else "")
        return Ask(page, True, headers | {"anthropic-version": "2023-06-01"})
    if provider.dialect == "azure":
        return Ask(_azure_suffix(provider.base_url), False, headers)
    return Ask("/models", True, headers)


def read(provider: Provider, body: bytes, entries_max: int = 50_000) -> Listing:
    """The models of an answer of `provider`, in its order, each once. Raises `Unreadable`.

    Entries without a usable id, and models the provider says can't be called, are left out; after
    `entries_max` entries no more are looked at.
    """
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Unreadable from None
    entries = document
    if isinstance(document, dict):
        entries = next((document[name] for name in ("data", "models") if isinstance(document.get(name), list)), None)
    if not isinstance(entries, list):
        raise Unreadable
    models = {model.id: model for model in _models(provider, entries[:entries_max])}
    after = None
    if _is_anthropic(provider) and isinstance(document, dict) and document.get("has_more") is True:
        after = _line(document.get("last_id"), MODEL_CHARS_MAX)
    return Listing(list(models.values()), after)


def _is_anthropic(provider: Provider) -> bool:
    profile = PROFILES.get(provider.dialect)
    return profile is not None and profile.family == "anthropic"


def _azure_suffix(base_url: str) -> str:
    path = urlsplit(base_url).path
    if path.endswith("/v1"):
        return "/models"  # the version without a date, which is OpenAI's shape throughout
    return _AZURE_LIST if path.endswith("/openai") else "/openai" + _AZURE_LIST


def _models(provider: Provider, entries: list[Any]) -> Iterator[Model]:
    for entry in entries:
        if not isinstance(entry, dict) or _is_closed(entry):
            continue
        id = next((id for name in ("id", "name", "model") if (id := _line(entry.get(name), MODEL_CHARS_MAX))), None)
        if id is None:
            continue
        if provider.dialect == "google":
            id = id.removeprefix("models/")  # it takes both, and everybody writes it without
        yield Model(
            id=id,
            created=_moment(entry),
            owned_by=_line(entry.get("owned_by"), _LINE_CHARS_MAX),
            display_name=_line(entry.get("display_name"), _LINE_CHARS_MAX),
            context_length=_tokens(entry, _CONTEXT),
            max_output_tokens=_tokens(entry, ((("max_tokens",),) if _is_anthropic(provider) else ()) + _OUTPUT),
        )


def _is_closed(entry: Mapping[str, Any]) -> bool:
    """Whether a call for it would fail: Anthropic's retired ones, Groq's inactive ones, what Azure only fine-tunes."""
    if entry.get("lifecycle") == "retired" or entry.get("active") is False:
        return True
    able = entry.get("capabilities")
    return isinstance(able, dict) and able.get("inference") is False


def _tokens(entry: Mapping[str, Any], places: tuple[tuple[str, ...], ...]) -> int | None:
    for place in places:
        value: Any = entry
        for name in place:
            value = value.get(name) if isinstance(value, dict) else None
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _TOKENS_MAX:
            return value
    return None


def _moment(entry: Mapping[str, Any]) -> int | None:
    """Unix seconds of `created` (OpenAI's), or of `created_at`: seconds, or Anthropic's date and time."""
    for name in ("created", "created_at"):
        value = entry.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 40:
            return value
        if isinstance(value, str):
            try:
                moment = datetime.fromisoformat(value)
            except ValueError:
                continue
            if moment.tzinfo is not None and moment.year > 1970:
                return int(moment.timestamp())
    return None


def _line(value: object, chars_max: int) -> str | None:
    """A text that can stand in a row, a table and a header."""
    if isinstance(value, str) and 0 < len(value) <= chars_max and value.isprintable() and value.strip() == value:
        return value
    return None
