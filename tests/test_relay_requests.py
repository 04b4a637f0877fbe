"""Client to provider through a running farebox: what goes up, byte for byte, and what never does."""

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

from support.answers import DONE, chunk, finish, frame, usage_frame
from support.live import PROVIDER_KEY, Desk, Serving, eventually, quiet, relaying, serving
from support.postgres import PostgresServer
from support.provider import Received, Wire, plain, stream

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMITS = {"body_mb_max": 1, "decoded_body_mb_max": 1, "bodies_in_flight_mb_max": 2}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(postgres: PostgresServer) -> AsyncIterator[Serving]:
    async with serving(postgres, ["up"], relaying, limits=LIMITS) as serving_:
        yield serving_


@pytest_asyncio.fixture(loop_scope="module")
async def desk(served: Serving) -> AsyncIterator[Desk]:
    yield await served.desk()
    await served.settled()


CHAT = "/v1/chat/completions"
ANSWER = plain(b'{"model":"m-1","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}')
STREAM = stream([frame(chunk("Hello")), frame(finish()), usage_frame(), DONE])
OPTION = b',"stream_options":{"include_usage":true}'

# -- bodies --------------------------------------------------------------------------------------

SPLICED: dict[str, tuple[bytes, bytes]] = {
    "plain": (b'{"model":"m","stream":true}', b'{"model":"m","stream":true' + OPTION + b"}"),
    "spaces all over": (
        b' \n{ "stream" : true ,\t"model": "m" }\r\n ',
        b' \n{ "stream" : true ,\t"model": "m" ' + OPTION + b"}\r\n ",
    ),
    "numbers no parser keeps": (
        b'{"a":1e400,"b":-0.0,"c":12345678901234567890123,"d":0.10,"stream":true}',
        b'{"a":1e400,"b":-0.0,"c":12345678901234567890123,"d":0.10,"stream":true' + OPTION + b"}",
    ),
    "repeated members": (
        b'{"model":"a","model":"m","temperature":1,"stream":false,"stream":true}',
        b'{"model":"a","model":"m","temperature":1,"stream":false,"stream":true' + OPTION + b"}",
    ),
    "escapes": (
        rb'{"model":"m\u0041\/","x":"\ud83d\ude00 \u00e9","\u0073tream":true}',
        rb'{"model":"m\u0041\/","x":"\ud83d\ude00 \u00e9","\u0073tream":true' + OPTION + b"}",
    ),
    "raw UTF-8": (
        '{"stream":true,"x":"é😀"}'.encode(),
        '{"stream":true,"x":"é😀"'.encode() + OPTION + b"}",
    ),
    "other options": (
        b'{"stream_options": { "include_obfuscation":false },"stream":true}',
        b'{"stream_options": {"include_usage":true, "include_obfuscation":false },"stream":true}',
    ),
    "options null": (
        b'{"stream_options": null ,"stream":true}',
        b'{"stream_options": {"include_usage":true} ,"stream":true}',
    ),
    "an explicit false": (
        b'{"stream_options":{"include_usage" : false},"stream":true}',
        b'{"stream_options":{"include_usage" : true},"stream":true}',
    ),
}


@pytest.mark.parametrize("case", SPLICED)
async def test_one_splice_and_no_other_change(desk: Desk, case: str) -> None:
    """A stream that does not ask for usage goes up with that one edit; every other byte is the client's."""
    body, expected = SPLICED[case]
    desk.provider.then(STREAM)
    await desk.call(CHAT, body)
    (request,) = desk.provider.requests
    assert request.body == expected
    assert request.header("content-length") == str(len(expected))


VERBATIM: dict[str, bytes] = {
    "not a stream": b'{"model":"m", "stream":false, "x":1e400 } ',
    "stream is text": b'{"model":"m","stream":"true"}',
    "stream is a number": b'{"model":"m","stream":1}',
    "the last stream is false": b'{"stream":true,"stream":false}',
    "usage asked for": b'{"stream":true,"stream_options":{"include_usage":true}}',
    "options of another type": b'{"stream":true,"stream_options":[]}',
    "no object": b'[{"stream":true}]',
    "no JSON": b'{"stream":true',
    "not UTF-8": b'{"stream":true,"x":"\xff"}',
    "nothing": b"",
    "bytes": bytes(range(256)),
}


