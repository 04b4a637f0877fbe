"""Token counts of farebox's own: tiktoken's for text, offline and bounded; estimates of whole requests."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from farebox.prompt import BLOCKS_MAX, DEPTH_MAX, read_prompt
from farebox.records import Operation
from farebox.tokens import (
    ANTHROPIC_TOOL_TOKENS,
    COUNTED_BYTES_MAX,
    INLINE_BYTES_MAX,
    OTHER_TOKENS,
    RUN_CHARS_MAX,
    Count,
    EncodingName,
    RankFileError,
    Tokens,
    encoding_for,
    packaged,
    slices,
)

fixed = settings(derandomize=True, database=None, deadline=None, max_examples=150)
CORPUS = Path(__file__).parents[1] / "../shared/corpus"
both = pytest.mark.parametrize("encoding", ["cl100k_base", "o200k_base"])

PUBLISHED = "https://openaipublic.blob.core.windows.net/encodings/"


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    return Tokens()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tiktoken.Encoding]:
    """tiktoken's own encodings, built from its cache folder so that nothing is downloaded."""
    cache = tmp_path_factory.mktemp("tiktoken")
    for name in ("cl100k_base", "o200k_base"):
        address = f"{PUBLISHED}{name}.tiktoken"
        (cache / hashlib.sha1(address.encode()).hexdigest()).write_bytes(packaged(f"{name}.tiktoken"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
        return {name: tiktoken.get_encoding(name) for name in ("cl100k_base", "o200k_base")}


# -- text ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("gpt-4", "cl100k_base"),
        ("gpt-4-0613", "cl100k_base"),
        ("gpt-4-turbo-2024-04-09", "cl100k_base"),
        ("gpt-4-32k", "cl100k_base"),
        ("gpt-3.5-turbo", "cl100k_base"),
        ("gpt-35-turbo", "cl100k_base"),
        ("openai/gpt-3.5-turbo-0125", "cl100k_base"),
        ("ft:gpt-3.5-turbo-0613:org::id", "cl100k_base"),
        ("GPT-4", "cl100k_base"),
        ("text-embedding-3-small", "cl100k_base"),
        ("text-embedding-ada-002", "cl100k_base"),
        ("davinci-002", "cl100k_base"),
        ("babbage-002", "cl100k_base"),
        ("gpt-4o", "o200k_base"),
        ("gpt-4o-mini-2024-07-18", "o200k_base"),
        ("gpt-4.1-nano", "o200k_base"),
        ("gpt-4.5-preview", "o200k_base"),
        ("gpt-5", "o200k_base"),
        ("o3-mini", "o200k_base"),
        ("chatgpt-4o-latest", "o200k_base"),
        ("claude-sonnet-4-6", "o200k_base"),
        ("meta-llama/Llama-3.3-70B-Instruct", "o200k_base"),
        ("", "o200k_base"),
        (None, "o200k_base"),
    ],
)
def test_each_model_has_an_encoding(model: str | None, encoding: EncodingName) -> None:
    """OpenAI's older text models and its embeddings count by cl100k_base, everything else by o200k_base."""
    assert encoding_for(model) == encoding


@fixed
@given(text=st.text(max_size=300), encoding=st.sampled_from(["cl100k_base", "o200k_base"]))
def test_text_is_counted_as_tiktoken_counts_it(
    tokens: Tokens, reference: dict[str, tiktoken.Encoding], text: str, encoding: EncodingName
) -> None:
    """The packaged encodings are tiktoken's own, token for token."""
    assert tokens.count(text, encoding) == len(reference[encoding].encode_ordinary(text))


_SCRAPS = st.sampled_from(
    [
        "a",
        "don't",
        "We'll",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        ".",
        "...",
        "/",
        "1234",
        "Ä",
        "漢字",
        "é",
        "🦀",
        "\u0301",
        "_",
    ]
)


@fixed
@given(
    scraps=st.lists(_SCRAPS | st.text(max_size=3), max_size=60), encoding=st.sampled_from(["cl100k_base", "o200k_base"])
)
def test_slices_of_a_text_have_its_tokens(
    reference: dict[str, tiktoken.Encoding], scraps: list[str], encoding: EncodingName
) -> None:
    """A text that is counted in slices, however small, is cut where no token goes over."""
    text, encode = "".join(scraps), reference[encoding].encode_ordinary
    assert [token for part in slices(text, 1) for token in encode(part)] == encode(text)


