"""A running farebox in the test's own loop, on a real database, with a key to call it by."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

from farebox import keys
from farebox.app import App
from farebox.config import Config, load
from farebox.records import KeyRecord, UsageRow
from farebox.store import UsageFilter
from farebox.tokens import Tokens
from support.http import Answer, RawClient, call

ADMIN_TOKEN = "test-admin-token-0123456789"


def config_of(settings: dict[str, Any]) -> Config:
    """A config from plain data, read the way a file is."""
    return load(json.dumps(settings), filename="test", env=os.environ, read_file=lambda p: Path(p).read_text())


class Farebox:
    """What tests ask of a running farebox."""

    def __init__(self, app: App, key: str, key_name: str | None = None) -> None:
        self.app = app
        self.key = key
        self.key_name = key_name
        """Only this key's rows are shown; None: all."""

    @property
    def port(self) -> int:
        return self.app.port

    async def call(self, target: str, body: bytes | dict[str, Any] | None = None, **more: Any) -> Answer:
        """One request with the key."""
        raw = json.dumps(body).encode() if isinstance(body, dict) else body
        more.setdefault("key", self.key)
        return await call(self.port, target, raw, **more)

    def client(self) -> RawClient:
        return RawClient(self.port)

    async def rows(self, number: int | None = None, *, timeout_s: float = 10) -> list[UsageRow]:
        """All rows, oldest first, once everything recorded is in Postgres; waits for `number` of them."""
        async with asyncio.timeout(timeout_s):
            while True:
                await self.app.ledger.flush(timeout_s)
                where = UsageFilter(key_name=self.key_name)
                rows = (await self.app.store.list_usage(where, rows_max=1000)).rows[::-1]
                if number is None or len(rows) >= number:
                    return rows
                await asyncio.sleep(0.02)

    async def row(self) -> UsageRow:
        """The only row there is."""
        rows = await self.rows(1)
        assert len(rows) == 1, rows
        return rows[0]

    async def new_key(self, name: str, **facts: Any) -> tuple[str, KeyRecord]:
        """A key, its secret first. It may touch all stored objects unless `facts` deny it: few tests are about that."""
        secret = keys.mint_secret()
        facts.setdefault("allow_shared_objects", True)
        return secret, await self.app.store.create_key(name=name, secret_hash=keys.hash_secret(secret), **facts)

    async def with_key(self, name: str, **facts: Any) -> Farebox:
        """The same farebox seen by a new key: its calls are made with it, its rows are the key's."""
        secret, _ = await self.new_key(name, **facts)
        return Farebox(self.app, secret, name)

    async def deserted(self) -> None:
        """Until farebox has noticed that every client is gone."""
        async with asyncio.timeout(10):
            while any(connection.transport is not None for connection in self.app.server.connections):
                await asyncio.sleep(0.005)

    async def idle(self) -> None:
        """Until no call is in flight."""
        async with asyncio.timeout(10):
            while self.app.proxy.in_flight:
                await asyncio.sleep(0.005)


def settings_of(
    database: str, folder: Path, providers: dict[str, Any], routes: list[Any] | None = None, **sections: Any
) -> dict[str, Any]:
    """Settings for a test: quick drains and polls, a free port."""
    settings: dict[str, Any] = {
        "server": {"port": 0, "admin_token": ADMIN_TOKEN, "shutdown_timeout_s": 1},
        "database": {"url": database, "data_dir": str(folder), "pool_size_max": 3},
        "auth": {"key_poll_s": 0.05},
        "ledger": {"drain_interval_ms": 2, "segment_mb": 1, "journal_max_mb": 64},
        "log": {"format": "json"},
        # Providers are asked for their models by the tests that are about it.
        "models": {"refresh_s": "off", "poll_s": 0.05},
        "providers": providers,
    }
    if routes is not None:
        settings["routes"] = routes
    for name, values in sections.items():
        settings[name] = values if isinstance(values, list) else {**settings.get(name, {}), **values}
    return settings


@cache
def counter() -> Tokens:
    """One for all the fareboxes of this process: to load a tokenizer takes longer than all else at a start."""
    return Tokens()


@asynccontextmanager
async def running(settings: dict[str, Any]) -> AsyncIterator[Farebox]:
    """A farebox with these settings, stopped at the end."""
    app = App(config_of(settings), counter=counter())
    await app.start()
    try:
        key = app.first_key
        farebox = Farebox(app, key or "")
        if key is None:
            existing = {record.name for record in await app.store.list_keys()}
            name = next(f"test-{n}" for n in range(1000) if f"test-{n}" not in existing)
            farebox.key, _ = await farebox.new_key(name)
        elif (first := await app.store.find_key(keys.hash_secret(key))) is not None:
            await app.store.change_key(first.id, {"allow_shared_objects": True})
        yield farebox
    finally:
        await app.close()
