-- What is asked of the ledger, all of it over the view `farebox.usage`. The filter comes first in every
-- statement, so that it is written down once; what was not asked for is NULL and drops out when the
-- statement is planned, which farebox has done anew each time, with the values known.

-- name: matching
-- The filter, $1 to $14, for a WHERE over `farebox.usage`. `since` is in, `until` is not.
($1::timestamptz IS NULL OR started_at >= $1)
  AND ($2::timestamptz IS NULL OR started_at < $2)
  AND ($3::timestamptz IS NULL OR finished_at >= $3)
  AND ($4::uuid IS NULL OR key_id = $4)
  AND ($5::text IS NULL OR key_name = $5)
  AND ($6::text IS NULL OR team = $6)
  AND ($7::text IS NULL OR project = $7)
  AND ($8::text IS NULL OR end_user = $8)
  AND ($9::text IS NULL OR provider = $9)
  AND ($10::text IS NULL OR coalesce(model, requested_model) = $10)
  AND ($11::text IS NULL OR session = $11)
  AND ($12::text IS NULL OR outcome = $12)
  AND ($13::jsonb IS NULL OR tags @> $13)
  AND ($14::uuid IS NULL OR request_id = $14)

-- name: label
-- What a row is grouped under; anything that is not named here is `tag:NAME`. $18: the time zone of the
-- calendar. An hour is told in UTC, because a zone may have the same one twice.
CASE $by::text
        WHEN 'key' THEN key_name WHEN 'team' THEN team WHEN 'project' THEN project WHEN 'user' THEN end_user
        WHEN 'session' THEN session WHEN 'provider' THEN provider WHEN 'model' THEN coalesce(model, requested_model)
        WHEN 'operation' THEN operation WHEN 'endpoint' THEN endpoint WHEN 'outcome' THEN outcome
        WHEN 'status' THEN status::text WHEN 'usage_source' THEN usage_source WHEN 'tool' THEN tool->>'name'
        WHEN 'minute' THEN to_char(started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI"Z"')
        WHEN 'hour' THEN
            to_char(date_trunc('hour', started_at, $18::text) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI"Z"')
        WHEN 'day' THEN to_char(started_at AT TIME ZONE $18::text, 'YYYY-MM-DD')
        WHEN 'week' THEN to_char(date_trunc('week', started_at AT TIME ZONE $18::text), 'YYYY-MM-DD')
        WHEN 'month' THEN to_char(started_at AT TIME ZONE $18::text, 'YYYY-MM')
        ELSE tags->>substr($by::text, 5)
    END

-- name: totals
-- The sums of any set of rows. A sum of money leaves out what is not known, and says how many rows that were.
count(*) AS calls,
        sum(input_tokens)::bigint AS input_tokens,
        sum(cache_read_tokens)::bigint AS cache_read_tokens,
        sum(cache_write_tokens)::bigint AS cache_write_tokens,
        sum(output_tokens)::bigint AS output_tokens,
        sum(reasoning_tokens)::bigint AS reasoning_tokens,
        sum(total_tokens)::bigint AS total_tokens,
        trim_scale(sum(cost_usd))::text AS cost_usd,
        count(*) FILTER (WHERE cost_usd IS NULL) AS unknown_cost,
        count(*) FILTER (WHERE outcome IN ('upstream_error', 'upstream_cut', 'farebox_cut')) AS errors,
        percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY duration_ms) AS durations_ms,
        percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY ttft_ms) AS ttfts_ms,
        min(started_at) AS first_at,
        max(started_at) AS last_at

-- name: report_sums
-- Sums by up to three groupings $15, $16, $17 (NULL: none), the latest times first, then the most expensive;
-- at most $19 groups. $20: by tool, where a call stands once under each tool it called.
SELECT * FROM (
    SELECT {{label $15}} AS label_1,
        {{label $16}} AS label_2,
        {{label $17}} AS label_3,
        {{totals}},
        (CASE WHEN $20::boolean THEN sum((tool->>'count')::bigint) ELSE sum(tool_calls_count) END)::bigint AS tool_calls
    FROM farebox.usage LEFT JOIN LATERAL jsonb_array_elements(tool_calls) AS tool ON $20
    WHERE {{matching}}
      AND (NOT $20 OR tool IS NOT NULL)
    GROUP BY 1, 2, 3
) AS sums
ORDER BY CASE WHEN $15 IN ('minute', 'hour', 'day', 'week', 'month') THEN label_1 END DESC NULLS LAST,
         CASE WHEN $16 IN ('minute', 'hour', 'day', 'week', 'month') THEN label_2 END DESC NULLS LAST,
         CASE WHEN $17 IN ('minute', 'hour', 'day', 'week', 'month') THEN label_3 END DESC NULLS LAST,
         cost_usd::numeric DESC NULLS LAST, total_tokens DESC NULLS LAST, calls DESC, label_1, label_2, label_3
