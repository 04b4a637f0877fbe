"""A real llama.cpp server behind farebox: its bytes come through, and rows say what it says when asked directly."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from support.http import Answer, RawClient, call
from support.live import Desk, Serving, eventually, serving
from support.llama import MODEL, SLOT_TOKENS, llama_server
from support.postgres import PostgresServer
from support.sdks import FLAVOURS, Flavour, anthropic_sdk, openai_sdk

for module in ("gguf", "numpy"):
    pytest.importorskip(module, reason=f"{module} makes the model; `make test` installs it")
pytest.importorskip("xllamacpp", reason="xllamacpp has no wheel for this system: there is no llama.cpp server")

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server's origin."""
    with llama_server(tmp_path_factory.mktemp("llama")) as origin:
        yield origin


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(postgres: PostgresServer, llama: str) -> AsyncIterator[Serving]:
    provider = {"dialect": "llamacpp", "base_url": llama + "/v1"}
    providers = {"local": provider, "quiet": {**provider, "stream_options": "skip"}}
    routes = [{"match": {}, "to": ["local"]}]
    async with serving(postgres, [], lambda _: (providers, routes), models={"refresh_s": 60}) as serving_:
        await eventually(lambda: all(stock.offers for stock in serving_.farebox.app.models.shelf.values()))
        yield serving_


@pytest_asyncio.fixture(loop_scope="module")
async def desk(served: Serving) -> AsyncIterator[Desk]:
    yield await served.desk()
    await served.settled()


# Greedy, and the prompt read anew each time: the same question has the same answer and the same numbers.
FIXED: dict[str, Any] = {"model": MODEL, "temperature": 0, "seed": 1, "cache_prompt": False}
CHAT: dict[str, Any] = {**FIXED, "messages": [{"role": "user", "content": "hello world"}], "max_tokens": 24}
PROMPT: dict[str, Any] = {**FIXED, "prompt": "hello world", "max_tokens": 16}
INCLUDE: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}

_OF_THE_MOMENT = re.compile(rb'"(?:id|item_id)":"[^"]*"|"(?:created|created_at|completed_at)":\d+')
_TIMINGS = re.compile(rb',?"timings":\{[^}]*\}')


def lasting(body: bytes) -> bytes:
    """A body without what differs from call to call: ids, times, and how fast it went."""
    return _OF_THE_MOMENT.sub(b'"":0', _TIMINGS.sub(b"", body))


async def direct(llama: str, path: str, body: dict[str, Any]) -> Answer:
    """The server's own answer."""
    return await call(urlsplit(llama).port or 0, path, json.dumps(body).encode())


def told(body: bytes) -> dict[str, Any]:
    """The last usage object of an answer, streamed or not."""
    lines = [line.removeprefix(b"data: ") for line in body.splitlines() if line.startswith((b"data: {", b"{"))]
    values = [json.loads(line) for line in lines]
    found = [value.get("usage") or value.get("response", {}).get("usage") for value in values]
    usage: dict[str, Any] = [usage for usage in found if usage][-1]
    return usage


async def test_a_completion_comes_through_whole(desk: Desk, llama: str) -> None:
    """Not streamed: the server's bytes, and its own numbers in the row."""
    straight = await direct(llama, "/v1/chat/completions", CHAT)
    through = await desk.call("/v1/chat/completions", CHAT)
    assert (straight.status, through.status) == (200, 200)
    assert lasting(through.body) == lasting(straight.body)
    usage = told(straight.body)
    row = await desk.row()
    assert (row.input_tokens, row.output_tokens) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert (row.outcome, row.usage_source, row.dialect, row.model) == ("complete", "provider", "llamacpp", MODEL)
    assert row.usage_raw is not None


async def test_a_stream_that_does_not_ask_for_usage(desk: Desk, llama: str) -> None:
    """The stream is the one sent without include_usage (but for its speed); the row has what is told with it."""
    asked = {**CHAT, "stream": True}
    straight = await direct(llama, "/v1/chat/completions", asked)
    usage = told((await direct(llama, "/v1/chat/completions", {**CHAT, **INCLUDE})).body)
    through = await desk.call("/v1/chat/completions", asked)
    assert lasting(through.body) == lasting(straight.body)
    assert b'"usage"' not in through.body and b'"choices":[]' not in through.body
    row = await desk.row()
    assert (row.input_tokens, row.output_tokens) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert (row.outcome, row.usage_source, row.stream) == ("complete", "provider", True)