@both
def test_prose_is_not_cut(tokens: Tokens, reference: dict[str, tiktoken.Encoding], encoding: EncodingName) -> None:
    """A long ordinary text is counted exactly: cutting is for runs without white space only."""
    text = Path(__file__).read_text() * 4 + "Größe, 漢字かな交じり文 🦀 \r\n\t x" * 500
    assert tokens.count_all((text,), encoding) == Count(len(reference[encoding].encode_ordinary(text)))


@both
@pytest.mark.parametrize(
    "text", ["<|endoftext|>", "a <|im_start|>system<|im_end|> b", "<|fim_prefix|>", "<|endofprompt|>"]
)
def test_special_tokens_in_a_prompt_are_text(
    tokens: Tokens, reference: dict[str, tiktoken.Encoding], text: str, encoding: EncodingName
) -> None:
    """What looks like a special token neither raises nor counts as one."""
    assert tokens.count(text, encoding) == len(reference[encoding].encode_ordinary(text)) > 4


@both
def test_half_a_surrogate_pair_is_counted(tokens: Tokens, encoding: EncodingName) -> None:
    """Text that cannot be encoded as UTF-8 is counted as if the broken character were a replacement."""
    assert tokens.count("a \ud83d b", encoding) == tokens.count("a \ufffd b", encoding)


def random_base64(size: int) -> str:
    return base64.b64encode(random.Random(3).randbytes(size)).decode()[:size]


@both
@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("a" * 1_000_000, 100_000, 200_000),
        (" " * 1_000_000, 5_000, 50_000),
        ("\n" * 1_000_000, 10_000, 100_000),
        (" \n\t" * 300_000, 200_000, 400_000),
        ("🦀" * 250_000, 250_000, 750_000),
        (random_base64(1_000_000), 500_000, 900_000),
        ("7" * 1_000_000, 333_000, 340_000),
        (("a" * RUN_CHARS_MAX + " ") * 900, 100_000, 200_000),
    ],
    ids=["letters", "spaces", "newlines", "blanks", "emoji", "base64", "digits", "words"],
)
def test_unbroken_runs_are_counted(tokens: Tokens, text: str, least: int, most: int, encoding: EncodingName) -> None:
    """A megabyte of the same character, on which tiktoken alone takes minutes or overflows its stack, is counted."""
    counted = tokens.count_all((text,), encoding)
    assert not counted.extrapolated
    assert least <= counted.tokens <= most


@both
def test_cutting_a_run_adds_little(
    tokens: Tokens, reference: dict[str, tiktoken.Encoding], encoding: EncodingName
) -> None:
    """The count of cut text is that of the whole text, but for a token a cut."""
    for text in (random_base64(20_000), "x" * 20_000, "word " * 50 + "-" * 5_000 + " word" * 50):
        exact = len(reference[encoding].encode_ordinary(text))
        assert exact <= tokens.count(text, encoding) <= exact + len(text) // RUN_CHARS_MAX + 1


def test_texts_that_stand_apart_are_counted_apart(tokens: Tokens) -> None:
    """No token spans two messages."""
    assert tokens.count("hello", "o200k_base") == 1
    assert tokens.count_all(["hel", "lo", "", "hello"], "o200k_base").tokens == 3


@both
def test_very_long_text_is_extrapolated_from_samples(tokens: Tokens, encoding: EncodingName) -> None:
    """Past the bound the count is judged by head, middle and tail, and says so."""
    line = "The quick brown fox jumps over the lazy dog. "
    lines = COUNTED_BYTES_MAX // len(line) * 4
    counted = tokens.count_all((line * lines,), encoding)
    assert counted.extrapolated
    assert counted.tokens == pytest.approx(tokens.count(line * 1000, encoding) * lines / 1000, rel=0.01)


def test_samples_are_weighed_by_bytes(tokens: Tokens) -> None:
    """A text that changes its script is not judged by its characters alone."""
    text = "hello world " * 300_000 + "漢字" * 300_000
    exact = tokens.count("hello world " * 1000, "o200k_base") * 300 + tokens.count("漢字" * 500, "o200k_base") * 600
    assert tokens.count_all((text,), "o200k_base").tokens == pytest.approx(exact, rel=0.35)


# -- loading -------------------------------------------------------------------------------------


def test_nothing_is_loaded_before_it_is_needed() -> None:
    """Until its encoding is there, even a small count belongs off the event loop."""
    reads: list[str] = []

    def read(file: str) -> bytes:
        reads.append(file)
        return packaged(file)

    tokens = Tokens(read)
    assert reads == []
    assert tokens.off_loop(1, "gpt-4")
    tokens.load("cl100k_base")
    assert reads == ["cl100k_base.tiktoken"]
    assert not tokens.off_loop(INLINE_BYTES_MAX, "gpt-4")
    assert tokens.off_loop(INLINE_BYTES_MAX + 1, "gpt-4")
    assert tokens.off_loop(1, "gpt-4o")


