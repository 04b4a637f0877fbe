"""Budgets as a process has them: service, journal and drain on a real database, without the proxy around them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec

from farebox.budgets import Applied, Budgets, Drain, Settings
from farebox.budgets.floating import IDLE_S
from farebox.budgets.floats import Part
from farebox.budgets.lives import Lives
from farebox.journal import Journal
from farebox.ledger import Delivery, Ledger
from farebox.payload import encode
from farebox.records import Budget, Caller, FloatHold, Want
from farebox.store import Store, is_refusal
from farebox.store.budgets import Ask, BudgetStore, Grant, WindowState
from farebox.store.owners import Owners
from support.events import event

WAIT_S = 30.0
PROMPT = Settings(poll_s=0.05)
ANN = Caller(kind="virtual", key_id=UUID(int=1), key_name="ann", team="research")
BOB = Caller(kind="virtual", key_id=UUID(int=2), key_name="bob", team="research")


def leave_idle(budgets: Budgets) -> None:
    """Let its floats look unused for as long as they may be."""
    floats = budgets.floats
    now = floats._monotonic
    floats._monotonic = lambda: now() + IDLE_S


class Replica:
    """One process. `wait_s` of an ask is the test's to say."""

    def __init__(self, store: Store, budgets: Budgets, ledger: Ledger, caller: Caller = ANN) -> None:
        self.store = store
        self.budgets = budgets
        self.ledger = ledger
        self.caller = caller
        """Who calls, unless a test says otherwise."""
        self.crashed = False
        """The test left it as kill -9 does: nothing is ended in order."""

    def ask_of(self, usd: str, caller: Caller | None = None, **more: Any) -> tuple[Ask, tuple[Applied, ...]]:
        """An ask for `usd` of every budget that counts `caller`."""
        caller = caller or self.caller
        applied = self.budgets.applying(caller, "m", None)
        assert applied, "no budget counts this caller"
        wants = tuple(Want(one.budget.id, one.subject, Decimal(usd), more.get("tokens", 0)) for one in applied)
        id = uuid4()
        facts = encode(
            event(
                id=id,
                cost_usd=Decimal(usd),
                usage_source="hold",
                outcome="farebox_cut",
                budget_ids=[str(one.budget.id) for one in applied],
                key_id=caller.key_id,
            )
        )
        return Ask(id, wants, facts), applied

    async def reserve(self, usd: str, caller: Caller | None = None, *, wait_s: float = 0, **more: Any) -> Grant:
        """One call's reserve."""
        ask, applied = self.ask_of(usd, caller, **more)
        return await self.budgets.reserve(ask, wait_s=wait_s, applied=applied)

    def begin(self, grant: Grant) -> None:
        """The call goes out."""
        self.ledger.begin(
            grant.id,
            encode(
                event(
                    id=grant.id,
                    outcome="farebox_cut",
                    usage_source="hold",
                    budget_ids=[str(window.budget) for window in grant.windows],
                )
            ),
        )

    def settle(self, grant: Grant, usd: str, *, begin: bool = True) -> None:
        """The call goes out and comes back with its cost."""
        if begin:
            self.begin(grant)
        self.ledger.record(
            event(
                id=grant.id,
                cost_usd=Decimal(usd),
                usage_source="provider",
                budget_ids=[str(window.budget) for window in grant.windows],
            )
        )

    def draw(self, usd: str, **more: Any) -> tuple[Ask, FloatHold | None]:
        """One call's hold out of a float, if there is one with room."""
        ask, applied = self.ask_of(usd, **more)
        drawn = self.budgets.draw(Part.of(ask.wants), applied)
        return ask, drawn.hold if drawn is not None else None

    def begin_drawn(self, ask: Ask, drawn: FloatHold) -> None:
        """A call that drew goes out."""
        facts = {name: value for name, value in msgspec.json.decode(ask.facts).items() if name != "id"}
        begun = event(id=ask.id, from_float=drawn, **{n: facts[n] for n in ("outcome", "usage_source", "budget_ids")})
        begun.cost_usd = max(drawn.usd)
        self.ledger.begin(ask.id, encode(begun))

    def settle_drawn(self, ask: Ask, drawn: FloatHold, usd: str) -> None:
        """It goes out and comes back with its cost."""
        self.begin_drawn(ask, drawn)
        ids = [str(want.budget) for want in ask.wants]
        self.ledger.record(
            event(id=ask.id, cost_usd=Decimal(usd), usage_source="provider", budget_ids=ids, from_float=drawn)
        )
        self.budgets.recorded(drawn)

    async def float(self, usd: str, **more: Any) -> FloatHold:
        """Call often enough to get a float; what the first call out of it holds. The others are given back."""
        async with asyncio.timeout(WAIT_S):
            while True:
                ask, drawn = self.draw(usd, **more)
                if drawn is not None:
                    return drawn
                grant = await self.budgets.reserve(ask, wait_s=0, applied=self.budgets.applying(self.caller, "m", None))
                assert grant.state == "open"
                self.budgets.release(ask.id)
                await asyncio.sleep(0.01)

    async def window(self) -> WindowState:
        """The counters of the caller's first budget, as they are."""
        ask, applied = self.ask_of("0")
        grant = await self.budgets.reserve(ask, wait_s=0, applied=applied)
        self.budgets.release(grant.id)
        assert await self.budgets.releases.flush(WAIT_S)
        return grant.windows[0]


