"""What a budget costs a call: `python tests/benchmarks/budget_cost.py [ROUNDS [CALLS]]`. Linux.

A farebox of its own on loopback, a scripted provider, and two keys that differ in one thing: one has a budget (strict,
in dollars). Rounds of calls with either key take turns, so that what else the machine does falls on both. CPU is that
of farebox's process, for each call; the last line is the ratio of their medians. Whole answers and streams apart.
Postgres works as well, for each budgeted call a reserve and a settlement: see reserve_rate.py. Nothing is asserted.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from farebox import keys
from farebox.store import Store
from farebox.store.budgets import BudgetStore
from support.http import RawClient
from support.money import FREE_INPUT, answered, chat, settings, spoken
from support.postgres import PostgresServer
from support.process import installed
from support.provider import FakeProvider, Received, Wire, plain, stream
from support.traffic import CHAT

CLIENTS = 8
OUTPUT = 200
WHOLE = answered(OUTPUT)
FRAMES = spoken(OUTPUT, per_frame=4)
TICKS = os.sysconf("SC_CLK_TCK")


async def answers(received: Received, wire: Wire) -> None:
    script = stream(FRAMES) if json.loads(received.body)["stream"] else plain(WHOLE)
    await script(received, wire)


def cpu_s(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


async def calls(port: int, key: str, body: bytes, number: int) -> None:
    async def some() -> None:
        async with RawClient(port) as client:
            for _ in range(number // CLIENTS):
                await client.send("POST", CHAT, {"Authorization": f"Bearer {key}"}, body)
                answer = await client.answer()
                assert answer.status == 200, answer

    await asyncio.gather(*(some() for _ in range(CLIENTS)))


async def two_keys(database: str) -> dict[str, str]:
    """Secrets of a key without a budget and of one with."""
    made: dict[str, str] = {}
    store = Store(database)
    await store.open()
    for name in ("without", "with"):
        made[name] = keys.mint_secret()
        record = await store.create_key(name=name, secret_hash=keys.hash_secret(made[name]))
        if name == "with":
            budget = {"limit_usd": Decimal(1_000_000), "window": "month", "admission": "strict"}
            await BudgetStore(store).set_key_limits(record.id, name, [budget], None, None, None, "benchmark")
    await store.close()
    return made


async def compare(port: int, pid: int, made: dict[str, str], what: str, rounds: int, number: int) -> None:
    body = json.dumps(chat(1_000, stream=what == "streams")).encode()
    took: dict[str, list[float]] = {name: [] for name in made}
    for key in made.values():
        await calls(port, key, body, number)  # warm
    for turn in range(rounds):
        for name in sorted(made, reverse=turn % 2 == 0):
            before = cpu_s(pid)
            await calls(port, made[name], body, number)
            took[name].append((cpu_s(pid) - before) / number * 1e6)
    median = {name: statistics.median(values) for name, values in took.items()}
    for name in ("without", "with"):
        spread = f"{min(took[name]):.0f} to {max(took[name]):.0f}"
        print(f"{what:14} {name:8} a budget {median[name]:8.0f} µs CPU a call   ({spread})")
    print(f"{what:14} ratio {median['with'] / median['without']:.2f}")


async def main(rounds: int, number: int) -> None:
    server = PostgresServer()
    try:
        server.start()
        async with server.database() as database, FakeProvider(answers) as provider:
            with tempfile.TemporaryDirectory() as folder:
                config: dict[str, Any] = settings(database, Path(folder) / "data", provider, prices=FREE_INPUT)
                async with installed(Path(folder), config) as farebox:
                    made = await two_keys(database)
                    process = await farebox.start()
                    for what in ("whole answers", "streams"):
                        await compare(process.port, process.pid, made, what, rounds, number)
                    await process.stop()
    finally:
        server.delete()


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    asyncio.run(main(*(given + [10, 400][len(given) :])))
