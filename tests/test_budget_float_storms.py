"""Floats under load: whole processes that hold money ahead refuse nobody too early and let nobody in too late."""

from __future__ import annotations

import asyncio
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest

from farebox.store.budgets import BudgetStore
from support.app import Farebox
from support.money import Books, answered, budgeted, chat, usd
from support.provider import FakeProvider, plain
from support.traffic import CHAT
from test_budget_storms import PATIENT, at, replicas

pytestmark = pytest.mark.long

PRICE = usd("0.001")
"""Of a call of a hundred tokens, which is what is held for it, too."""


async def calls(farebox: Farebox, number: int, *, clients: int = 10) -> Counter[int]:
    """So many calls by a few clients, one after the other each; their statuses."""
    left = iter(range(number))

    async def client() -> Counter[int]:
        return Counter([(await farebox.call(CHAT, chat(100))).status for _ in left])

    return sum(await asyncio.gather(*(client() for _ in range(clients))), Counter())


async def afloat(*processes: Farebox) -> None:
    """Each of them, seen by a busy key, holds something ahead."""
    async with asyncio.timeout(60):
        while not all(len(process.app.budgets.floats) for process in processes):
            await asyncio.gather(*(calls(process, 20) for process in processes))


async def test_the_last_cent_is_spent_and_none_beyond(database: str, tmp_path: Path) -> None:
    """Of callers at two processes, which hold ahead, exactly as many get through as there is money for."""
    async with (
        FakeProvider(plain(answered(100))) as provider,
        replicas(database, tmp_path, provider, metering=PATIENT) as (one, two),
    ):
        first = await budgeted(one, "k", {"limit_usd": 500 * PRICE})
        second = await at(two, first)
        await afloat(first, second)
        seen = await asyncio.gather(calls(first, 400), calls(second, 400))
        assert sum(seen, Counter()).keys() == {200, 402}
        assert len(provider.requests) == 500
        for process in (one, two):
            assert await process.app.ledger.flush(30)
        window = await Books(database).window(first)
        assert (window["spent_usd"], window["overrun_usd"]) == (500 * PRICE, 0)


async def test_all_that_is_left_can_be_had_at_once(database: str, tmp_path: Path) -> None:
    """One call that needs the rest to the cent is let in beside processes that hold something of it for others."""
    async with (
        FakeProvider(plain(answered(100))) as provider,
        replicas(database, tmp_path, provider, 3, metering=PATIENT) as (one, two, three),
    ):
        first = await budgeted(one, "k", {"limit_usd": usd("2")})
        second, third = await at(two, first), await at(three, first)
        await afloat(first, second, third)
        spent = len(provider.requests) * 100
        provider.then(plain(answered(1)))
        answer = await third.call(CHAT, chat(200_000 - spent))
        assert answer.status == 200


async def test_a_lowered_limit_reaches_floats(database: str, tmp_path: Path) -> None:
    """Once the limit is lowered below what is spent, what floats hold is let in, and then nobody any more."""
    async with (
        FakeProvider(plain(answered(100))) as provider,
        replicas(database, tmp_path, provider, metering=PATIENT) as (one, two),
    ):
        team = {"scope": "team", "window": "total", "admission": "strict", "wait_s": 0}
        store = BudgetStore(one.app.store)
        await store.put_budget("t", {"limit_usd": usd("2"), **team}, "api", "test")
        first = await budgeted(one, "k", team="crew")
        second = await at(two, first)
        await afloat(first, second)
        await store.put_budget("t", {"limit_usd": usd("0.001"), **team}, "api", "test")
        [held] = await Books(database).fetch("SELECT spent_usd + reserved_usd AS usd FROM farebox.budget_window")
        seen = sum(await asyncio.gather(calls(first, 300), calls(second, 300)), Counter())
        assert seen[402] > 0 and seen.keys() <= {200, 402}
        assert len(provider.requests) * PRICE <= held["usd"]
        async with asyncio.timeout(30):
            while len(one.app.budgets.floats) or len(two.app.budgets.floats):
                await asyncio.sleep(0.05)
        await Books(database).nothing_held()


async def test_a_pace_is_exact_afloat(database: str, tmp_path: Path) -> None:
    """Requests a minute are held ahead like money: exactly so many get through, from whichever process."""
    async with (
        FakeProvider(plain(answered(1))) as provider,
        replicas(database, tmp_path, provider, metering=PATIENT) as (one, two),
    ):
        limit = 600
        first = await budgeted(one, "k", {"limit_requests": limit, "window": "total"})
        second = await at(two, first)
        await afloat(first, second)
        seen = sum(await asyncio.gather(calls(first, 400), calls(second, 400)), Counter())
        assert set(seen) == {200, 402}
        assert len(provider.requests) == limit
        assert Decimal(limit) == sum((row["requests"] for row in await Books(database).windows()), Decimal(0))
