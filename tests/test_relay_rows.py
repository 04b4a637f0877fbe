"""What rows say of calls through a running farebox: usage, tools, labels, times, and estimates where nobody said."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from farebox.tokens import Tokens
from support.answers import DONE, chunk, finish, frame, usage, usage_frame
from support.live import Desk, Serving, relaying, serving
from support.postgres import PostgresServer
from support.provider import plain, stream

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(postgres: PostgresServer) -> AsyncIterator[Serving]:
    async with serving(postgres, ["up"], relaying) as serving_:
        yield serving_


@pytest_asyncio.fixture(loop_scope="module")
async def desk(served: Serving) -> AsyncIterator[Desk]:
    yield await served.desk(team="research", project="atlas", tags={"tier": "batch"})
    await served.settled()


CHAT = "/v1/chat/completions"
COUNT = Tokens()


def tokens(text: str, encoding: Any = "o200k_base") -> int:
    return COUNT.count(text, encoding)


def raw(row: Any) -> Any:
    """The provider's usage object of a row as plain data."""
    return msgspec.json.decode(row.usage_raw) if isinstance(row.usage_raw, msgspec.Raw) else row.usage_raw


async def test_everything_a_row_says_of_a_call(desk: Desk) -> None:
    """Who, what, where, when: one row holds it, from the key, the request, the answer and farebox's own clock."""
    answer = {
        "id": "chatcmpl-9",
        "model": "gpt-x-2026",
        "service_tier": "flex",
        "choices": [{"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 100,
            "completion_tokens": 30,
            "total_tokens": 130,
            "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 8, "audio_tokens": 4},
            "completion_tokens_details": {"reasoning_tokens": 20, "audio_tokens": 2},
            "cost": 0.0125,
        },
    }
    desk.provider.then(plain(json.dumps(answer).encode(), headers=[("X-Request-Id", "req_77")]))
    headers = {"x-farebox-session": "s-1", "x-farebox-tags": "app=chat, tier=claimed"}
    call = await desk.call(CHAT, {"model": "gpt-x", "user": "u-5", "messages": []}, headers=headers)
    row = await desk.row()
    assert call.header("x-farebox-request-id") == str(row.id) == str(row.request_id)
    assert (row.attempt, row.key_name, row.team, row.project) == (1, desk.farebox.key_name, "research", "atlas")
    assert (row.end_user, row.session, row.tags) == ("u-5", "s-1", {"app": "chat", "tier": "batch"})
    assert (row.provider, row.dialect, row.endpoint, row.operation) == ("up", "openai", CHAT, "chat")
    assert (row.requested_model, row.model, row.service_tier) == ("gpt-x", "gpt-x-2026", "flex")
    assert (row.stream, row.status, row.outcome, row.upstream_request_id) == (False, 200, "complete", "req_77")
    assert (row.input_tokens, row.cache_read_tokens, row.cache_write_tokens) == (100, 60, 8)
    assert (row.output_tokens, row.reasoning_tokens, row.total_tokens) == (30, 20, 130)
    assert (row.audio_input_tokens, row.audio_output_tokens) == (4, 2)
    # No price is known for this model, so the provider's word is what it cost.
    assert (row.usage_source, row.provider_cost_usd) == ("provider", Decimal("0.0125"))
    assert (row.cost_usd, row.cost_source, row.price_id) == (Decimal("0.0125"), "provider", None)
    assert raw(row) == answer["usage"]
    assert (row.tool_calls_count, row.tool_calls, row.error_type, row.error_code) == (0, [], None, None)


async def test_times_make_sense(desk: Desk) -> None:
    """The first token lies between start and end; what the provider took and what farebox took is the whole."""
    pieces = [frame(chunk("Hi")), frame(finish()), usage_frame(), DONE]
    desk.provider.then(stream(pieces, gap_s=0.005))
    started = time.monotonic()
    await desk.call(CHAT, {"model": "m", "stream": True, "messages": []})
    waited_s = time.monotonic() - started
    row = await desk.row()
    assert row.ttft_ms is not None and row.duration_ms is not None
    assert row.upstream_ms is not None and row.overhead_ms is not None
    assert 0 < row.ttft_ms < row.duration_ms < waited_s * 1000
    assert 5 * (len(pieces) - 1) <= row.upstream_ms < row.duration_ms  # no less than the provider's pauses
    assert 0 <= row.overhead_ms < row.duration_ms
    assert row.upstream_ms + row.overhead_ms == pytest.approx(row.duration_ms, abs=0.01)
    assert (row.finished_at - row.started_at).total_seconds() * 1000 == pytest.approx(row.duration_ms, abs=0.01)


async def test_a_call_that_does_not_stream_has_no_first_token(desk: Desk) -> None:
    """Time to the first token is a stream's; a whole body has none."""
    desk.provider.then(plain(json.dumps({"choices": [], "usage": usage()}).encode()))
    await desk.call(CHAT, {"model": "m"})
    assert (await desk.row()).ttft_ms is None


# -- usage ---------------------------------------------------------------------------------------

REPEATED = [
    frame(chunk("a", usage=usage(7, 1))),
    frame(chunk("b", usage=usage(7, 2))),
    frame(finish(usage=usage(7, 3))),
]
STREAMS: dict[str, list[bytes]] = {
    "its own frame": [frame(chunk("Hi")), frame(finish()), usage_frame()],
    "on every chunk": REPEATED,
    "on every chunk and again in its own frame": [*REPEATED, usage_frame()],
    "null before": [frame(chunk("Hi", usage=None)), frame(finish(usage=None)), usage_frame()],
    "zeros before": [frame(chunk("Hi", usage=usage(0, 0))), frame(finish()), usage_frame()],
    "on the finish chunk": [frame(chunk("Hi")), frame(finish(usage=usage()))],
    "Groq's": [frame(chunk("Hi")), frame(finish(x_groq={"id": "r", "usage": usage()}))],
    "Moonshot's": [
        frame(chunk("Hi")),
        frame(chunk(None, choices=[{"index": 0, "delta": {}, "finish_reason": "stop", "usage": usage()}])),
    ],
}


@pytest.mark.parametrize("case", STREAMS)
async def test_the_last_usage_wins_wherever_it_stands(desk: Desk, case: str) -> None:
    """Repeated, null, zero, in odd places: the row has the last word of each field, never a sum."""
    desk.provider.then(stream([*STREAMS[case], DONE]))
    await desk.call(CHAT, {"model": "m", "stream": True, "messages": []})
    row = await desk.row()
    assert (row.input_tokens, row.output_tokens, row.total_tokens, row.usage_source) == (7, 3, 10, "provider")


async def test_messages_are_put_on_the_same_scale(desk: Desk) -> None:
    """Anthropic's input excludes its caches; the row's input includes them, and a cumulative delta adds nothing."""
    begun = {"input_tokens": 10, "cache_creation_input_tokens": 20, "cache_read_input_tokens": 30, "output_tokens": 1}
    events = [
        frame({"type": "message_start", "message": {"model": "claude-1", "usage": begun}}, event="message_start"),
        frame({"type": "message_delta", "delta": {}, "usage": {"output_tokens": 4}}, event="message_delta"),
        frame({"type": "message_delta", "delta": {}, "usage": {"output_tokens": 9}}, event="message_delta"),
        frame({"type": "message_stop"}, event="message_stop"),
    ]
    desk.provider.then(stream(events))
    await desk.call("/v1/messages", {"model": "claude-1", "stream": True, "messages": []})
    row = await desk.row()
    assert (row.input_tokens, row.cache_write_tokens, row.cache_read_tokens) == (60, 20, 30)
    assert (row.output_tokens, row.outcome, row.dialect) == (9, "complete", "anthropic")


async def test_embeddings_have_input_only(desk: Desk) -> None:
    """An embedding's usage is its prompt."""
    body = {"model": "e-1", "data": [{"embedding": [0.1] * 400}], "usage": {"prompt_tokens": 8, "total_tokens": 8}}
    desk.provider.then(plain(json.dumps(body).encode()))
    await desk.call("/v1/embeddings", {"model": "e", "input": "hi"})
    row = await desk.row()
    assert (row.operation, row.input_tokens, row.usage_source, row.total_tokens) == ("embeddings", 8, "provider", 8)
    assert not row.output_tokens


async def test_moderations_are_free(desk: Desk) -> None:
    """A moderation has no tokens, no estimate, and cost 0."""
    desk.provider.then(plain(b'{"id":"modr-1","model":"omni-moderation","results":[]}'))
    await desk.call("/v1/moderations", {"input": "some text to look at"})
    row = await desk.row()
    assert (row.operation, row.model, row.usage_source, row.cost_usd) == ("moderations", "omni-moderation", "none", 0)
    assert (row.input_tokens, row.output_tokens, row.total_tokens) == (None, None, None)


UNMETERED = {
    ("POST", "/v1/files"): "/v1/files",
    ("GET", "/v1/files/file-abc/content"): "/v1/files/{id}/content",
    ("GET", "/v1/responses/resp_123"): "/v1/responses/{id}",
    ("GET", "/v1/chat/completions/chatcmpl-1"): "/v1/chat/completions/{id}",
    ("POST", "/v1/messages/count_tokens"): "/v1/messages/count_tokens",
    ("POST", "/v1/responses/input_tokens"): "/v1/responses/input_tokens",
    ("POST", "/v1/messages/batches"): "/v1/messages/batches",
    ("GET", "/p/up/models"): "/v1/models",
    ("POST", "/v1/secret-thing/user@example.org"): "{path}",
}


@pytest.mark.parametrize(("method", "target"), UNMETERED, ids=lambda part: part)
async def test_what_is_not_metered_is_recorded_without_usage(desk: Desk, method: str, target: str) -> None:
    """Reads, uploads and counts replay or hold no usage: their rows say `none`, and their cost is not known."""
    desk.provider.then(plain(json.dumps({"id": "x", "usage": usage(), "input_tokens": 9}).encode()))
    await desk.call(target, b"{}" if method == "POST" else None, method=method)
    row = await desk.row()
    assert (row.endpoint, row.operation, row.outcome) == (UNMETERED[method, target], "other", "complete")
    assert (row.usage_source, row.cost_usd) == ("none", None)
    assert (row.input_tokens, row.output_tokens, row.usage_raw) == (None, None, None)


async def test_refusals_make_no_row(desk: Desk) -> None:
    """What farebox itself refuses was never sent, so it is not recorded."""
    assert (await desk.call("/p/nobody/chat/completions", {"model": "m"})).status == 404
    assert (await desk.call(CHAT, {"model": "m"}, headers={"Content-Encoding": "rot13"})).status == 415
    assert await desk.rows() == []


# -- tools ---------------------------------------------------------------------------------------


def call(name: str | None, arguments: str, index: int, id: str | None = None) -> dict[str, Any]:
    function = {"arguments": arguments} | ({"name": name} if name else {})
    return {"index": index, "type": "function", "function": function} | ({"id": id} if id else {})


CHAT_TOOLS = [
    frame(chunk(None, choices=[{"index": 0, "delta": {"tool_calls": [call("get_weather", "", 0, "c1")]}}])),
    frame(chunk(None, choices=[{"index": 0, "delta": {"tool_calls": [call(None, '{"city":', 0)]}}])),
    frame(chunk(None, choices=[{"index": 0, "delta": {"tool_calls": [call(None, '"Rome"}', 0)]}}])),
    frame(chunk(None, choices=[{"index": 0, "delta": {"tool_calls": [call("get_weather", "{}", 1, "c2")]}}])),
    frame(chunk(None, choices=[{"index": 0, "delta": {"tool_calls": [call("search", '{"q":"é"}', 2, "c3")]}}])),
    frame(finish("tool_calls")),
    usage_frame(),
    DONE,
]
CHAT_TOOLS_BODY = {
    "choices": [
        {
            "message": {
                "content": None,
                "tool_calls": [
                    {"id": "c1", "function": {"name": "get_weather", "arguments": '{"city":"Rome"}'}},
                    {"id": "c2", "function": {"name": "get_weather", "arguments": "{}"}},
                    {"id": "c3", "function": {"name": "search", "arguments": '{"q":"é"}'}},
                ],
            },
            "finish_reason": "tool_calls",
        }
    ],
    "usage": usage(),
}
ITEMS = [
    {"type": "function_call", "id": "i1", "call_id": "c1", "name": "get_weather", "arguments": '{"city":"Rome"}'},
    {"type": "function_call", "id": "i2", "call_id": "c2", "name": "get_weather", "arguments": "{}"},
    {"type": "function_call", "id": "i3", "call_id": "c3", "name": "search", "arguments": '{"q":"é"}'},
]
RESPONSE = {"id": "r", "status": "completed", "output": ITEMS, "usage": {"input_tokens": 7, "output_tokens": 3}}
RESPONSE_EVENTS = [
    *(frame({"type": "response.output_item.done", "item": item}, event="response.output_item.done") for item in ITEMS),
    frame({"type": "response.completed", "response": RESPONSE}, event="response.completed"),
]
BLOCKS = [
    {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"city": "Rome"}},
    {"type": "tool_use", "id": "t2", "name": "get_weather", "input": {}},
    {"type": "tool_use", "id": "t3", "name": "search", "input": {"q": "é"}},
]
MESSAGE = {"type": "message", "content": BLOCKS, "usage": {"input_tokens": 7, "output_tokens": 3}}


