"""A real Prometheus that reads one farebox, started and asked over its API."""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from support.http import call

_START_S = 60.0
_SCRAPE_S = 0.5


class Prometheus:
    """Asks a running Prometheus. Values come as lists of floats, one list for each series, NaN left out."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def instant(self, expression: str) -> list[list[float]]:
        """The values now."""
        found = await self._ask("query", query=expression)
        if found["resultType"] == "scalar":
            return [[float(found["result"][1])]]
        return _finite([[series["value"]] for series in found["result"]])

    async def by(self, expression: str, label: str) -> dict[str, float]:
        """The values now, by a label."""
        found = await self._ask("query", query=expression)
        return {series["metric"][label]: float(series["value"][1]) for series in found["result"]}

    async def range(self, expression: str, seconds: int) -> list[list[float]]:
        """The values of each second up to now."""
        now = time.time()
        found = await self._ask("query_range", query=expression, start=now - seconds, end=now, step=1)
        return _finite([series["values"] for series in found["result"]])

    async def label_values(self, metric: str, label: str) -> set[str]:
        """What Grafana's `label_values(metric, label)` offers."""
        return set(await self._ask(f"label/{label}/values", **{"match[]": metric}))

    async def rules(self) -> dict[str, str]:
        """Each alert's health, by its name."""
        groups = (await self._ask("rules"))["groups"]
        return {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}

    async def scraped(self, times: int = 1) -> None:
        """Until it has read farebox, as it is now, so many times more."""
        expression = "count_over_time(up[10m])"
        goal = max((values[-1] for values in await self.instant(expression)), default=0) + times + 1
        async with asyncio.timeout(_START_S):
            while not any(values[-1] >= goal for values in await self.instant(expression)):
                await asyncio.sleep(_SCRAPE_S / 5)

    async def up(self) -> None:
        """Until it answers."""
        async with asyncio.timeout(_START_S):
            while True:
                try:
                    if (await call(self.port, "/-/ready", method="GET")).status == 200:
                        return
                except OSError:
                    pass
                await asyncio.sleep(0.05)

    async def _ask(self, what: str, **question: Any) -> Any:
        answer = await call(self.port, f"/api/v1/{what}?{urlencode(question)}", method="GET")
        said = json.loads(answer.body)
        assert said["status"] == "success", f"{question}: {said}"
        return said["data"]


def _finite(series: list[list[Any]]) -> list[list[float]]:
    found = [[value for _, text in values if math.isfinite(value := float(text))] for values in series]
    return [values for values in found if values]


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def prometheus(folder: Path, target: int, *, token: str, rules: Path) -> AsyncIterator[Prometheus]:
    """A Prometheus that reads `/metrics` at a port of this machine, gone at the end. Skips where none is installed."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed")
    folder.mkdir()
    (folder / "token").write_text(token)
    config = {
        "global": {"scrape_interval": f"{int(_SCRAPE_S * 1000)}ms", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": [
            {
                "job_name": "farebox",
                "authorization": {"type": "Bearer", "credentials_file": str(folder / "token")},
                "static_configs": [{"targets": [f"127.0.0.1:{target}"]}],
            }
        ],
    }
    file = folder / "prometheus.yml"
    file.write_text(json.dumps(config))  # JSON is YAML
    port = free_port()
    log = (folder / "log").open("wb")
    words = {
        "config.file": file,
        "storage.tsdb.path": folder / "data",
        "web.listen-address": f"127.0.0.1:{port}",
        "log.level": "warn",
    }
    process = await asyncio.create_subprocess_exec(
        program, *(f"--{name}={value}" for name, value in words.items()), stdout=log, stderr=log, env=os.environ
    )
    try:
        asked = Prometheus(port)
        await asked.up()
        yield asked
    finally:
        log.close()
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(10):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
