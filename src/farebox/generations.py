"""Snapshots of the config, one after the other, and the clients and the demo provider that they use.

A provider that a new config leaves as it was keeps its client, and so its open connections. A client
that is used no more is closed when the last call that began with it is over; so what is kept of old
configs is bounded by the calls that are open, and they by their timeouts. Who serves by which
snapshot is `proxy`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import structlog

from farebox.config import Config, Provider
from farebox.demo import NAME, DemoProvider, demo_provider
from farebox.logs import exception_facts
from farebox.proxy import Snapshot
from farebox.upstream import Upstream

DEMO_ANSWERS = "no provider is enabled: the built-in demo provider answers, an echo without a model"
Resource = Upstream | DemoProvider


class Generations:
    """Makes snapshots and closes what the last of them needed. Used from one event loop."""

    def __init__(self, demo: Callable[[], DemoProvider], client: Callable[[Provider], Upstream] = Upstream) -> None:
        self._new_demo = demo
        self._new_client = client
        self._live: dict[Snapshot, list[Resource]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def make(self, config: Config) -> Snapshot:
        """A snapshot of `config`, which gets the demo provider if it enables none.

        Raises what making a client raises (`Unusable`); then nothing is kept of it.
        """
        made: list[Resource] = []
        used: list[Resource] = []
        try:
            if not config.providers:
                config = await self._with_demo(config, made, used)
            upstreams = {name: self._client(provider, made, used) for name, provider in config.providers.items()}
        except BaseException:
            await self._close(made)
            raise
        snapshot = Snapshot(config, upstreams)
        self._live[snapshot] = used
        return snapshot

    def retire(self, snapshot: Snapshot) -> None:
        """No further call gets `snapshot`: what only it uses is closed when its last call is over."""
        snapshot.retire(lambda: self._over(snapshot))

    def has_demo(self, snapshot: Snapshot) -> bool:
        """Whether calls of `snapshot` go to the built-in demo provider."""
        return any(isinstance(one, DemoProvider) for one in self._live.get(snapshot, ()))

    async def close(self) -> None:
        """Close everything; no call is open any more."""
        everything = {id(one): one for one in self._in_use()}
        self._live.clear()
        await self._close(list(everything.values()))
        await asyncio.gather(*self._closing)

    def _in_use(self) -> Iterator[Resource]:
        """What live snapshots use, the newest one's first; some of it repeatedly."""
        for used in reversed(self._live.values()):
            yield from used

    def _client(self, provider: Provider, made: list[Resource], used: list[Resource]) -> Upstream:
        client = next((one for one in self._in_use() if isinstance(one, Upstream) and one.provider == provider), None)
        # A file may hold other certificates than when it was read.
        if client is None or provider.tls_ca_file is not None:
            client = self._new_client(provider)
            made.append(client)
            if client.proxy:
                structlog.get_logger().info("calls go through a proxy", provider=provider.name, proxy=client.proxy)
        used.append(client)
        return client

    async def _with_demo(self, config: Config, made: list[Resource], used: list[Resource]) -> Config:
        demo = next((one for one in self._in_use() if isinstance(one, DemoProvider)), None)
        if demo is None:
            demo = self._new_demo()
            made.append(demo)
            await demo.start()
        used.append(demo)
        return config.with_provider(NAME, demo_provider(demo.base_url))

    def _over(self, snapshot: Snapshot) -> None:
        used = self._live.pop(snapshot, [])
        needed = {id(one) for others in self._live.values() for one in others}
        unused = [one for one in used if id(one) not in needed]
        if unused:
            task = asyncio.get_running_loop().create_task(self._close(unused), name="close old clients")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _close(self, resources: list[Resource]) -> None:
        # Clients before the demo provider that one of them is connected to.
        for one in sorted(resources, key=lambda one: isinstance(one, DemoProvider)):
            closing: Awaitable[None] = one.close()
            try:
                await closing
            except Exception as exc:
                structlog.get_logger().error("a provider's client could not be closed", **exception_facts(exc))
