"""Fixtures that many tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from farebox.store import Store
from support.postgres import PostgresServer


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A running PostgreSQL of this pytest process. A test that stops it starts it again."""
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.delete()


@pytest.fixture
async def database(postgres: PostgresServer) -> AsyncIterator[str]:
    """The URL of a fresh, migrated database."""
    async with postgres.database() as dsn:
        yield dsn


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    """An open store on a fresh database."""
    store = Store(database)
    await store.open()
    yield store
    await store.close()
