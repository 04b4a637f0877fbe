-- Runs before the deploy. Floats: what a process holds ahead, so that a budgeted call needs no round trip.
--
-- A float is an amount reserved on a fixed set of windows for one process. A call takes its hold out of it in the
-- process's memory. To settle such a call is to make its own reservation out of the float first, in the same
-- transaction, and then all is as ever; where nothing is known of the call yet, and its float has enough, which is
-- the rule, both are done in one step (settles_plainly) to the same end. So, after every statement,
--
--     reserved = the sum over open reservations + the sum over floats
--     requests counts what floats hold of them, too; open is the number of open reservations and of floats
--     floats   = the number of floats that are not closed: those may hold what no call needs
--
-- Such an idle part must refuse nobody. A denied ask tells how many floats stand on its windows; where there are any
-- they are recalled: for a moment no float is taken or filled up there (no_floats_until), and their owners, who look
-- for that many times a second, give back what is unused and close them. A closed float holds what calls hold.
--
-- A float outlives its owner, fenced or dead: it covers what that sent, until its journal has been posted, whole, and
-- the rest is given back with it. Where nobody has that journal for a day the rest is charged like any hold.
--
-- Lock order, extended: budgets by id, FLOATS BY ID, reservations by id, windows by id, postings by id,
-- cost_correction. Whoever makes or settles a call's reservation out of a float has that float locked, so that two who
-- do it for one call find each other there.

CREATE TABLE farebox.budget_float (
    id            uuid        PRIMARY KEY,
    owner         bigint      NOT NULL,
    closed        boolean     NOT NULL DEFAULT false,
    windows       bigint[]    NOT NULL,  -- in the order of the asks it serves, each once; never changed
    held_usd      numeric[]   NOT NULL,
    held_tokens   bigint[]    NOT NULL,
    held_requests bigint[]    NOT NULL,
    made_at       timestamptz NOT NULL DEFAULT farebox.clock(),
    CONSTRAINT float_is_whole CHECK (cardinality(windows) > 0
        AND cardinality(windows) = cardinality(held_usd) AND cardinality(windows) = cardinality(held_tokens)
        AND cardinality(windows) = cardinality(held_requests)),
    CONSTRAINT floats_are_amounts CHECK (0 <= ALL (held_usd) AND 'Infinity' > ALL (held_usd)
        AND 0 <= ALL (held_tokens) AND 0 <= ALL (held_requests))
) WITH (fillfactor = 50);

CREATE INDEX budget_float_owner ON farebox.budget_float (owner);
CREATE INDEX budget_float_windows ON farebox.budget_float USING gin (windows);

ALTER TABLE farebox.budget_window
    ADD COLUMN floats bigint NOT NULL DEFAULT 0 CONSTRAINT floats_counted CHECK (floats >= 0),
    ADD COLUMN no_floats_until timestamptz;

-- ---- the owner's -------------------------------------------------------------------------------------

CREATE TYPE farebox.float_row AS (calls integer, at timestamptz, w farebox.budget_window);

-- Make a float for calls that hold so much each of these budgets, or fill it up (not p_fresh). It gets `calls` times
-- that: p_calls, or as many as take no more than a sixteenth of what any of its limits has left; none where those
-- were fewer than four, where a window counts parallel calls, or one is barred. Answers for each budget, in the order
-- given, how many calls it was, the time, and the window as it is then; no row where a window is not there yet. One
-- that is closed, or whose windows are over, is not filled up.
CREATE FUNCTION farebox.float_take(
    p_owner bigint, p_id uuid, p_fresh boolean,
    p_budgets uuid[], p_subjects text[], p_usd numeric[], p_tokens bigint[], p_requests bigint[], p_calls integer
) RETURNS SETOF farebox.float_row LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    n      CONSTANT integer := cardinality(p_budgets);
    ids    bigint[];
    most   numeric := p_calls;
    w      farebox.budget_window;
    spot   integer;
    answer farebox.float_row;
