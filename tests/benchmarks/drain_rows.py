"""What a row costs on its way from the journal into the ledger: farebox's CPU and Postgres', per 1,000 rows.

    python tests/benchmarks/drain_rows.py [ROWS_THERE ...]

On a fresh embedded server, with as many rows in the ledger before as is said (0 and 1,000,000, if nothing is). The
drain's batches are as large as they become under load, and half, a tenth of it: what comes once a batch shows.
Postgres' CPU is that of all its processes, checkpoints and the writing of its log included.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import msgspec

sys.path.insert(0, str(Path(__file__).parents[1]))

from farebox.ids import Ids
from farebox.payload import encode
from farebox.records import UsageEvent
from farebox.store import Store
from support.bulk import fill
from support.postgres import PostgresServer
from support.process import embedded_postgres_pid

ROWS = 20_000
KEYS = [(UUID(int=n), f"key-{n}") for n in range(1, 21)]
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def events(number: int) -> Iterator[bytes]:
    """Ordinary calls of a few keys, as they are journalled."""
    ids, now = Ids(os.urandom), datetime.now(UTC)
    for n in range(number):
        at = now + timedelta(milliseconds=n)
        id = ids.mint(at.timestamp())
        key_id, key_name = KEYS[n % len(KEYS)]
        yield encode(
            UsageEvent(
                id=id,
                request_id=id,
                attempt=1,
                started_at=at,
                finished_at=at + timedelta(milliseconds=900),
                key_id=key_id,
                key_name=key_name,
                provider="openai",
                dialect="openai",
                endpoint="/v1/chat/completions",
                operation="chat",
                requested_model="gpt-5-mini",
                model="gpt-5-mini-2026-08-07",
                status=200,
                outcome="complete",
                input_tokens=1234,
                cache_read_tokens=0,
                output_tokens=321,
                reasoning_tokens=0,
                usage_source="provider",
                usage_raw=msgspec.Raw(b'{"prompt_tokens":1234,"completion_tokens":321,"total_tokens":1555}'),
                cost_usd=Decimal("0.00123"),
                cost_source="prices",
                price_id="openai/gpt-5-mini/2026-08-07",
                duration_ms=900.0,
                upstream_ms=899.5,
                overhead_ms=0.5,
            )
        )


def cpu(root: int) -> float:
    """Seconds of CPU of a process, its children, and theirs that have ended."""
    total, parents = 0.0, {root}
    for entry in sorted(int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()):
        try:
            fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if entry == root or int(fields[1]) in parents:
            parents.add(entry)
            total += sum(map(int, fields[11:15] if entry == root else fields[11:13])) * _TICK_S
    return total


async def insert(store: Store, pid: int, batch: int) -> None:
    """Print one line."""
    made = list(events(ROWS))
    theirs, begun = cpu(pid), time.perf_counter()
    own = time.process_time()
    for first in range(0, ROWS, batch):
        await store.insert_events(made[first : first + batch])
    own = time.process_time() - own
    rate = ROWS / (time.perf_counter() - begun)
    theirs = cpu(pid) - theirs
    print(
        f"  batches of {batch:4}: farebox {own / ROWS * 1e6:5.1f} ms, Postgres {theirs / ROWS * 1e6:5.1f} ms of CPU "
        f"per 1,000 rows; {rate:7,.0f} rows/s"
    )


async def main(server: PostgresServer, sizes: list[int]) -> None:
    pid = embedded_postgres_pid(server.folder)
    assert pid is not None
    async with server.database() as dsn:
        store = Store(dsn, statement_timeout_s=600)
        await store.open()
        there = 0
        for size in sizes:
            if size > there:
                await fill(dsn, size - there, datetime.now(UTC) - timedelta(days=1))
                there = size
            print(f"{size:,} rows there")
            for batch in (50, 250, 500):
                await insert(store, pid, batch)
        await store.close()


if __name__ == "__main__":
    postgres = PostgresServer()
    postgres.start()
    try:
        asyncio.run(main(postgres, [int(size) for size in sys.argv[1:]] or [0, 1_000_000]))
    finally:
        postgres.delete()
