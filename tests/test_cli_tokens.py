"""`farebox tokens` and `POST /farebox/api/tokens`: counts, bounds, limits and prices before a request is sent."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import tiktoken

from farebox.errors import BadRequest
from farebox.pricing import PriceBook, Pricer, shipped
from farebox.sizing import Sizer, operation_of
from farebox.tokens import Tokens, is_own
from support.app import ADMIN_TOKEN, config_of, running, settings_of
from support.cli import Cli, commands
from support.http import call

AT = datetime(2026, 11, 1, tzinfo=UTC)
PRICES = {"input_usd_per_mtok": "2", "output_usd_per_mtok": "10"}
LOCAL = {"dialect": "vllm", "base_url": "http://127.0.0.1:1/v1", "prices": {"own-*": PRICES}}
TEXT = "Grüße aus dem Süden! \U0001f30d <|endoftext|>"
CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello!"}]}


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    """One counter: loading an encoding takes a while."""
    return Tokens()


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokens: Tokens
) -> Iterator[Cli]:
    """Commands, run in an empty folder; all of them count with one counter."""
    monkeypatch.setattr("farebox.cli.tokens.Tokens", lambda: tokens)
    monkeypatch.chdir(tmp_path)
    yield from commands(capsys)


def sizer(tokens: Tokens, providers: dict[str, Any] | None = None, **more: Any) -> Sizer:
    """A sizer by the shipped prices."""
    settings: dict[str, Any] = {"providers": providers or {}}
    if providers:
        settings["routes"] = [{"match": {"model": "gpt-*"}, "to": [next(iter(providers))]}]
    config = config_of(settings)
    return Sizer(tokens, config, Pricer(PriceBook(shipped().entries), config.providers), AT, **more)


def exact(text: str, encoding: str, tokens: Tokens) -> int:
    """What tiktoken itself counts, by the encoding as farebox loads it."""
    loaded: tiktoken.Encoding = tokens.load(encoding)  # type: ignore[arg-type]
    return len(loaded.encode_ordinary(text))


# -- counts and bounds ---------------------------------------------------------------------------


def test_a_text_by_the_models_own_tokenizer_is_exact(tokens: Tokens) -> None:
    """For an OpenAI model a text's count is tiktoken's, and the bound is the count."""
    for model, encoding in (("gpt-5", "o200k_base"), ("gpt-4", "cl100k_base"), ("openai/gpt-4o-mini", "o200k_base")):
        sized = sizer(tokens).text(TEXT, model)
        assert sized.input_tokens == sized.input_tokens_max == exact(TEXT, encoding, tokens)
        assert (sized.certainty, sized.counted_by) == ("exact", encoding)


def test_another_makers_text_is_rough_and_bounded_by_its_bytes(tokens: Tokens) -> None:
    """Where the tokenizer is not known the count says so, and no tokenizer can exceed the bound, a token a byte."""
    for model in ("claude-sonnet-4-5", "llama-3.3-70b", "", None):
        sized = sizer(tokens).text(TEXT, model)
        assert sized.certainty == "rough"
        assert sized.input_tokens_max == len(TEXT.encode())
    assert is_own("o3") and is_own("ft:gpt-4o:org::id") and not is_own("olmo-3") and not is_own("my-gpt-4")


def test_a_chat_has_its_template_around_it(tokens: Tokens) -> None:
    """Roles and what wraps a turn are counted, and tools; the bound is above that, and there is none for an image."""
    sized = sizer(tokens).body(json.dumps(CHAT).encode())
    assert (sized.operation, sized.certainty) == ("chat", "estimate")
    assert sized.input_tokens == 3 + 3 + exact("user", "o200k_base", tokens) + exact("Hello!", "o200k_base", tokens)
    assert sized.input_tokens_max is not None and sized.input_tokens_max > sized.input_tokens
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    with_tools = sizer(tokens).body(json.dumps({**CHAT, "tools": [tool]}).encode())
    assert with_tools.input_tokens > sized.input_tokens
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}
    assert sizer(tokens).body(json.dumps({**CHAT, "messages": [image]}).encode()).input_tokens_max is None


@pytest.mark.parametrize(
    ("body", "operation"),
    [
        ({"messages": []}, "chat"),
        ({"messages": [], "model": "claude-x"}, "messages"),
        ({"messages": [], "system": "s"}, "messages"),
        ({"input": "x", "model": "gpt-5"}, "responses"),
        ({"input": ["x"], "model": "text-embedding-3-small"}, "embeddings"),
        ({"prompt": "x"}, "completions"),
    ],
)
def test_the_members_of_a_body_say_what_it_is(body: dict[str, Any], operation: str) -> None:
    """The endpoint follows from messages, input or prompt, and from the model's name."""
    assert operation_of(json.dumps(body).encode(), None) == operation


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"model":"m"}', b"\xff", b'"text"', b"[" * 5000])
def test_what_is_no_request_is_refused(body: bytes) -> None:
    """Not JSON, not an object, or without anything to count: a refusal in words."""
    with pytest.raises(BadRequest):
        operation_of(body, None)