BEGIN
    -- Under lock: whoever declares an owner dead, to end its floats, waits for one that is just being made.
    PERFORM FROM farebox.owner WHERE owner.id = p_owner AND NOT dead FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'owner % is not alive', p_owner USING ERRCODE = 'FB001';
    END IF;
    FOR i IN 1 .. n LOOP
        IF (p_usd[i] >= 0 AND p_usd[i] < 'Infinity' AND p_tokens[i] >= 0 AND p_requests[i] >= 0) IS NOT TRUE THEN
            RAISE EXCEPTION 'an amount to hold is negative or not finite' USING ERRCODE = 'invalid_parameter_value';
        END IF;
        ids[i] := (SELECT bw.id FROM farebox.budget_window AS bw
                   WHERE bw.budget_id = p_budgets[i] AND bw.subject = p_subjects[i]
                     AND bw.window_start <= farebox.clock() AND bw.window_end > farebox.clock()
                   ORDER BY bw.window_start DESC LIMIT 1);
        IF ids[i] IS NULL THEN
            RETURN;
        END IF;
    END LOOP;
    IF NOT p_fresh THEN
        PERFORM FROM farebox.budget_float AS f
        WHERE f.id = p_id AND f.owner = p_owner AND NOT f.closed AND f.windows = ids FOR UPDATE;
        IF NOT FOUND THEN
            most := 0;
        END IF;
    END IF;
    -- From here to its end nobody else moves these windows, nor bars them.
    FOR w IN SELECT * FROM farebox.budget_window AS bw WHERE bw.id = ANY (ids) ORDER BY bw.id FOR UPDATE LOOP
        spot := array_position(ids, w.id);
        IF w.limit_open IS NOT NULL OR w.no_floats_until > farebox.clock() OR w.window_end <= farebox.clock() THEN
            most := 0;
        END IF;
        IF p_usd[spot] > 0 AND w.limit_usd IS NOT NULL THEN
            most := least(most, div(w.limit_usd - w.spent_usd - w.reserved_usd, 16 * p_usd[spot]));
        END IF;
        IF p_tokens[spot] > 0 AND w.limit_tokens IS NOT NULL THEN
            most := least(most, div(w.limit_tokens::numeric - w.spent_tokens - w.reserved_tokens,
                                    16 * p_tokens[spot]::numeric));
        END IF;
        IF p_requests[spot] > 0 AND w.limit_requests IS NOT NULL THEN
            most := least(most, div(w.limit_requests::numeric - w.requests, 16 * p_requests[spot]::numeric));
        END IF;
    END LOOP;
    answer.calls := CASE WHEN most >= 4 THEN most ELSE 0 END;
    answer.at := farebox.clock();
    IF answer.calls > 0 THEN
        IF p_fresh THEN
            INSERT INTO farebox.budget_float (id, owner, windows, held_usd, held_tokens, held_requests)
            SELECT p_id, p_owner, ids, array_agg(answer.calls * usd ORDER BY place),
                   array_agg(answer.calls * tokens ORDER BY place), array_agg(answer.calls * requests ORDER BY place)
            FROM unnest(p_usd, p_tokens, p_requests) WITH ORDINALITY AS want(usd, tokens, requests, place);
        ELSE
            UPDATE farebox.budget_float AS f
            SET (held_usd, held_tokens, held_requests) = (
                SELECT array_agg(had_usd + answer.calls * usd ORDER BY place),
                       array_agg(had_tokens + answer.calls * tokens ORDER BY place),
                       array_agg(had_requests + answer.calls * requests ORDER BY place)
                FROM unnest(f.held_usd, f.held_tokens, f.held_requests, p_usd, p_tokens, p_requests) WITH ORDINALITY
                    AS sum(had_usd, had_tokens, had_requests, usd, tokens, requests, place))
            WHERE f.id = p_id;
        END IF;
        UPDATE farebox.budget_window AS bw
        SET reserved_usd = bw.reserved_usd + answer.calls * want.usd,
            reserved_tokens = bw.reserved_tokens + answer.calls * want.tokens,
            requests = bw.requests + answer.calls * want.requests,
            open = bw.open + CASE WHEN p_fresh THEN 1 ELSE 0 END,
            floats = bw.floats + CASE WHEN p_fresh THEN 1 ELSE 0 END
        FROM unnest(ids, p_usd, p_tokens, p_requests) AS want(id, usd, tokens, requests)
        WHERE bw.id = want.id;
    END IF;
    FOR i IN 1 .. n LOOP
        SELECT * INTO w FROM farebox.budget_window AS bw WHERE bw.id = ids[i];
        answer.w := w;
        RETURN NEXT answer;
    END LOOP;
END $$;

-- Give back so much of a float, in the order of its windows, at most what it holds. p_closing: close it, and do nothing
-- where it is closed: so that can be repeated until it is answered.
CREATE FUNCTION farebox.float_give(
    p_id uuid, p_closing boolean, p_usd numeric[], p_tokens bigint[], p_requests bigint[]
) RETURNS void LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    f farebox.budget_float;
BEGIN
    IF (0 <= ALL (p_usd) AND 'Infinity' > ALL (p_usd) AND 0 <= ALL (p_tokens) AND 0 <= ALL (p_requests))
            IS NOT TRUE THEN
        RAISE EXCEPTION 'an amount to give back is negative or not finite' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT * INTO f FROM farebox.budget_float WHERE id = p_id FOR UPDATE;
    IF f.id IS NULL OR (f.closed AND p_closing) THEN
        RETURN;
    END IF;
    IF (cardinality(p_usd), cardinality(p_tokens), cardinality(p_requests))
            IS DISTINCT FROM (cardinality(f.windows), cardinality(f.windows), cardinality(f.windows)) THEN
        RAISE EXCEPTION 'an amount is to be given back for each window' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM FROM farebox.budget_window WHERE id = ANY (f.windows) ORDER BY id FOR UPDATE;
    UPDATE farebox.budget_window AS bw
    SET reserved_usd = bw.reserved_usd - least(back.usd, back.held_usd),
        reserved_tokens = bw.reserved_tokens - least(back.tokens, back.held_tokens),
        requests = bw.requests - least(back.requests, back.held_requests),
        floats = bw.floats - CASE WHEN p_closing THEN 1 ELSE 0 END
    FROM unnest(f.windows, f.held_usd, f.held_tokens, f.held_requests, p_usd, p_tokens, p_requests)
        AS back(id, held_usd, held_tokens, held_requests, usd, tokens, requests)
    WHERE bw.id = back.id;
    UPDATE farebox.budget_float
    SET closed = f.closed OR p_closing, (held_usd, held_tokens, held_requests) = (
        SELECT array_agg(greatest(had_usd - usd, 0) ORDER BY place),
               array_agg(greatest(had_tokens - tokens, 0) ORDER BY place),
               array_agg(greatest(had_requests - requests, 0) ORDER BY place)
        FROM unnest(f.held_usd, f.held_tokens, f.held_requests, p_usd, p_tokens, p_requests) WITH ORDINALITY
            AS rest(had_usd, had_tokens, had_requests, usd, tokens, requests, place))
    WHERE id = p_id;
END $$;