@pytest.mark.parametrize("case", VERBATIM)
async def test_a_body_farebox_does_not_edit_goes_up_verbatim(desk: Desk, case: str) -> None:
    """What is no stream that lacks the option, or cannot be read, is the provider's to judge, as it was sent."""
    desk.provider.then(ANSWER)
    assert (await desk.call(CHAT, VERBATIM[case])).status == 200
    assert desk.provider.requests[0].body == VERBATIM[case]


async def test_a_chunked_body_goes_up_with_its_length(desk: Desk) -> None:
    """How a metered body was framed is the connection's business; its bytes are the same."""
    desk.provider.then(ANSWER)
    async with desk.client() as client:
        head = [desk.auth, ("Transfer-Encoding", "chunked")]
        await client.send("POST", CHAT, head, b'4\r\n{"a"\r\n3;x=y\r\n:1}\r\n0\r\nX-Trailer: 1\r\n\r\n')
        assert (await client.answer()).status == 200
    (request,) = desk.provider.requests
    assert (request.body, request.header("content-length")) == (b'{"a":1}', "7")
    assert request.header("transfer-encoding") is None


# -- compressed bodies ---------------------------------------------------------------------------


def _zstd(body: bytes) -> bytes:
    return bytes(zstd.compress(body))


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": _zstd,
    "GZip": gzip.compress,
}


@pytest.mark.parametrize("encoding", PACKERS)
async def test_a_compressed_body_goes_up_as_sent(desk: Desk, encoding: str) -> None:
    """farebox reads a decoded copy; the provider gets the client's bytes and their Content-Encoding."""
    packed = PACKERS[encoding](b'{"model":"m-asked","input":"hi","stream":true}')
    desk.provider.then(ANSWER)
    assert (await desk.call("/v1/responses", packed, headers={"Content-Encoding": encoding})).status == 200
    (request,) = desk.provider.requests
    assert (request.body, request.header("content-encoding")) == (packed, encoding)
    assert (await desk.row()).requested_model == "m-asked"


@pytest.mark.parametrize("encoding", PACKERS)
async def test_a_compressed_body_that_is_spliced_goes_up_decoded(desk: Desk, encoding: str) -> None:
    """Only where the splice needs it is a body decoded; then it is not called compressed."""
    packed = PACKERS[encoding](b'{"model":"m","stream":true}')
    desk.provider.then(STREAM)
    answer = await desk.call(CHAT, packed, headers={"Content-Encoding": encoding})
    (request,) = desk.provider.requests
    assert request.body == b'{"model":"m","stream":true' + OPTION + b"}"
    assert request.header("content-encoding") is None
    assert answer.body == frame(chunk("Hello")) + frame(finish()) + DONE


@pytest.mark.parametrize("encoding", PACKERS)
async def test_a_bomb_is_refused(desk: Desk, encoding: str) -> None:
    """A body that decodes to more than the bound is refused with 413, and nothing of it goes up."""
    bomb = PACKERS[encoding](b" " * (8 << 20) + b"{}")
    answer = await desk.call(CHAT, bomb, headers={"Content-Encoding": encoding})
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (413, "request_too_large")
    assert not desk.provider.requests


@pytest.mark.parametrize(
    ("encoding", "body"),
    [("rot13", b"{}"), ("gzip", b"{}"), ("gzip", gzip.compress(b"{}")[:-5]), ("gzip, rot13", b"{}")],
    ids=["unknown", "not gzip", "cut gzip", "unknown after known"],
)
async def test_a_coding_that_cannot_be_read_is_refused_where_calls_are_metered(
    desk: Desk, encoding: str, body: bytes
) -> None:
    """What cannot be read cannot be metered: 415. Other paths pass it on, whatever it is."""
    answer = await desk.call(CHAT, body, headers={"Content-Encoding": encoding})
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (415, "unsupported_encoding")
    assert not desk.provider.requests
    desk.provider.then(ANSWER)
    assert (await desk.call("/v1/files", body, headers={"Content-Encoding": encoding})).status == 200
    assert (desk.provider.requests[0].body, desk.provider.requests[0].header("content-encoding")) == (body, encoding)


# -- bounds --------------------------------------------------------------------------------------

MEGABYTE = 1 << 20


