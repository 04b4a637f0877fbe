"""Which database: farebox's own PostgreSQL, started here or already running, or the one that `database.url` names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from farebox.budgets import CONNECTIONS
from farebox.config import Config
from farebox.embedded_postgres import EmbeddedPostgres, running_dsn
from farebox.store import Store

COMMAND_CONNECTIONS = 20
"""Connections the embedded database takes beyond those of all workers' pools: for commands beside a server."""

_INTERRUPTED_S = 2.0
"""How long connections of an interrupted command may take to be closed in good order."""


@asynccontextmanager
async def open_database(config: Config, *, join: bool = True) -> AsyncIterator[str]:
    """The URL of a database that is up; if the embedded one was started here, it is stopped at the end.

    `join`: use an embedded database that a running farebox has up, as commands do beside a server;
    without it, one in use is an error.
    """
    if not config.database.embedded:
        yield config.database.url
        return
    folder = Path(config.database.data_dir)
    running = await running_dsn(folder) if join else None
    if running is not None:
        yield running
        return
    pools = config.server.workers * (config.database.pool_size_max + CONNECTIONS)
    postgres = EmbeddedPostgres(folder, connections_max=pools + COMMAND_CONNECTIONS)
    await postgres.start()
    try:
        yield postgres.dsn
    finally:
        await postgres.stop()


@asynccontextmanager
async def open_store(config: Config, *, join: bool = True, dsn: str | None = None) -> AsyncIterator[Store]:
    """An open store, closed again at the end. `join` as above; `dsn`: a database that somebody else has opened."""
    if dsn is None:
        async with open_database(config, join=join) as opened, open_store(config, dsn=opened) as store:
            yield store
        return
    store = Store(
        dsn,
        pool_size_max=config.database.pool_size_max,
        connect_timeout_s=config.database.connect_timeout_s,
        statement_timeout_s=config.database.statement_timeout_s,
    )
    await store.open()
    within_s = None
    try:
        yield store
    except asyncio.CancelledError:
        within_s = _INTERRUPTED_S  # who pressed Ctrl-C does not wait for an answer
        raise
    finally:
        await store.close(within_s=within_s)