-- Nothing was sent any more that is to be paid out of these floats: all that is left of them goes back. One that was
-- charged because its owner was away for too long costs nothing after all.
CREATE FUNCTION farebox.float_end(p_ids uuid[]) RETURNS void LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    charged uuid[];
BEGIN
    PERFORM FROM farebox.budget_float WHERE id = ANY (p_ids) ORDER BY id FOR UPDATE;
    -- They have ids like calls, and nobody posts under them.
    SELECT array_agg(id) INTO charged FROM unnest(p_ids) AS ended(id)
    WHERE EXISTS (SELECT FROM farebox.reservation AS r WHERE r.id = ended.id)
       OR EXISTS (SELECT FROM farebox.usage_entry AS e WHERE e.id = ended.id);
    PERFORM FROM farebox.reservation WHERE id = ANY (charged) ORDER BY id FOR UPDATE;
    -- With those that a charge will move: all that is locked is locked in one order.
    PERFORM FROM farebox.budget_window
    WHERE id IN (SELECT unnest(windows) FROM farebox.budget_float WHERE id = ANY (p_ids)
                 UNION ALL SELECT unnest(windows) FROM farebox.reservation WHERE id = ANY (charged)
                 UNION ALL SELECT unnest(window_ids) FROM farebox.usage_entry
                           WHERE id = ANY (charged) AND posting_no = 1)
    ORDER BY id FOR UPDATE;
    IF charged IS NOT NULL THEN
        PERFORM farebox.release(charged);
    END IF;
    UPDATE farebox.budget_window AS bw
    SET reserved_usd = bw.reserved_usd - step.usd, reserved_tokens = bw.reserved_tokens - step.tokens,
        requests = bw.requests - step.requests, open = bw.open - step.floats, floats = bw.floats - step.unclosed
    FROM (
        SELECT held.id, sum(usd) AS usd, sum(tokens)::bigint AS tokens, sum(requests)::bigint AS requests,
               count(*) AS floats, count(*) FILTER (WHERE NOT f.closed) AS unclosed
        FROM farebox.budget_float AS f
        CROSS JOIN LATERAL unnest(f.windows, f.held_usd, f.held_tokens, f.held_requests)
            AS held(id, usd, tokens, requests)
        WHERE f.id = ANY (p_ids)
        GROUP BY held.id
    ) AS step
    WHERE bw.id = step.id;
    DELETE FROM farebox.budget_float WHERE id = ANY (p_ids);
END $$;

-- Let no float be taken or filled up on these windows for three seconds; the floats of others that are not closed yet.
-- Repeated while it is waited for them, it writes only when the time is about to run out.
CREATE FUNCTION farebox.float_recall(p_owner bigint, p_windows bigint[]) RETURNS SETOF uuid LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
BEGIN
    IF EXISTS (SELECT FROM farebox.budget_window AS bw WHERE bw.id = ANY (p_windows)
               AND (bw.no_floats_until > farebox.clock() + interval '1.5 s') IS NOT TRUE) THEN
        PERFORM FROM farebox.budget_window AS bw WHERE bw.id = ANY (p_windows) ORDER BY bw.id FOR UPDATE;
        UPDATE farebox.budget_window AS bw SET no_floats_until = farebox.clock() + interval '3 s'
        WHERE bw.id = ANY (p_windows);
    END IF;
    -- A statement of its own: it sees what was taken until the windows were locked.
    RETURN QUERY
    SELECT f.id FROM farebox.budget_float AS f
    WHERE f.windows && p_windows AND NOT f.closed AND f.owner <> p_owner ORDER BY f.id;
END $$;

-- The floats of an owner that are recalled, and not closed yet.
CREATE FUNCTION farebox.float_recalled(p_owner bigint) RETURNS SETOF uuid LANGUAGE sql STABLE AS $$
    SELECT f.id FROM farebox.budget_float AS f
    WHERE f.owner = p_owner AND NOT f.closed
      AND EXISTS (SELECT FROM farebox.budget_window AS bw
                  WHERE bw.id = ANY (f.windows) AND bw.no_floats_until > farebox.clock())
$$;

-- ---- calls that hold out of a float ------------------------------------------------------------------

-- What a call holds out of a float, member by member of the event that says so.
CREATE TYPE farebox.float_hold AS (id uuid, windows bigint[], usd numeric[], tokens bigint[], requests bigint[]);
CREATE TYPE farebox.float_draw AS (call uuid, drawn farebox.float_hold, facts json);

-- Make the reservations of these calls out of their floats, but for those that have one, or are settled, and lock all
-- that a posting for p_ids moves. Money never makes it fail, for it has happened: what a float lacks (it was given
-- back, since its owner seemed to be gone) is reserved beside it, and is an overrun. p_owner: whose they are then.
CREATE FUNCTION farebox.draw_floats(p_owner bigint, p_draws farebox.float_draw[], p_ids uuid[]) RETURNS void
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    made    uuid[];
    settled uuid[];
