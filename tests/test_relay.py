"""Provider to client through a running farebox: every byte, as it comes, less the one frame farebox itself caused."""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
import zlib
from collections.abc import AsyncIterator, Callable

import brotli
import pytest
import pytest_asyncio

from support.answers import DONE, chunk, cut, finish, frame, singly, usage, usage_frame
from support.live import PROVIDER_KEY, Desk, Serving, quiet, relaying, serving
from support.postgres import PostgresServer
from support.provider import Received, Wire, plain, stream

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(postgres: PostgresServer) -> AsyncIterator[Serving]:
    async with serving(postgres, ["up"], relaying) as serving_:
        yield serving_


@pytest_asyncio.fixture(loop_scope="module")
async def desk(served: Serving) -> AsyncIterator[Desk]:
    yield await served.desk()
    await served.settled()


CHAT = "/v1/chat/completions"
QUIET = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
ASKED = {**QUIET, "stream_options": {"include_usage": True}}
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
HEAD = b"".join([frame(chunk("Hel")), frame(chunk("lo")), frame(finish())])
USAGE = usage_frame()


# -- bytes ---------------------------------------------------------------------------------------


def crlf(text: bytes) -> bytes:
    return text.replace(b"\n", b"\r\n")


def cr(text: bytes) -> bytes:
    return text.replace(b"\n", b"\r")


# What goes before the usage frame, the usage frame, and what follows it.
FRAMINGS: dict[str, tuple[bytes, bytes, bytes]] = {
    "lf": (HEAD, USAGE, DONE),
    "crlf": (crlf(HEAD), crlf(USAGE), crlf(DONE)),
    "cr": (cr(HEAD), cr(USAGE), cr(DONE)),
    "bom": (b"\xef\xbb\xbf" + HEAD, USAGE, DONE),
    "comments": (b": hello\n\n" + HEAD + b": keep-alive\n\n", USAGE, b": bye\n\n" + DONE),
    "no space after the colon": tuple(part.replace(b"data: ", b"data:") for part in (HEAD, USAGE, DONE)),  # type: ignore[dict-item]
    "blank keepalives": (b"\n\n\n" + HEAD.replace(b"\n\n", b"\n\n\n\n"), USAGE, b"\n\n" + DONE + b"\n"),
    "no final newline": (HEAD, USAGE, DONE.rstrip()),
    "no [DONE]": (HEAD, USAGE, b""),
    "usage without its empty line": (HEAD, USAGE.rstrip(), b""),
    "ids, names and retries": (
        b"retry: 10\n\n" + HEAD.replace(b"data:", b"id: 1\nevent: message\ndata:"),
        b"id: 7\n" + USAGE,
        DONE,
    ),
    "data over several lines": (
        HEAD,
        b'data: {"id":"1","choices":[],\ndata: "usage":{"prompt_tokens":7,"completion_tokens":3}}\n\n',
        DONE,
    ),
    "spaces in the JSON": (
        HEAD,
        b'data: { "id" : "1" , "choices" : [ ] , "usage" : { "prompt_tokens" : 7 , "completion_tokens" : 3 } }\n\n',
        DONE,
    ),
    "invalid UTF-8": (b": \xff\xfe\n\n" + HEAD + b'data: {"x":"\xc3\x28"}\n\n', USAGE, DONE),
}
CUTS: dict[str, Callable[[bytes], list[bytes]]] = {
    "whole": lambda body: [body],
    "byte by byte": singly,
    "at random": lambda body: cut(body, 11, 9),
}


@pytest.mark.parametrize("asked", [True, False], ids=["asked", "injected"])
@pytest.mark.parametrize("cutting", CUTS)
@pytest.mark.parametrize("framing", FRAMINGS)
async def test_stream_bytes_pass_whatever_their_framing(desk: Desk, framing: str, cutting: str, asked: bool) -> None:
    """A stream reaches the client byte for byte; only a usage frame the client did not ask for is taken out of it."""
    before, usage_bytes, after = FRAMINGS[framing]
    desk.provider.then(stream(CUTS[cutting](before + usage_bytes + after)))
    answer = await desk.call(CHAT, ASKED if asked else QUIET)
    assert answer.body == (before + usage_bytes + after if asked else before + after)
    assert answer.clean
    row = await desk.row()
    assert (row.input_tokens, row.output_tokens, row.usage_source) == (7, 3, "provider")
    assert row.outcome == "complete"


