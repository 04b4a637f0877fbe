"""Who charges for a provider's answers: from a provider's settings to the name of a book.

The host decides where it is a publisher's own; else the dialect does. A host or a dialect known to
charge by a list that no book has gives none, so that its models are not priced as someone else's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from urllib.parse import urlsplit

from farebox.config import Provider

NONE = "none"
"""The setting `price_book: none`, and the answer for who has no book."""

HUGGING_FACE = "huggingface"
"""Not a book: the router charges by the backend, which the asked model's `:suffix` or the path names."""

DIALECTS: Mapping[str, str] = MappingProxyType(
    {
        "openai": "openai",
        "azure": "azure",
        "anthropic": "anthropic",
        "google": "google",
        "vertex": "google",
        "mistral": "mistral",
        "groq": "groq",
        "deepseek": "deepseek",
        "xai": "x-ai",
        "together": "together",
        "fireworks": "fireworks",
        "openrouter": "openrouter",
        "perplexity": "perplexity",
        "cerebras": "cerebras",
        "cohere": "cohere",
        "huggingface": HUGGING_FACE,
        "moonshot": "moonshotai",
        "copilot": "github-copilot",
        "databricks": "databricks",
        "bedrock": "aws",
        "novita": "novita",
        "voyage": "voyageai",
        "zai": "zai",
        # No list of theirs is in the snapshot.
        **dict.fromkeys(
            ("digitalocean", "nim", "hf-router-hf-inference", "hyperbolic", "nebius", "portkey", "sambanova"), NONE
        ),
        "watsonx": NONE,
        "ollama-cloud": NONE,
        # The operator's own machines.
        **dict.fromkeys(("vllm", "sglang", "llamacpp", "ollama", "tgi", "lmstudio", "demo"), NONE),
    }
)
"""The book of each dialect, for hosts that say nothing themselves."""

_HOSTS: tuple[tuple[str, str], ...] = (
    (r"api\.openai\.com", "openai"),
    (r"api\.anthropic\.com", "anthropic"),
    (r"(.+\.)?(openai\.azure\.com|azure-api\.net|cognitiveservices\.azure\.com|services\.ai\.azure\.com)", "azure"),
    (r"(.+\.)?googleapis\.com", "google"),
    (r"bedrock(-runtime|-mantle)?\.[a-z0-9-]+\.amazonaws\.com|bedrock-mantle\.[a-z0-9-]+\.api\.aws", "aws"),
    (r"api\.mistral\.ai", "mistral"),
    (r"api\.groq\.com", "groq"),
    (r"api\.deepseek\.com", "deepseek"),
    (r"(.+\.)?api\.x\.ai", "x-ai"),
    (r"api\.together\.(xyz|ai)", "together"),
    (r"api\.fireworks\.ai", "fireworks"),
    (r"(api\.)?openrouter\.ai", "openrouter"),
    (r"api\.perplexity\.ai", "perplexity"),
    (r"api\.cerebras\.ai", "cerebras"),
    (r"api\.cohere\.(ai|com)", "cohere"),
    (r"router\.huggingface\.co", HUGGING_FACE),
    (r"api\.moonshot\.(ai|cn)", "moonshotai"),
    (r"api\.([a-z-]+\.)?githubcopilot\.com", "github-copilot"),
    (r".+\.(cloud\.databricks\.com|azuredatabricks\.net|gcp\.databricks\.com)", "databricks"),
    (r"api\.novita\.ai", "novita"),
    (r"api\.voyageai\.com", "voyageai"),
    (r"api\.z\.ai", "zai"),
    (r"open\.bigmodel\.cn", "zhipuai"),
    (r"api\.arcee\.ai", "arcee"),
    (r"api\.avian\.io", "avian"),
    (r"inference\.baseten\.co", "baseten"),
    (r"api\.cloudflare\.com", "cloudflare"),
    (r"api\.doubleword\.ai", "doubleword"),
    (r"api\.meta\.ai", "meta"),
    (r"api\.minimaxi?\.(com|io)", "minimax"),
    (r".+\.modal\.(run|direct)", "modal"),
    (r"oai\.endpoints\.kepler\.ai\.cloud\.ovh\.net", "ovhcloud"),
    (r"api\.quicksilverpro\.io", "quicksilverpro"),
    (r"api\.typesafe\.ai", "typesafe"),
    # Regions with prices of their own, which no book has.
    (r".+\.api\.openai\.com|[a-z]{2}-api\.together\.(xyz|ai)", NONE),
    (r"api\.sambanova\.ai|inference\.do-ai\.run|(integrate|ai)\.api\.nvidia\.com|api\.hyperbolic\.xyz", NONE),
    (r"api\.(studio|tokenfactory)\.nebius\.(ai|com)|api\.portkey\.ai|.+\.ml\.cloud\.ibm\.com|ollama\.com", NONE),
)

FALLBACKS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "azure": ("openai", "anthropic", "deepseek", "x-ai", "moonshotai"),
        "google": ("anthropic",),
    }
)
"""Clouds that sell another publisher's models at that publisher's standard price, where their own book has none.

Only the standard price: their flex, priority and batch rates are their own.
"""

NAMED_BY_OPERATOR = frozenset({"azure"})
"""Books whose customers name their deployments: what was asked for says nothing once the answer names a model."""

_SERVED_BY = re.compile(r"[a-z0-9][a-z0-9_-]{0,40}")


def unknown_books(providers: Iterable[Provider], books: Collection[str]) -> Iterator[Provider]:
    """The providers whose `price_book` names none of `books`: misspelt, most likely, and without any price."""
    for provider in providers:
        if provider.price_book is not None and provider.price_book.lower() not in {*books, NONE, HUGGING_FACE}:
            yield provider


def book_of(*, price_book: str | None, base_url: str, dialect: str) -> str:
    """The book of a provider with these settings; `NONE` where its prices are in none."""
    if price_book is not None:
        return price_book.lower()
    parts = urlsplit(base_url)
    host = (parts.hostname or "").lower().rstrip(".")
    for pattern, book in _HOSTS:
        if re.fullmatch(pattern, host):
            return _backend(parts.path) if book == HUGGING_FACE else book
    return DIALECTS.get(dialect, NONE)


def _backend(path: str) -> str:
    """`router.huggingface.co/groq/openai/v1` is Groq's; plain `/v1` lets the model say."""
    first = path.strip("/").partition("/")[0].lower()
    return HUGGING_FACE if first in ("", "v1") else f"{HUGGING_FACE}_{first}"


def lookups(book: str, model: str, requested: str | None) -> list[tuple[str, str]]:
    """Where a model's price is looked for: (book, name), in order.

    At the Hugging Face router the book is the backend, named after the colon of the model asked
    for; who asks for none is served by anyone, at an unknown price.
    """
    if book == HUGGING_FACE:
        stem, _, backend = (requested or model).rpartition(":")
        backend = backend.lower()
        if not stem or not _SERVED_BY.fullmatch(backend):
            return []
        return [(f"{HUGGING_FACE}_{backend}", model.rpartition(":")[0] or model), (f"{HUGGING_FACE}_{backend}", stem)]
    return [(book, model), *((other, model) for other in FALLBACKS.get(book, ()))]