LIMIT $19

-- name: report_count
SELECT count(*) AS calls FROM farebox.usage WHERE {{matching}}

-- name: report_spend
-- The sums that cost no sorting, for totals that are asked for often.
SELECT count(*) AS calls,
    sum(total_tokens)::bigint AS total_tokens,
    trim_scale(sum(cost_usd))::text AS cost_usd,
    count(*) FILTER (WHERE cost_usd IS NULL) AS unknown_cost,
    count(*) FILTER (WHERE outcome IN ('upstream_error', 'upstream_cut', 'farebox_cut')) AS errors
FROM farebox.usage
WHERE {{matching}}

-- name: report_rows
-- Newest first, keyset paging: $15, $16 the place of the last row of the page before (NULL: from the top),
-- $17 rows at most. Money as text, digit by digit.
SELECT
    id, request_id, attempt, started_at, finished_at, key_id, key_name, team, project, end_user, session, tags,
    provider, dialect, endpoint, operation, requested_model, model, service_tier, stream, status, outcome,
    upstream_request_id, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens,
    audio_input_tokens, audio_output_tokens, image_tokens, total_tokens, units, usage_source, usage_raw,
    cost_usd::text AS cost_usd, cost_source, provider_cost_usd::text AS provider_cost_usd, price_id, budget_ids,
    duration_ms, ttft_ms, upstream_ms, overhead_ms, tool_calls_count, tool_calls, error_type, error_code
FROM farebox.usage
WHERE ($15::timestamptz IS NULL OR (started_at, id) < ($15, $16::uuid))
  AND {{matching}}
ORDER BY started_at DESC, id DESC
LIMIT $17

-- name: report_sessions
-- Sums by session, the last seen first, keyset paging: $15, $16 the last `last_at` and session of the page
-- before (NULL: from the top), $17 sessions at most. Lists of names are cut at 20. Which sessions is found
-- out first, and cheaply; only those are summed, by their index.
WITH page AS MATERIALIZED (
    SELECT session
    FROM farebox.usage
    WHERE session IS NOT NULL AND {{matching}}
    GROUP BY session
    HAVING $15::timestamptz IS NULL OR (max(started_at), session) < ($15, $16::text)
    ORDER BY max(started_at) DESC, session DESC
    LIMIT $17
)
SELECT page.session, sums.*, called.tools
FROM page CROSS JOIN LATERAL (
    SELECT {{totals}},
        sum(tool_calls_count)::bigint AS tool_calls,
        (array_agg(DISTINCT coalesce(model, requested_model))
            FILTER (WHERE coalesce(model, requested_model) IS NOT NULL))[1:20] AS models,
        (array_agg(DISTINCT key_name) FILTER (WHERE key_name IS NOT NULL))[1:20] AS keys,
        (array_agg(DISTINCT end_user) FILTER (WHERE end_user IS NOT NULL))[1:20] AS users,
        (array_agg(DISTINCT provider))[1:20] AS providers
    FROM farebox.usage AS usage
    WHERE usage.session = page.session AND {{matching}}
) AS sums LEFT JOIN LATERAL (
    SELECT (array_agg(DISTINCT tool->>'name'))[1:20] AS tools
    FROM farebox.usage AS usage CROSS JOIN LATERAL jsonb_array_elements(tool_calls) AS tool
    WHERE usage.session = page.session AND tool_calls_count > 0 AND {{matching}}
) AS called ON sums.tool_calls > 0
ORDER BY last_at DESC, session DESC

-- name: list_usage
-- Newest first, keyset paging: $15, $16 the place of the last row of the page before (NULL: from the top),
-- $17 rows at most.
SELECT * FROM farebox.usage
WHERE ($15::timestamptz IS NULL OR (started_at, id) < ($15, $16::uuid))
  AND {{matching}}
ORDER BY started_at DESC, id DESC
LIMIT $17

-- name: report_tools
-- Tool calls by name, the most called first, at most $15.
SELECT tool->>'name' AS tool,
       count(*) AS calls,
       sum((tool->>'count')::bigint)::bigint AS tool_calls,
       sum((tool->>'argument_bytes')::bigint)::bigint AS argument_bytes
FROM farebox.usage CROSS JOIN LATERAL jsonb_array_elements(tool_calls) AS tool
WHERE tool_calls_count > 0
  AND {{matching}}
GROUP BY 1
ORDER BY tool_calls DESC NULLS LAST, 1
LIMIT $15
