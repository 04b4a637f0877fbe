"""Budgets in a whole farebox: from the config, through a reload, to an orderly end."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any

from farebox.records import Caller
from farebox.store import Store
from farebox.store.budgets import BudgetStore
from support.app import config_of, running, settings_of
from support.budgets import WAIT_S, leave_idle, until
from support.money import Books, answered, budgeted, chat, settings, usd
from support.postgres import PostgresServer
from support.provider import FakeProvider, Received, Wire, plain
from support.traffic import CHAT

SOMEBODY = Caller(kind="open")


def written(name: str, limit_usd: float) -> dict[str, Any]:
    return {"name": name, "scope": "global", "limit_usd": limit_usd, "window": "total"}


async def test_a_reload_puts_the_configs_budgets_in_force(store: Store, database: str, tmp_path: Path) -> None:
    """Budgets of the config are in force from the first call; a new config's take their place without a restart."""
    first = settings_of(database, tmp_path, {}, budgets=[written("a", 5)], metering={"budget_poll_s": 60})
    async with running(first) as farebox:
        budgets = farebox.app.budgets
        assert [one.budget.name for one in budgets.applying(SOMEBODY, "m", None)] == ["a"]
        await farebox.app.reload(config_of(first | {"budgets": [written("b", 1), written("c", 2)]}))
        await until(lambda: len(budgets.applying(SOMEBODY, "m", None)) == 2)
    assert [budget.name for budget in await BudgetStore(store).list_budgets()] == ["b", "c"]


async def test_a_new_key_has_its_budgets_from_its_first_call(store: Store, database: str, tmp_path: Path) -> None:
    """A key made by another process spends nothing past its budgets, though no poll has brought them here yet."""
    async with running(settings_of(database, tmp_path, {}, metering={"budget_poll_s": 60})) as farebox:
        secret, key = await farebox.new_key("new")
        nothing = {"limit_usd": Decimal(0), "window": "month"}
        await BudgetStore(store).set_key_limits(key.id, key.name, [nothing], None, None, None, "test")
        caller = await farebox.app.keyring.identify({"x-farebox-key": secret})
        [applied] = farebox.app.budgets.applying(caller, "m", None)
        assert applied.budget.limit_usd == 0


async def test_postgres_away_stops_budgeted_keys_alone(postgres: PostgresServer, database: str, tmp_path: Path) -> None:
    """While the database is away a key with a budget gets 503 with retry-after and one without is served; calls under
    way end, what they cost is written down later, and budgeted calls are taken again by themselves."""
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slow(received: Received, wire: Wire) -> None:
        asked.set()
        await go_on.wait()
        await plain(answered(20))(received, wire)

    limits = {"reserve_timeout_s": 0.3}
    async with FakeProvider() as provider, running(settings(database, tmp_path, provider, metering=limits)) as farebox:
        budgeted_key = await budgeted(farebox, "budgeted", {"limit_usd": usd("1")})
        free_key = await farebox.with_key("free")
        provider.then(plain(answered(1)), plain(answered(1)), slow, plain(answered(1)), plain(answered(1)))
        for key in (budgeted_key, free_key):
            assert (await key.call(CHAT, chat(100))).status == 200
        under_way = asyncio.create_task(budgeted_key.call(CHAT, chat(100)))
        await asked.wait()
        await asyncio.to_thread(postgres.stop)
        try:
            refused = await budgeted_key.call(CHAT, chat(100))
            assert (refused.status, bool(refused.header("retry-after"))) == (503, True)
            assert (await free_key.call(CHAT, chat(100))).status == 200
            go_on.set()
            assert (await under_way).status == 200
        finally:
            await asyncio.to_thread(postgres.start)
        await until(lambda: not farebox.app.budgets.link.away)
        assert (await budgeted_key.call(CHAT, chat(100))).status == 200
        rows = await budgeted_key.rows(3)
        assert len(rows) == 3
        await farebox.app.budgets.releases.flush(WAIT_S)
        leave_idle(farebox.app.budgets)
        await until(lambda: not len(farebox.app.budgets.floats))
        [window] = await Books(database).fetch("SELECT * FROM farebox.budget_window")
        assert (window["reserved_usd"], window["open"]) == (0, 0)
        assert window["spent_usd"] == sum(row.cost_usd or 0 for row in rows)


async def test_a_busy_key_is_served_without_asking(database: str, tmp_path: Path) -> None:
    """Its calls draw from a float, say what is left, and each is one row."""
    async with (
        FakeProvider(plain(answered(10))) as provider,
        running(settings(database, tmp_path, provider)) as farebox,
    ):
        key = await budgeted(farebox, "busy", {"limit_usd": usd("1")})
        budgets, made = farebox.app.budgets, 0
        async with asyncio.timeout(WAIT_S):
            while not len(budgets.floats):
                assert (await key.call(CHAT, chat(10))).status == 200
                made += 1
        asked = reserves(budgets)
        left = []
        for _ in range(6):
            answer = await key.call(CHAT, chat(10))
            assert answer.status == 200
            left.append(Decimal(answer.header("x-farebox-budget-remaining-usd") or "nothing"))
        assert len(asked) < 6 and 0 < min(left) < 1
        rows = await key.rows(made + 6)
        assert len(rows) == made + 6
        leave_idle(budgets)
        await until(lambda: not len(budgets.floats))
        window = await Books(database).window(key)
        assert (window["reserved_usd"], window["open"], window["requests"]) == (0, 0, made + 6)
        assert window["spent_usd"] == sum(row.cost_usd or 0 for row in rows)


def reserves(budgets: Any) -> list[object]:
    """What reserves one by one from now on."""
    asked: list[object] = []
    reserve = budgets.reserve

    async def noted(ask: Any, **more: Any) -> Any:
        asked.append(ask)
        return await reserve(ask, **more)

    budgets.reserve = noted
    return asked


async def test_a_stop_leaves_no_owner(store: Store, database: str, tmp_path: Path) -> None:
    """While it runs a farebox is an owner that others see beating; after an orderly stop there is none."""
    async with store.connection() as connection:
        async with running(settings_of(database, tmp_path, {})):
            assert await connection.fetchval("SELECT count(*) FROM farebox.owner WHERE NOT dead") == 1
        assert await connection.fetchval("SELECT count(*) FROM farebox.owner") == 0