def block_events(index: int, block: dict[str, Any]) -> list[bytes]:
    text = json.dumps(block["input"], separators=(",", ":"), ensure_ascii=False) if block["input"] else ""
    delta = {"type": "input_json_delta", "partial_json": text}
    start = {"type": "content_block_start", "index": index, "content_block": {**block, "input": {}}}
    return [
        frame(start, event="content_block_start"),
        frame({"type": "content_block_delta", "index": index, "delta": delta}, event="content_block_delta"),
        frame({"type": "content_block_stop", "index": index}, event="content_block_stop"),
    ]


MESSAGE_EVENTS = [
    frame({"type": "message_start", "message": {"usage": {"input_tokens": 7}}}, event="message_start"),
    *(event for index, block in enumerate(BLOCKS) for event in block_events(index, block)),
    frame({"type": "message_delta", "delta": {}, "usage": {"output_tokens": 3}}, event="message_delta"),
    frame({"type": "message_stop"}, event="message_stop"),
]
TOOLS: dict[str, tuple[str, list[bytes] | dict[str, Any]]] = {
    "chat stream": (CHAT, CHAT_TOOLS),
    "chat body": (CHAT, CHAT_TOOLS_BODY),
    "responses stream": ("/v1/responses", RESPONSE_EVENTS),
    "responses body": ("/v1/responses", RESPONSE),
    "messages stream": ("/v1/messages", MESSAGE_EVENTS),
    "messages body": ("/v1/messages", MESSAGE),
}