def _zstd(body: bytes) -> bytes:
    return bytes(zstd.compress(body))


ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "identity": bytes,
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": _zstd,
    "gzip, br": lambda body: brotli.compress(gzip.compress(body)),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_a_compressed_stream_passes_whole(desk: Desk, encoding: str) -> None:
    """If the provider compresses although it was asked not to, nothing is withheld, and the row is still right."""
    body = ENCODINGS[encoding](HEAD + USAGE + DONE)
    desk.provider.then(stream(cut(body, 3, 7), headers=[("Content-Encoding", encoding)]))
    answer = await desk.call(CHAT, QUIET, headers={"Accept-Encoding": "gzip, br, zstd"})
    assert answer.body == (HEAD + DONE if encoding == "identity" else body)
    assert answer.header("content-encoding") == encoding
    row = await desk.row()
    assert (row.input_tokens, row.output_tokens, row.outcome) == (7, 3, "complete")


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_a_json_answer_passes_in_its_encoding(desk: Desk, encoding: str, framing: str) -> None:
    """A JSON body in any encoding and any framing is the provider's, byte for byte, and its usage is read."""
    text = (
        b'\n\n {"id": "1", "model": "m-9",\r\n "x": 1e400, "choices": [], "usage": %b}  \n'
        % json.dumps(usage()).encode()
    )
    body = ENCODINGS[encoding](text)
    headers = [("Content-Encoding", encoding)]
    if framing == "length":
        desk.provider.then(plain(body, headers=headers, pieces=3))
    else:
        desk.provider.then(stream(cut(body, 5, 3), content_type="application/json", headers=headers, framing=framing))
    answer = await desk.call(CHAT, BODY)
    assert (answer.body, answer.clean) == (body, True)
    assert answer.header("content-length") == (str(len(body)) if framing == "length" else None)
    assert answer.header("transfer-encoding") == (None if framing == "length" else "chunked")
    row = await desk.row()
    assert (row.input_tokens, row.output_tokens, row.model, row.outcome) == (7, 3, "m-9", "complete")


async def test_a_body_that_is_not_what_it_says_passes(desk: Desk) -> None:
    """An answer that does not decode as announced still reaches the client as sent."""
    body = b"\x1f\x8b this is no gzip"
    desk.provider.then(plain(body, headers=[("Content-Encoding", "gzip")]))
    answer = await desk.call(CHAT, BODY)
    assert (answer.status, answer.body) == (200, body)
    assert (await desk.row()).usage_source == "estimate"


async def test_json_for_a_stream_and_a_stream_for_json(desk: Desk) -> None:
    """Either answer to either request passes untouched and is metered."""
    text = json.dumps({"id": "1", "choices": [{"message": {"content": "x"}}], "usage": usage()}).encode()
    desk.provider.then(plain(text), stream([HEAD, USAGE, DONE]))
    assert (await desk.call(CHAT, QUIET)).body == text
    assert (await desk.call(CHAT, BODY)).body == HEAD + USAGE + DONE
    for row in await desk.rows(2):
        assert (row.input_tokens, row.output_tokens, row.outcome) == (7, 3, "complete")


# -- the one frame -------------------------------------------------------------------------------

MODERATION = frame({"choices": [], "moderation": {"flagged": False}, "usage": usage()})
FILTERS = frame({"choices": [], "prompt_filter_results": [{"prompt_index": 0}], "usage": usage()})
UNASKED = {
    "usage on the finish chunk": frame(finish(usage=usage())),
    "usage on every chunk": frame(chunk("Hel", usage=usage(7, 1))) + frame(finish(usage=usage())),
    "usage null": frame(chunk("Hello", usage=None)) + frame(finish(usage=None)),
    "a first chunk without choices": frame({"choices": [], "prompt_filter_results": []}) + HEAD,
    "an empty frame without usage": frame({"choices": [], "usage": None}) + HEAD,
    "usage beside a moderation result": HEAD + MODERATION,
    "usage beside filter results": HEAD + FILTERS,
    "no choices member": HEAD + frame({"object": "ping", "usage": {}}),
}


@pytest.mark.parametrize("case", UNASKED)
async def test_frames_that_carry_anything_else_are_never_withheld(desk: Desk, case: str) -> None:
    """With the usage frame asked for by farebox, every other frame passes, with usage in it or without choices."""
    desk.provider.then(stream([UNASKED[case], USAGE, DONE]))
    answer = await desk.call(CHAT, QUIET)
    assert b'"include_usage":true' in desk.provider.requests[0].body
    assert answer.body == UNASKED[case] + DONE
    row = await desk.row()
    assert (row.input_tokens, row.output_tokens) == (7, 3)