async def test_a_body_past_the_bound_is_refused_before_it_is_sent(desk: Desk) -> None:
    """An announced length past limits.body_mb_max is refused at once; an unannounced one when it gets there."""
    async with desk.client() as client, asyncio.timeout(10):
        await client.send("POST", CHAT, [desk.auth, ("Content-Length", str(MEGABYTE + 1))])
        assert (await client.answer()).status == 413
    async with desk.client() as client, asyncio.timeout(10):
        await client.send("POST", CHAT, [desk.auth, ("Transfer-Encoding", "chunked")])
        client.writer.write(b"%x\r\n" % (2 * MEGABYTE) + b" " * (MEGABYTE + 1))
        assert (await client.answer()).status == 413
    assert not desk.provider.requests


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_all_bodies_together_have_a_bound(desk: Desk, framing: str) -> None:
    """Bodies still arriving count, too: past limits.bodies_in_flight_mb_max a call gets 503, and later ones pass."""
    half = MEGABYTE * 3 // 4
    desk.provider.default = ANSWER
    async with desk.client() as first, desk.client() as second, asyncio.timeout(20):
        for client in (first, second):
            if framing == "length":
                await client.send("POST", CHAT, [desk.auth, ("Content-Length", str(MEGABYTE))])
            else:
                await client.send("POST", CHAT, [desk.auth, ("Transfer-Encoding", "chunked")])
                client.writer.write(b"%x\r\n" % MEGABYTE)
            client.writer.write(b" " * half)
        await eventually(lambda: desk.app.proxy.in_flight == 2)
        held = b" " * MEGABYTE
        while (answer := await desk.call(CHAT, held)).status == 200:
            pass  # the bodies above have not arrived yet
        assert answer.status == 503
        assert answer.header("retry-after") is not None
    await desk.farebox.idle()
    desk.provider.forget()
    desk.provider.then(ANSWER)
    assert (await desk.call(CHAT, held)).status == 200


# -- headers -------------------------------------------------------------------------------------


async def test_request_headers_go_up_as_they_are(desk: Desk) -> None:
    """Names keep their case, fields their order and repetitions; nothing is added but what farebox must say."""
    sent = [
        ("OpenAI-Organization", "org-1"),
        ("x-stainless-lang", "python"),
        ("Accept", "application/json"),
        ("x-stainless-lang", "again"),
        ("Accept-Encoding", "gzip, br"),
        ("content-type", "application/json; charset=utf-8"),
        ("User-Agent", "OpenAI/Python 3.0"),
        ("Cookie", "a=1"),
        ("anthropic-beta", "tools-1, tools-2"),
        ("Idempotency-Key", "k"),
        ("X-Accents", "caf\xc3\xa9"),
    ]
    desk.provider.then(ANSWER)
    await desk.call(CHAT, b'{"model":"m"}', headers=sent)
    (request,) = desk.provider.requests
    added = {
        "Host": f"127.0.0.1:{desk.provider.port}",
        "Authorization": f"Bearer {PROVIDER_KEY}",
        "Content-Length": "13",
    }
    assert [field for field in request.headers if field[0] not in added] == sent
    assert {name: request.header(name) for name in added} == added


async def test_repeated_fields_that_differ_in_case_all_go_up(desk: Desk) -> None:
    """Of a field that comes in several spellings no value is lost, and their order stays."""
    desk.provider.then(ANSWER)
    await desk.call(CHAT, b"{}", headers=[("X-Beta", "a"), ("x-other", "-"), ("x-beta", "b"), ("X-BETA", "c")])
    (request,) = desk.provider.requests
    assert request.header("x-beta") == "a, b, c"


async def test_nothing_is_added_to_a_bare_request(desk: Desk) -> None:
    """A client without User-Agent, Accept, Accept-Encoding and Content-Type gets none of farebox's."""
    desk.provider.then(ANSWER)
    await desk.call(CHAT, b"{}")
    names = {name.lower() for name, _ in desk.provider.requests[0].headers}
    assert names == {"host", "authorization", "content-length"}


SECRET = "fb-planted-secret"


async def test_farebox_headers_and_credentials_never_go_up(desk: Desk) -> None:
    """Wherever the client put keys, they stay here, with every x-farebox header and the Host it named."""
    headers = [
        ("Host", "planted.example"),
        ("x-farebox-key", desk.key),
        ("X-Farebox-Session", "s-1"),
        ("x-farebox-tags", "a=b"),
        ("x-farebox-anything", SECRET),
        ("Authorization", f"Bearer {SECRET}"),
        ("X-Api-Key", SECRET),
        ("api-key", SECRET),
        ("x-goog-api-key", SECRET),
        ("Proxy-Authorization", f"Basic {SECRET}"),
    ]
    desk.provider.then(ANSWER)
    assert (await desk.call(CHAT, b"{}", key=None, headers=headers)).status == 200
    text = repr(desk.provider.requests[0].headers)
    assert SECRET not in text
    assert desk.key not in text
    assert "farebox" not in text.lower()
    assert "planted.example" not in text
    row = await desk.row()
    assert (row.session, row.tags) == ("s-1", {"a": "b"})


