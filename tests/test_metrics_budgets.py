"""The budget gauges: what Postgres says, for every scrape the same, bounded, and gone when it is too old to be true."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from farebox.keys import holds_key, mint_secret
from farebox.ledger import Backlog
from farebox.metrics import Metrics, Sources
from farebox.metrics.budgets import CACHE_S, KEEP_S, BudgetGauges
from farebox.metrics.storage import OneProcess
from farebox.store import AlertStore, Store, StoreUnavailable
from farebox.store.alerts import Gauge
from farebox.store.budgets import BudgetStore
from support.app import running, settings_of
from support.counters import put, spend
from support.http import call
from support.money import FREE_INPUT, answered, budgeted, chat, settings
from support.provider import FakeProvider, plain
from support.traffic import CHAT


class Asked:
    """A database that answers what it is told, or is away."""

    def __init__(self, *gauges: Gauge) -> None:
        self.gauges: Sequence[Gauge] | None = gauges
        self.times = 0

    async def __call__(self, rows_max: int) -> Sequence[Gauge]:
        self.times += 1
        if self.gauges is None:
            raise StoreUnavailable("away")
        return self.gauges


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def gauge(budget: str | None, spent: str = "1", **more: Any) -> Gauge:
    fields: dict[str, Any] = {"who": "all", "scope": "global", "limit_usd": Decimal(10), "reserved_usd": Decimal(0)}
    return Gauge(**fields | {"budget": budget, "spent_usd": Decimal(spent), "remaining": Decimal("0.9")} | more)


def gauges(asked: Asked, clock: Clock) -> BudgetGauges:
    return BudgetGauges(asked, rows_max=200, is_secret=holds_key, monotonic=clock)


def told(of: BudgetGauges, family: str) -> dict[str, float]:
    return {name: value for one, name, value in of.samples() if one.name == family}


async def test_the_fullest_have_names_and_the_others_are_one(store: Store) -> None:
    """Of more windows than there may be series the fullest are told by name, the rest as sums and their least part."""
    for name, spent in (("a", "10"), ("b", "50"), ("c", "30"), ("d", "20")):
        await spend(store, await put(store, name), spent)
    found = await AlertStore(store).gauges(2)
    of = BudgetGauges(AlertStore(store).gauges, rows_max=2, is_secret=holds_key, monotonic=Clock())
    await of.look()
    assert [row.budget for row in found] == ["b", "c", None]
    assert told(of, "farebox_budget_spent_usd") == {"b": 50, "c": 30, "other": 30}
    assert told(of, "farebox_budget_limit_usd") == {"b": 100, "c": 100, "other": 200}
    assert told(of, "farebox_budget_remaining_ratio") == {"b": 0.5, "c": 0.7, "other": 0.8}


async def test_what_is_held_is_not_left(store: Store) -> None:
    """Held dollars are told as reserved and count as used; a budget of tokens has a part that is left and no limit_usd;
    a limit of 0 has nothing left; an overrun leaves nothing, not less."""
    for name, spent, tokens, fields in (
        ("usd", "10", 0, {}),
        ("tokens", "3", 250, {"limit_usd": None, "limit_tokens": 1000}),
        ("nought", "0", 0, {"limit_usd": Decimal(0)}),
        ("over", "150", 0, {}),
    ):
        await spend(store, await put(store, name, **fields), spent, tokens=tokens)
    async with store.connection() as connection:
        await connection.execute(
            "UPDATE farebox.budget_window SET reserved_usd = 15 WHERE budget_id IN "
            "(SELECT id FROM farebox.budget WHERE name = 'usd')"
        )
    of = BudgetGauges(AlertStore(store).gauges, rows_max=200, is_secret=holds_key, monotonic=Clock())
    await of.look()
    assert told(of, "farebox_budget_remaining_ratio") == {"usd": 0.75, "tokens": 0.75, "nought": 0, "over": 0}
    assert told(of, "farebox_budget_reserved_usd")["usd"] == 15
    assert "tokens" not in told(of, "farebox_budget_limit_usd")


async def test_a_look_serves_for_a_moment() -> None:
    """Scrapes within the cache's time ask once; the next one after it asks again."""
    asked, clock = Asked(gauge("b")), Clock()
    of = gauges(asked, clock)
    for _ in range(5):
        await of.look()
    assert asked.times == 1
    clock.now += CACHE_S
    await of.look()
    assert asked.times == 2