# -- limits and prices ---------------------------------------------------------------------------


def test_a_price_by_hand(tokens: Tokens) -> None:
    """2 USD and 10 USD a million: 6 tokens in and at most 100 out cost 0.000012, and 0.001012 at most."""
    own = sizer(tokens, {"gpt-here": {**LOCAL, "prices": {"gpt-*": PRICES}}})
    sized = own.body(json.dumps({"model": "gpt-own", "prompt": [1, 2, 3, 4, 5, 6], "max_tokens": 50, "n": 2}).encode())
    assert (sized.provider, sized.book, sized.input_tokens, sized.output_tokens_max) == ("gpt-here", None, 6, 100)
    assert sized.input_cost_usd == Decimal("0.000012")
    assert sized.cost_usd_max is not None and sized.input_tokens_max is not None
    assert sized.cost_usd_max == (Decimal(2) * sized.input_tokens_max + Decimal(10) * 100) / 10**6
    assert sized.as_json()["input_cost_usd"] == "0.000012"


def test_whether_it_fits(tokens: Tokens) -> None:
    """The window is the book's; input and asked-for output must be within it; the output's bound is the rest."""
    sized = sizer(tokens).text("Hello", "gpt-4o")
    assert (sized.book, sized.context_window, sized.fits, sized.fits_surely) == ("openai", 128_000, True, True)
    assert (
        sized.output_tokens_max == 128_000 - sized.input_tokens
        or sized.output_tokens_max == sized.model_output_tokens_max
    )
    greedy = sizer(tokens).body(json.dumps({**CHAT, "max_tokens": 128_000}).encode())
    assert greedy.fits is False
    long = sizer(tokens).text("word " * 130_000, "gpt-4o")
    assert (long.fits, long.fits_surely) == (False, False)
    maybe = sizer(tokens).text("word " * 100_000, "claude-sonnet-4-5")
    assert (maybe.fits, maybe.fits_surely) == (True, False)


def test_an_unknown_model_has_no_limit_and_no_price(tokens: Tokens) -> None:
    """What no book knows is None everywhere, never 0; so is a model whose provider has no price for it."""
    unknown = sizer(tokens).text("Hello", "some-model-of-mine")
    routed = sizer(tokens, {"gpt-here": LOCAL}).text("Hello", "gpt-4o")
    for sized in (unknown, routed):
        assert (sized.context_window, sized.fits, sized.price_id, sized.input_cost_usd) == (None, None, None, None)
        assert sized.cost_usd_max is None
    assert routed.book is None, "another's list price would be a guess"


def test_an_embedding_has_no_output(tokens: Tokens) -> None:
    """Token arrays are counted exactly, and the bound of the output is 0."""
    sized = sizer(tokens).body(json.dumps({"model": "text-embedding-3-small", "input": [[1, 2], [3]]}).encode())
    assert (sized.operation, sized.input_tokens, sized.output_tokens_max) == ("embeddings", 3, 0)
    assert sized.input_cost_usd == Decimal("0.02") * 3 / 10**6


# -- the command ---------------------------------------------------------------------------------


