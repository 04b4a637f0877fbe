"""Clients that mean harm, or send what no client should: a clear answer or a closed connection, nothing passed on."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from multidict import CIMultiDict

from farebox import keys, logs
from farebox.errors import InvalidKey, Unavailable
from farebox.keys import KeyRing
from farebox.records import KeyRecord
from support.app import ADMIN_TOKEN, Farebox, running, settings_of
from support.clock import Leaps
from support.http import RawClient, call
from support.live import PROVIDER_KEY, Desk, Serving, eventually, relaying, serving
from support.postgres import PostgresServer
from support.provider import FakeProvider, Received, Wire, plain

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = b"/v1/chat/completions"
BODY = b'{"model":"m","messages":[]}'
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
TE = b"Transfer-Encoding: chunked\r\n"
ANSWER = plain(b'{"model":"m-1","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}')


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(postgres: PostgresServer) -> AsyncIterator[Serving]:
    async with serving(postgres, ["up"], relaying) as serving_:
        yield serving_


@pytest_asyncio.fixture(loop_scope="module")
async def desk(served: Serving) -> AsyncIterator[Desk]:
    yield await served.desk()
    await served.settled()


@pytest.fixture(autouse=True)
def calm() -> Iterator[io.StringIO]:
    """Nothing a client sends is a fault of farebox's: no test here may leave an error in the log."""
    out = io.StringIO()
    logs.configure("debug", "json", [], out)
    yield out
    assert [line for line in out.getvalue().splitlines() if '"level":"error"' in line.replace(" ", "")] == []


def post(
    extra: bytes = b"", body: bytes = BODY, *, target: bytes = CHAT, length: bool = True, version: bytes = b"HTTP/1.1"
) -> bytes:
    """A request; `KEY` stands for the key."""
    framing = b"Content-Length: %d\r\n" % len(body) if length else b""
    head = b"POST " + target + b" " + version + b"\r\nHost: h\r\nAuthorization: Bearer KEY\r\n"
    return head + extra + framing + b"\r\n" + body


def bare(request_line: bytes, extra: bytes = b"") -> bytes:
    return request_line + b" HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer KEY\r\n" + extra + b"\r\n"


def chunked(extra: bytes = TE, body: bytes = CHUNKED, **more: Any) -> bytes:
    return post(extra, body, length=False, **more)


def send(client: RawClient, raw: bytes, desk: Desk) -> None:
    client.writer.write(raw.replace(b"KEY", desk.key.encode()))


