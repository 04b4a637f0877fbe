"""Follows what other processes change in the database: looks now and then, and as soon as it is told to.

What is looked at, and what becomes of it, is the caller's; while a look fails, what was known stays in force.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from farebox.logs import exception_facts


async def follow(
    what: str, look: Callable[[], Awaitable[None]], *, wake: asyncio.Event, poll_s: Callable[[], float]
) -> None:
    """`look` every `poll_s()` seconds, or when `wake` is set, until cancelled. Of an outage the log has both ends."""
    log = structlog.get_logger()
    away = False
    while True:
        try:
            async with asyncio.timeout(poll_s()):
                await wake.wait()
        except TimeoutError:
            pass
        wake.clear()
        try:
            await look()
        except Exception as error:
            if not away:
                away = True
                log.warning(f"{what} can't be looked up: those in memory stay", **exception_facts(error))
            continue
        if away:
            away = False
            log.info(f"{what} can be looked up again")