BEGIN
    PERFORM FROM farebox.budget_float AS f
    WHERE f.id IN (SELECT (d.drawn).id FROM unnest(p_draws) AS d) ORDER BY f.id FOR UPDATE;
    WITH new AS (
        INSERT INTO farebox.reservation (id, owner, windows, held_usd, held_tokens, held_requests, facts)
        SELECT d.call, p_owner, (d.drawn).windows, (d.drawn).usd, (d.drawn).tokens, (d.drawn).requests,
               coalesce(d.facts, '{}')
        FROM unnest(p_draws) AS d ORDER BY d.call
        ON CONFLICT (id) DO NOTHING
        RETURNING reservation.id
    )
    SELECT array_agg(new.id) INTO made FROM new;
    -- Asked after the lock of the float and after the insert, which waited for whoever was settling it.
    SELECT array_agg(one.id) INTO settled FROM unnest(made) AS one(id)
    WHERE EXISTS (SELECT FROM farebox.usage_entry AS e WHERE e.id = one.id);
    IF settled IS NOT NULL THEN
        DELETE FROM farebox.reservation WHERE reservation.id = ANY (settled);
        SELECT array_agg(one.id) INTO made FROM unnest(made) AS one(id) WHERE NOT one.id = ANY (settled);
    END IF;
    PERFORM FROM farebox.reservation WHERE reservation.id = ANY (p_ids) ORDER BY reservation.id FOR UPDATE;
    PERFORM farebox.lock_charged(p_ids);
    IF made IS NULL THEN
        RETURN;
    END IF;
    WITH drawn AS MATERIALIZED (
        SELECT (d.drawn).id, held.window_id, sum(held.usd) AS usd, sum(held.tokens)::bigint AS tokens,
               sum(held.requests)::bigint AS requests, count(*) AS calls
        FROM unnest(p_draws) AS d
        CROSS JOIN LATERAL unnest((d.drawn).windows, (d.drawn).usd, (d.drawn).tokens, (d.drawn).requests)
            AS held(window_id, usd, tokens, requests)
        WHERE d.call = ANY (made)
        GROUP BY 1, 2
    ),
    paid AS (
        UPDATE farebox.budget_float AS f
        SET (held_usd, held_tokens, held_requests) = (
            SELECT array_agg(greatest(had.usd - coalesce(drawn.usd, 0), 0) ORDER BY place),
                   array_agg(greatest(had.tokens - coalesce(drawn.tokens, 0), 0) ORDER BY place),
                   array_agg(greatest(had.requests - coalesce(drawn.requests, 0), 0) ORDER BY place)
            FROM unnest(f.windows, f.held_usd, f.held_tokens, f.held_requests) WITH ORDINALITY
                AS had(window_id, usd, tokens, requests, place)
            LEFT JOIN drawn ON drawn.id = f.id AND drawn.window_id = had.window_id)
        WHERE f.id IN (SELECT drawn.id FROM drawn)
    )
    UPDATE farebox.budget_window AS bw
    SET reserved_usd = bw.reserved_usd + step.usd, reserved_tokens = bw.reserved_tokens + step.tokens,
        requests = bw.requests + step.requests, open = bw.open + step.calls,
        overrun_usd = bw.overrun_usd + CASE WHEN bw.limit_usd IS NULL THEN 0 ELSE step.usd END,
        overrun_tokens = bw.overrun_tokens + CASE WHEN bw.limit_tokens IS NULL THEN 0 ELSE step.tokens END
    FROM (
        SELECT drawn.window_id,
               sum(greatest(drawn.usd - coalesce(f.held_usd[place], 0), 0)) AS usd,
               sum(greatest(drawn.tokens - coalesce(f.held_tokens[place], 0), 0))::bigint AS tokens,
               sum(greatest(drawn.requests - coalesce(f.held_requests[place], 0), 0))::bigint AS requests,
               sum(drawn.calls)::bigint AS calls
        FROM drawn LEFT JOIN farebox.budget_float AS f ON f.id = drawn.id
        CROSS JOIN LATERAL (SELECT array_position(f.windows, drawn.window_id) AS place) AS found
        GROUP BY drawn.window_id
    ) AS step
    WHERE bw.id = step.window_id;
END $$;

-- The same for calls that go on, and want to hold more: a JSON array of {"id", "drawn": as in an event, "facts"}.
CREATE FUNCTION farebox.float_detach(p_owner bigint, p_calls json) RETURNS void LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    draws farebox.float_draw[];
BEGIN
    IF NOT EXISTS (SELECT FROM farebox.owner WHERE owner.id = p_owner AND NOT dead) THEN
        RAISE EXCEPTION 'owner % is not alive', p_owner USING ERRCODE = 'FB001';
    END IF;
    SELECT array_agg(ROW(one.id, one.drawn, one.facts)::farebox.float_draw) INTO draws
    FROM json_to_recordset(p_calls) AS one(id uuid, drawn farebox.float_hold, facts json);
    IF draws IS NOT NULL THEN
        PERFORM farebox.draw_floats(p_owner, draws, ARRAY(SELECT (d).call FROM unnest(draws) AS d));
    END IF;
END $$;

-- ---- what knows of floats now ------------------------------------------------------------------------

-- Whether calls that drew can be settled without reservations of their own: nothing is known of any of them, and each
-- float is there, on the same windows, and has all they hold. Locks the floats and the reservations of p_ids; the
-- windows are locked by who goes on.
CREATE FUNCTION farebox.settles_plainly(p_draws farebox.float_draw[], p_ids uuid[]) RETURNS boolean LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    calls CONSTANT uuid[] := ARRAY(SELECT (d).call FROM unnest(p_draws) AS d);
BEGIN
    PERFORM FROM farebox.budget_float AS f
    WHERE f.id IN (SELECT (d.drawn).id FROM unnest(p_draws) AS d) ORDER BY f.id FOR UPDATE;
    PERFORM FROM farebox.reservation AS r WHERE r.id = ANY (p_ids) ORDER BY r.id FOR UPDATE;
    -- Asked after both locks were waited for.
    IF EXISTS (SELECT FROM farebox.reservation AS r WHERE r.id = ANY (calls))
            OR EXISTS (SELECT FROM farebox.usage_entry AS e WHERE e.id = ANY (calls)) THEN
        RETURN false;
    END IF;
    RETURN (
        SELECT bool_and(f.windows[drawn.place] = drawn.window_id AND f.held_usd[drawn.place] >= drawn.usd
                        AND f.held_tokens[drawn.place] >= drawn.tokens
                        AND f.held_requests[drawn.place] >= drawn.requests) IS TRUE
        FROM (
            SELECT (d.drawn).id, held.place, held.window_id, sum(held.usd) AS usd, sum(held.tokens) AS tokens,
                   sum(held.requests) AS requests
            FROM unnest(p_draws) AS d
            CROSS JOIN LATERAL unnest((d.drawn).windows, (d.drawn).usd, (d.drawn).tokens, (d.drawn).requests)
                WITH ORDINALITY AS held(window_id, usd, tokens, requests, place)
            GROUP BY 1, 2, 3
        ) AS drawn
        LEFT JOIN farebox.budget_float AS f ON f.id = drawn.id AND cardinality(f.windows) = (
            SELECT max(cardinality((d.drawn).windows)) FROM unnest(p_draws) AS d WHERE (d.drawn).id = drawn.id));