async def test_an_explicit_false_is_overridden_and_undone(desk: Desk) -> None:
    """A client that says include_usage: false gets no usage frame, and its row is exact."""
    desk.provider.then(stream([HEAD, USAGE, DONE]))
    answer = await desk.call(CHAT, {**QUIET, "stream_options": {"include_usage": False}})
    assert answer.body == HEAD + DONE
    assert json.loads(desk.provider.requests[0].body)["stream_options"] == {"include_usage": True}
    assert (await desk.row()).usage_source == "provider"


@pytest.mark.parametrize("framing", ["length", "close"])
async def test_a_stream_in_another_framing_is_edited_as_well(desk: Desk, framing: str) -> None:
    """A stream with an announced length, or one that ends with its connection, reaches the client whole and framed."""
    body = HEAD + USAGE + DONE
    script = plain(body, content_type="text/event-stream") if framing == "length" else stream([body], framing="close")
    desk.provider.then(script, plain(body, content_type="text/event-stream"))
    answer = await desk.call(CHAT, QUIET)
    assert (answer.body, answer.clean) == (HEAD + DONE, True)
    answer = await desk.call(CHAT, ASKED)
    assert (answer.body, answer.header("content-length")) == (body, str(len(body)))


async def test_where_nothing_is_injected_nothing_is_withheld(desk: Desk) -> None:
    """A provider with `stream_options: skip` gets the request as sent, and its usage frames reach the client."""
    body = json.dumps(QUIET).encode()
    desk.provider.then(stream([HEAD, USAGE, DONE]))
    answer = await desk.call("/p/skip/chat/completions", body)
    assert answer.body == HEAD + USAGE + DONE
    assert desk.provider.requests[0].body == body
    assert (await desk.row()).usage_source == "provider"


async def test_legacy_completions_are_treated_alike(desk: Desk) -> None:
    """`/v1/completions` streams are asked for usage, and the frame is withheld."""
    text = frame({"id": "c", "choices": [{"index": 0, "text": "Hello"}]})
    end = frame({"id": "c", "choices": [{"index": 0, "text": "", "finish_reason": "stop"}]})
    desk.provider.then(stream([text, end, USAGE, DONE]))
    answer = await desk.call("/v1/completions", {"model": "m", "prompt": "hi", "stream": True})
    assert answer.body == text + end + DONE
    assert (await desk.row()).input_tokens == 7


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
async def test_other_apis_are_never_asked_for_usage(desk: Desk, path: str) -> None:
    """A responses or messages stream goes up as sent: those APIs refuse stream_options and need no asking."""
    body = json.dumps({"model": "m", "stream": True, "input": "hi"}).encode()
    events = frame({"type": "response.completed", "response": {"id": "r"}}, event="response.completed")
    desk.provider.then(stream([events]))
    assert (await desk.call(path, body)).body == events
    assert desk.provider.requests[0].body == body


# -- heads ---------------------------------------------------------------------------------------


async def test_answer_headers_pass_as_they_are(desk: Desk) -> None:
    """Names keep their case, repeated fields their order, values their bytes; only farebox's id is added."""
    sent = [
        ("X-RateLimit-Remaining-Tokens", "12"),
        ("x-ratelimit-reset", "6m0s"),
        ("Set-Cookie", "a=1; Path=/"),
        ("x-odd", "caf\xe9 \xc3\xa9"),
        ("SET-COOKIE", "b=2"),
        ("Content-Type", "application/json"),
        ("x-empty", ""),
        ("Openai-Processing-Ms", "33"),
    ]

    async def script(_: Received, wire: Wire) -> None:
        await wire.head(200, [*sent, ("Content-Length", "2")])
        await wire.send(b"{}")

    desk.provider.then(script)
    answer = await desk.call(CHAT, BODY)
    row = await desk.row()
    assert answer.headers == [*sent, ("x-farebox-request-id", str(row.id)), ("Content-Length", "2")]


