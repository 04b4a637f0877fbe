-- Runs before the deploy. News of budgets: each threshold that a window reaches, told once.
--
-- A row is the claim to a crossing: of all processes that see it, the one whose insert succeeds tells the log and
-- the metrics. Where there is a webhook the row is its queue as well: `next_try` says when, a taken row comes back
-- if its taker died, and so each is delivered at least once.

CREATE TABLE farebox.budget_alert (
    id              uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    budget_id       uuid        NOT NULL,
    subject         text        NOT NULL,
    window_start    timestamptz NOT NULL,
    window_end      timestamptz NOT NULL,
    threshold       numeric     NOT NULL,
    name            text        NOT NULL,          -- the budget's, as it was then, like all that follows
    scope           text        NOT NULL,
    "window"        text        NOT NULL,
    who             text        NOT NULL,          -- the subject as people know it: a key by its name
    limit_usd       numeric,
    spent_usd       numeric     NOT NULL,
    reserved_usd    numeric     NOT NULL,
    limit_tokens    bigint,
    spent_tokens    bigint      NOT NULL,
    reserved_tokens bigint      NOT NULL,
    raised_at       timestamptz NOT NULL DEFAULT farebox.clock(),
    tries           integer     NOT NULL DEFAULT 0,
    next_try        timestamptz,                   -- NULL: nothing is to be delivered (any more)
    delivered_at    timestamptz
) WITH (fillfactor = 70);

CREATE UNIQUE INDEX budget_alert_once ON farebox.budget_alert (budget_id, subject, window_start, threshold);
CREATE INDEX budget_alert_due ON farebox.budget_alert (next_try) WHERE next_try IS NOT NULL;
CREATE INDEX budget_alert_end ON farebox.budget_alert (window_end);

-- Who looked last: of all processes one looks at a time, and none too soon after another.
CREATE TABLE farebox.alert_turn (
    one       boolean     PRIMARY KEY DEFAULT true CHECK (one),
    looked_at timestamptz NOT NULL
);

INSERT INTO farebox.alert_turn (looked_at) VALUES ('epoch');

-- What calls cost above their holds, over all time: of the windows there are, and of those that were deleted since.
CREATE TABLE farebox.overrun_past (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    usd numeric NOT NULL DEFAULT 0
);

INSERT INTO farebox.overrun_past DEFAULT VALUES;

-- Few windows have any, so the index is small; an update that leaves overrun_usd as it is stays HOT.
CREATE INDEX budget_window_overrun ON farebox.budget_window (id) WHERE overrun_usd > 0;

CREATE FUNCTION farebox.keep_overrun() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM gone WHERE overrun_usd > 0) THEN
        UPDATE farebox.overrun_past SET usd = usd + (SELECT sum(overrun_usd) FROM gone);
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER keep_overrun AFTER DELETE ON farebox.budget_window
    REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION farebox.keep_overrun();

-- A subject as people know it: a key's id, alone or before a session, is its name.
CREATE FUNCTION farebox.known_as(subject text) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT coalesce((SELECT key.name || substr(subject, 37) FROM farebox.key
                     WHERE key.id = CASE WHEN subject ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(/|$)'
                                         THEN left(subject, 36)::uuid END), subject)
$$;

