"""One scale for every provider's usage object, errors by their words, values that may be anything."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farebox.dialects import PROFILES, Profile
from farebox.dialects.faults import Fault, read_error_body, read_fault
from farebox.dialects.usage import MEMBERS_MAX, is_skeleton, merge, read_usage
from farebox.dialects.values import TEXT_MAX, TOKENS_MAX, count, money, text, word
from farebox.records import Operation, Usage

fixed = settings(derandomize=True, database=None, deadline=None, max_examples=100)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.decimals(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
USAGE_NAMES = st.sampled_from(
    [
        *("prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens", "reasoning_tokens"),
        *("prompt_tokens_details", "completion_tokens_details", "cached_tokens", "cache_read_input_tokens", "cost"),
        *("cache_creation", "cache_creation_input_tokens", "tokens", "server_tool_use", "cost_in_usd_ticks"),
    ]
)


def settle(
    raw: dict[str, Any], operation: Operation = "chat", *, profile: str = "openai", model: str | None = None
) -> Usage:
    return read_usage(raw, operation=operation, profile=PROFILES[profile], model=model).usage


def in_out(
    raw: dict[str, Any], operation: Operation = "chat", *, profile: str = "openai", model: str | None = None
) -> tuple[int | None, int | None]:
    usage = settle(raw, operation, profile=profile, model=model)
    return usage.input_tokens, usage.output_tokens


def chat(prompt: Any, completion: Any, total: Any = None, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total, **more}


# Values


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        *((0, 0), (12, 12), (12.0, 12), (Decimal("12.0"), 12), ("12", 12), (" 12 ", 12), ("1e2", 100)),
        *((2.5, 3), (TOKENS_MAX, TOKENS_MAX)),
        *((-1, None), ("-1", None), (True, None), (None, None), ("", None), ("many", None), ([], None), ({}, None)),
        *((float("nan"), None), (float("inf"), None), ("Infinity", None), (2**64, None), (TOKENS_MAX + 1, None)),
        *((Decimal("1e999999"), None), ("9" * 5000, None), ("1e999999999999999999999", None)),
        (Decimal("1e-999999"), 0),
    ],
)
def test_count(value: Any, wanted: int | None) -> None:
    """Whole numbers in any spelling count; negative, endless and absurd ones are not reported."""
    assert count(value) == wanted


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        *((0, "0"), (Decimal("0.00571"), "0.00571"), ("0.1", "0.1"), (Decimal("8.1e-05"), "0.000081"), (3, "3")),
        (Decimal("1.00000000000000000000000004"), "1.00000000000000000000"),
        *((-1, None), (True, None), (Decimal("1e13"), None), ("nan", None), (None, None), ({}, None)),
    ],
)
def test_money(value: Any, wanted: str | None) -> None:
    """Amounts stay exact to twenty places and are never written with an exponent."""
    amount = money(value)
    assert (None if amount is None else str(amount)) == wanted


@fixed
@given(value=ANYTHING)
def test_values_never_raise(value: Any) -> None:
    """Whatever a provider sends, reading it gives a clean value or nothing."""
    counted, amount, named, said = count(value), money(value), word(value), text(value)
    assert counted is None or 0 <= counted <= TOKENS_MAX
    assert amount is None or amount >= 0
    assert named is None or " " not in named
    assert said is None or (0 < len(said) <= TEXT_MAX and said.isprintable())


def test_words_hold_no_sentences() -> None:
    """An error code is kept, a message in its place (it could quote a prompt) is not."""
    assert word("rate_limit_exceeded") == "rate_limit_exceeded"
    assert word(429) == "429"
    assert word("your prompt 'my secret' is too long") is None
    assert word("x" * 129) is None


def test_text_is_clean() -> None:
    """Names lose control characters and half surrogates and have an end."""
    assert text("gpt\x00-4\n") == "gpt-4"
    assert text("a\ud800b") == "a?b"
    assert text("x" * 1000) == "x" * TEXT_MAX
    assert text("") is None
    assert text("\x00") is None


# What input and output include


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (chat(10, 5, 15), (10, 5)),
        (chat(10, 5), (10, 5)),
        (chat("10", 5.0, "15"), (10, 5)),
        (chat(10, None, 10), (10, None)),
        (chat(None, 5), (None, 5)),
        (chat(0, 0, 0), (0, 0)),
        (chat(-3, 5, 15), (None, 5)),
        ({"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}, (10, 5)),
    ],
)
def test_plain_counts(raw: dict[str, Any], wanted: tuple[int | None, int | None]) -> None:
    """Input and output are as reported; what is missing or nonsense stays unreported, a zero stays zero."""
    assert in_out(raw) == wanted


@pytest.mark.parametrize(
    ("total", "wanted"),
    [(30, 20), (37, 27), (None, 20), (31, 20)],
    ids=["inside", "beside", "no total", "total explains nothing"],
)
def test_reasoning_by_the_total(total: int | None, wanted: int) -> None:
    """Reasoning is added to the output exactly if the total says that it was left out."""
    raw = chat(10, 20, total, completion_tokens_details={"reasoning_tokens": 7})
    usage = settle(raw)
    assert (usage.output_tokens, usage.reasoning_tokens) == (wanted, 7)


def test_reasoning_larger_than_the_output() -> None:
    """Without a total, reasoning that exceeds the output cannot be inside it; against one it is cut to it."""
    details = {"completion_tokens_details": {"reasoning_tokens": 50}}
    assert settle(chat(10, 20, **details)).output_tokens == 70
    usage = settle(chat(10, 20, 30, **details))
    assert (usage.output_tokens, usage.reasoning_tokens) == (20, 20)


def test_reasoning_by_the_profile() -> None:
    """`additive` always adds, `included` never does, whatever the total says."""
    raw = chat(10, 20, 30, reasoning_tokens=7)
    additive = Profile(name="x", reasoning="additive")
    included = Profile(name="x", reasoning="included")
    for total in (None, 30, 37):
        raw["total_tokens"] = total
        added = read_usage(raw, operation="chat", profile=additive, model=None)
        assert (added.usage.output_tokens, added.unexplained) == (27, None if total is None else 0)
        assert read_usage(raw, operation="chat", profile=included, model=None).usage.output_tokens == 20


@pytest.mark.parametrize("profile", ["perplexity", "openai"])
def test_perplexity_research(profile: str) -> None:
    """Deep research reports reasoning beside output and total, and bills citations and searches."""
    raw = chat(1001, 2373, 3374, citation_tokens=8834, num_search_queries=19, reasoning_tokens=220303)
    usage = settle(raw, profile=profile)
    assert (usage.input_tokens, usage.output_tokens, usage.reasoning_tokens) == (1001, 222676, 220303)
    assert usage.units == {"web_searches": 19, "citation_tokens": 8834}
    for known_by in ("citation_tokens", "num_search_queries"):
        assert in_out(chat(10, 5, 15, reasoning_tokens=3, **{known_by: 1}), profile=profile) == (10, 8)


@pytest.mark.parametrize(
    ("profile", "model"),
    [("google", "x"), ("vertex", None), ("openai", "gemini-2.5-flash"), ("openai", "google/gemini-3")],
)
def test_hidden_thinking(profile: str, model: str | None) -> None:
    """Where thinking is known to hide in the total, it is output: by dialect, or by the answer's model."""
    assert in_out(chat(7, 12, 402), profile=profile, model=model) == (7, 395)
    assert in_out(chat(7, 12, 19), profile=profile, model=model) == (7, 12)
    assert in_out(chat(7, None, 25), profile=profile, model=model) == (7, 18)