async def test_a_stream_that_asks_for_usage(desk: Desk, llama: str) -> None:
    """The client gets the usage frame it asked for, in the server's own bytes."""
    straight = await direct(llama, "/v1/chat/completions", {**CHAT, **INCLUDE})
    through = await desk.call("/v1/chat/completions", {**CHAT, **INCLUDE})
    assert lasting(through.body) == lasting(straight.body)
    usage = told(through.body)
    row = await desk.row()
    assert (row.input_tokens, row.output_tokens) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert row.usage_source == "provider"


@pytest.mark.parametrize("more", [{}, {"stream": True}, INCLUDE], ids=["whole", "streamed", "include_usage"])
async def test_legacy_completions(desk: Desk, llama: str, more: dict[str, Any]) -> None:
    """`/completions`, whose last chunk always carries usage: the same bytes, the server's numbers."""
    straight = await direct(llama, "/v1/completions", {**PROMPT, **more})
    through = await desk.call("/v1/completions", {**PROMPT, **more})
    assert lasting(through.body) == lasting(straight.body)
    usage = told(straight.body)
    row = await desk.row()
    assert (row.input_tokens, row.output_tokens) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert (row.endpoint, row.outcome, row.usage_source) == ("/v1/completions", "complete", "provider")


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_responses_api(desk: Desk, llama: str, streamed: bool) -> None:
    """`/responses`: the same bytes, the server's numbers."""
    body = {**FIXED, "input": "hello world", "max_output_tokens": 16, "stream": streamed}
    straight = await direct(llama, "/v1/responses", body)
    through = await desk.call("/v1/responses", body)
    assert lasting(through.body) == lasting(straight.body)
    usage = told(straight.body)
    row = await desk.row()
    assert (row.input_tokens, row.output_tokens) == (usage["input_tokens"], usage["output_tokens"])
    assert (row.endpoint, row.outcome, row.usage_source) == ("/v1/responses", "complete", "provider")


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_messages_api(desk: Desk, llama: str, streamed: bool) -> None:
    """Anthropic's `/v1/messages`, which llama.cpp speaks too: the same bytes, the same prompt and answer counted."""
    body = {**CHAT, "stream": streamed}
    # This path caches prompts whatever it is asked: from the second time on the numbers are the same.
    await direct(llama, "/v1/messages", body)
    straight = await direct(llama, "/v1/messages", body)
    through = await desk.call("/v1/messages", body)
    assert lasting(through.body) == lasting(straight.body)
    usage = told((await direct(llama, "/v1/chat/completions", CHAT)).body)
    row = await desk.row()
    assert (row.input_tokens, row.output_tokens) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert (row.endpoint, row.outcome, row.usage_source) == ("/v1/messages", "complete", "provider")


async def test_embeddings(desk: Desk, llama: str) -> None:
    """Embeddings of two texts: the same bytes, the server's input tokens."""
    body = {"model": MODEL, "input": ["hello world", "the"]}
    straight = await direct(llama, "/v1/embeddings", body)
    through = await desk.call("/v1/embeddings", body)
    assert straight.status == 200
    assert through.body == straight.body
    row = await desk.row()
    assert (row.input_tokens, row.outcome) == (told(straight.body)["prompt_tokens"], "complete")


async def test_a_cached_prompt_is_still_input(desk: Desk, llama: str) -> None:
    """Asked the same again, the server reads its cache: the row's input is the whole prompt, the cached part beside."""
    body = {**CHAT, "cache_prompt": True}
    await direct(llama, "/v1/chat/completions", body)
    usage = told((await desk.call("/v1/chat/completions", body)).body)
    assert usage["prompt_tokens_details"]["cached_tokens"] > 0, "the server cached nothing: the test shows nothing"
    await desk.call("/v1/messages", body)
    chat, messages = await desk.rows(2)
    assert (chat.input_tokens, chat.cache_read_tokens) == (
        usage["prompt_tokens"],
        usage["prompt_tokens_details"]["cached_tokens"],
    )
    # Anthropic's dialect reports the same cache as a part that input_tokens leaves out.
    assert (messages.input_tokens, messages.cache_read_tokens) == (chat.input_tokens, chat.cache_read_tokens)


