"""Migrations on a real PostgreSQL: each once, in order, whole or not at all, and never on the wrong schema."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from farebox.errors import FareboxError
from farebox.store import SchemaError, Store
from farebox.store.migrations import Migration, current, migrate, shipped
from support.postgres import PostgresServer

Connection = asyncpg.Connection


@pytest.fixture
async def empty(postgres: PostgresServer) -> AsyncIterator[str]:
    """The URL of a database without anything in it."""
    async with postgres.database(migrated=False) as dsn:
        yield dsn


@pytest.fixture
async def connection(empty: str) -> AsyncIterator[Connection]:
    """A connection to the empty database."""
    connection = await asyncpg.connect(empty)
    yield connection
    await connection.close()


def made(number: int, sql: str, checksum: str = "c") -> Migration:
    """A migration for a test."""
    return Migration(number, f"{number:04d}_test", sql, f"{checksum}{number}")


async def test_an_empty_database_gets_everything_once(empty: str) -> None:
    """The first run applies every migration in order and says so; the second has nothing to do."""
    store = Store(empty)
    await store.open()
    try:
        assert await store.schema_version() is None
        names = [m.name for m in shipped()]
        assert await store.migrate() == names
        assert await store.migrate() == []
        assert await store.schema_version() == names[-1]
    finally:
        await store.close()


async def test_processes_that_start_together_take_turns(empty: str) -> None:
    """Eight processes migrating at once apply each migration once, and all of them come through."""
    stores = [Store(empty) for _ in range(8)]
    for store in stores:
        await store.open()
    try:
        applied = await asyncio.gather(*(store.migrate() for store in stores))
    finally:
        for store in stores:
            await store.close()
    assert sorted(name for names in applied for name in names) == [m.name for m in shipped()]


async def test_a_failing_migration_leaves_no_trace(connection: Connection) -> None:
    """What came before a failing migration stays, of itself nothing does, and mended it goes through."""
    first = made(1, "CREATE TABLE farebox.one ()")
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(connection, [first, made(2, "CREATE TABLE farebox.two (); SELECT 1 / 0")])
    assert await current(connection) == "0001_test"
    assert await connection.fetchval("SELECT to_regclass('farebox.two')") is None
    assert await migrate(connection, [first, made(2, "CREATE TABLE farebox.two ()")]) == ["0002_test"]


async def test_an_edited_migration_is_found_out(connection: Connection) -> None:
    """A file that was changed after it was applied stops everything, before anything is changed."""
    await migrate(connection, [made(1, "SELECT 1")])
    with pytest.raises(SchemaError, match="0001_test"):
        await migrate(connection, [made(1, "SELECT 2", "other"), made(2, "CREATE TABLE farebox.two ()")])
    assert await current(connection) == "0001_test"


async def test_a_newer_database_is_left_alone(connection: Connection) -> None:
    """A farebox older than the database refuses it and says to upgrade."""
    both = [made(1, "SELECT 1"), made(2, "SELECT 2")]
    await migrate(connection, both)
    with pytest.raises(SchemaError, match=r"0002_test.*Upgrade farebox"):
        await migrate(connection, both[:1])


async def test_rights_on_the_schema_are_enough(connection: Connection, empty: str) -> None:
    """Where an administrator made the schema, farebox needs no right to create any."""
    role = f"limited_{await connection.fetchval('SELECT current_database()')}"
    await connection.execute(f"CREATE ROLE {role} LOGIN; CREATE SCHEMA farebox AUTHORIZATION {role}")
    store = Store(empty.replace("//farebox@", f"//{role}@"))
    await store.open()
    try:
        assert await store.migrate() == [m.name for m in shipped()]
    finally:
        await store.close()
        await connection.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


def test_shipped_migrations_say_when_they_run() -> None:
    """Every migration opens by saying whether it runs before or after the deploy."""
    for migration in shipped():
        assert migration.sql.startswith(("-- Runs before the deploy.", "-- Runs after the deploy.")), migration.name


@pytest.mark.parametrize("names", [["0001_a.sql", "0003_b.sql"], ["0001_a.sql", "0001_b.sql"], ["0002_a.sql"]])
def test_numbers_have_no_gap(tmp_path: Path, names: list[str]) -> None:
    """Migrations whose numbers skip or repeat are refused: their order would be anybody's guess."""
    for name in names:
        (tmp_path / name).write_text("SELECT 1")
    with pytest.raises(FareboxError, match="without a gap"):
        shipped(tmp_path)
