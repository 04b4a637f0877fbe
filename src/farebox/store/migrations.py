"""Brings the schema up to date: numbered SQL files, each applied once, in order, in a transaction of its own.

What was applied stands in `farebox.migration` with a checksum, so that an edited file or a database
from a newer farebox is found out before anything is changed. Processes that start together wait for
each other by an advisory lock that ends with the transaction, which a pooler can't leave behind.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, NamedTuple

from farebox.errors import FareboxError
from farebox.store.failures import SchemaError
from farebox.store.sqltext import sql_folder

if TYPE_CHECKING:
    from asyncpg import Connection as Plain
    from asyncpg import Record
    from asyncpg.pool import PoolConnectionProxy

    Connection = Plain[Record] | PoolConnectionProxy[Record]

TIMEOUT_S = 3600.0
"""How long one migration, with the wait for another process, may take."""

_LOCK = int.from_bytes(b"farebox", "big")
_FILE = re.compile(r"(\d{4})_\w+\.sql")

_CREATE_TABLE = """
CREATE TABLE farebox.migration (
    number     integer     PRIMARY KEY,
    name       text        NOT NULL,
    checksum   text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)"""


class Migration(NamedTuple):
    """One file: `0001_ledger`, its text, and the SHA-256 of its bytes in hex."""

    number: int
    name: str
    sql: str
    checksum: str


def shipped(folder: Traversable | None = None) -> list[Migration]:
    """The migrations of this version, in order. Raises FareboxError when the numbers have a gap or repeat."""
    found = []
    for file in (folder or sql_folder() / "migrations").iterdir():
        match = _FILE.fullmatch(file.name)
        if match:
            data = file.read_bytes()
            name = file.name.removesuffix(".sql")
            found.append(Migration(int(match[1]), name, data.decode(), hashlib.sha256(data).hexdigest()))
    found.sort()
    if [m.number for m in found] != list(range(1, len(found) + 1)):
        raise FareboxError("migrations must be numbered 0001, 0002 ... without a gap")
    return found


async def migrate(connection: Connection, migrations: Sequence[Migration]) -> list[str]:
    """Apply what is missing and return the names of it. Raises SchemaError, or what the database raises."""
    done: list[str] = []
    while True:
        async with connection.transaction():
            await connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK})", timeout=TIMEOUT_S)
            await _ensure_table(connection)
            applied = await _applied(connection)
            check(applied, migrations)
            if len(applied) == len(migrations):
                return done
            migration = migrations[len(applied)]
            await connection.execute(migration.sql, timeout=TIMEOUT_S)
            await connection.execute(
                "INSERT INTO farebox.migration (number, name, checksum) VALUES ($1, $2, $3)",
                migration.number,
                migration.name,
                migration.checksum,
            )
        done.append(migration.name)


async def current(connection: Connection) -> str | None:
    """The name of the newest migration that was applied; None for a database farebox has not been in."""
    if await connection.fetchval("SELECT to_regclass('farebox.migration') IS NULL"):
        return None
    name: str | None = await connection.fetchval("SELECT name FROM farebox.migration ORDER BY number DESC LIMIT 1")
    return name


def check(applied: Sequence[tuple[int, str, str]], migrations: Sequence[Migration]) -> None:
    """Raise SchemaError unless `applied` (number, name, checksum; in order) is the beginning of `migrations`."""
    for place, (number, name, checksum) in enumerate(applied):
        if place >= len(migrations):
            raise SchemaError(
                f"the database is newer than this farebox: it has migration {name}, this version knows up to "
                f"{migrations[-1].name if migrations else 'none'}. Upgrade farebox."
            )
        known = migrations[place]
        if (number, checksum) != (known.number, known.checksum):
            raise SchemaError(
                f"migration {name} in the database is not the {known.name} of this farebox: its file was changed "
                "after it was applied. Install the version of farebox that applied it, or restore the file."
            )


async def _ensure_table(connection: Connection) -> None:
    # Asked first: CREATE ... IF NOT EXISTS needs the right to create even where there is nothing to do.
    if await connection.fetchval("SELECT to_regnamespace('farebox') IS NULL"):
        await connection.execute("CREATE SCHEMA farebox")
    if await connection.fetchval("SELECT to_regclass('farebox.migration') IS NULL"):
        await connection.execute(_CREATE_TABLE)


async def _applied(connection: Connection) -> list[tuple[int, str, str]]:
    rows = await connection.fetch("SELECT number, name, checksum FROM farebox.migration ORDER BY number")
    return [(row["number"], row["name"], row["checksum"]) for row in rows]