def test_the_command_needs_no_database(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text as argument, from a file or from standard input is the same count; nothing is started or written."""
    (tmp_path / "text").write_text("Hello, world!")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hello, world!")))
    sized = []
    for argv in (["Hello, world!"], ["--file", "text"], []):
        ran = cli("tokens", *argv, "--model", "gpt-4o", "--format", "json")
        assert (ran.code, ran.errors) == (0, "")
        sized.append(json.loads(ran.output))
    assert sized[0] == sized[1] == sized[2]
    assert (sized[0]["input_tokens"], sized[0]["certainty"], sized[0]["model"]) == (4, "exact", "gpt-4o")
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_the_table_says_how_it_knows(cli: Cli, tmp_path: Path) -> None:
    """Count and how it was made, bound, window, output, costs and whose price: a line each."""
    lines = cli("tokens", "Hello, world!", "--model", "gpt-4o").output.splitlines()
    names = ["model", "tokens", "at most", "context window", "output at most", "input cost", "cost at most", "price"]
    assert [line[:16].strip() for line in lines] == names
    assert "exact" in lines[1] and "o200k_base" in lines[1]
    assert "128,000  (it fits)" in lines[3]
    assert "0.00001" in lines[5] and "list price of openai" in lines[7]
    (tmp_path / "body.json").write_text(json.dumps({**CHAT, "max_tokens": 200_000}))
    assert "does not fit" in cli("tokens", "--body", "body.json").output
    assert "not known" in cli("tokens", "x").output


def test_the_configs_prices_hold(cli: Cli, tmp_path: Path) -> None:
    """A provider of the config is asked by the routes or by name, with the prices the config gives it."""
    cli.configured(tmp_path / "c.yaml", {"providers": {"local": LOCAL}, "routes": [{"match": {}, "to": ["local"]}]})
    for argv in ((), ("--provider", "local")):
        ran = cli("tokens", "Hello", "--model", "own-1", "--format", "json", *argv)
        sized = json.loads(ran.output)
        assert sized["provider"] == "local"
        assert Decimal(sized["input_cost_usd"]) == Decimal(2) * sized["input_tokens"] / 10**6
    ran = cli("tokens", "Hello", "--model", "own-1", "--provider", "nobody")
    assert (ran.code, ran.output) == (2, "") and "nobody" in ran.errors


@pytest.mark.parametrize(
    ("argv", "code", "named"),
    [
        (["x", "--file", "y"], 2, "at a time"),
        (["--file", "missing"], 1, "missing can't be read"),
        (["--body", "list.json"], 2, "not a JSON object"),
        (["x", "--model", "a\nb"], 2, "on one line"),
        (["x", "--provider", "nobody"], 2, "no provider 'nobody'"),
    ],
)
def test_bad_use_is_named(cli: Cli, tmp_path: Path, argv: list[str], code: int, named: str) -> None:
    """What cannot be counted is said in a sentence."""
    (tmp_path / "list.json").write_text("[]")
    ran = cli("tokens", *argv)
    assert (ran.code, ran.output) == (code, "")
    assert named in ran.errors


# -- the control plane ---------------------------------------------------------------------------


async def test_the_control_plane_counts_alike(database: str, tmp_path: Path, tokens: Tokens) -> None:
    """A request's own body, or a text with a model: the same members as the command's; bad input is a 400."""
    provider = {**LOCAL, "prices": {"gpt-*": PRICES}}
    settings = settings_of(database, tmp_path, {"here": provider}, [{"match": {}, "to": ["here"]}])
    async with running(settings) as farebox:

        async def post(body: bytes, query: str = "", key: str | None = ADMIN_TOKEN) -> tuple[int, Any]:
            answer = await call(farebox.port, f"/farebox/api/tokens{query}", body, key=key)
            return answer.status, json.loads(answer.body)

        status, sized = await post(json.dumps({"text": TEXT, "model": "gpt-4o"}).encode())
        assert (status, sized["input_tokens"], sized["certainty"]) == (200, exact(TEXT, "o200k_base", tokens), "exact")
        assert sized["provider"] == "here"
        status, chat = await post(json.dumps(CHAT).encode(), "?provider=here")
        assert (status, chat["operation"], chat["input_tokens"]) == (200, "chat", 9)
        responses = {"model": "gpt-5", "input": "Hello!", "text": {"format": {"type": "text"}}}
        assert (await post(json.dumps(responses).encode()))[1]["operation"] == "responses"
        for body, query in ((b"[]", ""), (b"{}", ""), (b"{", ""), (json.dumps(CHAT).encode(), "?model=x")):
            status, refused = await post(body, query)
            assert (status, refused["error"]["code"]) == (400, "bad_request"), body
        for body in (CHAT, {"text": TEXT}):
            assert (await post(json.dumps(body).encode(), "?provider=nobody"))[0] == 404
        assert (await post(json.dumps(CHAT).encode(), key=farebox.key))[0] == 401
        assert await farebox.rows() == [], "nothing was sent anywhere"