async def test_hop_by_hop_fields_of_the_request_stay_behind(desk: Desk) -> None:
    """Fields about the client's connection, and those its Connection header names, do not go up."""
    headers = [
        ("Connection", "keep-alive, X-Hop"),
        ("connection", "x-other"),
        ("Keep-Alive", "timeout=1"),
        ("X-Hop", "1"),
        ("X-Other", "2"),
        ("TE", "trailers"),
        ("Trailer", "X-Sum"),
        ("Upgrade", "h2c"),
        ("HTTP2-Settings", "AAMAAABk"),
        ("Proxy-Connection", "close"),
        ("x-stays", "yes"),
    ]
    desk.provider.then(ANSWER)
    assert (await desk.call(CHAT, b"{}", headers=headers)).status == 200
    names = [name.lower() for name, _ in desk.provider.requests[0].headers]
    assert sorted(names) == ["authorization", "content-length", "host", "x-stays"]


async def test_a_connection_header_cannot_strip_what_farebox_says(desk: Desk) -> None:
    """Naming Authorization, Host or Content-Type in Connection does not keep them from the provider."""
    headers = [
        ("Connection", "authorization, host, content-type, content-length"),
        ("Content-Type", "application/json"),
    ]
    desk.provider.then(ANSWER)
    await desk.call(CHAT, b"{}", headers=headers)
    (request,) = desk.provider.requests
    assert request.header("authorization") == f"Bearer {PROVIDER_KEY}"
    assert request.header("content-type") == "application/json"
    assert request.body == b"{}"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"stream":true}', "identity"),
        (b'{"stream":false}', "gzip, zstd"),
        (VERBATIM["usage asked for"], "gzip, zstd"),
    ],
    ids=["injected", "not a stream", "asked by the client"],
)
async def test_compression_is_declined_only_where_a_frame_must_be_taken_out(
    desk: Desk, body: bytes, expected: str
) -> None:
    """`accept-encoding: identity` goes up with a splice; every other request keeps the client's own."""
    desk.provider.then(STREAM)
    await desk.call(CHAT, body, headers={"Accept-Encoding": "gzip, zstd"})
    assert desk.provider.requests[0].header("accept-encoding") == expected


async def test_an_anthropic_provider_gets_its_own_kind_of_key(desk: Desk) -> None:
    """At a `claude` provider the credential goes into x-api-key, and the path under its version."""
    desk.provider.then(ANSWER)
    await desk.call("/v1/messages?beta=true", b'{"model":"claude-x"}', key=None, headers={"x-api-key": desk.key})
    (request,) = desk.provider.requests
    assert request.target == "/v1/messages?beta=true"
    assert request.header("x-api-key") == PROVIDER_KEY
    assert request.header("authorization") is None


# -- 100-continue, refusals before the body ------------------------------------------------------

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.mark.parametrize("path", [CHAT, "/v1/files"], ids=["metered", "unmetered"])
async def test_a_waiting_client_is_told_to_go_on_once_it_is_let_in(desk: Desk, path: str) -> None:
    """`Expect: 100-continue` is answered by farebox after the key was checked, and does not go up."""
    desk.provider.then(ANSWER)
    async with desk.client() as client, asyncio.timeout(10):
        await client.send("POST", path, [desk.auth, ("Expect", "100-continue"), ("Content-Length", "2")])
        assert await client.reader.readexactly(len(CONTINUE)) == CONTINUE
        client.writer.write(b"{}")
        assert (await client.answer()).status == 200
    (request,) = desk.provider.requests
    assert (request.body, request.header("expect")) == (b"{}", None)


@pytest.mark.parametrize("path", [CHAT, "/v1/files", "/v1/messages"])
@pytest.mark.parametrize("headers", [[("Content-Length", "1000000")], [("Transfer-Encoding", "chunked")]])
async def test_a_wrong_key_is_refused_before_its_body(desk: Desk, path: str, headers: list[tuple[str, str]]) -> None:
    """401 comes without `100 Continue` and without a byte of the body, in the dialect of the path."""
    async with desk.client() as client, asyncio.timeout(10):
        await client.send("POST", path, [("Authorization", "Bearer fb-no"), ("Expect", "100-continue"), *headers])
        answer = await client.answer()
    error = json.loads(answer.body)["error"]
    assert answer.status == 401
    assert error["type"] == ("authentication_error" if path == "/v1/messages" else "invalid_request_error")
    assert not desk.provider.requests


