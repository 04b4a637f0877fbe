"""Fixtures that many tests share."""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from farebox.store import Store
from support.postgres import PostgresServer, quick_disk

# Hundreds of farebox processes start in these tests. Where the environment keeps bytecode from being written, each
# would compile all of farebox anew: they keep theirs beside pytest's own.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    os.environ["PYTHONPYCACHEPREFIX"] = str(Path(__file__).parent.parent / ".pytest_cache" / "pycache")

# Journals and clusters are synced as everywhere: `tmp_path` is where that is quick.
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(quick_disk()))


def pytest_collection_finish() -> None:
    """What was imported and collected stays to the end: no garbage collection needs to go through it again."""
    gc.collect()
    gc.freeze()


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
    """The URL of a fresh database, migrated and with the shipped prices."""
    async with postgres.database(priced=True) as dsn:
        yield dsn


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    """An open store on a fresh database."""
    store = Store(database)
    await store.open()
    yield store
    await store.close()