def test_threads_load_an_encoding_once() -> None:
    """Threads that need the same encoding at the same time wait for one of them to load it."""
    reads: list[str] = []
    counts: list[int] = []
    start = threading.Barrier(6)

    def read(file: str) -> bytes:
        reads.append(file)
        return packaged(file)

    tokens = Tokens(read)

    def count() -> None:
        start.wait()
        counts.append(tokens.count("hello world", "cl100k_base"))

    threads = [threading.Thread(target=count) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reads == ["cl100k_base.tiktoken"]
    assert counts == [2] * 6


def _missing(file: str) -> bytes:
    raise FileNotFoundError(file)


@pytest.mark.parametrize("read", [_missing, lambda file: packaged(file)[:-1], lambda file: b""])
def test_a_damaged_rank_file_is_said_and_survived(read: Callable[[str], bytes]) -> None:
    """Loading explains what to do; counting goes on by size and says that it guesses."""
    tokens = Tokens(read)
    for _ in range(2):
        with pytest.raises(RankFileError, match="reinstall"):
            tokens.load("o200k_base")
    assert tokens.count_all(("x" * 9,), "o200k_base") == Count(3, extrapolated=True)
    assert tokens.estimate_input("chat", "gpt-4o", b'{"messages":[{"content":"hello"}]}').extrapolated


# -- requests ------------------------------------------------------------------------------------


def estimate(tokens: Tokens, operation: Operation, request: object, model: str = "gpt-4o") -> int:
    return tokens.estimate_input(operation, model, json.dumps(request).encode()).tokens


@pytest.mark.parametrize(
    ("operation", "request_body", "expected"),
    [
        # OpenAI counts 8 tokens for a lone "Hello": 3 around the turn, its role, its text, 3 for the answer.
        ("chat", {"messages": [{"role": "user", "content": "Hello"}]}, 8),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]}, 8),
        ("chat", {"messages": [{"role": "user", "name": "Ann", "content": "Hello"}]}, 10),
        ("chat", {"messages": [{"role": "user", "content": "Hello"}] * 3}, 18),
        ("responses", {"input": "Hello"}, 8),
        ("responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hello"}]}]}, 8),
        ("responses", {"instructions": "Hello", "input": "Hello"}, 13),
        ("messages", {"messages": [{"role": "user", "content": "Hello"}]}, 8),
        ("messages", {"system": [{"type": "text", "text": "Hello"}], "messages": []}, 8),
        ("completions", {"prompt": "Hello"}, 1),
        ("completions", {"prompt": ["Hello", "Hello"], "suffix": "Hello"}, 3),
        ("completions", {"prompt": [1, 22, 333]}, 3),
        ("embeddings", {"input": "Hello"}, 1),
        ("embeddings", {"input": ["Hello", "Hello"]}, 2),
        ("embeddings", {"input": [100257, 5, 7]}, 3),
        ("embeddings", {"input": [[1, 2], [3], [44, 55, 66]]}, 6),
        ("embeddings", {"input": []}, 0),
        ("moderations", {"input": [{"type": "text", "text": "Hello"}]}, 1),
        ("chat", {}, 0),
        ("chat", {"messages": None, "tools": [], "functions": None, "system": None}, 0),
    ],
)
def test_requests_are_counted_by_their_text(
    tokens: Tokens, operation: Operation, request_body: dict[str, Any], expected: int
) -> None:
    """Each API's text is found where it stands, with what a chat template adds to it."""
    estimated = tokens.estimate_input(operation, "gpt-4o", json.dumps(request_body, indent=1).encode())
    assert (estimated.tokens, estimated.encoding) == (expected, "o200k_base")
    assert not estimated.extrapolated
    assert estimated.non_text_parts == 0


