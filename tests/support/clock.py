"""Clocks that do as a test says: the one budgets go by, stopped at no minute's or month's end, and the event loop's."""

from __future__ import annotations

import asyncio

import asyncpg


async def stop_clock(database: str, moment: str = "now") -> None:
    """Make it that time for all budgets of this database, and leave it there."""
    connection = await asyncpg.connect(database)
    try:
        stopped = await connection.fetchval("SELECT ($1::text::timestamptz)::text", moment)
        await connection.execute(
            "CREATE OR REPLACE FUNCTION farebox.clock() RETURNS timestamptz LANGUAGE sql STABLE "
            f"AS $$ SELECT timestamptz '{stopped}' $$"
        )
    finally:
        await connection.close()


class Leaps:
    """Makes the running loop's time go on by leaps: what is due in between is called."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._time, self._ahead = self._loop.time, 0.0
        self._loop.time = lambda: self._time() + self._ahead  # type: ignore[method-assign]

    async def by(self, seconds: float) -> None:
        self._ahead += seconds
        for _ in range(5):
            await asyncio.sleep(0)
