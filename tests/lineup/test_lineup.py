"""Clients that people build on, each in an environment of its own: none notices farebox, and each row is right.

Each has the conversation of `conversation.py`, streamed, with a tool call and its result, over chat
completions and over responses. `make test-sdks` installs the environments and runs this; an
environment that is not there skips with the reason.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from farebox.records import UsageRow
from lineup import conversation
from lineup.conversation import MODEL, QUESTION, RESULT, SNAPSHOT, TOOL, TURNS, Turn
from lineup.install import ENVIRONMENTS
from lineup.talker import Talker, talking
from support.live import PROVIDER_KEY, Desk, Serving, serving
from support.postgres import PostgresServer
from support.provider import FakeProvider, Received, Wire, plain, stream
from support.tap import tapped

pytestmark = [pytest.mark.lineup, pytest.mark.asyncio(loop_scope="module")]

SESSION, USER = "sess-lineup-1", "user-7"

ASKING = [
    ("langchain", "chat"),
    ("pydantic_ai", "chat"),
    ("openai_node", "chat"),
    ("vercel", "chat"),
    ("vercel", "compatible"),
]
"""SDKs and acts over chat completions in which the SDK asks for usage."""
SILENT = [("langchain", "chat"), ("openai_node", "chat"), ("vercel", "compatible")]
"""Those that can also not ask; the others always do."""
SDKS = [environment.name for environment in ENVIRONMENTS]
AUTH_ERRORS = {
    "langchain": "AuthenticationError",
    "pydantic_ai": "ModelAuthenticationError",
    "openai_node": "AuthenticationError",
    "vercel": "APICallError",
}
"""What each raises at a 401, or what that is a kind of. Vercel's SDK has one class for every status."""


