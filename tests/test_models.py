"""The models of all providers as values: where a list lies, how it is read, merged, filtered and shown."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from farebox import paths
from farebox.config import Config, Provider
from farebox.errors import BadRequest, ModelNotAllowed
from farebox.models import Known, Offer, Shelf, known_models, listed, offered, shapes
from farebox.models.asking import Unreadable, ask, read
from farebox.models.shelf import stock
from farebox.pricing import Quote
from farebox.records import Caller, Model, ModelList
from support.config import read as config_of

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
LIST = paths.parse("GET", "/v1/models")
ANYONE = Caller(kind="open")


def provider(dialect: str = "openai", base_url: str = "https://up.example/v1") -> Provider:
    return Provider(name="p", dialect=dialect, base_url=base_url)


def ids(offers: Any) -> list[str]:
    return [offer.model.id for offer in offers]


# -- asking --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dialect", "base_url", "suffix", "versioned"),
    [
        ("openai", "https://api.openai.com/v1", "/models", True),
        ("vllm", "http://127.0.0.1:8000/v1", "/models", True),
        ("openrouter", "https://openrouter.ai/api/v1", "/models", True),
        ("anthropic", "https://api.anthropic.com", "/models?limit=1000", True),
        ("azure", "https://r.openai.azure.com", "/openai/models?api-version=2024-10-21", False),
        ("azure", "https://r.openai.azure.com/openai", "/models?api-version=2024-10-21", False),
        ("azure", "https://r.openai.azure.com/openai/v1", "/models", False),
    ],
)
def test_each_dialect_is_asked_where_its_list_lies(dialect: str, base_url: str, suffix: str, versioned: bool) -> None:
    """The target follows the dialect and, on Azure, the surface that the base URL names."""
    wanted = ask(provider(dialect, base_url))
    assert (wanted.suffix, wanted.versioned) == (suffix, versioned)
    assert ("anthropic-version" in wanted.headers) == (dialect == "anthropic")


def test_the_next_page_begins_after_the_last_id_whatever_it_holds() -> None:
    """An id goes into the target encoded, so that a provider can't move the request."""
    assert (
        ask(provider("anthropic"), "a/../b?c&d=é").suffix == "/models?limit=1000&after_id=a%2F..%2Fb%3Fc%26d%3D%C3%A9"
    )


# -- reading -------------------------------------------------------------------------------------

