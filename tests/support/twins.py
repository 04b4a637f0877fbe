"""The same bytes of a provider through farebox's client and through aiohttp's, and what a caller of each gets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from farebox.config import Provider
from farebox.upstream import Upstream, UpstreamError
from farebox.upstream.link import FIELDS_MAX
from support.old_client import OldClient
from support.wires import Wire, Wires

Ending = Literal["end", "reset", "open"]
Mode = Literal["read", "pipe"]
PROVIDER = Provider(name="p", dialect="openai", base_url="http://provider.test")
SECOND = b"HTTP/1.1 200 OK\r\nX-Second: 1\r\nContent-Length: 6\r\n\r\nsecond"
_TURNS = 12
"""Turns of the loop after which whoever still waits, waits for bytes that do not come."""


@dataclass(frozen=True)
class Said:
    """What a provider does: `pieces`, each in a turn of its own, then how the connection goes on."""

    pieces: tuple[bytes, ...]
    ending: Ending
    method: str = "POST"

    @property
    def raw(self) -> bytes:
        return b"".join(self.pieces)


@dataclass(frozen=True)
class Got:
    """What became of a call. `end`: whole, broken, waiting (for more), or without a head the kind of failure."""

    end: str
    status: int = 0
    reason: bytes = b""
    lines: bytes = b""
    length: int | None = None
    framed: bool = False
    body: bytes = b""
    reused: bool = False
    """Whether the next call took the same connection."""


class _Sink:
    """Takes pieces from `pipe`; asks to be left alone after every third."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def __call__(self, piece: bytes) -> bool:
        self.pieces.append(piece)
        return len(self.pieces) % 3 == 0


async def ours(said: Said, mode: Mode = "read") -> Got:
    """What a caller of `Upstream` gets."""
    wires = Wires()
    upstream = Upstream(PROVIDER, wires)  # type: ignore[arg-type]

    async def send(method: str) -> Any:
        return await upstream.send(method, upstream.start(method, "http://provider.test/x", []), _body(method))

    async def pipe(answer: Any, pieces: list[bytes]) -> None:
        sink = _Sink()
        sink.pieces = pieces
        while not await answer.pipe(sink):
            pass

    try:
        return await _exchange(said, wires, send, pipe if mode == "pipe" else _read)
    finally:
        await upstream.close()


async def theirs(said: Said) -> Got:
    """What a caller of aiohttp's client gets."""
    wires = Wires()
    client = OldClient(wires, fields_max=FIELDS_MAX)

    async def send(method: str) -> Any:
        return await client.send(method, "http://provider.test/x", _body(method))

    try:
        return await _exchange(said, wires, send, _read)
    finally:
        await client.close()
        await asyncio.sleep(0)


def _body(method: str) -> bytes | None:
    return b"{}" if method == "POST" else None


async def _read(answer: Any, pieces: list[bytes]) -> None:
    while piece := await answer.read():
        pieces.append(piece)


async def _exchange(said: Said, wires: Wires, send: Callable[[str], Any], read: Callable[..., Any]) -> Got:
    players: list[asyncio.Task[None]] = []
    wires.on_write = lambda wire: _start(wire, said, players)
    pieces: list[bytes] = []
    heads: list[Any] = []

    async def call() -> None:
        answer = await send(said.method)
        heads.append(answer)
        await read(answer, pieces)

    task = asyncio.create_task(call())
    while not players and not task.done():
        await asyncio.sleep(0)
    await asyncio.gather(*players)
    for _ in range(_TURNS):
        await asyncio.sleep(0)
    end = "waiting"
    if task.done():
        error = task.exception()
        if error is not None and not isinstance(error, UpstreamError):
            raise error
        end = "whole" if error is None else error.kind
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    if not heads:
        return Got(end)
    answer = heads[0]
    reused = end == "whole" and await _is_reused(wires, send)
    answer.close()
    head = answer.head
    return Got(
        "broken" if end == "broken_body" else end, head.status, head.reason, head.lines, head.length, head.framed,
        b"".join(pieces), reused,
    )  # fmt: skip


def _start(wire: Wire, said: Said, players: list[asyncio.Task[None]]) -> None:
    """The answer begins when the request is whole."""
    if not players and wire.sent.endswith(b"\r\n\r\n{}" if said.method == "POST" else b"\r\n\r\n"):
        players.append(wire.loop.create_task(wire.play(said.pieces, said.ending)))


async def _is_reused(wires: Wires, send: Callable[[str], Any]) -> bool:
    """Whether the next call comes on the same connection; whatever came before, it gets its own answer."""
    wires.on_write = None
    task = asyncio.create_task(send("POST"))
    for _ in range(_TURNS):
        await asyncio.sleep(0)
    if not task.done():
        wire = wires.opened[-1]
        wire.on_write = None
        wire.say(SECOND)
    try:
        answer = await task
    except UpstreamError as error:
        raise AssertionError(f"the next call failed: {error.kind}") from None
    assert b"X-Second: 1\r\n" in answer.head.lines, "the next call got bytes that were not its answer's"
    assert answer.head.status == 200
    pieces: list[bytes] = []
    await _read(answer, pieces)
    assert b"".join(pieces) == b"second"
    return len(wires.opened) == 1


def cut(raw: bytes, at: Sequence[int]) -> tuple[bytes, ...]:
    """`raw` in pieces, cut at these places."""
    places = sorted({place % (len(raw) + 1) for place in at} | {0, len(raw)})
    return tuple(raw[a:b] for a, b in pairwise(places))