UPGRADE = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
MALFORMED: dict[str, bytes] = {
    "length and chunks": post(TE),
    "chunks and length": chunked(TE + b"Content-Length: 5\r\n"),
    "two lengths": post(b"Content-Length: 5\r\n"),
    "one length twice": post(b"Content-Length: %d\r\n" % len(BODY)),
    "a list of lengths": chunked(b"Content-Length: 5, 5\r\n", b"hello"),
    "a negative length": chunked(b"Content-Length: -5\r\n", b"hello"),
    "a length with a sign": chunked(b"Content-Length: +5\r\n", b"hello"),
    "a length in hex": chunked(b"Content-Length: 0x5\r\n", b"hello"),
    "a length beyond all numbers": chunked(b"Content-Length: 99999999999999999999999\r\n", b"hello"),
    "another coding": chunked(b"Transfer-Encoding: xchunked\r\n"),
    "no coding": chunked(b"Transfer-Encoding: identity\r\n"),
    "chunked is not last": chunked(b"Transfer-Encoding: chunked, gzip\r\n"),
    "chunked twice": chunked(b"Transfer-Encoding: chunked, chunked\r\n"),
    "two codings": chunked(TE + TE),
    "a coding below chunks": chunked(b"Transfer-Encoding: gzip, chunked\r\n"),
    "chunks in HTTP/1.0": chunked(version=b"HTTP/1.0"),
    "a chunk size that is none": chunked(body=b"ZZ\r\nhello\r\n0\r\n\r\n"),
    "a negative chunk": chunked(body=b"-1\r\nhello\r\n0\r\n\r\n"),
    "a chunk beyond all numbers": chunked(body=b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
    "a chunk longer than it says": chunked(body=b"2\r\nhello\r\n0\r\n\r\n"),
    "chunks with bare LF": chunked(body=b"5\nhello\n0\n\n"),
    "a folded header": post(b"X-A: 1\r\n 2\r\n"),
    "lines with bare LF": post().replace(b"\r\n", b"\n"),
    "a CR in a header": post(b"X-A: 1\rX-B: 2\r\n"),
    "a NUL in a header": post(b"X-A: 1\x002\r\n"),
    "a control character in a header": post(b"X-A: 1\x012\r\n"),
    "a space before the colon": post(b"X-A : 1\r\n"),
    "a header without a colon": post(b"X-A 1\r\n"),
    "a header without a name": post(b": 1\r\n"),
    "a name with a control character": post(b"X-\x01A: 1\r\n"),
    "no Host": post().replace(b"Host: h\r\n", b""),
    "two Hosts": post(b"Host: i\r\n"),
    "too many headers": post(b"".join(b"h%d: 1\r\n" % n for n in range(200))),
    "a long header": post(b"X-A: " + b"a" * 40_000 + b"\r\n"),
    "a very long target": post(target=CHAT + b"?" + b"a" * 100_000),
    "a later HTTP": post(version=b"HTTP/1.2"),
    "no HTTP at all": b"\x00\x01\x02\x03\r\n\r\n",
    "an HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)),
    "a method nobody knows": bare(b"STEAL /v1/models"),
    "a method in small letters": post().replace(b"POST", b"post"),
    "a space in the target": bare(b"GET /v1/mod els"),
    "bytes in the target": bare(b"GET /v1/models?x=\xc3\xa9"),
    "a port that is none": bare(b"GET http://h:99999999/v1/models"),
    "another scheme": bare(b"GET file:///etc/passwd"),
    "a host for a target": bare(b"GET planted.example/v1/models"),
    "a tunnel to a port that is none": bare(b"CONNECT planted.example:99999999"),
    "an old WebSocket": bare(b"GET /v1/realtime", b"Sec-WebSocket-Key1: x\r\n"),
}


@pytest.mark.parametrize("case", MALFORMED)
async def test_what_others_could_read_otherwise_is_refused(desk: Desk, case: str) -> None:
    """A request that leaves doubt gets one 4xx and a closed connection; no provider sees any of it."""
    async with desk.client() as client, asyncio.timeout(10):
        send(client, MALFORMED[case], desk)
        answer = await client.answer()
        assert answer.status in (400, 431)
        assert answer.header("connection") == "close"
        assert json.loads(answer.body)["error"]["type"] == "invalid_request_error"
        assert await client.rest() == b""
    assert desk.provider.requests == []


async def test_a_hundred_thousand_headers_end_the_connection(desk: Desk) -> None:
    """A head without end is given up at its bound, however fast it is sent."""
    async with desk.client() as client, asyncio.timeout(10):
        try:
            for _ in range(100):
                send(client, post()[:-2] if not _ else b"x: y\r\n" * 1000, desk)
                await client.writer.drain()
        except ConnectionError:
            pass
        assert (await client.rest())[:12] in (b"HTTP/1.1 400", b"")
    assert desk.provider.requests == []


UNSERVED: dict[str, tuple[bytes, int]] = {
    "climbing": (post(target=b"/p/up/../../x"), 400),
    "climbing in disguise": (post(target=b"/p/up/%2e%2e/x"), 400),
    "climbing in two disguises": (post(target=b"/p/up/%252e%252e/x"), 400),
    "climbing with a parameter": (post(target=b"/v1/..;/x"), 400),
    "climbing backwards": (post(target=b"/p/up/..%5c..%5cx"), 400),
    "a request in the target": (post(target=b"/v1/x%20HTTP/1.1%0d%0aHost:%20evil%0d%0a%0d%0aGET%20/"), 400),
    "a NUL in the target": (post(target=b"/v1/files/%00"), 400),
    "a fragment": (post(target=CHAT + b"#x"), 400),
    "another host": (post(target=b"//planted.example/v1/models"), 400),
    "a target past its bound": (post(target=CHAT + b"?" + b"a" * 9000), 400),
    "a provider by path": (post(target=b"/p/up%2f..%2fclaude/x"), 400),
    "a provider in disguise": (post(target=b"/p/%75p/chat/completions"), 404),
    "nowhere": (post(target=b"/elsewhere"), 404),
    "all of the server": (bare(b"OPTIONS *"), 400),
    "TRACE": (bare(b"TRACE /v1/models"), 405),
    "a tunnel": (bare(b"CONNECT planted.example:443"), 405),
    "a WebSocket": (bare(b"GET /v1/realtime", UPGRADE), 400),
    "administration": (post(target=b"/v1/%6frganization/users"), 403),
    "a body that does not unpack": (post(b"Content-Encoding: gzip\r\n"), 415),
    "a coding under another": (post(b"Content-Encoding: identity\r\nContent-Encoding: gzip\r\n"), 415),
    "another key": (post().replace(b"KEY", b"fb-no"), 401),
    "a key in a Basic header": (post().replace(b"Bearer KEY", b"Basic S0VZ"), 401),
    "an admin token for a key": (post().replace(b"KEY", ADMIN_TOKEN.encode()), 401),
}


@pytest.mark.parametrize("case", UNSERVED)
async def test_a_refusal_leaves_the_connection_in_step(desk: Desk, case: str) -> None:
    """What is well-formed and refused reaches no provider; the next request on the connection is answered as such."""
    raw, status = UNSERVED[case]
    desk.provider.then(ANSWER)
    async with desk.client() as client, asyncio.timeout(10):
        send(client, raw, desk)
        assert (await client.answer()).status == status
        assert desk.provider.requests == []
        send(client, post(), desk)
        assert (await client.answer()).status == 200
    assert len(desk.provider.requests) == len(await desk.rows(1)) == 1


@pytest.mark.parametrize("raw", [bare(b"GET /v1/realtime", UPGRADE), bare(b"CONNECT planted.example:443")])
async def test_what_follows_a_refused_upgrade_is_http(desk: Desk, raw: bytes) -> None:
    """After a refused upgrade the connection still speaks HTTP: a request is answered, other bytes end it."""
    desk.provider.then(ANSWER)
    async with desk.client() as client, asyncio.timeout(10):
        send(client, raw + post() + b"\x81\x83\x00\x00\x00\x00abc", desk)
        assert [(await client.answer()).status for _ in range(2)] == [405 if raw.startswith(b"CONNECT") else 400, 400]
        assert await client.rest() == b""
        assert desk.provider.requests == []
    async with desk.client() as client, asyncio.timeout(10):
        send(client, raw + post(), desk)
        assert [(await client.answer()).status for _ in range(2)][1] == 200


@pytest.mark.parametrize(
    "raw",
    [
        b"\r\n" + post(),
        chunked(body=CHUNKED.replace(b"\r\n", b';ext="a b"\r\n', 1)),
        chunked(body=b"000" + CHUNKED),
        post(b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n"),
        post(target=b"http://planted.example/v1/chat/completions"),
        post(target=b"http://a@planted.example:1/v1/chat/completions").replace(b"Host: h", b"Host: planted.example"),
        post(b"Expect: something-else\r\n"),
    ],
    ids=["blank line", "chunk extension", "padded size", "h2c offer", "absolute form", "userinfo", "odd Expect"],
)
async def test_what_is_odd_but_clear_is_taken(desk: Desk, raw: bytes) -> None:
    """Oddities that can be read in one way only go to the configured provider, in plain framing."""
    desk.provider.then(ANSWER)
    async with desk.client() as client, asyncio.timeout(10):
        send(client, raw, desk)
        assert (await client.answer()).status == 200
    (request,) = desk.provider.requests
    assert (request.target, request.body) == (CHAT.decode(), BODY)
    assert request.header("host") == f"127.0.0.1:{desk.provider.port}"
    names = {name.lower() for name, _ in request.headers}
    assert names.isdisjoint({"transfer-encoding", "upgrade", "http2-settings", "expect", "connection"})


# -- requests behind requests --------------------------------------------------------------------


async def test_pipelined_requests_are_answered_in_order(desk: Desk) -> None:
    """Forty requests at once: forty answers, each to its own request, and forty rows."""
    desk.provider.default = _echo
    async with desk.client() as client, asyncio.timeout(20):
        for number in range(40):
            send(client, post(body=b'{"model":"m-%d"}' % number), desk)
        got = [json.loads((await client.answer()).body)["model"] for _ in range(40)]
    assert got == [f"m-{number}" for number in range(40)]
    assert [row.requested_model for row in await desk.rows(40)] == got


async def _echo(request: Received, wire: Wire) -> None:
    await plain(request.body)(request, wire)


async def test_garbage_behind_a_request_does_not_reach_its_answer(desk: Desk) -> None:
    """A request is answered whatever comes after it; then the garbage is refused and the connection closed."""
    asked = asyncio.Event()

    async def when_asked(request: Received, wire: Wire) -> None:
        await asked.wait()
        await ANSWER(request, wire)

    desk.provider.then(when_asked)
    async with desk.client() as client, asyncio.timeout(10):
        send(client, post(), desk)
        await eventually(lambda: desk.provider.requests)
        send(client, b"\x00garbage\r\n\r\n" * 3, desk)
        asked.set()
        assert [(await client.answer()).status for _ in range(2)] == [200, 400]
        assert await client.rest() == b""
    assert (await desk.row()).outcome == "complete"


async def test_a_request_inside_a_body_stays_a_body(desk: Desk) -> None:
    """What looks like a request but is covered by a length is passed on as content."""
    inner = post().replace(b"Bearer KEY", b"Bearer xyz")
    desk.provider.then(ANSWER)
    async with desk.client() as client, asyncio.timeout(10):
        send(client, post(body=inner), desk)
        assert (await client.answer()).status == 200
    (request,) = desk.provider.requests
    assert request.body == inner


@pytest.mark.parametrize(
    "field", [b"X-Trail: 1", b"X-Farebox-Session: stolen", b"Authorization: Bearer fb-x", b"X\x00: 1"]
)
async def test_trailer_fields_are_not_the_next_requests_headers(desk: Desk, field: bytes) -> None:
    """A chunked request ends its connection, so that its trailer fields can't be taken for another request's."""
    desk.provider.default = ANSWER
    async with desk.client() as client, asyncio.timeout(10):
        send(client, chunked(body=CHUNKED[:-2] + field + b"\r\n\r\n") + post(b"X-Second: 1\r\n"), desk)
        answer = await client.answer()
        assert answer.header("connection") == "close"
        assert await client.rest() == b""
    assert all("X-Trail" not in dict(r.headers) and "X-Second" not in dict(r.headers) for r in desk.provider.requests)
    assert len(desk.provider.requests) == (answer.status == 200)


# -- bodies that do not come ---------------------------------------------------------------------


async def test_a_body_that_goes_wrong_is_answered_at_once(desk: Desk) -> None:
    """A chunk that is none, in the middle of a metered body, is a 400 there and then; no provider was asked."""
    async with desk.client() as client, asyncio.timeout(10):
        send(client, chunked(body=b"5\r\nhello\r\n"), desk)
        await eventually(lambda: desk.app.proxy.in_flight)
        send(client, b"ZZ\r\nhello", desk)
        answer = await client.answer()
        assert (answer.status, answer.header("connection")) == (400, "close")
        assert await client.rest() == b""
    assert desk.provider.requests == []


async def test_an_upload_that_goes_wrong_is_the_clients_fault(desk: Desk) -> None:
    """A broken upload breaks off at the provider, is a 400 for the client, and its row does not blame the provider."""
    torn = asyncio.Event()

    async def take(_: Received, wire: Wire) -> None:
        try:
            async for _piece in wire.upload():
                pass
        except (ValueError, asyncio.IncompleteReadError):
            torn.set()
        wire.close()

    desk.provider.reads_bodies = False
    desk.provider.then(take)
    async with desk.client() as client, asyncio.timeout(10):
        send(client, chunked(body=b"5\r\nhello\r\n", target=b"/v1/files"), desk)
        await eventually(lambda: desk.provider.requests)
        send(client, b"ZZ\r\nhello", desk)
        assert (await client.answer()).status == 400
        assert await client.rest() == b""
        await torn.wait()
    row = await desk.row()
    assert (row.outcome, row.status, row.error_code) == ("client_gone", None, "broken_request")


async def test_an_answer_before_the_body_ends_the_connection(desk: Desk) -> None:
    """A provider that answers an upload early is heard; the rest of the upload is never taken for a request."""
    desk.provider.reads_bodies = False
    desk.provider.then(plain(b'{"error":{"code":"too_large"}}', status=413))
    async with desk.client() as client, asyncio.timeout(10):
        send(client, post(b"Content-Length: 200000\r\n", b"first part", length=False, target=b"/v1/files"), desk)
        answer = await client.answer()
        assert (answer.status, answer.header("connection")) == (413, "close")
        send(client, b"\r\n" * 5 + post(), desk)
        client.writer.write_eof()
        assert await client.rest() == b""
    assert (await desk.row()).status == 413
    assert len(desk.provider.requests) == 1


async def test_a_body_nobody_waits_for_is_not_the_next_request(desk: Desk) -> None:
    """A client refused while it waits for `100 Continue` is told that the connection ends: its body was never read."""
    async with desk.client() as client, asyncio.timeout(10):
        raw = post(b"Expect: 100-continue\r\nContent-Length: 1000\r\n", b"", length=False).replace(b"KEY", b"fb-no")
        send(client, raw, desk)
        answer = await client.answer()
        assert (answer.status, answer.header("connection")) == (401, "close")
        client.writer.write_eof()
        assert await client.rest() == b""


async def test_slow_clients_are_not_waited_for(database: str, tmp_path: Path) -> None:
    """A head that does not end within keepalive_timeout_s closes the connection, a body that stalls is a 400."""
    async with FakeProvider() as provider:
        settings = settings_of(
            database,
            tmp_path,
            {"up": {"dialect": "openai", "base_url": provider.base_url}},
            server={"keepalive_timeout_s": 0.3},
            limits={"client_stall_timeout_s": 1},
        )
        async with running(settings) as farebox, farebox.client() as slow, farebox.client() as stalled:
            stalled.writer.write(post(b"Content-Length: 100\r\n", length=False).replace(b"KEY", farebox.key.encode()))
            for byte in b"POST /v1/chat/completions HTTP/1.1\r\nHost: h":
                slow.writer.write(bytes([byte]))
                await asyncio.sleep(0)
            async with asyncio.timeout(10):
                assert await slow.rest() == b""
                await Leaps().by(1)
                assert (await stalled.answer()).status == 400
        assert provider.requests == []


# -- header fields -------------------------------------------------------------------------------


async def test_connection_options_cannot_hide_a_bodys_coding(desk: Desk) -> None:
    """Naming Content-Encoding in Connection does not part what farebox reads from what the provider reads."""
    desk.provider.then(ANSWER)
    headers = [("Connection", "content-encoding, x-farebox-key, x-farebox-tags"), ("Content-Encoding", "gzip")]
    packed = gzip.compress(b'{"model":"m-packed"}')
    assert (await desk.call(CHAT.decode(), packed, headers=[*headers, ("x-farebox-tags", "a=b")])).status == 200
    (request,) = desk.provider.requests
    assert (request.header("content-encoding"), request.body) == ("gzip", packed)
    row = await desk.row()
    assert (row.requested_model, row.tags) == ("m-packed", {"a": "b"})


@pytest.mark.parametrize(
    ("target", "body", "headers"),
    [
        (f"{CHAT.decode()}?key=KEY", BODY, []),
        ("/v1/files/KEY", None, []),
        (CHAT.decode(), BODY, [("Cookie", "session=KEY; a=b")]),
        (CHAT.decode(), BODY, [("X-Original-Authorization", "Bearer KEY")]),
        (CHAT.decode(), BODY, [("x-farebox-session", "KEY")]),
        (CHAT.decode(), BODY, [("x-farebox-tags", "team=KEY")]),
        (CHAT.decode(), b'{"model":"KEY"}', []),
        (CHAT.decode(), b'{"model":"m","user":"app-KEY"}', []),
        (CHAT.decode(), b'{"model":"m","metadata":{"session_id":"KEY"}}', []),
    ],
    ids=["query", "path", "cookie", "another header", "session", "tag", "model", "user", "metadata"],
)
async def test_a_key_in_the_wrong_place_is_refused(
    desk: Desk, target: str, body: bytes | None, headers: list[tuple[str, str]]
) -> None:
    """A farebox key that would go to the provider, or into a row, from where it stands: 400, and it goes nowhere."""
    answer = await desk.call(
        target.replace("KEY", desk.key),
        body.replace(b"KEY", desk.key.encode()) if body else None,
        headers=[(name, value.replace("KEY", desk.key)) for name, value in headers],
    )
    assert (answer.status, b"x-farebox-key" in answer.body) == (400, True)
    assert desk.key.encode() not in answer.body
    assert desk.provider.requests == []
    assert await desk.rows() == []


# -- modes ---------------------------------------------------------------------------------------


async def test_in_passthrough_mode_a_farebox_key_never_goes_up(database: str, tmp_path: Path) -> None:
    """There Authorization is the provider's: a valid farebox key in it is refused, beside another or alone."""
    async with FakeProvider(ANSWER) as provider:
        up = {"dialect": "openai", "base_url": provider.base_url, "passthrough": True}
        settings = settings_of(database, tmp_path, {"up": up}, auth={"mode": "passthrough"})
        async with running(settings) as farebox:
            bearer = {"Authorization": f"Bearer {farebox.key}"}
            for headers in (
                bearer,
                {"x-api-key": farebox.key},
                {"Authorization": farebox.key},
                {**bearer, "x-farebox-key": farebox.key},
                {"Authorization": "Bearer fb-not-even-well-formed"},
            ):
                answer = await call(farebox.port, CHAT.decode(), BODY, headers=headers)
                assert answer.status in (400, 403), headers
            assert provider.requests == []
            headers = {"Authorization": "Bearer sk-clients-own-1", "x-farebox-key": farebox.key}
            assert (await call(farebox.port, CHAT.decode(), BODY, headers=headers)).status == 200
            (request,) = provider.requests
            assert request.header("authorization") == "Bearer sk-clients-own-1"
            assert farebox.key not in repr(request)
            assert "sk-clients-own-1" not in repr(await farebox.row())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "127.0.0.1:8787"}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "LOCALHOST.:1"}, 200),
        ({"Host": "[::1]:8787"}, 200),
        ({"Host": "app.localhost:8787"}, 200),
        ({"Host": "localhost", "Origin": "http://localhost:3000"}, 200),
        ({"Host": "localhost", "Origin": "https://app.localhost"}, 200),
        ({"Host": "localhost", "Origin": "vscode-webview://0abc"}, 200),
        ({"Host": "planted.example"}, 403),
        ({"Host": "localhost.planted.example"}, 403),
        ({"Host": "127.0.0.1.planted.example"}, 403),
        ({"Host": "notlocalhost"}, 403),
        ({"Host": "10.0.0.1"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "localhost", "Origin": "https://planted.example"}, 403),
        ({"Host": "localhost", "Origin": "http://localhost.planted.example"}, 403),
        ({"Host": "localhost", "Origin": "null"}, 403),
        ({"Host": "localhost", "Origin": ""}, 403),
    ],
)
async def test_open_mode_answers_no_page_from_elsewhere(opened: Farebox, headers: dict[str, str], status: int) -> None:
    """Without keys the Host header, and the Origin a browser adds, must be of this machine."""
    assert (await call(opened.port, CHAT.decode(), BODY, headers=headers)).status == status


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Farebox]:
    async with postgres.database(priced=True) as dsn, FakeProvider(ANSWER) as provider:
        providers = {"up": {"dialect": "openai", "base_url": provider.base_url}}
        folder = tmp_path_factory.mktemp("open")
        async with running(settings_of(dsn, folder, providers, auth={"mode": "open"})) as farebox:
            yield farebox