READS: dict[str, tuple[str, Any, Model | None]] = {
    "OpenAI": (
        "openai",
        {"object": "list", "data": [{"id": "gpt-5", "object": "model", "created": 1754587413, "owned_by": "system"}]},
        Model(id="gpt-5", created=1754587413, owned_by="system"),
    ),
    "Anthropic": (
        "anthropic",
        {
            "data": [
                {
                    "type": "model",
                    "id": "claude-opus-4-5",
                    "display_name": "Claude Opus 4.5",
                    "created_at": "2025-11-24T00:00:00Z",
                    "max_input_tokens": 200_000,
                    "max_tokens": 64_000,
                    "lifecycle": "active",
                }
            ],
            "has_more": False,
        },
        Model(
            id="claude-opus-4-5",
            created=1763942400,
            display_name="Claude Opus 4.5",
            context_length=200_000,
            max_output_tokens=64_000,
        ),
    ),
    "Anthropic, retired": ("anthropic", {"data": [{"id": "claude-1", "lifecycle": "retired"}]}, None),
    "OpenRouter": (
        "openrouter",
        {
            "data": [
                {
                    "id": "openai/gpt-5",
                    "created": 1754587413,
                    "context_length": 400_000,
                    "top_provider": {"context_length": 400_000, "max_completion_tokens": 128_000},
                    "pricing": {"prompt": "0.00000125"},
                }
            ]
        },
        Model(id="openai/gpt-5", created=1754587413, context_length=400_000, max_output_tokens=128_000),
    ),
    "OpenRouter, output unknown": (
        "openrouter",
        {"data": [{"id": "a/b", "context_length": 4096, "top_provider": {"max_completion_tokens": None}}]},
        Model(id="a/b", context_length=4096),
    ),
    "Groq": (
        "groq",
        {"data": [{"id": "llama", "active": True, "context_window": 131_072, "max_completion_tokens": 32_768}]},
        Model(id="llama", context_length=131_072, max_output_tokens=32_768),
    ),
    "Groq, switched off": ("groq", {"data": [{"id": "llama", "active": False}]}, None),
    "Mistral": (
        "mistral",
        {"data": [{"id": "mistral-large", "max_context_length": 131_072, "capabilities": {"completion_chat": True}}]},
        Model(id="mistral-large", context_length=131_072),
    ),
    "vLLM": (
        "vllm",
        {"object": "list", "data": [{"id": "Qwen/Qwen3-8B", "owned_by": "vllm", "max_model_len": 40_960}]},
        Model(id="Qwen/Qwen3-8B", owned_by="vllm", context_length=40_960),
    ),
    "llama.cpp": (
        "llamacpp",
        {
            "models": [{"name": "tiny", "model": "tiny"}],
            "object": "list",
            "data": [{"id": "tiny", "owned_by": "llamacpp", "meta": {"n_ctx": 4096, "n_ctx_train": 131_072}}],
        },
        Model(id="tiny", owned_by="llamacpp", context_length=4096),
    ),
    "Ollama's own": ("ollama", {"models": [{"name": "llama3:8b", "size": 1}]}, Model(id="llama3:8b")),
    "Together": (
        "together",
        [{"id": "m/x", "object": "model", "created": 0, "context_length": 8192}],
        Model(id="m/x", context_length=8192),
    ),
    "Google": ("google", {"data": [{"id": "models/gemini-2.5-pro"}]}, Model(id="gemini-2.5-pro")),
    "Azure, not to be called": ("azure", {"data": [{"id": "ada", "capabilities": {"inference": False}}]}, None),
    "Copilot": (
        "copilot",
        {
            "data": [
                {"id": "gpt-4o", "capabilities": {"limits": {"max_context_window_tokens": 9, "max_output_tokens": 4}}}
            ]
        },
        Model(id="gpt-4o", context_length=9, max_output_tokens=4),
    ),
    "numbers that are none": (
        "openai",
        {"data": [{"id": "m", "created": True, "context_length": -1, "max_output_tokens": "9", "owned_by": 3}]},
        Model(id="m"),
    ),
    "ids that are none": (
        "openai",
        {"data": [{"id": ""}, {"id": 7}, {"id": "a\nb"}, {"id": "x" * 513}, {"id": " a"}, "m", None, {}]},
        None,
    ),
}


@pytest.mark.parametrize("case", READS)
def test_lists_are_read_as_providers_write_them(case: str) -> None:
    """Each provider's own fields give the id, the limits and the date; what can't be called or named is left out."""
    dialect, document, expected = READS[case]
    page = read(provider(dialect), json.dumps(document).encode())
    assert page.models == ([expected] if expected is not None else [])
    assert page.after is None


def test_only_anthropics_lists_go_on() -> None:
    """`has_more` names the id after which to ask again; where lists have no pages it means nothing."""
    body = json.dumps({"data": [{"id": "a"}, {"id": "b"}], "has_more": True, "last_id": "b"}).encode()
    assert read(provider("anthropic"), body).after == "b"
    assert read(provider("openai"), body).after is None


def test_a_model_given_twice_is_one() -> None:
    """Of equal ids the last entry counts, in the place of the first."""
    body = b'{"data":[{"id":"a"},{"id":"b"},{"id":"a","context_length":8}]}'
    assert read(provider(), body).models == [Model(id="a", context_length=8), Model(id="b")]


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"{}", b'{"data":{}}', b'{"error":"x"}', b"7", b"[" * 5000, b'{"data":[{"id":"\xff"}]}']
)
def test_what_is_no_list_is_said_to_be_unreadable(body: bytes) -> None:
    """Neither an error page nor rubbish passes for an empty list, which would replace the last good one."""
    with pytest.raises(Unreadable):
        read(provider(), body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["id", "name", "created", "created_at", "meta", "n_ctx", "data"]), inner, max_size=4
        )
    ),
    max_leaves=20,
)


@given(st.lists(JSON, max_size=5), st.sampled_from(["openai", "anthropic", "google"]))
def test_no_entry_breaks_the_reading_or_gets_through_unfit(entries: list[Any], dialect: str) -> None:
    """Whatever stands in a list, reading it ends, and every id is a printable line of bounded length."""
    body = json.dumps({"data": entries}).encode()
    try:
        page = read(provider(dialect), body)
    except Unreadable:
        return  # NaN and lone surrogates are no JSON
    assert all(0 < len(model.id) <= 512 and model.id.isprintable() for model in page.models)


