"""The client's side: answers framed right for every client, and malformed input answered without an echo."""

from __future__ import annotations

import asyncio
import gc
import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from farebox import logs
from farebox.server import Handler, Reply, Request, make_server, read_body, respond, whole_body
from support.http import RawClient

PLANTED = "fb-plantedplantedplantedplanted000000"


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[int]:
    server = make_server(handler, keepalive_timeout_s=5, header_bytes_max=4096, headers_max=64)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        await server.shutdown(0.1)


def answering(act: Callable[[Reply], None], *, status: int = 200, length: int | None = None) -> Handler:
    async def handler(request: Request) -> Reply:
        reply = Reply(request)
        reply.start(status, b"Fine", [(b"X-Odd", b"caf\xe9"), (b"x-odd", b"2")], length=length)
        act(reply)
        return reply

    return handler


def whole(reply: Reply) -> None:
    reply.write(b"ab")
    reply.write(b"")
    reply.write(b"cd")
    reply.end()


async def test_head_and_body_go_out_as_given() -> None:
    """Names keep their case and order, values their bytes, nothing is added but framing."""
    async with serving(answering(whole, length=4)) as port, RawClient(port) as client:
        await client.send("GET", "/", {})
        answer = await client.answer()
    assert answer.reason == "Fine"
    assert answer.headers == [("X-Odd", "caf\xe9"), ("x-odd", "2"), ("Content-Length", "4")]
    assert answer.body == b"abcd"


async def test_a_body_of_unknown_length_is_chunked_and_the_connection_goes_on() -> None:
    """Without a length the body is chunked, and a second request on the connection is answered."""
    async with serving(answering(whole)) as port, RawClient(port) as client:
        for _ in range(2):
            await client.send("GET", "/", {})
            answer = await client.answer()
            assert answer.header("transfer-encoding") == "chunked"
            assert (answer.body, answer.clean) == (b"abcd", True)


