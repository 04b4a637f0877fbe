"""The composition root: config -> objects -> one listening server, and the order in which it all starts and stops.

Start: database, migrations, keys, journal, providers, then the port. Stop: the port first, then open
calls (finish or cut at the deadline), then the ledger is drained, and the database goes last. Every
object is made here and handed to the constructors that need it. As one of several workers it is
given the port and the database; what is there once for all of them is the supervisor's.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import structlog

from farebox import foundation, tokens
from farebox.accepting import Accepting, accept
from farebox.admin import Admin
from farebox.admission import Learned
from farebox.budgets import Drain, Lives, Settings, boot_id, fields_of, opened
from farebox.budgets.alerts import Alerts
from farebox.budgets.webhook import webhook_of
from farebox.config import Config, carry_over
from farebox.database import open_store
from farebox.demo import MODEL as DEMO_MODEL
from farebox.demo import DemoProvider
from farebox.errors import FareboxError
from farebox.estimator import Estimator
from farebox.generations import DEMO_ANSWERS, Generations
from farebox.keys import KeyRing, holds_key
from farebox.ledger import Delivery, Ledger, opener
from farebox.metrics import Metrics, Sources, open_storage
from farebox.models import Catalogue, Refresher, fetch, known_models
from farebox.objects.registry import Objects
from farebox.pricebook import Prices
from farebox.proxy import Clock, Proxy
from farebox.proxy.guard import Guard
from farebox.proxy.models import answer
from farebox.proxy.ownership import Ownership
from farebox.proxy.planning import Planner
from farebox.recording import Recorder
from farebox.records import KeyRecord
from farebox.server import Reply, Request, Server, make_server
from farebox.store import AlertStore, ModelLists, ObjectStore, PriceLists, Store, is_refusal

_TOKENIZER_AFTER_S = 1.0
"""After the start. A call that is to be counted before has its tokenizer loaded then."""


class App:
    """farebox, whole. `start`, then `reload` as often as one likes, then `close`.

    `counter` counts tokens; it may be shared by the apps of a process.
    `slot`: this is a worker, the one of that number (from 0); then `listener` is the port, taken, and
    `dsn` the database, migrated. Without it all of that is found or made here.
    """

    def __init__(
        self,
        config: Config,
        *,
        clock: Clock | None = None,
        counter: tokens.Tokens | None = None,
        slot: int | None = None,
        listener: socket.socket | None = None,
        dsn: str | None = None,
    ) -> None:
        self.config = config
        """The config in force; with the demo provider in it, if that answers."""
        self.clock = clock or Clock(time.monotonic, partial(datetime.now, UTC))
        self.slot = slot
        self.first_key: str | None = None
        """The secret of the key made at the first start, to be shown once."""
        self.admin_token_path: Path | None = None
        self._counter = counter or tokens.Tokens()
        self._listener = listener
        self._dsn = dsn
        self._stack = contextlib.AsyncExitStack()
        self._log = structlog.get_logger()

    async def start(self) -> None:
        """Bring everything up. Raises `FareboxError` with what to do when something can't be."""
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise

    async def _start(self) -> None:
        config, stack = self.config, self._stack
        if self.slot is None:
            for warning in config.warnings:
                self._log.warning(warning)
        folder = foundation.data_folder(config)
        admin_token, self.admin_token_path = foundation.admin_token(config, folder)
        # Taken first and held to the end: a port in use is found out before anything is started.
        listener = self._listener or foundation.bind(config)
        stack.callback(listener.close)
        self.store = store = await stack.enter_async_context(open_store(config, join=False, dsn=self._dsn))
        if self.slot is None:
            self.first_key = await foundation.prepare(config, store)
        self.keyring = await self._open_keyring(store)
        self.metrics = self._open_metrics(folder, store)
        # Before the ledger, so that it ends after it: when all is settled nothing of this process is held.
        drain = Drain(
            lambda timeout_s: self.ledger.settled(timeout_s),
            lambda: not self.ledger.backlog.events,
            lambda: self.ledger.lost,
        )
        self.budgets = await stack.enter_async_context(opened(config, store, drain))
        self.ledger = await self._open_ledger(folder, store)
        await self.budgets.start(Lives(self.ledger.folder, boot_id(), whole=self.ledger.whole))
        counter = self._counter
        estimator = Estimator(counter)
        stack.callback(estimator.close)
        # Not before the first calls: it takes the interpreter for a third of a second, in pieces.
        stack.callback(asyncio.get_running_loop().call_later(_TOKENIZER_AFTER_S, estimator.warm).cancel)
        # The demo provider is each worker's own: it is small, and so none depends on another's.
        self._generations = Generations(lambda: DemoProvider(lambda text: counter.count(text, "o200k_base")))
        stack.push_async_callback(self._generations.close)
        self._snapshot = await self._generations.make(config)
        config = self.config = self._snapshot.config
        if self.demo and self.slot is None:
            self._log.warning(DEMO_ANSWERS)
        self.prices = await self._open_prices(config, store)
        self.models = await self._open_models(config, store)
        self.objects = await self._open_objects(store)
        self.alerts = await self._open_alerts(config, store)
        self.proxy = self._make_proxy(estimator)
        self.admin = self._make_admin(admin_token, store, counter)
        server = config.server
        self.server: Server = make_server(
            self._handle,
            keepalive_timeout_s=server.keepalive_timeout_s,
            header_bytes_max=server.header_bytes_max,
            headers_max=server.headers_max,
            connections_max=config.limits.connections_max,
            refused=self.metrics.refused,
        )
        await self.metrics.start()
        self.port: int = listener.getsockname()[1]
        self._listening = await self._listen(listener)

    async def reload(self, config: Config) -> tuple[str, ...]:
        """Put `config` in force, whole and at once; the settings of it that wait for the next start.

        Calls under way keep what they began with. Raises what making a provider's client raises, and
        `FareboxError` for a config that takes the last provider away; then nothing has changed. One reload at a time.
        """
        if not (config.providers or self.demo):
            # Half a file may be a config too. An echo must not answer in place of a model.
            raise FareboxError("no provider would be left; to go back to the demo provider, start farebox anew")
        config, waiting = carry_over(self.config, config)
        token, path = foundation.admin_token(config, foundation.data_folder(config))
        snapshot = await self._generations.make(config)
        # From here on nothing is awaited and nothing fails: no request sees half of it.
        new_warnings = [warning for warning in config.warnings if warning not in self.config.warnings]
        self.config, self.admin_token_path = snapshot.config, path
        self.keyring.change(size=config.auth.key_cache_size, poll_s=config.auth.key_poll_s, stale_s=config.auth.stale_s)
        self.server.change(
            keepalive_timeout_s=config.server.keepalive_timeout_s,
            header_bytes_max=config.server.header_bytes_max,
            headers_max=config.server.headers_max,
            connections_max=config.limits.connections_max,
        )
        self.admin.change(snapshot.config, token=token)
        self.prices.change(snapshot.config.providers, poll_s=config.metering.price_poll_s)
        self.models.providers_changed(snapshot.config)
        self.budgets.change(fields_of(snapshot.config.budgets), Settings.of(snapshot.config.metering))
        self.alerts.change(webhook_of(snapshot.config.alerts), snapshot.config.alerts.tries_max)
        self._generations.retire(self.proxy.swap(snapshot))
        self._snapshot = snapshot
        if self.slot is None:
            for warning in new_warnings:
                self._log.warning(warning)
        return waiting

    def reloaded(self, result: str) -> None:
        """Count a reload that went `ok` or `failed`."""
        self.metrics.reloaded(result)

    async def close(self) -> None:
        """Stop in order; every open call ends as a row."""
        self._listening.close()
        self.server.pre_shutdown()
        await self.proxy.close(self.config.server.shutdown_timeout_s)
        await self.server.shutdown(1.0)
        await self._stack.aclose()

    @property
    def base_url(self) -> str:
        """Where clients point their SDK, without the `/v1`."""
        return foundation.base_url(self.config, self.port)

    @property
    def demo(self) -> bool:
        """Whether the built-in demo provider answers."""
        return self._generations.has_demo(self._snapshot)

    def _make_proxy(self, estimator: Estimator) -> Proxy:
        learned = Learned()
        recorder = Recorder(self.ledger, self.metrics, learned, self.prices, self.budgets.recorded)
        return Proxy(
            self._snapshot,
            identify=self.keyring.authenticate,
            recall=self.keyring.recall,
            begin=self.ledger.begin,
            record=recorder.record,
            ordinary=recorder,
            estimate=estimator,
            price=self.prices.price,
            answer_models=partial(answer, self.models),
            ownership=Ownership(self.objects),
            clock=self.clock,
            guard=Guard(
                self.budgets,
                Planner(lambda: self.prices.pricer, learned, estimator.refine),
                self.clock,
                self.metrics.warned,
            ),
        )

    def _make_admin(self, token: str, store: Store, counter: tokens.Tokens) -> Admin:
        return Admin(
            self.config,
            token=token,
            store=store,
            metrics=self.metrics,
            models=self.models,
            tokens=counter,
            pricer=lambda: self.prices.pricer,
            identify=self.keyring.identify,
            key_changed=self.keyring.apply,
            budgets_changed=self.budgets.refresh,
            journal_ready=lambda: self.ledger.writable,
            now=self.clock.now,
        )

    def _handle(self, request: Request) -> Awaitable[Reply]:
        target = request.raw_path
        if not target.startswith("/v1/") and self.admin.serves(target):
            return self.admin.handle(request)
        return self.proxy.handle(request)

    async def _listen(self, listener: socket.socket) -> asyncio.Server | Accepting:
        backlog = self.config.server.backlog
        if self.slot is None:
            return await accept(listener, self.server, backlog=backlog)
        return Accepting(listener, self.server, backlog=backlog, held=lambda: len(self.server.connections))

    async def _open_keyring(self, store: Store) -> KeyRing:
        auth = self.config.auth
        keyring = KeyRing(
            mode=auth.mode,
            size=auth.key_cache_size,
            poll_s=auth.key_poll_s,
            stale_s=auth.stale_s,
            find=self._find_key,
            changed_since=store.keys_changed_since,
            now=self.clock.now,
            monotonic=self.clock.monotonic,
        )
        await keyring.start()
        self._stack.push_async_callback(keyring.close)
        return keyring

    async def _find_key(self, secret_hash: bytes) -> KeyRecord | None:
        """A key that is new here, and with it its budgets: it must not spend while they wait for a poll."""
        record = await self.store.find_key(secret_hash)
        if record is not None:
            await self.budgets.book.refresh()
        return record

    async def _open_prices(self, config: Config, store: Store) -> Prices:
        prices = Prices(PriceLists(store), config.providers, poll_s=config.metering.price_poll_s, now=self.clock.now)
        await prices.start()
        self._stack.push_async_callback(prices.close)
        return prices

    async def _open_models(self, config: Config, store: Store) -> Catalogue:
        lists, now = ModelLists(store), self.clock.now
        models = Catalogue(
            config,
            lists=lists,
            refresher=Refresher(lists, fetch, now),
            pricer=lambda: self.prices.pricer,
            known=known_models(DEMO_MODEL),
            now=now,
        )
        await models.start()
        self._stack.push_async_callback(models.close)
        return models

    async def _open_objects(self, store: Store) -> Objects:
        objects = Objects(ObjectStore(store))
        await objects.start()
        self._stack.push_async_callback(objects.close)
        return objects

    async def _open_alerts(self, config: Config, store: Store) -> Alerts:
        alerts = Alerts(
            AlertStore(store),
            webhook_of(config.alerts),
            tries_max=config.alerts.tries_max,
            reached=self.metrics.reached,
            now=self.clock.now,
        )
        await alerts.start()
        self._stack.push_async_callback(alerts.close)
        return alerts

    async def _adopted(self, journal: Path, whole: bool) -> None:
        """Another process's journal is in Postgres: what it held beyond that, if it was whole, was never sent."""
        await self.budgets.adopt(Lives(journal, boot_id(), whole=whole))

    def _open_metrics(self, folder: Path, store: Store) -> Metrics:
        settings, alerts = self.config.metrics, AlertStore(store)
        sources = Sources(
            in_flight=lambda: self.proxy.in_flight,
            backlog=lambda: self.ledger.backlog,
            lost=lambda: self.ledger.lost,
            # They are the database's, the same for all workers.
            corrections=store.cost_corrections if not self.slot else None,
            overrun=alerts.overrun if not self.slot else None,
            budgets=alerts.gauges,
        )
        metrics = Metrics(
            storage=open_storage(settings, folder / foundation.METRICS_FOLDER, self.slot),
            label_values_max=settings.label_values_max,
            is_secret=holds_key,
            sources=sources,
            version=version("farebox"),
        )
        self._stack.push_async_callback(metrics.close)
        return metrics

    async def _open_ledger(self, folder: Path, store: Store) -> Ledger:
        settings = self.config.ledger
        journals = folder / foundation.JOURNAL_FOLDER
        ledger = Ledger(
            journals,
            open_journal=opener(settings),
            deliver=Delivery(store.insert_events, is_refusal=is_refusal, refused_file=journals / "refused.jsonl"),
            batch_rows_max=settings.drain_batch_rows_max,
            interval_s=settings.drain_interval_ms / 1000,
            cut_off=self.metrics.observe,
            stored=lambda: self.budgets.wake(),
            adopted=self._adopted,
        )
        await ledger.open()
        self._stack.push_async_callback(ledger.close, foundation.DRAIN_S)
        return ledger