END $$;

-- The other half of it: these calls are posted, and what they hold goes out of their floats. The postings counted all
-- they cost as overrun, for want of reservations: what was held for it is none.
CREATE FUNCTION farebox.pay_out(p_draws farebox.float_draw[], p_events farebox.usage_entry[]) RETURNS void
LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
BEGIN
    WITH held AS MATERIALIZED (
        SELECT (d.drawn).id, one.window_id, one.usd, one.tokens, one.requests, coalesce(e.cost_usd, 0) AS cost_usd,
               coalesce(e.input_tokens, 0) + coalesce(e.output_tokens, 0) AS used
        FROM unnest(p_draws) AS d
        JOIN unnest(p_events) AS e ON e.id = d.call
        CROSS JOIN LATERAL unnest((d.drawn).windows, (d.drawn).usd, (d.drawn).tokens, (d.drawn).requests)
            AS one(window_id, usd, tokens, requests)
    ),
    paid AS (
        UPDATE farebox.budget_float AS f
        SET (held_usd, held_tokens, held_requests) = (
            SELECT array_agg(had.usd - coalesce(drawn.usd, 0) ORDER BY place),
                   array_agg(had.tokens - coalesce(drawn.tokens, 0) ORDER BY place),
                   array_agg(had.requests - coalesce(drawn.requests, 0) ORDER BY place)
            FROM unnest(f.windows, f.held_usd, f.held_tokens, f.held_requests) WITH ORDINALITY
                AS had(window_id, usd, tokens, requests, place)
            LEFT JOIN (
                SELECT window_id, sum(usd) AS usd, sum(tokens)::bigint AS tokens, sum(requests)::bigint AS requests
                FROM held WHERE held.id = f.id GROUP BY window_id
            ) AS drawn USING (window_id))
        WHERE f.id = ANY (ARRAY(SELECT DISTINCT held.id FROM held))
    )
    UPDATE farebox.budget_window AS bw
    SET reserved_usd = bw.reserved_usd - step.usd, reserved_tokens = bw.reserved_tokens - step.tokens,
        overrun_usd = bw.overrun_usd - CASE WHEN bw.limit_usd IS NULL THEN 0 ELSE step.within_usd END,
        overrun_tokens = bw.overrun_tokens - CASE WHEN bw.limit_tokens IS NULL THEN 0 ELSE step.within_tokens END
    FROM (
        SELECT window_id, sum(usd) AS usd, sum(tokens)::bigint AS tokens,
               sum(greatest(least(usd, cost_usd), 0)) AS within_usd,
               sum(greatest(least(tokens, used), 0))::bigint AS within_tokens
        FROM held GROUP BY window_id
    ) AS step
    WHERE bw.id = step.window_id;
END $$;

-- As in 0006, but that nothing is looked up before a first posting.
CREATE OR REPLACE FUNCTION farebox.charge_windows() RETURNS trigger LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
BEGIN
    IF EXISTS (SELECT FROM added WHERE window_ids IS NOT NULL) THEN
        PERFORM FROM farebox.budget_window
        WHERE id IN (SELECT unnest(window_ids) FROM added) ORDER BY id FOR UPDATE;
        UPDATE farebox.budget_window AS bw
        SET spent_usd = bw.spent_usd + step.usd,
            spent_tokens = bw.spent_tokens + step.tokens,
            reserved_usd = bw.reserved_usd - step.held_usd,
            reserved_tokens = bw.reserved_tokens - step.held_tokens,
            open = bw.open - step.closed,
            overrun_usd = bw.overrun_usd + CASE WHEN bw.limit_usd IS NULL THEN 0 ELSE step.over_usd END,
            overrun_tokens = bw.overrun_tokens + CASE WHEN bw.limit_tokens IS NULL THEN 0 ELSE step.over_tokens END
        FROM (
            SELECT window_id, sum(usd) AS usd, sum(tokens)::bigint AS tokens, sum(held_usd) AS held_usd,
                   sum(held_tokens)::bigint AS held_tokens, sum(closed) AS closed,
                   sum(greatest(usd - held_usd, 0)) AS over_usd,
                   sum(greatest(tokens - held_tokens, 0))::bigint AS over_tokens
            FROM (
                SELECT window_id, usd, tokens, coalesce(r.held_usd[place], 0) AS held_usd,
                       coalesce(r.held_tokens[place], 0) AS held_tokens, CASE WHEN place > 0 THEN 1 ELSE 0 END AS closed
                FROM (
                    SELECT posting.id, posting.window_ids,
                           coalesce(posting.cost_usd, 0) - coalesce(was.cost_usd, 0) AS usd,
                           coalesce(posting.input_tokens, 0) + coalesce(posting.output_tokens, 0)
                           - coalesce(was.tokens, 0) AS tokens
                    FROM added AS posting
                    LEFT JOIN LATERAL (
                        -- The limit has the planner go by the key, whatever its statistics say.
                        SELECT e.cost_usd, coalesce(e.input_tokens, 0) + coalesce(e.output_tokens, 0) AS tokens
                        FROM farebox.usage_entry AS e
                        WHERE posting.posting_no > 1 AND e.id = posting.id
                          AND e.posting_no = posting.posting_no - 1 LIMIT 1
                    ) AS was ON true
                    WHERE posting.window_ids IS NOT NULL
                ) AS change
                LEFT JOIN LATERAL (
                    SELECT * FROM farebox.reservation WHERE id = change.id AND state = 'open' LIMIT 1
                ) AS r ON true
                CROSS JOIN LATERAL unnest(change.window_ids) AS touched(window_id)
                CROSS JOIN LATERAL (SELECT array_position(r.windows, window_id) AS place) AS found
            ) AS lines
            GROUP BY window_id
        ) AS step
        WHERE bw.id = step.window_id;
        DELETE FROM farebox.reservation
        WHERE state = 'open' AND id IN (SELECT id FROM added WHERE window_ids IS NOT NULL);
    END IF;
    RETURN NULL;