def _settings(fakes: dict[str, FakeProvider]) -> tuple[dict[str, Any], list[Any]]:
    provider = {"dialect": "openai", "base_url": fakes["openai"].base_url, "api_key": PROVIDER_KEY}
    return {"openai": provider}, [{"match": {}, "to": ["openai"]}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(postgres: PostgresServer) -> AsyncIterator[Serving]:
    async with serving(postgres, ["openai"], _settings) as serving_:
        yield serving_


@pytest_asyncio.fixture(loop_scope="module")
async def desk(served: Serving) -> AsyncIterator[Desk]:
    yield await served.desk()
    await served.settled()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def talker(request: pytest.FixtureRequest) -> AsyncIterator[Talker]:
    """The script of the SDK that the test is about. One process serves all tests of an SDK."""
    environment = next(environment for environment in ENVIRONMENTS if environment.name == request.param)
    if reason := environment.missing():
        pytest.skip(reason)
    async with talking(environment) as talker_:
        yield talker_


async def saw(talker: Talker, desk: Desk, act: str, **changes: Any) -> dict[str, Any]:
    """What the SDK saw of an act with this desk's key."""
    told = {
        "act": act,
        "url": f"{desk.app.base_url}/v1",
        "key": desk.key,
        "model": MODEL,
        "session": SESSION,
        "user": USER,
        "question": QUESTION,
        "tool": TOOL,
        "result": RESULT,
        "usage": True,
    }
    return await talker.saw(**{**told, **changes})


def is_right(row: UsageRow, turn: Turn, endpoint: str) -> None:
    """The row of one turn: whole, the provider's numbers, whose it was, and the tool it called."""
    assert (row.endpoint, row.outcome, row.status, row.stream) == (endpoint, "complete", 200, True)
    assert (row.usage_source, row.attempt, row.error_code) == ("provider", 1, None)
    assert (row.requested_model, row.model, row.service_tier) == (MODEL, SNAPSHOT, "default")
    assert (row.session, row.end_user) == (SESSION, USER)
    found = (row.input_tokens, row.cache_read_tokens, row.output_tokens, row.reasoning_tokens)
    assert found == (turn.input, turn.cached, turn.output, turn.reasoning)
    assert row.total_tokens == turn.input + turn.output
    calls = [(call["name"], call["count"], call["argument_bytes"]) for call in row.tool_calls or ()]
    assert calls == ([(TOOL, 1, conversation.ARGUMENT_BYTES)] if turn.calls else [])
    assert row.tool_calls_count == len(calls)


async def had_the_conversation(desk: Desk, talker: Talker, seen: dict[str, Any], endpoint: str) -> None:
    """The SDK raised nothing and said nothing, saw both turns, gave the tool's result back; two exact rows."""
    assert "error" not in seen, (seen, talker.said())
    assert [{name: turn[name] for name in ("text", "tool_calls")} for turn in seen["turns"]] == [
        turn.seen for turn in TURNS
    ]
    assert not any(turn.get("warnings") for turn in seen["turns"])
    assert not talker.said()
    first, second = desk.provider.requests
    assert RESULT not in first.body.decode() and RESULT in second.body.decode()
    for row, turn in zip(await desk.rows(2), TURNS, strict=True):
        is_right(row, turn, endpoint)


def pairs(pairs: list[tuple[str, str]]) -> pytest.MarkDecorator:
    """A test for each SDK and act."""
    ids = ["-".join(dict.fromkeys(pair)) for pair in pairs]
    return pytest.mark.parametrize(("talker", "act"), pairs, indirect=["talker"], ids=ids)


@pairs(ASKING)
async def test_chat_with_a_tool(desk: Desk, talker: Talker, act: str) -> None:
    """Over chat completions the SDK that asks for usage has the provider's, and each turn is one exact row."""
    desk.provider.then(*(stream(conversation.chat(turn)) for turn in TURNS))
    seen = await saw(talker, desk, act)
    await had_the_conversation(desk, talker, seen, "/v1/chat/completions")
    assert [turn["usage"] for turn in seen["turns"]] == [turn.numbers for turn in TURNS]


@pairs(SILENT)
async def test_chat_that_does_not_ask_for_usage(desk: Desk, talker: Talker, act: str) -> None:
    """An SDK that asked for no usage sees none and no stray frame, and each turn is one exact row all the same."""
    desk.provider.then(*(stream(conversation.chat(turn)) for turn in TURNS))
    seen = await saw(talker, desk, act, usage=False)
    for request in desk.provider.requests:
        assert json.loads(request.body)["stream_options"] == {"include_usage": True}, "farebox did not ask"
    await had_the_conversation(desk, talker, seen, "/v1/chat/completions")
    assert [turn["usage"] for turn in seen["turns"]] == [None, None]
    if "chunks" in seen["turns"][0]:
        frames = [len(conversation.chat(turn, usage=False)) - 1 for turn in TURNS]  # [DONE] is no chunk
        assert [turn["chunks"] for turn in seen["turns"]] == frames


@pytest.mark.parametrize("talker", SDKS, indirect=True)
async def test_responses_with_a_tool(desk: Desk, talker: Talker) -> None:
    """Over responses the SDK sees text, tool call and usage, and each turn is one exact row."""
    desk.provider.then(*(stream(conversation.responses(turn)) for turn in TURNS))
    seen = await saw(talker, desk, "responses")
    await had_the_conversation(desk, talker, seen, "/v1/responses")
    assert [turn["usage"] for turn in seen["turns"]] == [turn.numbers for turn in TURNS]
    assert all("stream_options" not in json.loads(request.body) for request in desk.provider.requests)


@pytest.mark.parametrize("talker", SDKS, indirect=True)
async def test_embeddings(desk: Desk, talker: Talker) -> None:
    """The vector arrives in the coding the SDK asked for, and its tokens are in the row."""

    async def answer(received: Received, wire: Wire) -> None:
        as_base64 = json.loads(received.body).get("encoding_format") == "base64"
        await plain(conversation.embeddings(as_base64=as_base64))(received, wire)

    desk.provider.then(answer)
    seen = await saw(talker, desk, "embeddings", model="text-embedding-3-small")
    assert seen.get("vector") == conversation.VECTOR, (seen, talker.said())
    assert seen.get("tokens", conversation.EMBEDDED) == conversation.EMBEDDED
    row = await desk.row()
    assert (row.endpoint, row.operation, row.outcome) == ("/v1/embeddings", "embeddings", "complete")
    assert (row.stream, row.usage_source) == (False, "provider")
    assert row.input_tokens == row.total_tokens == conversation.EMBEDDED
    assert (row.model, row.session, row.end_user) == ("text-embedding-3-small", SESSION, USER)


@pytest.mark.parametrize("talker", SDKS, indirect=True)
@pytest.mark.parametrize("act", ["chat", "responses"])
async def test_a_wrong_key(desk: Desk, talker: Talker, act: str, request: pytest.FixtureRequest) -> None:
    """A key that farebox does not know raises the SDK's own error for 401 at once; nothing goes up, no row."""
    async with tapped(desk.app.port) as tap:
        seen = await saw(talker, desk, act, key="fb-nope", url=f"{tap.origin}/v1")
        assert len(tap.requests) == 1
    assert seen["status"] == 401, seen
    assert AUTH_ERRORS[request.node.callspec.params["talker"]] in seen["error"]
    assert "farebox keys create" in seen["message"]
    assert desk.provider.requests == []
    assert await desk.rows() == []
