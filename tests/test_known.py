"""Heads that come again: what is known by its bytes says what parsing it says, and nothing else is taken for it."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farebox import heads
from farebox.errors import Refusal
from farebox.server import Connection, Reply, Request, make_server, read_body, refuse, respond, whole_body

fixed = settings(derandomize=True, database=None, deadline=None, max_examples=200)

HEAD = b"POST /v1/x?q HTTP/1.1\r\nHost: a\r\nX-One: 1\r\nContent-Length: %b\r\nx-one: \xe9\r\n\r\n"
ODD = [
    HEAD.replace(b"Content-Length: ", b"content-length: "),
    HEAD.replace(b"Content-Length: ", b"CONTENT-LENGTH:"),
    HEAD.replace(b"X-One: 1", b"Transfer-Encoding: chunked"),
    HEAD.replace(b"X-One: 1", b"Content-Length: 2"),
    HEAD.replace(b"X-One: 1", b"X-One: 1\r\n 2"),
    HEAD.replace(b"X-One: 1", b"X-One: 1\n2"),
    HEAD.replace(b"X-One: 1", b"X-One: 1\r2"),
    HEAD.replace(b"X-One: 1", b"Expect: 100-continue"),
    HEAD.replace(b"X-One: 1", b"Connection: close"),
    HEAD.replace(b"X-One: 1", b"Connection: upgrade\r\nUpgrade: h2c"),
    HEAD.replace(b"X-One: 1", b"Connection: upgrade\r\nUpgrade: websocket"),
    HEAD.replace(b"HTTP/1.1", b"HTTP/1.0"),
    HEAD.replace(b"POST", b"GET"),
    HEAD.replace(b"/v1/x", b"/v1/y"),
    HEAD.replace(b"\r\nHost", b"\nHost"),
    HEAD.replace(b"\r\n\r\n", b"\r\n\n"),
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\r\n",
    b"",
]


class Wire(asyncio.Transport):
    """A client's end that notes what it is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += bytes(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Client:
    """One connection to a server that says what it was asked. `knowing`: it may know heads by their bytes."""

    def __init__(self, *, knowing: bool = True) -> None:
        self.loop = asyncio.get_running_loop()
        self.wire = Wire()
        self.known: list[bool] = []
        self.gate = asyncio.Event()
        """Until it is set nothing is answered."""
        self.gate.set()
        self._heads = heads.Heads("virtual")
        self._knowing = knowing
        self._server = make_server(
            self._answer, keepalive_timeout_s=60, header_bytes_max=4096, headers_max=9, lingering_s=0
        )
        connection = self._server()
        assert isinstance(connection, Connection)
        self.connection = connection
        connection.connection_made(self.wire)

    async def send(self, *pieces: bytes) -> bytes:
        """What is answered to `pieces`, which come one by one."""
        self.wire.sent = b""
        await asyncio.sleep(0)
        for piece in pieces:
            if not self.wire.closed:
                self.loop.call_soon(self.connection.data_received, piece)
            for _ in range(9):
                await asyncio.sleep(0)
        return self.wire.sent

    async def leave(self) -> None:
        self.connection.connection_lost(None)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def _answer(self, request: Request) -> Reply:
        self.known.append(request.known is not None)
        await self.gate.wait()
        try:
            head = self._heads.of(request.method, request.raw_path, request.version, request.raw_headers)
            if self._knowing:
                request.protocol.know(request, head, self._heads, self._answer)
            size = request.content_length
            body = whole_body(request, 1000)
            if body is None:
                body = await read_body(request, 1000, 5)
        except Refusal as refusal:
            return refuse(request, refusal)
        fields = sorted((name, value) for name, value in request.headers.items() if name.lower() != "content-length")
        said = repr((request.method, request.raw_path, request.version, head.raw, fields, request.body_exists, size))
        return respond(request, 200, said.encode() + body)


