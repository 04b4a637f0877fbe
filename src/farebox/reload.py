"""Following the config file while farebox runs: when it is read again, and what is said of it.

It is read again on SIGHUP, and when a poll finds another content that has settled: a file that is
just being written differs between two looks, or is empty, and waits. What does not load changes
nothing. How a config is put in force is the caller's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal

import structlog

from farebox import logs
from farebox.config import Config, ConfigError
from farebox.logs import exception_facts
from farebox.source import ConfigFile, Source

Result = Literal["ok", "failed"]
Apply = Callable[[Config, Source], Awaitable[tuple[str, ...]]]
"""Puts a config in force, or raises and changes nothing; the settings of it that wait for the next start."""

SETTLE_S = 0.25
"""A change that a poll finds is taken once the content has stayed the same for so long."""
_SECRETS_MAX = 4096
"""Credentials of former configs that are still masked in the log; past it the oldest are forgotten."""


class Watch:
    """Reads the config again and hands it to `apply`. `source` is what is in force now."""

    def __init__(
        self,
        file: ConfigFile,
        source: Source,
        *,
        apply: Apply,
        done: Callable[[Result], None],
        poll_s: Callable[[], float | None],
        settle_s: float = SETTLE_S,
    ) -> None:
        """`done` is told of each reload how it went; `poll_s` says, each time, how long to wait for the next look."""
        self._file = file
        self._tried = source
        self._apply = apply
        self._done = done
        self._poll_s = poll_s
        self._settle_s = settle_s
        self._log = structlog.get_logger()
        self._asked = asyncio.Event()
        self._waits = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._follow(), name="config reload")

    def ask(self) -> None:
        """Read the file again, changed or not: SIGHUP."""
        self._asked.set()

    async def close(self) -> None:
        """Look no more; a reload that is under way is given up before it takes effect, or has."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self) -> None:
        while True:
            try:
                if await self._due():
                    await self._reload()
            except Exception as exc:
                # Nothing is known to raise here; whatever does must not end the watch for good.
                self._log.error("the config could not be reloaded", **exception_facts(exc))
                self._done("failed")

    async def _due(self) -> bool:
        try:
            async with asyncio.timeout(self._poll_s()):
                await self._asked.wait()
        except TimeoutError:
            return await self._changed()
        self._asked.clear()
        return True

    async def _changed(self) -> bool:
        now = await asyncio.to_thread(self._file.look, self._tried)
        if now == self._tried:
            self._waits = False
            return False
        if not (now.text or "").strip():
            if not self._waits:
                self._log.warning("the config file is gone or empty: the config in force stays", file=now.filename)
            self._waits = True
            return False
        self._waits = False
        await asyncio.sleep(self._settle_s)
        return now == await asyncio.to_thread(self._file.look, self._tried)

    async def _reload(self) -> None:
        reading = await asyncio.to_thread(self._file.read)
        self._tried = reading.source
        if isinstance(reading.config, ConfigError):
            for fault in reading.config.faults:
                self._log.error("the config has a fault: the one in force stays", fault=str(fault))
            self._done("failed")
            return
        try:
            waiting = await self._apply(reading.config, reading.source)
        except Exception as exc:
            self._log.error("the config can't be put in force: the old one stays", **exception_facts(exc))
            self._done("failed")
            return
        self._done("ok")
        self._log.info("config reloaded", file=reading.source.filename, providers=list(reading.config.providers))
        if waiting:
            self._log.warning("these settings take effect at the next start", settings=", ".join(waiting))


class Voice:
    """The log of a process, which follows the config: its level, and what it must never say."""

    def __init__(self, worker: int | None = None) -> None:
        """`worker` stands in every line, where there are several."""
        self._worker = worker
        self._secrets: dict[str, None] = {}

    def know(self, config: Config) -> None:
        """Learn the credentials of `config`. Those of earlier ones stay masked: calls may still be made with them."""
        for secret in config.secrets():
            self._secrets.pop(secret, None)
            self._secrets[secret] = None
        while len(self._secrets) > _SECRETS_MAX:
            del self._secrets[next(iter(self._secrets))]

    def follow(self, config: Config) -> None:
        """Log as `config` says."""
        self.know(config)
        logs.configure(config.log.level, config.log.format, self._secrets, worker=self._worker)