def test_unexplained_total() -> None:
    """Elsewhere a total that does not add up changes nothing and is told."""
    account = read_usage(chat(7, 12, 402), operation="chat", profile=PROFILES["openai"], model="m")
    assert (account.usage.input_tokens, account.usage.output_tokens, account.unexplained) == (7, 12, 383)
    account = read_usage(chat(7, 12, 4), operation="chat", profile=PROFILES["openai"], model="m")
    assert (account.usage.input_tokens, account.usage.output_tokens, account.unexplained) == (7, 12, -15)


def test_audio_outside_the_input() -> None:
    """Voxtral counts audio beside the prompt: the total shows it, and the seconds are a unit."""
    raw = chat(9, 248, 632, prompt_audio_seconds=3, prompt_tokens_details={"cached_tokens": 0, "audio_tokens": 375})
    usage = settle(raw)
    assert (usage.input_tokens, usage.output_tokens, usage.audio_input_tokens) == (384, 248, 375)
    assert usage.units == {"seconds": 3}


@pytest.mark.parametrize(
    ("total", "wanted"),
    [(115, (100, 40, 20)), (155, (140, 40, 20)), (135, (120, 40, 20)), (175, (160, 40, 20)), (None, (100, 40, 20))],
    ids=["inside", "reads beside", "writes beside", "both beside", "no total"],
)
def test_caches_by_the_total(total: int | None, wanted: tuple[int, int, int]) -> None:
    """Cache reads and writes are added to the input exactly if the total says that they were left out."""
    raw = chat(100, 15, total, cache_read_input_tokens=40, cache_created_input_tokens=20)
    usage = settle(raw)
    assert (usage.input_tokens, usage.cache_read_tokens, usage.cache_write_tokens) == wanted


