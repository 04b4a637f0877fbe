"""Bounds: the most a request can use, in tokens, whatever is in it; or the reason why nobody can say."""

from __future__ import annotations

import json
import random
from typing import Any
from unicodedata import normalize

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farebox.bounds import TOKENS_MAX, Bound, bound_of, longest_output, plain, refine
from farebox.bounds.contents import Contents
from farebox.bounds.growth import growth_of
from farebox.records import Operation
from farebox.request import read_facts
from farebox.tokens import Tokens

fixed = settings(derandomize=True, database=None, deadline=None, max_examples=60)
TOKENS = Tokens()
UNLIMITED = 5_000
"""What the model is said to be able to write."""


def bounded(operation: Operation, request: Any, **more: Any) -> Bound:
    body = request if isinstance(request, bytes) else json.dumps(request, ensure_ascii=False).encode()
    asked = {"max_output": UNLIMITED, "assumed_max_output": 777, **more}
    return bound_of(operation, body, read_facts(operation, body), **asked)


def chat(content: Any = "hi", **more: Any) -> dict[str, Any]:
    return {"model": "gpt-5", "messages": [{"role": "user", "content": content}], **more}


def messages(content: Any = "hi", **more: Any) -> dict[str, Any]:
    return {"model": "claude-x", "max_tokens": 10, "messages": [{"role": "user", "content": content}], **more}


def responses(input: Any = "hi", **more: Any) -> dict[str, Any]:
    return {"model": "gpt-5", "input": input, **more}


# -- what is written -------------------------------------------------------------------------------

ODD = [-1, 0, 1e18, "5", 5.5, True, False, [], [7], {}, -(2**70), float("nan"), float("inf"), "abc", "-1"]


@pytest.mark.parametrize("odd", ODD, ids=repr)
@pytest.mark.parametrize(
    ("operation", "request_", "name"),
    [
        ("chat", chat(), "max_tokens"),
        ("chat", chat(max_tokens=7), "max_completion_tokens"),
        ("chat", chat(max_tokens=7), "n_predict"),
        ("completions", {"prompt": "hi"}, "max_tokens"),
        ("responses", responses(), "max_output_tokens"),
        ("messages", messages(), "max_tokens"),
    ],
)
def test_an_odd_limit_counts_as_none(operation: Operation, request_: Any, name: str, odd: Any) -> None:
    """A limit that is no plain whole number above 0 leaves all that the model can write, or the body is unreadable."""
    bound = bounded(operation, {**request_, name: odd})
    assert bound.output_tokens == UNLIMITED or bound.reason == "a body farebox cannot read"
    assert bound.output_tokens >= UNLIMITED


@pytest.mark.parametrize("huge", [2**63 - 1, 2**63, 2**64, 2**70, 10**400])
def test_a_huge_limit_is_a_huge_bound(huge: int) -> None:
    """A whole number that nothing can hold is capped, never wrapped, and fits a bigint many times over."""
    bound = bounded("chat", chat(max_tokens=huge, n=9))
    assert bound.output_tokens == TOKENS_MAX
    assert 0 < TOKENS_MAX * 10**6 < 2**63


@pytest.mark.parametrize("odd", [odd for odd in ODD if odd == odd and odd not in (float("inf"),)], ids=repr)
@pytest.mark.parametrize("name", ["n", "best_of"])
def test_an_odd_number_of_answers_has_no_bound(name: str, odd: Any) -> None:
    """A server that reads "5" as 5 would write five answers: there is no telling."""
    assert bounded("completions", {"prompt": "hi", "max_tokens": 9, name: odd}).reason is not None


@pytest.mark.parametrize(
    ("operation", "request_", "tokens"),
    [
        ("chat", chat(max_tokens=100, n=3), 300),
        ("chat", chat(max_tokens=100, max_completion_tokens=20), 100),
        ("chat", chat(max_tokens=None, max_completion_tokens=20), 20),
        ("chat", chat(max_output_tokens=20), UNLIMITED),
        ("chat", chat(max_tokens=7, n_predict=20, max_new_tokens=None), 20),
        ("chat", chat(max_tokens=7, n_predict=3), 7),
        ("chat", chat(n=None), UNLIMITED),
        ("chat", chat(best_of=3, max_tokens=5), 15),
        ("chat", chat(), UNLIMITED),
        ("completions", {"prompt": ["a", "b"], "max_tokens": 10, "n": 2, "best_of": 5}, 100),
        ("completions", {"prompt": ["a", "b"], "max_tokens": 10, "n": 2}, 40),
        ("completions", {"prompt": [[1, 2], [3]], "max_tokens": 10}, 20),
        ("completions", {"prompt": [1, 2, 3], "max_tokens": 10}, 10),
        ("completions", {"prompt": [], "max_tokens": 10}, 10),
        ("responses", responses(max_output_tokens=50), 50),
        ("responses", responses(max_tokens=50), UNLIMITED),
        ("messages", messages(thinking={"type": "enabled", "budget_tokens": 3000}), 3000),
        ("messages", messages(n=5), 10),
        ("embeddings", {"input": "hi", "max_tokens": 100}, 0),
        ("moderations", {"input": "hi"}, 0),
    ],
    ids=repr,
)
def test_what_may_be_written(operation: Operation, request_: Any, tokens: int) -> None:
    """The largest limit in all its spellings, times the answers, times the prompts."""
    bound = bounded(operation, request_)
    assert (bound.output_tokens, bound.reason) == (tokens, None)


