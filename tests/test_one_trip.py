"""Statements that a call waits for cost one round trip to the database once their types are known."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit
from uuid import uuid4

import asyncpg
import pytest

from farebox.store import Store
from farebox.store.one_trip import one_trip

ANSWER_NOW = (b"S\0\0\0\4", b"H\0\0\0\4")
"""How a client says that it waits for what it asked (Sync, Flush)."""


class Trips:
    """How often a server was waited for."""

    def __init__(self, database: str) -> None:
        self.database = database
        self.number = 0

    def since(self) -> int:
        """Round trips since the last look."""
        number, self.number = self.number, 0
        return number


@asynccontextmanager
async def counted(database: str, folder: Path) -> AsyncIterator[Trips]:
    """`database` at another address, where round trips are counted."""
    url = urlsplit(database)
    query = parse_qs(url.query)
    port = query.get("port", ["5432"])[0]
    there = f"{query['host'][0]}/.s.PGSQL.{port}"
    query["host"] = [str(folder)]
    trips = Trips(url._replace(query=urlencode(query, doseq=True)).geturl())

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, up: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if up:
                    trips.number += sum(data.count(message) for message in ANSWER_NOW)
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_unix_connection(there)
        await asyncio.gather(pump(reader, up_writer, True), pump(up_reader, writer, False))

    server = await asyncio.start_unix_server(serve, f"{folder}/.s.PGSQL.{port}")
    try:
        yield trips
    finally:
        server.close()


async def test_a_statement_that_is_waited_for_is_one_round_trip(database: str, tmp_path: Path) -> None:
    """From the second time on, on each connection; the first asks for the types. Others ask each time."""
    async with counted(database, tmp_path) as trips:
        store = Store(trips.database, pool_size_max=1)
        await store.open()
        try:
            for _ in range(2):  # the first of all may ask for types of its own
                await store.list_keys()
                others = trips.since()
            assert others == 2
            for statement, argument in (("release", [uuid4()]), ("insert_events", "[]")):
                await store.fetch(statement, argument)
                assert trips.since() >= 2
                for _ in range(3):
                    assert len(await store.fetch(statement, argument)) == 1
                    assert trips.since() == 1
        finally:
            await store.close()


async def test_nothing_stays_prepared_at_the_server(store: Store) -> None:
    """A pooler may give the next statement to another server connection, so none is left there to be found."""
    async with store.transaction() as together:
        for _ in range(3):
            await together.fetch("release", [uuid4()])
        async with together.connection() as connection:
            assert await connection.fetch("SELECT name FROM pg_prepared_statements") == []


async def test_a_statement_that_was_refused_is_right_afterwards(database: str) -> None:
    """Values that do not fit and errors of the server leave a statement as usable as it was."""
    query = "SELECT 1 / $1::int AS one"
    connection = await asyncpg.connect(database, statement_cache_size=0, connection_class=one_trip([query]))
    try:
        assert await connection.fetchval(query, 1) == 1
        with pytest.raises(asyncpg.DivisionByZeroError):
            await connection.fetchval(query, 0)
        with pytest.raises(asyncpg.DataError):
            await connection.fetchval(query, "one")
        assert await connection.fetchval(query, 1) == 1
    finally:
        await connection.close()
