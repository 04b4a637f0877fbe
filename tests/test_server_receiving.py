"""Request bodies that come after their head: whole, bounded, and large ones as if nothing were special."""

from __future__ import annotations

import asyncio
import gc
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from farebox.errors import Refusal, Unavailable
from farebox.server import Handler, Reply, Request, Server, make_server, read_body, refuse, respond
from farebox.server.receiving import STEP_BYTES
from farebox.server.request import SMALL_BYTES
from support.live import eventually

_BOUND = 64 << 20
_MEGABYTE = 1 << 20


class Desk:
    """Answers each request with its body's size, and keeps what it read, was told, or failed with."""

    def __init__(self, *, stall_timeout_s: float = 5, count: Callable[[int], None] | None = None) -> None:
        self.stall_timeout_s = stall_timeout_s
        self._count = count
        self.bodies: list[bytes] = []
        self.counted = 0
        self.faults: list[Refusal] = []

    async def __call__(self, request: Request) -> Reply:
        try:
            body = await read_body(request, _BOUND, self.stall_timeout_s, count=self._told)
        except Refusal as refusal:
            self.faults.append(refusal)
            return refuse(request, refusal)
        self.bodies.append(body)
        return respond(request, 200, b"%08d" % len(body))

    def _told(self, size: int) -> None:
        self.counted += size
        if self._count is not None:
            self._count(self.counted)


@asynccontextmanager
async def listening(desk: Handler, *, lingering_s: float = 0.5) -> AsyncIterator[tuple[Server, int]]:
    """Somebody who answers at `desk`, and the port."""
    server = make_server(desk, keepalive_timeout_s=5, header_bytes_max=4096, headers_max=64, lingering_s=lingering_s)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    try:
        async with asyncio.timeout(30):
            yield server, listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        await server.shutdown(0.1)


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client's connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


@asynccontextmanager
async def serving(desk: Handler) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client's connection to who answers at `desk`."""
    async with listening(desk) as (_, port), connected(port) as client:
        yield client


def head(size: int) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size


async def status(reader: asyncio.StreamReader) -> int:
    """The status of the next answer, which is read."""
    said = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line[15:]) for line in said.lower().splitlines() if line.startswith(b"content-length:"))
    await reader.readexactly(length)
    return int(said[9:12])


