"""One farebox for all tests of a module: starting one for each would take most of their time.

A module makes a fixture of `serving`, and each of its tests takes a `Desk`: a key of its own, so
that it sees its own rows only, and providers that have forgotten the test before.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.app import Farebox, running, settings_of
from support.clock import stop_clock
from support.postgres import PostgresServer
from support.provider import FakeProvider

PROVIDER_KEY = "sk-up-0123456789abcdef"
"""What farebox authenticates with at the fake providers."""

_NUMBERS = itertools.count(1)


@dataclass
class Serving:
    """A running farebox and the providers it may call, by name."""

    farebox: Farebox
    providers: dict[str, FakeProvider]

    async def desk(self, **key: Any) -> Desk:
        """A fresh key, and providers without a past. `key`: fields of the key."""
        for provider in self.providers.values():
            provider.forget()
        return Desk(self, await self.farebox.with_key(f"desk-{next(_NUMBERS)}", **key))

    async def settled(self) -> None:
        """Until nothing of the last test goes on."""
        await self.farebox.idle()
        for provider in self.providers.values():
            assert not provider.failures, provider.failures
            assert not provider.scripts, "not every scripted answer was asked for"


class Desk:
    """What one test works with."""

    def __init__(self, serving: Serving, farebox: Farebox) -> None:
        self.serving = serving
        self.farebox = farebox
        self.app = farebox.app
        self.key = farebox.key
        self.call = farebox.call
        self.client = farebox.client
        self.row = farebox.row
        self.rows = farebox.rows

    @property
    def provider(self) -> FakeProvider:
        """The first provider, for modules that need one."""
        return next(iter(self.serving.providers.values()))

    def __getitem__(self, name: str) -> FakeProvider:
        return self.serving.providers[name]

    @property
    def auth(self) -> tuple[str, str]:
        return ("Authorization", f"Bearer {self.key}")


@asynccontextmanager
async def serving(
    postgres: PostgresServer,
    names: Iterable[str],
    settings: Callable[[dict[str, FakeProvider]], tuple[dict[str, Any], list[Any]]],
    **sections: Any,
) -> AsyncIterator[Serving]:
    """A farebox over fake providers `names`; `settings(fakes)` gives the config's `providers` and `routes`."""
    async with AsyncExitStack() as stack:
        dsn = await stack.enter_async_context(postgres.database(priced=True))
        await stop_clock(dsn)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="farebox-test-"))
        fakes = {name: await stack.enter_async_context(FakeProvider()) for name in names}
        providers, routes = settings(fakes)
        config = settings_of(dsn, Path(folder), providers, routes, **sections)
        yield Serving(await stack.enter_async_context(running(config)), fakes)


async def eventually(what: Callable[[], object], *, timeout_s: float = 10) -> None:
    """Until `what()` is true."""
    async with asyncio.timeout(timeout_s):
        while not what():
            await asyncio.sleep(0.005)


async def quiet(number: Callable[[], int], *, rounds: int = 20) -> None:
    """Until `number()` has risen and then stood still. Stopping too early can only hide a fault, never make one up."""
    before, still = -1, 0
    while still < rounds:
        await asyncio.sleep(0.02)
        now = number()
        before, still = now, still + 1 if now and now == before else 0


def relaying(fakes: dict[str, FakeProvider]) -> tuple[dict[str, Any], list[Any]]:
    """One provider under several names: plain, never asked for usage, asked and learnt from, Anthropic, impatient."""
    provider = fakes["up"]
    key = {"api_key": PROVIDER_KEY}
    openai = {"dialect": "openai", "base_url": provider.base_url, **key}
    providers = {
        "up": openai,
        "skip": {**openai, "stream_options": "skip"},
        "claude": {"dialect": "anthropic", "base_url": provider.origin, **key},
        "impatient": {**openai, "idle_timeout_s": 0.2},
    }
    return providers, [{"match": {"model": "claude-*"}, "to": ["claude"]}, {"match": {}, "to": ["up"]}]
