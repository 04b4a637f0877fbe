"""The calls farebox makes to Postgres, by name, with typed answers.

Every call is one statement or one short transaction and leaves no state in the session, so it works
through PgBouncer in transaction mode. A pool that lost its connections mends itself: each call
takes a live one or makes one. What the rows mean is said in `sql/`; retrying is the caller's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from copy import copy
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
import msgspec

from farebox.errors import BadRequest, Conflict
from farebox.records import KeyRecord, UsageRow
from farebox.store import migrations
from farebox.store.failures import StoreUnavailable, in_words, is_transient, place_of
from farebox.store.one_trip import one_trip
from farebox.store.sqltext import queries
from farebox.store.usage import ANY, Page, UsageFilter

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Row = asyncpg.Record

_KEY_FIELDS = frozenset(
    ("name", "team", "project", "user", "models", "providers", "tags", "allow_shared_objects", "expires_at")
)
_CONNECT_RETRY_S = 0.2
_WAITED_FOR = ("reserve", "extend", "release", "insert_events")
"""Statements that a call, or money for another, waits for."""
_INSERT_TRIES = 5
"""Rounds of one insert. A second is needed only when two processes post the same id at the same moment."""
PAGE_ROWS_MAX = 1000


class Store:
    """A pool of connections to one database. `open` before use, `close` at the end.

    Calls raise StoreUnavailable when the database is away, and asyncpg's errors otherwise.
    """

    def __init__(
        self,
        dsn: str,
        *,
        pool_size_max: int = 8,
        connect_timeout_s: float = 10.0,
        statement_timeout_s: float = 30.0,
    ) -> None:
        self._dsn = dsn
        self._place = place_of(dsn)
        self.pool_size_max = pool_size_max
        self._connect_timeout_s = connect_timeout_s
        self._statement_timeout_s = statement_timeout_s
        self._pool: asyncpg.Pool[Row] | None = None
        self._bound: PoolConnectionProxy[Row] | None = None
        self.sql = queries()
        self._connection_class = one_trip(self.sql[name] for name in _WAITED_FOR)

    def beside(self, *, connections: int, connect_timeout_s: float, statement_timeout_s: float) -> Store:
        """Another store on the same database, not open yet: for calls that must not wait behind those of this one."""
        return Store(
            self._dsn,
            pool_size_max=connections,
            connect_timeout_s=connect_timeout_s,
            statement_timeout_s=statement_timeout_s,
        )

    async def open(self) -> None:
        """Connect; tries again for `connect_timeout_s` while the database is starting. Raises StoreUnavailable."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._connect_timeout_s
        while True:
            try:
                self._pool = await self._make_pool(max(0.1, deadline - loop.time()))
                return
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError) as error:
                reason = in_words(error)
                if not is_transient(error) or loop.time() + _CONNECT_RETRY_S >= deadline:
                    break
            await asyncio.sleep(_CONNECT_RETRY_S)
        raise StoreUnavailable(f"no connection to the database at {self._place}: {reason}")

    async def _make_pool(self, timeout_s: float) -> asyncpg.Pool[Row]:
        pool: asyncpg.Pool[Row] = await asyncpg.create_pool(
            self._dsn,
            min_size=1,
            max_size=self.pool_size_max,
            timeout=timeout_s,
            command_timeout=self._statement_timeout_s,
            # Prepared statements belong to a server connection, which a pooler changes between transactions.
            statement_cache_size=0,
            connection_class=self._connection_class,
            # The usual reset is a round trip for state that no statement here leaves.
            reset=_no_reset,
            server_settings={"application_name": "farebox"},
        )
        return pool

    async def close(self, *, within_s: float | None = None) -> None:
        """Let go of the connections; calls under way get `within_s` at most, or `statement_timeout_s`."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            async with asyncio.timeout(self._statement_timeout_s if within_s is None else within_s):
                await pool.close()
        except TimeoutError:
            pool.terminate()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[PoolConnectionProxy[Row]]:
        """A connection of the pool, for a transaction. For the modules of this package, which know its `sql`."""
        if self._bound is not None:
            yield self._bound
            return
        if self._pool is None:
            raise StoreUnavailable("the store is closed")
        try:
            async with self._pool.acquire(timeout=self._connect_timeout_s) as connection:
                try:
                    yield connection
                except asyncpg.InternalClientError:
                    # The server's last word came while the connection was idle: asyncpg is out of step with it.
                    connection.terminate()
                    raise
        except Exception as error:
            if isinstance(error, StoreUnavailable) or not is_transient(error):
                raise
            raise StoreUnavailable(f"the database is away: {in_words(error)}") from error

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Store]:
        """This store for calls that stand or fall together, one after the other on one connection."""
        async with self.connection() as connection, connection.transaction():
            together = copy(self)
            together._bound = connection
            yield together

    async def fetch(self, query: str, *args: object) -> list[Row]:
        """The rows of a statement of `farebox/sql`. For the modules of this package."""
        async with self.connection() as connection:
            rows: list[Row] = await connection.fetch(self.sql[query], *args)
            return rows

    async def _fetch_key(self, query: str, *args: object) -> KeyRecord | None:
        rows = await self.fetch(query, *args)
        return _key(rows[0]) if rows else None

    # -- the database itself ---------------------------------------------------------------------

    async def ping(self, timeout_s: float) -> None:
        """Return if the database answers a query in time; StoreUnavailable otherwise."""
        try:
            async with asyncio.timeout(timeout_s), self.connection() as connection:
                await connection.fetchval("SELECT 1")
        except TimeoutError:
            raise StoreUnavailable("the database does not answer in time") from None

    async def migrate(self) -> list[str]:
        """Bring the schema up to date; the names of what was applied. Raises SchemaError."""
        async with self.connection() as connection:
            return await migrations.migrate(connection, migrations.shipped())

    async def schema_version(self) -> str | None:
        """The newest migration applied, None for a database farebox has not been in."""
        async with self.connection() as connection:
            return await migrations.current(connection)

    # -- events ----------------------------------------------------------------------------------

    async def insert_events(self, events: Sequence[bytes]) -> int:
        """Post `events` (JSON objects, UTF-8, members named like `UsageEvent`'s fields); how many were new.

        All or none. Harmless to repeat. An event stored as `farebox_cut` is corrected by one that is not, or that
        knows what was only held. What was reserved for an event is settled by it.
        """
        document = (b"[" + b",".join(events) + b"]").decode()
        added: int = 0
        for _ in range(_INSERT_TRIES):
            [row] = await self.fetch("insert_events", document)
            added += row["added"]
            if row["added"] == row["wanted"]:
                return added
        raise StoreUnavailable("other processes keep posting the same events")

    async def list_usage(
        self, where: UsageFilter = ANY, *, after: tuple[datetime, UUID] | None = None, rows_max: int = 100
    ) -> Page:
        """Attempts, newest first, `after` the place a page before named; at most `PAGE_ROWS_MAX` rows."""
        rows_max = max(1, min(rows_max, PAGE_ROWS_MAX))
        started_at, id = after or (None, None)
        rows = await self.fetch("list_usage", *where.values(), started_at, id, rows_max + 1)
        found = [_usage(row) for row in rows[:rows_max]]
        return Page(found, (found[-1].started_at, found[-1].id) if len(rows) > rows_max else None)

    async def cost_corrections(self) -> tuple[Decimal, Decimal]:
        """US dollars that corrections added to the sum of costs, and that they took from it, ever. One row is read."""
        [row] = await self.fetch("cost_corrections")
        return row["up_usd"], row["down_usd"]

    # -- keys ------------------------------------------------------------------------------------

    async def create_key(
        self,
        *,
        name: str,
        secret_hash: bytes,
        team: str | None = None,
        project: str | None = None,
        user: str | None = None,
        models: Sequence[str] = (),
        providers: Sequence[str] = (),
        tags: Mapping[str, str] | None = None,
        allow_shared_objects: bool = False,
        expires_at: datetime | None = None,
    ) -> KeyRecord:
        """Make a key. Raises Conflict when a key of that name is in use, BadRequest for values that can't be."""
        with _explained(name):
            key = await self._fetch_key(
                "create_key",
                name,
                secret_hash,
                team,
                project,
                user,
                list(models),
                list(providers),
                msgspec.json.encode(tags or {}).decode(),
                allow_shared_objects,
                expires_at,
            )
        assert key is not None
        return key

    async def list_keys(self, *, include_revoked: bool = False) -> list[KeyRecord]:
        """All keys, by name."""
        return [_key(row) for row in await self.fetch("list_keys", include_revoked)]

    async def get_key(self, key: UUID | str) -> KeyRecord | None:
        """A key by id or name. Of several revoked ones of a name the last; one in use comes first."""
        if isinstance(key, str):
            try:
                key = UUID(key)
            except ValueError:
                return await self._fetch_key("get_key_by_name", key)
        return await self._fetch_key("get_key", key)

    async def find_key(self, secret_hash: bytes) -> KeyRecord | None:
        """The key with this secret, revoked or not."""
        return await self._fetch_key("find_key", secret_hash)

    async def rotate_key(self, id: UUID, secret_hash: bytes) -> KeyRecord | None:
        """Give a key another secret; the old one ends at once. None: no such key in use."""
        return await self._fetch_key("rotate_key", id, secret_hash)

    async def revoke_key(self, id: UUID) -> KeyRecord | None:
        """End a key for good; the key as it is then. None: no such key."""
        return await self._fetch_key("revoke_key", id)

    async def change_key(self, id: UUID, changes: Mapping[str, Any]) -> KeyRecord | None:
        """Set the given fields of a key, named as in `create_key`, which it raises like. None: no such key in use."""
        unknown = set(changes) - _KEY_FIELDS
        if unknown:
            raise BadRequest(f"a key has no field {sorted(unknown)[0]!r} that can be changed")
        with _explained(str(changes.get("name"))):
            return await self._fetch_key("change_key", id, msgspec.json.encode(changes).decode())

    async def keys_changed_since(self, moment: datetime) -> tuple[list[KeyRecord], datetime]:
        """Keys created or changed after `moment` (and a little before it), and the moment to ask with the next time."""
        rows = await self.fetch("keys_changed_since", moment)
        return [_key(row) for row in rows if row["id"] is not None], rows[0]["asked_at"]


async def _no_reset(connection: object) -> None:
    pass


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """The database's objections to a key, as refusals."""
    try:
        yield
    except asyncpg.UniqueViolationError:
        raise Conflict(f"A key named {name!r} is in use already.") from None
    except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, UnicodeError):
        raise BadRequest(
            "The key can't be stored: a name has 1 to 200 characters, lists hold strings, tags are names with strings."
        ) from None


def _key(row: Row) -> KeyRecord:
    members = {name: row[name] for name in KeyRecord.__struct_fields__}
    members["tags"] = msgspec.json.decode(members["tags"])
    return KeyRecord(**members)


def _usage(row: Row) -> UsageRow:
    members = dict(row)
    for name in ("tags", "units", "tool_calls"):
        members[name] = msgspec.json.decode(members[name])
    if members["usage_raw"] is not None:
        # As it is stored: a provider's number may be larger than a float.
        members["usage_raw"] = msgspec.Raw(members["usage_raw"].encode())
    return UsageRow(**members)