async def test_guessed_keys_cost_a_bounded_number_of_look_ups() -> None:
    """A flood of well-formed keys that do not exist asks the database a few at a time, and never twice at once."""
    under_way: list[bytes] = []
    go_on = asyncio.Event()

    async def find(digest: bytes) -> KeyRecord | None:
        under_way.append(digest)
        await go_on.wait()
        return None

    async def changed_since(_: datetime) -> tuple[list[KeyRecord], datetime]:
        return [], datetime.now(UTC)

    ring = KeyRing(
        mode="virtual",
        size=16,
        poll_s=1,
        stale_s=60,
        find=find,
        changed_since=changed_since,
        now=lambda: datetime.now(UTC),
        monotonic=lambda: 0.0,
    )
    guesses = [keys.mint_secret() for _ in range(200)]
    asked = [asyncio.ensure_future(ring.identify(CIMultiDict({"x-api-key": guess}))) for guess in guesses * 2]
    await eventually(lambda: sum(task.done() for task in asked) == 400 - 2 * len(under_way))
    assert len(under_way) == len(set(under_way)) == 64
    go_on.set()
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(result) for result in results} == {InvalidKey, Unavailable}


# -- the control plane ---------------------------------------------------------------------------

API = "/farebox/api"
NOBODY = f"/keys/{uuid4()}"
BAD_ADMIN: dict[str, tuple[str, str, bytes | None]] = {
    "NUL in a filter": ("GET", "/usage?provider=%00", None),
    "a time before time": ("GET", "/usage?until=9999-12-31T23:59:59-23:59", None),
    "no time": ("GET", "/usage?since=nan", None),
    "a limit of many digits": ("GET", "/usage?limit=" + "9" * 5000, None),
    "a limit in other digits": ("GET", "/usage?limit=%D9%A1", None),
    "a cursor that is none": ("GET", "/usage?cursor=x", None),
    "a cursor beyond time": ("GET", f"/usage?cursor=9999-12-31T23:59:59-23:59_{uuid4()}", None),
    "no such parameter": ("GET", "/usage?x=1", None),
    "no body": ("POST", "/keys", b""),
    "no JSON": ("POST", "/keys", b"{"),
    "nested deep": ("POST", "/keys", b'{"name":' + b"[" * 100_000),
    "a body past the bound": ("POST", "/keys", b" " * 300_000),
    "a NUL in a name": ("POST", "/keys", b'{"name":"a\\u0000"}'),
    "half a pair in a name": ("POST", "/keys", b'{"name":"\\ud800"}'),
    "no UTF-8": ("POST", "/keys", b'{"name":"\xff"}'),
    "a line break in a name": ("POST", "/keys", b'{"name":"a\\nb"}'),
    "a line break at the end of one": ("POST", "/keys", b'{"name":"a\\n"}'),
    "no name": ("POST", "/keys", b'{"name":""}'),
    "a long name": ("POST", "/keys", b'{"name":"' + b"n" * 300 + b'"}'),
    "a long team": ("POST", "/keys", b'{"name":"n","team":"' + b"n" * 300 + b'"}'),
    "many models": ("POST", "/keys", b'{"name":"n","models":[' + b",".join([b'"m"'] * 1000) + b"]}"),
    "an hour beyond time": ("POST", "/keys", b'{"name":"n","expires_at":"9999-12-31T23:59:59-23:59"}'),
    "a hash of one's own": ("POST", "/keys", b'{"name":"n","secret_hash":"x"}'),
    "nobody's key": ("GET", NOBODY, None),
    "nobody's key changed": ("PATCH", NOBODY, b'{"name":"x"}'),
    "nobody's key rotated": ("POST", NOBODY + "/rotate", None),
    "nobody's key revoked": ("DELETE", NOBODY, None),
    "climbing": ("GET", "/keys/../usage", None),
    "no such method": ("PUT", "/keys", b"{}"),
    "in disguise": ("GET", "/%6beys", None),
}