END $$;

-- As in 0006; and what an event says it holds out of a float (from_float) is paid out of it. Looks for what is known of
-- these ids once for all of them: of most nothing is.
CREATE OR REPLACE FUNCTION farebox.post_events(document json, OUT added bigint, OUT wanted bigint) LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    incoming farebox.usage_entry[];
    all_ids  uuid[];
    ids      uuid[];
    draws    farebox.float_draw[];
    plainly  boolean := false;
    held     boolean;
    known    boolean;
    windows  bigint[];
BEGIN
    -- Only what names budgets was reserved: the others pay nothing for locks.
    SELECT array_agg(event), array_agg((event).id),
           array_agg((event).id) FILTER (WHERE (event).budget_ids IS NOT NULL)
    INTO incoming, all_ids, ids
    FROM (
        SELECT DISTINCT ON (event.id) event
        FROM json_populate_recordset(NULL::farebox.usage_entry, document) AS event
        ORDER BY event.id, (event.outcome = 'farebox_cut')
    ) AS events;
    -- A member that is no column: most documents lack it, and a look for its name costs less than reading them again.
    IF strpos(document::text, '"from_float"') > 0 THEN
        SELECT array_agg(ROW(one.id, one.from_float, NULL)::farebox.float_draw) INTO draws
        FROM (
            SELECT DISTINCT ON (event.id) event.id, event.from_float
            FROM json_to_recordset(document) AS event(id uuid, from_float farebox.float_hold)
            WHERE (event.from_float).id IS NOT NULL ORDER BY event.id
        ) AS one;
    END IF;
    IF draws IS NOT NULL THEN
        ids := ids || ARRAY(SELECT (d).call FROM unnest(draws) AS d);
        -- What is charged at its hold is worked out from a reservation.
        plainly := farebox.settles_plainly(draws, ids) AND NOT EXISTS (
            SELECT FROM unnest(incoming) AS e JOIN unnest(draws) AS d ON d.call = e.id WHERE e.usage_source = 'hold');
        IF NOT plainly THEN
            -- Theirs for a moment only: the postings below free them.
            PERFORM farebox.draw_floats(0, draws, ids);
            draws := NULL;
        END IF;
    END IF;
    IF ids IS NOT NULL THEN
        PERFORM FROM farebox.reservation AS r WHERE r.id = ANY (ids) ORDER BY r.id FOR UPDATE;
    END IF;
    -- Of all, since what has a reservation is settled whether it names its budgets or not.
    held := EXISTS (SELECT FROM farebox.reservation AS r WHERE r.id = ANY (all_ids));
    known := EXISTS (SELECT FROM farebox.usage_entry AS entry WHERE entry.id = ANY (all_ids));
    IF ids IS NOT NULL THEN
        SELECT array_agg(DISTINCT touched.id) INTO windows FROM (
            SELECT unnest(r.windows) AS id FROM farebox.reservation AS r WHERE held AND r.id = ANY (ids)
            UNION ALL
            SELECT unnest(e.window_ids) FROM farebox.usage_entry AS e
            WHERE known AND e.id = ANY (ids) AND e.posting_no = 1
            UNION ALL
            SELECT unnest((d.drawn).windows) FROM unnest(draws) AS d
        ) AS touched;
        PERFORM FROM farebox.budget_window AS bw WHERE bw.id = ANY (windows) ORDER BY bw.id FOR UPDATE;
    END IF;
    WITH judged AS MATERIALIZED (
        SELECT
            e.id, coalesce(newest.posting_no, 0) + 1 AS posting_no,
            request_id, attempt, started_at, finished_at, key_id, key_name, team, project, end_user, session,
            coalesce(tags, '{}') AS tags, provider, dialect, endpoint, operation, requested_model, model, service_tier,
            coalesce(stream, false) AS stream, status, e.outcome, upstream_request_id, input_tokens,
            cache_read_tokens, cache_write_tokens, cache_write_1h_tokens,
            CASE WHEN hold.tokens > 0
                 THEN greatest(coalesce(output_tokens, 0),
                               coalesce(newest.tokens, 0) + hold.tokens - coalesce(input_tokens, 0))
                 ELSE output_tokens END AS output_tokens,
            reasoning_tokens, audio_input_tokens, audio_output_tokens, image_tokens, coalesce(units, '{}') AS units,
            coalesce(e.usage_source, 'none') AS usage_source, usage_raw,
            CASE WHEN hold.usd IS NOT NULL
                 THEN greatest(coalesce(e.cost_usd, 0), coalesce(newest.cost_usd, 0) + hold.usd)
                 ELSE e.cost_usd END AS cost_usd,
            CASE WHEN hold.usd IS NOT NULL THEN 'hold' ELSE cost_source END AS cost_source,
            provider_cost_usd, price_id, budget_ids, duration_ms, ttft_ms, upstream_ms, overhead_ms,
            coalesce(tool_calls_count, 0) AS tool_calls_count, coalesce(tool_calls, '[]') AS tool_calls, error_type,
            error_code, coalesce(unparsed_events, 0) AS unparsed_events,
            coalesce(r.windows, newest.window_ids, (drew.drawn).windows) AS window_ids
        FROM unnest(incoming) AS e
        LEFT JOIN LATERAL (
            SELECT held_in.windows, held_usd, held_tokens FROM farebox.reservation AS held_in
            WHERE held AND held_in.id = e.id AND held_in.state = 'open' LIMIT 1
        ) AS r ON true
        LEFT JOIN unnest(draws) AS drew ON drew.call = e.id
        LEFT JOIN LATERAL (
            SELECT entry.posting_no, entry.outcome, entry.usage_source, entry.window_ids,
                   coalesce(entry.cost_usd, 0) AS cost_usd,
                   coalesce(entry.input_tokens, 0) + coalesce(entry.output_tokens, 0) AS tokens
            FROM farebox.usage_entry AS entry
            WHERE known AND entry.id = e.id ORDER BY entry.posting_no DESC LIMIT 1
        ) AS newest ON true
        LEFT JOIN LATERAL (
            -- No money held, and none known of: what it cost is not known either, and not nothing.
            SELECT CASE WHEN max(usd) > 0 OR newest.cost_usd > 0 OR e.cost_usd IS NOT NULL THEN max(usd) END AS usd,
                   max(tokens) AS tokens
            FROM unnest(r.held_usd, r.held_tokens) AS held(usd, tokens)
        ) AS hold ON e.usage_source = 'hold'
        WHERE newest.posting_no IS NULL
           OR r.windows IS NOT NULL
           OR (newest.outcome = 'farebox_cut'
               AND (e.outcome <> 'farebox_cut'
                    OR (newest.usage_source = 'hold' AND coalesce(e.usage_source, 'none') <> 'hold')))
    ),
    inserted AS (
        INSERT INTO farebox.usage_entry (
            id, posting_no, request_id, attempt, started_at, finished_at,
            key_id, key_name, team, project, end_user, session, tags,
            provider, dialect, endpoint, operation, requested_model, model, service_tier, stream, status, outcome,
            upstream_request_id, input_tokens, cache_read_tokens, cache_write_tokens, cache_write_1h_tokens,
            output_tokens, reasoning_tokens, audio_input_tokens, audio_output_tokens, image_tokens, units, usage_source,
            usage_raw, cost_usd, cost_source, provider_cost_usd, price_id, budget_ids, duration_ms, ttft_ms,
            upstream_ms, overhead_ms, tool_calls_count, tool_calls, error_type, error_code, unparsed_events, window_ids)
        SELECT
            id, posting_no, request_id, attempt, started_at, finished_at,
            key_id, key_name, team, project, end_user, session, tags,
            provider, dialect, endpoint, operation, requested_model, model, service_tier, stream, status, outcome,
            upstream_request_id, input_tokens, cache_read_tokens, cache_write_tokens, cache_write_1h_tokens,
            output_tokens, reasoning_tokens, audio_input_tokens, audio_output_tokens, image_tokens, units, usage_source,
            usage_raw, cost_usd, cost_source, provider_cost_usd, price_id, budget_ids, duration_ms, ttft_ms,
            upstream_ms, overhead_ms, tool_calls_count, tool_calls, error_type, error_code, unparsed_events, window_ids
        FROM judged ORDER BY id
        ON CONFLICT (id, posting_no) DO NOTHING
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM inserted), (SELECT count(*) FROM judged) INTO added, wanted;
    IF plainly THEN
        IF added < wanted THEN
            -- Somebody adds one of these ids just now. Which of them is not said here: none of this has happened.
            RAISE EXCEPTION 'another session posts the same events' USING ERRCODE = 'serialization_failure';
        END IF;
        PERFORM farebox.pay_out(draws, incoming);
    END IF;
