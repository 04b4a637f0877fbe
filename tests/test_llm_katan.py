"""llm-katan behind farebox: a server that is not quite any provider.

It ignores stream_options and puts usage on its finish chunk unasked, answers a stream that offers
tools with one JSON body, writes JSON with spaces, and refuses any credential but its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from farebox.records import UsageRow
from support.http import Answer, call
from support.katan import KEYS, MODEL, katan_server
from support.live import Desk, Serving, serving
from support.postgres import PostgresServer
from support.sdks import FLAVOURS, Flavour, anthropic_sdk, azure_sdk, openai_sdk

pytest.importorskip("llm_katan", reason="llm-katan is not installed; `make test` installs it where it can")

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def katan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with katan_server(tmp_path_factory.mktemp("katan")) as origin:
        yield origin


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One that answers a single request, and every later one with 429."""
    with katan_server(tmp_path_factory.mktemp("limited"), "--rate-limit-after", "1") as origin:
        yield origin


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(postgres: PostgresServer, katan: str, limited: str) -> AsyncIterator[Serving]:
    providers = {
        "katan": {"dialect": "openai", "base_url": katan + "/v1", "api_key": KEYS["openai"]},
        "limited": {"dialect": "openai", "base_url": limited + "/v1", "api_key": KEYS["openai"]},
        "claude": {"dialect": "anthropic", "base_url": katan, "api_key": KEYS["anthropic"]},
        "azure": {"dialect": "azure", "base_url": katan, "api_key": KEYS["azure_openai"]},
    }
    routes = [
        {"match": {"model": "claude-*"}, "to": ["claude"]},
        {"match": {"model": "often-*"}, "to": ["limited", "katan"]},
        {"match": {}, "to": ["katan"]},
    ]
    async with serving(postgres, [], lambda _: (providers, routes)) as serving_:
        yield serving_


@pytest_asyncio.fixture(loop_scope="module")
async def desk(served: Serving) -> AsyncIterator[Desk]:
    yield await served.desk()
    await served.settled()


HELLO = [{"role": "user", "content": "hello there world"}]
CHAT: dict[str, Any] = {"model": MODEL, "messages": HELLO, "max_tokens": 32}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]

_OF_THE_MOMENT = re.compile(rb'chatcmpl-\d+|call_\w+|msg_\w+|"created": ?\d+|time=\S+')
_TIME_IN_CHUNKS = re.compile(rb'"content": "[^"]*"')


def lasting(body: bytes) -> bytes:
    """A body without ids and times; the echoed time may be cut over two chunks, so chunks' text goes too."""
    return _TIME_IN_CHUNKS.sub(b"", _OF_THE_MOMENT.sub(b"", body))


async def direct(katan: str, body: dict[str, Any]) -> Answer:
    return await call(
        urlsplit(katan).port or 0,
        "/v1/chat/completions",
        json.dumps(body).encode(),
        key=KEYS["openai"],
        headers={"Content-Type": "application/json"},
    )


def told(answer: Answer) -> tuple[int, int]:
    """The numbers an answer tells, streamed or not."""
    found = re.findall(rb'"prompt_tokens": ?(\d+), ?"completion_tokens": ?(\d+)', answer.body)
    prompt, completion = found[-1]
    return int(prompt), int(completion)


def counted(row: UsageRow) -> tuple[int | None, int | None]:
    return row.input_tokens, row.output_tokens


@pytest.mark.parametrize(
    "more",
    [{}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}],
    ids=["whole", "streamed", "include_usage"],
)
async def test_its_usage_counts_and_stays(desk: Desk, katan: str, more: dict[str, Any]) -> None:
    """Usage on the finish chunk is the server's own doing: it is read, and stays in the stream however it was asked."""
    straight = await direct(katan, {**CHAT, **more})
    through = await desk.call("/v1/chat/completions", {**CHAT, **more})
    assert (straight.status, through.status) == (200, 200)
    assert lasting(through.body) == lasting(straight.body)
    assert through.clean
    row = await desk.row()
    assert counted(row) == told(straight) == told(through)
    assert (row.outcome, row.usage_source, row.stream) == ("complete", "provider", bool(more))


