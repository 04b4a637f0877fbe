"""The short way of an ordinary chunk: taken only where it is exactly that, with the outcome of the long one."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp.http import HttpVersion11

from farebox.config import Provider
from farebox.meter import Reading
from farebox.proxy.lane import SIZE_MAX
from farebox.proxy.relay import _Passing
from farebox.server import Reply
from farebox.upstream import Answer, Upstream
from support.answers import meter, read
from support.wires import Wire, Wires

PROVIDER = Provider(name="p", dialect="openai", base_url="http://provider.test/v1", connections_max=2)
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
PRE = b'data: {"id":"c1","model":"m","choices":[{"index":0,"delta":{%s},"finish_reason":%s}]%s}\n\n'
WORDS = (b"Once", b" upon", b" a", b" time", "\u00e9t\u00e9".encode(), b"", b"{}", b" \\u00e9", b"\\n", b"x" * 300)


def said(text: bytes, *, padding: bytes = b"") -> bytes:
    """An ordinary event."""
    return PRE % (b'"content":"%b"' % text, b"null", padding)


def framed(content: bytes) -> bytes:
    """One chunk, as everybody frames it."""
    return b"%x\r\n%b\r\n" % (len(content), content)


def stream(*, padded: bool = False, usage: bool = True) -> list[bytes]:
    """The events of an answer."""
    padding = [b',"obfuscation":"%b"' % (b"a" * (n % 7)) if padded else b"" for n in range(40)]
    return [
        PRE % (b'"role":"assistant","content":""', b"null", b""),
        *(said(WORDS[n % len(WORDS)], padding=padding[n]) for n in range(40)),
        PRE % (b"", b'"stop"', b""),
        *([b'data: {"id":"c1","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":40}}\n\n'] if usage else []),
        b"data: [DONE]\n\n",
    ]


def content_of(sent: bytes) -> bytes:
    """The content of chunks, each of which is well framed."""
    content = b""
    while sent:
        line, _, sent = sent.partition(b"\r\n")
        size = int(line, 16)
        content, end, sent = content + sent[:size], sent[size : size + 2], sent[size + 2 :]
        assert end == b"\r\n"
    return content


class Client:
    """The client's side: what it was sent, and whether it keeps up."""

    def __init__(self) -> None:
        self.sent = b""
        self.writes = 0
        self.closing = False
        self.protocol = SimpleNamespace(transport=self, _paused=False, answering=None)
        body = SimpleNamespace(is_eof=lambda: True, exception=lambda: None)
        request: Any = SimpleNamespace(
            protocol=self.protocol, keep_alive=True, taken=True, content=body, method="POST", version=HttpVersion11
        )
        self.reply = Reply(request)
        self.reply.start(200, b"OK", [], length=None)
        self.reply.flush()
        self.sent, self.writes = b"", 0

    def write(self, data: bytes) -> None:
        assert not self.closing
        self.sent += data
        self.writes += 1

    def is_closing(self) -> bool:
        return self.closing


class Relayed:
    """A stream under way, from its provider's `wire` to its `client`."""

    def __init__(self) -> None:
        self.wires = Wires()
        self.upstream = Upstream(PROVIDER, self.wires)  # type: ignore[arg-type]
        start = self.upstream.start("POST", self.upstream.url("/x", versioned=True), [])
        self.sending = asyncio.create_task(self.upstream.send("POST", start, b"{}"))
        self.client = Client()
        self.meter = meter()
        self.attempt: Any = SimpleNamespace(answer_bytes=0, last_byte=None)
        self.looked_at: list[bytes] = []

    async def __aenter__(self) -> Relayed:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.wire.say(HEAD)
        self.answer: Answer = await self.sending
        call: Any = SimpleNamespace(claim=None, ticket=None, attempt=None, gone=False, client_left=lambda: None)
        settler: Any = None  # the call is settled
        reply = self.client.reply
        self.passing = _Passing(call, self.attempt, self.answer, self.meter, reply, lambda: 1.0, settler, None)
        self.call = call
        self.pipe()
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.piping.cancel()
        await asyncio.gather(self.piping, return_exceptions=True)
        await self.upstream.close()

    def pipe(self) -> None:
        assert self.passing.lane is not None
        self.piping = asyncio.create_task(self.answer.pipe(self._look, self.passing.lane.take))

    def _look(self, piece: bytes) -> bool:
        self.looked_at.append(piece)
        return self.passing.take(piece)

    @property
    def wire(self) -> Wire:
        return self.wires.opened[0]

    def read(self) -> Reading:
        self.passing.account()
        self.meter.eof()
        return self.meter.finish()


