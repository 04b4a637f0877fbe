"""Providers that are broken or worse: the client gets an answer it can trust or none, and each attempt is a row."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import pytest_asyncio

from farebox import logs
from farebox.server import Reply, Request, make_server
from support.http import RawClient
from support.live import PROVIDER_KEY, Desk, Serving, relaying, serving
from support.postgres import PostgresServer
from support.process import resident_kb
from support.provider import Received, Script, Wire, plain, stream

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
DOCUMENT = b'{"model":"m-1","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}'
LENGTH = b"Content-Length: %d\r\n" % len(DOCUMENT)
TE = b"Transfer-Encoding: chunked\r\n"
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(DOCUMENT), DOCUMENT)
SMUGGLED = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsmuggled"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(postgres: PostgresServer) -> AsyncIterator[Serving]:
    async with serving(postgres, ["up"], relaying) as serving_:
        yield serving_


@pytest_asyncio.fixture(loop_scope="module")
async def desk(served: Serving) -> AsyncIterator[Desk]:
    yield await served.desk()
    await served.settled()


@pytest.fixture(autouse=True)
def calm(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """Nothing a provider sends is a fault of farebox's: no test here may leave an error in the log."""
    out = io.StringIO()
    logs.configure("debug", "json", [], out)
    yield out
    errors = [line for line in out.getvalue().splitlines() if json.loads(line)["level"] == "error"]
    assert errors == [] or "faulty" in request.node.name


def head(
    fields: bytes = b"",
    body: bytes = DOCUMENT,
    *,
    status: bytes = b"200 OK",
    framing: bytes = LENGTH,
    version: bytes = b"HTTP/1.1",
) -> bytes:
    return version + b" " + status + b"\r\nContent-Type: application/json\r\n" + fields + framing + b"\r\n" + body


def wire(raw: bytes, *, then: str = "close") -> Script:
    """Exactly these bytes, then the end of the connection, or nothing (`hold`)."""

    async def script(_: Received, wire: Wire) -> None:
        await wire.send(raw)
        if then == "close":
            wire.close()

    return script


async def ask(desk: Desk, client: RawClient, method: str = "POST", target: str = CHAT) -> None:
    await client.send(method, target, [desk.auth], json.dumps(BODY).encode() if method == "POST" else None)