@pytest.mark.parametrize("pause_s", [0, 0.02])
@pytest.mark.parametrize("size", [70_000, _MEGABYTE, STEP_BYTES + 200_000, 7 * _MEGABYTE + 3])
async def test_a_body_comes_whole_however_it_is_cut(size: int, pause_s: float) -> None:
    """Every byte is there and counted once, whatever the pieces, and requests on its heels are answered."""
    desk, chance = Desk(), random.Random(size)
    sent = [os.urandom(size), b"small", os.urandom(size // 2), b""]
    async with serving(desk) as (reader, writer):
        raw = b"".join(head(len(body)) + body for body in sent)
        at = 0
        while at < len(raw):
            piece = chance.choice((1, 100, 70_000, _MEGABYTE)) if at > 200 else 40
            writer.write(raw[at : at + piece])
            at += piece
            await writer.drain()
            await asyncio.sleep(pause_s if piece >= 70_000 else 0)
        assert [await status(reader) for _ in sent] == [200] * 4
    assert desk.bodies == sent
    assert desk.counted == sum(map(len, sent))


@pytest.mark.parametrize("size", [1, 500, SMALL_BYTES, SMALL_BYTES + 1])
async def test_a_small_body_comes_whole_after_its_head(size: int) -> None:
    """As SDKs send it: the head by itself. One call after the other, the body in one piece and in several."""
    desk = Desk()
    sent = [os.urandom(size) for _ in range(4)]
    async with serving(desk) as (reader, writer):
        for number, body in enumerate(sent):
            writer.write(head(size))
            for at in range(0, size, step := -(-size // (number + 1))):
                await asyncio.sleep(0.01)
                writer.write(body[at : at + step])
            if number == 2:  # and the next one's head with its end
                continue
            for _ in range(1 + (number == 3)):
                assert await status(reader) == 200
    assert desk.bodies == sent
    assert desk.counted == 4 * size


async def test_a_small_body_that_stops_coming_is_given_up_in_time() -> None:
    """Whatever the wait before it allowed: the bound is on the silence of this one."""
    desk = Desk(stall_timeout_s=30)
    loop = asyncio.get_running_loop()
    async with serving(desk) as (reader, writer):
        writer.write(head(10))
        await asyncio.sleep(0.05)
        writer.write(bytes(10))
        assert await status(reader) == 200
        desk.stall_timeout_s = 0.4
        writer.write(head(10))
        for _ in range(4):
            await asyncio.sleep(0.2)
            writer.write(b"x")
        silent = loop.time()
        assert await status(reader) == 400
        assert 0.35 < loop.time() - silent < 10
    assert desk.faults[0].message == "The request body did not arrive whole."


@pytest.mark.parametrize("how", ["abort", "close"])
async def test_a_client_that_leaves_ends_the_wait_for_a_small_body(how: str) -> None:
    """At once, and its connection with it."""
    desk = Desk()
    async with serving(desk) as (_, writer):
        writer.write(head(1000) + b"x" * 10)
        await eventually(lambda: desk.counted == 1000)
        writer.transport.abort() if how == "abort" else writer.close()
        await eventually(lambda: bool(desk.faults))
    assert desk.faults[0].message == "The request body did not arrive whole."


async def test_malformed_input_behind_a_small_body_is_told_from_it() -> None:
    """What comes with the end of the body and does not parse is answered after it."""
    desk = Desk()
    async with serving(desk) as (reader, writer):
        writer.write(head(10) + b"x")
        await asyncio.sleep(0.02)
        writer.write(b"x" * 9 + b"nonsense\r\n\r\n")
        assert [await status(reader), await status(reader)] == [200, 400]
    assert desk.bodies == [b"x" * 10]


async def test_what_is_announced_gets_no_room_before_it_comes() -> None:
    """A client that announces fifty megabytes and sends few bytes holds one step of room, and is done with in time."""
    desk = Desk(stall_timeout_s=0.3)
    async with serving(desk) as (reader, writer):
        writer.write(head(50 * _MEGABYTE) + b"x" * 1000)
        assert await status(reader) == 400
        assert await reader.read() == b""
    assert desk.counted == 1000 + STEP_BYTES
    assert not desk.bodies


async def test_who_goes_on_sending_is_waited_for() -> None:
    """The bound is on a silence, not on the whole."""
    desk = Desk(stall_timeout_s=0.4)
    async with serving(desk) as (reader, writer):
        writer.write(head(600_000))
        for _ in range(6):
            writer.write(b"x" * 100_000)
            await asyncio.sleep(0.15)
        assert await status(reader) == 200


async def test_a_body_there_is_no_room_for_is_refused_while_it_comes() -> None:
    """The client, which is still sending, gets its answer before the connection ends."""

    def bounded(counted: int) -> None:
        if counted > 3 * _MEGABYTE:
            raise Unavailable("No room.")

    desk = Desk(count=bounded)
    async with serving(desk) as (reader, writer):
        writer.write(head(20 * _MEGABYTE))

        async def send() -> None:
            for _ in range(20):
                writer.write(bytes(_MEGABYTE))
                await writer.drain()

        sending = asyncio.create_task(send())
        assert await status(reader) == 503
        sending.cancel()
    assert not desk.bodies


async def test_a_client_that_leaves_ends_the_reading() -> None:
    """Its request is told so, and its room is given back."""
    desk = Desk()
    async with serving(desk) as (_, writer):
        writer.write(head(5 * _MEGABYTE) + b"x" * _MEGABYTE)
        await eventually(lambda: desk.counted > _MEGABYTE)
        writer.transport.abort()
        await eventually(lambda: bool(desk.faults))
    assert desk.faults[0].message == "The request body did not arrive whole."
    gc.collect()  # what of the buffer were still in use would be complained of here


async def test_a_stop_ends_the_reading() -> None:
    """Whoever stops waiting for the body can still answer, while the client sends the rest to nobody."""
    reading: list[asyncio.Task[bytes]] = []

    async def handler(request: Request) -> Reply:
        reading.append(asyncio.create_task(read_body(request, _BOUND, 5)))
        try:
            return respond(request, 200, await reading[0])
        except asyncio.CancelledError:
            return refuse(request, Unavailable("Stopped."))

    async with serving(handler) as (reader, writer):
        writer.write(head(3 * _MEGABYTE) + b"x" * _MEGABYTE)
        await eventually(lambda: bool(reading))
        await asyncio.sleep(0.05)
        reading[0].cancel()
        writer.write(bytes(2 * _MEGABYTE))
        assert await status(reader) == 503


async def test_malformed_input_behind_a_large_body_is_told_from_it() -> None:
    """What follows the body goes to the parser, from its first byte on."""
    desk = Desk()
    async with serving(desk) as (reader, writer):
        writer.write(head(_MEGABYTE) + b"x" * _MEGABYTE + b"nonsense\r\n\r\n")
        assert [await status(reader), await status(reader)] == [200, 400]
        assert await reader.read() == b""
    assert desk.bodies == [b"x" * _MEGABYTE]


CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
BAD_ENDS = {
    "stalls": head(3 * _MEGABYTE) + bytes(2 * _MEGABYTE),
    "finds no room": head(9 * _MEGABYTE) + bytes(5 * _MEGABYTE),
    "leaves": head(3 * _MEGABYTE) + bytes(2 * _MEGABYTE),
    "is malformed": CHUNKED + b"%x\r\n%b\r\nZZ\r\n" % (2 * _MEGABYTE, bytes(2 * _MEGABYTE)),
    "stalls while it is small": head(1000) + b"x",
}


@pytest.mark.parametrize("how", BAD_ENDS)
async def test_a_body_that_ends_badly_is_given_up_at_once(how: str) -> None:
    """Its room does not wait for the garbage collector, and no more does its connection."""

    def bounded(counted: int) -> None:
        if counted > 4 * _MEGABYTE:
            raise Unavailable("No room.")

    def alive() -> list[str]:
        kinds = ("Connection", "Request", "_Rest", "BytesIO")
        return [type(one).__name__ for one in gc.get_objects() if type(one).__name__ in kinds]

    desk = Desk(stall_timeout_s=0.2, count=bounded)
    async with listening(desk) as (_, port):
        gc.collect()
        gc.disable()
        try:
            before = alive()
            async with connected(port) as (reader, writer):
                writer.write(BAD_ENDS[how])
                if how == "leaves":
                    await eventually(lambda: desk.counted > _MEGABYTE)
                    writer.transport.abort()
                else:
                    with suppress(ConnectionError):
                        await reader.read()
            await eventually(lambda: bool(desk.faults))
            desk.faults.clear()
            await eventually(lambda: alive() == before)
        finally:
            gc.enable()


async def test_nothing_is_read_out_of_step_behind_an_offer_to_upgrade() -> None:
    """aiohttp's parser loses what comes in one piece with it: the connection ends, and what is a body is no request."""
    desk = Desk()
    first = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\none"
    hidden = head(5) + b"three"
    async with serving(desk) as (reader, writer):
        writer.write(first + head(len(hidden)))
        await asyncio.sleep(0.05)
        with suppress(ConnectionError):
            writer.write(hidden)
            said = await reader.read()
    assert said.count(b"HTTP/1.1 200") == 1
    assert b"\r\nConnection: close\r\n" in said
    assert desk.bodies == [b"one"]


@pytest.mark.parametrize("size", [10, 60_000, 200_000])
async def test_a_body_goes_on_coming_when_a_stop_has_begun(size: int) -> None:
    """The stop waits for the call, so it takes in what the call is made of; nothing after that."""
    desk = Desk(stall_timeout_s=10)
    body = os.urandom(size)
    async with listening(desk) as (server, port), connected(port) as (reader, writer):
        writer.write(head(size) + body[:3])
        await asyncio.sleep(0.05)
        server.pre_shutdown()
        writer.write(body[3:] + head(1) + b"x")
        assert await status(reader) == 200
        with suppress(ConnectionError):
            assert await reader.read() == b""
    assert desk.bodies == [body]


@pytest.mark.parametrize("size", [10, 100_000, 300_000, 2 * _MEGABYTE])
async def test_a_chunked_body_that_stops_making_sense_is_not_whole(size: int) -> None:
    """However much of it came before, and whoever was reading: not so much as the rest of it is taken for its end."""
    desk = Desk()
    async with serving(desk) as (reader, writer):
        writer.write(CHUNKED + b"%x\r\n%b\r\n" % (size, bytes(size)))
        await asyncio.sleep(0.02)
        writer.write(b"5\r\nhello\r\nZZ\r\n")
        assert await status(reader) == 400
        with suppress(ConnectionError):
            assert await reader.read() == b""
    assert not desk.bodies


async def test_a_stop_does_not_wait_twice_for_a_body() -> None:
    """Once the time to finish is over, who waits for a small body is told at once."""
    desk = Desk(stall_timeout_s=30)
    async with listening(desk) as (server, port), connected(port) as (_, writer):
        writer.write(head(10) + b"x")
        await eventually(lambda: desk.counted > 0)
        began = asyncio.get_running_loop().time()
        await server.shutdown(1.0)
        assert asyncio.get_running_loop().time() - began < 1.9


async def test_a_client_that_leaves_is_not_lingered_for() -> None:
    """It was answered before its body came; its place is free when it goes, not when the wait for the body is over."""

    async def handler(request: Request) -> Reply:
        return refuse(request, Unavailable("Not now."))

    async with listening(handler, lingering_s=20) as (server, port):
        async with connected(port) as (reader, writer):
            writer.write(head(100))
            assert await status(reader) == 503
            assert len(server.connections) == 1
        await eventually(lambda: not server.connections, timeout_s=5)
