"""How long the price book's start takes, and a reprice of many calls, and what memory that needs.

    python tests/benchmarks/reprice_rows.py [CALLS]

On a fresh embedded server, every call corrected once, then looked at again.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from farebox.pricebook import current_pricer
from farebox.repricing import Tally, reprice
from farebox.store import Store
from farebox.store.corrections import Corrections, Wanted
from support.config import OPENAI, providers, read
from support.postgres import PostgresServer

_CALLS = """
INSERT INTO farebox.usage_entry (
    id, request_id, attempt, started_at, finished_at, provider, dialect, endpoint, operation, outcome, requested_model,
    model, input_tokens, output_tokens, cache_read_tokens, reasoning_tokens, usage_source, usage_raw, cost_usd,
    cost_source)
SELECT gen_random_uuid(), gen_random_uuid(), 1, at, at, 'openai', 'openai', '/v1/chat/completions', 'chat', 'complete',
       'gpt-4o-mini', 'gpt-4o-mini-2024-07-18', n % 5000, n % 700, n % 100, n % 7, 'provider',
       '{"prompt_tokens": 12, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 0}}', 0.001, 'prices'
FROM (SELECT n, timestamptz '2026-11-01' + n * interval '1 second' AS at FROM generate_series(1, $1) AS n) AS calls
"""
WANTED = Wanted(since=datetime(2026, 1, 1, tzinfo=UTC), until=datetime(2036, 1, 1, tzinfo=UTC), providers=["openai"])


async def main(server: PostgresServer, calls: int) -> None:
    config = read(providers(OPENAI))
    async with server.database() as dsn:
        store = Store(dsn, statement_timeout_s=600)
        await store.open()
        for what in ("first start", "next start"):
            begun = time.perf_counter()
            pricer = await current_pricer(store, config.providers)
            print(f"{what:<12} {time.perf_counter() - begun:7.3f} s, {len(pricer.book):,} prices")
        async with store.connection() as connection:
            await connection.execute(_CALLS, calls)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for what in ("correct", "again"):
            begun, cpu = time.perf_counter(), time.process_time()
            tally: Tally = await reprice(Corrections(store), pricer.price, WANTED)
            spent = time.perf_counter() - begun
            print(
                f"{what:<12} {spent:7.2f} s, of that {time.process_time() - cpu:.2f} s here, "
                f"{tally.rows / spent:,.0f} calls/s, {tally.corrected:,} corrected"
            )
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(f"memory       {grown / 1024:7.1f} MB more at its peak")
        await store.close()


if __name__ == "__main__":
    server = PostgresServer()
    server.start()
    try:
        asyncio.run(main(server, int(sys.argv[1]) if len(sys.argv) > 1 else 100_000))
    finally:
        server.delete()
