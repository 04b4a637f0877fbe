"""The process above the workers: what there is once for all of them, and a worker in every slot.

It binds the port before anything is started and never accepts from it; while a worker is replaced,
the others go on, and without any the system lets new connections wait. It runs the embedded
Postgres, migrates, and makes the first key. No request and no prompt passes through it.

A worker that ends is replaced at once, or after a growing pause if that happens again and again. It
had a journal of its own, which its successor, or else a sibling, takes over: what it had in flight
ends as `farebox_cut`. If the supervisor itself is killed, the workers see their sockets end and
stop in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from farebox import foundation
from farebox import metrics as metrics_
from farebox.config import Config, carry_over
from farebox.database import open_database, open_store
from farebox.errors import FareboxError
from farebox.generations import DEMO_ANSWERS
from farebox.source import Source
from farebox.supervisor.child import Child, WorkerFailed, WorkerSilent
from farebox.supervisor.messages import Start
from farebox.supervisor.patience import Patience

START_S = 60.0
"""How long a worker may take until it is ready; then it is killed. A long journal is read back meanwhile."""
RELOAD_S = 30.0
"""How long a worker may take to put a config in force; then it is replaced."""
_ROUNDS = 3
"""How often it is looked who became ready, perhaps with the old config, while others were told of the new one."""
FAILED_S = 2.0
"""How long a worker that could not start may take to end by itself, with the reason as its last words."""
STOP_MARGIN_S = 15.0
"""What a stop takes beyond `server.shutdown_timeout_s` and the drain; a worker that takes longer is killed."""


class Supervisor:
    """farebox with several workers. `start`, then `reload` as often as one likes, then `close`.

    `source` is what `config` was read from, `address` what the command line put in its place (host,
    port, workers).
    """

    def __init__(
        self,
        config: Config,
        source: Source,
        *,
        address: tuple[str | None, int | None, int | None] = (None, None, None),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.first_key: str | None = None
        self.admin_token_path: Path | None = None
        self._first = self._source = source
        self._address = address
        self._monotonic = monotonic
        self._children: dict[int, Child] = {}
        self._ready: dict[int, Child] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._stack = contextlib.AsyncExitStack()
        self._log = structlog.get_logger()

    async def start(self) -> None:
        """Bring everything up. Raises `FareboxError` with what to do when something can't be."""
        try:
            await self._start()
        except BaseException:
            for child in self._children.values():
                child.kill()
            await asyncio.gather(*(child.wait() for child in self._children.values()))
            await self._stack.aclose()
            raise

    async def _start(self) -> None:
        config = self.config
        for warning in _warnings(config):
            self._log.warning(warning)
        folder = foundation.data_folder(config)
        _, self.admin_token_path = foundation.admin_token(config, folder)
        self._listener = foundation.bind(config)
        self._stack.callback(self._listener.close)
        self.port: int = self._listener.getsockname()[1]
        self._dsn = await self._stack.enter_async_context(open_database(config, join=False))
        async with open_store(config, dsn=self._dsn) as store:
            self.first_key = await foundation.prepare(config, store)
        try:
            self._stack.enter_context(metrics_.prepare(folder / foundation.METRICS_FOLDER))
        except OSError as exc:
            raise FareboxError(f"{folder / foundation.METRICS_FOLDER} can't be used: {exc.strerror}") from exc
        slots = range(config.server.workers)
        started = await asyncio.gather(*map(self._worker, slots), return_exceptions=True)
        for failed in started:
            if isinstance(failed, BaseException):
                raise failed
        self._keepers = [asyncio.create_task(self._keep(slot), name=f"worker {slot}") for slot in slots]

    async def reload(self, config: Config, source: Source) -> tuple[str, ...]:
        """Put `config`, read from `source`, in force in every worker; the settings that wait for the next start.

        One worker tries it first: if that one can't, nothing changes and `FareboxError` says why.
        """
        config, waiting = carry_over(self.config, config)
        told: set[Child] = set()
        for _ in range(_ROUNDS):
            for child in [child for child in self._ready.values() if child not in told]:
                told.add(child)
                await self._tell(child, source)
        self._source = source
        for warning in _warnings(config):
            if warning not in _warnings(self.config):
                self._log.warning(warning)
        self.config = config
        return waiting

    async def _tell(self, child: Child, source: Source) -> None:
        try:
            await child.reload(source, RELOAD_S)
        except WorkerFailed as failed:
            if source is not self._source and not isinstance(failed, WorkerSilent):
                raise
            # It is the odd one out, or hangs: its successor begins with what is in force.
            self._log.error("a worker did not take the new config and is replaced", reason=str(failed))
            child.kill()
        else:
            # Before the others are told: one that starts meanwhile begins with it.
            self._source = source

    def reloaded(self, result: str) -> None:
        """Have a reload counted, once for all."""
        for child in list(self._ready.values())[:1]:
            child.count(result)

    async def close(self) -> None:
        """Stop in order: the port, then the workers with their open calls and journals, and Postgres last."""
        for keeper in self._keepers:
            keeper.cancel()
        self._listener.close()
        for child in self._children.values():
            child.stop()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*(self._end(slot, child) for slot, child in list(self._children.items())))
        await self._stack.aclose()

    @property
    def base_url(self) -> str:
        """Where clients point their SDK, without the `/v1`."""
        return foundation.base_url(self.config, self.port)

    @property
    def demo(self) -> bool:
        """Whether the built-in demo provider answers (each worker has its own)."""
        return not self.config.providers

    # -- one slot --------------------------------------------------------------------------------

    async def _worker(self, slot: int) -> None:
        """Put a worker into `slot`, ready to serve what is in force. Raises `WorkerFailed`; then there is none."""
        source = self._source
        start = Start(slot, self._dsn, self._first, source, *self._address)
        child = self._children[slot] = await Child.spawn(start, self._listener)
        try:
            await child.ready(START_S)
            while source is not self._source:  # reloaded while it started
                source = self._source
                await child.reload(source, RELOAD_S)
        except WorkerFailed:
            await child.end(FAILED_S)
            del self._children[slot]
            raise
        self._ready[slot] = child

    async def _keep(self, slot: int) -> None:
        """Replace the worker in `slot` whenever it ends."""
        patience = Patience()
        while True:
            began = self._monotonic()
            code = await self._children[slot].wait()
            del self._children[slot], self._ready[slot]
            patience = patience.after(self._monotonic() - began)
            self._log.error(
                "a worker ended; another takes its place", worker=slot, exit=code, restart_in_s=patience.next_s
            )
            patience = await self._replace(slot, patience)

    async def _replace(self, slot: int, patience: Patience) -> Patience:
        while True:
            await asyncio.sleep(patience.next_s)
            patience = patience.longer()
            try:
                await self._worker(slot)
            except (WorkerFailed, OSError) as failed:
                self._log.error(
                    "a worker does not start", worker=slot, reason=str(failed), restart_in_s=patience.next_s
                )
                continue
            self._log.info("a worker took the place of one that ended", worker=slot)
            return patience

    async def _end(self, slot: int, child: Child) -> None:
        """Wait for a worker that was asked to stop, as long as that may take."""
        bound_s = self.config.server.shutdown_timeout_s + foundation.DRAIN_S + STOP_MARGIN_S
        if not await child.end(bound_s):
            self._log.error("a worker did not stop and was killed; the next start reads its journal", worker=slot)


def _warnings(config: Config) -> tuple[str, ...]:
    """What is to be said of a config once, not by each worker."""
    return config.warnings if config.providers else (*config.warnings, DEMO_ANSWERS)
