-- Budgets: each a call of a function of migration 0006, where the protocol is written down, or a look at its tables.

-- name: register_owner
INSERT INTO farebox.owner (label) VALUES ($1) RETURNING id

-- name: beat_owner
SELECT farebox.beat($1) AS alive

-- name: sweep_owners
SELECT farebox.sweep($1, make_interval(secs => $2), $3) AS swept

-- name: purge_budgets
SELECT farebox.purge_budgets()

-- name: window_state
-- A window as callers see it.
(w).id AS counter, (w).budget_id AS budget, (w).subject, (w).limit_usd, (w).spent_usd, (w).reserved_usd,
(w).limit_tokens, (w).spent_tokens, (w).reserved_tokens, (w).limit_requests, (w).requests, (w).limit_open, (w).open,
(w).floats, (w).window_start, nullif((w).window_end, 'infinity') AS resets_at

-- name: reserve
SELECT id, state, fits, {{window_state}} FROM farebox.reserve($1, $2, $3, $4, $5, $6, $7, $8, $9)

-- name: extend
SELECT id, state, fits, {{window_state}} FROM farebox.extend($1, $2, $3, $4)

-- name: release
SELECT farebox.release($1)

-- name: float_take
SELECT calls, at, {{window_state}} FROM farebox.float_take($1, $2, $3, $4, $5, $6, $7, $8, $9)

-- name: float_give
SELECT farebox.float_give($1, $2, $3, $4, $5)

-- name: float_end
SELECT farebox.float_end($1)

-- name: float_recall
SELECT farebox.float_recall($1, $2) AS id

-- name: float_recalled
SELECT farebox.float_recalled($1) AS id

-- name: float_detach
SELECT farebox.float_detach($1, $2)

-- name: correct_usage
SELECT farebox.correct_usage($1, $2, $3, $4, $5, $6) AS before

-- name: budget_columns
-- One that ended with its key is not told as deleted: it counts whoever still knows the key.
id, name, source, purpose, scope, "only", key_id, limit_usd, limit_tokens, limit_requests, limit_open, "window",
timezone, thresholds, on_exceed, admission, clamp, wait_s, on_extend_denied,
deleted_at IS NOT NULL
AND NOT EXISTS (SELECT FROM farebox.key AS ended WHERE ended.id = key_id AND ended.revoked_at <= deleted_at) AS deleted

-- name: list_budgets
-- $1: those of purpose rate, too.
SELECT {{budget_columns}} FROM farebox.budget WHERE deleted_at IS NULL AND (purpose = 'budget' OR $1) ORDER BY name

-- name: key_budgets
-- What keys have of their own, rates too: of key $1, NULL of all.
SELECT {{budget_columns}} FROM farebox.budget
WHERE deleted_at IS NULL AND key_id IS NOT NULL AND ($1::uuid IS NULL OR key_id = $1) ORDER BY name

-- name: budgets_for_key
-- What may count the calls of key $1: its own budgets and rates, and what is no key's alone.
SELECT {{budget_columns}} FROM farebox.budget
WHERE deleted_at IS NULL AND (key_id IS NULL OR key_id = $1) ORDER BY name

-- name: budgets_changed_since
-- Those changed after $1 less an overlap (a change carries the time it was made, and may be committed a little
-- later), and the database's clock, to ask with the next time. Always at least one row.
SELECT now() AS asked_at, changed.*
FROM (SELECT) AS once LEFT JOIN (SELECT {{budget_columns}}, changed_at FROM farebox.budget) AS changed
ON changed.changed_at > $1::timestamptz - interval '10 seconds'

-- name: put_budgets
-- $1 definitions, $2 source, $3 actor, $4 whether they are all of the source, $5 the key they belong to.
SELECT {{budget_columns}} FROM farebox.put_budgets($1::jsonb, $2, $3, $4, $5)

-- name: get_budget
SELECT {{budget_columns}} FROM farebox.budget WHERE name = $1 AND deleted_at IS NULL

-- name: find_budget
-- By name, else by id.
SELECT {{budget_columns}} FROM farebox.budget
WHERE deleted_at IS NULL AND purpose = 'budget' AND (name = $1 OR id::text = lower($1)) ORDER BY name <> $1 LIMIT 1

-- name: delete_budget
-- $1 id, $2 actor.
WITH ended AS MATERIALIZED (SELECT farebox.retire_budgets(ARRAY[$1::uuid], $2)) SELECT count(*) FROM ended

-- name: end_key_budgets
-- All that key $1 has of its own, $2 actor.
SELECT farebox.retire_budgets(ARRAY(SELECT id FROM farebox.budget WHERE key_id = $1 AND deleted_at IS NULL), $2)

-- name: budget_overview
-- Living budgets, each with its current windows, or without any: $1 name, $2 source, $3 scope, $4 subject, $5 key,
-- $6 those of purpose rate, too. $7 and $8: after which name and subject; $9: so many.
-- The limits are the budget's: a window that is not there yet has none.
SELECT b.*, live.counter, live.budget, live.subject, live.spent_usd, live.reserved_usd, live.spent_tokens,
       live.reserved_tokens, live.requests, live.open, live.floats, live.window_start, live.resets_at, live.fits
FROM (
    SELECT {{budget_columns}} FROM farebox.budget
    WHERE deleted_at IS NULL AND ($1::text IS NULL OR name = $1) AND ($2::text IS NULL OR source = $2)
      AND ($3::text IS NULL OR scope = $3) AND ($5::uuid IS NULL OR key_id = $5) AND (purpose = 'budget' OR $6)
) AS b
LEFT JOIN LATERAL (
    SELECT {{window_state}}, farebox.fits(w, 0, 0, 0, 0) AS fits, coalesce((w).subject, '') AS place
    FROM farebox.budget_window AS w
    WHERE w.budget_id = b.id AND ($4::text IS NULL OR w.subject = $4)
      AND w.window_start <= farebox.clock() AND w.window_end > farebox.clock()
      AND ($7::text IS NULL OR b.name > $7 OR w.subject > $8)
    ORDER BY w.subject LIMIT $9
) AS live ON true
WHERE ($7::text IS NULL OR (b.name, coalesce(live.place, '')) > ($7, $8::text))
  AND ($4::text IS NULL OR live.place IS NOT NULL)
ORDER BY b.name, live.place
LIMIT $9

-- name: budget_standing
-- The current windows of budgets $1 for the subjects $2, pair by pair, where there are any.
SELECT {{window_state}}, farebox.fits(w, 0, 0, 0, 0) AS fits
FROM unnest($1::uuid[], $2::text[]) AS pair(budget_id, subject)
JOIN farebox.budget_window AS w USING (budget_id, subject)
WHERE w.window_start <= farebox.clock() AND w.window_end > farebox.clock()
LIMIT 1000

-- name: budget_bounds
-- When the current windows of the budgets $1 began and end, whether anything was counted or not.
SELECT b.id, current.window_start, nullif(current.window_end, 'infinity') AS resets_at
FROM farebox.budget AS b, farebox.window_bounds(b."window", b.timezone, farebox.clock()) AS current
WHERE b.id = ANY ($1::uuid[])

-- name: audit_page
-- Newest first: $1 before which number, $2 kind, $3 name, $4: so many.
SELECT id, at, actor, action, kind, name, before, after FROM farebox.audit
WHERE ($1::bigint IS NULL OR id < $1) AND ($2::text IS NULL OR kind = $2) AND ($3::text IS NULL OR name = $3)
ORDER BY id DESC LIMIT $4
