"""How calls end, through a running farebox: whoever breaks off, the other side learns it, and there is one row."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from farebox.tokens import Tokens
from support.answers import DONE, chunk, finish, frame, usage, usage_frame
from support.clock import Leaps
from support.live import Desk, Serving, eventually, relaying, serving
from support.postgres import PostgresServer
from support.provider import Received, Script, Wire, plain, stream

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(postgres: PostgresServer) -> AsyncIterator[Serving]:
    async with serving(postgres, ["up"], relaying, limits={"client_stall_timeout_s": 1}) as serving_:
        yield serving_


@pytest_asyncio.fixture(loop_scope="module")
async def desk(served: Serving) -> AsyncIterator[Desk]:
    yield await served.desk()
    await served.settled()


CHAT = "/v1/chat/completions"
PROMPT = "Say hello to the whole wide world"
ASKED = {"model": "m", "stream": True, "prompt": PROMPT, "stream_options": {"include_usage": True}}
BODY = {"model": "m", "prompt": PROMPT}
LEGACY = "/v1/completions"
"""Prompts of legacy completions have no template around them: an estimate is the count of the text."""
TEXT = "Hello there, dear reader"
SSE = [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")]
START = frame({"id": "c", "model": "m-1", "choices": [{"index": 0, "text": TEXT}]})
JSON = json.dumps({"id": "c", "choices": [{"text": TEXT, "finish_reason": "stop"}], "usage": usage()}).encode()
COUNT = Tokens()


def tokens(text: str) -> int:
    return COUNT.count(text, "o200k_base")


# -- the provider breaks off ---------------------------------------------------------------------


async def _rest(wire: Wire) -> None:
    await wire.hung_up()


async def cut_fin(_: Received, wire: Wire) -> None:
    await wire.head(200, SSE)
    await wire.chunk(START)
    wire.close()


async def cut_in_a_chunk(_: Received, wire: Wire) -> None:
    await wire.head(200, SSE)
    await wire.send(b"%x\r\n%b" % (len(START) + 100, START))
    wire.close()


async def cut_reset(_: Received, wire: Wire) -> None:
    await wire.head(200, SSE)
    await wire.chunk(START)
    await forwarded.wait()
    wire.reset()


async def cut_bad_chunk(_: Received, wire: Wire) -> None:
    await wire.head(200, SSE)
    await wire.chunk(START)
    await forwarded.wait()
    await wire.send(b"zz\r\n")
    await _rest(wire)


async def cut_reset_unframed(_: Received, wire: Wire) -> None:
    await wire.head(200, [("Content-Type", "text/event-stream"), ("Connection", "close")])
    await wire.send(START)
    await forwarded.wait()
    wire.reset()


async def cut_short_length(_: Received, wire: Wire) -> None:
    await wire.head(200, [("Content-Type", "text/event-stream"), ("Content-Length", "100000")])
    await wire.send(START)
    wire.close()


async def cut_idle(_: Received, wire: Wire) -> None:
    await wire.head(200, SSE)
    await wire.chunk(START)
    await _rest(wire)


async def cut_fin_unframed(_: Received, wire: Wire) -> None:
    await wire.head(200, [("Content-Type", "text/event-stream"), ("Connection", "close")])
    await wire.send(START)
    wire.close()


forwarded: asyncio.Event
"""Set once the client has the first part: a reset may overtake bytes that were not read yet."""

CUTS = {
    "close without a last chunk": cut_fin,
    "close within a chunk": cut_in_a_chunk,
    "reset": cut_reset,
    "reset of an unframed body": cut_reset_unframed,
    "broken chunking": cut_bad_chunk,
    "short of its length": cut_short_length,
    "silence": cut_idle,
    "close of an unframed body": cut_fin_unframed,
}


@pytest.mark.parametrize("case", CUTS)
async def test_a_stream_that_breaks_breaks_for_the_client_too(desk: Desk, case: str) -> None:
    """However a stream breaks off: the client has what came, its connection breaks, and the row is upstream_cut."""
    global forwarded
    forwarded = asyncio.Event()
    desk.provider.then(CUTS[case])
    target = "/p/impatient/completions" if case == "silence" else LEGACY
    async with desk.client() as client, asyncio.timeout(10):
        await client.send("POST", target, [desk.auth], json.dumps(ASKED).encode())
        head = await client.head()
        if head.header("transfer-encoding") == "chunked":
            assert await client.chunks(len(START)) == START
        else:
            assert await client.reader.readexactly(len(START)) == START
        forwarded.set()
        try:
            assert not await client.reader.read()  # no last chunk: what is there is not a whole answer
        except ConnectionResetError:
            pass
    row = await desk.row()
    assert (row.status, row.outcome, row.usage_source) == (200, "upstream_cut", "estimate")
    assert (row.input_tokens, row.output_tokens) == (tokens(PROMPT), tokens(TEXT))
    assert row.model == "m-1"


async def test_what_was_held_goes_on_when_the_stream_breaks(desk: Desk) -> None:
    """A part of what might have become the usage frame is the client's when the frame never comes."""
    held = usage_frame()[:-30]

    async def script(_: Received, wire: Wire) -> None:
        await wire.head(200, SSE)
        await wire.chunk(START + held)
        wire.close()

    desk.provider.then(script)
    answer = await desk.call(LEGACY, {"model": "m", "prompt": PROMPT, "stream": True})
    assert (answer.body, answer.clean) == (START + held, False)
    assert (await desk.row()).outcome == "upstream_cut"


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_json_answer_that_breaks_breaks_for_the_client_too(desk: Desk, framing: str) -> None:
    """A body short of its length, or without its last chunk, never looks whole."""

    async def script(_: Received, wire: Wire) -> None:
        if framing == "length":
            await wire.head(200, [("Content-Type", "application/json"), ("Content-Length", str(len(JSON)))])
            await wire.send(JSON[:-10])
        else:
            await wire.head(200, [("Content-Type", "application/json"), ("Transfer-Encoding", "chunked")])
            await wire.chunk(JSON[:-10])
        wire.close()

    desk.provider.then(script)
    answer = await desk.call(LEGACY, BODY)
    assert (answer.body, answer.clean) == (JSON[:-10], False)
    row = await desk.row()
    assert (row.outcome, row.input_tokens) == ("upstream_cut", tokens(PROMPT))