async def test_a_slow_look_serves_for_longer() -> None:
    """With so many counters that a look takes long, it is taken for a twentieth of the time at most."""
    asked, clock = Asked(gauge("b")), Clock()

    async def slowly(rows_max: int) -> Sequence[Gauge]:
        clock.now += 1.5
        return await asked(rows_max)

    of = BudgetGauges(slowly, rows_max=200, is_secret=holds_key, monotonic=clock)
    await of.look()
    clock.now += 28
    await of.look()
    assert asked.times == 1
    clock.now += 1
    await of.look()
    assert asked.times == 2


async def test_old_figures_are_told_for_a_while_and_then_none() -> None:
    """With the database away the last figures stay up to KEEP_S, then there are no series; with it they come back."""
    asked, clock = Asked(gauge("b", "7")), Clock()
    of = gauges(asked, clock)
    await of.look()
    asked.gauges = None
    clock.now += KEEP_S
    await of.look()
    assert told(of, "farebox_budget_spent_usd") == {"b": 7}
    clock.now += 1
    await of.look()
    assert list(of.samples()) == []
    asked.gauges = (gauge("b", "8"),)
    clock.now += CACHE_S
    await of.look()
    assert told(of, "farebox_budget_spent_usd") == {"b": 8}


async def test_what_looks_like_a_key_is_not_shown() -> None:
    """A session named like a farebox key is `other`, as in every label."""
    secret = gauge("s", who=f"ann/{mint_secret()}", scope="session")
    of = gauges(Asked(secret, gauge("t", who="red", scope="team")), Clock())
    await of.look()
    assert set(told(of, "farebox_budget_spent_usd")) == {"other", "t:red"}


def metrics(asked: Asked, clock: Clock, **more: Any) -> Metrics:
    return Metrics(
        storage=OneProcess(20_000),
        label_values_max=200,
        is_secret=holds_key,
        sources=Sources(in_flight=lambda: 0, backlog=lambda: Backlog(0, 0.0), lost=lambda: 0, budgets=asked, **more),
        version="1.2.3",
        corrections_poll_s=0.01,
        monotonic=clock,
    )


async def test_series_go_when_their_budget_does() -> None:
    """A budget that was deleted, or a session's window that is over, has no series any more; nothing is left at 0."""
    asked = Asked(gauge("old"))
    clock = Clock()
    of = metrics(asked, clock)
    await of.look_up()
    assert b'farebox_budget_spent_usd{budget="old"} 1\n' in of.exposition()
    asked.gauges = ()
    clock.now += CACHE_S
    await of.look_up()
    assert b'budget="old"' not in of.exposition()


async def test_thresholds_warnings_and_overruns_are_counted() -> None:
    """A threshold is counted by budget and threshold, a passed call by budget, overruns are the ledger's total."""

    async def overrun() -> Decimal:
        return Decimal("1.25")

    of = metrics(Asked(), Clock(), overrun=overrun)
    assert "farebox_overrun_usd_total 1.25" not in of.exposition().decode()
    of.reached("b", "0.8")
    of.warned("w")
    of.warned("w")
    await of.start()
    async with asyncio.timeout(10):
        while "farebox_overrun_usd_total 1.25" not in of.exposition().decode():
            await asyncio.sleep(0.01)
    text = of.exposition().decode()
    await of.close()
    assert 'farebox_budget_thresholds_total{budget="b",threshold="0.8"} 1\n' in text
    assert 'farebox_budget_warned_total{budget="w"} 2\n' in text