async def test_a_date_and_a_server_are_the_providers(desk: Desk) -> None:
    """Date and Server pass when the provider sends them; farebox has none of its own."""
    desk.provider.then(
        plain(b"{}", headers=[("Date", "Sun, 22 Nov 2026 10:00:00 GMT"), ("server", "cloudy")]), plain(b"{}")
    )
    first, second = await desk.call(CHAT, BODY), await desk.call(CHAT, BODY)
    assert (first.all("date"), first.all("server")) == (["Sun, 22 Nov 2026 10:00:00 GMT"], ["cloudy"])
    assert (second.header("date"), second.header("server")) == (None, None)


async def test_farebox_s_own_header_can_be_switched_off(postgres: PostgresServer) -> None:
    """With server.response_headers off an answer has the provider's fields and nothing else."""
    async with serving(postgres, ["up"], relaying, server={"response_headers": False}) as served:
        desk = await served.desk()
        desk.provider.then(plain(b"{}"))
        answer = await desk.call(CHAT, BODY)
    assert answer.headers == [("Content-Type", "application/json"), ("Content-Length", "2")]


@pytest.mark.parametrize(("status", "reason"), [(200, "Super"), (218, "This is fine"), (299, ""), (200, "\xc9t\xe9")])
async def test_the_status_line_is_the_providers(desk: Desk, status: int, reason: str) -> None:
    """Odd statuses and reason phrases pass."""

    async def script(_: Received, wire: Wire) -> None:
        await wire.head(status, [("Content-Length", "2")], reason=reason)
        await wire.send(b"{}")

    desk.provider.then(script)
    answer = await desk.call(CHAT, BODY)
    assert (answer.status, answer.reason) == (status, reason)


async def test_hop_by_hop_fields_of_the_answer_stay_behind(desk: Desk) -> None:
    """Fields about the provider's connection, and those its Connection header names, do not reach the client."""
    hop = [
        ("Connection", "keep-alive, X-Hop"),
        ("Connection", "x-other-hop"),
        ("Keep-Alive", "timeout=5"),
        ("X-Hop", "1"),
        ("X-Other-Hop", "2"),
        ("Proxy-Authenticate", "Basic"),
        ("Proxy-Connection", "close"),
        ("Upgrade", "h2c"),
        ("TE", "trailers"),
        ("Trailer", "X-Sum"),
        ("x-farebox-request-id", "forged"),
        ("X-Farebox-Budget-Remaining-Usd", "1000"),
    ]
    desk.provider.then(plain(b"{}", headers=[*hop, ("x-stays", "yes")]))
    answer = await desk.call(CHAT, BODY)
    row = await desk.row()
    assert [name.lower() for name, _ in answer.headers] == [
        "content-type", "x-stays", "x-farebox-request-id", "content-length",
    ]  # fmt: skip
    assert answer.header("x-farebox-request-id") == str(row.request_id)


async def test_the_providers_key_never_comes_back(desk: Desk) -> None:
    """Neither a provider that echoes its credential in a header shows it to the client, nor anything farebox says."""
    desk.provider.then(plain(b"{}", headers=[("x-echo", f"Bearer {PROVIDER_KEY}"), ("x-other", "stays")]))
    answers = [
        await desk.call(CHAT, BODY),
        await desk.call("/p/nobody/chat/completions", BODY),
        await desk.call(CHAT, BODY, key="fb-wrong"),
        await desk.call("/elsewhere", BODY),
    ]
    assert [answer.status for answer in answers] == [200, 404, 401, 404]
    assert answers[0].header("x-other") == "stays"
    for answer in answers:
        assert PROVIDER_KEY not in repr((answer.headers, answer.body))


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_without_a_body_leaves_the_connection_usable(desk: Desk, status: int) -> None:
    """204 and 304 pass without a body, and the client's connection serves the next request."""

    async def script(_: Received, wire: Wire) -> None:
        await wire.head(status, [("ETag", '"x"')])

    desk.provider.then(script, plain(b"{}"))
    async with desk.client() as client:
        await client.send("GET", "/v1/files/f", [desk.auth])
        assert (await client.answer()).status == status
        await client.send("GET", "/v1/files/f", [desk.auth])
        assert (await client.answer()).body == b"{}"


async def test_head_passes_with_its_length(desk: Desk) -> None:
    """The answer to HEAD keeps the length it announces and has no body."""

    async def script(_: Received, wire: Wire) -> None:
        await wire.head(200, [("Content-Length", "1234"), ("Content-Type", "text/plain")])

    desk.provider.then(script, plain(b"{}"))
    async with desk.client() as client:
        await client.send("HEAD", "/v1/files/f", [desk.auth])
        assert (await client.answer(has_body=False)).header("content-length") == "1234"
        await client.send("GET", "/v1/files/f", [desk.auth])
        assert (await client.answer()).body == b"{}"


