"""The official SDKs against farebox, told nothing but base_url and key: they notice nothing, each call is one row."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import struct
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio

from farebox.records import UsageRow
from support import speech
from support.answers import DONE, frame
from support.live import Desk, Serving, eventually, serving
from support.postgres import PostgresServer
from support.provider import FakeProvider, Received, Wire, plain, stream
from support.sdks import FLAVOURS, Flavour, Sdk, anthropic_sdk, azure_sdk, openai_sdk
from support.tap import tapped

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROVIDER_KEY = "sk-of-the-provider-1234"
HELLO: list[Any] = [{"role": "user", "content": "Hello!"}]
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


def _settings(fakes: dict[str, FakeProvider]) -> tuple[dict[str, Any], list[Any]]:
    key = {"api_key": PROVIDER_KEY}
    providers = {
        "openai": {"dialect": "openai", "base_url": fakes["openai"].base_url, **key},
        "claude": {"dialect": "anthropic", "base_url": fakes["openai"].origin, **key},
        "azure": {"dialect": "azure", "base_url": fakes["openai"].origin, **key},
    }
    return providers, [{"match": {"model": "claude-*"}, "to": ["claude"]}, {"match": {}, "to": ["openai"]}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(postgres: PostgresServer) -> AsyncIterator[Serving]:
    async with serving(postgres, ["openai"], _settings) as serving_:
        yield serving_


@pytest_asyncio.fixture(loop_scope="module")
async def desk(served: Serving) -> AsyncIterator[Desk]:
    yield await served.desk()
    await served.settled()


@pytest.fixture(params=FLAVOURS)
def flavour(request: pytest.FixtureRequest) -> Flavour:
    found: Flavour = request.param
    return found


@pytest_asyncio.fixture(loop_scope="module")
async def sdk(desk: Desk, flavour: Flavour) -> AsyncIterator[Sdk]:
    """OpenAI's SDK."""
    async with openai_sdk(desk.app.base_url, desk.key, flavour) as sdk:
        yield sdk


@pytest_asyncio.fixture(loop_scope="module")
async def claude(desk: Desk, flavour: Flavour) -> AsyncIterator[Sdk]:
    """Anthropic's SDK."""
    async with anthropic_sdk(desk.app.base_url, desk.key, flavour) as sdk:
        yield sdk


def numbers(row: UsageRow) -> tuple[int | None, ...]:
    return row.input_tokens, row.cache_read_tokens, row.output_tokens, row.reasoning_tokens


OPENAI_NUMBERS = (speech.INPUT, speech.CACHED, speech.OUTPUT, speech.REASONING)


def is_whole(row: UsageRow, endpoint: str, *, streamed: bool = False) -> None:
    """The row of a call that went well and whose usage the provider told."""
    assert (row.endpoint, row.outcome, row.status) == (endpoint, "complete", 200)
    assert (row.usage_source, row.stream, row.attempt) == ("provider", streamed, 1)
    assert row.total_tokens == (row.input_tokens or 0) + (row.output_tokens or 0)


def only(desk: Desk) -> Received:
    """The one request that reached the provider."""
    (request,) = desk.provider.requests
    return request


def asked(desk: Desk) -> dict[str, Any]:
    """Its body."""
    body: dict[str, Any] = json.loads(only(desk).body)
    return body


# -- chat ----------------------------------------------------------------------------------------


async def test_a_chat_completion_is_one_exact_row(desk: Desk, sdk: Sdk) -> None:
    """The SDK gets its completion, the provider sees only its own key, the row has the provider's numbers."""
    headers = [("x-request-id", "req_1"), ("openai-processing-ms", "7")]
    desk.provider.then(plain(speech.chat(), headers=headers))
    answer = await sdk.call(sdk.client.chat.completions.create, model="gpt-4o", messages=HELLO)
    assert answer.choices[0].message.content == speech.TEXT
    assert answer.usage.total_tokens == speech.INPUT + speech.OUTPUT
    assert answer._request_id == "req_1"
    request = only(desk)
    assert (request.method, request.target) == ("POST", "/v1/chat/completions")
    assert request.header("authorization") == f"Bearer {PROVIDER_KEY}"
    assert desk.key not in str(request.headers)
    row = await desk.row()
    is_whole(row, "/v1/chat/completions")
    assert numbers(row) == OPENAI_NUMBERS
    assert (row.requested_model, row.model, row.service_tier) == ("gpt-4o", "gpt-4o-2024-08-06", "default")
    assert row.upstream_request_id == "req_1"


