"""The built-in demo provider: an honest echo that says what it is, for SDKs and for people."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from structlog.testing import capture_logs

from farebox import tokens
from farebox.demo import MODEL, DemoProvider
from support.app import Farebox, running, settings_of
from support.clock import Leaps
from support.http import RawClient
from support.sdks import FLAVOURS, Flavour, anthropic_sdk, openai_sdk

HELLO: list[Any] = [{"role": "user", "content": "Hello!"}]
LABEL = "[farebox demo: no model, an echo]"


@functools.cache
def counter() -> tokens.Tokens:
    """One for all tests: reading the ranks takes a second."""
    return tokens.Tokens()


@asynccontextmanager
async def demo(pace_s: float) -> AsyncIterator[str]:
    """A demo provider on its own: its base URL."""
    provider = DemoProvider(lambda text: counter().count(text, "o200k_base"), pace_s=pace_s)
    url = await provider.start()
    try:
        yield url
    finally:
        closing = asyncio.create_task(provider.close())
        await asyncio.sleep(0.01)
        await Leaps().by(2)  # it has a second for what is under way
        await closing


@pytest.fixture
async def quick() -> AsyncIterator[str]:
    """One that waits for nobody."""
    async with demo(0) as url:
        yield url


@pytest.fixture
async def farebox(quick: str, database: str, tmp_path: Path) -> AsyncIterator[Farebox]:
    """A farebox whose provider it is."""
    providers = {"demo": {"dialect": "demo", "base_url": quick}}
    async with running(settings_of(database, tmp_path, providers)) as farebox:
        yield farebox


@asynccontextmanager
async def asking(url: str, **request: Any) -> AsyncIterator[aiohttp.ClientResponse]:
    async with aiohttp.ClientSession() as session, session.post(url, **request) as answer:
        yield answer


async def test_it_answers_when_no_provider_is_enabled(database: str, tmp_path: Path) -> None:
    """With no provider enabled the demo starts by itself and is labelled as such in log, answer and row."""
    with capture_logs() as logged:
        async with running(settings_of(database, tmp_path, {})) as farebox:
            answer = await farebox.call("/v1/chat/completions", {"model": "whatever", "messages": HELLO})
            row = await farebox.row()
    assert [line["log_level"] for line in logged if "demo provider" in line["event"]] == ["warning"]
    said = json.loads(answer.body)
    assert said["model"] == MODEL == "farebox-demo"
    assert said["choices"][0]["message"]["content"].startswith(f"{LABEL} You said: Hello!")
    assert (row.provider, row.dialect, row.requested_model, row.model) == ("demo", "demo", "whatever", MODEL)
    assert (row.outcome, row.usage_source) == ("complete", "provider")


async def test_it_keeps_quiet_beside_a_real_provider(quick: str, database: str, tmp_path: Path) -> None:
    """Once a provider is enabled there is no demo, and no word of it."""
    with capture_logs() as logged:
        async with running(settings_of(database, tmp_path, {"mine": {"dialect": "openai", "base_url": quick}})) as it:
            assert not it.app.demo
            assert (await it.call("/p/demo/models", method="GET")).status == 404
    assert not [line for line in logged if "demo" in line["event"]]


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_openais_sdk_talks_to_it(farebox: Farebox, flavour: Flavour) -> None:
    """Chat and responses, streamed and not, say the same; every row has the counts that the answers tell."""
    async with openai_sdk(farebox.app.base_url, farebox.key, flavour) as sdk:
        chat, responses = sdk.client.chat.completions, sdk.client.responses
        whole = await sdk.call(chat.create, model=MODEL, messages=HELLO)
        chunks = await sdk.stream(chat.create, model=MODEL, messages=HELLO, stream=True)
        asked = await sdk.stream(
            chat.create, model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        response = await sdk.call(responses.create, model=MODEL, input="Hello!")
        events, final = await sdk.helped(responses.stream, "get_final_response", model=MODEL, input=HELLO)
        models = await sdk.call(sdk.client.models.list)
    said = whole.choices[0].message.content
    assert said.startswith(f"{LABEL} You said: Hello!")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == said
    assert asked[-1].usage == whole.usage
    assert response.output_text == final.output_text == said
    assert "response.output_text.delta" in {event.type for event in events}
    assert [model.id for model in models.data] == [MODEL]
    rows = await farebox.rows(5)
    told = (whole.usage.prompt_tokens, whole.usage.completion_tokens)
    assert (response.usage.input_tokens, response.usage.output_tokens) == told
    assert [(row.input_tokens, row.output_tokens) for row in rows] == [told] * 5
    assert {(row.outcome, row.usage_source, row.model) for row in rows} == {("complete", "provider", MODEL)}


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_anthropics_sdk_talks_to_it(farebox: Farebox, flavour: Flavour) -> None:
    """Messages, streamed and not, say the same; both rows have the counts that the answers tell."""
    call: dict[str, Any] = {"model": MODEL, "max_tokens": 100, "messages": HELLO}
    async with anthropic_sdk(farebox.app.base_url, farebox.key, flavour) as claude:
        whole = await claude.call(claude.client.messages.create, **call)
        _, final = await claude.helped(claude.client.messages.stream, "get_final_message", **call)
    assert whole.content[0].text.startswith(f"{LABEL} You said: Hello!")
    assert (final.content[0].text, final.usage, final.stop_reason) == (whole.content[0].text, whole.usage, "end_turn")
    rows = await farebox.rows(2)
    told = (whole.usage.input_tokens, whole.usage.output_tokens)
    assert [(row.input_tokens, row.output_tokens) for row in rows] == [told] * 2
    assert {row.usage_source for row in rows} == {"provider"}


async def test_it_streams_word_by_word() -> None:
    """The first event is there long before the second: nothing waits for the end of the answer."""
    async with demo(3600) as url, RawClient(int(url.rpartition(":")[2].partition("/")[0])) as client:
        body = json.dumps({"stream": True, "messages": HELLO}).encode()
        await client.send("POST", "/v1/chat/completions", {"Content-Type": "application/json"}, body)
        head = await client.head()
        assert head.header("content-type") == "text/event-stream"
        assert b'"role":"assistant"' in await client.chunk()


async def test_an_event_is_a_word(quick: str) -> None:
    """Each event of a stream adds one word, and the words are the whole answer."""
    async with asking(quick + "/chat/completions", json={"stream": True, "messages": HELLO}) as answer:
        lines = [json.loads(line[6:]) async for line in answer.content if line.startswith(b"data: {")]
    words = [word for line in lines if (word := line["choices"][0]["delta"].get("content"))]
    assert all(len(word.split()) == 1 for word in words)
    assert "".join(words).startswith(f"{LABEL} You said: Hello!")


async def test_a_long_prompt_is_echoed_in_part(quick: str) -> None:
    """Of a long prompt only the beginning is said back, and all of it is counted."""
    long = "word " * 5000
    async with asking(quick + "/chat/completions", json={"messages": [{"content": long}]}) as answer:
        said = await answer.json()
    assert len(said["choices"][0]["message"]["content"]) < 1000
    assert said["usage"]["prompt_tokens"] >= 5000


@pytest.mark.parametrize("content", ["Hello!", [{"type": "text", "text": "Hello!"}, {"type": "image_url"}], None, 7])
async def test_it_takes_content_as_it_comes(quick: str, content: object) -> None:
    """Text, parts, or nothing at all: there is an answer."""
    async with asking(quick + "/chat/completions", json={"messages": [{"content": content}]}) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("path", ["/chat/completions", "/responses", "/messages"])
@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"messages": 1, "input": 1}', b"\xff"])
async def test_it_says_what_it_needs(quick: str, path: str, body: bytes) -> None:
    """A body it can make nothing of gets 400 and a sentence, in the error shape of its path."""
    async with asking(quick + path, data=body) as answer:
        assert answer.status == 400
        said = await answer.json()
    assert "The demo provider needs" in said["error"]["message"]
    assert ("type" in said) == (path == "/messages")


async def test_it_says_what_it_cannot_do(farebox: Farebox) -> None:
    """What an echo has no answer to is a 404 that says so, by the SDK's own error."""
    async with openai_sdk(farebox.app.base_url, farebox.key, "async") as sdk:
        with pytest.raises(openai.NotFoundError, match=r"demo provider, an echo, has no /v1/embeddings"):
            await sdk.call(sdk.client.embeddings.create, model=MODEL, input="Hello!")
    row = await farebox.row()
    assert (row.outcome, row.status, row.usage_source) == ("upstream_error", 404, "none")