# -- uploads -------------------------------------------------------------------------------------


async def test_uploads_are_streamed(desk: Desk) -> None:
    """The provider has the first part of an upload while the client still holds the rest."""
    seen = asyncio.Queue[bytes]()

    async def script(_: Received, wire: Wire) -> None:
        async for piece in wire.upload():
            seen.put_nowait(piece)
        await wire.head(200, [("Content-Length", "2")])
        await wire.send(b"{}")

    desk.provider.reads_bodies = False
    desk.provider.then(script)
    fields = [desk.auth, ("Transfer-Encoding", "chunked"), ("Content-Type", "multipart/form-data; boundary=x")]
    async with desk.client() as client, asyncio.timeout(10):
        await client.send("POST", "/v1/files", fields)
        for part in (b"--x\r\n", b"\x00\xff" * 1000, b"--x--\r\n"):
            client.writer.write(b"%x\r\n%b\r\n" % (len(part), part))
            got = b""
            while len(got) < len(part):
                got += await seen.get()
            assert got == part
        client.writer.write(b"0\r\n\r\n")
        assert (await client.answer()).body == b"{}"
    assert desk.provider.requests[0].header("content-type") == "multipart/form-data; boundary=x"


async def test_a_provider_that_does_not_read_pauses_the_upload(desk: Desk) -> None:
    """farebox takes no more of an upload than fits its buffers; once the provider reads, all of it arrives."""
    piece, pieces, sent, got = b"x" * 65_536, 1_000, 0, 0
    read = asyncio.Event()

    async def script(_: Received, wire: Wire) -> None:
        nonlocal got
        await read.wait()
        async for part in wire.upload():
            got += len(part)
        await wire.head(200, [("Content-Length", "2")])
        await wire.send(b"{}")

    desk.provider.reads_bodies = False
    desk.provider.then(script)

    async def send() -> None:
        nonlocal sent
        for _ in range(pieces):
            client.writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await client.writer.drain()
            sent += len(piece)
        client.writer.write(b"0\r\n\r\n")

    async with desk.client() as client, asyncio.timeout(60), asyncio.TaskGroup() as group:
        await client.send("POST", "/v1/files", [desk.auth, ("Transfer-Encoding", "chunked")])
        group.create_task(send())
        await quiet(lambda: sent)
        assert 0 < sent < pieces * len(piece) / 2  # most of it in the kernel and in the fake provider's reader
        read.set()
        assert (await client.answer()).status == 200
    assert got == pieces * len(piece)


async def test_an_upload_keeps_its_length_and_has_no_bound(desk: Desk) -> None:
    """An upload larger than the bound on metered bodies passes, announced as the client announced it."""
    body = bytes(range(256)) * 12_000
    desk.provider.then(ANSWER)
    assert (await desk.call("/v1/files", body)).status == 200
    (request,) = desk.provider.requests
    assert (request.body, request.header("content-length")) == (body, str(len(body)))
    assert request.header("transfer-encoding") is None


async def test_an_upload_that_breaks_off_is_never_whole(desk: Desk) -> None:
    """When the client leaves in the middle of an upload, the provider's connection breaks, and the row says so."""
    broke = asyncio.Event()

    async def script(_: Received, wire: Wire) -> None:
        try:
            async for _piece in wire.upload():
                client.abort()
        except (asyncio.IncompleteReadError, ConnectionError):
            broke.set()
            wire.close()

    desk.provider.reads_bodies = False
    desk.provider.then(script)
    async with desk.client() as client, asyncio.timeout(10):
        await client.send("POST", "/v1/files", [desk.auth, ("Transfer-Encoding", "chunked")])
        client.writer.write(b"5\r\nhello\r\n")
        await broke.wait()
        row = await desk.row()
    assert (row.status, row.outcome) == (None, "client_gone")


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT", "PATCH", "OPTIONS"])
async def test_any_method_passes_on_an_unmetered_path(desk: Desk, method: str) -> None:
    """Methods and query strings go up as they are."""
    desk.provider.then(ANSWER)
    await desk.call("/v1/files?limit=2&after=%C3%A9%2F+&x", None, method=method)
    (request,) = desk.provider.requests
    assert (request.method, request.target) == (method, "/v1/files?limit=2&after=%C3%A9%2F+&x")
