-- News of budgets: calls of the functions of migration 0008.

-- name: raise_alerts
-- $1 seconds since anybody looked, $2 whether they are to be delivered, $3: so many.
SELECT *, nullif(window_end, 'infinity') AS resets_at FROM farebox.raise_alerts(make_interval(secs => $1), $2, $3)

-- name: take_alerts
-- $1: so many, $2 seconds until they are anybody's again.
SELECT *, nullif(window_end, 'infinity') AS resets_at FROM farebox.take_alerts($1, make_interval(secs => $2))

-- name: alert_delivered
UPDATE farebox.budget_alert SET delivered_at = farebox.clock(), next_try = NULL WHERE id = $1

-- name: alert_failed
-- $2 seconds until it is tried again; NULL: never.
UPDATE farebox.budget_alert SET next_try = farebox.clock() + make_interval(secs => $2)
WHERE id = $1 AND delivered_at IS NULL

-- name: budget_gauges
SELECT * FROM farebox.budget_gauges($1)

-- name: budget_overrun
SELECT (SELECT usd FROM farebox.overrun_past)
     + (SELECT coalesce(sum(overrun_usd), 0) FROM farebox.budget_window WHERE overrun_usd > 0) AS usd
