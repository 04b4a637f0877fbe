"""Reserves per second, and how long one takes: `python tests/benchmarks/reserve_rate.py [SECONDS [CALLERS]]`.

Callers reserve, begin, record and start again, each at once, through the service with its coalescing, journal and
drain, on one hot key and spread over 1,000 keys, against a real PostgreSQL (FAREBOX_TEST_POSTGRES names its
programs). Each call is counted by the key's budget, a team's and one of all, so three counters move; the last line
of each leaves the others out. What is printed: reserves per second, the reserve call as its caller waits for it
(p50, p99), and how many went in one statement. One process; nothing is asserted.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from decimal import Decimal
from pathlib import Path
from uuid import UUID

sys.path.insert(0, str(Path(__file__).parents[1]))

from farebox.budgets import Settings
from farebox.records import Caller
from farebox.store import Store
from farebox.store.budgets import BudgetStore
from support.budgets import Replica, replica
from support.events import event
from support.postgres import PostgresServer

SETTINGS = Settings(reserve_timeout_s=30.0)
WARM_UP_S = 0.5


async def define(database: str, scopes: tuple[str, ...]) -> None:
    store = Store(database)
    await store.open()
    for scope in scopes:
        fields = {"scope": scope, "window": "total", "limit_usd": Decimal(10**9), "admission": "strict", "wait_s": 0}
        await BudgetStore(store).put_budget(scope, fields, "api", "benchmark")
    await store.close()


async def one(running: Replica, caller: Caller, took: list[float]) -> None:
    """One call, from its reserve to its row."""
    ask, applied = running.ask_of("0.01", caller)
    began = time.perf_counter()
    grant = await running.budgets.reserve(ask, wait_s=0, applied=applied)
    took.append(time.perf_counter() - began)
    assert grant.state == "open"
    ids = [str(one.budget.id) for one in applied]
    running.ledger.begin(ask.id, ask.facts)
    running.ledger.record(event(id=ask.id, cost_usd=Decimal("0.005"), usage_source="provider", budget_ids=ids))


async def race(database: str, keys: int, callers: int, seconds: float, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with replica(database, Path(folder), interval_s=0.02, settings=SETTINGS) as running:
            people = [
                Caller(kind="virtual", key_id=UUID(int=n + 1), key_name=f"key-{n}", team=f"team-{n % 10}")
                for n in range(keys)
            ]
            took: list[float] = []
            ends = asyncio.get_running_loop().time() + WARM_UP_S

            async def again(number: int) -> None:
                while asyncio.get_running_loop().time() < ends:
                    await one(running, people[number % keys], took)
                    number += callers

            await asyncio.gather(*(again(number) for number in range(callers)))
            took.clear()
            began = asyncio.get_running_loop().time()
            ends = began + seconds
            await asyncio.gather(*(again(number) for number in range(callers)))
            lasted = asyncio.get_running_loop().time() - began
            cuts = [1000 * cut for cut in statistics.quantiles(took, n=100)]
            print(f"{name:34} {len(took) / lasted:8.0f} / s   p50 {cuts[49]:7.2f} ms   p99 {cuts[98]:7.2f} ms")
            await running.ledger.flush(60)


async def main(seconds: float, callers: int) -> None:
    server = PostgresServer()
    try:
        server.start()
        for scopes in (("key", "team", "global"), ("key",)):
            async with server.database() as database:
                await define(database, scopes)
                for keys in (1, 1_000):
                    what = "one hot key" if keys == 1 else f"{keys} keys"
                    counters = f"{len(scopes)} counters" if len(scopes) > 1 else "1 counter"
                    await race(database, keys, callers, seconds, f"{what}, {counters}, {callers} callers")
                    await race(database, keys, 1, seconds, f"{what}, {counters}, 1 caller")
    finally:
        server.delete()


if __name__ == "__main__":
    given = [float(argument) for argument in sys.argv[1:]]
    wanted = given + [5.0, 100.0][len(given) :]
    asyncio.run(main(wanted[0], int(wanted[1])))
