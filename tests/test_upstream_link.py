"""One exchange on a connection: what bounds an answer, when it is late, and who waits for whom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from farebox.config import Provider
from farebox.upstream import FIELD_BYTES_MAX, READ_BUFFER_BYTES, Answer, Upstream, UpstreamError
from farebox.upstream.link import FIELDS_MAX, HEAD_BYTES_MAX, UNSENT_BYTES_MAX
from support.clock import Leaps
from support.wires import Wire, Wires

PROVIDER = Provider(
    name="p", dialect="openai", base_url="http://provider.test/v1", connections_max=2,
    response_timeout_s=60, idle_timeout_s=20,
)  # fmt: skip
HEAD = b"HTTP/1.1 200 OK\r\n"
OK = HEAD + b"Content-Length: 2\r\n\r\nok"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


async def turns(number: int = 5) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


class Exchange:
    """A call under way: its `wire` is the provider's side."""

    def __init__(self, body: Any = b"{}", length: int | None = None, method: str = "POST") -> None:
        self.wires = Wires()
        self.upstream = Upstream(PROVIDER, self.wires)  # type: ignore[arg-type]
        start = self.upstream.start(method, self.upstream.url("/x", versioned=True), [])
        self.call: asyncio.Task[Answer] = asyncio.create_task(self.upstream.send(method, start, body, length=length))

    async def __aenter__(self) -> Exchange:
        await turns()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.call.cancel()
        await asyncio.gather(self.call, return_exceptions=True)
        await self.upstream.close()

    @property
    def wire(self) -> Wire:
        return self.wires.opened[0]

    async def failure(self) -> UpstreamError:
        """How the call failed, before its head or within its body."""
        with pytest.raises(UpstreamError) as failure:
            answer = await self.call
            while await answer.read():
                pass
        return failure.value


# -- bounds --------------------------------------------------------------------------------------

ENDLESS: dict[str, tuple[bytes, Callable[[], bytes], str]] = {
    "a status line": (b"HTTP/1.1 200 ", lambda: b"a" * 4096, "broken_answer"),
    "a name": (HEAD, lambda: b"n" * 4096, "broken_answer"),
    "a value": (HEAD + b"X-A: ", lambda: b"v" * 4096, "broken_answer"),
    "fields": (HEAD, lambda: b"X-A: " + b"v" * 4000 + b"\r\n", "broken_answer"),
    "interim answers": (b"", lambda: b"HTTP/1.1 103 Hints\r\nLink: <x>\r\n\r\n", "broken_answer"),
    "a chunk's extension": (CHUNKED + b"5;", lambda: b"e" * 4096, "broken_body"),
    "trailers": (CHUNKED + b"0\r\n", lambda: b"X-T: 1\r\n" * 100, "broken_body"),
    "a trailer": (CHUNKED + b"0\r\nX-T: ", lambda: b"t" * 4096, "broken_body"),
}


@pytest.mark.parametrize("case", ENDLESS)
async def test_what_is_not_body_has_an_end(case: str) -> None:
    """However a provider goes on without a byte of body, it is stopped at `HEAD_BYTES_MAX`, or before."""
    begin, more, kind = ENDLESS[case]
    async with Exchange() as exchange:
        exchange.wire.say(begin)
        said = 0
        while exchange.wires.alive and said < 2 * HEAD_BYTES_MAX:
            piece = more()
            exchange.wire.say(piece)
            said += len(piece)
            await asyncio.sleep(0)
        assert said <= HEAD_BYTES_MAX + 8192
        assert (await exchange.failure()).kind == kind


@pytest.mark.parametrize(("fields", "size", "fine"), [(FIELDS_MAX, 10, True), (FIELDS_MAX + 1, 10, False)])
async def test_a_head_has_so_many_fields(fields: int, size: int, fine: bool) -> None:
    """Up to `FIELDS_MAX` they pass, whether they come at once with the body or not; one more is a broken answer."""
    lines = b"".join(b"X-%d: %b\r\n" % (number, b"v" * size) for number in range(fields - 1))
    raw = HEAD + lines + b"Content-Length: 2\r\n\r\nok"
    for pieces in ((raw,), (raw[:40], raw[40:])):
        async with Exchange() as exchange:
            await exchange.wire.play(pieces)
            if fine:
                assert await (await exchange.call).read() == b"ok"
            else:
                assert (await exchange.failure()).kind == "broken_answer"


@pytest.mark.parametrize("cut", [None, 30])
async def test_a_field_has_so_many_bytes(cut: int | None) -> None:
    """Up to `FIELD_BYTES_MAX`, name and value together."""
    for more, fine in ((0, True), (1, False)):
        raw = HEAD + b"X-A: " + b"v" * (FIELD_BYTES_MAX - 3 + more) + b"\r\nContent-Length: 2\r\n\r\nok"
        async with Exchange() as exchange:
            await exchange.wire.play((raw,) if cut is None else (raw[:cut], raw[cut:]))
            if fine:
                assert await (await exchange.call).read() == b"ok"
            else:
                assert (await exchange.failure()).kind == "broken_answer"


