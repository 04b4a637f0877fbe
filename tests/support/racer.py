"""A replica that spends as fast as it can, to be killed at any moment: `python -m support.racer JSON`.

Each caller asks a budget, then the provider (a line over TCP, which the provider answers with what it billed), then
settles. Some leave while they wait, some give their hold back unsent, some take long, some ask for more. Whoever finds
room in a float holds out of that. Without callers it only brings what its journal holds into the database. It says
`ready`, and `drained` when nothing is left in its journal.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from farebox.budgets import Applied, Settings
from farebox.budgets.floats import Part
from farebox.errors import Unavailable
from farebox.records import Caller
from farebox.store.budgets import Ask, Draw
from support.budgets import Replica, replica
from support.events import event


def callers_of(keys: int) -> list[Caller]:
    """Keys in teams of five."""
    return [
        Caller(kind="virtual", key_id=UUID(int=number + 1), key_name=f"key-{number}", team=f"team-{number // 5}")
        for number in range(keys)
    ]


class Racer:
    def __init__(self, running: Replica, given: dict[str, Any]) -> None:
        self.running = running
        self.random = random.Random(given["seed"])
        self.port: int = given["port"]
        self.callers = callers_of(given["keys"])
        self.bound_max: int = given["bound_max"]
        """Cents."""

    async def call_forever(self) -> None:
        """One caller, one call after another."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        while True:
            await self.call(reader, writer)

    async def call(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        budgets, ledger, chance = self.running.budgets, self.running.ledger, self.random.random()
        bound = self.random.randint(1, self.bound_max)
        caller = self.random.choice(self.callers)
        ask, applied = self.running.ask_of(str(Decimal(bound) / 100), caller)
        drawn = budgets.draw(Part.of(ask.wants), applied)
        hold = None if drawn is None else drawn.hold
        if hold is None and not await self.reserved(ask, applied, chance):
            return
        if chance < 0.2:
            budgets.release(ask.id, hold)
            return
        if hold is None:
            ledger.begin(ask.id, ask.facts)
        else:
            self.running.begin_drawn(ask, hold)
        how = "reserved" if hold is None else "drawn"
        writer.write(f"{ask.id} {caller.key_name} {caller.team} {bound} {how}\n".encode())
        cents = int(await reader.readline())
        if chance > 0.9:
            draw = None if hold is None else Draw(ask.id, hold, ask.facts)
            await budgets.extend(ask.id, Decimal(2 * bound) / 100, 0, draw)
        await asyncio.sleep(self.random.random() * (0.8 if chance > 0.97 else 0.02))
        ids = [str(one.budget.id) for one in applied]
        cost = Decimal(cents) / 100
        ended = event(id=ask.id, cost_usd=cost, usage_source="provider", budget_ids=ids, key_id=caller.key_id)
        ended.from_float = hold
        ledger.record(ended)
        if hold is not None:
            budgets.recorded(hold)

    async def reserved(self, ask: Ask, applied: Sequence[Applied], chance: float) -> bool:
        """Whether the call may go out; after a pause if not."""
        try:
            async with asyncio.timeout(0.004 if chance < 0.1 else None):
                wait_s = 0.1 if chance > 0.8 else 0
                grant = await self.running.budgets.reserve(ask, wait_s=wait_s, applied=applied)
        except (Unavailable, TimeoutError):
            await asyncio.sleep(0.01)
            return False
        if grant.state != "open":
            await asyncio.sleep(0.05 * self.random.random())
        return grant.state == "open"


async def main(given: dict[str, Any]) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    settings = Settings(lease_s=given["lease_s"], poll_s=5.0)
    async with replica(given["database"], Path(given["folder"]), settings=settings, boot="one") as running:
        print("ready", flush=True)
        racer = Racer(running, given)
        tasks = [asyncio.create_task(racer.call_forever()) for _ in range(given["callers"])]
        if not tasks:
            await running.ledger.flush(30)
            print("drained", flush=True)
        await ended.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
