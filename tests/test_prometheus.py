"""The dashboard with a real Prometheus: it reads a farebox under mixed traffic, and every query has something to say.

`pytest -s` shows each query with the number of its series.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from grafana import dashboard
from support import mixture, promql
from support.dashboard import concrete
from support.http import Answer, call
from support.postgres import PostgresServer
from support.process import Installation, installed, until
from support.prometheus import Prometheus, free_port, prometheus
from support.provider import FakeProvider, Received, Wire

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parent.parent
BOARD: dict[str, Any] = json.loads(dashboard.OUTPUT.read_text())
SPAN_S = 600
WAVES = 4
AGREE_S = 30
FLOOD_S = 120

Sums = dict[str, tuple[float, float, float]]
"""Requests, tokens and US dollars by a name."""


async def answer(asked: Prometheus, target: dict[str, Any]) -> list[list[float]]:
    """What a panel's query gives, asked the way Grafana does."""
    expression = concrete(target["expr"], rate_interval="1m", span=f"{SPAN_S}s")
    return await (asked.instant(expression) if target.get("instant") else asked.range(expression, 300))


async def transcript(asked: Prometheus) -> tuple[list[str], list[str]]:
    """Asks every panel and annotation; titles of those without data, and of those that are zero all over."""
    empty, zero = [], []
    notes = [{"title": note["name"], "targets": [{**note, "refId": "-"}]} for note in BOARD["annotations"]["list"]]
    for panel in (*BOARD["panels"], *notes):
        for target in panel.get("targets", ()):
            series = await answer(asked, target)
            largest = max((value for values in series for value in values), default=0.0)
            name = f"{panel['title']} [{target['refId']}]"
            print(f"{len(series):3} series, to {largest:12.6g}  {name:50} {concrete(target['expr'])}", file=sys.stdout)
            if not series:
                empty.append(name)
            elif not largest:
                zero.append(panel["title"])
    return empty, zero


async def ledger(database: str, column: str) -> Sums:
    """Requests, tokens and cost by a column, as the ledger first posted them, which is what counters count."""
    connection = await asyncpg.connect(database)
    try:
        rows = await connection.fetch(
            f"SELECT {column} AS label, count(*) AS requests, coalesce(sum(total_tokens), 0) AS tokens, "
            "coalesce(sum(cost_usd), 0) AS cost FROM farebox.usage_entries WHERE posting_no = 1 GROUP BY 1"
        )
    finally:
        await connection.close()
    return {row["label"]: (float(row["requests"]), float(row["tokens"]), float(row["cost"])) for row in rows}


async def table(asked: Prometheus, label: str) -> Sums:
    """The same as the dashboard shows it."""
    [panel] = [panel for panel in BOARD["panels"] if panel["title"] == f"By {label}, this range"]
    columns = [await asked.by(concrete(target["expr"], span=f"{SPAN_S}s"), label) for target in panel["targets"]]
    requests, tokens, cost = columns
    return {name: (number, tokens.get(name, 0.0), cost.get(name, 0.0)) for name, number in requests.items()}


@pytest.mark.parametrize("workers", [1, 2])
async def test_every_panel_has_data(postgres: PostgresServer, database: str, tmp_path: Path, workers: int) -> None:
    """Under traffic of every kind each query of the dashboard gives data other than zero, its sums agree with Postgres
    to the last digit, the variables offer what was used, every alert rule can be evaluated, and what is lost alarms."""
    arrived, looked = asyncio.Event(), asyncio.Event()

    async def answers(received: Received, wire: Wire) -> None:
        if b"gpt-held" in received.body:
            arrived.set()
            await looked.wait()
        await mixture.answers(received, wire)

    async with FakeProvider(default=answers) as provider:
        settings = mixture.settings(str(tmp_path / "data"), database, provider, free_port())
        settings["server"]["workers"] = workers
        async with installed(tmp_path, settings) as farebox:
            process = await farebox.start()
            settings["server"]["port"] = process.port
            farebox.write(settings)
            keys = [farebox.key]
            for name in ("team-a", "team-b"):
                made = await farebox.run("keys", "create", name)
                assert made.code == 0, made
                keys.append(made.output.split()[0])
            rules = ROOT / "grafana" / "alerts.yml"
            place = tmp_path / "prometheus"
            async with prometheus(place, process.port, token=mixture.METRICS_TOKEN, rules=rules) as asked:
                await asked.scraped()
                for _ in range(WAVES):
                    await mixture.wave(process.port, keys)
                    await asked.scraped(2)
                await reload(farebox, process)
                await agrees_with_the_ledger(asked, database)
                # Corrections and overruns are the database's; a farebox that starts tells them.
                await reprice(farebox, settings)
                await overrun(database)
                assert await process.stop() == 0
                again = await farebox.start()
                for _ in range(WAVES):
                    await mixture.wave(again.port, keys)
                    await asked.scraped(2)
                await lose_events(asked, postgres, again.port, farebox.key)
                # A call that is open, and held for, as long as it takes to be seen.
                waiting = await opened(again.port, farebox.key, arrived)
                await asked.scraped(4)
                empty, zero = await transcript(asked)
                looked.set()
                assert (await waiting).status == 200
                assert (empty, zero) == ([], [])
                await offers_what_was_used(asked)
                assert set((await asked.rules()).values()) == {"ok"}
                assert await again.stop() == 0


