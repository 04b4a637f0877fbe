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
overhead_ms, tool_calls_count, tool_calls, error_type, error_code, unparsed_events, window_ids

-- name: insert_events
-- $1: a JSON array of events, members named like columns. Answers how many postings were added, and how many should
-- have been; see the function, which also settles what was held for them.
SELECT added, wanted FROM farebox.post_events($1::json)

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