def test_more_cached_than_prompt() -> None:
    """More cached than prompt tokens: beside the prompt without a total, unreported against one."""
    details = {"prompt_tokens_details": {"cached_tokens": 161}}
    usage = settle(chat(7, 8, **details))
    assert (usage.input_tokens, usage.cache_read_tokens) == (168, 161)
    usage = settle(chat(7, 8, 15, **details))
    assert (usage.input_tokens, usage.cache_read_tokens) == (7, None)
    usage = settle(chat(7, 8, 176, **details))
    assert (usage.input_tokens, usage.cache_read_tokens) == (168, 161)


@pytest.mark.parametrize(
    "members",
    [
        {"prompt_tokens_details": {"cached_tokens": 4}},
        {"prompt_token_details": {"cached_tokens": 4}},
        {"prompt_tokens_details": {"cached_tokens": 0}, "prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": 6},
        {"prompt_tokens_details": None, "cached_tokens": 4},
        {"num_cached_tokens": 4},
        {"cache_read_input_tokens": 4},
    ],
    ids=["openai", "mistral", "deepseek", "together", "mistral stream", "databricks"],
)
def test_spellings_of_cache_reads(members: dict[str, Any]) -> None:
    """However a provider spells its cache reads, they are found, inside the input."""
    usage = settle(chat(10, 5, 15, **members))
    assert (usage.input_tokens, usage.cache_read_tokens) == (10, 4)


@pytest.mark.parametrize("side", ["prompt_tokens", "prompt_token", "input_tokens", "input_token"])
def test_spellings_of_input_details(side: str) -> None:
    """Details of the input are found under each of the four names that are in use."""
    usage = settle(chat(10, 5, 15, **{f"{side}_details": {"cached_tokens": 4, "audio_tokens": 2}}))
    assert (usage.input_tokens, usage.cache_read_tokens, usage.audio_input_tokens) == (10, 4, 2)


@pytest.mark.parametrize("side", ["completion_tokens", "completion_token", "output_tokens", "output_token"])
@pytest.mark.parametrize("name", ["reasoning_tokens", "thinking_tokens"])
def test_spellings_of_output_details(side: str, name: str) -> None:
    """Details of the output are found under each of the four names, reasoning under both of its own."""
    usage = settle(chat(10, 5, 15, **{f"{side}_details": {name: 3, "audio_tokens": 1}}))
    assert (usage.output_tokens, usage.reasoning_tokens, usage.audio_output_tokens) == (5, 3, 1)