BROKEN: dict[str, bytes] = {
    "no head at all": b"<html>nothing but a body</html>",
    "a later HTTP": head(version=b"HTTP/3.7"),
    "no HTTP": head(version=b"SMTP/1.1"),
    "a CR in a field": head(b"X-A: 1\rSet-Cookie: stolen=1\r\n"),
    "a CR after a line": head(b"X-A: 1\r\n\rX-B: 2\r\n"),
    "a NUL in a field": head(b"X-A: 1\x002\r\n"),
    "a space in a name": head(b"X A: 1\r\n"),
    "a control character in a name": head(b"X\x01A: 1\r\n"),
    "a field without a name": head(b": 1\r\n"),
    "a field without a colon": head(b"XA\r\n"),
    "a space before the colon": head(b"X-A : 1\r\n"),
    "a thousand fields": head(b"".join(b"h%d: 1\r\n" % n for n in range(1000))),
    "a field past its bound": head(b"X-A: " + b"a" * 100_000 + b"\r\n"),
    "a reason past its bound": head(status=b"200 " + b"a" * 100_000),
    "a CR in the reason": head(status=b"200 a\rX-A: 1"),
    "a negative length": head(framing=b"Content-Length: -5\r\n"),
    "a length with a sign": head(framing=b"Content-Length: +5\r\n"),
    "a length in hex": head(framing=b"Content-Length: 0x10\r\n"),
    "a list of lengths": head(framing=b"Content-Length: 5, 5\r\n"),
    "two lengths": head(framing=LENGTH + b"Content-Length: 5\r\n"),
    "a length beyond all numbers": head(framing=b"Content-Length: 99999999999999999999999\r\n"),
    "length and chunks": head(TE, CHUNKED),
    "a coding below chunks": head(b"Transfer-Encoding: gzip, chunked\r\n", CHUNKED, framing=b""),
    "a coding without chunks": head(b"Transfer-Encoding: gzip\r\n", framing=b""),
    "chunked is not last": head(b"Transfer-Encoding: chunked, gzip\r\n", CHUNKED, framing=b""),
    "a chunk size that is none": head(TE, b"ZZ\r\nhello\r\n", framing=b""),
    "chunks with bare LF": head(TE, b"5\nhello\n0\n\n", framing=b""),
    "trailers that are none": head(TE, CHUNKED[:-2] + b"X\x00: 1\r\n\r\n", framing=b""),
    "status 0": head(status=b"000 Nothing"),
    "status 99": head(status=b"099 Less"),
    "status 20": head(status=b"20 Short"),
    "status 1000": head(status=b"1000 Long"),
    "status -20": head(status=b"-20 Negative"),
    "another protocol": head(b"Upgrade: x\r\nConnection: upgrade\r\n", b"", status=b"101 Switching", framing=b""),
    "another protocol, unnamed": head(b"", b"", status=b"101 Switching", framing=b""),
    "a body with 204": head(status=b"204 No Content"),
    "a body with 304": head(status=b"304 Not Modified"),
    "more than its length": head(framing=b"Content-Length: 10\r\n"),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_a_broken_head_is_a_502(desk: Desk, case: str) -> None:
    """A head that can't be passed on safely is not: 502, one row, and the client's connection goes on."""
    desk.provider.then(wire(BROKEN[case]), plain(DOCUMENT))
    async with desk.client() as client, asyncio.timeout(10):
        await ask(desk, client)
        answer = await client.answer()
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (502, "upstream_unreachable")
        await ask(desk, client)
        assert (await client.answer()).body == DOCUMENT
    broken, whole = await desk.rows(2)
    assert (broken.outcome, broken.status, broken.error_code) == ("upstream_error", None, "broken_answer")
    assert (whole.outcome, whole.input_tokens) == ("complete", 7)
    assert len(desk.provider.requests) == 2


PASSED: dict[str, tuple[bytes, int, str, dict[str, str]]] = {
    "interim answers": (
        b"HTTP/1.1 100 Continue\r\n\r\n" + b"HTTP/1.1 103 Hints\r\nLink: <x>\r\nX-Early: 1\r\n\r\n" * 50 + head(),
        200, "OK", {},
    ),
    "an unknown interim answer": (b"HTTP/1.1 199 Hm\r\nX: y\r\n\r\n" + head(), 200, "OK", {}),
    "HTTP/0.9 with a head": (head(version=b"HTTP/0.9"), 200, "OK", {}),
    "HTTP/1.0": (head(version=b"HTTP/1.0"), 200, "OK", {}),
    "HTTP/1.0 up to the end": (head(version=b"HTTP/1.0", framing=b""), 200, "OK", {}),
    "no reason": (head(status=b"200"), 200, "", {}),
    "a reason with control characters": (head(status=b"200 a\x01b\x00c"), 200, "abc", {}),
    "a redirect": (head(b"Location: http://169.254.169.254/x\r\n", status=b"307 Go"), 307, "Go",
                   {"Location": "http://169.254.169.254/x"}),
    "status 999": (head(status=b"999 Why"), 999, "Why", {}),
    "a folded field": (head(b"X-A: 1\r\n  2\r\n"), 200, "OK", {"X-A": "1  2"}),
    "odd bytes in a field": (head(b"X-A: caf\xe9 \x01\x7f\r\n"), 200, "OK", {"X-A": "caf\xe9 \x01\x7f"}),
    "chunks": (head(TE, CHUNKED, framing=b""), 200, "OK", {}),
    "a chunk extension": (head(TE, CHUNKED.replace(b"\r\n", b";a=b\r\n", 1), framing=b""), 200, "OK", {}),
    "trailers": (head(TE, CHUNKED[:-2] + b"X-Trail: 1\r\n\r\n", framing=b""), 200, "OK", {}),
    "an upgrade offer": (head(b"Upgrade: h2c\r\nConnection: upgrade\r\n"), 200, "OK", {}),
    "large fields": (head(b"".join(b"h%d: %b\r\n" % (n, b"a" * 50_000) for n in range(4))), 200, "OK",
                     {f"h{n}": "a" * 50_000 for n in range(4)}),
}  # fmt: skip


@pytest.mark.parametrize("case", PASSED)
async def test_an_odd_but_clear_answer_passes(desk: Desk, case: str) -> None:
    """Oddities that can be read in one way only reach the client in plain framing, and make a plain row."""
    raw, status, reason, fields = PASSED[case]
    desk.provider.then(wire(raw))
    async with desk.client() as client, asyncio.timeout(10):
        await ask(desk, client)
        answer = await client.answer()
    assert (answer.status, answer.reason, answer.body, answer.clean) == (status, reason, DOCUMENT, True)
    ours = {"content-type", "content-length", "transfer-encoding", "x-farebox-request-id"}
    assert {name: value for name, value in answer.headers if name.lower() not in ours} == fields
    row = await desk.row()
    assert (row.status, row.input_tokens, row.output_tokens) == (status, 7, 3)


@pytest.mark.parametrize("after", ["a second answer", "204", "304", "HEAD", "garbage"])
async def test_bytes_after_an_answer_are_never_the_next_answer(desk: Desk, after: str) -> None:
    """What a provider sends on an idle connection is not taken for the answer to whoever comes next."""
    first = head() if after in ("a second answer", "garbage") else head(status=b"200 OK", body=b"")
    if after.isdigit():
        first = head(status=after.encode() + b" Empty", body=b"")
    sent = asyncio.Event()

    async def say_more(_: Received, wire: Wire) -> None:
        await wire.send(first)
        await answered.wait()
        await wire.send(b"garbage" if after == "garbage" else SMUGGLED)
        sent.set()

    answered = asyncio.Event()
    desk.provider.then(say_more, plain(DOCUMENT))
    method, target = ("HEAD", "/v1/files/f") if after == "HEAD" else ("POST", CHAT)
    async with desk.client() as client, asyncio.timeout(10):
        await ask(desk, client, method, target)
        assert (await client.answer(has_body=method != "HEAD")).clean
        answered.set()
        await sent.wait()
        for _ in range(2):  # what was sent before is read before these are answered
            await desk.call("/healthz", method="GET")
        await ask(desk, client)
        assert (await client.answer()).body == DOCUMENT
    first_request, second_request = desk.provider.requests
    assert first_request.connection != second_request.connection


CUT: dict[str, tuple[bytes, bytes]] = {
    "less than its length": (head(framing=b"Content-Length: 500\r\n"), b""),
    "no last chunk": (head(TE, CHUNKED[:-5], framing=b""), b""),
    "half a chunk": (head(TE, CHUNKED[:-20], framing=b""), b""),
    "a chunk size that is none": (head(TE, CHUNKED[:-5], framing=b""), b"ZZ\r\nhello\r\n"),
    "a chunk longer than it says": (head(TE, CHUNKED[:-5], framing=b""), b"2\r\nhello\r\n0\r\n\r\n"),
}


@pytest.mark.parametrize("case", CUT)
async def test_a_body_that_breaks_never_looks_whole(desk: Desk, case: str) -> None:
    """Once the answer has begun, a broken body breaks the client's connection; the row says upstream_cut."""
    begun, rest = CUT[case]
    seen = asyncio.Event()

    async def script(_: Received, wire: Wire) -> None:
        await wire.send(begun)
        await seen.wait()
        await wire.send(rest)
        wire.close()

    desk.provider.then(script)
    async with desk.client() as client, asyncio.timeout(10):
        await ask(desk, client)
        assert (await client.head()).status == 200
        seen.set()
        assert not (await client.rest()).endswith(b"\r\n0\r\n\r\n")
    row = await desk.row()
    assert (row.outcome, row.status, row.error_code) == ("upstream_cut", 200, "broken_body")


async def test_the_providers_credential_does_not_come_back(desk: Desk) -> None:
    """A field in which the provider repeats farebox's credential stays behind, and is not in the row either."""
    echo = [
        ("X-Debug-Authorization", f"Bearer {PROVIDER_KEY}"),
        ("X-Request-Id", PROVIDER_KEY),
        ("Location", f"https://provider.example/?key={PROVIDER_KEY}&x=1"),
        ("Set-Cookie", f"auth={PROVIDER_KEY}; HttpOnly"),
        ("Request-Id", "req-1"),
    ]
    desk.provider.then(plain(DOCUMENT, status=302, headers=echo))
    answer = await desk.call(CHAT, BODY)
    assert PROVIDER_KEY not in repr(answer.headers)
    assert answer.header("request-id") == "req-1"
    row = await desk.row()
    assert row.upstream_request_id == "req-1"
    assert PROVIDER_KEY not in repr(row)


async def test_two_codings_in_two_fields_are_read_as_one_list(desk: Desk) -> None:
    """A body packed twice, told in two fields, passes as it is and is still counted."""
    packed = gzip.compress(gzip.compress(DOCUMENT))
    desk.provider.then(plain(packed, headers=[("Content-Encoding", "gzip"), ("content-encoding", "gzip")]))
    answer = await desk.call(CHAT, BODY)
    assert (answer.body, answer.all("content-encoding")) == (packed, ["gzip", "gzip"])
    assert (await desk.row()).input_tokens == 7


async def test_a_connection_field_cannot_hide_the_coding(desk: Desk) -> None:
    """A provider that names Content-Encoding in Connection does not leave the client with bytes it can't read."""
    packed = gzip.compress(DOCUMENT)
    fields = [("Connection", "content-encoding, content-type, x-hop"), ("Content-Encoding", "gzip"), ("X-Hop", "1")]
    desk.provider.then(plain(packed, headers=fields))
    answer = await desk.call(CHAT, BODY)
    assert (answer.header("content-encoding"), answer.header("content-type")) == ("gzip", "application/json")
    assert answer.header("x-hop") is None
    assert (await desk.row()).input_tokens == 7


# -- what ends up in rows ------------------------------------------------------------------------


def usage(**members: Any) -> bytes:
    return json.dumps({"usage": {"prompt_tokens": 7, "completion_tokens": 3, **members}}).encode()


def with_usage(usage: bytes) -> bytes:
    return b'{"model":"m-1","usage":{"prompt_tokens":7,"completion_tokens":3,' + usage + b"}}"


def calling(tool: bytes) -> bytes:
    calls = b'[{"function":{"name":"' + tool + b'","arguments":"' + tool + b'"}}]'
    return DOCUMENT.replace(b"[]", b'[{"message":{"tool_calls":' + calls + b"}}]")


ROWS: dict[str, tuple[bytes, list[tuple[str, str]], bytes, dict[str, Any]]] = {
    "NUL in names": (
        b'{"model":"a\\u0000b","user":"u\\u0000","metadata":{"session_id":"s\\u0000"}}', [],
        DOCUMENT.replace(b"m-1", b"n\\u0000m"),
        {"requested_model": "ab", "end_user": "u", "session": "s", "model": "nm"},
    ),
    "half pairs": (b'{"model":"a\\ud800"}', [], DOCUMENT.replace(b"m-1", b"n\\udfff"), {"input_tokens": 7}),
    "no UTF-8": (b'{"model":"m"}', [], DOCUMENT.replace(b"m-1", b"n\xff\xfe"), {"input_tokens": 7}),
    "no UTF-8 in headers": (
        b'{"model":"m"}',
        [("x-farebox-session", "s\xff"), ("x-farebox-tags", "a=\xfe\xff,b=c"), ("user-agent", "\xff")],
        DOCUMENT, {"requested_model": "m"},
    ),
    "a model of 10 KB": (b'{"model":"' + b"q" * 10240 + b'"}', [], DOCUMENT.replace(b"m-1", b"m" * 10240), {}),
    "a session of 20 KB": (b'{"model":"m"}', [("x-farebox-session", "s" * 20_000)], DOCUMENT, {}),
    "a thousand tags": (
        b'{"model":"m"}', [("x-farebox-tags", ",".join(f"k{n}=v" for n in range(1000)))], DOCUMENT,
        {"tags": {f"k{n}": "v" for n in range(16)}},
    ),
    "no JSON": (b"\x00\xff\xfe", [], DOCUMENT, {"requested_model": None, "input_tokens": 7}),
    "nested deep": (b'{"model":"m","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}", [], DOCUMENT, {}),
    "an answer nested deep": (b'{"model":"m"}', [], b'{"a":' * 200_000 + b"1" + b"}" * 200_000, {}),
    "usage nested deep": (b'{"model":"m"}', [], with_usage(b'"x":' + b"[" * 400 + b"]" * 400), {"input_tokens": 7}),
    "usage with 20,000 members": (
        b'{"model":"m"}', [], with_usage(b",".join(b'"k%d":%d' % (n, n) for n in range(20_000))), {"input_tokens": 7},
    ),
    "usage with huge numbers": (
        b'{"model":"m"}', [], with_usage(b'"a":' + b"9" * 4000 + b',"b":1e999999,"c":-1e-99999'), {"output_tokens": 3},
    ),
    "counts beyond all counting": (
        b'{"model":"m"}', [], b'{"usage":{"prompt_tokens":99999999999999999999,"completion_tokens":1e400}}',
        {"usage_source": "estimate"},
    ),
    "counts below zero": (
        b'{"model":"m"}', [], b'{"usage":{"prompt_tokens":-7,"completion_tokens":-1}}', {"usage_source": "estimate"},
    ),
    "odd usage": (
        b'{"model":"m"}', [], usage(cost=[], prompt_tokens_details="x", service_tier={"a": 1}), {"input_tokens": 7},
    ),
    "an odd tool": (b'{"model":"m"}', [], calling(b"t\\u0000\\ud800\xff" + b"t" * 500), {"tool_calls_count": 1}),
    "ten thousand tools": (
        b'{"model":"m"}', [],
        DOCUMENT.replace(
            b"[]",
            b'[{"message":{"tool_calls":['
            + b",".join(b'{"function":{"name":"t%d"}}' % n for n in range(10_000)) + b"]}}]",
        ),
        {"tool_calls_count": 10_000},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ROWS)
async def test_whatever_was_said_the_row_arrives(desk: Desk, case: str) -> None:
    """Names, headers and usage that Postgres or JSON could not hold cost their own value at most, never the row."""
    body, headers, document, expected = ROWS[case]
    desk.provider.then(plain(document))
    answer = await desk.call(CHAT, body, headers=headers)
    assert (answer.status, answer.body) == (200, document)
    assert desk.provider.requests[0].body == body
    row = await desk.row()
    assert row.outcome == "complete"
    assert {name: getattr(row, name) for name in expected} == expected
    texts = (row.session, row.end_user, row.requested_model, row.model)
    assert all(len(text) <= 256 and "\0" not in text for text in texts if text is not None)


async def test_an_odd_request_id_of_the_provider_is_kept_as_text(desk: Desk) -> None:
    """The provider's own id is stored if it can be, bounded, whatever bytes it has."""
    desk.provider.then(plain(DOCUMENT, headers=[("x-request-id", "\xff\xfe" * 100), ("request-id", "second")]))
    await desk.call(CHAT, BODY)
    assert len((await desk.row()).upstream_request_id or "") == 128


# -- sizes ---------------------------------------------------------------------------------------

MB = 1 << 20
LARGE: dict[str, Callable[[], Script]] = {
    "a document that unpacks to 100 MB": lambda: plain(
        gzip.compress(b"a" * (100 * MB), 1), headers=[("Content-Encoding", "gzip")]
    ),
    "an event that unpacks to 100 MB": lambda: stream(
        [gzip.compress(b"data: " + b"a" * (100 * MB) + b"\n\n", 1)], headers=[("Content-Encoding", "gzip")]
    ),
    "a line of 20 MB": lambda: stream([b"data: ", *[b"a" * MB] * 20, b"\n\n"]),
    "a comment of 20 MB": lambda: stream([b":", *[b"a" * MB] * 20, b"\n\n"]),
    "20 MB of line ends": lambda: stream([b"\r\n" * (MB // 2)] * 20),
    "20 MB of NULs": lambda: stream([b"\0" * MB] * 20),
    "20 MB of quotation marks": lambda: plain(b'{"usage":' + b'"\\' * (10 * MB)),
    "a document of 20 MB": lambda: plain(b'{"data":"' + b"a" * (20 * MB) + b'"}'),
}


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc")
@pytest.mark.parametrize("case", LARGE)
async def test_large_answers_pass_in_bounded_memory(desk: Desk, case: str) -> None:
    """Whatever an answer unpacks to and wherever its lines end, farebox holds a few megabytes of it."""
    desk.provider.then(LARGE[case]())
    before = resident_kb(os.getpid())
    size = 0
    async with desk.client() as client, asyncio.timeout(30):
        await client.send("POST", CHAT, [desk.auth, ("Connection", "close")], json.dumps(BODY).encode())
        while piece := await client.reader.read(65536):
            size += len(piece)
    assert size > 90_000
    # The fake provider's own copy is in this process too.
    assert resident_kb(os.getpid()) - before < 60 * 1024
    row = await desk.row()
    assert (row.status, row.usage_source) == (200, "estimate")


# -- farebox's own faults ------------------------------------------------------------------------


async def test_a_faulty_handler_never_sends_a_second_head(calm: io.StringIO) -> None:
    """A fault after the answer has begun breaks the connection: a second head would be read as its body."""

    async def handler(request: Request) -> Reply:
        reply = Reply(request)
        reply.start(200, b"OK", [], length=None)
        reply.write(b"begun")
        raise RuntimeError("planted text")

    server = make_server(handler, keepalive_timeout_s=5, header_bytes_max=4096, headers_max=64)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    try:
        async with RawClient(listening.sockets[0].getsockname()[1]) as client, asyncio.timeout(10):
            await client.send("GET", "/", {})
            answer = await client.answer()
            assert (answer.status, answer.clean) == (200, False)
            assert answer.body in (b"begun", b"")
            assert await client.rest() == b""
    finally:
        listening.close()
        await server.shutdown(0.1)
    assert "RuntimeError" in calm.getvalue()
    assert "planted text" not in calm.getvalue()


async def test_a_faulty_meter_costs_the_reading_and_not_the_row(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, calm: io.StringIO
) -> None:
    """Should reading an answer fail, the attempt is one row, the client's answer is cut, and nothing is quoted."""

    def fail(_: object) -> None:
        raise OverflowError("planted text")

    desk.provider.then(stream([b'data: {"choices":[]}\n\n']))
    with monkeypatch.context() as patched:
        patched.setattr("farebox.meter.Meter.finish", fail)
        answer = await desk.call(CHAT, BODY)
        await desk.farebox.idle()
    assert not answer.clean
    row = await desk.row()
    assert (row.outcome, row.error_code, row.usage_source) == ("upstream_cut", "farebox_fault", "estimate")
    assert "planted text" not in calm.getvalue()
