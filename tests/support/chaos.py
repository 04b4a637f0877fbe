"""A provider at its worst: each kind of misbehaviour by name, and how a row of it may say that it ended."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable

from support.provider import Received, Wire
from support.traffic import document, events, model_of, send_document, send_stream

Act = Callable[[str, bool, Wire, random.Random], Awaitable[None]]
"""(model, whether a stream was asked for, the wire, dice) -> None."""

_SSE = [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")]
_JSON = ("Content-Type", "application/json")


async def _proper(model: str, stream: bool, wire: Wire, rng: random.Random) -> None:
    if stream:
        await send_stream(wire, events(model, rng.randint(1, 40), usage=rng.random() < 0.7))
    else:
        await send_document(wire, document(model, rng.randint(1, 200)))


async def _slow(model: str, stream: bool, wire: Wire, rng: random.Random) -> None:
    await asyncio.sleep(0.2)
    await send_stream(wire, events(model, 10, usage=True), 0.03)


async def _cut(model: str, stream: bool, wire: Wire, rng: random.Random) -> None:
    await wire.head(200, _SSE)
    for frame in events(model, rng.randint(1, 5), usage=False)[:-2]:
        await wire.chunk(frame)
    wire.close()


async def _reset(model: str, stream: bool, wire: Wire, rng: random.Random) -> None:
    await wire.head(200, _SSE)
    for frame in events(model, rng.randint(1, 5), usage=False)[:-2]:
        await wire.chunk(frame)
    wire.reset()


async def _short(model: str, stream: bool, wire: Wire, rng: random.Random) -> None:
    body = document(model, 20)
    await wire.head(200, [_JSON, ("Content-Length", str(len(body) + 100))])
    await wire.send(body)
    wire.close()


async def _garbage(model: str, stream: bool, wire: Wire, rng: random.Random) -> None:
    await wire.head(200, _SSE)
    for _ in range(rng.randint(1, 6)):
        await wire.chunk(
            rng.choice((rng.randbytes(500), b"data: {not json\n\n", b"data: []\r\rdata:null\n\n", b"\xff"))
        )
    await wire.chunk(b"data: [DONE]\n\n")
    await wire.end()


async def _huge(model: str, stream: bool, wire: Wire, rng: random.Random) -> None:
    await wire.head(200, _SSE)
    await wire.chunk(b'data: {"choices":[{"index":0,"delta":{"content":"')
    for _ in range(rng.randint(4, 24)):
        await wire.chunk(b"x" * 65536)
    await wire.chunk(b'"}}]}\n\n')
    for frame in events(model, 1, usage=True):
        await wire.chunk(frame)
    await wire.end()


async def _silent(model: str, stream: bool, wire: Wire, rng: random.Random) -> None:
    await asyncio.sleep(0.05)
    wire.close()


async def _no_http(model: str, stream: bool, wire: Wire, rng: random.Random) -> None:
    await wire.send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
    wire.close()


async def _bad_chunk(model: str, stream: bool, wire: Wire, rng: random.Random) -> None:
    await wire.head(200, _SSE)
    await wire.chunk(events(model, 1, usage=False)[0])
    await wire.send(b"zz\r\nno chunk\r\n")
    wire.close()


async def _refusing(model: str, stream: bool, wire: Wire, rng: random.Random) -> None:
    status = rng.choice((400, 401, 404, 429, 500, 503))
    body = json.dumps({"error": {"message": "no " * rng.randint(1, 500), "type": "t", "code": "c"}}).encode()
    await wire.head(status, [_JSON, ("Content-Length", str(len(body))), ("Retry-After", "1")])
    await wire.send(body)


async def _not_packed(model: str, stream: bool, wire: Wire, rng: random.Random) -> None:
    body = document(model, 5)
    await wire.head(200, [_JSON, ("Content-Encoding", "gzip"), ("Content-Length", str(len(body)))])
    await wire.send(body)


KINDS: dict[str, tuple[Act, frozenset[str]]] = {
    "proper": (_proper, frozenset({"complete"})),
    "slow": (_slow, frozenset({"complete"})),
    "cut": (_cut, frozenset({"upstream_cut"})),
    "reset": (_reset, frozenset({"upstream_cut", "upstream_error"})),  # a reset may overtake the head
    "short": (_short, frozenset({"upstream_cut"})),
    "garbage": (_garbage, frozenset({"complete", "upstream_cut"})),
    "huge": (_huge, frozenset({"complete"})),
    "silent": (_silent, frozenset({"upstream_error"})),
    "no_http": (_no_http, frozenset({"upstream_error"})),
    # Where head and bad chunk come in one piece the parser gives up the head with it.
    "bad_chunk": (_bad_chunk, frozenset({"upstream_cut", "upstream_error"})),
    "refusing": (_refusing, frozenset({"upstream_error"})),
    "not_packed": (_not_packed, frozenset({"complete"})),
}
"""kind -> what the provider does, and the outcomes its rows may have when the client stays to the end."""


def kind_of(model: str) -> str:
    """The kind of a model `kind-number`, or `kind-leaver-number`."""
    return model.split("-", 1)[0]


async def chaos(received: Received, wire: Wire) -> None:
    """A script: does what the model's name says."""
    model = model_of(received)
    act, _ = KINDS[kind_of(model)]
    await act(model, bool(json.loads(received.body)["stream"]), wire, random.Random(model))