async def test_a_stream_that_is_answered_with_json(desk: Desk, katan: str) -> None:
    """Asked for a stream with tools it answers one JSON body: that is what the client gets, and what is metered."""
    body = {**CHAT, "stream": True, "tools": TOOLS}
    straight = await direct(katan, body)
    through = await desk.call("/v1/chat/completions", body)
    assert through.header("content-type") == straight.header("content-type") == "application/json"
    assert lasting(through.body) == lasting(straight.body)
    row = await desk.row()
    assert (row.outcome, row.usage_source) == ("complete", "provider")
    assert counted(row) == told(straight)
    assert row.tool_calls == [{"name": "get_weather", "count": 1, "argument_bytes": 2}]


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_messages_api(desk: Desk, streamed: bool) -> None:
    """Its Anthropic side takes the provider's key in x-api-key; its numbers are the row's."""
    body = {**CHAT, "model": "claude-katan", "stream": streamed}
    headers = {"anthropic-version": "2023-06-01"}
    through = await desk.call("/v1/messages", body, headers=headers)
    assert through.status == 200, through.body
    row = await desk.row()
    said = re.findall(rb'"(?:input|output)_tokens": ?(\d+)', through.body)
    assert counted(row) == (int(said[0]), int(said[-1]))
    assert (row.provider, row.outcome, row.usage_source) == ("claude", "complete", "provider")


async def test_a_rate_limited_server_is_passed_over(desk: Desk) -> None:
    """Its second request gets 429, so the next provider of the rule answers; each attempt is a row of one request."""
    body = {**CHAT, "model": "often-asked"}
    first = await desk.call("/v1/chat/completions", body)
    second = await desk.call("/v1/chat/completions", body)
    assert (first.status, second.status) == (200, 200)
    rows = await desk.rows(3)
    assert [(row.provider, row.attempt, row.status, row.outcome) for row in rows] == [
        ("limited", 1, 200, "complete"),
        ("limited", 1, 429, "upstream_error"),
        ("katan", 2, 200, "complete"),
    ]
    assert rows[1].request_id == rows[2].request_id != rows[0].request_id
    assert second.header("x-farebox-request-id") == str(rows[1].request_id)
    assert counted(rows[1]) == (None, None)


async def test_what_it_refuses_comes_through(desk: Desk, katan: str) -> None:
    """A body it finds wanting gets its own 400, byte for byte."""
    body = {"model": MODEL, "messages": []}
    straight = await direct(katan, body)
    through = await desk.call("/v1/chat/completions", body)
    assert (through.status, through.body) == (straight.status, straight.body)
    assert through.status == 400
    row = await desk.row()
    assert (row.outcome, row.error_type, row.usage_source) == ("upstream_error", "invalid_request_error", "none")


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_three_sdks_talk_to_it(desk: Desk, flavour: Flavour) -> None:
    """OpenAI's, Azure's and Anthropic's client, each streaming and with one farebox key, reach their side of it."""
    said = "hello there world"
    async with openai_sdk(desk.app.base_url, desk.key, flavour) as sdk:
        chunks = await sdk.stream(sdk.client.chat.completions.create, model=MODEL, messages=HELLO, stream=True)
    assert said in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    endpoint = f"{desk.app.base_url}/p/azure"
    async with azure_sdk(endpoint, desk.key, flavour, api_version="2024-10-21") as azure:
        chunks = await azure.stream(azure.client.chat.completions.create, model="my-gpt", messages=HELLO, stream=True)
    assert said in "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    async with anthropic_sdk(desk.app.base_url, desk.key, flavour) as claude:
        _, final = await claude.helped(
            claude.client.messages.stream,
            "get_final_message",
            model="claude-katan",
            max_tokens=32,
            messages=HELLO,
        )
    assert said in final.content[0].text
    rows = await desk.rows(3)
    assert [(row.provider, row.outcome, row.usage_source) for row in rows] == [
        ("katan", "complete", "provider"),
        ("azure", "complete", "provider"),
        ("claude", "complete", "provider"),
    ]
    assert {row.input_tokens for row in rows} == {3}