END $$;

-- As in 0006; but what it held out of a float it has its reservation for.
CREATE OR REPLACE FUNCTION farebox.as_hold(p_id uuid, facts json) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object(
        'request_id', p_id, 'attempt', 1, 'started_at', now(), 'finished_at', now(), 'provider', 'unknown',
        'dialect', 'unknown', 'endpoint', 'unknown', 'operation', 'other')
        || jsonb_strip_nulls(facts::jsonb - 'from_float')
        || jsonb_build_object('id', p_id, 'outcome', 'farebox_cut', 'usage_source', 'hold')
$$;

-- Floats of owners that have been silent for a day: nobody had their journals, so nobody knows what was sent. What is
-- left of each becomes a reservation, to be charged like what their calls hold.
CREATE FUNCTION farebox.orphan_floats(p_rows integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    orphans farebox.budget_float[];
BEGIN
    -- Whoever has one locked posts what was paid out of it, or ends it: the next sweep finds what is left.
    SELECT array_agg(f) INTO orphans FROM (
        SELECT f FROM farebox.budget_float AS f
        WHERE f.owner IN (SELECT id FROM farebox.owner WHERE dead AND seen < farebox.clock() - interval '1 day')
        ORDER BY f.id LIMIT p_rows FOR UPDATE SKIP LOCKED
    ) AS lost(f);
    IF orphans IS NULL THEN
        RETURN 0;
    END IF;
    PERFORM FROM farebox.budget_window
    WHERE id IN (SELECT unnest(o.windows) FROM unnest(orphans) AS o) ORDER BY id FOR UPDATE;
    INSERT INTO farebox.reservation (id, owner, windows, held_usd, held_tokens, held_requests, facts)
    SELECT o.id, o.owner, o.windows, o.held_usd, o.held_tokens, o.held_requests, jsonb_build_object(
        'started_at', o.made_at, 'endpoint', 'float', 'budget_ids', (
            SELECT jsonb_agg(w.budget_id) FROM farebox.budget_window AS w WHERE w.id = ANY (o.windows)))::json
    FROM unnest(orphans) AS o ORDER BY o.id;
    UPDATE farebox.budget_window AS bw SET floats = bw.floats - step.unclosed
    FROM (SELECT held.id, count(*) AS unclosed
          FROM unnest(orphans) AS o CROSS JOIN LATERAL unnest(o.windows) AS held(id)
          WHERE NOT o.closed GROUP BY held.id) AS step
    WHERE bw.id = step.id;
    DELETE FROM farebox.budget_float WHERE id IN (SELECT o.id FROM unnest(orphans) AS o);
    RETURN cardinality(orphans);
END $$;

-- As in 0006; and floats that nobody will end.
CREATE OR REPLACE FUNCTION farebox.sweep(p_owner bigint, p_lease interval, p_rows integer) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    me     farebox.owner;
    silent bigint[];
    left_open uuid[];
    facts  json[];
BEGIN
    SELECT * INTO me FROM farebox.owner WHERE id = p_owner AND NOT dead;
    IF me.id IS NULL THEN
        RAISE EXCEPTION 'owner % is not alive', p_owner USING ERRCODE = 'FB001';
    END IF;
    IF me.gap_max <> p_lease / 2 THEN
        -- The beats so far were judged by another lease.
        UPDATE farebox.owner SET gap_max = p_lease / 2, steady_since = farebox.clock() WHERE id = p_owner;
        RETURN 0;
    END IF;
    IF farebox.clock() - me.seen > me.gap_max OR me.steady_since > farebox.clock() - p_lease
            OR farebox.up_since() > farebox.clock() - p_lease THEN
        RETURN 0;
    END IF;
    UPDATE farebox.owner SET dead = true
    WHERE id IN (SELECT id FROM farebox.owner WHERE NOT dead AND seen < farebox.clock() - p_lease AND id <> p_owner
                 ORDER BY id FOR UPDATE SKIP LOCKED);
    IF farebox.orphan_floats(p_rows) > 0 THEN
        -- Their windows are locked, and who goes on would lock others behind them: the next sweep charges them.
        RETURN 0;
    END IF;
    SELECT array_agg(r.id ORDER BY r.id), array_agg(r.facts ORDER BY r.id) INTO left_open, facts
    FROM (
        SELECT r.id, r.facts FROM farebox.reservation AS r
        WHERE r.state = 'open' AND r.owner IN (SELECT id FROM farebox.owner WHERE dead)
        ORDER BY r.id LIMIT p_rows FOR UPDATE SKIP LOCKED
    ) AS r;
    IF left_open IS NULL THEN
        RETURN 0;
    END IF;
    -- All of them before anything is posted: if they go one by one below, the locks are still taken in order.
    PERFORM farebox.lock_charged(left_open);
    BEGIN
        PERFORM farebox.post_events((SELECT json_agg(farebox.as_hold(id, event))
                                     FROM unnest(left_open, facts) AS left_over(id, event)));
    EXCEPTION WHEN data_exception OR integrity_constraint_violation OR program_limit_exceeded THEN
        -- One of them can't be posted as it is. It is charged all the same, with what is known for certain: or its
        -- hold would stand in the way of all others for ever.
        FOR i IN 1 .. cardinality(left_open) LOOP
            BEGIN
                PERFORM farebox.post_events(json_build_array(farebox.as_hold(left_open[i], facts[i])));
            EXCEPTION WHEN data_exception OR integrity_constraint_violation OR program_limit_exceeded THEN
                PERFORM farebox.post_events(json_build_array(farebox.as_hold(left_open[i], '{}')));
            END;
        END LOOP;
    END;
    RETURN cardinality(left_open);
END $$;

-- As in 0006; but an owner of floats stays.
CREATE OR REPLACE FUNCTION farebox.purge_budgets() RETURNS void LANGUAGE sql AS $$
    DELETE FROM farebox.reservation WHERE id IN (
        SELECT id FROM farebox.reservation WHERE state = 'void' AND done_at < farebox.clock() - interval '1 day'
        ORDER BY id LIMIT 10000 FOR UPDATE SKIP LOCKED);
    DELETE FROM farebox.budget_window WHERE id IN (
        SELECT w.id FROM farebox.budget_window AS w JOIN farebox.budget AS b ON b.id = w.budget_id
        WHERE w.open = 0 AND least(w.window_end, b.deleted_at) < farebox.clock()
            - CASE b.purpose WHEN 'rate' THEN interval '1 day' ELSE interval '400 days' END
        ORDER BY w.id LIMIT 10000 FOR UPDATE OF w SKIP LOCKED);
    DELETE FROM farebox.owner WHERE dead AND seen < farebox.clock() - interval '1 day'
        AND NOT EXISTS (SELECT FROM farebox.reservation AS r WHERE r.owner = owner.id AND r.state = 'open')
        AND NOT EXISTS (SELECT FROM farebox.budget_float AS f WHERE f.owner = owner.id);
$$;

-- As in 0006; and floats there are recalled.
CREATE OR REPLACE FUNCTION farebox.apply_limits(p_budgets uuid[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM farebox.budget_window WHERE budget_id = ANY (p_budgets) AND window_end > farebox.clock()
    ORDER BY id FOR UPDATE;
    UPDATE farebox.budget_window AS w
    SET warn = b.on_exceed = 'warn', limit_usd = b.limit_usd, limit_tokens = b.limit_tokens,
        limit_requests = b.limit_requests, limit_open = b.limit_open,
        floor_usd = CASE WHEN w.spent_usd + w.reserved_usd > b.limit_usd THEN w.spent_usd + w.reserved_usd ELSE 0 END,
        floor_tokens = CASE WHEN w.spent_tokens + w.reserved_tokens > b.limit_tokens
                            THEN w.spent_tokens + w.reserved_tokens ELSE 0 END,
        no_floats_until = CASE WHEN w.floats > 0 THEN farebox.clock() + interval '3 s' ELSE w.no_floats_until END
    FROM (
        SELECT id, on_exceed,
               CASE WHEN deleted_at IS NULL THEN limit_usd END AS limit_usd,
               CASE WHEN deleted_at IS NULL THEN limit_tokens END AS limit_tokens,
               CASE WHEN deleted_at IS NULL THEN limit_requests END AS limit_requests,
               CASE WHEN deleted_at IS NULL THEN limit_open END AS limit_open
        FROM farebox.budget WHERE id = ANY (p_budgets)
    ) AS b
    WHERE w.budget_id = b.id AND w.window_end > farebox.clock();
END $$;