async def test_an_answer_nobody_takes_is_not_read_on() -> None:
    """Past `READ_BUFFER_BYTES` the provider waits, and goes on once they are taken; nothing is lost."""
    async with Exchange() as exchange:
        exchange.wire.say(HEAD + b"Content-Length: 400000\r\n\r\n")
        answer = await exchange.call
        sent = 0
        while not exchange.wire.paused:
            exchange.wire.say(b"x" * 1000)
            sent += 1000
        assert READ_BUFFER_BYTES <= sent <= READ_BUFFER_BYTES + 2000
        got = 0
        while got < sent:
            got += len(await answer.read())
        reading = asyncio.create_task(answer.read())
        await turns()
        assert not exchange.wire.paused
        exchange.wire.say(b"y" * 10)
        assert await reading == b"y" * 10


async def test_a_sink_that_wants_to_be_left_alone_is() -> None:
    """`pipe` ends where the sink says so, the provider waits, and the next `pipe` goes on there."""
    async with Exchange() as exchange:
        exchange.wire.say(CHUNKED)
        answer = await exchange.call
        taken: list[bytes] = []

        def sink(piece: bytes) -> bool:
            taken.append(piece)
            return len(taken) == 2

        piping = asyncio.create_task(answer.pipe(sink))
        await turns()
        for letter in (b"a", b"b"):
            exchange.wire.say(b"1\r\n%b\r\n" % letter)
        assert await piping is False and exchange.wire.paused
        piping = asyncio.create_task(answer.pipe(sink))
        await turns()
        assert not exchange.wire.paused
        exchange.wire.say(b"1\r\nc\r\n0\r\n\r\n")
        assert await piping is True
        assert b"".join(taken) == b"abc"


async def test_what_a_sink_raises_is_its_callers() -> None:
    """The transport never sees it; the call may be given up, and with it the connection."""
    async with Exchange() as exchange:
        exchange.wire.say(CHUNKED)
        answer = await exchange.call

        def sink(piece: bytes) -> bool:
            raise ZeroDivisionError

        piping = asyncio.create_task(answer.pipe(sink))
        await turns()
        exchange.wire.say(b"1\r\na\r\n")
        with pytest.raises(ZeroDivisionError):
            await piping
        answer.close()
        assert exchange.wires.alive == []


# -- time ----------------------------------------------------------------------------------------


async def test_a_head_that_does_not_come_is_a_timeout() -> None:
    """After `idle_timeout_s` without a byte, or at `response_timeout_s` however many bytes of it drip in."""
    async with Exchange() as exchange:
        leaps = Leaps()
        await leaps.by(19)
        assert not exchange.call.done()
        await leaps.by(2)
        failure = await exchange.failure()
        assert (failure.kind, failure.sent, failure.timeout) == ("response_timeout", True, True)
        assert exchange.wires.alive == []
    async with Exchange() as exchange:
        leaps = Leaps()
        for _ in range(5):
            exchange.wire.say(b"HTTP/1.1 100 Continue\r\n\r\n")
            await leaps.by(11)
            assert not exchange.call.done()
        await leaps.by(6)
        assert (await exchange.failure()).kind == "response_timeout"