async def test_an_http_10_client_gets_an_unframed_body_and_a_close() -> None:
    """HTTP/1.0 knows no chunks: the body ends with the connection."""
    async with serving(answering(whole)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        raw = await reader.read()
        writer.close()
    head, _, body = raw.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert body == b"abcd"


@pytest.mark.parametrize("length", [None, 10])
async def test_a_cut_answer_never_looks_whole(length: int | None) -> None:
    """What is cut ends without its last chunk, or short of its length."""

    def act(reply: Reply) -> None:
        reply.write(b"part")
        reply.cut()

    async with serving(answering(act, length=length)) as port, RawClient(port) as client:
        await client.send("GET", "/", {})
        answer = await client.answer()
    assert (answer.body, answer.clean) == (b"part", False)


async def test_a_cut_answer_to_an_http_10_client_is_a_reset() -> None:
    """Where the end of the connection would mean the end of the body, the connection is reset."""

    def act(reply: Reply) -> None:
        reply.write(b"part")
        reply.cut()

    async with serving(answering(act)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            await reader.read()
            await reader.read()
        writer.close()


async def test_ending_short_of_the_announced_length_is_a_cut() -> None:
    """An answer ended before its length breaks the connection instead of hanging it."""

    def act(reply: Reply) -> None:
        reply.write(b"1")
        reply.end()

    async with serving(answering(act, length=5)) as port, RawClient(port) as client:
        await client.send("GET", "/", {})
        assert not (await client.answer()).clean


async def test_bytes_past_the_announced_length_are_not_sent() -> None:
    """A provider that sends more than it announced can't smuggle a second answer onto the connection."""

    def act(reply: Reply) -> None:
        reply.write(b"abHTTP/1.1 200 OK\r\n\r\n")
        reply.end()

    async with serving(answering(act, length=2)) as port, RawClient(port) as client:
        for _ in range(2):
            await client.send("GET", "/", {})
            assert (await client.answer()).body == b"ab"


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
async def test_answers_without_a_body_have_none(method: str, status: int) -> None:
    """HEAD, 204 and 304 have no body and no chunking, and the connection goes on."""
    async with serving(answering(lambda r: r.end(), status=status, length=None)) as port, RawClient(port) as client:
        for _ in range(2):
            await client.send(method, "/", {})
            answer = await client.answer(has_body=False)
            assert answer.status == status
            assert answer.header("transfer-encoding") is None


MALFORMED = [
    b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization Bearer %b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization : Bearer %b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nx: \x00%b\r\n\r\n",
    b"GET /%b HTTP/9.x\r\n\r\n",
    b"%b\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nx: %b\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\nx: %b\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\nx: %b\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\nx: %b\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\nx: %b\r\n\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nx: 1\r\n %b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nx: " + b"a" * 9000 + b"%b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(b"h%d: 1\r\n" % i for i in range(200)) + b"x: %b\r\n\r\n",
]


@pytest.mark.parametrize("raw", MALFORMED)
async def test_malformed_requests_are_refused_without_an_echo(raw: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    """What does not parse gets a 4xx and a closed connection; nothing of it comes back or is logged."""
    out = io.StringIO()
    logs.configure("debug", "json", [], out)
    async with serving(answering(whole, length=4)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(raw.replace(b"%b", PLANTED.encode()))
        async with asyncio.timeout(5):
            answer = await reader.read()
        writer.close()
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431")), answer
    assert answer.count(b"HTTP/1.1") == 1
    captured = capfd.readouterr()
    for text in (answer.decode("latin-1"), out.getvalue(), captured.out, captured.err):
        assert PLANTED not in text


async def test_a_handler_that_fails_is_a_plain_500(capfd: pytest.CaptureFixture[str]) -> None:
    """An exception's words reach neither the client nor the log."""
    out = io.StringIO()
    logs.configure("debug", "json", [], out)

    async def handler(request: Request) -> Reply:
        raise RuntimeError(PLANTED)

    async with serving(handler) as port, RawClient(port) as client:
        await client.send("GET", "/", {})
        answer = await client.answer()
    assert answer.status == 500
    assert PLANTED.encode() not in answer.body
    assert PLANTED not in out.getvalue()
    assert "RuntimeError" in out.getvalue()
    assert PLANTED not in "".join(capfd.readouterr())


async def test_a_request_body_is_read_as_sent() -> None:
    """A compressed body is not decoded on the way in."""

    async def handler(request: Request) -> Reply:
        return respond(request, 200, await read_body(request, 100, 5))

    packed = b"\x1f\x8b not really gzip"
    async with serving(handler) as port, RawClient(port) as client:
        await client.send("POST", "/", {"Content-Encoding": "gzip"}, packed)
        assert (await client.answer()).body == packed


async def test_the_whole_of_a_slow_reader_is_bounded() -> None:
    """A reply is congested once a client does not read, and says when it is drained."""
    seen: list[bool] = []

    async def handler(request: Request) -> Reply:
        reply = Reply(request)
        reply.start(200, b"OK", [], length=None)
        for _ in range(400):
            reply.write(b"x" * 65536)
            if reply.congested:
                seen.append(True)
                await reply.drain(10)
                break
        reply.end()
        return reply

    async with serving(handler) as port, RawClient(port) as client:
        await client.send("GET", "/", {})
        while not seen:
            await asyncio.sleep(0.01)
        answer = await client.answer()
    assert answer.clean


async def test_connections_past_the_bound_are_closed_as_they_come() -> None:
    """With `connections_max` open the next one is closed at once, and one that goes makes room."""
    server = make_server(
        answering(whole, length=4), keepalive_timeout_s=5, header_bytes_max=4096, headers_max=64, connections_max=1
    )
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    try:
        async with RawClient(port) as first:
            await first.send("GET", "/", {})
            assert (await first.answer()).body == b"abcd"
            async with RawClient(port) as second:
                assert await second.reader.read() == b""
        async with asyncio.timeout(5):
            while server.connections:
                await asyncio.sleep(0.005)
        async with RawClient(port) as third:
            await third.send("GET", "/", {})
            assert (await third.answer()).body == b"abcd"
    finally:
        listening.close()
        await server.shutdown(0.1)


async def test_a_connection_leaves_nothing_of_farebox_for_the_garbage_collector() -> None:
    """What is left when it ends goes at once, whoever ends it, whether or not a request is being answered."""

    async def handler(request: Request) -> Reply:
        if request.raw_path == "/waits":
            await asyncio.sleep(60)
        return respond(request, 200, b"ok")

    gc.collect()
    gc.disable()
    try:
        async with serving(handler) as port:
            for path in ("/", "/waits"):
                for _ in range(3):
                    async with RawClient(port) as client:
                        await client.send("GET", path, {})
                        if path == "/":
                            await client.answer()
                        await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            left = {
                type(one).__qualname__ for one in gc.garbage if type(one).__module__.startswith(("farebox", "aiohttp"))
            }
            assert not left & {"Connection", "Request", "Reply", "StreamReader"}, left
            assert not any(type(one) is asyncio.Task for one in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


async def test_requests_on_each_others_heels_are_all_answered_whatever_their_bodies() -> None:
    """Bodies that come in pieces between ones that don't, more than the parser queues: none is left behind."""

    async def handler(request: Request) -> Reply:
        body = whole_body(request, 1 << 20)
        if body is None:
            body = await read_body(request, 1 << 20, 5)
        await asyncio.sleep(0)
        return respond(request, 200, b"%06d" % len(body))

    sizes = [3, 200_000, 0, 70_000] * 40
    requests = b"".join(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (n, b"y" * n) for n in sizes)
    async with serving(handler) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(requests)
        try:
            for size in sizes:
                async with asyncio.timeout(5):
                    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
                    assert int(await reader.readexactly(6)) == size
        finally:
            writer.transport.abort()