def test_a_prediction_is_charged_beside_the_limit() -> None:
    """What the model rejects of a prediction is billed as output: at most its bytes."""
    prediction = {"type": "content", "content": "x" * 400}
    assert bounded("chat", chat(max_tokens=10, prediction=prediction)).output_tokens >= 410


def test_no_limit_and_no_list() -> None:
    """Where neither the request nor the price list says, the configured assumption counts; reasoning beside adds."""
    assert bounded("chat", chat(), max_output=None).output_tokens == 777
    assert bounded("chat", chat(), max_output=0).output_tokens == 777
    assert bounded("chat", chat(max_tokens=9), reasons_beside=True).output_tokens == UNLIMITED + 9


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        ("gpt-4o-mini", 16_384),
        ("openai/gpt-4o-2024-05-13", 4_096),
        ("ft:gpt-4.1-mini:org:x", 32_768),
        ("gpt-5.2-pro", 272_000),
        ("GPT-5-nano", 128_000),
        ("o3", 100_000),
        ("o1-preview", 32_768),
        ("gemini-2.5-flash", 65_536),
        ("gpt-4", 777),
        ("llama", 777),
        (None, 777),
    ],
)
def test_the_longest_answer(model: str | None, tokens: int) -> None:
    """The price list's word counts first, then the maker's, then the window of the context."""
    assert longest_output(model, listed=None, window=777) == tokens
    assert longest_output(model, listed=5, window=777) == 5
    assert longest_output("llama", listed=0, window=None) is None


# -- what has no bound -----------------------------------------------------------------------------

