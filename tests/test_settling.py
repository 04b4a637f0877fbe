"""Exactly one event for each attempt, with parts of farebox itself failing: a proxy over a scripted ledger."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest

from farebox.accounting import Attempt, Estimate
from farebox.journal import JournalFull
from farebox.proxy import Clock, Proxy, Snapshot
from farebox.records import Caller, UsageEvent
from farebox.server import make_server
from farebox.upstream import Answer, Upstream
from support.app import config_of, settings_of
from support.clock import Leaps
from support.http import RawClient
from support.provider import FakeProvider, Received, Wire, plain, stream
from support.traffic import CHAT, document, events, request

Estimating = Callable[[], Awaitable[Estimate]]


async def _guess() -> Estimate:
    return Estimate(11, 22)


@dataclass
class Bench:
    """A proxy on a port, its ledger two lists. Tests replace `estimating` and `pricing`, and set `full`."""

    estimating: Estimating = _guess
    pricing: Callable[[UsageEvent], None] = field(default=lambda event: None)
    full: bool = False
    begun: list[UUID] = field(default_factory=list)
    recorded: list[UsageEvent] = field(default_factory=list)

    def begin(self, id: UUID, event: bytes) -> None:
        if self.full:
            raise JournalFull("the disk of the journal is full")
        self.begun.append(id)

    async def estimate(self, attempt: Attempt, body: bytes, reading: object, quick: bool) -> Estimate:
        return Estimate(1, 1) if quick else await self.estimating()

    def price(self, event: UsageEvent) -> None:
        self.pricing(event)

    async def ask(self, body: dict[str, Any]) -> RawClient:
        """A client that has sent a chat request."""
        client = RawClient(self.port)
        await client.__aenter__()
        await client.send("POST", CHAT, [], json.dumps(body).encode())
        return client

    def only_event(self) -> UsageEvent:
        """The one event there is."""
        assert len(self.recorded) == 1, self.recorded
        return self.recorded[0]

    proxy: Proxy = field(init=False)
    port: int = field(init=False)

    async def idle(self) -> None:
        async with asyncio.timeout(10):
            while self.proxy.in_flight:
                await asyncio.sleep(0.001)


@asynccontextmanager
async def bench(
    folder: Path, provider: FakeProvider, *, upstream: type[Upstream] = Upstream, **metering: Any
) -> AsyncIterator[Bench]:
    """A bench in front of `provider`."""
    settings = settings_of("embedded", folder, {"p": {"dialect": "openai", "base_url": provider.base_url}})
    config = config_of({**settings, "metering": metering})
    made = Bench()

    async def identify(_: object) -> Caller:
        return Caller(kind="open")

    async def nobody_asks(*_: object) -> None:
        """No request here is about models."""

    upstreams = {"p": upstream(config.providers["p"])}
    made.proxy = Proxy(
        Snapshot(config, upstreams),
        identify=identify,
        begin=made.begin,
        record=made.recorded.append,
        estimate=made.estimate,
        price=made.price,
        answer_models=nobody_asks,
        clock=Clock(time.monotonic, lambda: datetime.now(UTC)),
    )
    server = make_server(made.proxy.handle, keepalive_timeout_s=5, header_bytes_max=32768, headers_max=128)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    made.port = listening.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        listening.close()
        server.pre_shutdown()
        async with asyncio.timeout(10):
            await made.proxy.close(1)
        await server.shutdown(1)
        await upstreams["p"].close()


UNCOUNTED = [b"".join(events("m", 3, usage=False))]
"""A stream whose provider does not say what it used."""


async def test_a_count_that_fails_harms_neither_the_answer_nor_the_row(tmp_path: Path) -> None:
    """When counting tokens raises, the client has every byte and the event is estimated by size."""

    async def fail() -> Estimate:
        raise RecursionError("too deep")

    async with FakeProvider(stream(UNCOUNTED)) as provider, bench(tmp_path, provider) as farebox:
        farebox.estimating = fail
        client = await farebox.ask(request("m", stream=True))
        answer = await client.answer()
        assert (answer.status, answer.body, answer.clean) == (200, UNCOUNTED[0], True)
        event = farebox.only_event()
        assert (event.outcome, event.usage_source) == ("complete", "estimate")
        assert event.input_tokens and event.output_tokens
        await client.__aexit__()


async def test_a_price_that_fails_harms_neither_the_answer_nor_the_row(tmp_path: Path) -> None:
    """When pricing raises, the client has every byte and the row its counts; the cost is unknown, never half set."""

    def fail(event: UsageEvent) -> None:
        event.cost_usd, event.price_id = Decimal(7), "half/way"
        raise ZeroDivisionError

    async with (
        FakeProvider(stream([b"".join(events("m", 3, usage=True))])) as provider,
        bench(tmp_path, provider) as farebox,
    ):
        farebox.pricing = fail
        client = await farebox.ask(request("m", stream=True))
        answer = await client.answer()
        await farebox.idle()
        await client.__aexit__()
    assert (answer.status, answer.clean) == (200, True)
    event = farebox.only_event()
    assert (event.usage_source, event.cost_usd, event.cost_source, event.price_id) == ("provider", None, None, None)


async def test_a_client_that_leaves_while_its_tokens_are_counted_leaves_one_event(tmp_path: Path) -> None:
    """The count is given up, the event is written at once by size."""
    counting, never = asyncio.Event(), asyncio.Event()

    async def wait() -> Estimate:
        counting.set()
        await never.wait()
        raise AssertionError

    async with FakeProvider(stream(UNCOUNTED)) as provider, bench(tmp_path, provider) as farebox:
        farebox.estimating = wait
        client = await farebox.ask(request("m", stream=True))
        await counting.wait()
        client.abort()
        await farebox.idle()
        event = farebox.only_event()
        assert (event.outcome, event.usage_source) == ("client_gone", "estimate")


async def test_a_stop_while_tokens_are_counted_leaves_one_event(tmp_path: Path) -> None:
    """The deadline of a stop is kept although a count is under way, and the event is there when it is over."""
    counting, never = asyncio.Event(), asyncio.Event()

    async def wait() -> Estimate:
        counting.set()
        await never.wait()
        raise AssertionError

    async with FakeProvider(stream(UNCOUNTED)) as provider, bench(tmp_path, provider) as farebox:
        farebox.estimating = wait
        client = await farebox.ask(request("m", stream=True))
        await counting.wait()
        async with asyncio.timeout(10):
            await farebox.proxy.close(0)
        assert farebox.only_event().usage_source == "estimate"
        assert not (await client.answer()).clean
        await client.__aexit__()


async def test_a_stop_does_not_wait_for_counts(tmp_path: Path) -> None:
    """Calls cut at the deadline are settled by size: long counts do not hold up the exit, nor let a cut look whole."""
    begun, never = asyncio.Event(), asyncio.Event()
    frame = events("m", 1, usage=False)[0]

    async def half(_: Received, wire: Wire) -> None:
        await wire.head(200, [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")])
        await wire.chunk(frame)
        begun.set()
        await never.wait()

    async def wait() -> Estimate:
        await never.wait()
        raise AssertionError

    async with FakeProvider(half) as provider, bench(tmp_path, provider) as farebox:
        farebox.estimating = wait
        # To a client of HTTP/1.0 the end of the connection is the end of the body.
        reader, writer = await asyncio.open_connection("127.0.0.1", farebox.port)
        body = json.dumps(request("m", stream=True)).encode()
        writer.write(b"POST %b HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body))
        await begun.wait()
        await reader.readuntil(frame)
        closing = asyncio.create_task(farebox.proxy.close(0))
        await asyncio.sleep(0.05)
        assert not closing.done()
        await Leaps().by(5)
        async with asyncio.timeout(10):
            await closing
        assert farebox.only_event().outcome == "farebox_cut"
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


async def test_a_call_let_through_unrecorded_is_recorded_if_there_is_room_by_then(tmp_path: Path) -> None:
    """With on_ledger_failure: pass the event of a call without a begin goes to the ledger all the same."""
    async with (
        FakeProvider(plain(document("m", 3))) as provider,
        bench(tmp_path, provider, on_ledger_failure="pass") as farebox,
    ):
        farebox.full = True
        client = await farebox.ask(request("m", stream=False))
        assert (await client.answer()).status == 200
        assert (farebox.begun, farebox.only_event().outcome) == ([], "complete")
        await client.__aexit__()


@pytest.mark.parametrize(("status", "length"), [(204, None), (200, "0")])
async def test_an_answer_without_a_body_is_recorded_before_it_is_sent(
    tmp_path: Path, status: int, length: str | None
) -> None:
    """Where the head is all there is, the event is there before the client has it."""
    counting, go_on = asyncio.Event(), asyncio.Event()

    async def wait() -> Estimate:
        counting.set()
        await go_on.wait()
        return Estimate(1, 0)

    async def bare(_: Received, wire: Wire) -> None:
        await wire.head(status, [("Content-Length", length)] if length else [])

    async with FakeProvider(bare) as provider, bench(tmp_path, provider) as farebox:
        farebox.estimating = wait
        client = await farebox.ask(request("m", stream=False))
        await counting.wait()
        head = asyncio.create_task(client.answer())
        await asyncio.sleep(0.1)  # what must not come can't be waited for
        assert not head.done()
        go_on.set()
        assert (await head).status == status
        assert farebox.only_event().outcome == "complete"
        await client.__aexit__()


async def test_a_full_journal_refuses_before_anything_goes_up(tmp_path: Path) -> None:
    """With on_ledger_failure: refuse the client gets 503 with retry-after, the provider nothing."""
    async with FakeProvider() as provider, bench(tmp_path, provider) as farebox:
        farebox.full = True
        client = await farebox.ask(request("m", stream=False))
        answer = await client.answer()
        assert (answer.status, answer.header("retry-after")) == (503, "5")
        assert (provider.requests, farebox.recorded) == ([], [])
        await client.__aexit__()


class Faulty(Upstream):
    """An HTTP client that fails in a way nobody thought of, before it sent anything."""

    async def send(self, *_: Any, **__: Any) -> Answer:
        raise RuntimeError("sk-secret-0123456789")


async def test_a_fault_between_begin_and_answer_ends_in_one_event(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unforeseen exception while sending is a 500 for the client, one event, and a log line without its text."""
    async with FakeProvider() as provider, bench(tmp_path, provider, upstream=Faulty) as farebox:
        client = await farebox.ask(request("m", stream=True))
        answer = await client.answer()
        assert answer.status == 500
        event = farebox.only_event()
        assert [event.id] == farebox.begun
        assert (event.outcome, event.error_code, event.status) == ("upstream_error", "farebox_fault", None)
        assert "sk-secret" not in answer.body.decode() + capsys.readouterr().out
        await client.__aexit__()


