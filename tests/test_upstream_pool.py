"""The connections to a provider: how many there are, who gets the next one, and when one is given up."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from farebox.config import Provider
from farebox.upstream import IDLE_CONNECTION_S, Answer, NeverSent, Upstream, UpstreamError
from farebox.upstream.pool import CONNECTION_AGE_S
from support.clock import Leaps
from support.wires import Wire, Wires

PROVIDER = Provider(name="p", dialect="openai", base_url="http://provider.test/v1", connections_max=2)
PATIENT = {"response_timeout_s": 10_000.0, "idle_timeout_s": 10_000.0}
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def upstream_of(wires: Wires, **facts: object) -> Upstream:
    return Upstream(replace(PROVIDER, **facts), wires)  # type: ignore[arg-type]


async def send(upstream: Upstream, name: str = "") -> Answer:
    start = upstream.start("POST", upstream.url(f"/{name}", versioned=True), [])
    return await upstream.send("POST", start, b"{}")


async def whole(upstream: Upstream, name: str = "") -> bytes:
    """The body of one call's answer."""
    answer = await send(upstream, name)
    body = b""
    while piece := await answer.read():
        body += piece
    return body


async def turns(number: int = 5) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def names(wire: Wire) -> list[str]:
    """Which calls went up a connection, in their order."""
    return [line.split(b"/")[2].split(b" ")[0].decode() for line in wire.sent.split(b"\r\n") if b" HTTP/1.1" in line]


async def test_a_connection_is_used_again() -> None:
    """One call after the other needs one connection."""
    wires = Wires(lambda wire: wire.loop.call_soon(wire.say, OK))
    upstream = upstream_of(wires)
    assert [await whole(upstream, str(n)) for n in range(3)] == [b"ok"] * 3
    assert [names(wire) for wire in wires.opened] == [["0", "1", "2"]]
    await upstream.close()
    assert wires.alive == []


async def test_the_connection_used_last_is_used_next() -> None:
    """So the others get idle, and are closed when the load has gone."""
    wires = Wires()
    upstream = upstream_of(wires)
    calls = [asyncio.create_task(whole(upstream, str(n))) for n in range(2)]
    await turns()
    for wire in wires.opened:
        wire.say(OK)
    await asyncio.gather(*calls)
    wires.on_write = wires.opened[0].on_write = wires.opened[1].on_write = lambda w: w.loop.call_soon(w.say, OK)
    for n in range(2, 5):
        await whole(upstream, str(n))
    assert [names(wire) for wire in wires.opened] == [["0"], ["1", "2", "3", "4"]]


async def test_past_the_limit_calls_wait_and_are_served_in_their_order() -> None:
    """`connections_max` is never passed, and who came first is served first."""
    wires = Wires()
    upstream = upstream_of(wires)
    calls = [asyncio.create_task(whole(upstream, str(n))) for n in range(8)]
    await turns()
    for _ in range(4):
        assert wires.asked == len(wires.opened) == 2
        for wire in wires.opened:
            wire.say(OK)
            await turns()
    await asyncio.gather(*calls)
    assert [names(wire) for wire in wires.opened] == [["0", "2", "4", "6"], ["1", "3", "5", "7"]]


async def test_a_call_that_gets_no_connection_in_time_was_never_sent() -> None:
    """It fails after `connect_timeout_s` as `connect_timeout`, and takes no turn from those behind it."""
    wires = Wires()
    upstream = upstream_of(wires, connections_max=1)
    first = asyncio.create_task(whole(upstream, "first"))
    await turns()
    leaps = Leaps()
    late = asyncio.create_task(whole(upstream, "late"))
    await turns()
    await leaps.by(5)
    patient = asyncio.create_task(whole(upstream, "patient"))
    await turns()
    await leaps.by(6)
    with pytest.raises(UpstreamError) as failure:
        await late
    assert (failure.value.kind, failure.value.sent, failure.value.timeout) == ("connect_timeout", False, True)
    wires.opened[0].say(OK)
    await first
    await turns()
    wires.opened[0].say(OK)
    assert await patient == b"ok"
    assert names(wires.opened[0]) == ["first", "patient"]