class Home:
    """Two processes on one database, for many tests: each has callers and budgets of its own."""

    def __init__(self, one: Replica, two: Replica) -> None:
        self.one = one
        self.two = two

    async def both(self, *budgets: dict[str, Any]) -> tuple[Replica, Replica]:
        """The two, seen by a new key with these budgets (by default totals): in force in both."""
        name = f"key-{uuid4().hex[:12]}"
        caller = Caller(kind="virtual", key_id=uuid4(), key_name=name)
        for number, fields in enumerate(budgets):
            await put(self.one.store, f"{name}-{number}", **{"scope": "key", "only": [name]} | fields)
        processes = (self.one, self.two)
        for process in processes:
            await process.budgets.refresh()
        one, two = (Replica(p.store, p.budgets, p.ledger, caller) for p in processes)
        return one, two

    async def key(self, *budgets: dict[str, Any]) -> Replica:
        """One of them, seen by a new key."""
        one, _ = await self.both(*budgets)
        return one


def journal_in(folder: Path) -> Journal:
    """A journal that waits for no disk."""
    return Journal.open(folder, segment_bytes=256 * 1024, max_bytes=64 * 1024 * 1024, fsync_ms=1)


@asynccontextmanager
async def replica(
    database: str,
    folder: Path,
    *,
    interval_s: float = 0.002,
    settings: Settings = PROMPT,
    configured: Any = (),
    boot: str | None = None,
) -> AsyncIterator[Replica]:
    """A process on `database` with its journal in `folder`, ended in order at the end."""
    store = Store(database, pool_size_max=3)
    await store.open()
    quick = store.beside(connections=4, connect_timeout_s=1, statement_timeout_s=5)
    await quick.open()
    ledger = Ledger(
        folder,
        open_journal=journal_in,
        deliver=Delivery(
            store.insert_events, is_refusal=is_refusal, refused_file=folder / "refused.jsonl", pause_s=0.01
        ),
        interval_s=interval_s,
        stored=lambda: budgets.wake(),
        adopted=lambda journal, whole: budgets.adopt(Lives(journal, boot, whole=whole)),
        adopt_every_s=0.05,
    )
    await ledger.open()
    budgets = Budgets(
        BudgetStore(quick),
        BudgetStore(store),
        Owners(store),
        configured,
        label=f"test {uuid4()}",
        drain=Drain(ledger.settled, lambda: not ledger.backlog.events, lambda: ledger.lost),
        settings=settings,
    )
    running = Replica(store, budgets, ledger)
    try:
        await budgets.start(Lives(ledger.folder, boot, whole=ledger.whole))
        yield running
    finally:
        if not running.crashed:
            await ledger.close(WAIT_S)
            await budgets.close()
        await quick.close()
        await store.close()


async def put(store: Store, name: str = "b", **fields: Any) -> Budget:
    """A budget, made by the API."""
    plain: dict[str, Any] = {"scope": "global", "window": "total"}
    return await BudgetStore(store).put_budget(name, plain | fields, "api", "test")


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something another task is about to do."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.005)
