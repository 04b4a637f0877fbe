"""A process that reserves for two calls, begins one of them, says so, and waits to be killed.

Arguments: the database's URL, the folder of its journal.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from support.budgets import replica


async def main(database: str, folder: Path) -> None:
    async with replica(database, folder, boot="boot") as running:
        ask, applied = running.ask_of("3")
        await running.budgets.reserve(ask, wait_s=0, applied=applied)
        running.ledger.begin(ask.id, ask.facts)
        await running.reserve("5")
        print("held", flush=True)
        await asyncio.Event().wait()


asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
