"""What a call costs when the ledger already holds millions of rows, against one that is empty. Linux.

    python tests/benchmarks/many_rows.py [ROWS]

Two fareboxes with everything on and databases of their own, on one embedded server on disk, take turns: CPU of farebox
and of Postgres for a small call, and its latency at one connection, with and without a budget. ROWS is ten million, of
a thousand keys over thirty days: about 8 GB in /tmp and twenty minutes, most of them to make the rows.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import asyncpg

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.overhead import scenarios, special, turns
from benchmarks.overhead.scenarios import Sample
from benchmarks.overhead.targets import Bench, Target

ROWS = 10_000_000
KEYS = 1_000
ROUNDS = 5
_BATCH = 250_000
_ROW_BYTES = 800
"""With its indexes and the log of its insertion, generously."""
_ID = (
    "(lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') "
    "|| '7' || substr({random}, 1, 3) || '8' || substr({random}, 4, 15))::uuid"
)
_INSERT = f"""
INSERT INTO farebox.usage_entry (
    id, request_id, attempt, started_at, finished_at, key_id, key_name, provider, dialect, endpoint, operation, status,
    outcome, requested_model, model, input_tokens, output_tokens, cache_read_tokens, reasoning_tokens, usage_source,
    usage_raw, cost_usd, cost_source, duration_ms, upstream_ms, overhead_ms)
SELECT {_ID.format(random="md5(n::text)")}, {_ID.format(random="md5((-n)::text)")}, 1, at, at + interval '1 second',
       key.id, key.name, 'mock', 'openai', '/v1/chat/completions', 'chat', 200, 'complete', 'whole', 'whole',
       97, 118, 0, 0, 'provider',
       '{{"prompt_tokens": 97, "completion_tokens": 118, "total_tokens": 215}}', 0.000333, 'prices', 1000, 990, 1
FROM (
    SELECT n, now() - interval '30 days' * (1 - n::float / $3) AS at FROM generate_series($1::bigint, $2) AS n
) AS calls
JOIN (SELECT id, name, row_number() OVER (ORDER BY id) - 1 AS place FROM farebox.key) AS key
  ON key.place = calls.n % {KEYS}
"""


async def fill(dsn: str, rows: int) -> None:
    """Put so many rows there, as if they had come over thirty days."""
    connection = await asyncpg.connect(dsn)
    try:
        # What they do for rows of farebox's own, none of these asks for.
        await connection.execute("ALTER TABLE farebox.usage_entry DISABLE TRIGGER USER")
        for first in range(1, rows + 1, _BATCH):
            await connection.execute(_INSERT, first, min(rows, first + _BATCH - 1), rows)
            turns.say(f"{first + _BATCH - 1:,} rows")
        await connection.execute("ALTER TABLE farebox.usage_entry ENABLE TRIGGER USER")
        await connection.execute("VACUUM ANALYZE farebox.usage_entry")
        size = await connection.fetchval("SELECT pg_total_relation_size('farebox.usage_entry')")
        print(f"{rows:,} rows, {size / 2**30:.1f} GB with their indexes")
    finally:
        await connection.close()


def started(bench: Bench, name: str, rows: int) -> list[Target]:
    """A farebox whose ledger holds so many rows: asked with a thousand keys, and with one that has a budget."""
    farebox = bench.farebox(name)
    secrets = bench.runner.run(special.insert_keys(farebox.dsn, KEYS))
    if rows:
        began = time.monotonic()
        bench.runner.run(fill(farebox.dsn, rows))
        turns.say(f"made in {time.monotonic() - began:.0f} s")
    running = farebox.start()
    plain = running.also(name, secrets)
    budgeted = running.also(f"{name}, budgeted", farebox.new_keys(1, budget_usd=100_000))
    for target in (plain, budgeted):
        scenarios.load(target, scenarios.SMALL)
    return [plain, budgeted]


def told(what: str, samples: Sequence[Sample], pick: Callable[[Sample], float]) -> None:
    """A line for each kind of key: with no rows, with many, and their ratio round by round."""
    for kind in ("", ", budgeted"):
        by_name = ({one.turn: pick(one) for one in samples if one.target == name + kind} for name in ("empty", "full"))
        empty, full = by_name
        ratios = [full[turn] / empty[turn] for turn in empty if turn in full and empty[turn]]
        if ratios:
            medians = f"{statistics.median(empty.values()):8.1f} {statistics.median(full.values()):8.1f} µs"
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            print(f"{what + kind:40} {medians}, ratio {statistics.median(ratios):.2f} ({spread})")


def main(rows: int) -> None:
    if shutil.disk_usage("/tmp").free < 2 * rows * _ROW_BYTES:
        sys.exit(f"/tmp needs {2 * rows * _ROW_BYTES / 2**30:.0f} GB free")
    with tempfile.TemporaryDirectory(prefix="farebox-bench-", dir="/tmp") as folder:
        bench = Bench(Path(folder), disk=Path("/tmp"))
        try:
            targets = started(bench, "empty", 0) + started(bench, "full", rows)
            busy = turns.take(bench, [(target, scenarios.SMALL) for target in targets], ROUNDS)
            alone = replace(scenarios.ALONE, seconds=3.0)
            single = turns.take(bench, [(target, alone) for target in targets], ROUNDS)
            bench.stop(targets)
        finally:
            bench.close()
    told("CPU a call", busy, lambda one: one.cpu_us)
    told("Postgres' CPU a call", busy, lambda one: one.postgres_us)
    told("latency p50, one connection", single, lambda one: float(one.came["latency"]["p50"]))
    told("latency p99, one connection", single, lambda one: float(one.came["latency"]["p99"]))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROWS)