# -- merging -------------------------------------------------------------------------------------

PROVIDERS = """
providers:
  openai: {dialect: openai, base_url: "https://api.openai.com/v1", api_key: sk-1}
  claude: {dialect: anthropic, base_url: "https://api.anthropic.com", api_key: sk-2}
  local: {dialect: vllm, base_url: "http://localhost:8000/v1"}
routes:
  - {match: {model: "claude-*"}, to: [claude]}
  - {match: {model: "shared", tags: {tier: cheap}}, to: [local]}
  - {match: {model: "lost-*"}, to: [local]}
  - {match: {model: ["gpt-*", "shared"]}, to: [openai, local]}
  - {match: {model: "llama"}, to: [local]}
"""
HAVE = {
    "openai": ["gpt-5", "gpt-4o", "shared", "lost-1", "claude-fake", "unrouted"],
    "claude": ["claude-opus", "gpt-5"],
    "local": ["shared", "llama", "gpt-oss"],
}


def held(name: str, models: list[str] | None, **facts: Any) -> ModelList:
    listed = None if models is None else [Model(id=id) for id in models]
    fetched_at = None if models is None else NOW - timedelta(hours=3)
    return ModelList(provider=name, base_url="x", attempted_at=NOW, fetched_at=fetched_at, models=listed, **facts)


def shelf_of(config: Config, have: dict[str, list[str]] = HAVE) -> Shelf:
    return {name: stock(p, held(name, have.get(name, [])), Known()) for name, p in config.providers.items()}


CONFIG = config_of(PROVIDERS)
SHELF = shelf_of(CONFIG)


def test_the_list_is_what_the_routes_would_send_to_who_has_it() -> None:
    """A model is listed once, by the provider its call would reach; one that no call reaches is said to be unrouted."""
    found = {offer.model.id: (offer.provider, offer.routed) for offer in listed(SHELF, CONFIG, ANYONE, LIST, {})}
    assert found == {
        "gpt-5": ("openai", True),
        "gpt-4o": ("openai", True),
        "shared": ("openai", True),
        "lost-1": ("openai", False),
        "claude-fake": ("openai", False),
        "unrouted": ("openai", False),
        "claude-opus": ("claude", True),
        "llama": ("local", True),
        "gpt-oss": ("local", False),
    }


def test_tags_decide_as_they_do_for_calls() -> None:
    """A rule for a tag counts when the request or the key has it; the key's word is the last."""
    cheap = Caller(kind="virtual", tags={"tier": "cheap"})
    dear = Caller(kind="virtual", tags={"tier": "dear"})

    def where(caller: Caller, tags: dict[str, str]) -> str:
        offer = offered(SHELF, CONFIG, caller, LIST, tags, "shared")
        assert offer is not None
        return offer.provider

    assert [where(ANYONE, {}), where(ANYONE, {"tier": "cheap"}), where(cheap, {}), where(dear, {"tier": "cheap"})] == [
        "openai",
        "local",
        "local",
        "openai",
    ]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"models": ("gpt-*", "llama")}, ["gpt-5", "gpt-4o", "gpt-oss", "llama"]),
        ({"providers": ("local",)}, ["shared", "llama", "gpt-oss"]),
        ({"providers": ("claude", "local"), "models": ("*a*",)}, ["claude-opus", "shared", "llama"]),
        ({"providers": ("openai",), "models": ("claude-*", "un*")}, ["claude-fake", "unrouted"]),
        ({"providers": ("gone",)}, []),
        ({"models": ("nothing",)}, []),
    ],
)
def test_a_key_sees_what_it_may_use(limits: dict[str, Any], expected: list[str]) -> None:
    """Globs and providers of the key narrow the list as they narrow its calls: also to a route's second provider."""
    caller = Caller(kind="virtual", **limits)
    assert sorted(ids(listed(SHELF, CONFIG, caller, LIST, {}))) == sorted(expected)


