"""The budgets in force, in memory: loaded at the start, polled for changes, and the config's put into Postgres.

Budgets that the config sets are rows like all others, so that replicas, reports and SQL see one list; the
config in force writes them, at the start and when it changes. The same config from many processes is
written once. While the database is away what is in memory stays in force: changes wait, calls do not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import structlog

from farebox.budgets.applying import Applied, Definitions
from farebox.config.budgets import BudgetRule
from farebox.following import follow
from farebox.logs import exception_facts
from farebox.records import Budget, Caller
from farebox.store.budgets import BudgetStore
from farebox.store.failures import StoreUnavailable

LIST_EVERY = timedelta(minutes=1)
"""How often the whole list is read instead of what changed: a change that took long to be committed is found by it."""

Fields = dict[str, Any]
"""One budget of the config, by column name."""


def fields_of(rules: Sequence[BudgetRule]) -> list[Fields]:
    """The config's budgets as the store takes them."""
    return [{"name": rule.name, **rule.as_fields()} for rule in rules]


class Book:
    """The definitions of one process. `start`, then `applying`; `change` with a new config; `close`."""

    def __init__(
        self, store: BudgetStore, configured: Sequence[Fields], *, poll_s: float, list_every: timedelta = LIST_EVERY
    ) -> None:
        self._store = store
        self._poll_s = poll_s
        self._list_every = list_every
        self._unput: Sequence[Fields] | None = configured
        self._definitions = Definitions()
        self._loading = asyncio.Lock()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._log = structlog.get_logger()
        self._budgets: dict[UUID, Budget] = {}
        self._since: datetime | None = None
        self._list_after: datetime | None = None
        self._looks = 0
        self._seen = 0

    async def start(self) -> None:
        """Write down the config's budgets, load all, begin to watch. Raises StoreUnavailable."""
        await self.refresh()
        following = follow("budgets", self.refresh, wake=self._wake, poll_s=lambda: self._poll_s)
        self._task = asyncio.create_task(following, name="budgets")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def applying(self, caller: Caller, model: str | None, session: str | None) -> tuple[Applied, ...]:
        """The budgets of a call; () at the price of a look-up for a caller without any."""
        return self._definitions.applying(caller, model, session)

    def change(self, configured: Sequence[Fields], *, poll_s: float) -> None:
        """Put the budgets of a new config in force, with the next statement, and look as often as that."""
        self._unput, self._poll_s = configured, poll_s
        self._wake.set()

    async def refresh(self) -> None:
        """Look now: what was committed before this call is in force after it. Raises StoreUnavailable.

        Of many who ask while a look is under way one looks for all.
        """
        looks = self._looks
        async with self._loading:
            if self._seen > looks:
                return
            self._looks += 1
            await self._put_configured()
            # Asked for the moment first: what changes while the list is read comes with the next look.
            changed, since = await self._store.budgets_changed_since(self._since or datetime.now(UTC))
            whole = self._list_after is None or since >= self._list_after
            if whole:
                # The list lacks those that ended with their keys, which were in force a minute ago.
                lately, _ = await self._store.budgets_changed_since(since - LIST_EVERY)
                changed = [*lately, *await self._store.list_budgets(include_rate=True)]
                self._list_after = since + self._list_every
            self._since = since
            self._take(changed, whole=whole)
            self._seen = self._looks

    async def _put_configured(self) -> None:
        configured = self._unput
        if configured is None:
            return
        try:
            await self._store.sync_config([dict(fields) for fields in configured])
        except Exception as error:
            # At the start nobody is served by half of what was meant. Later on a fault must not keep all else out.
            if self._task is None or isinstance(error, StoreUnavailable):
                raise
            self._log.error("the config's budgets can't be put in force: the old ones stay", **exception_facts(error))
        if self._unput is configured:
            self._unput = None

    def _take(self, changed: Sequence[Budget], *, whole: bool) -> None:
        budgets = {} if whole else dict(self._budgets)
        for budget in changed:
            if budget.deleted:
                budgets.pop(budget.id, None)
            else:
                budgets[budget.id] = budget
        if self._budgets != budgets:
            self._budgets = budgets
            self._definitions = Definitions(budgets.values())
