"""The moments at which a call can go wrong twice: clients that leave between two steps, providers that drop
a connection, faults of farebox's own. Each attempt still is one row, and nobody waits for the wrong thing."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from support.app import Farebox, running, settings_of
from support.http import RawClient
from support.provider import FakeProvider, Received, Wire, plain
from support.traffic import CHAT, document, events, request, send_document, send_stream

ANSWER = document("m", 3)


def provider_of(provider: FakeProvider, **more: Any) -> dict[str, Any]:
    return {"dialect": "openai", "base_url": provider.base_url, "api_key": "sk-upstream-1", **more}


async def ask(client: RawClient, farebox: Farebox, body: dict[str, Any], *headers: tuple[str, str]) -> None:
    """Send a chat request and leave the answer unread."""
    fields = [("Authorization", f"Bearer {farebox.key}"), *headers]
    await client.send("POST", CHAT, fields, json.dumps(body).encode())


class KeyLock:
    """Holds every look-up of a key up until it is released."""

    def __init__(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self._connection = connection
        self._transaction = connection.transaction()

    async def take(self) -> None:
        await self._transaction.start()
        await self._connection.execute("LOCK TABLE farebox.key IN ACCESS EXCLUSIVE MODE")

    async def somebody_waits(self) -> None:
        """Until a look-up is under way."""
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%secret_hash =%'"
        )
        async with asyncio.timeout(10):
            while not await self._connection.fetchval(waiting):
                await asyncio.sleep(0.005)
                await self._connection.execute("SELECT pg_stat_clear_snapshot()")

    async def release(self) -> None:
        await self._transaction.rollback()


@asynccontextmanager
async def locked_keys(database: str) -> AsyncIterator[KeyLock]:
    connection = await asyncpg.connect(database)
    try:
        lock = KeyLock(connection)
        await lock.take()
        yield lock
    finally:
        await connection.close()


async def test_a_request_the_provider_dropped_is_not_sent_again_behind_the_rows_back(
    database: str, tmp_path: Path
) -> None:
    """When a provider takes a GET and hangs up, the row count and the provider's count stay equal."""

    async def hang_up(_: Received, wire: Wire) -> None:
        wire.close()

    async with (
        FakeProvider(hang_up) as provider,
        running(settings_of(database, tmp_path, {"p": provider_of(provider)})) as farebox,
    ):
        answer = await farebox.call("/v1/files", method="GET")
        assert answer.status == 502
        rows = await farebox.rows(1)
        assert len(provider.requests) == len(rows) == 1
        assert (rows[0].outcome, rows[0].status) == ("upstream_error", None)


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_nobody_is_asked_for_a_client_that_left_while_its_key_was_looked_up(
    database: str, tmp_path: Path, method: str
) -> None:
    """A client that is gone before it was let in costs no call at a provider."""
    async with (
        FakeProvider(plain(ANSWER)) as provider,
        running(settings_of(database, tmp_path, {"p": provider_of(provider)}, auth={"key_poll_s": 4})) as farebox,
    ):
        async with locked_keys(database) as lock:
            async with farebox.client() as client:
                body = json.dumps(request("m", stream=False)).encode() if method == "POST" else None
                await client.send(method, CHAT, [("Authorization", f"Bearer {farebox.key}")], body)
                await lock.somebody_waits()
            await farebox.deserted()
        # The next call waits behind the same look-up, so by its answer the first one was decided.
        assert (await farebox.call("/v1/files", method="GET")).status == 200
        await farebox.idle()
        assert [received.target for received in provider.requests] == ["/v1/files"]
        assert [row.endpoint for row in await farebox.rows(1)] == ["/v1/files"]


async def test_no_second_provider_is_asked_for_a_client_that_left(database: str, tmp_path: Path) -> None:
    """A fallback is for the client; one that has left gets none, and the first attempt keeps its row."""
    asked, answer = asyncio.Event(), asyncio.Event()

    async def busy(_: Received, wire: Wire) -> None:
        asked.set()
        await answer.wait()
        await wire.head(503, [("Content-Length", "0")])

    async with (
        FakeProvider(busy) as first,
        FakeProvider(plain(ANSWER)) as second,
        running(
            settings_of(
                database,
                tmp_path,
                {"a": provider_of(first), "b": provider_of(second)},
                [{"match": {}, "to": ["a", "b"]}],
            )
        ) as farebox,
    ):
        async with farebox.client() as client:
            await ask(client, farebox, request("m", stream=False))
            await asked.wait()
        await farebox.deserted()
        answer.set()
        await farebox.idle()
        rows = await farebox.rows(1)
        assert [(row.provider, row.status, row.outcome) for row in rows] == [("a", 503, "upstream_error")]
        assert second.requests == []