def test_behind_a_provider_that_gave_no_list_the_next_one_counts() -> None:
    """A second provider counts while the first was never heard; then what only the second has is unrouted."""
    config = config_of("""
providers:
  one: {dialect: openai, base_url: "http://127.0.0.1:1/v1"}
  two: {dialect: openai, base_url: "http://127.0.0.1:2/v1"}
routes:
  - {match: {}, to: [one, two]}
""")

    def where(first: ModelList | None, known: Known) -> dict[str, str]:
        one, two = config.providers.values()
        shelf = {"one": stock(one, first, known), "two": stock(two, held("two", ["a", "b"]), Known())}
        found = listed(shelf, config, ANYONE, LIST, {})
        return {offer.model.id: offer.provider if offer.routed else f"/p/{offer.provider}" for offer in found}

    assert where(None, Known()) == {"a": "two", "b": "two"}
    assert where(held("one", None, error="connect"), Known((Model(id="a"),))) == {"a": "one", "b": "two"}
    assert where(held("one", ["a"], error="connect"), Known()) == {"a": "one", "b": "/p/two"}
    assert where(held("one", []), Known()) == {"a": "/p/two", "b": "/p/two"}


def test_an_entry_is_in_the_list_or_it_is_not() -> None:
    """One model asked for by id is found exactly where the list has it."""
    for caller in (ANYONE, Caller(kind="virtual", models=("gpt-*",)), Caller(kind="virtual", providers=("local",))):
        whole = set(ids(listed(SHELF, CONFIG, caller, LIST, {})))
        every = {id for have in HAVE.values() for id in have} | {"none", ""}
        assert {id for id in every if offered(SHELF, CONFIG, caller, LIST, {}, id) is not None} == whole


def test_a_provider_that_was_never_heard_is_stood_in_for() -> None:
    """Until there is a list of its own, what is known of a provider is shown as shipped; an empty list is a list."""
    known = Known((Model(id="old"),), NOW - timedelta(days=40))
    one = CONFIG.providers["openai"]
    assert {offer.source for offer in stock(one, None, known).offers.values()} == {"shipped"}
    failed = stock(one, held("openai", None, error="status 401"), known)
    assert (list(failed.offers), failed.offers["old"].age_s(NOW)) == (["old"], 40 * 86_400)
    own = stock(one, held("openai", ["new"], error="timeout"), known)
    assert (list(own.offers), own.offers["new"].source, own.offers["new"].age_s(NOW)) == (["new"], "provider", 3 * 3600)
    assert list(stock(one, held("openai", []), known).offers) == []


def test_the_shipped_list_is_that_of_the_providers_own_book() -> None:
    """Each publisher's models stand in for its own provider; a local server gets nobody's; the demo has its one."""
    known = known_models("farebox-demo")
    openai = {model.id for model in known(CONFIG.providers["openai"]).models}
    claude = {model.id for model in known(CONFIG.providers["claude"]).models}
    assert "gpt-4o" in openai
    assert any(id.startswith("claude-") for id in claude)
    assert not openai & claude
    assert known(CONFIG.providers["local"]) == Known()
    elsewhere = provider("openai", "http://gpu.example:8000/v1")
    assert known(elsewhere) == Known(), "vLLM behind the plain dialect is not OpenAI"
    assert {model.id for model in known(replace(elsewhere, price_book="openai")).models} == openai
    assert [model.id for model in known(provider("demo", "http://127.0.0.1:9/v1")).models] == ["farebox-demo"]


# -- shapes --------------------------------------------------------------------------------------

QUOTE = Quote(
    price_id="openai/gpt-5/x",
    input_usd_per_mtok=Decimal("1.250"),
    output_usd_per_mtok=Decimal("1E+1"),
    cache_read_usd_per_mtok=Decimal("0.000000000125"),
    cache_write_usd_per_mtok=None,
    context_window=400_000,
    max_output_tokens=128_000,
)


def offer(model: Model, quote: Quote | None = None) -> Offer:
    had = structs.replace(held("openai", []), models=[model])
    return stock(CONFIG.providers["openai"], had, Known(), {model.id: quote}).offers[model.id]


def test_openais_shape_with_exact_prices() -> None:
    """Prices are decimal strings to the last digit, no exponent; the book fills in limits the provider leaves open."""
    assert shapes.openai_model(offer(Model(id="gpt-5", created=7, owned_by="system"), QUOTE), NOW) == {
        "id": "gpt-5",
        "object": "model",
        "created": 7,
        "owned_by": "system",
        "provider": "openai",
        "routed": True,
        "context_length": 400_000,
        "max_output_tokens": 128_000,
        "pricing": {
            "input_usd_per_mtok": "1.25",
            "output_usd_per_mtok": "10",
            "cache_read_usd_per_mtok": "0.000000000125",
        },
        "source": "provider",
        "age_s": 3 * 3600,
    }