FRAMINGS = {
    "plain": b"%x\r\n%b\r\n",
    "capitals": b"%X\r\n%b\r\n",
    "zeros": b"%06x\r\n%b\r\n",
    "an extension": b'%x;a="b c";d\r\n%b\r\n',
    "spaces": b"%x  \r\n%b\r\n",
}
CONTENTS = (b"a", b"\n", b"\r\n", b"5\r\n", b"0\r\n\r\n", b"b" * 17, b"1\r\nx\r\n")


async def offers(pieces: list[bytes]) -> list[int]:
    """At which places of a body a lane is asked, that takes nothing."""
    async with Relayed() as relayed:
        relayed.piping.cancel()
        await asyncio.gather(relayed.piping, return_exceptions=True)
        asked: list[int] = []
        got: list[bytes] = []
        position = 0

        def lane(data: bytes) -> bool:
            asked.append(position)
            return False

        def sink(piece: bytes) -> bool:
            got.append(piece)
            return False

        piping = asyncio.create_task(relayed.answer.pipe(sink, lane))
        await asyncio.sleep(0)
        for piece in pieces:
            relayed.wire.say(piece)
            position += len(piece)
        assert await piping is True
        assert b"".join(got) == b"".join(CONTENTS)
        return asked


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_a_lane_is_asked_exactly_where_a_chunk_begins(framing: str) -> None:
    """Wherever a body is cut, what is offered begins with a chunk's size or with the last line of all."""
    chunks = [FRAMINGS[framing] % (len(content), content) for content in CONTENTS]
    body = b"".join(chunks) + b"0\r\n\r\n"
    begins = {sum(map(len, chunks[:n])) for n in range(1, len(chunks) + 1)}
    for cut in range(1, len(body) - 3):
        pieces = [body[:cut], body[cut : cut + 2], body[cut + 2 :]]
        assert await offers(pieces) == [place for place in (cut, cut + 2) if place in begins]


@pytest.mark.parametrize("usage", [True, False])
@pytest.mark.parametrize("padded", [True, False])
async def test_a_cut_stream_comes_out_the_same(padded: bool, usage: bool) -> None:
    """However a stream is framed and cut, the client gets its content, and the meter says what it says of it whole."""
    chance = random.Random(5)
    events = stream(padded=padded, usage=usage)
    body = b"".join(events)
    wanted = read(body)
    for number in range(60):
        pieces = [framed(event) for event in events]
        if number % 3 == 1:  # some together, some apart
            raw = b"".join(pieces)
            places = sorted(chance.sample(range(1, len(raw)), 20))
            pieces = [raw[a:b] for a, b in zip([0, *places], [*places, len(raw)], strict=True)]
        elif number % 3 == 2:  # some in others' framings, or more than one event in a chunk
            pieces = []
            rest = list(events)
            while rest:
                content = b"".join(rest[: (count := chance.choice((1, 1, 1, 2, 3)))])
                del rest[:count]
                pieces.append(FRAMINGS[chance.choice(list(FRAMINGS))] % (len(content), content))
        async with Relayed() as relayed:
            for piece in pieces:
                relayed.wire.say(piece)
            relayed.wire.say(b"0\r\n\r\n")
            assert await relayed.piping is True
            assert content_of(relayed.client.sent) == body
            assert relayed.read() == wanted
            assert relayed.attempt.answer_bytes == len(body)
            assert relayed.attempt.last_byte == 1.0


