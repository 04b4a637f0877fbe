"""Thresholds: found by looking, told once a window as a log line, a count and, where there is one, to a webhook.

Nothing of it is on the way of a request. Of all processes on a database one looks at a time, and the one
whose claim succeeds does the telling. The line in the log and the count happen at most once (a process
that is killed between its claim and its words takes them along); the webhook hears at least once, over
restarts and replicas: its queue is a table, from which a row is taken for a while and comes back unless
it was delivered or given up. The table grows by one row a threshold and window; rows of windows that are over
for a week are deleted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Protocol
from uuid import UUID

import structlog

from farebox.digits import digits
from farebox.logs import exception_facts
from farebox.metrics.budgets import label
from farebox.store.alerts import Alert
from farebox.store.failures import StoreUnavailable

LOOK_S = 5.0
"""How often thresholds are looked for, by all processes together: what news is late by at most."""
CLAIMS_MAX = 100
"""Crossings claimed at a time. With more there is another look at once."""
POSTS_MAX = 4
"""Alerts that one process delivers at a time; the others wait in the table."""
_FIRST_PAUSE_S = 5.0
_PAUSE_FACTOR = 3.0
_PAUSE_MAX_S = 3_600.0
_MARGIN_S = 30.0
"""How much longer than a POST may take a taken alert is left alone."""
_SHARE = 20
"""A look may take one part in so many of the time: with very many counters it comes less often."""


class Store(Protocol):
    """As `store.alerts.AlertStore`."""

    async def claim(self, *, every_s: float, deliver: bool, rows_max: int) -> list[Alert]: ...
    async def take(self, *, rows_max: int, lease_s: float) -> list[Alert]: ...
    async def delivered(self, id: UUID) -> None: ...
    async def failed(self, id: UUID, again_s: float | None) -> None: ...


class Hook(Protocol):
    """As `webhook.Webhook`."""

    timeout_s: float

    async def post(self, alert: Alert, now: datetime) -> str | None: ...
    async def close(self) -> None: ...


def pause_s(tries: int) -> float:
    """How long to wait after so many tries: 5 s, 15 s, 45 s ... up to an hour."""
    return float(min(_PAUSE_MAX_S, _FIRST_PAUSE_S * _PAUSE_FACTOR ** min(tries - 1, 20)))


class Alerts:
    """`start`, `change` with a new config, `close`. `hook` None: only the log and the count are told.

    `reached(label, threshold)` counts. Times are `now`'s for signatures; `monotonic` is the loop's.
    """

    def __init__(
        self,
        store: Store,
        hook: Hook | None,
        *,
        tries_max: int,
        reached: Callable[[str, str], None],
        now: Callable[[], datetime],
        look_s: float = LOOK_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._hook = hook
        self._tries_max = tries_max
        self._reached = reached
        self._now = now
        self._look_s = look_s
        self._sleep = sleep
        self._retired: list[Hook] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._log = structlog.get_logger()

    async def start(self) -> None:
        """Begin to look and to deliver."""
        self._tasks = [
            asyncio.create_task(self._keep(self.look, _SHARE), name="budget alerts"),
            asyncio.create_task(self._keep(self.deliver, 0), name="budget webhook"),
        ]

    def change(self, hook: Hook | None, tries_max: int) -> None:
        """Deliver to `hook` from now on."""
        if self._hook is not None:
            self._retired.append(self._hook)
        self._hook, self._tries_max = hook, tries_max

    async def close(self) -> None:
        """Stop. What is not delivered stays in the table, for whoever comes next."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for hook in (*self._retired, *((self._hook,) if self._hook is not None else ())):
            await hook.close()

    async def look(self) -> None:
        """Claim and tell what was reached. Raises StoreUnavailable."""
        alerts = await self._store.claim(every_s=self._look_s, deliver=self._hook is not None, rows_max=CLAIMS_MAX)
        while alerts:
            for alert in alerts:
                self._tell(alert)
            if len(alerts) < CLAIMS_MAX:
                break
            alerts = await self._store.claim(every_s=0, deliver=self._hook is not None, rows_max=CLAIMS_MAX)

    async def deliver(self) -> bool:
        """Post what is due, a few at a time; whether there may be more. Raises StoreUnavailable."""
        if self._hook is None:
            return False
        alerts = await self._store.take(rows_max=POSTS_MAX, lease_s=self._hook.timeout_s + _MARGIN_S)
        hook = self._hook  # a reload may have changed it meanwhile
        if hook is None:
            return False
        outcomes = await asyncio.gather(*(self._post(hook, alert) for alert in alerts), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        await self._let_go()
        return len(alerts) == POSTS_MAX

    def _tell(self, alert: Alert) -> None:
        self._reached(label(alert.name, alert.scope, alert.who), digits(alert.threshold))
        self._log.warning(
            "a budget has reached a threshold",
            budget=alert.name,
            subject=alert.who,
            threshold=digits(alert.threshold),
            spent_usd=str(alert.spent_usd),
            limit_usd=None if alert.limit_usd is None else str(alert.limit_usd),
            spent_tokens=alert.spent_tokens,
            limit_tokens=alert.limit_tokens,
            resets_at=None if alert.resets_at is None else alert.resets_at.isoformat(),
        )

    async def _post(self, hook: Hook, alert: Alert) -> None:
        why = await hook.post(alert, self._now())
        if why is None:
            await self._store.delivered(alert.id)
            return
        given_up = alert.tries >= self._tries_max
        await self._store.failed(alert.id, None if given_up else pause_s(alert.tries))
        facts = {"budget": alert.name, "alert": str(alert.id), "tries": alert.tries, "reason": why}
        if given_up:
            self._log.error("an alert is given up: its webhook did not take it", **facts)
        else:
            self._log.info("an alert was not delivered yet", **facts)

    async def _let_go(self) -> None:
        while self._retired:
            await self._retired.pop().close()

    async def _keep(self, work: Callable[[], Awaitable[bool | None]], share: int) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began, more = loop.time(), None
            try:
                more = await work()
            except StoreUnavailable:
                pass  # said elsewhere; nothing is lost, the table waits
            except Exception as error:
                self._log.error("news of budgets is late", **exception_facts(error))
            await self._sleep(0 if more else max(self._look_s, share * (loop.time() - began)))