async def test_a_cancelled_call_that_waited_was_never_sent() -> None:
    """Whoever is cancelled before a connection is there is told that nothing went up."""
    wires = Wires()
    upstream = upstream_of(wires, connections_max=1)
    first = asyncio.create_task(whole(upstream, "first"))
    await turns()
    waiting = asyncio.create_task(whole(upstream, "waiting"))
    await turns()
    waiting.cancel()
    with pytest.raises(NeverSent):
        await waiting
    wires.gate.clear()
    opening = asyncio.create_task(whole(upstream_of(wires)))
    await turns()
    opening.cancel()
    with pytest.raises(NeverSent):
        await opening
    wires.opened[0].say(OK)
    assert await first == b"ok"


@pytest.mark.parametrize("room", ["freed", "lost"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_turn_given_to_a_cancelled_call_goes_to_the_next(room: str, when: str) -> None:
    """A connection freed, or its place, in the very turn of the loop in which a waiter is cancelled is not lost."""
    wires = Wires()
    upstream = upstream_of(wires, connections_max=1)
    first = asyncio.create_task(whole(upstream, "first"))
    await turns()
    cancelled, next_ = (asyncio.create_task(whole(upstream, name)) for name in ("cancelled", "next"))
    await turns()
    if when == "before":
        cancelled.cancel()
    wire = wires.opened[0]
    if room == "freed":
        wire.say(OK)
    else:
        wire.protocol.connection_lost(None)
        wire.lost = True
    if when == "after":
        cancelled.cancel()
    with pytest.raises(NeverSent):
        await cancelled
    await turns()
    wires.opened[-1].say(OK)
    assert await next_ == b"ok"
    await asyncio.gather(first, return_exceptions=True)
    assert len(wires.opened) == (1 if room == "freed" else 2)


async def test_a_call_that_comes_as_the_only_waiter_is_cancelled_gets_the_room() -> None:
    """It must not stand behind somebody who is about to leave the queue."""
    wires = Wires()
    upstream = upstream_of(wires, connections_max=2)
    held = [asyncio.create_task(whole(upstream, str(n))) for n in range(2)]
    await turns()
    leaving = [asyncio.create_task(whole(upstream, "leaving")) for _ in range(2)]
    await turns()
    for task in leaving:
        task.cancel()
    # Both waiters are cancelled but still in the queue; only one of them is passed over.
    wires.opened[0].protocol.connection_lost(None)
    wires.opened[0].lost = True
    coming = asyncio.create_task(whole(upstream, "coming"))
    await turns()
    assert len(wires.opened) == 3
    wires.opened[2].say(OK)
    assert await coming == b"ok"
    wires.opened[1].say(OK)
    await asyncio.gather(*held, *leaving, return_exceptions=True)


async def test_a_connection_lost_on_its_way_to_a_waiter_costs_it_no_turn() -> None:
    """The waiter gets the next one, before those who came after it."""
    wires = Wires()
    upstream = upstream_of(wires, connections_max=1)
    first = asyncio.create_task(whole(upstream, "first"))
    await turns()
    calls = [asyncio.create_task(whole(upstream, name)) for name in ("a", "b", "c")]
    await turns()
    wire = wires.opened[0]
    wire.say(OK)
    wire.protocol.connection_lost(None)
    wire.lost = True
    assert await first == b"ok"
    for _ in calls:
        await turns()
        wires.opened[-1].say(OK)
    await asyncio.gather(*calls)
    order = [name for wire in wires.opened for name in names(wire)]
    # The place of the lost connection was b's by then; a, whose turn it was, does not go behind c.
    assert order.index("a") < order.index("c")


async def test_a_connection_that_does_not_open_leaves_its_place() -> None:
    """Its call fails, unsent; the next waiter opens another."""
    wires = Wires()
    wires.gate.clear()
    wires.failures.append(UpstreamError("connect", sent=False))
    upstream = upstream_of(wires, connections_max=1)
    calls = [asyncio.create_task(whole(upstream, str(n))) for n in range(2)]
    await turns()
    wires.gate.set()
    await turns()
    with pytest.raises(UpstreamError, match="connect"):
        await calls[0]
    await turns()
    wires.opened[0].say(OK)
    assert await calls[1] == b"ok"


@pytest.mark.parametrize("how", [Wire.end, Wire.reset, lambda wire: wire.say(OK)])
async def test_a_connection_lost_as_it_opens_is_none(how: Callable[[Wire], None]) -> None:
    """Accepted and closed at once, or greeted with bytes nobody asked for: unsent, and its place is free again."""
    wires = Wires(lambda wire: wire.loop.call_soon(wire.say, OK))
    wires.at_once = how
    upstream = upstream_of(wires, connections_max=1)
    for _ in range(2):
        with pytest.raises(UpstreamError, match="connect") as failure:
            async with asyncio.timeout(5):
                await send(upstream)
        assert not failure.value.sent
    wires.at_once = None
    assert await whole(upstream) == b"ok"
    assert len(wires.alive) == 1


async def test_idle_connections_are_closed_after_their_time() -> None:
    """Not before, and a connection used meanwhile begins anew."""
    wires = Wires()
    upstream = upstream_of(wires)
    calls = [asyncio.create_task(whole(upstream, str(n))) for n in range(2)]
    await turns()
    for wire in wires.opened:
        wire.say(OK)
    await asyncio.gather(*calls)
    leaps = Leaps()
    await leaps.by(IDLE_CONNECTION_S - 1)
    assert len(wires.alive) == 2
    again = asyncio.create_task(whole(upstream))
    await turns()
    wires.opened[1].say(OK)
    await again
    await leaps.by(2)
    assert wires.alive == [wires.opened[1]]
    await leaps.by(IDLE_CONNECTION_S)
    assert wires.alive == []


async def test_an_old_connection_is_not_used_again() -> None:
    """So that new addresses of a provider come into use however busy it is."""
    wires = Wires()
    upstream = upstream_of(wires, **PATIENT)
    call = asyncio.create_task(whole(upstream))
    await turns()
    await Leaps().by(CONNECTION_AGE_S + 1)
    wires.opened[0].say(OK)
    assert await call == b"ok"
    assert wires.alive == []


@pytest.mark.parametrize("how", ["end", "reset", "bytes"])
async def test_an_idle_connection_that_stirs_is_dropped(how: str) -> None:
    """Closed by the provider, or said something nobody asked for: the next call gets another."""
    wires = Wires(lambda wire: wire.loop.call_soon(wire.say, OK))
    upstream = upstream_of(wires)
    await whole(upstream)
    wire = wires.opened[0]
    if how == "bytes":
        wire.say(OK)
    else:
        getattr(wire, how)()
    await turns()
    assert await whole(upstream) == b"ok"
    assert len(wires.opened) == 2 and wires.alive == [wires.opened[1]]


async def test_what_is_in_use_at_the_close_ends_with_its_call() -> None:
    """Closing drops every connection that is idle at once, and none is kept afterwards."""
    wires = Wires(lambda wire: wire.loop.call_soon(wire.say, OK))
    upstream = upstream_of(wires)
    await whole(upstream)
    await upstream.close()
    assert upstream.closed and wires.alive == []


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_no_place_is_lost(seed: int) -> None:
    """After any order of calls, cancellations, lost and refused connections, the whole limit can be used again."""
    draw = random.Random(seed)
    wires = Wires()
    upstream = upstream_of(wires, connections_max=3)
    calls: list[asyncio.Task[bytes]] = []
    for _ in range(200):
        action = draw.randrange(8)
        if action < 3:
            calls.append(asyncio.create_task(whole(upstream)))
        elif action == 3 and calls:
            draw.choice(calls).cancel()
        elif action == 4 and wires.alive:
            draw.choice(wires.alive).say(OK)
        elif action == 5 and wires.alive:
            draw.choice((Wire.end, Wire.reset))(draw.choice(wires.alive))
        elif action == 6:
            wires.failures = [UpstreamError("connect", sent=False)] * draw.randrange(2)
        elif draw.random() < 0.5:
            wires.gate.set()
        else:
            wires.gate.clear()
        await turns(draw.randrange(3))
        assert len(wires.alive) <= 3
    wires.gate.set()
    wires.failures.clear()
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await turns()
    last = [asyncio.create_task(whole(upstream)) for _ in range(5)]
    await turns()
    assert len(wires.alive) == 3
    while not all(call.done() for call in last):
        for wire in wires.alive:
            wire.say(OK)
        await turns()
    await asyncio.gather(*last)
