"""Many ledger rows at once, made by the database itself."""

from __future__ import annotations

import asyncpg

_FILL = """
INSERT INTO farebox.usage_entry (
    id, request_id, attempt, started_at, finished_at, key_name, team, session, tags, provider, dialect, endpoint,
    operation, requested_model, model, stream, status, outcome, input_tokens, cache_read_tokens, output_tokens,
    usage_source, usage_raw, cost_usd, cost_source, price_id, duration_ms, ttft_ms, tool_calls_count, tool_calls)
SELECT gen_random_uuid(), gen_random_uuid(), 1, $2::timestamptz - n * interval '1 second',
    $2::timestamptz - n * interval '1 second' + interval '900 ms',
    'key-' || n % 50, 'team-' || n % 7, 'session-' || n / 20, jsonb_build_object('tier', 'tier-' || n % 3),
    'openai', 'openai', '/v1/chat/completions', 'chat', 'gpt-' || n % 10, 'gpt-' || n % 10 || '-2026', true, 200,
    'complete', n % 1000, n % 100, n % 500, 'provider',
    '{"prompt_tokens": 100, "completion_tokens": 20, "prompt_tokens_details": {"cached_tokens": 10}}',
    (n % 1000) * 0.00000125 + (n % 500) * 0.00001, 'prices', 'openai/gpt/2026', 800 + n % 400, 200 + n % 100,
    CASE WHEN n % 10 = 0 THEN 1 ELSE 0 END,
    CASE WHEN n % 10 = 0 THEN '[{"name": "search", "count": 1, "argument_bytes": 20}]'::jsonb ELSE '[]' END
FROM generate_series(1, $1::bigint) AS n
"""


async def fill(dsn: str, number: int, newest: object) -> None:
    """`number` calls, one a second back from `newest`."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(_FILL, number, newest, timeout=600)
        await connection.execute("ANALYZE farebox.usage_entry", timeout=600)
    finally:
        await connection.close()