def test_what_is_not_known_is_null_and_never_zero() -> None:
    """A model without a price has none in the list, and the provider's own limits win over the book's."""
    bare = shapes.openai_model(offer(Model(id="m")), NOW)
    assert (bare["pricing"], bare["context_length"], bare["max_output_tokens"]) == (None, None, None)
    assert (bare["created"], bare["owned_by"]) == (0, "openai")
    own = shapes.openai_model(offer(Model(id="m", context_length=5, max_output_tokens=4), QUOTE), NOW)
    assert (own["context_length"], own["max_output_tokens"]) == (5, 4)


def test_anthropics_shape() -> None:
    """Its SDK's required members are there; an unknown date is the epoch, as Anthropic's reference has it."""
    shown = shapes.anthropic_model(offer(Model(id="m", created=1763942400, display_name="M"), QUOTE), NOW)
    assert (shown["type"], shown["display_name"], shown["created_at"]) == ("model", "M", "2025-11-24T00:00:00Z")
    assert (shown["max_input_tokens"], shown["max_tokens"]) == (400_000, 128_000)
    bare = shapes.anthropic_model(offer(Model(id="m")), NOW)
    assert (bare["display_name"], bare["created_at"]) == ("m", "1970-01-01T00:00:00Z")


MANY = [offer(Model(id=f"m{number}")) for number in range(57)]


@given(st.integers(0, 57), st.integers(1, 60), st.booleans())
def test_pages_make_up_the_list(number: int, limit: int, backwards: bool) -> None:
    """Following last_id forwards or first_id backwards gives every model once, in order, and has_more ends it."""
    offers = MANY[:number]
    found: list[str] = []
    query = {"limit": str(limit)}
    if backwards and offers:
        query["before_id"] = offers[-1].model.id
        found = [offers[-1].model.id]
    while True:
        page = shapes.anthropic_list(offers, query, NOW)
        got = [model["id"] for model in page["data"]]
        assert len(got) <= limit
        assert (page["first_id"], page["last_id"]) == ((got[0], got[-1]) if got else (None, None))
        found = got + found if backwards else found + got
        if not page["has_more"]:
            break
        query |= {"before_id": page["first_id"]} if backwards else {"after_id": page["last_id"]}
    assert found == ids(offers)


@pytest.mark.parametrize(
    "query", [{"limit": "0"}, {"limit": "1001"}, {"limit": "x"}, {"limit": "-1"}, {"after_id": "?"}, {"before_id": "?"}]
)
def test_a_page_that_is_none_is_refused(query: dict[str, str]) -> None:
    """A limit out of range and an unknown cursor are the caller's mistakes, named."""
    with pytest.raises(BadRequest) as caught:
        shapes.anthropic_list(MANY, query, NOW)
    assert caught.value.param in query


def test_the_refusal_of_an_unknown_model_is_short() -> None:
    """It has OpenAI's code, and quotes no more of an id than fits a line."""
    refusal = shapes.not_listed("x" * 5000)
    assert isinstance(refusal, ModelNotAllowed)
    assert len(refusal.message) < 250


# -- paths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "target", "asked"),
    [
        ("GET", "/v1/models", ""),
        ("HEAD", "/v1/models", ""),
        ("GET", "/v1/models/", ""),
        ("GET", "/v1/models?limit=5", ""),
        ("GET", "/v1//models", ""),
        ("GET", "/v1/%6dodels", ""),
        ("GET", "/v1/Models;v=1", ""),
        ("GET", "/v1/models/gpt-5", "gpt-5"),
        ("GET", "/v1/models/openai/gpt-5:free", "openai/gpt-5:free"),
        ("GET", "/v1/models/openai%2Fgpt-5?x=y", "openai/gpt-5"),
        ("GET", "/v1/models/a/b/c/d/e/f/g/h/i", "a/b/c/d/e/f/g/h/i"),
        ("GET", "http://h/v1/models/m", "m"),
        ("DELETE", "/v1/models/ft:gpt-4o", None),
        ("POST", "/v1/models", None),
        ("GET", "/v1/modelsx", None),
        ("GET", "/v1/files/models", None),
        ("GET", "/p/openai/models", None),
        ("GET", "/p/openai/v1/models", None),
    ],
)
def test_which_requests_ask_for_models(method: str, target: str, asked: str | None) -> None:
    """Reading the routed list or an entry, however the path is spelt; a named provider's list is its own."""
    assert paths.asked_model(method, paths.parse(method, target)) == asked