-- Find thresholds that were reached and not told yet, at most `p_rows` of them, and claim them. Nothing is looked at
-- while another process does, or did less than `p_every` ago. A window that ended within the hour is looked at as
-- well: what it came to in its last moments counts. `p_deliver`: there is a webhook to tell.
CREATE FUNCTION farebox.raise_alerts(p_every interval, p_deliver boolean, p_rows integer)
RETURNS SETOF farebox.budget_alert LANGUAGE plpgsql AS $$
BEGIN
    UPDATE farebox.alert_turn SET looked_at = farebox.clock()
    WHERE one IN (SELECT one FROM farebox.alert_turn
                  WHERE looked_at <= farebox.clock() - p_every FOR UPDATE SKIP LOCKED);
    IF NOT FOUND THEN
        RETURN;
    END IF;
    -- A total never ends: its alerts stay for as long as its counter, or it would be told again.
    DELETE FROM farebox.budget_alert WHERE id IN (
        SELECT id FROM farebox.budget_alert
        WHERE window_end < farebox.clock() - interval '7 days' AND next_try IS NULL
        ORDER BY window_end LIMIT 1000 FOR UPDATE SKIP LOCKED);
    RETURN QUERY
    INSERT INTO farebox.budget_alert (
        budget_id, subject, window_start, window_end, threshold, name, scope, "window", who, limit_usd, spent_usd,
        reserved_usd, limit_tokens, spent_tokens, reserved_tokens, next_try)
    SELECT b.id, w.subject, w.window_start, w.window_end, reached.threshold, b.name, b.scope, b."window",
           farebox.known_as(w.subject), w.limit_usd, w.spent_usd, w.reserved_usd, w.limit_tokens, w.spent_tokens,
           w.reserved_tokens, CASE WHEN p_deliver THEN farebox.clock() END
    FROM farebox.budget AS b
    JOIN farebox.budget_window AS w ON w.budget_id = b.id
    CROSS JOIN LATERAL unnest(b.thresholds) AS reached(threshold)
    WHERE b.deleted_at IS NULL AND b.purpose = 'budget'
      AND w.window_end > farebox.clock() - interval '1 hour'
      -- No division: a limit of 0 is reached by the first cent.
      AND (w.spent_usd > 0 AND w.spent_usd >= reached.threshold * w.limit_usd
           OR w.spent_tokens > 0 AND w.spent_tokens >= reached.threshold * w.limit_tokens)
      AND NOT EXISTS (
          SELECT FROM farebox.budget_alert AS told
          WHERE told.budget_id = b.id AND told.subject = w.subject AND told.window_start = w.window_start
            AND told.threshold = reached.threshold)
    ORDER BY b.name, w.subject, w.window_start, reached.threshold
    LIMIT p_rows
    ON CONFLICT (budget_id, subject, window_start, threshold) DO NOTHING
    RETURNING budget_alert.*;
END $$;

-- Take alerts that are due, at most `p_rows`; they are due again after `p_lease`, unless it is said what became of them.
CREATE FUNCTION farebox.take_alerts(p_rows integer, p_lease interval) RETURNS SETOF farebox.budget_alert
LANGUAGE sql AS $$
    UPDATE farebox.budget_alert SET tries = tries + 1, next_try = farebox.clock() + p_lease
    WHERE id IN (
        SELECT id FROM farebox.budget_alert WHERE next_try <= farebox.clock()
        ORDER BY next_try, id LIMIT p_rows FOR UPDATE SKIP LOCKED)
    RETURNING *
$$;

-- For the gauges: current windows, the fullest first, at most `p_rows` of them, and after these, in one row with a NULL
-- budget, the sums of all others with the fullest part among them.
CREATE FUNCTION farebox.budget_gauges(
    p_rows integer, OUT budget text, OUT who text, OUT scope text, OUT limit_usd numeric, OUT spent_usd numeric,
    OUT reserved_usd numeric, OUT remaining numeric
) RETURNS SETOF record LANGUAGE sql STABLE AS $$
    WITH standing AS (
        SELECT b.name, w.subject, b.source, b.scope, w.limit_usd, w.spent_usd, w.reserved_usd, part.remaining,
               row_number() OVER (ORDER BY part.remaining, b.name, w.subject) AS place
        FROM farebox.budget AS b
        JOIN farebox.budget_window AS w ON w.budget_id = b.id
        CROSS JOIN LATERAL (SELECT greatest(0, least(
            CASE WHEN w.limit_usd > 0 THEN 1 - (w.spent_usd + w.reserved_usd) / w.limit_usd
                 WHEN w.limit_usd = 0 THEN 0 END,
            CASE WHEN w.limit_tokens > 0
                 THEN 1 - (w.spent_tokens::numeric + w.reserved_tokens) / w.limit_tokens
                 WHEN w.limit_tokens = 0 THEN 0 END)) AS remaining) AS part
        WHERE b.deleted_at IS NULL AND b.purpose = 'budget'
          AND w.window_start <= farebox.clock() AND w.window_end > farebox.clock()
    )
    SELECT name, farebox.known_as(subject), CASE source WHEN 'key' THEN 'global' ELSE scope END, limit_usd, spent_usd,
           reserved_usd, remaining
    FROM standing WHERE place <= p_rows
    UNION ALL
    SELECT NULL, NULL, NULL, sum(limit_usd), sum(spent_usd), sum(reserved_usd), min(remaining)
    FROM standing WHERE place > p_rows HAVING count(*) > 0
$$;
