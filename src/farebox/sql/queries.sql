-- The store's queries, called by name. Every statement stands alone: no session state and no prepared
-- statement outlives it, so all of it works through PgBouncer in transaction mode.

-- name: posting_columns
-- Everything of a posting but when it was posted.
id, posting_no, request_id, attempt, started_at, finished_at,
key_id, key_name, team, project, end_user, session, tags,
provider, dialect, endpoint, operation, requested_model, model, service_tier, stream, status, outcome,
upstream_request_id, input_tokens, cache_read_tokens, cache_write_tokens, cache_write_1h_tokens,
output_tokens, reasoning_tokens, audio_input_tokens, audio_output_tokens, image_tokens, units, usage_source,
usage_raw, cost_usd, cost_source, provider_cost_usd, price_id, budget_ids, duration_ms, ttft_ms, upstream_ms,
overhead_ms, tool_calls_count, tool_calls, error_type, error_code, unparsed_events

-- name: insert_events
-- $1: a JSON array of events, members named like columns. A new id becomes an original. An id that is
-- stored as cut off by farebox and now comes with an answer is corrected by one; all else is known
-- already and left out. Answers how many postings were added, and how many should have been: fewer
-- were when another session added the same id at the same moment, and then asking again settles it.
WITH incoming AS MATERIALIZED (
    SELECT DISTINCT ON (id) *
    FROM json_to_recordset($1::json) AS event(
        id uuid, request_id uuid, attempt integer, started_at timestamptz, finished_at timestamptz,
        key_id uuid, key_name text, team text, project text, end_user text, session text, tags jsonb,
        provider text, dialect text, endpoint text, operation text, requested_model text, model text,
        service_tier text, stream boolean, status smallint, outcome text, upstream_request_id text,
        input_tokens bigint, cache_read_tokens bigint, cache_write_tokens bigint, cache_write_1h_tokens bigint,
        output_tokens bigint, reasoning_tokens bigint, audio_input_tokens bigint, audio_output_tokens bigint,
        image_tokens bigint, units jsonb, usage_source text, usage_raw jsonb, cost_usd numeric, cost_source text,
        provider_cost_usd numeric, price_id text, budget_ids text[], duration_ms double precision,
        ttft_ms double precision, upstream_ms double precision, overhead_ms double precision,
        tool_calls_count integer, tool_calls jsonb, error_type text, error_code text, unparsed_events integer)
    ORDER BY id, (outcome = 'farebox_cut')
),
judged AS MATERIALIZED (
    SELECT
        id, coalesce(newest.posting_no, 0) + 1 AS posting_no,
        request_id, attempt, started_at, finished_at, key_id, key_name, team, project, end_user, session,
        coalesce(tags, '{}') AS tags, provider, dialect, endpoint, operation, requested_model, model, service_tier,
        coalesce(stream, false) AS stream, status, incoming.outcome, upstream_request_id, input_tokens,
        cache_read_tokens, cache_write_tokens, cache_write_1h_tokens, output_tokens, reasoning_tokens,
        audio_input_tokens, audio_output_tokens, image_tokens, coalesce(units, '{}') AS units,
        coalesce(usage_source, 'none') AS usage_source, usage_raw, cost_usd, cost_source, provider_cost_usd, price_id,
        budget_ids, duration_ms, ttft_ms, upstream_ms, overhead_ms, coalesce(tool_calls_count, 0) AS tool_calls_count,
        coalesce(tool_calls, '[]') AS tool_calls, error_type, error_code,
        coalesce(unparsed_events, 0) AS unparsed_events
    FROM incoming LEFT JOIN LATERAL (
        SELECT entry.posting_no, entry.outcome FROM farebox.usage_entry AS entry
        WHERE entry.id = incoming.id ORDER BY entry.posting_no DESC LIMIT 1
    ) AS newest ON true
    WHERE newest.posting_no IS NULL
       OR (newest.outcome = 'farebox_cut' AND incoming.outcome <> 'farebox_cut')
),
added AS (
    INSERT INTO farebox.usage_entry ({{posting_columns}})
    SELECT {{posting_columns}}
    FROM judged
    ON CONFLICT (id, posting_no) DO NOTHING
    RETURNING 1
)
SELECT (SELECT count(*) FROM added) AS added, (SELECT count(*) FROM judged) AS wanted

-- name: create_key
INSERT INTO farebox.key (
    name, secret_hash, team, project, "user", models, providers, tags, allow_shared_objects, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8::jsonb, $9, $10)
RETURNING *

-- name: list_keys
-- $1: revoked ones too. All of them: keys are made by people.
SELECT * FROM farebox.key WHERE $1::boolean OR revoked_at IS NULL ORDER BY name, created_at, id

-- name: get_key
SELECT * FROM farebox.key WHERE id = $1

-- name: get_key_by_name
-- The one in use; else the last that was revoked.
SELECT * FROM farebox.key WHERE name = $1 ORDER BY revoked_at DESC NULLS FIRST LIMIT 1

-- name: find_key
SELECT * FROM farebox.key WHERE secret_hash = $1

-- name: rotate_key
UPDATE farebox.key SET secret_hash = $2 WHERE id = $1 AND revoked_at IS NULL RETURNING *

-- name: revoke_key
-- Once: revoking again changes nothing and finds the key as it is.
WITH revoked AS (
    UPDATE farebox.key SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL RETURNING *
)
SELECT * FROM revoked
UNION ALL
SELECT * FROM farebox.key WHERE id = $1 AND NOT EXISTS (SELECT FROM revoked)

-- name: change_key
-- $2: a JSON object of the fields to change; the others stay.
UPDATE farebox.key AS old
SET (name, team, project, "user", models, providers, tags, allow_shared_objects, expires_at) = (
    SELECT new.name, new.team, new.project, new."user", new.models, new.providers, new.tags,
           new.allow_shared_objects, new.expires_at
    FROM jsonb_populate_record(old, $2::jsonb) AS new)
WHERE id = $1 AND revoked_at IS NULL
RETURNING *

-- name: keys_changed_since
-- Keys changed after $1 less an overlap (a change carries the time it was made, and may be committed a
-- little later), and the database's clock, to ask with the next time. Always at least one row.
SELECT now() AS asked_at, changed.*
FROM (SELECT) AS once LEFT JOIN farebox.key AS changed ON changed.changed_at > $1::timestamptz - interval '10 seconds'
