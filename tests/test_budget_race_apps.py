"""The race once more with whole farebox processes: clients over HTTP, a provider that bills, kill -9 and dead backends.

What `test_budget_race` shows of the budgets' service, this shows of the product: two installations on one database.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from contextlib import AsyncExitStack, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from farebox import keys
from farebox.store import Store
from farebox.store.budgets import BudgetStore
from support.http import RawClient
from support.money import FREE_INPUT, answered, chat, settings, spoken
from support.process import FareboxProcess, Installation, installed
from support.provider import FakeProvider, Received, Wire, plain, stream
from support.traffic import CHAT

pytestmark = pytest.mark.long

SEEDS = range(max(3, int(os.environ.get("FAREBOX_RACE_SEEDS", "0")) // 10))
REPLICAS, CLIENTS, KEYS = 2, 40, 10
SECONDS = 5.0
LEASE_S = 2
CROWD = (2_000, Decimal("0.3"), Decimal("2"))
AFLOAT = (10, Decimal("0.02"), Decimal("0.04"))
"""The most tokens of a call, and what a key and a team may spend: so that each call is a tenth of its key's money, or
so little of it that processes hold ahead."""
USD_PER_TOKEN = Decimal(10) / 10**6
END_S = 60.0


class Billing:
    """A provider that bills as it answers: all of max_tokens, or less. The model says whose call it is."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.billed: Counter[str] = Counter()
        """Output tokens by key."""
        self.calls = 0

    async def __call__(self, received: Received, wire: Wire) -> None:
        asked = json.loads(received.body)
        most = asked["max_tokens"]
        tokens = self._random.choice((most, self._random.randint(0, most)))
        self.billed[asked["model"]] += tokens
        self.calls += 1
        await asyncio.sleep(self._random.random() * 0.05)
        model = asked["model"]
        if asked["stream"]:
            await stream(spoken(tokens, per_frame=400))(received, wire)
        else:
            await plain(answered(tokens, model=model))(received, wire)


async def two_ends(client: random.Random, port: int, model: str, secret: str, most: int) -> int | None:
    """One call; its status, or None where the client left or farebox died."""
    body = json.dumps(chat(client.randint(1, most), stream=client.random() < 0.5, model=model)).encode()
    with suppress(OSError, asyncio.IncompleteReadError, EOFError):
        async with RawClient(port) as connection:
            await connection.send("POST", CHAT, {"Authorization": f"Bearer {secret}"}, body)
            if client.random() < 0.1:
                await asyncio.sleep(client.random() * 0.05)
                connection.abort()
                return None
            return (await connection.answer()).status
    return None


async def keys_of(store: Store, limit: Decimal, team_limit: Decimal) -> dict[str, str]:
    """Keys of two teams, each with a strict budget, and the teams with theirs. Secrets by name."""
    made: dict[str, str] = {}
    strict = {"window": "total", "admission": "strict", "wait_s": 0}
    await BudgetStore(store).put_budget("team", {"scope": "team", "limit_usd": team_limit, **strict}, "api", "test")
    for number in range(KEYS):
        name = f"m-{number}"
        made[name] = keys.mint_secret()
        key = await store.create_key(name=name, secret_hash=keys.hash_secret(made[name]), team=team_of(name))
        budget = {"limit_usd": limit, **strict}
        await BudgetStore(store).set_key_limits(key.id, name, [budget], None, None, None, "test")
    return made


def team_of(name: str) -> str:
    return "even" if int(name[2:]) % 2 == 0 else "odd"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("race", [CROWD, AFLOAT], ids=["crowd", "afloat"])
async def test_whole_replicas_do_not_overspend(
    database: str, store: Store, tmp_path: Path, seed: int, race: tuple[int, Decimal, Decimal]
) -> None:
    """After clients that come, leave and are cut off, and processes and backends that are killed, the provider billed
    no key and no team more than its limit, all it billed is charged, nothing is held, and nobody saw a 500."""
    chance, billing, statuses = random.Random(seed), Billing(seed), Counter[int | None]()
    most, limit, team_limit = race
    made = await keys_of(store, limit, team_limit)
    busy = list(made)[: KEYS if race is CROWD else 2]
    db = await asyncpg.connect(database)
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(FakeProvider(billing))
        homes: list[Installation] = []
        for number in range(REPLICAS):
            folder = tmp_path / f"replica-{number}"
            folder.mkdir()
            config: dict[str, Any] = settings(
                database, folder / "data", provider, prices=FREE_INPUT, metering={"budget_lease_s": LEASE_S}
            )
            homes.append(await stack.enter_async_context(installed(folder, config)))
        running: list[FareboxProcess] = [await home.start() for home in homes]
        ended = False

        async def client(number: int) -> None:
            mind = random.Random(f"{seed}-{number}")
            while not ended:
                name = mind.choice(busy)
                statuses[await two_ends(mind, running[number % REPLICAS].port, name, made[name], most)] += 1
                await asyncio.sleep(0.01 + mind.random() * 0.1)

        async def look() -> int:
            """How often there were floats."""
            seen, looker = 0, await asyncpg.connect(database, server_settings={"application_name": "looker"})
            while not ended:
                seen += await looker.fetchval("SELECT count(*) FROM farebox.budget_float")
                await asyncio.sleep(0.02)
            await looker.close()
            return seen

        looking = asyncio.create_task(look())
        clients = [asyncio.create_task(client(number)) for number in range(REPLICAS * CLIENTS)]
        ends = asyncio.get_running_loop().time() + SECONDS
        while asyncio.get_running_loop().time() < ends:
            await asyncio.sleep(chance.uniform(0.1, 0.6))
            if chance.random() < 0.6:
                await db.execute(
                    "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity WHERE datname = "
                    "current_database() AND application_name <> 'looker' AND pid <> pg_backend_pid() "
                    "ORDER BY random() LIMIT 2) AS found"
                )
            else:
                number = chance.randrange(REPLICAS)
                await running[number].kill()
                running[number] = await homes[number].start()
        for process in running:
            await process.kill()
        ended = True
        await asyncio.gather(*clients)
        floats = await looking
        last = [await home.start() for home in homes]
        async with asyncio.timeout(END_S):
            while await db.fetchval(
                "SELECT (SELECT count(*) FROM farebox.reservation WHERE state = 'open') "
                "+ count(*) FROM farebox.budget_float"
            ):
                await asyncio.sleep(0.1)
        for process in last:
            assert await process.stop() == 0
    windows = await db.fetch(
        "SELECT b.name, b.scope, w.* FROM farebox.budget_window AS w JOIN farebox.budget AS b ON b.id = w.budget_id"
    )
    await db.close()
    teams: Counter[str] = Counter()
    for name, tokens in billing.billed.items():
        teams[team_of(name)] += tokens
    for window in windows:
        own = window["name"].split(":")[1] if window["scope"] == "key" else window["subject"]
        truth = (billing.billed[own] if window["scope"] == "key" else teams[own]) * USD_PER_TOKEN
        assert truth <= window["spent_usd"] <= window["limit_usd"], own
        held = (window["reserved_usd"], window["open"], window["floats"])
        assert (*held, window["overrun_usd"]) == (0, 0, 0, 0), own
    spent = sum(billing.billed.values()) * USD_PER_TOKEN
    print(f"seed {seed}: {billing.calls} calls, {dict(statuses)}, {spent} USD, floats seen {floats} times")
    assert set(statuses) <= {None, 200, 402, 503} and statuses[200] > 50
    assert statuses[402] > 0 if race is CROWD else floats > 0