async def test_a_body_that_stops_is_a_timeout() -> None:
    """Each piece begins the time anew; a pause that the client makes does not count."""
    async with Exchange() as exchange:
        exchange.wire.say(CHUNKED)
        answer = await exchange.call
        leaps = Leaps()
        for _ in range(5):
            await leaps.by(15)
            exchange.wire.say(b"1\r\nx\r\n")
        for _ in range(70):
            exchange.wire.say(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
        assert exchange.wire.paused
        await leaps.by(100)
        got = 0
        while got < 70_005:
            got += len(await answer.read())
        reading = asyncio.create_task(answer.read())
        await turns()
        await leaps.by(15)
        assert not reading.done()
        await leaps.by(6)
        with pytest.raises(UpstreamError) as failure:
            await reading
        assert (failure.value.kind, failure.value.timeout) == ("idle_timeout", True)


async def test_an_upload_has_the_whole_time_for_its_answer() -> None:
    """While the client still sends, a silent provider is not late; afterwards it has `idle_timeout_s` again."""
    going = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"begun"
        await going.wait()
        yield b"done"

    async with Exchange(body()) as exchange:
        leaps = Leaps()
        await leaps.by(25)
        assert not exchange.call.done()
        going.set()
        await turns()
        assert exchange.wire.sent.endswith(b"\r\n\r\n5\r\nbegun\r\n4\r\ndone\r\n0\r\n\r\n")
        await leaps.by(19)
        assert not exchange.call.done()
        await leaps.by(2)
        assert (await exchange.failure()).kind == "response_timeout"


# -- uploads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [None, 9])
async def test_an_upload_goes_up_as_it_comes(length: int | None) -> None:
    """With its length where it is known, else in chunks; empty pieces are none; the connection is used again."""

    async def body() -> AsyncIterator[bytes]:
        for piece in (b"begun", b"", b"done"):
            yield piece

    async with Exchange(body(), length) as exchange:
        head, _, sent = exchange.wire.sent.partition(b"\r\n\r\n")
        if length is None:
            assert head.endswith(b"Transfer-Encoding: chunked")
            assert sent == b"5\r\nbegun\r\n4\r\ndone\r\n0\r\n\r\n"
        else:
            assert head.endswith(b"Content-Length: 9") and sent == b"begundone"
        exchange.wire.say(OK)
        assert await (await exchange.call).read() == b"ok"
        assert exchange.wires.alive


@pytest.mark.parametrize("size", [128 << 10, (128 << 10) + 1, 1 << 20, (1 << 20) + 1, 5 << 20])
async def test_a_large_body_goes_up_whole(size: int) -> None:
    """Also one that is too large for one write, with its length."""
    body = (bytes(range(256)) * 20481)[:size]
    async with Exchange(body) as exchange:
        head, _, sent = exchange.wire.sent.partition(b"\r\n\r\n")
        assert b"Content-Length: %d" % len(body) in head and sent == body
        exchange.wire.say(OK)
        assert await (await exchange.call).read() == b"ok"


async def test_a_provider_that_does_not_take_makes_the_upload_wait() -> None:
    """Past `UNSENT_BYTES_MAX` nothing more is asked of the client until the provider has taken some."""
    asked = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal asked
        while asked < 4:
            asked += 1
            yield b"x"

    wires = Wires(lambda wire: setattr(wire, "unsent", UNSENT_BYTES_MAX + 1))
    upstream = Upstream(PROVIDER, wires)  # type: ignore[arg-type]
    start = upstream.start("POST", upstream.url("/x", versioned=True), [])
    call = asyncio.create_task(upstream.send("POST", start, body()))
    await turns()
    for number in range(1, 5):
        assert asked == number
        wires.opened[0].protocol.resume_writing()
        await turns()
    wires.opened[0].protocol.resume_writing()
    await turns()
    wires.opened[0].say(OK)
    assert await (await call).read() == b"ok"
    await upstream.close()


async def test_an_answer_before_the_upload_ends_ends_it() -> None:
    """The rest of the request is not wanted: the client is asked no more, and the connection is not used again."""
    ended = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        try:
            yield b"begun"
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with Exchange(body()) as exchange:
        exchange.wire.say(HEAD.replace(b"200 OK", b"413 Large") + b"Content-Length: 2\r\n\r\nok")
        answer = await exchange.call
        assert answer.head.status == 413 and await answer.read() == b"ok"
        await asyncio.wait_for(ended.wait(), 5)
        assert exchange.wires.alive == []


@pytest.mark.parametrize("pieces", [[OK], [OK[:9], OK[9:]]])
async def test_an_answer_before_all_of_a_request_went_out_is_the_connections_last(pieces: list[bytes]) -> None:
    """Nobody's request waits behind the rest of another's that its provider may never read."""
    async with Exchange() as exchange:
        exchange.wire.unsent = 1
        for piece in pieces:
            exchange.wire.say(piece)
        assert await (await exchange.call).read() == b"ok"
        assert exchange.wires.alive == []


async def test_a_body_that_breaks_off_breaks_the_exchange() -> None:
    """The provider gets no end of it, so it never takes it for whole."""

    async def body() -> AsyncIterator[bytes]:
        yield b"begun"
        raise ZeroDivisionError

    async with Exchange(body()) as exchange:
        assert (await exchange.failure()).kind == "connection_lost"
        assert exchange.wires.alive == [] and exchange.wire.sent.endswith(b"5\r\nbegun\r\n")


async def test_a_call_given_up_anywhere_takes_its_connection_with_it() -> None:
    """Before the head, within the body, with the upload under way; but not after the end."""
    stuck = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"begun"
        await stuck.wait()

    for payload, said in ((b"{}", b""), (body(), b""), (b"{}", CHUNKED + b"1\r\nx\r\n"), (b"{}", OK)):
        async with Exchange(payload) as exchange:
            exchange.wire.say(said)
            await turns()
            if said:
                (await exchange.call).close()
            else:
                exchange.call.cancel()
                await asyncio.gather(exchange.call, return_exceptions=True)
            assert bool(exchange.wires.alive) == (said == OK)


@pytest.mark.parametrize("raw", [OK, CHUNKED + b"2\r\nok\r\n0\r\n\r\n"])
async def test_a_body_that_is_all_here_can_be_had_at_once(raw: bytes) -> None:
    """Whatever frames it, as long as it came with its head; and it is read only once."""
    async with Exchange() as exchange:
        exchange.wire.say(raw)
        answer = await exchange.call
        assert answer.whole == b"ok"
        assert [await answer.read(), await answer.read()] == [b"ok", b""]


async def test_a_body_that_came_in_pieces_is_not_had_at_once() -> None:
    """What was taken of it is not given again, and the rest is no whole."""
    async with Exchange() as exchange:
        exchange.wire.say(CHUNKED + b"2\r\nok\r\n")
        answer = await exchange.call
        assert (answer.whole, await answer.read()) == (b"", b"ok")
        exchange.wire.say(b"2\r\nno\r\n0\r\n\r\n")
        assert [await answer.read(), await answer.read()] == [b"no", b""]