async def test_an_ordinary_chunk_is_not_looked_at() -> None:
    """Once a stream repeats itself, its chunks go out as they came in, framing included, and nothing else runs."""
    async with Relayed() as relayed:
        events = [said(b"word %d" % n) for n in range(100)]
        for event in events:
            relayed.wire.say(framed(event))
        assert relayed.client.sent == b"".join(map(framed, events))
        assert relayed.client.writes == len(events)
        assert len(relayed.looked_at) <= 2
        reading = relayed.read()
        assert reading.output_text == "".join(f"word {n}" for n in range(100))


OTHERS = {
    "a quotation mark": said(b'a","b":"'),
    "a finish reason": PRE % (b'"content":"a"', b'"stop"', b""),
    "another member": PRE % (b'"content":"a"', b"null", b',"usage":{"prompt_tokens":1}'),
    "a tool call": PRE % (b'"content":"a","tool_calls":[{"index":0}]', b"null", b""),
    "the end": b"data: [DONE]\n\n",
    "half of an event": said(b"a")[:-9],
    "a large one": said(b"a" * SIZE_MAX),
}


@pytest.mark.parametrize("case", OTHERS)
async def test_what_is_not_ordinary_is_looked_at(case: str) -> None:
    """Anything but text makes a chunk one for the meter, and it goes out like the others."""
    async with Relayed() as relayed:
        for event in (said(b"a"), said(b"b"), said(b"c")):
            relayed.wire.say(framed(event))
        relayed.looked_at.clear()
        relayed.wire.say(framed(OTHERS[case]))
        assert relayed.looked_at == [OTHERS[case]]
        assert relayed.client.sent.endswith(framed(OTHERS[case]))


async def test_a_chunk_that_lies_about_its_size_is_the_parsers() -> None:
    """A size that does not fit breaks the answer as it does anywhere; nothing of it is passed on as it is."""
    async with Relayed() as relayed:
        for event in (said(b"a"), said(b"b")):
            relayed.wire.say(framed(event))
        sent = relayed.client.sent
        event = said(b"c")
        relayed.wire.say(b"%x\r\n%b\r\n" % (len(event) - 1, event))
        assert content_of(relayed.client.sent[len(sent) :]) in (b"", event[:-1])
        with pytest.raises(Exception, match="broken_body"):
            await relayed.piping


async def test_a_client_that_does_not_keep_up_stops_the_provider() -> None:
    """The piece that is too many for it is the last one read, until the relay goes on."""
    async with Relayed() as relayed:
        for event in (said(b"a"), said(b"b")):
            relayed.wire.say(framed(event))
        relayed.client.protocol._paused = True
        relayed.wire.say(framed(said(b"c")))
        assert await relayed.piping is False
        assert relayed.wire.paused
        relayed.client.protocol._paused = False
        relayed.pipe()
        await asyncio.sleep(0)
        assert not relayed.wire.paused
        relayed.wire.say(framed(said(b"d")))
        assert content_of(relayed.client.sent) == b"".join(said(letter) for letter in (b"a", b"b", b"c", b"d"))


async def test_a_client_that_is_gone_is_not_written_to() -> None:
    """Its stream is read on where it is to be, by the long way."""
    async with Relayed() as relayed:
        for event in (said(b"a"), said(b"b")):
            relayed.wire.say(framed(event))
        relayed.client.closing = relayed.call.gone = True
        relayed.looked_at.clear()
        relayed.wire.say(framed(said(b"c")))
        assert relayed.looked_at == [said(b"c")]
        assert relayed.attempt.answer_bytes == 3 * len(said(b"a"))