@pytest.mark.parametrize("case", TOOLS)
async def test_tool_calls_are_counted_by_name(desk: Desk, case: str) -> None:
    """Stream or body, of any API: two calls of one tool and one of another, with the size of their arguments only."""
    target, answer = TOOLS[case]
    streamed = isinstance(answer, list)
    desk.provider.then(stream(answer) if isinstance(answer, list) else plain(json.dumps(answer).encode()))
    await desk.call(target, {"model": "claude-1" if "message" in case else "m", "stream": streamed})
    row = await desk.row()
    assert row.tool_calls_count == 3
    counts = {call["name"]: (call["count"], call["argument_bytes"]) for call in row.tool_calls}
    assert set(counts) == {"get_weather", "search"}
    assert [counts[name][0] for name in ("get_weather", "search")] == [2, 1]
    assert all(0 < size < 40 for _, size in counts.values())
    assert "Rome" not in repr(row)
    assert (row.input_tokens, row.output_tokens) == (7, 3)


# -- estimates -----------------------------------------------------------------------------------

PROMPT = "Why is the sky blue? Answer <|endoftext|> briefly, s'il vous plaît."
ANSWERED = "Because of Rayleigh scattering: short waves are scattered more — voilà."


@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "body"])
async def test_without_usage_the_text_is_counted(desk: Desk, streamed: bool) -> None:
    """A provider that reports nothing: input and output are tiktoken's count of what was asked and answered."""
    if streamed:
        parts = [ANSWERED[:20], ANSWERED[20:21], ANSWERED[21:]]
        pieces = [frame({"choices": [{"index": 0, "text": part}]}) for part in parts]
        desk.provider.then(stream([*pieces, DONE]))
    else:
        desk.provider.then(plain(json.dumps({"choices": [{"text": ANSWERED, "finish_reason": "stop"}]}).encode()))
    await desk.call("/v1/completions", {"model": "m", "prompt": PROMPT, "stream": streamed})
    row = await desk.row()
    assert (row.usage_source, row.outcome) == ("estimate", "complete")
    assert (row.input_tokens, row.output_tokens) == (tokens(PROMPT), tokens(ANSWERED))
    assert (row.cost_usd, row.usage_raw) == (None, None)


