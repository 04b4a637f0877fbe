"""Many calls over few connections, some given up, some broken off, answers cut anywhere; nobody gets another's."""

from __future__ import annotations

import asyncio
import random
import re
from dataclasses import replace

import pytest

from farebox.config import Provider
from farebox.upstream import Upstream, UpstreamError
from support.answers import cut
from support.wires import Wire, Wires

PROVIDER = Provider(name="p", dialect="openai", base_url="http://provider.test", connections_max=3)


def answer(number: int, kind: str) -> bytes:
    """An answer that bears the number of its call in each of its parts."""
    body = b"<%d>" % number * 3
    fields = b"X-N: %d\r\n" % number
    if kind == "chunks":
        parts = b"".join(b"%x\r\n%b\r\n" % (len(body) // 3, body[: len(body) // 3]) for _ in range(3))
        return b"HTTP/1.1 200 OK\r\n" + fields + b"Transfer-Encoding: chunked\r\n\r\n" + parts + b"0\r\nX-T: 1\r\n\r\n"
    if kind == "interim":
        return b"HTTP/1.1 103 Hints\r\nX-N: 0\r\n\r\n" + answer(number, "length")
    if kind == "closing":
        fields += b"Connection: close\r\n"
    if kind == "bodiless":
        return b"HTTP/1.1 204 No Content\r\n" + fields + b"\r\n"
    if kind == "until the end":
        return b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n" + body
    status = b"500 Oops" if kind == "error" else b"200 OK"
    return b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n\r\n%b" % (status, fields, len(body), body)


KINDS = ["length"] * 4 + ["chunks"] * 3 + ["interim", "closing", "bodiless", "until the end", "error"]


class Provided:
    """A provider that answers as chance has it: in pieces, or with more than it should, or not to the end."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self._seen: dict[Wire, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.whole: dict[int, bool] = {}
        """Of each call that came, whether it was given all of its answer and nothing after it."""

    def hear(self, wire: Wire) -> None:
        """Answer the requests that are whole by now."""
        asked = re.findall(rb"POST /(\d+) ", wire.sent)
        assert len(asked) - self._seen.get(wire, 0) in (0, 1), "a request before the answer to the last"
        if len(asked) > self._seen.get(wire, 0) and wire.sent.endswith(b"\r\n\r\n{}"):
            self._seen[wire] = len(asked)
            task = wire.loop.create_task(self._answer(wire, int(asked[-1])))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, wire: Wire, number: int) -> None:
        draw = self._draw
        kind = draw.choice(KINDS)
        raw = answer(number, kind)
        fault = draw.choice([None] * 6 + ["stops", "resets", "says more", "says more later"])
        if kind == "until the end" and fault in ("says more", "says more later"):
            fault = None  # that would be its body
        if fault in ("stops", "resets"):
            raw = raw[: draw.randrange(len(raw))]
        self.whole[number] = fault is None
        pieces = cut(raw, draw.randrange(1 << 30), draw.choice([0, 0, 1, 3])) or [b""]
        if fault == "says more":
            more = answer(0, draw.choice(KINDS))
            pieces[-1] += more[: draw.randrange(1, len(more) + 1)]
        for piece in pieces:
            for _ in range(draw.randrange(3)):
                await asyncio.sleep(0)
            wire.say(piece)
        if fault == "says more later":
            for _ in range(draw.randrange(4)):
                await asyncio.sleep(0)
            # What comes after the next request went up can't be told from its answer, by anyone.
            if re.findall(rb"POST /(\d+) ", wire.sent)[-1] == b"%d" % number:
                wire.say(answer(0, "length"))
        if fault == "resets":
            wire.reset()
        elif fault == "stops" or kind in ("closing", "until the end"):
            wire.end()


async def call(upstream: Upstream, number: int, draw: random.Random) -> str:
    """Make one call and see that what it gets is its own; how it went."""
    start = upstream.start("POST", upstream.url(f"/{number}", versioned=True), [])
    try:
        got = await upstream.send("POST", start, b"{}")
        own = answer(number, "bodiless" if got.head.status == 204 else "length").partition(b"\r\n\r\n")[2]
        assert got.head.lines == b"X-N: %d\r\n" % number, got.head.lines
        if draw.random() < 0.1:
            got.close()
            return "given up"
        body = b""

        def sink(piece: bytes) -> bool:
            nonlocal body
            body += piece
            return False

        try:
            if draw.random() < 0.5:
                await got.pipe(sink)
            else:
                while piece := await got.read():
                    body += piece
        finally:
            got.close()
            assert own.startswith(body), body
        assert body == own or not got.head.framed
    except UpstreamError as error:
        return error.kind
    return "whole"


@pytest.mark.parametrize("seed", range(15))
async def test_nobody_gets_anothers_bytes(seed: int) -> None:
    """Whatever else happens on a connection; and a call whose answer was whole, and who stayed, has it whole."""
    draw = random.Random(seed)
    provided = Provided(draw)
    wires = Wires(provided.hear)
    upstream = Upstream(replace(PROVIDER), wires)  # type: ignore[arg-type]
    tasks: dict[int, asyncio.Task[str]] = {}
    for number in range(1, 61):
        tasks[number] = asyncio.create_task(call(upstream, number, draw))
        if draw.random() < 0.1:
            tasks[draw.choice(list(tasks))].cancel()
        for _ in range(draw.randrange(6)):
            await asyncio.sleep(0)
        assert len(wires.alive) <= PROVIDER.connections_max
    async with asyncio.timeout(20):
        ends = dict(zip(tasks, await asyncio.gather(*tasks.values(), return_exceptions=True), strict=True))
    for number, end in ends.items():
        assert isinstance(end, str | asyncio.CancelledError), end
        if provided.whole.get(number) and isinstance(end, str):
            assert end in ("whole", "given up"), (number, end)
    assert sum(end == "whole" for end in ends.values()) > 20
    await upstream.close()
    assert wires.alive == []