async def test_a_client_that_leaves_stops_the_generation(desk: Desk, llama: str) -> None:
    """Gone mid-stream, the server stops within its next tokens instead of going on to the thousands asked for."""
    wanted = SLOT_TOKENS - 1000
    before = await tokens_made(llama)
    body = {**CHAT, "stream": True, "max_tokens": wanted, "ignore_eos": True}
    async with RawClient(desk.app.port) as client:
        await client.send("POST", "/v1/chat/completions", [desk.auth], json.dumps(body).encode())
        await client.head()
        seen = await client.chunks(2000)
        client.abort()
    row = await desk.row()
    await until_idle(llama)
    assert await tokens_made(llama) - before < wanted
    assert (row.outcome, row.status) == ("client_gone", 200)
    assert row.usage_source == "estimate"
    assert row.output_tokens is not None and 0 < row.output_tokens < wanted
    assert seen.count(b"data: ") > 2


async def test_timings_tell_what_usage_would(desk: Desk, llama: str) -> None:
    """A server that is not asked for usage tells its numbers in `timings` all the same, and the row has them."""
    usage = told((await direct(llama, "/v1/chat/completions", CHAT)).body)
    through = await desk.call("/p/quiet/chat/completions", {**CHAT, "stream": True})
    assert b'"timings"' in through.body and b'"usage"' not in through.body
    row = await desk.row()
    assert (row.provider, row.outcome, row.usage_source) == ("quiet", "complete", "provider")
    assert (row.input_tokens, row.output_tokens) == (usage["prompt_tokens"], usage["completion_tokens"])


@pytest.mark.parametrize(
    "body",
    [
        {"model": MODEL},
        {**CHAT, "messages": [{"role": "user", "content": "long " * SLOT_TOKENS}]},
        {**CHAT, "stream": True, "messages": "not a list"},
    ],
    ids=["no messages", "longer than the context", "not a list"],
)
async def test_the_servers_refusals_come_through(desk: Desk, llama: str, body: dict[str, Any]) -> None:
    """What the server refuses is refused in its own bytes; the row is free and has its error's type."""
    straight = await direct(llama, "/v1/chat/completions", body)
    through = await desk.call("/v1/chat/completions", body)
    assert straight.status >= 400
    assert (through.status, through.body) == (straight.status, straight.body)
    row = await desk.row()
    assert (row.outcome, row.status, row.usage_source, row.cost_usd) == ("upstream_error", straight.status, "none", 0)
    assert row.error_type == json.loads(straight.body)["error"]["type"]


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_the_official_sdks_talk_to_it(desk: Desk, llama: str, flavour: Flavour) -> None:
    """OpenAI's and Anthropic's SDK hold a conversation with the server through farebox; each call is a row."""
    usage = told((await direct(llama, "/v1/chat/completions", CHAT)).body)
    call = {name: CHAT[name] for name in ("model", "messages", "max_tokens")}
    fixed = {"extra_body": {name: CHAT[name] for name in ("temperature", "seed", "cache_prompt")}}
    async with openai_sdk(desk.app.base_url, desk.key, flavour) as sdk:
        create = sdk.client.chat.completions.create
        answer = await sdk.call(create, **call, **fixed)
        chunks = await sdk.stream(create, **call, **fixed, stream=True)
        models = await sdk.call(sdk.client.models.list)
    async with anthropic_sdk(desk.app.base_url, desk.key, flavour) as claude:
        message = await claude.call(claude.client.messages.create, **call, **fixed)
        _, final = await claude.helped(claude.client.messages.stream, "get_final_message", **call, **fixed)
    assert answer.usage.prompt_tokens == usage["prompt_tokens"]
    assert all(len(chunk.choices) == 1 for chunk in chunks)
    assert [model.id for model in models.data] == [MODEL]
    assert final.content[0].text == "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert message.usage.output_tokens == usage["completion_tokens"]
    rows = await desk.rows(4)
    counted = [(row.input_tokens, row.output_tokens) for row in rows]
    assert counted == [(usage["prompt_tokens"], usage["completion_tokens"])] * 4


async def tokens_made(llama: str) -> int:
    """How many tokens the server has generated so far, by its own metrics."""
    answer = await call(urlsplit(llama).port or 0, "/metrics", method="GET")
    found = re.search(rb"^llamacpp:tokens_predicted_total (\d+)", answer.body, re.MULTILINE)
    assert found is not None
    return int(found[1])


async def until_idle(llama: str) -> None:
    """Until no slot of the server is at work."""
    async with asyncio.timeout(20):
        while any(slot["is_processing"] for slot in json.loads((await slots(llama)).body)):
            await asyncio.sleep(0.02)


async def slots(llama: str) -> Answer:
    return await call(urlsplit(llama).port or 0, "/slots", method="GET")