async def test_a_cut_keeps_what_the_provider_had_reported(desk: Desk) -> None:
    """A messages stream that breaks after its start: the reported input stays, the output seen is counted."""
    start = {"type": "message_start", "message": {"id": "x", "model": "claude-1", "usage": {"input_tokens": 40}}}
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": TEXT}}
    pieces = [frame(start, event="message_start"), frame(delta, event="content_block_delta")]
    desk.provider.then(stream(pieces, cut="close"))
    answer = await desk.call("/v1/messages", {"model": "claude-1", "stream": True, "messages": []})
    assert (answer.body, answer.clean) == (b"".join(pieces), False)
    row = await desk.row()
    assert (row.outcome, row.usage_source) == ("upstream_cut", "partial")
    assert (row.input_tokens, row.output_tokens) == (40, tokens(TEXT))


@pytest.mark.parametrize("how", ["close", "reset", "garbage"])
async def test_no_answer_at_all_is_a_502_and_a_row_without_status(desk: Desk, how: str) -> None:
    """A provider that hangs up, or says what is no HTTP, after the request: 502, and the row says what is known."""

    async def script(_: Received, wire: Wire) -> None:
        if how == "garbage":
            await wire.send(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")
            wire.close()
        else:
            getattr(wire, how)()

    desk.provider.then(script)
    answer = await desk.call(LEGACY, BODY)
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (502, "upstream_unreachable")
    row = await desk.row()
    assert (row.status, row.outcome, row.usage_source) == (None, "upstream_error", "estimate")
    assert (row.input_tokens, row.output_tokens) == (tokens(PROMPT), 0)
    assert row.error_code is not None


async def test_a_break_after_the_terminal_event_changes_nothing(desk: Desk) -> None:
    """The answer was whole at [DONE]; a connection that breaks then costs the row nothing."""
    desk.provider.then(stream([START, usage_frame(), DONE], cut="close"))
    answer = await desk.call(LEGACY, ASKED)
    assert answer.body == START + usage_frame() + DONE
    row = await desk.row()
    assert (row.outcome, row.input_tokens, row.output_tokens) == ("complete", 7, 3)


# -- the row comes first -------------------------------------------------------------------------

TERMINAL: dict[str, tuple[str, dict[str, object], list[bytes]]] = {
    "[DONE] after usage": (CHAT, ASKED, [frame(chunk(TEXT)), usage_frame(), DONE]),
    "[DONE] without usage": (CHAT, ASKED, [frame(chunk(TEXT)), frame(finish()), DONE]),
    "response.completed": (
        "/v1/responses",
        {"model": "m", "stream": True, "input": PROMPT},
        [
            frame(
                {
                    "type": "response.completed",
                    "response": {"id": "r", "usage": {"input_tokens": 7, "output_tokens": 3}},
                },
                event="response.completed",
            )
        ],
    ),
    "message_stop": (
        "/v1/messages",
        {"model": "claude-1", "stream": True, "messages": []},
        [
            frame(
                {"type": "message_start", "message": {"id": "m", "usage": {"input_tokens": 7}}}, event="message_start"
            ),
            frame({"type": "message_delta", "delta": {}, "usage": {"output_tokens": 3}}, event="message_delta"),
            frame({"type": "message_stop"}, event="message_stop"),
        ],
    ),
}


@pytest.mark.parametrize("case", TERMINAL)
async def test_the_row_is_there_before_the_connection_ends(desk: Desk, case: str) -> None:
    """The provider sends its terminal event and then nothing, not even an end: the row is in Postgres all the same."""
    target, request, pieces = TERMINAL[case]

    async def script(_: Received, wire: Wire) -> None:
        await wire.head(200, SSE)
        for piece in pieces:
            await wire.chunk(piece)
        await _rest(wire)

    desk.provider.then(script)
    async with desk.client() as client, asyncio.timeout(10):
        await client.send("POST", target, [desk.auth], json.dumps(request).encode())
        await client.head()
        body = b"".join(pieces)
        assert await client.chunks(len(body)) == body
        assert desk.app.ledger.in_flight == 0  # at the very moment the client has its last bytes
        row = await desk.row()
        assert row.outcome == "complete"
        assert desk.app.proxy.in_flight == 1


async def test_the_row_of_a_json_answer_comes_before_its_last_byte(desk: Desk) -> None:
    """When the last announced byte is there, so is the row."""

    async def script(_: Received, wire: Wire) -> None:
        await wire.head(200, [("Content-Type", "application/json"), ("Content-Length", str(len(JSON)))])
        await wire.send(JSON[:-1])
        await before_last.wait()
        await wire.send(JSON[-1:])

    before_last = asyncio.Event()
    desk.provider.then(script)
    async with desk.client() as client, asyncio.timeout(10):
        await client.send("POST", LEGACY, [desk.auth], json.dumps(BODY).encode())
        await client.head()
        assert await client.reader.readexactly(len(JSON) - 1) == JSON[:-1]
        assert desk.app.ledger.in_flight == 1
        before_last.set()
        assert await client.reader.readexactly(1) == JSON[-1:]
        assert desk.app.ledger.in_flight == 0
    assert (await desk.row()).input_tokens == 7


# -- the client leaves ---------------------------------------------------------------------------


async def streaming_for_ever(_: Received, wire: Wire) -> None:
    await wire.head(200, SSE)
    await wire.chunk(START)
    await wire.hung_up()


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_stream_whose_client_leaves_is_given_up(desk: Desk, how: str) -> None:
    """The provider's connection is closed at once, and the row is client_gone with what was seen."""
    left = asyncio.Event()

    async def script(request: Received, wire: Wire) -> None:
        await streaming_for_ever(request, wire)
        left.set()

    desk.provider.then(script)
    async with desk.client() as client, asyncio.timeout(10):
        await client.send("POST", LEGACY, [desk.auth], json.dumps(ASKED).encode())
        await client.head()
        assert await client.chunks(len(START)) == START
        if how == "reset":
            client.abort()
    async with asyncio.timeout(10):
        await left.wait()
    row = await desk.row()
    assert (row.status, row.outcome, row.usage_source) == (200, "client_gone", "estimate")
    assert (row.input_tokens, row.output_tokens) == (tokens(PROMPT), tokens(TEXT))


async def test_a_client_that_leaves_before_the_head(desk: Desk) -> None:
    """A stream that has not begun is given up as well; the row has no status."""

    async def script(_: Received, wire: Wire) -> None:
        asked.set()
        await wire.hung_up()

    asked = asyncio.Event()
    desk.provider.then(script)
    async with desk.client() as client, asyncio.timeout(10):
        await client.send("POST", LEGACY, [desk.auth], json.dumps(ASKED).encode())
        await asked.wait()
    row = await desk.row()
    assert (row.status, row.outcome, row.usage_source) == (None, "client_gone", "estimate")
    assert (row.input_tokens, row.output_tokens) == (tokens(PROMPT), 0)


async def test_a_client_that_leaves_after_the_terminal_event(desk: Desk) -> None:
    """Closing at [DONE] is a normal end, as the Python SDK does it: the row is complete and exact."""

    async def script(_: Received, wire: Wire) -> None:
        await wire.head(200, SSE)
        await wire.chunk(START + usage_frame() + DONE)
        await wire.hung_up()

    desk.provider.then(script)
    async with desk.client() as client, asyncio.timeout(10):
        await client.send("POST", LEGACY, [desk.auth], json.dumps(ASKED).encode())
        await client.head()
        await client.chunks(len(START + usage_frame() + DONE))
    await desk.farebox.idle()
    row = await desk.row()
    assert (row.outcome, row.usage_source, row.input_tokens) == ("complete", "provider", 7)


def after(event: asyncio.Event, script: Script, asked: asyncio.Event) -> Script:
    async def waiting(request: Received, wire: Wire) -> None:
        asked.set()
        await event.wait()
        await script(request, wire)

    return waiting


@pytest.mark.parametrize("at", ["before the head", "in the body"])
async def test_a_call_that_does_not_stream_is_read_to_its_end(desk: Desk, at: str) -> None:
    """It is billed whole anyway: farebox reads on without the client, and the row has the exact usage."""
    asked, gone = asyncio.Event(), asyncio.Event()

    async def in_the_body(_: Received, wire: Wire) -> None:
        await wire.head(200, [("Content-Type", "application/json"), ("Content-Length", str(len(JSON)))])
        await wire.send(JSON[:20])
        asked.set()
        await gone.wait()
        await wire.send(JSON[20:])

    desk.provider.then(in_the_body if at == "in the body" else after(gone, plain(JSON), asked))
    async with desk.client() as client, asyncio.timeout(10):
        await client.send("POST", LEGACY, [desk.auth], json.dumps(BODY).encode())
        await asked.wait()
        if at == "in the body":
            await client.head()
    await desk.farebox.deserted()
    gone.set()
    row = await desk.row()
    assert (row.status, row.outcome, row.usage_source) == (200, "client_gone", "provider")
    assert (row.input_tokens, row.output_tokens) == (7, 3)


async def test_a_client_that_stops_reading_is_dropped(desk: Desk) -> None:
    """Past limits.client_stall_timeout_s a client that takes nothing counts as gone, and the provider is let go."""

    async def script(_: Received, wire: Wire) -> None:
        await wire.head(200, SSE)
        try:
            while True:
                await wire.chunk(frame(chunk("x" * 60_000)))
        except ConnectionError:
            wire.close()

    desk.provider.then(script)
    async with desk.client() as client, asyncio.timeout(30):
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await client.send("POST", CHAT, [desk.auth], json.dumps(ASKED).encode())
        row = await desk.row()
        assert (row.status, row.outcome) == (200, "client_gone")
        await desk.farebox.idle()


async def test_a_client_that_stops_sending_leaves_no_row(desk: Desk) -> None:
    """A body that stops arriving is refused; nothing was sent to a provider, so there is nothing to record."""
    async with desk.client() as client, asyncio.timeout(10):
        await client.send("POST", CHAT, [desk.auth, ("Content-Length", "100")])
        client.writer.write(b"{")
        await asyncio.sleep(0.1)
        await Leaps().by(1)
        assert (await client.answer()).status == 400
    assert not desk.provider.requests
    assert not await desk.rows()


POLICIES = ["drain", "abort", "timeout"]


@pytest.mark.parametrize("policy", POLICIES)
async def test_the_policy_for_leaving_clients_can_be_set(postgres: PostgresServer, policy: str) -> None:
    """`drain` reads streams on for their usage, `abort` gives up other calls, and a drain has its time."""
    metering = {"on_client_disconnect": "abort" if policy == "abort" else "drain"}
    metering |= {"drain_timeout_s": 0.1} if policy == "timeout" else {}
    asked, gone = asyncio.Event(), asyncio.Event()
    scripts: dict[str, Script] = {
        "drain": after(gone, stream([START, usage_frame(), DONE]), asked),
        "abort": after(asked, streaming_for_ever, asked),
        "timeout": after(asked, streaming_for_ever, asked),
    }
    request = BODY if policy == "abort" else ASKED
    async with serving(postgres, ["up"], relaying, metering=metering) as served:
        desk = await served.desk()
        desk.provider.then(scripts[policy])
        async with desk.client() as client, asyncio.timeout(10):
            await client.send("POST", LEGACY, [desk.auth], json.dumps(request).encode())
            await asked.wait()
        await desk.farebox.deserted()
        gone.set()
        row = await desk.row()
        await served.settled()
    assert row.outcome == "client_gone"
    assert row.usage_source == ("provider" if policy == "drain" else "estimate")


# -- errors --------------------------------------------------------------------------------------

PROMPT_QUOTE = "planted words of a prompt"
ERRORS: dict[str, tuple[str, list[bytes], str | None, str | None]] = {
    "in a chat stream": (
        CHAT,
        [
            frame(chunk("Hel")),
            frame({"error": {"message": PROMPT_QUOTE, "type": "server_error", "code": "overloaded"}}),
        ],
        "server_error",
        "overloaded",
    ),
    "in a messages stream": (
        "/v1/messages",
        [
            frame({"type": "message_start", "message": {"usage": {"input_tokens": 7}}}, event="message_start"),
            frame({"type": "error", "error": {"type": "overloaded_error", "message": PROMPT_QUOTE}}, event="error"),
        ],
        "overloaded_error",
        None,
    ),
    "in a responses stream": (
        "/v1/responses",
        [
            frame({"type": "response.created", "response": {"id": "r"}}, event="response.created"),
            frame({"type": "error", "code": "rate_limit_exceeded", "message": PROMPT_QUOTE}, event="error"),
        ],
        None,
        "rate_limit_exceeded",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
async def test_an_error_inside_a_stream_passes_and_is_recorded(desk: Desk, case: str) -> None:
    """The client gets the error as sent; the row is upstream_error with its type and code, never its words."""
    target, pieces, kind, code = ERRORS[case]
    desk.provider.then(stream(pieces))
    answer = await desk.call(target, {**ASKED, "model": "claude-1" if "messages" in target else "m"})
    assert (answer.status, answer.body) == (200, b"".join(pieces))
    row = await desk.row()
    assert (row.status, row.outcome) == (200, "upstream_error")
    assert row.error_code == code
    assert kind is None or row.error_type == kind
    assert PROMPT_QUOTE not in repr(row)


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 409, 413, 422, 429, 500, 502, 503, 504, 529])
async def test_an_error_passes_verbatim_and_costs_nothing(desk: Desk, status: int) -> None:
    """Status, body, retry-after and rate-limit headers are the provider's; the row has cost 0 and no tokens."""
    body = json.dumps({"error": {"message": PROMPT_QUOTE, "type": "t", "code": "c", "param": None}}).encode() + b"\n"
    headers = [("Retry-After", "7"), ("retry-after-ms", "6800"), ("x-ratelimit-reset-tokens", "6m0s")]
    desk.provider.then(plain(body, status=status, headers=headers))
    answer = await desk.call(CHAT, {"model": "m", "stream": True})
    assert (answer.status, answer.body) == (status, body)
    assert [field for field in answer.headers if field in headers] == headers
    row = await desk.row()
    assert (row.status, row.outcome, row.error_type, row.error_code) == (status, "upstream_error", "t", "c")
    assert (row.usage_source, row.cost_usd, row.input_tokens, row.output_tokens) == ("none", 0, None, None)
    assert PROMPT_QUOTE not in repr(row)


async def test_a_cut_call_leaves_nothing_behind(desk: Desk) -> None:
    """After calls that broke in every way, no call is counted as open and no journal entry waits for its end."""
    desk.provider.then(cut_fin, cut_short_length, plain(JSON))
    for _ in range(3):
        await desk.call(LEGACY, ASKED)
    await eventually(lambda: desk.app.proxy.in_flight == 0 and desk.app.ledger.in_flight == 0)
    assert [row.outcome for row in await desk.rows(3)] == ["upstream_cut", "upstream_cut", "complete"]
