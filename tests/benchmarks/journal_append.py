"""What one call costs the ledger: `begin` and `record`, with the making of what they write, and the drain's share.

    python tests/benchmarks/journal_append.py [CALLS]

CPU is this process's own (the sync thread included), in microseconds a call. The second column leaves `pwrite`
out: it is replaced by nothing, so what remains is Python's. The drain follows every `DRAINED` calls, as it does
when Postgres keeps up, and goes nowhere; `behind` is the drain of ends that are in the files only.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import msgspec

from farebox.accounting import Attempt
from farebox.journal import Journal
from farebox.kinds import Kind
from farebox.ledger import Ledger
from farebox.paths import parse
from farebox.payload import encode
from farebox.records import Caller, ToolCall, UsageEvent
from farebox.rows import begun

IN_FLIGHT = 100
DRAINED = 400
NOW = datetime(2026, 11, 22, tzinfo=UTC)
KIND = Kind(
    caller=Caller(kind="virtual", key_id=UUID(int=1), key_name="ci", team="research"),
    target=parse("POST", "/v1/chat/completions"),
    provider="openai",
    dialect="openai",
    model="gpt-5-mini",
    stream=True,
    tags={"tier": "cheap"},
)


def event(number: int) -> UsageEvent:
    """An event with about as much in it as a chat with tools leaves."""
    return UsageEvent(
        id=UUID(int=number),
        request_id=UUID(int=number),
        attempt=1,
        started_at=NOW,
        finished_at=NOW,
        key_id=UUID(int=1),
        key_name="ci",
        team="research",
        session="0193f0c2-7d1e-7b52-9d0a-1c2d3e4f5a6b",
        tags={"tier": "cheap"},
        provider="openai",
        dialect="openai",
        endpoint="/v1/chat/completions",
        operation="chat",
        requested_model="gpt-5-mini",
        model="gpt-5-mini-2026-08-07",
        stream=True,
        status=200,
        outcome="complete",
        input_tokens=1234,
        cache_read_tokens=1024,
        output_tokens=321,
        reasoning_tokens=64,
        usage_source="provider",
        usage_raw=msgspec.Raw(b'{"prompt_tokens":1234,"completion_tokens":321,"total_tokens":1555}'),
        cost_usd=Decimal("0.00123"),
        duration_ms=1234.567,
        ttft_ms=321.0,
        upstream_ms=1230.1,
        overhead_ms=0.4,
        tool_calls_count=1,
        tool_calls=[ToolCall("search", 1, 40)],
    )


def attempt(number: int) -> Attempt:
    """The attempt that ends as `event`."""
    id = UUID(int=number)
    return Attempt(
        id=id,
        request_id=id,
        number=1,
        kind=KIND,
        session="0193f0c2-7d1e-7b52-9d0a-1c2d3e4f5a6b",
        request_bytes=5000,
        started_at=NOW,
        received=0.0,
        sent=0.0,
    )


async def _nowhere(events: object) -> int:
    return 0


async def measure(calls: int) -> None:
    """Print one table."""
    attempts, events = [attempt(n) for n in range(calls)], [event(n) for n in range(calls)]
    sizes = len(begun(attempts[0])), len(encode(events[0]))
    print(f"{calls} calls, begin {sizes[0]} bytes, end {sizes[1]}; us a call    with pwrite   without")
    real: Callable[[int, bytes, int], int] = os.pwrite
    columns: list[dict[str, float]] = []
    for write in (real, lambda fd, data, offset: len(data)):
        with tempfile.TemporaryDirectory() as folder:
            ledger = Ledger(Path(folder), open_journal=Journal.open, deliver=_nowhere, interval_s=3600)
            await ledger.open()
            os.pwrite = write  # type: ignore[assignment]
            try:
                columns.append(await _spent(ledger, attempts, events, follow=True))
                if write is real:
                    behind = await _spent(ledger, attempts, events, follow=False)
                    columns[0]["behind"] = behind["drain"]
            finally:
                os.pwrite = real
            for task in ledger._tasks:
                task.cancel()
            ledger._journal._resources.close()
    for name in columns[0]:
        values = [f"{column[name] / calls * 1e6:10.2f}" if name in column else " " * 10 for column in columns]
        print(f"{name:<44}{values[0]}{values[1]}")


async def _spent(
    ledger: Ledger, attempts: list[Attempt], events: list[UsageEvent], *, follow: bool
) -> dict[str, float]:
    spent = {"begin": 0.0, "record": 0.0, "drain": 0.0}
    for first in range(0, len(events), IN_FLIGHT):
        group = slice(first, first + IN_FLIGHT)
        start = time.process_time()
        for one in attempts[group]:
            ledger.begin(one.id, begun(one))
        middle = time.process_time()
        for ended in events[group]:
            ledger.record(ended)
        spent["begin"] += middle - start
        spent["record"] += time.process_time() - middle
        if follow and (first + IN_FLIGHT) % DRAINED == 0:
            spent["drain"] += await _drained(ledger)
    spent["drain"] += await _drained(ledger)
    return spent | {"together": sum(spent.values())}


async def _drained(ledger: Ledger) -> float:
    start = time.process_time()
    assert await ledger.flush(600)
    return time.process_time() - start


if __name__ == "__main__":
    asyncio.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000))