@pytest.mark.parametrize("case", BAD_ADMIN)
async def test_the_control_plane_refuses_what_it_cannot_take(served: Serving, case: str) -> None:
    """Whatever the holder of the admin token sends is answered; nonsense is a 4xx, not a fault."""
    method, path, body = BAD_ADMIN[case]
    answer = await call(served.farebox.port, API + path, body, key=ADMIN_TOKEN, method=method)
    assert 400 <= answer.status < 500
    assert set(json.loads(answer.body)["error"]) == {"message", "type", "param", "code"}


async def test_strangers_cannot_take_up_the_database(served: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many ask /readyz at once, the database is asked once, and all get its answer."""
    asked = 0
    go_on = asyncio.Event()

    async def ping(*_: object) -> None:
        nonlocal asked
        asked += 1
        await go_on.wait()

    monkeypatch.setattr("farebox.store.Store.ping", ping)
    probes = [asyncio.ensure_future(call(served.farebox.port, "/readyz", method="GET")) for _ in range(30)]
    await eventually(lambda: asked and len(served.farebox.app.server.connections) >= 30)
    # By the answers to these, what the probes wrote before has been read.
    for _ in range(3):
        assert (await call(served.farebox.port, "/healthz", method="GET")).status == 200
    go_on.set()
    assert [answer.status for answer in await asyncio.gather(*probes)] == [200] * 30
    assert asked == 1


@pytest.mark.parametrize("scheme", ["Bearer {}", "Basic {}", "{}", "Bearer  {} x", "bearer {}0"])
@pytest.mark.parametrize("token", ["", "x", ADMIN_TOKEN[:-1], ADMIN_TOKEN + "0", ADMIN_TOKEN.upper(), "caf\xe9", "KEY"])
async def test_the_control_plane_takes_the_token_only(served: Serving, scheme: str, token: str) -> None:
    """Nothing but the whole admin token opens the control plane: no part of it, no key, no spelling."""
    token = token.replace("KEY", served.farebox.key)
    headers = {"Authorization": scheme.format(token)}
    for path in ("/keys", "/usage", NOBODY):
        assert (await call(served.farebox.port, API + path, method="GET", headers=headers)).status == 401
    for spelling in ("http://h/farebox/api/keys", "/FAREBOX/api/keys", "/farebox", "/v1/../farebox/api/keys"):
        answer = await call(served.farebox.port, spelling, method="GET", key=ADMIN_TOKEN)
        assert answer.status in (400, 401, 404)


async def test_the_provider_key_is_not_in_what_the_control_plane_tells(served: Serving) -> None:
    """Keys come without secret or hash, and nothing tells of the providers' credentials."""
    for path in ("/farebox/api/keys", "/farebox/api/usage", "/healthz", "/readyz"):
        answer = await call(served.farebox.port, path, method="GET", key=ADMIN_TOKEN)
        assert answer.status == 200
        assert b"secret" not in answer.body
        assert PROVIDER_KEY.encode() not in answer.body