async def test_a_client_that_leaves_while_an_error_is_looked_at_frees_the_provider(
    database: str, tmp_path: Path
) -> None:
    """Leaving while farebox reads a 429 that another provider may make good closes the first one's connection."""
    closed = asyncio.Event()
    begun = asyncio.Event()

    async def slow_error(_: Received, wire: Wire) -> None:
        try:
            await wire.head(429, [("Transfer-Encoding", "chunked")])
            begun.set()
            while True:
                await wire.chunk(b" ")
                await asyncio.sleep(0.005)
        except ConnectionError:
            closed.set()
            raise

    async with (
        FakeProvider(slow_error) as first,
        FakeProvider(plain(ANSWER)) as second,
        running(
            settings_of(
                database,
                tmp_path,
                {"a": provider_of(first), "b": provider_of(second)},
                [{"match": {}, "to": ["a", "b"]}],
            )
        ) as farebox,
    ):
        async with farebox.client() as client:
            await ask(client, farebox, request("m", stream=True))
            await begun.wait()
        async with asyncio.timeout(3):
            await closed.wait()
        await farebox.idle()
        rows = await farebox.rows(1)
        assert [(row.provider, row.status, row.outcome) for row in rows] == [("a", 429, "upstream_error")]
        assert second.requests == []


@pytest.mark.parametrize("stream", [True, False])
async def test_text_that_is_no_text_in_names_costs_no_call(database: str, tmp_path: Path, stream: bool) -> None:
    """Bytes that are not UTF-8, half surrogates and NUL in what names a call end up in a row like any other."""
    async with (
        FakeProvider(plain(ANSWER)) as provider,
        running(settings_of(database, tmp_path, {"p": provider_of(provider)})) as farebox,
    ):
        body = request("m", stream=stream)
        raw = json.dumps(body).replace('"m"', r'"m\ud800\u0000"').encode()
        raw = raw[:-1] + rb',"user":"\udfff","metadata":{"session_id":"\ud800"}}'
        async with farebox.client() as client:
            fields = [
                ("Authorization", f"Bearer {farebox.key}"),
                ("x-farebox-session", "s\xff\xfe"),
                ("x-farebox-tags", "t\xff=\xed\xa0\x80"),
            ]
            await client.send("POST", CHAT, fields, raw)
            assert (await client.answer()).status == 200
        assert len(provider.requests) == 1
        assert (await farebox.row()).status == 200


async def test_a_call_whose_key_is_looked_up_while_farebox_stops_is_refused(database: str, tmp_path: Path) -> None:
    """A call that was not let in when the stop began is not let in after it: no provider is asked, there is no row."""
    async with FakeProvider(plain(ANSWER)) as provider:
        settings = settings_of(database, tmp_path, {"p": provider_of(provider)}, auth={"key_poll_s": 4})
        async with running(settings) as farebox, locked_keys(database) as lock, farebox.client() as client:
            await ask(client, farebox, request("m", stream=False))
            await lock.somebody_waits()
            await farebox.app.proxy.close(0)
            await lock.release()
            assert (await client.answer()).status == 503
            assert await farebox.rows() == []
        assert provider.requests == []


async def test_clients_that_leave_at_any_step_leave_one_row_each_and_nothing_open(
    database: str, tmp_path: Path
) -> None:
    """Sixty clients that hang up at random moments: one row for each request the provider saw, no call left over."""
    rng = random.Random(7)

    async def answer(received: Received, wire: Wire) -> None:
        asked = json.loads(received.body)
        mine = random.Random(asked["model"])
        await asyncio.sleep(mine.choice((0, 0.001, 0.01)))
        if asked["stream"]:
            await send_stream(wire, events(asked["model"], mine.randint(1, 8), usage=True), mine.choice((0, 0.002)))
        else:
            await send_document(wire, document(asked["model"], 5))

    async with (
        FakeProvider(answer) as provider,
        running(settings_of(database, tmp_path, {"p": provider_of(provider)})) as farebox,
    ):

        async def one(number: int) -> None:
            async with farebox.client() as client:
                body = json.dumps(request(f"m-{number}", stream=number % 3 > 0)).encode()
                await client.send("POST", CHAT, [("Authorization", f"Bearer {farebox.key}")], body)
                await asyncio.sleep(rng.choice((0, 0.001, 0.003, 0.01, 0.03)))
                if rng.random() < 0.3:
                    client.writer.transport.abort()

        await asyncio.gather(*(one(number) for number in range(60)))
        await farebox.idle()
        rows = await farebox.rows()
        seen = sorted(json.loads(r.body)["model"] for r in provider.requests)
        # A begin may be written for a client that left before its first byte went up: then the row says so.
        assert sorted(r.requested_model for r in rows if r.requested_model in seen) == seen
        assert {r.outcome for r in rows} <= {"complete", "client_gone"}
        assert all(r.outcome == "client_gone" for r in rows if r.requested_model not in seen)
        assert farebox.app.ledger.in_flight == 0
