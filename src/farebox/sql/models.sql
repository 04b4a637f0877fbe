-- The providers' lists of models. Times are the caller's, so that a schedule can be tested with its clock.

-- name: model_lists
-- $1, $2: names and addresses of providers, pair by pair. Rows of providers that nobody has any more stay out.
SELECT provider, base_url, attempted_at, fetched_at, error, models
FROM farebox.model_list
WHERE (provider, base_url) IN (SELECT * FROM unnest($1::text[], $2::text[]))

-- name: model_lists_version
-- Changes with every change: a sum of counters, because times of concurrent writers may commit in any order.
SELECT count(*) AS lists, coalesce(sum(version), 0)::bigint AS versions FROM farebox.model_list

-- name: claim_model_list
-- Who gets a row back is the one to ask provider $1 at $2, now ($3): one of all workers and replicas. It
-- is due when its last answer is older than $4, or its last attempt, which brought nothing, older than $5.
-- The claim is the row, not an advisory lock: no transaction or session stays open across the network,
-- which a pooler would not carry, and one who dies while asking costs only the wait until $5.
INSERT INTO farebox.model_list AS held (provider, base_url, attempted_at) VALUES ($1, $2, $3)
ON CONFLICT (provider, base_url) DO UPDATE SET attempted_at = excluded.attempted_at
WHERE held.attempted_at <= CASE WHEN held.fetched_at >= held.attempted_at THEN $4::timestamptz ELSE $5 END
RETURNING error

-- name: keep_model_list
-- Provider $1 at $2 was asked at $3 and gave the models $4.
INSERT INTO farebox.model_list AS held (provider, base_url, attempted_at, fetched_at, models)
VALUES ($1, $2, $3, $3, $4::jsonb)
ON CONFLICT (provider, base_url) DO UPDATE SET
    attempted_at = excluded.attempted_at, fetched_at = excluded.fetched_at, error = NULL, models = excluded.models,
    version = held.version + 1

-- name: fail_model_list
-- Provider $1 at $2 was asked at $3 and gave nothing, because of $4. What it gave before stays.
INSERT INTO farebox.model_list AS held (provider, base_url, attempted_at, error) VALUES ($1, $2, $3, $4)
ON CONFLICT (provider, base_url) DO UPDATE SET
    attempted_at = excluded.attempted_at, error = excluded.error, version = held.version + 1

-- name: forget_model_lists
-- Lists of providers that nobody asked since $1, but for these: names $2, addresses $3, pair by pair.
DELETE FROM farebox.model_list
WHERE attempted_at < $1 AND (provider, base_url) NOT IN (SELECT * FROM unnest($2::text[], $3::text[]))
