"""Which database: farebox's own PostgreSQL, started here or already running, or the one that `database.url` names."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from farebox.config import Config
from farebox.embedded_postgres import EmbeddedPostgres, running_dsn
from farebox.store import Store


@asynccontextmanager
async def open_store(config: Config, *, join: bool = True) -> AsyncIterator[Store]:
    """An open store, closed again at the end, and with it the embedded database if it was started here.

    `join`: use an embedded database that a running farebox has up, as commands do beside a server;
    without it, one in use is an error.
    """
    async with contextlib.AsyncExitStack() as stack:
        dsn = config.database.url
        if config.database.embedded:
            folder = Path(config.database.data_dir)
            running = await running_dsn(folder) if join else None
            if running is None:
                postgres = EmbeddedPostgres(folder)
                await postgres.start()
                stack.push_async_callback(postgres.stop)
                dsn = postgres.dsn
            else:
                dsn = running
        store = Store(
            dsn,
            pool_size_max=config.database.pool_size_max,
            connect_timeout_s=config.database.connect_timeout_s,
            statement_timeout_s=config.database.statement_timeout_s,
        )
        await store.open()
        stack.push_async_callback(store.close)
        yield store
