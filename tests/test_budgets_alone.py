"""Budgets of processes that are a test's own: how definitions get there, and a drain that takes its time."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs

from farebox.budgets import Settings
from farebox.budgets.definitions import Book
from farebox.errors import BadRequest
from farebox.store import Store
from farebox.store.budgets import BudgetStore
from support.budgets import ANN, Replica, put, replica, until

TEN: dict[str, Any] = {"limit_usd": Decimal(10)}


async def test_a_change_that_was_committed_late_is_found(database: str, store: Store) -> None:
    """A budget whose change took longer to commit than any look goes back is in force after the next whole look."""
    book = Book(BudgetStore(store), (), poll_s=3600, list_every=timedelta(0))
    await book.start()
    connection = await asyncpg.connect(database)
    try:
        await connection.execute(
            "SET session_replication_role = replica;"  # or the time of the change would be now
            "INSERT INTO farebox.budget (name, source, scope, limit_usd, changed_at)"
            "VALUES ('late', 'api', 'global', 1, now() - interval '1 hour')"
        )
        await book.refresh()
        assert [one.budget.name for one in book.applying(ANN, None, None)] == ["late"]
        await connection.execute("UPDATE farebox.budget SET deleted_at = now() - interval '1 hour'")
        await book.refresh()
        assert book.applying(ANN, None, None) == ()
    finally:
        await connection.close()
        await book.close()


async def test_a_budget_made_elsewhere_is_in_force_within_a_poll(database: str, store: Store, tmp_path: Path) -> None:
    """A budget that another process makes, changes and deletes is seen here without a restart."""
    async with replica(database, tmp_path) as one:
        await put(store, "all", **TEN)
        await _follows(one, store)


async def _follows(one: Replica, store: Store) -> None:
    made = await put(store, "team", scope="team", limit_usd=Decimal(1))
    await until(lambda: len(one.budgets.applying(ANN, "m", None)) == 2)
    await BudgetStore(store).put_budget(
        "team", {"scope": "team", "window": "total", "limit_usd": Decimal(2)}, "api", "t"
    )
    await until(lambda: one.budgets.applying(ANN, "m", None)[0].budget.limit_usd == 2)
    await BudgetStore(store).delete_budget(made.name, "t")
    await until(lambda: len(one.budgets.applying(ANN, "m", None)) == 1)


async def test_own_changes_are_in_force_at_once(database: str, store: Store, tmp_path: Path) -> None:
    """Whoever changes a budget through this process need not wait for a poll."""
    async with replica(database, tmp_path, settings=Settings(poll_s=3600)) as running:
        assert running.budgets.applying(ANN, "m", None) == ()
        await put(store, limit_usd=Decimal(1))
        await running.budgets.refresh()
        assert len(running.budgets.applying(ANN, "m", None)) == 1


async def test_the_configs_budgets_are_postgres_rows(database: str, store: Store, tmp_path: Path) -> None:
    """What the config sets is written down at the start, follows a new config, and two processes write it once."""
    first = {"name": "a", "scope": "global", "limit_usd": Decimal(1), "window": "total"}
    second = {"name": "c", "scope": "global", "limit_usd": Decimal(3), "window": "total"}
    lists = BudgetStore(store)
    async with (
        replica(database, tmp_path / "one", configured=[first]) as one,
        replica(database, tmp_path / "two", configured=[first]) as two,
    ):
        assert [(b.name, b.source) for b in await lists.list_budgets()] == [("a", "config")]
        one.budgets.change([second], Settings(poll_s=0.05))
        await until(lambda: [a.budget.name for a in two.budgets.applying(ANN, "m", None)] == ["c"])
        assert [b.name for b in await lists.list_budgets()] == ["c"]


async def test_budgets_that_cannot_be_stored_do_not_keep_others_out(
    database: str, store: Store, tmp_path: Path
) -> None:
    """What the database refuses of a new config is told of and left out; it stops a start, but no later change."""
    bad = {"name": "key:x", "scope": "global", **TEN}
    async with replica(database, tmp_path / "one") as running:
        with capture_logs() as logs:
            running.budgets.change([bad], Settings(poll_s=0.05))
            await until(lambda: any("can't be put in force" in line["event"] for line in logs))
        await put(store, "other", **TEN)
        await until(lambda: len(running.budgets.applying(ANN, "m", None)) == 1)
    with pytest.raises(BadRequest):
        async with replica(database, tmp_path / "two", configured=[bad]):
            pass


async def test_one_after_the_other_is_never_refused_for_its_own_last_call(
    database: str, store: Store, tmp_path: Path
) -> None:
    """With room for one call at a time a client that waits for each answer is admitted each time, however lazy the
    drain is."""
    await put(store, limit_usd=Decimal(10))
    async with replica(database, tmp_path, interval_s=3600) as running:
        for _ in range(20):
            grant = await running.reserve("6")
            assert grant.state == "open"
            running.settle(grant, "0.1")
