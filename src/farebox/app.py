"""The composition root: config -> objects -> one listening server, and the order in which it all starts and stops.

Start: database, migrations, keys, journal, providers, then the port. Stop: the port first, then open
calls (finish or cut at the deadline), then the ledger is drained, and the database goes last. Every
object is made here and handed to the constructors that need it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import socket
import time
from datetime import UTC, datetime
from pathlib import Path

import structlog
from aiohttp.web_request import BaseRequest

from farebox import keys, tokens
from farebox.admin import Admin
from farebox.config import Config, Provider
from farebox.database import open_store
from farebox.demo import DemoProvider
from farebox.errors import FareboxError
from farebox.estimator import Estimator
from farebox.journal import Journal
from farebox.keys import KeyRing
from farebox.ledger import Delivery, Ledger
from farebox.logs import exception_facts
from farebox.proxy import Clock, Proxy
from farebox.server import Reply, Server, make_server
from farebox.store import Store, is_refusal
from farebox.upstream import Upstream

ADMIN_TOKEN_FILE = "admin-token"  # noqa: S105 (a file name)
JOURNAL_FOLDER = "journal"
FIRST_KEY_NAME = "first"
_DRAIN_S = 10.0
"""How long a stop waits for the ledger to reach Postgres; the rest is drained at the next start."""


class App:
    """farebox, whole. `start`, then `wait`, then `close`."""

    def __init__(self, config: Config, *, clock: Clock | None = None) -> None:
        self.config = config
        self.clock = clock or Clock(time.monotonic, lambda: datetime.now(UTC))
        self.first_key: str | None = None
        """The secret of the key made at the first start, to be shown once."""
        self.admin_token_path: Path | None = None
        self.demo = False
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
        for warning in config.warnings:
            self._log.warning(warning)
        folder = Path(config.database.data_dir)
        _private_folder(folder)
        admin_token = config.server.admin_token or self._own_admin_token(folder)
        # Taken first and held to the end: a port in use is found out before anything is started.
        listener = _bind(config.server.host, config.server.port)
        stack.callback(listener.close)
        self.store = store = await stack.enter_async_context(open_store(config, join=False))
        for name in await store.migrate():
            self._log.info("database migrated", migration=name)
        self.first_key = await self._first_key(store)
        self.keyring = KeyRing(
            mode=config.auth.mode,
            size=config.auth.key_cache_size,
            poll_s=config.auth.key_poll_s,
            stale_s=config.auth.stale_s,
            find=store.find_key,
            changed_since=store.keys_changed_since,
            now=self.clock.now,
            monotonic=self.clock.monotonic,
        )
        await self.keyring.start()
        stack.push_async_callback(self.keyring.close)
        self.ledger = await self._open_ledger(folder, store)
        counter = tokens.Tokens()
        estimator = Estimator(counter)
        stack.callback(estimator.close)
        estimator.warm()
        if not config.providers:
            config = self.config = await self._with_demo(config, counter)
        upstreams = {}
        for provider in config.providers.values():
            upstreams[provider.name] = upstream = Upstream(provider)
            stack.push_async_callback(upstream.close)
        self.proxy = Proxy(
            config,
            identify=self.keyring.identify,
            begin=self.ledger.begin,
            record=self.ledger.record,
            upstreams=upstreams,
            estimate=estimator,
            clock=self.clock,
        )
        admin = Admin(
            config,
            token=admin_token,
            store=store,
            key_changed=self.keyring.apply,
            journal_ready=lambda: self.ledger.writable,
            now=self.clock.now,
        )

        async def handle(request: BaseRequest) -> Reply:
            if admin.serves(request.raw_path):
                return await admin.handle(request)
            return await self.proxy.handle(request)

        server = config.server
        self.server: Server = make_server(
            handle,
            keepalive_timeout_s=server.keepalive_timeout_s,
            header_bytes_max=server.header_bytes_max,
            headers_max=server.headers_max,
            connections_max=config.limits.connections_max,
        )
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(self.server, sock=listener, backlog=server.backlog)
        self.port: int = listener.getsockname()[1]

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
        host = self.config.server.host
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
        return f"http://{host}:{self.port}"

    async def _open_ledger(self, folder: Path, store: Store) -> Ledger:
        settings = self.config.ledger

        def on_fault(what: str, error: Exception) -> None:
            self._log.error("the journal's disk failed", what=what, **exception_facts(error))

        def open_journal(journal: Path) -> Journal:
            return Journal.open(
                journal,
                segment_bytes=settings.segment_mb << 20,
                max_bytes=settings.journal_max_mb << 20,
                fsync_ms=settings.fsync_ms,
                on_fault=on_fault,
            )

        ledger = Ledger(
            folder / JOURNAL_FOLDER,
            open_journal=open_journal,
            deliver=Delivery(
                store.insert_events, is_refusal=is_refusal, refused_file=folder / JOURNAL_FOLDER / "refused.jsonl"
            ),
            batch_rows_max=settings.drain_batch_rows_max,
            interval_s=settings.drain_interval_ms / 1000,
        )
        await ledger.open()
        self._stack.push_async_callback(ledger.close, _DRAIN_S)
        return ledger

    async def _first_key(self, store: Store) -> str | None:
        if self.config.auth.mode != "virtual" or await store.list_keys(include_revoked=True):
            return None
        secret = keys.mint_secret()
        try:
            await store.create_key(name=FIRST_KEY_NAME, secret_hash=keys.hash_secret(secret))
        except FareboxError:
            return None  # another replica was first
        return secret

    def _own_admin_token(self, folder: Path) -> str:
        path = self.admin_token_path = folder / ADMIN_TOKEN_FILE
        try:
            return path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            pass
        token = "fba-" + secrets.token_urlsafe(32)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(token + "\n")
        return token

    async def _with_demo(self, config: Config, counter: tokens.Tokens) -> Config:
        demo = DemoProvider(lambda text: counter.count(text, "o200k_base"))
        base_url = await demo.start()
        self._stack.push_async_callback(demo.close)
        self.demo = True
        self._log.warning("no provider is enabled: the built-in demo provider answers, an echo without a model")
        return config.with_provider("demo", Provider(name="demo", dialect="demo", base_url=base_url))


def _private_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as exc:
        raise FareboxError(f"database.data_dir {folder} can't be made: {exc.strerror}") from exc


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        infos = socket.getaddrinfo(host, port, family if ":" in host else 0, socket.SOCK_STREAM)
        family, kind, proto, _, address = infos[0]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as exc:
        hint = {
            errno.EADDRINUSE: "Is another farebox running? `farebox serve --port N` takes another port.",
            errno.EACCES: "`farebox serve --port N` takes another port.",
        }.get(exc.errno or 0, "server.host must be an address of this machine.")
        raise FareboxError(f"can't listen on {host} port {port}: {exc.strerror}. {hint}") from exc
    listener.setblocking(False)
    return listener
