"""Is the process alive, and can it do its work: `/healthz` and `/readyz`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from farebox.config import Config
from farebox.errors import MethodNotAllowed, Unavailable
from farebox.server import Reply, Request, respond
from farebox.store import Store

_PING_S = 1.0


class Health:
    """Answers the two probes. Neither needs a credential, neither names anything."""

    def __init__(self, config: Config, store: Store, journal_ready: Callable[[], bool]) -> None:
        self.config = config
        self._store = store
        self._journal_ready = journal_ready
        self._asking: asyncio.Task[str] | None = None

    async def answer(self, request: Request, path: str) -> Reply:
        """`/healthz`: 200 while the loop turns. `/readyz`: 200 if all parts are up, else 503 and which are not."""
        if request.method not in ("GET", "HEAD"):
            raise MethodNotAllowed(f"{request.method} is not a method of {path}.")
        if path == "/healthz":
            return respond(request, 200, b'{"status":"ok"}')
        checks = {
            "database": await self._database(),
            "journal": "ok" if self._journal_ready() else "not writable",
            "providers": "ok" if self.config.providers else "none enabled",
        }
        ready = all(state == "ok" for state in checks.values())
        body = msgspec.json.encode({"status": "ok" if ready else "not ready", **checks})
        return respond(request, 200 if ready else 503, body)

    async def _database(self) -> str:
        # One question at a time, whose answer is everybody's: strangers must not take up all connections.
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name="readiness")
        return await asyncio.shield(self._asking)

    async def _ask(self) -> str:
        try:
            await self._store.ping(_PING_S)
        except Unavailable:
            return "away"
        return "ok"