_heads = st.sampled_from([HEAD] * 8 + ODD)
_bodies = st.one_of(st.just(b""), st.binary(max_size=9), st.just(b"x" * 1200), st.sampled_from([HEAD % b"0", b"\r\n"]))
_lengths = st.sampled_from(["%d"] * 12 + ["0%d", "+%d", " %d", "%d ", "%d_0", "1%d", "0x%d", "-%d", "", "%d000000000"])


@st.composite
def _pieces(draw: st.DrawFn) -> list[bytes]:
    """What a connection brings: requests, mostly alike, mostly one in a piece."""
    pieces: list[bytes] = []
    for _ in range(draw(st.integers(1, 6))):
        head, body, length = draw(_heads), draw(_bodies), draw(_lengths)
        digits = (length % len(body) if "%" in length else length).encode()
        data = (head % digits if b"%b" in head else head) + body
        kind = draw(st.sampled_from(["whole"] * 5 + ["cut", "behind"]))
        if kind == "cut":
            at = draw(st.integers(0, len(data)))
            pieces += [data[:at], data[at:]]
        elif kind == "behind" and pieces:
            pieces[-1] += data
        else:
            pieces.append(data)
    return pieces


@fixed
@given(_pieces())
def test_a_connection_answers_as_if_it_knew_nothing(pieces: list[bytes]) -> None:
    """Whatever comes, and however it is cut: the same requests are seen, and the same is answered."""

    async def talk() -> None:
        answers = []
        for knowing in (True, False):
            client = Client(knowing=knowing)
            answers.append((await client.send(*pieces), client.wire.closed))
            await client.leave()
        assert answers[0] == answers[1]

    asyncio.run(talk())


async def test_the_same_head_is_parsed_once_whatever_the_length() -> None:
    client = Client()
    for body in (b"{}", b"", b"x" * 321, b"{}"):
        assert (await client.send(HEAD % b"%d" % len(body) + body)).endswith(b"%d)" % len(body) + body)
    assert client.known == [False, True, True, True]
    await client.leave()


async def test_a_known_head_is_read_anew_by_another_reader() -> None:
    """As after a reload: the bytes are still known, and what they say is what the new one says."""
    client = Client()
    for _ in range(2):
        await client.send(HEAD % b"2" + b"{}")
    client._heads = heads.Heads("open")
    assert b" 403 " in (await client.send(HEAD % b"2" + b"{}"))[:30]
    assert client.known == [False, True, True]
    await client.leave()


@pytest.mark.parametrize("at", range(len(HEAD % b"2")))
async def test_a_head_that_differs_anywhere_is_another(at: int) -> None:
    """Of a known head every byte counts."""
    client = Client()
    first = HEAD % b"2" + b"{}"
    await client.send(first)
    other = bytearray(first)
    other[at] ^= 1
    await client.send(bytes(other))
    assert client.known[1:] in ([], [False])
    await client.leave()


async def test_after_a_body_that_came_later_a_head_is_known_again() -> None:
    """Where the parser stands is counted through bodies in pieces; behind half a request nothing is known."""
    client = Client()
    first = HEAD % b"2" + b"{}"
    await client.send(first)
    assert (await client.send(first[:-2], first[-2:-1], first[-1:])).endswith(b"{}")
    await client.send(first)
    assert client.known == [False, False, True]
    await client.send(first + first[:9], first[9:], first)
    assert client.known == [False, False, True, False, False, False]
    await client.leave()


async def test_what_comes_while_a_request_is_answered_waits_its_turn() -> None:
    """Requests behind one that is under way are answered after it, in order."""
    client = Client()
    await client.send(HEAD % b"1" + b"0")
    client.gate.clear()
    for number in range(1, 4):
        assert await client.send(HEAD % b"1" + b"%d" % number) == b""
    client.gate.set()
    answers = (await client.send(b"")).split(b"HTTP/1.1 200")
    assert [answer[-1:] for answer in answers[1:]] == [b"1", b"2", b"3"]
    assert client.known == [False, True, False, False]
    await client.leave()