@pytest.mark.parametrize(
    ("operation", "item", "texts"),
    [
        (
            "chat",
            {
                "role": "assistant",
                "content": None,
                "refusal": "no",
                "tool_calls": [
                    {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"at":1}'}},
                    {"id": "call_2", "type": "custom", "custom": {"name": "shell", "input": "ls"}},
                ],
            },
            ["assistant", "no", "weather", '{"at":1}', "shell", "ls"],
        ),
        (
            "chat",
            {"role": "assistant", "function_call": {"name": "old", "arguments": "{}"}},
            ["assistant", "old", "{}"],
        ),
        ("chat", {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}, ["tool", "sunny"]),
        (
            "messages",
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hmm", "signature": "c2ln"},
                    {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}, "cache_control": {"type": "x"}},
                ],
            },
            ["assistant", "hmm", "f", '{"a": 1}'],
        ),
        (
            "messages",
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "ok"}]},
                    {"type": "tool_result", "tool_use_id": "t", "content": "fine"},
                    {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "doc"}},
                ],
            },
            ["user", "ok", "fine", "doc"],
        ),
        (
            "responses",
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"b":2}'},
            ["f", '{"b":2}'],
        ),
        ("responses", {"type": "function_call_output", "call_id": "c", "output": "done"}, ["done"]),
        (
            "responses",
            {
                "type": "reasoning",
                "id": "r",
                "summary": [{"type": "summary_text", "text": "so"}],
                "encrypted_content": "x",
            },
            ["so"],
        ),
    ],
)
def test_calls_and_results_are_part_of_the_prompt(operation: Operation, item: dict[str, Any], texts: list[str]) -> None:
    """What tools were asked and answered is read; ids, signatures and marks are not."""
    member = "input" if operation == "responses" else "messages"
    prompt = read_prompt(operation, json.dumps({member: [item]}).encode())
    assert sorted(prompt.texts) == sorted(texts)
    assert (prompt.messages, prompt.others, prompt.unread_bytes) == (1, {}, 0)


def test_tools_and_schemas_count_by_their_json(tokens: Tokens) -> None:
    """Definitions are counted as they stand; Anthropic's own words before its tools are added."""
    tool = {"name": "f", "description": "does it", "input_schema": {"type": "object"}}
    bare = {"messages": [{"role": "user", "content": "Hello"}]}
    size = tokens.count(json.dumps([tool]), "o200k_base")
    assert estimate(tokens, "chat", {**bare, "tools": [tool]}) == 8 + size
    assert estimate(tokens, "messages", {**bare, "tools": [tool]}) == 8 + size + ANTHROPIC_TOOL_TOKENS
    schema = {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}
    size = tokens.count(json.dumps(schema), "o200k_base")
    assert estimate(tokens, "chat", {**bare, "response_format": schema}) == 8 + size
    assert estimate(tokens, "chat", {**bare, "response_format": {"type": "json_object"}}) == 8


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 90_000}}, "image"),
        ({"type": "input_image", "image_url": "https://example.com/a.png"}, "image"),
        ({"type": "image", "source": {"type": "base64", "data": "A" * 90_000}}, "image"),
        ({"type": "input_audio", "input_audio": {"data": "A" * 90_000, "format": "wav"}}, "audio"),
        ({"type": "video_url", "video_url": {"url": "x"}}, "video"),
        ({"type": "file", "file": {"file_data": "A" * 90_000}}, "file"),
        ({"type": "document", "source": {"type": "base64", "data": "A" * 90_000}}, "file"),
        ({"type": "tool_result", "content": [{"type": "image", "source": {"data": "A" * 90_000}}]}, "image"),
    ],
)
def test_what_is_no_text_counts_as_a_constant(tokens: Tokens, part: dict[str, Any], kind: str) -> None:
    """An image, a recording or a file stands in the estimate at its constant, never at its base64 text."""
    body = json.dumps({"messages": [{"role": "user", "content": [part, {"type": "text", "text": "Hello"}]}]}).encode()
    estimated = tokens.estimate_input("chat", "gpt-4o", body)
    assert estimated.tokens == 8 + {str(name): size for name, size in OTHER_TOKENS.items()}[kind]
    assert estimated.non_text_parts == 1
    assert not estimated.extrapolated


def test_an_unreadable_body_is_judged_by_its_size(tokens: Tokens) -> None:
    """What is no JSON still has a size, and the estimate says that it was not counted."""
    estimated = tokens.estimate_input("chat", "gpt-4o", b"x" * 403)
    assert (estimated.tokens, estimated.extrapolated) == (101, True)


def test_a_lone_surrogate_does_not_hide_the_rest(tokens: Tokens) -> None:
    """A request whose text was cut inside an emoji is counted like any other."""
    body = rb'{"messages":[{"role":"user","content":"Hello"},{"role":"user","content":"\ud83d"}]}'
    estimated = tokens.estimate_input("chat", "gpt-4o", body)
    assert not estimated.extrapolated
    assert 12 < estimated.tokens < 18


