"""The clock that budgets go by, stopped: so that no test meets the end of a minute, an hour, a day or a month."""

from __future__ import annotations

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