async def test_a_stream_that_does_not_ask_for_usage_sees_none(desk: Desk, sdk: Sdk) -> None:
    """`chunk.choices[0]` works on every chunk, as without farebox, and the row is exact all the same."""
    desk.provider.then(stream(speech.chat_stream()))
    chunks = await sdk.stream(sdk.client.chat.completions.create, model="gpt-4o", messages=HELLO, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == speech.TEXT
    assert [chunk.usage for chunk in chunks] == [None] * len(chunks)
    assert asked(desk)["stream_options"] == {"include_usage": True}
    row = await desk.row()
    is_whole(row, "/v1/chat/completions", streamed=True)
    assert numbers(row) == OPENAI_NUMBERS
    assert row.ttft_ms is not None


async def test_a_stream_that_asks_for_usage_gets_it(desk: Desk, sdk: Sdk) -> None:
    """With `stream_options={"include_usage": True}` the SDK's last chunk is the usage frame, once."""
    desk.provider.then(stream(speech.chat_stream()))
    chunks = await sdk.stream(
        sdk.client.chat.completions.create,
        model="gpt-4o",
        messages=HELLO,
        stream=True,
        stream_options={"include_usage": True},
    )
    assert [chunk.choices == [] for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == speech.CACHED
    row = await desk.row()
    is_whole(row, "/v1/chat/completions", streamed=True)
    assert numbers(row) == OPENAI_NUMBERS


async def test_what_goes_up_is_what_the_sdk_wrote(desk: Desk, sdk: Sdk) -> None:
    """A call that asks for usage itself reaches the provider byte for byte as it does without farebox."""
    desk.provider.default = stream(speech.chat_stream())
    call = {"model": "gpt-4o", "messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}
    await sdk.stream(sdk.client.chat.completions.create, **call)
    async with openai_sdk(desk.provider.origin, desk.key, sdk.flavour) as direct:
        await sdk.stream(direct.client.chat.completions.create, **call)
    through, straight = desk.provider.requests
    assert through.body == straight.body
    left_alone = {"content-type", "accept", "accept-encoding", "user-agent", "x-stainless-lang", "x-stainless-os"}
    for name in left_alone:
        assert through.header(name) == straight.header(name), name
    assert len(await desk.rows(1)) == 1


async def test_stopping_at_done_is_a_normal_end(desk: Desk, sdk: Sdk) -> None:
    """The SDK hangs up at [DONE], before the provider ends its body: the call is complete, not left."""

    async def never_ends(_: Received, wire: Wire) -> None:
        await wire.head(200, [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")])
        for piece in speech.chat_stream():
            await wire.chunk(piece)
        await wire.hung_up()

    desk.provider.then(never_ends)
    chunks = await sdk.stream(sdk.client.chat.completions.create, model="gpt-4o", messages=HELLO, stream=True)
    assert chunks[-1].choices[0].finish_reason == "stop"
    row = await desk.row()
    is_whole(row, "/v1/chat/completions", streamed=True)
    assert numbers(row) == OPENAI_NUMBERS


async def test_a_stream_left_early_is_cut_at_the_provider(desk: Desk, sdk: Sdk) -> None:
    """Leaving the `with` block after a chunk stops the provider, and the row says so with farebox's own count."""

    async def goes_on(_: Received, wire: Wire) -> None:
        await wire.head(200, [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")])
        for piece in speech.chat_stream(usage=False, done=False)[:4]:
            await wire.chunk(piece)
        await wire.hung_up()

    desk.provider.then(goes_on)
    chunk = await sdk.first(sdk.client.chat.completions.create, model="gpt-4o", messages=HELLO, stream=True)
    assert chunk.choices[0].delta.role == "assistant"
    row = await desk.row()
    assert (row.outcome, row.status, row.usage_source) == ("client_gone", 200, "estimate")
    assert row.input_tokens is not None and row.input_tokens > 0


async def test_the_sdk_sees_a_broken_stream_as_broken(desk: Desk, sdk: Sdk) -> None:
    """A provider that breaks off mid-stream raises in the SDK's loop, and the row says upstream_cut."""
    desk.provider.then(stream(speech.chat_stream()[:3], cut="reset"))
    with pytest.raises(openai.APIConnectionError):
        await sdk.stream(sdk.client.chat.completions.create, model="gpt-4o", messages=HELLO, stream=True)
    row = await desk.row()
    assert (row.outcome, row.status) == ("upstream_cut", 200)


async def test_an_error_inside_a_stream_is_raised(desk: Desk, sdk: Sdk) -> None:
    """An error event after a 200 reaches the SDK, which raises it; the row says upstream_error."""
    fault = {"error": {"message": "The server had an error", "type": "server_error", "param": None, "code": None}}
    desk.provider.then(stream([*speech.chat_stream()[:2], frame(fault), DONE]))
    with pytest.raises(openai.APIError, match="The server had an error"):
        await sdk.stream(sdk.client.chat.completions.create, model="gpt-4o", messages=HELLO, stream=True)
    row = await desk.row()
    assert (row.outcome, row.error_type) == ("upstream_error", "server_error")


@pytest.mark.parametrize("streamed", [False, True])
async def test_tool_calls_are_counted_by_name(desk: Desk, sdk: Sdk, streamed: bool) -> None:
    """The SDK gets the call with its arguments; the row has the tool's name, how often, and their size only."""
    create = sdk.client.chat.completions.create
    if streamed:
        desk.provider.then(stream(speech.chat_stream(tools=True)))
        chunks = await sdk.stream(create, model="gpt-4o", messages=HELLO, tools=TOOLS, stream=True)
        calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
        arguments = "".join(call.function.arguments or "" for call in calls)
    else:
        desk.provider.then(plain(speech.chat(content=None, tool_calls=[speech.TOOL])))
        answer = await sdk.call(create, model="gpt-4o", messages=HELLO, tools=TOOLS)
        arguments = answer.choices[0].message.tool_calls[0].function.arguments
    assert arguments == speech.ARGUMENTS
    row = await desk.row()
    is_whole(row, "/v1/chat/completions", streamed=streamed)
    assert row.tool_calls == [{"name": "get_weather", "count": 1, "argument_bytes": len(speech.ARGUMENTS)}]
    assert row.tool_calls_count == 1
    assert numbers(row) == OPENAI_NUMBERS


async def test_the_stream_helper_works(desk: Desk, sdk: Sdk) -> None:
    """`with client.chat.completions.stream()` assembles the same completion, usage withheld as it was not asked for."""
    desk.provider.then(stream(speech.chat_stream()))
    events, final = await sdk.helped(
        sdk.client.chat.completions.stream, "get_final_completion", model="gpt-4o", messages=HELLO
    )
    assert final.choices[0].message.content == speech.TEXT
    assert final.usage is None
    assert "content.done" in {event.type for event in events}
    assert numbers(await desk.row()) == OPENAI_NUMBERS


async def test_labels_and_the_request_id(desk: Desk, sdk: Sdk) -> None:
    """Session and tags given as extra headers are in the row and not passed on; the answer names the row."""
    desk.provider.then(plain(speech.chat()))
    raw = await sdk.call(
        sdk.client.chat.completions.with_raw_response.create,
        model="gpt-4o",
        messages=HELLO,
        user="ann",
        extra_headers={"x-farebox-session": "s-1", "x-farebox-tags": "tier=cheap,env=dev"},
    )
    row = await desk.row()
    assert raw.headers["x-farebox-request-id"] == str(row.request_id)
    assert (row.session, row.end_user, row.tags) == ("s-1", "ann", {"tier": "cheap", "env": "dev"})
    assert not any(name.lower().startswith("x-farebox") for name, _ in only(desk).headers)


# -- the other operations ------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
async def test_completions(desk: Desk, sdk: Sdk, streamed: bool) -> None:
    """Legacy completions, streamed or not, are metered like chat."""
    create = sdk.client.completions.create
    if streamed:
        desk.provider.then(stream(speech.completion_stream()))
        pieces = await sdk.stream(create, model="gpt-3.5-turbo-instruct", prompt="Hello", stream=True)
        text = "".join(piece.choices[0].text for piece in pieces)
    else:
        desk.provider.then(plain(speech.completion()))
        text = (await sdk.call(create, model="gpt-3.5-turbo-instruct", prompt="Hello")).choices[0].text
    assert text == speech.TEXT
    row = await desk.row()
    is_whole(row, "/v1/completions", streamed=streamed)
    assert (row.input_tokens, row.output_tokens) == (5, 7)


@pytest.mark.parametrize("streamed", [False, True])
async def test_responses(desk: Desk, sdk: Sdk, streamed: bool) -> None:
    """The Responses API, streamed or not, is metered, and its request goes up as the SDK wrote it."""
    create = sdk.client.responses.create
    if streamed:
        desk.provider.then(stream(speech.response_stream()))
        events = await sdk.stream(create, model="gpt-4o", input="Hello!", stream=True)
        assert events[-1].type == "response.completed"
        answer = events[-1].response
    else:
        desk.provider.then(plain(speech.response()))
        answer = await sdk.call(create, model="gpt-4o", input="Hello!")
    assert answer.output_text == speech.TEXT
    assert "stream_options" not in asked(desk)
    row = await desk.row()
    is_whole(row, "/v1/responses", streamed=streamed)
    assert numbers(row) == OPENAI_NUMBERS


async def test_the_responses_stream_helper_works(desk: Desk, sdk: Sdk) -> None:
    """`with client.responses.stream()` assembles the same response."""
    desk.provider.then(stream(speech.response_stream()))
    events, final = await sdk.helped(sdk.client.responses.stream, "get_final_response", model="gpt-4o", input="Hello!")
    assert final.output_text == speech.TEXT
    assert "response.output_text.delta" in {event.type for event in events}
    is_whole(await desk.row(), "/v1/responses", streamed=True)


async def test_a_function_call_of_the_responses_api(desk: Desk, sdk: Sdk) -> None:
    """A function call in a response's output is counted by name."""
    desk.provider.then(plain(speech.response(tools=True)))
    tool = {"type": "function", **TOOLS[0]["function"], "strict": False}
    answer = await sdk.call(sdk.client.responses.create, model="gpt-4o", input="Hello!", tools=[tool])
    assert answer.output[0].arguments == speech.ARGUMENTS
    row = await desk.row()
    assert row.tool_calls == [{"name": "get_weather", "count": 1, "argument_bytes": len(speech.ARGUMENTS)}]


async def test_stored_responses_are_passed_on_unmetered(desk: Desk, sdk: Sdk) -> None:
    """Reading a response again bills nothing: it passes, with a row that counts no tokens."""
    desk.provider.then(plain(speech.response()))
    answer = await sdk.call(sdk.client.responses.retrieve, "resp_1")
    assert answer.output_text == speech.TEXT
    assert (only(desk).method, only(desk).target) == ("GET", "/v1/responses/resp_1")
    row = await desk.row()
    assert (row.operation, row.endpoint, row.outcome) == ("other", "/v1/responses/{id}", "complete")
    assert (row.input_tokens, row.output_tokens, row.usage_source, row.cost_usd) == (None, None, "none", None)


async def test_a_failed_job_is_read_without_failing(desk: Desk, sdk: Sdk) -> None:
    """A stored job that tells of an error of its own is an answer like any other: the row is complete."""
    job = {"id": "ftjob-1", "object": "fine_tuning.job", "status": "failed", "model": "gpt-4o-mini"}
    fault = {"code": "invalid_training_file", "message": "it does not parse", "param": "training_file"}
    desk.provider.then(plain(speech.body({**job, "error": fault})))
    answer = await sdk.call(sdk.client.fine_tuning.jobs.retrieve, "ftjob-1")
    assert answer.error.code == "invalid_training_file"
    row = await desk.row()
    assert (row.endpoint, row.outcome, row.error_code) == ("/v1/fine_tuning/jobs/{id}", "complete", None)


async def test_embeddings(desk: Desk, sdk: Sdk) -> None:
    """The SDK asks for base64 and decodes it itself; the row has the input tokens."""
    vector = [0.5, -0.25, 1.0]
    desk.provider.then(plain(speech.embeddings(base64.b64encode(struct.pack("<3f", *vector)).decode())))
    answer = await sdk.call(sdk.client.embeddings.create, model="text-embedding-3-small", input="Hello!")
    assert answer.data[0].embedding == vector
    assert asked(desk)["encoding_format"] == "base64"
    row = await desk.row()
    is_whole(row, "/v1/embeddings")
    assert (row.input_tokens, row.total_tokens) == (8, 8)


async def test_moderations_are_free(desk: Desk, sdk: Sdk) -> None:
    """A moderation is a row that uses nothing and costs nothing."""
    desk.provider.then(plain(speech.moderation()))
    answer = await sdk.call(sdk.client.moderations.create, model="omni-moderation-latest", input="Hello!")
    assert answer.results[0].flagged is False
    row = await desk.row()
    assert (row.operation, row.outcome, row.usage_source, row.cost_usd) == ("moderations", "complete", "none", 0)


async def test_a_model_of_ones_own_is_deleted(desk: Desk, sdk: Sdk) -> None:
    """What changes models goes up, unlike reading their list, to the provider of the first route without a model."""
    desk.provider.then(plain(speech.body({"id": "ft:gpt-4o:1", "object": "model", "deleted": True})))
    assert (await sdk.call(sdk.client.models.delete, "ft:gpt-4o:1")).deleted
    assert (only(desk).method, only(desk).target) == ("DELETE", "/v1/models/ft:gpt-4o:1")
    row = await desk.row()
    assert (row.operation, row.endpoint, row.provider) == ("other", "/v1/models/{id}", "openai")


async def test_a_file_goes_up_whole(desk: Desk, sdk: Sdk) -> None:
    """An upload through the SDK arrives byte for byte, with a row that counts no tokens."""
    content = random.Random(1).randbytes(300_000)
    desk.provider.then(plain(speech.file_object(len(content))))
    uploaded = await sdk.call(sdk.client.files.create, file=("batch.jsonl", content), purpose="batch")
    assert uploaded.id == "file-abc123"
    request = only(desk)
    assert request.target == "/v1/files"
    assert (request.header("content-type") or "").startswith("multipart/form-data; boundary=")
    assert content in request.body
    row = await desk.row()
    assert (row.operation, row.endpoint, row.outcome, row.usage_source) == ("other", "/v1/files", "complete", "none")


async def test_a_file_comes_down_whole(desk: Desk, sdk: Sdk) -> None:
    """A download through the SDK has every byte."""
    content = random.Random(2).randbytes(300_000)
    desk.provider.then(plain(content, content_type="application/octet-stream", pieces=7))
    answer = await sdk.call(sdk.client.files.content, "file-abc123")
    assert answer.content == content
    row = await desk.row()
    assert (row.endpoint, row.outcome) == ("/v1/files/{id}/content", "complete")


async def test_azure(desk: Desk, flavour: Flavour) -> None:
    """Azure's client reaches its deployment by /p/azure: path and query kept, the key in api-key."""
    desk.provider.then(plain(speech.chat()))
    endpoint = f"{desk.app.base_url}/p/azure"
    async with azure_sdk(endpoint, desk.key, flavour, api_version="2024-10-21") as sdk:
        await sdk.call(sdk.client.chat.completions.create, model="my-gpt", messages=HELLO)
    request = only(desk)
    assert request.target == "/openai/deployments/my-gpt/chat/completions?api-version=2024-10-21"
    assert request.header("api-key") == PROVIDER_KEY
    assert desk.key not in str(request.headers)
    row = await desk.row()
    is_whole(row, "/openai/deployments/{deployment}/chat/completions")
    assert (row.provider, row.dialect, numbers(row)) == ("azure", "azure", OPENAI_NUMBERS)


# -- errors --------------------------------------------------------------------------------------


async def test_a_wrong_key_is_an_authentication_error_at_once(desk: Desk, flavour: Flavour) -> None:
    """A key that farebox does not know: AuthenticationError after one request, nothing upstream, no row."""
    async with tapped(desk.app.port) as tap, openai_sdk(tap.origin, "fb-nope", flavour) as sdk:
        with pytest.raises(openai.AuthenticationError) as caught:
            await sdk.call(sdk.client.chat.completions.create, model="gpt-4o", messages=HELLO)
        assert tap.requests == [b"POST /v1/chat/completions HTTP/1.1"]
    assert caught.value.code == "invalid_api_key"
    assert "farebox keys create" in caught.value.message
    assert desk.provider.requests == []
    assert await desk.rows() == []


async def test_a_model_the_key_may_not_use_is_not_found(served: Serving, flavour: Flavour) -> None:
    """A key limited to other models gets NotFoundError with model_not_found, as OpenAI words it; no row."""
    desk = await served.desk(models=["gpt-4o*"])
    async with tapped(desk.app.port) as tap, openai_sdk(tap.origin, desk.key, flavour) as sdk:
        with pytest.raises(openai.NotFoundError) as caught:
            await sdk.call(sdk.client.chat.completions.create, model="o9-mega", messages=HELLO)
        assert len(tap.requests) == 1
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert "o9-mega" in caught.value.message
    assert desk.provider.requests == []
    assert await desk.rows() == []


STATUSES: list[tuple[int, type[openai.APIStatusError]]] = [
    (400, openai.BadRequestError),
    (401, openai.AuthenticationError),
    (403, openai.PermissionDeniedError),
    (404, openai.NotFoundError),
    (409, openai.ConflictError),
    (422, openai.UnprocessableEntityError),
    (429, openai.RateLimitError),
    (500, openai.InternalServerError),
    (529, openai.InternalServerError),
]


@pytest.mark.parametrize(("status", "error"), STATUSES)
async def test_the_providers_errors_arrive_verbatim(
    desk: Desk, flavour: Flavour, status: int, error: type[openai.APIStatusError]
) -> None:
    """Each status raises the SDK's own class with the provider's body and headers; one row, free."""
    fault = {"message": "as the provider says it", "type": "some_error", "param": "messages", "code": "some_code"}
    desk.provider.then(
        plain(speech.body({"error": fault}), status=status, headers=[("x-ratelimit-remaining-requests", "41")])
    )
    async with openai_sdk(desk.app.base_url, desk.key, flavour, max_retries=0) as sdk:
        with pytest.raises(error) as caught:
            await sdk.call(sdk.client.chat.completions.create, model="gpt-4o", messages=HELLO)
    assert caught.value.status_code == status
    assert caught.value.body == fault
    assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "41"
    row = await desk.row()
    assert (row.outcome, row.status, row.usage_source, row.cost_usd) == ("upstream_error", status, "none", Decimal(0))
    assert (row.error_type, row.error_code) == ("some_error", "some_code")


async def test_the_sdk_retries_a_503(desk: Desk, sdk: Sdk) -> None:
    """Two 503 and a completion: the SDK retries as the provider's retry-after says, and each try is a row."""
    busy = plain(b'{"error":{"message":"busy"}}', status=503, headers=[("retry-after-ms", "1")])
    desk.provider.then(busy, busy, plain(speech.chat()))
    answer = await sdk.call(sdk.client.chat.completions.create, model="gpt-4o", messages=HELLO)
    assert answer.choices[0].message.content == speech.TEXT
    retries = [request.header("x-stainless-retry-count") for request in desk.provider.requests]
    assert retries == ["0", "1", "2"]
    rows = await desk.rows(3)
    assert [(row.outcome, row.status) for row in rows] == [
        ("upstream_error", 503),
        ("upstream_error", 503),
        ("complete", 200),
    ]
    assert len({row.request_id for row in rows}) == 3
    assert [numbers(row) for row in rows] == [(None,) * 4, (None,) * 4, OPENAI_NUMBERS]


# -- Anthropic -----------------------------------------------------------------------------------

CLAUDE = "claude-test-1"
CLAUDE_NUMBERS = (speech.FRESH + speech.READ + speech.WRITTEN, speech.READ, speech.WRITTEN, speech.OUTPUT)


def cache_numbers(row: UsageRow) -> tuple[int | None, ...]:
    return row.input_tokens, row.cache_read_tokens, row.cache_write_tokens, row.output_tokens


async def test_a_message_is_one_exact_row(desk: Desk, claude: Sdk) -> None:
    """Anthropic's SDK gets its message; the row counts caches as input; the provider's key goes up as x-api-key."""
    desk.provider.then(plain(speech.message(), headers=[("request-id", "req_2")]))
    answer = await claude.call(claude.client.messages.create, model=CLAUDE, max_tokens=64, messages=HELLO)
    assert answer.content[0].text == speech.TEXT
    assert answer._request_id == "req_2"
    request = only(desk)
    assert (request.target, request.header("x-api-key")) == ("/v1/messages", PROVIDER_KEY)
    assert request.header("authorization") is None
    assert request.header("anthropic-version")
    assert desk.key not in str(request.headers)
    row = await desk.row()
    is_whole(row, "/v1/messages")
    assert cache_numbers(row) == CLAUDE_NUMBERS
    assert (row.provider, row.dialect, row.operation) == ("claude", "anthropic", "messages")
    assert (row.model, row.upstream_request_id) == (CLAUDE, "req_2")


async def test_a_streamed_message_is_one_exact_row(desk: Desk, claude: Sdk) -> None:
    """`messages.create(stream=True)`: every event arrives, pings dropped by the SDK itself, and the row is exact."""
    desk.provider.then(stream(speech.message_stream()))
    events = await claude.stream(
        claude.client.messages.create, model=CLAUDE, max_tokens=64, messages=HELLO, stream=True
    )
    assert events[-1].type == "message_stop"
    assert "".join(e.delta.text for e in events if e.type == "content_block_delta") == speech.TEXT
    assert "stream_options" not in asked(desk)
    row = await desk.row()
    is_whole(row, "/v1/messages", streamed=True)
    assert cache_numbers(row) == CLAUDE_NUMBERS


async def test_the_message_stream_helper_works(desk: Desk, claude: Sdk) -> None:
    """`with client.messages.stream()` assembles the same message."""
    desk.provider.then(stream(speech.message_stream()))
    _, final = await claude.helped(
        claude.client.messages.stream, "get_final_message", model=CLAUDE, max_tokens=64, messages=HELLO
    )
    assert final.content[0].text == speech.TEXT
    assert final.usage.output_tokens == speech.OUTPUT
    assert cache_numbers(await desk.row()) == CLAUDE_NUMBERS


@pytest.mark.parametrize("streamed", [False, True])
async def test_tool_use_is_counted_by_name(desk: Desk, claude: Sdk, streamed: bool) -> None:
    """A tool_use block, whole or in deltas, is in the row by name, number and size."""
    call: dict[str, Any] = {"model": CLAUDE, "max_tokens": 64, "messages": HELLO}
    call["tools"] = [{"name": "get_weather", "input_schema": {"type": "object"}}]
    if streamed:
        desk.provider.then(stream(speech.message_stream(tools=True)))
        _, answer = await claude.helped(claude.client.messages.stream, "get_final_message", **call)
    else:
        desk.provider.then(plain(speech.message(tools=True)))
        answer = await claude.call(claude.client.messages.create, **call)
    assert answer.content[0].input == {"city": "Oslo"}
    row = await desk.row()
    (tool,) = row.tool_calls
    assert (tool["name"], tool["count"], row.tool_calls_count) == ("get_weather", 1, 1)
    assert cache_numbers(row) == CLAUDE_NUMBERS


async def test_a_message_left_early_is_cut_at_the_provider(desk: Desk, claude: Sdk) -> None:
    """Leaving a message stream stops the provider; input is the provider's, output what was seen."""

    async def goes_on(_: Received, wire: Wire) -> None:
        await wire.head(200, [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")])
        for piece in speech.message_stream()[:4]:
            await wire.chunk(piece)
        await wire.hung_up()

    desk.provider.then(goes_on)
    event = await claude.first(claude.client.messages.create, model=CLAUDE, max_tokens=64, messages=HELLO, stream=True)
    assert event.type == "message_start"
    row = await desk.row()
    assert (row.outcome, row.usage_source) == ("client_gone", "partial")
    assert cache_numbers(row)[:3] == CLAUDE_NUMBERS[:3]
    assert row.output_tokens is not None and row.output_tokens >= 1


async def test_counting_tokens_is_passed_on_unmetered(desk: Desk, claude: Sdk) -> None:
    """`messages.count_tokens` bills nothing: it passes, with a row that counts no tokens."""
    desk.provider.then(plain(b'{"input_tokens": 14}'))
    answer = await claude.call(claude.client.messages.count_tokens, model=CLAUDE, messages=HELLO)
    assert answer.input_tokens == 14
    assert only(desk).target == "/v1/messages/count_tokens"
    row = await desk.row()
    assert (row.endpoint, row.operation) == ("/v1/messages/count_tokens", "other")
    assert (row.input_tokens, row.usage_source) == (None, "none")


async def test_anthropics_sdk_understands_a_refusal(desk: Desk, flavour: Flavour) -> None:
    """A wrong key raises Anthropic's AuthenticationError after one request, in Anthropic's error shape."""
    async with tapped(desk.app.port) as tap, anthropic_sdk(tap.origin, "fb-nope", flavour) as claude:
        with pytest.raises(anthropic.AuthenticationError) as caught:
            await claude.call(claude.client.messages.create, model=CLAUDE, max_tokens=64, messages=HELLO)
        assert len(tap.requests) == 1
    body: Any = caught.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "authentication_error")
    assert desk.provider.requests == []
    assert await desk.rows() == []


async def test_anthropics_sdk_retries_an_overload(desk: Desk, claude: Sdk) -> None:
    """A 529 is retried by the SDK; each try is a row."""
    fault = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    desk.provider.then(
        plain(speech.body(fault), status=529, headers=[("retry-after-ms", "1")]), plain(speech.message())
    )
    await claude.call(claude.client.messages.create, model=CLAUDE, max_tokens=64, messages=HELLO)
    rows = await desk.rows(2)
    assert [(row.outcome, row.status, row.error_type) for row in rows] == [
        ("upstream_error", 529, "overloaded_error"),
        ("complete", 200, None),
    ]


# -- many at once --------------------------------------------------------------------------------


async def test_one_client_shared_by_many_calls(desk: Desk, sdk: Sdk) -> None:
    """Calls of one client side by side, streamed and not, over its pool of connections: a row each, none mixed up."""

    def answer(n: int) -> bytes:
        usage = {"prompt_tokens": n, "completion_tokens": 1, "total_tokens": n + 1}
        return speech.body({**json.loads(speech.chat()), "usage": usage})

    async def echo(request: Received, wire: Wire) -> None:
        await plain(answer(int(json.loads(request.body)["user"])))(request, wire)

    desk.provider.default = echo
    create: Callable[..., Any] = sdk.client.chat.completions.create
    calls = [sdk.call(create, model="gpt-4o", messages=HELLO, user=str(n)) for n in range(1, 31)]
    answers = await asyncio.gather(*calls)
    assert [answer.usage.prompt_tokens for answer in answers] == list(range(1, 31))
    rows = await desk.rows(30)
    assert sorted((row.end_user, row.input_tokens) for row in rows) == sorted((str(n), n) for n in range(1, 31))
    await eventually(lambda: desk.app.proxy.in_flight == 0)