IMAGE = {"type": "image_url", "image_url": {"url": "https://x/y.png"}}
DOCUMENT = {"type": "document", "source": {"type": "url", "url": "https://x/y.pdf"}}
RESULT = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image", "source": {"type": "base64"}}]}
NO_BOUND: list[tuple[Operation, Any, str]] = [
    ("chat", chat([IMAGE]), "an image"),
    ("chat", chat([{"type": "text", "text": "a"}, {"image_url": {"url": "data:"}}]), "an image"),
    ("chat", chat([{"type": "text", "text": "a", "image_url": "data:"}]), "an image"),
    ("chat", chat(["see", IMAGE]), "an image"),
    ("chat", chat([{"type": "input_audio", "input_audio": {"data": ""}}]), "audio"),
    ("chat", chat([{"type": "file", "file": {"file_id": "file-1"}}]), "a file"),
    ("chat", chat([{"type": "video_url", "video_url": {"url": "x"}}]), "a video"),
    ("chat", chat([{"type": "hologram"}]), "content of a kind farebox does not know"),
    ("chat", chat([{"type": ["text"]}]), "content of a kind farebox does not know"),
    ("chat", chat({"a": 1}), "contents farebox cannot read"),
    ("chat", {"messages": {"role": "user"}}, "contents farebox cannot read"),
    ("chat", {"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}, "audio"),
    ("chat", {"messages": [{"role": "user", "content": "a", "images": ["x"]}]}, "an image"),
    ("chat", chat(modalities=["text", "audio"]), "an answer that is not only text"),
    ("chat", chat(audio={"voice": "alloy"}), "an audio answer"),
    ("chat", chat(web_search_options={"a": 1}), "a web search"),
    ("chat", chat(plugins=[{"id": "web"}]), "a web search"),
    ("chat", chat(search_parameters={"mode": "on"}), "a web search"),
    ("chat", chat(tools=[{"type": "web_search"}]), "a tool the provider runs"),
    ("chat", chat(tools=[{"type": "builtin_function", "function": {}}]), "a tool the provider runs"),
    ("chat", chat(tools=[{"type": 5}]), "a tool the provider runs"),
    ("chat", chat(tools={"type": "function"}), "contents farebox cannot read"),
    ("chat", chat(models=["a", "b"]), "other models the provider may choose"),
    ("chat", chat(route="fallback"), "other models the provider may choose"),
    ("chat", chat(data_sources=[{"type": "azure_search"}]), "context stored at the provider"),
    ("chat", chat(extra_body={"google": {"cached_content": "c"}}), "an option of the provider's own"),
    ("chat", chat(chat_template="{% for i in range(9) %}x{% endfor %}"), "a chat template of the request's own"),
    ("chat", chat(Max_Tokens=10**9), "a member in an odd spelling"),
    ("chat", chat(deferred=True), "a deferred completion"),
    ("chat", {**chat(), "model": "openrouter/auto"}, "other models the provider may choose"),
    ("chat", {**chat(), "model": "perplexity/sonar-pro"}, "a model that searches by itself"),
    ("chat", {**chat(), "model": "gpt-4o-search-preview"}, "a model that searches by itself"),
    ("chat", {**chat(), "model": "groq/compound-mini"}, "a model that searches by itself"),
    ("responses", responses(previous_response_id="resp_1"), "previous_response_id"),
    ("responses", responses(conversation="conv_1"), "a stored conversation"),
    ("responses", responses(prompt={"id": "pmpt_1"}), "a stored prompt"),
    ("responses", responses(background=True), "a background response"),
    ("responses", responses([{"type": "item_reference", "id": "msg_1"}]), "an item stored at the provider"),
    ("responses", responses([{"id": "msg_1"}]), "an item stored at the provider"),
    ("responses", responses([{"type": "reasoning", "id": "rs_1", "summary": []}]), "an item stored at the provider"),
    ("responses", responses([{"type": "web_search_call", "id": "ws"}]), "the result of a tool the provider runs"),
    ("responses", responses([{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]), "a file"),
    ("responses", responses([{"role": "user", "content": [{"type": "input_file", "file_url": "f"}]}]), "a file"),
    ("responses", responses([{"type": "computer_call_output", "output": {}}]), "an image"),
    (
        "responses",
        responses([{"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image"}]}]),
        "an image",
    ),
    ("responses", responses([{"type": "compaction", "encrypted_content": "x"}]), "a compacted context"),
    ("responses", responses(context_management=[{"type": "compaction"}]), "context management"),
    *[
        ("responses", responses(tools=[{"type": kind}]), "a tool the provider runs")
        for kind in ("web_search", "file_search", "code_interpreter", "mcp", "image_generation", "computer_use_preview")
    ],
    ("messages", messages([DOCUMENT]), "a file"),
    ("messages", messages([{"type": "image", "source": {"type": "base64", "data": ""}}]), "an image"),
    ("messages", messages([RESULT]), "an image"),
    ("messages", messages([{"type": "container_upload", "file_id": "f"}]), "a file"),
    (
        "messages",
        messages([{"type": "web_search_tool_result", "content": []}]),
        "the result of a tool the provider runs",
    ),
    ("messages", messages(tools=[{"type": "web_search_20250305", "name": "web_search"}]), "a tool the provider runs"),
    ("messages", messages(tools=[{"type": "computer_20250124", "name": "computer"}]), "a tool the provider runs"),
    ("messages", messages(mcp_servers=[{"type": "url"}]), "a tool the provider runs"),
    ("messages", messages(container="c"), "a container"),
    ("messages", messages(context_management={"edits": [{"type": "compact_20260112"}]}), "context management"),
    (
        "messages",
        messages(context_management={"edits": [{"type": "compact", "x": "clear_thinking_"}]}),
        "context management",
    ),
    ("messages", messages(system=[{"type": "image"}]), "an image"),
    ("embeddings", {"input": [{"type": "image_url"}]}, "prompts farebox cannot count"),
    ("embeddings", {"messages": [{"role": "user", "content": [IMAGE]}]}, "an image"),
    ("completions", {"prompt": [1, "a"]}, "prompts farebox cannot count"),
    ("completions", {"prompt": {"id": "x"}}, "prompts farebox cannot count"),
    ("other", {"a": 1}, "a path farebox does not meter"),
    ("chat", b"not json", "a body farebox cannot read"),
    ("chat", b"[1]", "a body farebox cannot read"),
    ("chat", b"", "a body farebox cannot read"),
]


@pytest.mark.parametrize(("operation", "request_", "reason"), NO_BOUND, ids=lambda value: repr(value)[:60])
def test_what_has_no_bound(operation: Operation, request_: Any, reason: str) -> None:
    """Whatever costs more than its bytes is named, in words that fit into a message."""
    bound = bounded(operation, request_)
    assert bound.reason == reason
    assert bound.input_tokens > 0


def test_escapes_hide_nothing() -> None:
    """A name or type spelt with escapes is the name all the same."""
    hidden = rb'{"messages":[{"role":"user","content":[{"t\u0079pe":"im\u0061ge_url","image_url":{}}]}]}'
    assert bounded("chat", hidden).reason == "an image"
    assert bounded("responses", rb'{"input":"a","pr\u0065vious_response_id":"r"}').reason == "previous_response_id"


TEXT_PARTS = [
    {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}},
    {"type": "thinking", "thinking": "hm", "signature": "s"},
    {"type": "redacted_thinking", "data": "xyz"},
    {"type": "tool_use", "id": "t", "name": "image", "input": {"type": "image", "image_url": "x", "file": "y"}},
    {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": '"type": "image_url"'}]},
    {"type": "tool_result", "tool_use_id": "t", "content": "plain"},
    {"type": "document", "source": {"type": "text", "data": "words"}},
]
TOOL = {"type": "function", "function": {"name": "draw", "parameters": {"properties": {"image": {"type": "string"}}}}}
ITEMS = [
    {"type": "message", "role": "assistant", "id": "msg_1", "content": [{"type": "output_text", "text": "a"}]},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"image": 1}', "id": "fc_1"},
    {"type": "function_call_output", "call_id": "c", "output": "done"},
    {"type": "custom_tool_call", "call_id": "c", "name": "f", "input": "x"},
    {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"},
    {"role": "user", "content": "a"},
]


@pytest.mark.parametrize(
    ("operation", "request_"),
    [
        ("chat", chat([{"type": "text", "text": "a"}], tools=[TOOL], modalities=["text"], web_search_options=None)),
        ("chat", chat(background=False, models=[], plugins=None, audio=None, route="", extra_body={})),
        ("chat", chat(None, tool_choice="auto", tools=[])),
        ("messages", messages(TEXT_PARTS, system=[{"type": "text", "text": "s"}], tools=[{"name": "f"}])),
        ("messages", messages(context_management={"edits": [{"type": "clear_tool_uses_20250919"}]})),
        ("responses", responses(ITEMS, tools=[{"type": "function", "name": "f"}, {"type": "custom", "name": "g"}])),
        ("responses", responses(prompt=None, previous_response_id=None, conversation=None, background=None)),
        ("embeddings", {"input": ["a", "b"]}),
        ("embeddings", {"input": [[1, 2], [3]]}),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_plain_text_has_a_bound(operation: Operation, request_: Any) -> None:
    """Texts, function tools, their calls and results have a bound, whatever words stand in them."""
    assert bounded(operation, request_).reason is None


NAMES = [
    *("type", "role", "content", "text", "input", "output", "id", "summary", "encrypted_content", "tool_calls"),
    *("thinking", "image_url", "image", "file_id", "audio", "source", "arguments", "cache_control", "annotations"),
]
WORDS = [
    *(
        "text",
        "message",
        "user",
        "tool_use",
        "tool_result",
        "thinking",
        "image_url",
        "document",
        "reasoning",
        "output_text",
    ),
    *("function_call", "function_call_output", "item_reference", "input_image", "input_text", "refusal"),
]


def made_up(draw: random.Random, depth: int) -> Any:
    """A value out of the vocabulary of requests, put together at random."""
    kind = draw.random()
    if depth == 0 or kind < 0.4:
        return draw.choice([None, 1, "a", *WORDS])
    if kind < 0.6:
        return [made_up(draw, depth - 1) for _ in range(draw.randint(0, 2))]
    block = {name: made_up(draw, depth - 1) for name in draw.sample(NAMES, draw.randint(0, 2))}
    return block | ({"type": draw.choice(WORDS)} if draw.random() < 0.8 else {})


def test_the_quick_look_passes_nothing_that_the_walk_would_not() -> None:
    """What the structs of `plain` take for text alone, the walk over every member takes for it too, and as long."""
    draw, passed = random.Random(7), 0
    for number in range(6_000):
        turn = made_up(draw, 3)
        turns = [turn | {"role": "user"} if isinstance(turn, dict) and draw.random() < 0.7 else turn]
        raw = msgspec.Raw(json.dumps(turns).encode())
        rendered = plain.rendered_of(raw, items=number % 2 == 0)
        if rendered is not None:
            passed += 1
            walked = Contents()
            walked.walk(raw)
            assert (walked.reason, walked.rendered) == (None, rendered), turns
    assert passed > 100


# -- what is read ----------------------------------------------------------------------------------


def test_every_character_is_covered_however_it_is_normalised() -> None:
    """A character's bytes in NFC or NFKC are never more than its own and what is added for it, raw or escaped."""
    for block in range(0, 0x110000, 64):
        if 0xD800 <= block < 0xE000:
            continue
        text = "".join(map(chr, range(block, block + 64)))
        if normalize("NFKC", text) == text and normalize("NFC", text) == text:
            continue
        for character in text:
            longest = max(len(normalize(form, character).encode()) for form in ("NFC", "NFKC"))
            raw, escaped = character.encode(), json.dumps(character).encode()
            assert len(raw) + growth_of(raw) >= longest, hex(ord(character))
            assert len(escaped) - 2 + growth_of(escaped) >= longest, hex(ord(character))


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.text(
    'ﷺ㌖é😀\x00\n\\"<|endoftext|>', max_size=60
)


@fixed
@given(ANY_TEXT, st.booleans(), st.sampled_from(["gpt-4o", "gpt-4", "claude-x"]))
def test_no_text_has_more_tokens_than_the_bound(text: str, escaped: bool, model: str) -> None:
    """Whatever is written, raw or escaped: real tokenizers, and any on normalised bytes, stay within the bound."""
    body = json.dumps({**chat(text), "model": model}, ensure_ascii=escaped).encode()
    bound = bounded("chat", body)
    assert TOKENS.estimate_input("chat", model, body).tokens <= bound.input_tokens
    assert len(normalize("NFKC", text).encode()) <= bound.input_tokens
    closer = refine("chat", body, bound, model, TOKENS)
    assert TOKENS.estimate_input("chat", model, body).tokens <= closer.input_tokens <= bound.input_tokens
    assert closer.input_expected <= closer.input_tokens


def test_token_ids_are_counted() -> None:
    """A prompt of token ids has as many tokens as ids, not as digits."""
    one = bounded("completions", {"prompt": [100_000] * 500, "max_tokens": 1}).input_tokens
    two = bounded("completions", {"prompt": [100_000] * 600, "max_tokens": 1}).input_tokens
    assert two - one == 100
    nested = bounded("embeddings", {"input": [[100_000] * 250, [7] * 250]}).input_tokens
    assert 500 <= nested <= one + 10


def test_refining_is_exact_for_openais_own_text() -> None:
    """Where the tokenizer is the maker's own the bound comes down to the count and what templates add."""
    body = json.dumps(chat("word " * 2000)).encode()
    bound = bounded("chat", body)
    closer = refine("chat", body, bound, "gpt-5", TOKENS)
    assert 2000 <= closer.input_tokens < 2500 < bound.input_tokens
    guess = refine("chat", body, bound, "claude-x", TOKENS)
    assert guess.input_tokens == bound.input_tokens and 2000 < guess.input_expected < 4000


@pytest.mark.parametrize(
    "more", [{"documents": ["x" * 9999]}, {"messages": [{"role": "assistant", "reasoning_content": "x" * 9999}]}]
)
def test_refining_does_not_trust_what_it_does_not_count(more: dict[str, Any]) -> None:
    """A member whose text the count leaves out keeps the bound by bytes."""
    body = json.dumps({**chat(), **more}).encode()
    assert refine("chat", body, bounded("chat", body), "gpt-5", TOKENS).input_tokens >= 9999


def test_how_it_asks_to_be_served() -> None:
    """Speed and region are handed on to pricing."""
    bound = bounded("messages", messages(speed="fast", inference_geo="US"))
    assert bound.served == (("speed", "fast"), ("inference_geo", "us"))
    assert bounded("messages", messages(speed=None)).served == ()


@fixed
@given(
    st.sampled_from(["chat", "completions", "responses", "embeddings", "messages", "moderations", "other"]),
    st.binary(max_size=80)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["messages", "content", "type", "role", "input", "tools", "n", "max_tokens", "prompt", "edits"]
                )
                | st.text(max_size=4),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    ).map(lambda value: json.dumps(value).encode()),
)
def test_nothing_makes_it_raise_or_go_below_zero(operation: Operation, body: bytes) -> None:
    """Any bytes give a bound whose numbers are whole, not negative and storable."""
    bound = bounded(operation, body)
    assert 0 <= bound.input_expected <= bound.input_tokens <= TOKENS_MAX
    assert 0 <= bound.output_tokens <= TOKENS_MAX
    closer = refine(operation, body, bound, "gpt-5", TOKENS)
    assert 0 <= closer.input_expected <= closer.input_tokens <= bound.input_tokens