async def test_early_hints_are_passed_over(desk: Desk) -> None:
    """A 1xx from the provider is not taken for its answer."""

    async def script(_: Received, wire: Wire) -> None:
        await wire.head(103, [("Link", "</x>")], reason="Early Hints")
        await wire.head(200, [("Content-Length", "2")])
        await wire.send(b"{}")

    desk.provider.then(script)
    answer = await desk.call(CHAT, BODY)
    assert (answer.status, answer.body) == (200, b"{}")


@pytest.mark.parametrize("status", [301, 307, 401])
async def test_redirects_and_challenges_are_the_clients_to_follow(desk: Desk, status: int) -> None:
    """farebox never follows a redirect or answers a challenge: its credential goes where the config says."""
    desk.provider.then(
        plain(
            b"", status=status, headers=[("Location", desk.provider.origin + "/other"), ("WWW-Authenticate", "Basic")]
        )
    )
    answer = await desk.call(CHAT, BODY)
    assert (answer.status, answer.header("location")) == (status, desk.provider.origin + "/other")
    assert len(desk.provider.requests) == 1
    row = await desk.row()
    assert (row.usage_source, row.cost_usd) == ("none", 0), "nothing was generated"


# -- pacing --------------------------------------------------------------------------------------

HALF = frame(chunk("Hello, this is a longer piece"))
STEPS: dict[str, list[bytes]] = {
    "frames": [frame(chunk("a")), frame(chunk("b")), frame(finish()), DONE],
    "comments and parts of them": [b": ping\n\n", b": pi", b"ng\n", b"\n", b"\n\n", frame(chunk("a")), DONE],
    "parts of a frame with text": [
        HALF[:-40],
        HALF[-40:-20],
        HALF[-20:-2],
        HALF[-2:-1],
        HALF[-1:],
        frame(finish()),
        DONE,
    ],
    "several frames and a part": [frame(chunk("a")) * 3 + HALF[:-5], HALF[-5:] + frame(chunk("b")), DONE],
    "a frame without JSON": [b"data: [DO", b"NE]", b"\n", b"\n"],
}