async def test_deleted_windows_leave_their_overrun(store: Store) -> None:
    """The total of overruns only grows, also when windows that are long over are deleted."""
    for name, usd in (("a", "1.5"), ("b", "2")):
        await spend(store, await put(store, name), "1")
        async with store.connection() as connection:
            await connection.execute("UPDATE farebox.budget_window SET overrun_usd = overrun_usd + $1", Decimal(usd))
    alerts = AlertStore(store)
    assert await alerts.overrun() == Decimal("5.5")
    async with store.connection() as connection:
        await connection.execute("DELETE FROM farebox.budget_window")
    assert await alerts.overrun() == Decimal("5.5")


async def test_only_a_limit_can_be_overrun(database: str, tmp_path: Path) -> None:
    """What a call costs is no overrun of its key's pace, nor its tokens of a budget of money: those hold none."""
    async with (
        FakeProvider(plain(answered(40))) as provider,
        running(settings(database, tmp_path, provider, prices=FREE_INPUT)) as farebox,
    ):
        key = await budgeted(farebox, "paced", {"limit_usd": Decimal(1)}, rpm=60, max_parallel=3)
        assert (await key.call(CHAT, chat(100))).status == 200
        await farebox.app.ledger.flush(10)
        async with farebox.app.store.connection() as connection:
            counters = await connection.fetch(
                "SELECT spent_usd, overrun_usd, overrun_tokens FROM farebox.budget_window"
            )
        assert await AlertStore(farebox.app.store).overrun() == 0
    assert [tuple(counter) for counter in counters] == [(Decimal("0.0004"), 0, 0)] * 3


async def test_a_scrape_tells_how_budgets_stand(database: str, tmp_path: Path) -> None:
    """/metrics of a running farebox has the gauges of a budget, and its thresholds once they are reached."""
    async with FakeProvider() as provider:
        providers = {"up": {"dialect": "openai", "base_url": provider.base_url, "api_key": "k"}}
        async with running(settings_of(database, tmp_path, providers)) as farebox:
            await spend(farebox.app.store, await put(farebox.app.store, "month"), "85")
            async with farebox.app.store.connection() as connection:
                await connection.execute("UPDATE farebox.alert_turn SET looked_at = 'epoch'")
            await farebox.app.alerts.look()
            text = ""
            async with asyncio.timeout(10):
                # It may be farebox's own look that had the turn, and is not at its end yet.
                while "farebox_budget_thresholds_total{" not in text:
                    text = (await call(farebox.port, "/metrics", method="GET")).body.decode()
    assert 'farebox_budget_spent_usd{budget="month"} 85\n' in text
    assert 'farebox_budget_remaining_ratio{budget="month"} 0.15\n' in text
    assert 'farebox_budget_thresholds_total{budget="month",threshold="0.8"} 1\n' in text


async def test_a_call_that_a_used_up_budget_lets_pass_is_counted(database: str, tmp_path: Path) -> None:
    """Where a budget only warns, each call that is granted over it is counted by its name; others are not."""
    counted = []
    async with (
        FakeProvider() as provider,
        running(settings(database, tmp_path, provider)) as farebox,
    ):
        for name, tokens, on_exceed in (("warns", 2_000, "warn"), ("roomy", 1_000_000, "reject")):
            fields = {"scope": "global", "window": "total", "limit_tokens": tokens, "on_exceed": on_exceed}
            await BudgetStore(farebox.app.store).put_budget(name, fields, "api", "test")
        key = await budgeted(farebox, "k", {"limit_usd": Decimal(1)})
        for _ in range(3):
            provider.then(plain(answered(20, prompt=900)))
            # Some 1,200 tokens are held for each, of which 920 stay: there is room for one.
            assert (await key.call(CHAT, chat(100))).status == 200
            shown = (await call(farebox.port, "/metrics", method="GET")).body.decode()
            counted.append(re.findall(r"^farebox_budget_warned_total\{budget=\"(\w+)\"\} (\d+)", shown, re.MULTILINE))
    assert counted == [[], [("warns", "1")], [("warns", "2")]]
