"""A real PostgreSQL for the tests: one server for each pytest process, a fresh database for each test.

The server is farebox's own embedded one, so it runs wherever farebox does and ends with the process
that started it. FAREBOX_TEST_POSTGRES names a folder of programs to use instead of those farebox
would choose.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import Future
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from farebox.embedded_postgres import EmbeddedPostgres
from farebox.pricebook import seeded
from farebox.store import Store
from farebox.store.prices import PriceLists

VARIABLE = "FAREBOX_TEST_POSTGRES"
_PREFIX = "farebox-test-"
_TEMPLATE = "farebox_template"
_PRICED = "farebox_priced"
_WAIT_S = 120.0
_MEMORY_MIN = 2 * 1024**3


class PostgresServer:
    """One server in a temporary folder; may be stopped and started again. `delete` at the end.

    `disk`: where that folder is, if a quick one may be too small.
    """

    def __init__(self, disk: Path | None = None) -> None:
        _remove_leftovers()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=disk or quick_disk()))
        explicit = os.environ.get(VARIABLE)
        self._postgres = EmbeddedPostgres(self.folder, binaries=Path(explicit) if explicit else None)
        # The server ends with the thread that started it, and tests have loops of their own.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="postgres", daemon=True)
        self._thread.start()
        self._numbers = itertools.count()
        self._templated = False
        # To make and drop databases with; kept, as it takes as long to connect as to drop one.
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None
        self._one_at_a_time = asyncio.Lock()

    def start(self) -> None:
        """Returns when the server takes connections."""
        self._in_thread(self._postgres.start())

    def stop(self) -> None:
        """Break connections off and shut down."""
        self._in_thread(self._postgres.stop())

    def delete(self) -> None:
        """Stop and leave nothing behind."""
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_WAIT_S)
        self._loop.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def dsn(self, database: str = "farebox") -> str:
        """A URL for asyncpg and libpq."""
        return urlsplit(self._postgres.dsn)._replace(path="/" + database).geturl()

    @asynccontextmanager
    async def database(self, *, migrated: bool = True, priced: bool = False) -> AsyncIterator[str]:
        """A database of one's own, for as long as this lasts: its URL. What drops it is not waited for.

        `priced`: the shipped prices are in it, as after the first start of a farebox: to put them there takes longer
        than all else at a start.
        """
        template = _PRICED if migrated and priced else _TEMPLATE if migrated else "template0"
        if migrated and not self._templated:
            await self._make_templates()
        name = f"test_{next(self._numbers)}"
        # Copied as files are: to write it all to the WAL, the default, takes twice as long.
        await self._run(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        try:
            yield self.dsn(name)
        finally:
            self._submit(self._execute(f"DROP DATABASE {name} WITH (FORCE)"))

    async def _make_templates(self) -> None:
        await self._run(f"CREATE DATABASE {_TEMPLATE}")
        async with AsyncExitStack() as stack:
            store = await self._opened(stack, _TEMPLATE)
            await store.migrate()
        await self._run(f"CREATE DATABASE {_PRICED} TEMPLATE {_TEMPLATE}")
        async with AsyncExitStack() as stack:
            await seeded(PriceLists(await self._opened(stack, _PRICED)))
        self._templated = True

    async def _opened(self, stack: AsyncExitStack, database: str) -> Store:
        store = Store(self.dsn(database))
        await store.open()
        stack.push_async_callback(store.close)
        return store

    async def _run(self, statement: str) -> None:
        await asyncio.wrap_future(self._submit(self._execute(statement)))

    async def _execute(self, statement: str) -> None:
        async with self._one_at_a_time:
            if self._connection is None or self._connection.is_closed():  # a test has stopped the server
                self._connection = await asyncpg.connect(self.dsn("postgres"))
            await self._connection.execute(statement)

    def _submit(self, work: Coroutine[Any, Any, None]) -> Future[None]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _in_thread(self, work: Coroutine[Any, Any, None]) -> None:
        self._submit(work).result(_WAIT_S)


def quick_disk() -> Path:
    """Where a server that syncs, as farebox's does, still makes and drops databases fast."""
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > _MEMORY_MIN:
        return memory
    return Path("/tmp")


def _remove_leftovers() -> None:
    """Folders of test runs that were killed; their servers ended with them."""
    for folder in quick_disk().glob(_PREFIX + "*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not _lives(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