async def test_the_encoding_follows_the_model(desk: Desk) -> None:
    """Older OpenAI models are counted in their own encoding."""
    text = "Grüße aus Österreich, 東京とパリ"
    desk.provider.then(plain(json.dumps({"choices": [{"text": text, "finish_reason": "stop"}]}).encode()))
    await desk.call("/v1/completions", {"model": "gpt-3.5-turbo-instruct", "prompt": text})
    row = await desk.row()
    assert tokens(text) != tokens(text, "cl100k_base")
    assert (row.input_tokens, row.output_tokens) == (tokens(text, "cl100k_base"),) * 2


async def test_a_chat_is_counted_with_its_template(desk: Desk) -> None:
    """Messages count their text and role, three tokens each around it, and three for the answer to begin."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]
    desk.provider.then(stream([frame(chunk(ANSWERED)), frame(finish()), DONE]))
    await desk.call(CHAT, {"model": "m", "stream": True, "messages": messages})
    row = await desk.row()
    text = sum(tokens(part) for message in messages for part in message.values())
    assert (row.usage_source, row.input_tokens, row.output_tokens) == ("estimate", text + 2 * 3 + 3, tokens(ANSWERED))


async def test_what_the_provider_did_report_is_kept(desk: Desk) -> None:
    """With only the input reported, the output is counted, and the row says `partial`."""
    body = {"choices": [{"text": ANSWERED, "finish_reason": "stop"}], "usage": {"prompt_tokens": 99}}
    desk.provider.then(plain(json.dumps(body).encode()))
    await desk.call("/v1/completions", {"model": "m", "prompt": PROMPT})
    row = await desk.row()
    assert (row.usage_source, row.input_tokens, row.output_tokens) == ("partial", 99, tokens(ANSWERED))


async def test_a_large_prompt_is_counted_without_harm(desk: Desk) -> None:
    """A megabyte without a space is counted in bounded time, off the event loop, and the row is there."""
    prompt = "x" * 1_000_000
    desk.provider.then(plain(b'{"choices":[{"text":"ok","finish_reason":"stop"}]}'))
    await desk.call("/v1/completions", {"model": "m", "prompt": prompt})
    row = await desk.row()
    assert row.usage_source == "estimate"
    assert row.input_tokens is not None
    assert 50_000 < row.input_tokens < 500_000


async def test_no_text_of_a_call_is_in_its_row(desk: Desk) -> None:
    """Prompts, answers and tool arguments are counted and forgotten."""
    planted = "planted-7f3a"
    pieces = [
        frame(chunk(planted)),
        frame(chunk(None, choices=[{"index": 0, "delta": {"tool_calls": [call("t", f'"{planted}"', 0, "c")]}}])),
        DONE,
    ]
    desk.provider.then(stream(pieces))
    await desk.call(CHAT, {"model": "m", "stream": True, "messages": [{"role": "user", "content": planted}]})
    assert planted not in repr(await desk.row())