def test_broken_text_is_judged_by_its_size(tokens: Tokens) -> None:
    """A message that is no UTF-8 costs its own exactness only."""
    body = b'{"messages":[{"role":"user","content":"Hello"},{"role":"user","content":"\xff\xff"}]}'
    estimated = tokens.estimate_input("chat", "gpt-4o", body)
    assert (estimated.tokens, estimated.extrapolated) == (8 + 3 + 1 + 1, True)


def test_walking_a_prompt_is_bounded() -> None:
    """Deep blocks and endless lists are counted in bytes instead of being walked."""
    deep = "hello"
    for _ in range(DEPTH_MAX + 5):
        deep = {"content": [deep]}  # type: ignore[assignment]
    prompt = read_prompt("chat", json.dumps({"messages": [deep, {"content": "kept"}]}).encode())
    assert prompt.texts == ["kept"]
    assert prompt.unread_bytes > 10
    prompt = read_prompt("chat", b'{"messages":[' + b"{}," * BLOCKS_MAX + b"{}]}")
    assert (prompt.texts, prompt.messages) == ([], 0)
    assert prompt.unread_bytes == 3 * BLOCKS_MAX + 4
    lists = b"[" + b",".join([b"[" + b'"x",' * 999 + b'"x"]'] * 99) + b"]"
    prompt = read_prompt("completions", b'{"prompt":' + lists + b',"suffix":' + lists + b"}")
    assert len(prompt.texts) <= BLOCKS_MAX
    assert prompt.unread_bytes > 300_000


@fixed
@given(
    st.binary(max_size=80)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["messages", "input", "content", "type", "text", "source", "name", "prompt"]), inner
            )
        ),
        max_leaves=10,
    ).map(lambda value: json.dumps(value).encode())
)
def test_no_body_makes_an_estimate_raise(tokens: Tokens, body: bytes) -> None:
    """Whatever a client sent gets some estimate."""
    for operation in ("chat", "responses", "messages", "embeddings"):
        assert tokens.estimate_input(operation, None, body).tokens >= 0  # type: ignore[arg-type]


# -- answers -------------------------------------------------------------------------------------


def test_an_answer_is_counted_or_judged_by_its_sample(tokens: Tokens) -> None:
    """Whole text is counted; of a longer answer the sample speaks for the rest."""
    sample = "hello world " * 100
    whole = tokens.estimate_output("gpt-4o", sample)
    assert whole == Count(tokens.count(sample, "o200k_base"))
    assert tokens.estimate_output("gpt-4o", sample, len(sample)) == whole
    assert tokens.estimate_output("gpt-4o", sample, 10 * len(sample)) == Count(10 * whole.tokens, extrapolated=True)
    assert tokens.estimate_output("gpt-4o", "", 0) == Count(0)


# -- recorded requests ---------------------------------------------------------------------------


def recorded(provider: str, api: str) -> list[tuple[dict[str, Any], int]]:
    """Recorded requests of text only, without tools, with the input tokens the provider charged."""
    requests = {row["id"]: row["request"] for row in map(json.loads, (CORPUS / "requests.jsonl").open())}
    rows = []
    for row in map(json.loads, (CORPUS / "manifest.jsonl").open()):
        request = requests.get(row["id"])
        charged = (row["effective"] or {}).get("input")
        if (row["provider"], row["api"]) == (provider, api) and request and charged and "tools" not in request:
            rows.append((request, charged))
    return rows


@pytest.mark.skipif(not CORPUS.exists(), reason="needs the recorded corpus")
@pytest.mark.parametrize(
    ("provider", "api", "exact"),
    [
        ("openai", "embeddings", 1.0),
        ("openai", "completions", 1.0),
        ("openai", "responses", 0.8),
        ("openai", "chat", 0.6),
    ],
)
def test_estimates_agree_with_what_openai_charged(tokens: Tokens, provider: str, api: str, exact: float) -> None:
    """On recorded OpenAI calls without tools or media the estimate is mostly the very number, never far off."""
    ratios = []
    for request, charged in recorded(provider, api):
        operation: Any = api
        body = json.dumps(request, ensure_ascii=False).encode()
        estimated = tokens.estimate_input(operation, request.get("model"), body)
        if not estimated.non_text_parts:
            ratios.append(estimated.tokens / charged)
    assert len(ratios) >= 5
    assert sum(ratio == 1 for ratio in ratios) >= exact * len(ratios)
    assert 0.65 < min(ratios) <= max(ratios) < 1.6
