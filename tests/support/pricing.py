"""Prices for tests: events by their counts, providers by their settings, the shipped book read once."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from typing import Any
from uuid import UUID

from farebox.config import Provider
from farebox.pricing import PriceBook, Pricer, shipped
from farebox.records import UsageEvent
from support.config import read

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
"""A Friday, outside every peak hour."""

HOSTS = {
    "openai": "https://api.openai.com/v1",
    "anthropic": "https://api.anthropic.com",
    "google": "https://generativelanguage.googleapis.com/v1beta/openai",
    "vertex": "https://us-east5-aiplatform.googleapis.com/v1/projects/p/locations/us-east5/endpoints/openapi",
    "mistral": "https://api.mistral.ai/v1",
    "groq": "https://api.groq.com/openai/v1",
    "deepseek": "https://api.deepseek.com",
    "xai": "https://api.x.ai/v1",
    "azure": "https://resource.openai.azure.com/openai/v1",
    "bedrock": "https://bedrock-runtime.us-west-2.amazonaws.com/openai/v1",
    "openrouter": "https://openrouter.ai/api/v1",
    "perplexity": "https://api.perplexity.ai",
    "cerebras": "https://api.cerebras.ai/v1",
    "together": "https://api.together.xyz/v1",
    "fireworks": "https://api.fireworks.ai/inference/v1",
    "cohere": "https://api.cohere.ai/compatibility/v1",
    "huggingface": "https://router.huggingface.co/v1",
    "moonshot": "https://api.moonshot.ai/v1",
    "voyage": "https://api.voyageai.com/v1",
    "zai": "https://api.z.ai/api/paas/v4",
}


def provider(dialect: str = "openai", base_url: str | None = None, **settings: Any) -> Provider:
    """A provider of this dialect, by that name, at its own host or at `base_url`."""
    return Provider(
        name=dialect, dialect=dialect, base_url=base_url or HOSTS.get(dialect, "http://localhost:8000/v1"), **settings
    )


def configured(prices: str, dialect: str = "vllm", **more: str) -> Provider:
    """A provider named `local` as the config gives it, with this YAML as its `prices`."""
    extra = "".join(f", {name}: {value}" for name, value in more.items())
    text = (
        f"providers: {{local: {{dialect: {dialect}, base_url: 'http://localhost:8000/v1', prices: {prices}{extra}}}}}"
    )
    return read(text).providers["local"]


@cache
def book() -> PriceBook:
    """The shipped book."""
    return PriceBook(shipped().entries)


@cache
def publishers() -> Pricer:
    """A pricer over the shipped book and one provider of each dialect."""
    return Pricer(book(), {name: provider(name) for name in HOSTS})


def used(
    model: str | None,
    input_tokens: int | None,
    output_tokens: int | None = 0,
    *,
    by: str = "openai",
    at: datetime = NOON,
    **fields: Any,
) -> UsageEvent:
    """What a call used: the counts of one event, all else as for a chat that went well."""
    defaults: dict[str, Any] = {
        "id": UUID(int=1),
        "request_id": UUID(int=2),
        "attempt": 1,
        "started_at": at,
        "finished_at": at,
        "provider": by,
        "dialect": by,
        "endpoint": "/v1/chat/completions",
        "operation": "chat",
        "requested_model": model,
        "model": model,
        "outcome": "complete",
        "status": 200,
        "usage_source": "provider",
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
    }
    return UsageEvent(**{**defaults, **fields})