@pytest.mark.parametrize("request_body", [ASKED, QUIET], ids=["asked", "injected"])
@pytest.mark.parametrize("steps", STEPS)
async def test_each_piece_is_forwarded_when_it_arrives(desk: Desk, steps: str, request_body: dict[str, object]) -> None:
    """The provider sends each piece only after the client has read the one before: nothing waits for what follows."""
    read = asyncio.Semaphore(0)

    async def script(_: Received, wire: Wire) -> None:
        await wire.head(200, [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")])
        for piece in STEPS[steps]:
            await read.acquire()
            await wire.chunk(piece)
        await read.acquire()
        await wire.end()

    desk.provider.then(script)
    async with desk.client() as client, asyncio.timeout(20):
        await client.send("POST", CHAT, [desk.auth], json.dumps(request_body).encode())
        await client.head()  # the head, too, comes before any of the body
        for piece in STEPS[steps]:
            read.release()
            assert await client.chunks(len(piece)) == piece
        read.release()
        assert await client.chunk() == b""


async def test_only_a_frame_that_may_be_the_usage_frame_is_held(desk: Desk) -> None:
    """While the usage frame arrives in parts it is held; what arrived before it went on at once."""
    read = asyncio.Semaphore(0)

    async def script(_: Received, wire: Wire) -> None:
        await wire.head(200, [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")])
        await wire.chunk(HEAD + USAGE[:40])
        await read.acquire()
        await wire.chunk(USAGE[40:-1])
        await wire.chunk(USAGE[-1:] + b": after\n\n")
        await read.acquire()
        await wire.chunk(DONE)
        await wire.end()

    desk.provider.then(script)
    async with desk.client() as client, asyncio.timeout(20):
        await client.send("POST", CHAT, [desk.auth], json.dumps(QUIET).encode())
        await client.head()
        assert await client.chunks(len(HEAD)) == HEAD
        read.release()
        assert await client.chunks(9) == b": after\n\n"
        read.release()
        assert await client.chunks(len(DONE)) == DONE
        assert await client.chunk() == b""


async def test_compressed_pieces_are_not_held_either(desk: Desk) -> None:
    """A compressed stream is forwarded piece by piece as it arrives, and read on the side."""
    packer = zlib.compressobj(wbits=31)
    pieces = [packer.compress(part) + packer.flush(zlib.Z_SYNC_FLUSH) for part in (HEAD, USAGE, DONE)]
    pieces.append(packer.flush())
    read = asyncio.Semaphore(0)

    async def script(_: Received, wire: Wire) -> None:
        fields = [("Content-Type", "text/event-stream"), ("Content-Encoding", "gzip"), ("Transfer-Encoding", "chunked")]
        await wire.head(200, fields)
        for piece in pieces:
            await wire.chunk(piece)
            await read.acquire()
        await wire.end()

    desk.provider.then(script)
    async with desk.client() as client, asyncio.timeout(20):
        await client.send("POST", CHAT, [desk.auth], json.dumps(QUIET).encode())
        await client.head()
        for piece in pieces:
            assert await client.chunks(len(piece)) == piece
            read.release()
        assert await client.chunk() == b""
    assert (await desk.row()).input_tokens == 7


async def test_downloads_are_streamed(desk: Desk) -> None:
    """A download reaches the client while the provider still has the rest of it."""
    read = asyncio.Event()
    first, second = b"\x00\xff" * 50_000, b"end"

    async def script(_: Received, wire: Wire) -> None:
        await wire.head(200, [("Content-Type", "application/octet-stream"), ("Content-Length", "100003")])
        await wire.send(first)
        await read.wait()
        await wire.send(second)

    desk.provider.then(script)
    async with desk.client() as client, asyncio.timeout(20):
        await client.send("GET", "/v1/files/file-1/content", [desk.auth])
        assert (await client.head()).header("content-length") == "100003"
        assert await client.reader.readexactly(len(first)) == first
        read.set()
        assert await client.reader.readexactly(3) == second


# -- memory --------------------------------------------------------------------------------------

PIECE = frame(chunk("x" * 60_000))
PIECES = 600


@pytest.mark.parametrize("path", [CHAT, "/v1/files/file-1/content"], ids=["metered", "unmetered"])
async def test_a_client_that_does_not_read_pauses_the_provider(desk: Desk, path: str) -> None:
    """farebox takes no more from the provider than fits its buffers; once the client reads, all of it arrives."""
    sent = 0

    async def script(_: Received, wire: Wire) -> None:
        nonlocal sent
        await wire.head(200, [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")])
        for _number in range(PIECES):
            await wire.chunk(PIECE)
            sent += len(PIECE)
        await wire.end()

    desk.provider.then(script)
    metered = path == CHAT
    async with desk.client() as client, asyncio.timeout(60):
        body = json.dumps(QUIET).encode() if metered else None
        await client.send("POST" if metered else "GET", path, [desk.auth], body)
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await quiet(lambda: sent)
        # Four sockets' kernel buffers lie between; farebox's own share is a fraction of a megabyte.
        assert sent < PIECES * len(PIECE) / 2
        transports = [c.transport for c in desk.app.server.connections if c.transport is not None]
        assert 0 < max(transport.get_write_buffer_size() for transport in transports) < 1 << 19
        client.reader._transport.resume_reading()  # type: ignore[attr-defined]
        answer = await client.answer()
    assert answer.clean
    assert answer.body == PIECE * PIECES


async def test_an_event_of_ten_megabytes_streams_through(desk: Desk) -> None:
    """An event line past the parser's bound is forwarded while it arrives; the usage after it is still read."""
    half = b"y" * (5 << 20)
    start, end = b'data: {"choices":[{"index":0,"delta":{"content":"', b'"}}]}\n\n'
    read = asyncio.Event()

    async def script(_: Received, wire: Wire) -> None:
        await wire.head(200, [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")])
        await wire.chunk(start + half)
        await read.wait()
        for piece in (half + end, frame(finish()), USAGE, DONE):
            await wire.chunk(piece)
        await wire.end()

    desk.provider.then(script)
    async with desk.client() as client, asyncio.timeout(30):
        await client.send("POST", CHAT, [desk.auth], json.dumps(QUIET).encode())
        await client.head()
        assert await client.chunks(len(start + half)) == start + half
        read.set()
        rest = b""
        while piece := await client.chunk():
            rest += piece
    assert rest == half + end + frame(finish()) + DONE
    row = await desk.row()
    assert (row.input_tokens, row.output_tokens, row.outcome) == (7, 3, "complete")