class TornAnswer:
    """An answer whose first piece is passed on, and then there is a fault."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._answer, name)

    async def pipe(self, sink: Callable[[bytes], bool]) -> bool:
        def fail(piece: bytes) -> bool:
            sink(piece)
            raise RuntimeError("torn")

        return await self._answer.pipe(fail)


class Torn(Upstream):
    """An HTTP client that fails in a way nobody thought of, in the middle of an answer."""

    async def send(self, *arguments: Any, **named: Any) -> Answer:
        answer = await super().send(*arguments, **named)
        return cast(Answer, TornAnswer(answer))


async def test_a_fault_within_an_answer_cuts_it_and_ends_in_one_event(tmp_path: Path) -> None:
    """What the client has looks cut off, the event says so, and the provider's connection is closed."""
    begun = asyncio.Event()
    closed = asyncio.Event()

    async def endless(_: Received, wire: Wire) -> None:
        await wire.head(200, [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")])
        await wire.chunk(events("m", 1, usage=False)[0])
        begun.set()
        await wire.hung_up()
        closed.set()

    async with FakeProvider(endless) as provider, bench(tmp_path, provider, upstream=Torn) as farebox:
        client = await farebox.ask(request("m", stream=True))
        answer = await client.answer()
        assert (answer.status, answer.clean) == (200, False)
        event = farebox.only_event()
        assert (event.outcome, event.error_code) == ("upstream_cut", "farebox_fault")
        async with asyncio.timeout(10):
            await closed.wait()
        await client.__aexit__()


async def test_a_handler_cancelled_from_outside_ends_in_one_event(tmp_path: Path) -> None:
    """Whoever cancels a call's task, its event is written before the cancellation goes on."""
    asked, never = asyncio.Event(), asyncio.Event()

    async def hang(_: Received, wire: Wire) -> None:
        asked.set()
        await never.wait()

    async with FakeProvider(hang) as provider, bench(tmp_path, provider) as farebox:
        client = await farebox.ask(request("m", stream=False))
        await asked.wait()
        (call,) = farebox.proxy._calls
        call.task.cancel()
        await farebox.idle()
        event = farebox.only_event()
        assert (event.outcome, event.usage_source) == ("farebox_cut", "estimate")
        await client.__aexit__()