@pytest.mark.parametrize(
    "members",
    [
        {"prompt_tokens_details": {"cache_write_tokens": 4}},
        {"prompt_tokens_details": {"cache_creation_tokens": 4}},
        {"prompt_tokens_details": {"created_cache_tokens": 4}},
        {"created_cache_tokens": 4},
        {"cache_creation_input_tokens": 4},
        {"cache_created_input_tokens": 4},
        {"cache_creation": {"ephemeral_5m_input_tokens": 4}},
    ],
)
def test_spellings_of_cache_writes(members: dict[str, Any]) -> None:
    """However a provider spells its cache writes, they are found, inside the input."""
    usage = settle(chat(10, 5, 15, **members))
    assert (usage.input_tokens, usage.cache_write_tokens) == (10, 4)


def test_audio_beside_its_details() -> None:
    """Mistral's and Azure's audio count at the root is read like the one in the details."""
    assert settle(chat(10, 5, 15, audio_prompt_tokens=2)).audio_input_tokens == 2


@pytest.mark.parametrize(
    "name", ["prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "total_tokens"]
)
def test_skeletons(name: str) -> None:
    """Zeros alone are a skeleton, whatever they are called; one count above zero makes a report of them."""
    zeros = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    assert is_skeleton({name: 0})
    assert not is_skeleton({**zeros, name: 1})


def test_hits_and_misses_make_the_prompt() -> None:
    """DeepSeek's hits and misses stand in for a prompt count that is missing."""
    raw = {"completion_tokens": 5, "prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": 6}
    assert in_out(raw) == (10, 5)


def test_cache_writes_by_lifetime() -> None:
    """Writes that live an hour or longer are known apart, in both spellings."""
    raw = {
        "input_tokens": 100,
        "input_tokens_details": {
            "cached_tokens": 0,
            "cache_write_tokens": 30,
            "cache_write_tokens_details": {"ttl_30m_tokens": 10, "ttl_12h_tokens": 20},
        },
        "output_tokens": 5,
        "total_tokens": 105,
    }
    usage = settle(raw, "responses")
    assert (usage.cache_write_tokens, usage.cache_write_1h_tokens) == (30, 20)
    creation = {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20}
    usage = settle(chat(100, 5, 105, cache_creation=creation))
    assert (usage.cache_write_tokens, usage.cache_write_1h_tokens) == (30, 20)


def test_modalities() -> None:
    """Audio and image tokens are kept beside the sums, which include them."""
    usage = settle(
        chat(
            204,
            162,
            366,
            prompt_tokens_details={"audio_tokens": 142, "image_tokens": 3},
            completion_tokens_details={"audio_tokens": 125, "image_tokens": 2},
        )
    )
    assert (usage.input_tokens, usage.output_tokens) == (204, 162)
    assert (usage.audio_input_tokens, usage.audio_output_tokens, usage.image_tokens) == (142, 125, 5)


# Messages


def test_messages_sum_three_inputs() -> None:
    """Anthropic's input is what was neither read from nor written to a cache: the three are added."""
    raw = {
        "input_tokens": 11,
        "cache_creation_input_tokens": 200,
        "cache_read_input_tokens": 100,
        "cache_creation": {"ephemeral_5m_input_tokens": 150, "ephemeral_1h_input_tokens": 50},
        "output_tokens": 55,
        "output_tokens_details": {"thinking_tokens": 20},
        "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 1},
    }
    usage = settle(raw, "messages")
    assert (usage.input_tokens, usage.output_tokens, usage.reasoning_tokens) == (311, 55, 20)
    assert (usage.cache_read_tokens, usage.cache_write_tokens, usage.cache_write_1h_tokens) == (100, 200, 50)
    assert usage.units == {"web_searches": 2}


def test_messages_from_elsewhere() -> None:
    """An imitation's partial object is read as far as it goes, by the members it has."""
    assert in_out({"input_tokens": 10, "output_tokens": 0}, "messages") == (10, 0)
    assert in_out({"output_tokens": 3}, "messages") == (None, 3)
    assert in_out(chat(9, 2, 11, input_tokens=5, output_tokens=2, cache_read_input_tokens=4), "messages") == (9, 2)
    assert in_out(chat(9, 2, 11), "messages") == (9, 2)
    assert in_out(chat(5, 2, input_tokens=5, output_tokens=2, cache_read_input_tokens=4), "messages") == (9, 2)
    for cached in ("cache_read_input_tokens", "cache_creation_input_tokens"):
        assert in_out({"input_tokens": 5, "output_tokens": 2, cached: 4}, "chat") == (9, 2)
    details = {"reasoning_tokens": 2}
    assert settle({"input_tokens": 5, "output_tokens": 3, "output_tokens_details": details}, "messages") == Usage(
        input_tokens=5, output_tokens=3, reasoning_tokens=2
    )


# Other shapes


def test_embeddings_have_no_output() -> None:
    """Embeddings use no output tokens, also where only a total is reported."""
    assert in_out({"total_tokens": 8}, "embeddings") == (8, 0)
    assert in_out({"prompt_tokens": 8, "total_tokens": 8}, "embeddings") == (8, 0)
    assert in_out({"total_tokens": 8}, "chat") == (None, None)


def test_cohere_counts_what_was_processed() -> None:
    """Cohere's own object bills fewer tokens than it processed; what was processed is the count."""
    raw = {"billed_units": {"input_tokens": 12}, "tokens": {"input_tokens": 614, "output_tokens": 13}}
    assert in_out(raw) == (614, 13)


@pytest.mark.parametrize(
    ("members", "wanted"),
    [
        ({"cost": Decimal("0.00024375")}, "0.00024375"),
        ({"cost": 0}, "0"),
        ({"cost": {"total_cost": Decimal("0.00571"), "request_cost": Decimal("0.005")}}, "0.00571"),
        ({"cost": {"total_cost": 0}}, None),
        ({"cost_in_usd_ticks": 160708500}, "0.01607085"),
        ({"cost_in_usd_ticks": 0}, None),
        ({"cost_in_usd_ticks": 12_345_678_901_234}, "1234.5678901234"),
        ({"cost_in_usd_ticks": -1}, None),
        ({"cost_in_usd_ticks": Decimal("1e999999")}, None),
        ({"estimated_cost": Decimal("0.1")}, "0.1"),
        ({"cost": "free"}, None),
        ({}, None),
    ],
)
def test_provider_cost(members: dict[str, Any], wanted: str | None) -> None:
    """The provider's own price is kept exactly; placeholders of zero are not a price."""
    cost = settle(chat(1, 1, 2, **members)).provider_cost_usd
    assert (None if cost is None else str(cost)) == wanted


def test_searches_in_other_spellings() -> None:
    """OpenRouter and xAI count their searches in places of their own."""
    assert settle(chat(1, 1, 2, server_tool_use_details={"web_search_requests": 3})).units == {"web_searches": 3}
    hosted = {"web_search_calls": 2, "x_search_calls": 1}
    raw = chat(1, 1, 2, server_side_tool_usage_details=hosted, num_sources_used=4)
    assert settle(raw).units == {"web_searches": 2, "x_searches": 1, "sources": 4}


# Snapshots


def test_last_word_wins_by_field() -> None:
    """A later snapshot overwrites what it reports, at every depth, and leaves the rest."""
    start = {"input_tokens": 10, "output_tokens": 1, "cache_creation": {"ephemeral_1h_input_tokens": 5}, "tier": "x"}
    delta = {"input_tokens": None, "output_tokens": 30, "cache_creation": {"ephemeral_5m_input_tokens": 2}}
    assert merge(start, delta) == {
        "input_tokens": 10,
        "output_tokens": 30,
        "cache_creation": {"ephemeral_1h_input_tokens": 5, "ephemeral_5m_input_tokens": 2},
        "tier": "x",
    }


def test_zero_does_not_replace_a_count() -> None:
    """A skeleton of zeros after a real count changes nothing; before one it is overwritten."""
    assert merge(chat(7, 3, 10), chat(0, 0, 0)) == chat(7, 3, 10)
    assert merge(chat(0, 0, 0), chat(7, 3, 10)) == chat(7, 3, 10)
    assert is_skeleton(chat(0, 0, 0))
    assert not is_skeleton(chat(0, 3, 3))
    assert not is_skeleton({"cost": 0})


def test_merge_is_bounded() -> None:
    """A usage object that keeps growing new members stops growing."""
    grown: dict[str, Any] = {}
    for number in range(MEMBERS_MAX + 50):
        grown = merge(grown, {f"m{number}": 1})
    assert len(grown) == MEMBERS_MAX


@fixed
@given(
    objects=st.lists(st.dictionaries(USAGE_NAMES, ANYTHING | st.integers(0, 100), max_size=6), max_size=4),
    operation=st.sampled_from(["chat", "responses", "messages", "embeddings"]),
    profile=st.sampled_from(sorted(PROFILES)),
)
def test_usage_never_raises(objects: list[dict[str, Any]], operation: Operation, profile: str) -> None:
    """Whatever stands in usage objects, the result is clean: parts never exceed the whole they are inside of."""
    merged: dict[str, Any] = {}
    for one in objects:
        merged = merge(merged, one)
    usage = settle(merged, operation, profile=profile, model="m")
    if usage.input_tokens is not None:
        assert (usage.cache_read_tokens or 0) + (usage.cache_write_tokens or 0) <= usage.input_tokens
    if usage.output_tokens is not None and operation != "messages":
        assert (usage.reasoning_tokens or 0) <= usage.output_tokens


# Errors


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (
            {"error": {"message": "m", "type": "requests", "code": "rate_limit_exceeded"}},
            ("requests", "rate_limit_exceeded"),
        ),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "m"}}, ("overloaded_error", None)),
        ({"error": {"code": 402, "message": "m"}}, (None, "402")),
        ([{"error": {"code": 400, "status": "INVALID_ARGUMENT"}}], ("INVALID_ARGUMENT", "INVALID_ARGUMENT")),
        ({"error": "Input too long for you", "error_type": "validation"}, ("validation", None)),
        ({"error": "Incorrect key", "code": "invalid-argument"}, (None, "invalid-argument")),
        ({"object": "error", "type": "BadRequestError", "code": 400}, ("BadRequestError", "400")),
        ({"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "m"}, (None, "REQUEST_LIMIT_EXCEEDED")),
        ({"detail": [{"type": "extra_forbidden", "loc": ["body"]}]}, ("extra_forbidden", None)),
        ({"detail": "Invalid API Key"}, (None, None)),
        (*("text",), (None, None)),
        ([], (None, None)),
    ],
)
def test_error_bodies(body: Any, wanted: tuple[str | None, str | None]) -> None:
    """The kind of an error is read in every known shape, and a sentence is never taken for it."""
    assert read_error_body(body) == Fault(*wanted)


@pytest.mark.parametrize("error", [None, False, "", {}, []])
def test_empty_errors_are_none(error: Any) -> None:
    """A member `error` that says nothing is no error."""
    assert read_fault({"error": error}) is None


# Profiles


def test_profiles_are_named() -> None:
    """Each profile goes by its own name, and what always sends usage is never asked for it."""
    for name, profile in PROFILES.items():
        assert profile.name == name
    for name in ("mistral", "openrouter", "perplexity", "cohere"):  # they refuse to be asked, or need not be
        assert PROFILES[name].stream_options == "skip"
    assert PROFILES["anthropic"].family == "anthropic"
    assert PROFILES["mistral"].stream_options == "skip"
