"""What is measured: nginx, a bare aiohttp proxy, and farebox with everything on."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from benchmarks.overhead import machine
from farebox import keys
from farebox.store import Store
from farebox.store.budgets import BudgetStore
from support.postgres import PostgresServer

HERE = Path(__file__).parent
_NGINX = """
worker_processes 1; daemon off; pid {work}/pid; error_log {work}/error.log warn; worker_rlimit_nofile 16384;
events {{ worker_connections 12000; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 300s; tcp_nodelay on;
  client_max_body_size 64m; client_body_buffer_size 2m; client_body_temp_path {work}/body;
  proxy_temp_path {work}/proxy; fastcgi_temp_path {work}/f; uwsgi_temp_path {work}/u; scgi_temp_path {work}/s;
  upstream mock {{ server 127.0.0.1:{mock}; keepalive 6000; keepalive_requests 1000000000; keepalive_timeout 300s; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://mock; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
      proxy_set_header Authorization "Bearer sk-upstream"; proxy_read_timeout 600s;
    }}
  }}
}}
"""


@dataclass
class Target:
    """A running proxy, or the provider itself.

    `secrets` are sent in turn as bearer tokens; `process` None: nothing whose CPU is wanted.
    """

    name: str
    port: int
    process: machine.Process | None = None
    secrets: Sequence[str] = ("sk-nobody",)
    postgres: int | None = None
    """The pid of the Postgres that works for it."""

    def also(self, name: str, secrets: Sequence[str]) -> Target:
        """The same process, asked with other keys."""
        return Target(name, self.port, self.process, secrets, self.postgres)


@dataclass
class Bench:
    """Starts things, each on its core, and ends them all: `close`."""

    folder: Path
    tree: Path | None = None
    """Another working copy of farebox to measure; None: the one this program belongs to."""
    disk: Path | None = None
    """Where Postgres keeps its files; None: in memory, where there is room."""
    databases: AsyncExitStack = field(default_factory=AsyncExitStack)
    running: list[machine.Process] = field(default_factory=list)
    runner: asyncio.Runner = field(default_factory=asyncio.Runner)
    _server: PostgresServer | None = None

    def __post_init__(self) -> None:
        self.proxy_cores = machine.CORES[-1:]
        self.other_cores = machine.CORES[:-1] or machine.CORES
        os.sched_setaffinity(0, self.other_cores)  # Postgres and the load inherit it
        self.mock_port = machine.free_port()
        mock = self._start("mock", [machine.PYTHON, str(HERE / "mock.py"), str(self.mock_port)], self.other_cores)
        mock.until_listening(self.mock_port)

    def close(self) -> None:
        for process in reversed(self.running):
            process.stop()
        self.runner.run(self.databases.aclose())
        self.runner.close()
        if self._server is not None:
            self._server.delete()

    def direct(self) -> Target:
        """The provider itself: what the proxies add to."""
        return Target("direct", self.mock_port)

    def nginx(self) -> Target | None:
        """nginx, passing bytes on; None where it is not installed."""
        program = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin")
        if program is None:
            return None
        work, port = self._folder("nginx"), machine.free_port()
        config = work / "nginx.conf"
        config.write_text(_NGINX.format(work=work, port=port, mock=self.mock_port))
        process = self._start("nginx", [program, "-c", str(config), "-p", str(work), "-e", str(work / "start.log")])
        process.until_listening(port)
        return Target("nginx", port, process)

    def bare(self, *, counts: Path | None = None) -> Target:
        """The plainest aiohttp proxy; with its function calls counted, where `counts` says into which file."""
        port = machine.free_port()
        upstream = f"http://127.0.0.1:{self.mock_port}"
        process = self._start("bare", [*interpreter(counts), str(HERE / "bare.py"), str(port), upstream])
        process.until_listening(port)
        return Target("bare", port, process)

    def farebox(self, name: str = "farebox", *, workers: int = 1, cores: Sequence[int] | None = None) -> Farebox:
        """farebox with everything on, and a Postgres of its own."""
        return Farebox(self, name, workers, cores or self.proxy_cores)

    def stop(self, targets: Iterable[Target]) -> None:
        """End these; what serves under several names, once."""
        for process in {id(one.process): one.process for one in targets if one.process is not None}.values():
            process.stop()

    def others(self, target: Target) -> list[int]:
        """The processes that were started here and still run, that of `target` left out."""
        return [process.pid for process in self.running if process is not target.process and not process.ended]

    @property
    def postgres(self) -> PostgresServer:
        """One server for all databases, beside the load."""
        if self._server is None:
            self._server = PostgresServer(self.disk)
            self._server.start()
        return self._server

    def _folder(self, name: str) -> Path:
        # Several parts of one run may start the same thing.
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))

    def _start(
        self, name: str, command: list[str], cores: Sequence[int] | None = None, env: dict[str, str] | None = None
    ) -> machine.Process:
        process = machine.start(command, cores or self.proxy_cores, self.folder / f"{name}.log", env)
        self.running.append(process)
        return process


class Farebox:
    """One farebox: a config, a database, keys. `start` it, as often as one likes."""

    def __init__(self, bench: Bench, name: str, workers: int, cores: Sequence[int]) -> None:
        self._bench, self._name, self._cores = bench, name, cores
        self._folder = bench._folder(name)
        self.dsn = bench.runner.run(bench.databases.enter_async_context(bench.postgres.database()))
        self.port = machine.free_port()
        self.config = self._folder / "config.json"  # JSON is YAML
        self.counts: Path | None = None
        """Where to write how many functions were called; None: they are not counted."""
        self.settings: dict[str, Any] = {
            "database": {"url": self.dsn, "data_dir": str(self._folder / "data")},
            "server": {"port": self.port, "workers": workers, "admin_token": "admin-token-of-the-benchmark"},
            "providers": {
                "mock": {
                    "dialect": "openai",
                    "base_url": f"http://127.0.0.1:{bench.mock_port}/v1",
                    "api_key": "sk-upstream",
                    "connections_max": 6000,
                    "prices": {"*": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}},
                }
            },
            "limits": {"requests_in_flight_max": 7000, "connections_max": 7000, "body_mb_max": 64},
            "log": {"level": "warning"},
        }
        self.write()

    def write(self) -> None:
        """Put the config there: a running farebox follows it."""
        self.config.write_text(json.dumps(self.settings))

    def start(self) -> Target:
        """Run it, with one key that has no budget, and wait until it listens and has loaded its tokenizer."""
        (secret,) = self.new_keys(1)
        process = self.spawn()
        process.until_listening(self.port)
        process.until_quiet()
        return Target(self._name, self.port, process, [secret], self._postmaster())

    def spawn(self) -> machine.Process:
        """Run it without waiting for anything."""
        tree = self._bench.tree
        env = {"PYTHONPATH": str(tree / "src")} if tree else {}
        program = ["farebox"] if self.counts is not None else ["-m", "farebox"]
        command = [*interpreter(self.counts), *program, "serve", "--config", str(self.config)]
        return self._bench._start(self._name, command, self._cores, env)

    def new_keys(self, number: int, *, budget_usd: int | None = None) -> list[str]:
        """Secrets of new keys; with a budget, each has one of so much a month."""
        return self._bench.runner.run(self._new_keys(number, budget_usd))

    async def _new_keys(self, number: int, budget_usd: int | None) -> list[str]:
        store = Store(self.dsn)
        await store.open()
        secrets = [keys.mint_secret() for _ in range(number)]
        for place, secret in enumerate(secrets):
            name = f"{'budgeted' if budget_usd else 'plain'}-{place}-{os.urandom(4).hex()}"
            record = await store.create_key(name=name, secret_hash=keys.hash_secret(secret))
            if budget_usd:
                budget = {"limit_usd": Decimal(budget_usd), "window": "month"}
                await BudgetStore(store).set_key_limits(record.id, name, [budget], None, None, None, "benchmark")
        await store.close()
        return secrets

    def _postmaster(self) -> int:
        (found,) = self._bench.postgres.folder.glob("**/postmaster.pid")
        return int(found.read_text().split("\n", 1)[0])


def interpreter(counts: Path | None) -> list[str]:
    """Python, or Python that counts function calls into a file."""
    return [machine.PYTHON] if counts is None else [machine.PYTHON, str(HERE / "counted.py"), str(counts)]
