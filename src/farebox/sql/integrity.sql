-- Whether the counters of budgets say what the rows behind them say. Each statement reads one snapshot, so that
-- calls under way make no difference, and a bounded number of rows: $1 windows (the newest), $2 rows of each other
-- kind, $3 violations. What was not read is told, not guessed.

-- name: checked_windows
SELECT w.*, greatest(w.window_start, b.created_at) AS since
FROM farebox.budget_window AS w JOIN farebox.budget AS b ON b.id = w.budget_id ORDER BY w.id DESC LIMIT $1

-- name: violation
w.id AS "window", w.budget_id AS budget, w.subject, w.window_start

-- name: windows_not_read
(SELECT count(*) FROM (SELECT FROM farebox.budget_window LIMIT $1 + 100000) AS counted) - (SELECT count(*) FROM looked)

-- name: integrity_limits
-- spent + reserved <= the limit, or what was there when it was lowered, and what bills were above their holds.
WITH looked AS MATERIALIZED ({{checked_windows}})
SELECT (SELECT count(*) FROM looked) AS checked, {{windows_not_read}} AS skipped, bad.*
FROM (SELECT $2::bigint) AS once LEFT JOIN (
    SELECT {{violation}}, w.spent_usd + w.reserved_usd AS is_usd,
           CASE WHEN w.limit_usd IS NOT NULL THEN greatest(w.limit_usd, w.floor_usd) + w.overrun_usd END AS should_usd,
           w.spent_tokens + w.reserved_tokens AS is_tokens,
           CASE WHEN w.limit_tokens IS NOT NULL THEN greatest(w.limit_tokens, w.floor_tokens) + w.overrun_tokens
           END AS should_tokens
    FROM looked AS w
    WHERE NOT w.warn AND (
        (w.limit_usd IS NOT NULL AND w.spent_usd + w.reserved_usd > greatest(w.limit_usd, w.floor_usd) + w.overrun_usd)
        OR (w.limit_tokens IS NOT NULL
            AND w.spent_tokens + w.reserved_tokens > greatest(w.limit_tokens, w.floor_tokens) + w.overrun_tokens))
    ORDER BY w.id LIMIT $3
) AS bad ON true

-- name: integrity_holds
-- reserved = the sum of the open reservations and of the floats, open = their number. None of them, if more are open
-- than were read.
WITH looked AS MATERIALIZED ({{checked_windows}}),
opened AS MATERIALIZED (
    SELECT windows, held_usd, held_tokens, false AS unclosed FROM farebox.reservation WHERE state = 'open'
    UNION ALL
    SELECT windows, held_usd, held_tokens, NOT closed FROM farebox.budget_float LIMIT $2 + 1
),
whole AS MATERIALIZED (SELECT count(*) <= $2 AS yes FROM opened),
held AS (
    SELECT part.id, sum(usd) AS usd, sum(tokens) AS tokens, count(*) AS calls,
           count(*) FILTER (WHERE unclosed) AS floats
    FROM opened CROSS JOIN LATERAL unnest(windows, held_usd, held_tokens) AS part(id, usd, tokens) GROUP BY part.id
)
SELECT CASE WHEN whole.yes THEN (SELECT count(*) FROM looked) ELSE 0 END AS checked,
       CASE WHEN whole.yes THEN {{windows_not_read}} ELSE (SELECT count(*) FROM looked) END AS skipped, bad.*
FROM whole LEFT JOIN (
    SELECT {{violation}}, w.reserved_usd AS is_usd, coalesce(held.usd, 0) AS should_usd,
           w.reserved_tokens AS is_tokens, coalesce(held.tokens, 0)::bigint AS should_tokens
    FROM looked AS w LEFT JOIN held ON held.id = w.id
    WHERE (w.reserved_usd, w.reserved_tokens, w.open, w.floats)
          IS DISTINCT FROM (coalesce(held.usd, 0), coalesce(held.tokens, 0), coalesce(held.calls, 0),
                            coalesce(held.floats, 0))
    ORDER BY w.id LIMIT $3
) AS bad ON whole.yes

-- name: integrity_rows
-- spent = the sum of the usage rows. The newest postings are read; a window that began before the oldest of them
-- (a day before, because calls and windows go by different clocks) is left out.
WITH looked AS MATERIALIZED ({{checked_windows}}),
read AS MATERIALIZED (
    SELECT id, posting_no, started_at, window_ids, coalesce(cost_usd, 0) AS usd,
           coalesce(input_tokens, 0) + coalesce(output_tokens, 0) AS tokens
    FROM farebox.usage_entry ORDER BY started_at DESC, id DESC LIMIT $2
),
horizon AS MATERIALIZED (
    SELECT CASE WHEN count(*) < $2 THEN '-infinity' ELSE min(started_at) + interval '1 day' END AS since FROM read
),
sums AS (
    SELECT part.id, sum(usd) AS usd, sum(tokens) AS tokens
    FROM read CROSS JOIN LATERAL unnest(window_ids) AS part(id)
    WHERE NOT EXISTS (
        SELECT FROM farebox.usage_superseded AS old WHERE old.id = read.id AND old.posting_no = read.posting_no)
    GROUP BY part.id
)
SELECT (SELECT count(*) FROM looked CROSS JOIN horizon WHERE looked.since >= horizon.since) AS checked,
       {{windows_not_read}} + (SELECT count(*) FROM looked CROSS JOIN horizon WHERE looked.since < horizon.since)
       AS skipped, bad.*
FROM (SELECT) AS once LEFT JOIN (
    SELECT {{violation}}, w.spent_usd AS is_usd, coalesce(sums.usd, 0) AS should_usd,
           w.spent_tokens AS is_tokens, coalesce(sums.tokens, 0)::bigint AS should_tokens
    FROM looked AS w CROSS JOIN horizon LEFT JOIN sums ON sums.id = w.id
    WHERE w.since >= horizon.since
      AND (w.spent_usd, w.spent_tokens) IS DISTINCT FROM (coalesce(sums.usd, 0), coalesce(sums.tokens, 0))
    ORDER BY w.id LIMIT $3
) AS bad ON true

-- name: integrity_settled
-- No call holds anything that has its final usage row.
WITH looked AS MATERIALIZED (SELECT FROM farebox.reservation WHERE state = 'open' LIMIT $2),
settled AS MATERIALIZED (
    SELECT r.id, r.windows, r.held_usd, r.held_tokens
    FROM (SELECT * FROM farebox.reservation WHERE state = 'open' LIMIT $2) AS r
    CROSS JOIN LATERAL (
        SELECT outcome, usage_source FROM farebox.usage_entry AS e WHERE e.id = r.id ORDER BY posting_no DESC LIMIT 1
    ) AS last
    WHERE last.outcome <> 'farebox_cut' OR last.usage_source <> 'hold'
)
SELECT (SELECT count(*) FROM looked) AS checked,
       (SELECT count(*) FROM (SELECT FROM farebox.reservation WHERE state = 'open' LIMIT $2 + 100000) AS counted)
       - (SELECT count(*) FROM looked) AS skipped, bad.*
FROM (SELECT $1::bigint) AS once LEFT JOIN (
    SELECT {{violation}}, s.held_usd[1] AS is_usd, 0::numeric AS should_usd,
           s.held_tokens[1] AS is_tokens, 0::bigint AS should_tokens
    FROM settled AS s JOIN farebox.budget_window AS w ON w.id = s.windows[1] ORDER BY w.id LIMIT $3
) AS bad ON true