async def reload(farebox: Installation, process: Any) -> None:
    """One reload that goes well and one of a faulty file."""
    for text, said in ((farebox.config.read_text(), "config reloaded"), ("server: [", "the config has a fault")):
        farebox.config.write_text(text)
        before = len(process.log(said))
        process.signal(signal.SIGHUP)
        await until(lambda said=said, before=before: len(process.log(said)) > before, f"it says: {said}")  # type: ignore[misc]
    farebox.write(farebox.settings)


async def reprice(farebox: Installation, settings: dict[str, Any]) -> None:
    """Correct what was spent: one provider's prices were too low, another's too high."""
    for name, glob, factor in (("up", "gpt-*", 2), ("claude", "claude-*", 0.5)):
        prices = settings["providers"][name]["prices"][glob]
        settings["providers"][name]["prices"] = {glob: {what: usd * factor for what, usd in prices.items()}}
    farebox.write(settings)
    ran = await farebox.run("prices", "reprice", "--since", "1h", "--format", "json")
    assert ran.code == 0 and json.loads(ran.output)["corrected"] > 0, ran


async def overrun(database: str) -> None:
    """As if a budget's calls had cost a dollar more than was held for them."""
    connection = await asyncpg.connect(database)
    try:
        done = await connection.execute("UPDATE farebox.budget_window SET overrun_usd = overrun_usd + 1")
    finally:
        await connection.close()
    assert done != "UPDATE 0"


async def lose_events(asked: Prometheus, postgres: PostgresServer, port: int, key: str) -> None:
    """Let the journal run full while Postgres is away; calls pass unrecorded then, and the alert fires."""

    async def alarm() -> bool:
        return bool(await asked.instant('ALERTS{alertname="FareboxEventsLost",alertstate="firing"}'))

    assert not await alarm()
    await asyncio.to_thread(postgres.stop)
    try:
        async with asyncio.timeout(FLOOD_S):
            await mixture.flood(port, key, alarm)
    finally:
        await asyncio.to_thread(postgres.start)


async def opened(port: int, key: str, arrived: asyncio.Event) -> asyncio.Task[Answer]:
    """A call with a budget that has reached the provider. Until the database and the journal's room are back where the
    call comes in, it is refused; each worker recovers for itself, so another call's success says nothing of it."""
    async with asyncio.timeout(FLOOD_S):
        while True:
            held = asyncio.create_task(call(port, mixture.CHAT, mixture.request("gpt-held", streamed=False), key=key))
            reached = asyncio.create_task(arrived.wait())
            await asyncio.wait((held, reached), return_when=asyncio.FIRST_COMPLETED)
            if arrived.is_set():
                return held
            reached.cancel()
            assert (await held).status == 503
            await asyncio.sleep(0.2)


async def agrees_with_the_ledger(asked: Prometheus, database: str) -> None:
    """Requests, tokens and spend of the dashboard are the sums of the rows, for each key and provider and in all."""
    rows: list[Sums] = []
    shown: list[Sums] = [{}]
    deadline = asyncio.get_running_loop().time() + AGREE_S
    while not same(rows, shown):
        assert asyncio.get_running_loop().time() < deadline, f"shown {shown}, in the ledger {rows}"
        await asyncio.sleep(0.2)
        rows = [await ledger(database, column) for column in ("key_name", "provider")]
        shown = [await table(asked, label) for label in ("key", "provider")]
    [whole] = [panel for panel in BOARD["panels"] if panel["title"] == "Spend, this range"]
    [[total]] = await answer(asked, whole["targets"][0])
    assert total == pytest.approx(sum(cost for _, _, cost in rows[0].values()), rel=1e-12)


def same(some: list[Sums], others: list[Sums]) -> bool:
    """Whether the sums are equal, as far as floats can say."""
    return len(some) == len(others) and all(
        one.keys() == other.keys() and all(other[name] == pytest.approx(sums, rel=1e-12) for name, sums in one.items())
        for one, other in zip(some, others, strict=True)
    )


async def offers_what_was_used(asked: Prometheus) -> None:
    """Each variable of the dashboard offers what traffic had."""
    used = {"provider": "router", "model": "gpt-stream", "key": "team-b"}
    for variable in BOARD["templating"]["list"]:
        if variable["type"] == "query":
            metric, _, label = variable["definition"].removeprefix("label_values(").removesuffix(")").rpartition(", ")
            assert promql.metrics(metric)
            assert used[label] in await asked.label_values(concrete(metric), label)
