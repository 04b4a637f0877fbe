-- Runs before the deploy. Budgets that hold: what may be spent, what was, and what is held for calls under way.
--
-- A call that a budget applies to reserves before it is sent: the most it may cost (or what it is expected
-- to) is added to `reserved_usd` of the window it falls into, if that fits under the limit, and a
-- reservation remembers it. When the call is over, its usage row takes the place of the reservation: the
-- insert of a posting moves `spent` by what the row costs more than the posting before it, and frees
-- what was held. So, after every statement,
--
--     spent    = the sum over the newest postings that name the window
--     reserved = the sum over its open reservations, and open is their number
--     spent + reserved <= the limit, but for what a bill was above its hold (overrun), and for what was
--                         there when the limit was lowered (floor)
--
-- Windows are rows, pinned when a call reserves: a reset is a new row, never a zeroing. What an owner that
-- died left open is charged, never given back. Only calls that were provably not sent are released.
--
-- One lock order for all: budgets by id (and the windows that are made for them, which nobody else knows yet),
-- reservations by id, windows by id, postings by id, cost_correction. All windows that a call may change are locked,
-- with SELECT ... ORDER BY id FOR UPDATE, before it changes any. Nothing keeps a transaction open, or any state in a
-- session, between two calls of these functions.
--
-- Functions that every call needs plan their statements once a session (force_generic_plan): the arrays they get
-- would seem to be worth a plan each time, which took longer than all they do. And they plan to go by keys, whatever
-- the statistics said of a table when it was small (enable_seqscan).

-- The time, for budgets. A function of its own so that tests can say what time it is.
CREATE FUNCTION farebox.clock() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT now()';

-- Since when the server is up, by that clock.
CREATE FUNCTION farebox.up_since() RETURNS timestamptz LANGUAGE sql STABLE AS 'SELECT pg_postmaster_start_time()';

-- ---- definitions -------------------------------------------------------------------------------------

CREATE TABLE farebox.budget (
    id               uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    name             text        NOT NULL,
    source           text        NOT NULL,
    purpose          text        NOT NULL DEFAULT 'budget', -- rate: a key's requests, tokens a minute, parallel calls
    scope            text        NOT NULL,
    "only"           text[]      NOT NULL DEFAULT '{}',     -- globs on the value of the scope; empty: all
    key_id           uuid,                                  -- of source key: that key's alone
    limit_usd        numeric,
    limit_tokens     bigint,
    limit_requests   bigint,
    limit_open       bigint,
    "window"         text        NOT NULL DEFAULT 'month',
    timezone         text        NOT NULL DEFAULT 'UTC',
    thresholds       numeric[]   NOT NULL DEFAULT '{0.5,0.8,1.0}',
    on_exceed        text        NOT NULL DEFAULT 'reject',
    admission        text        NOT NULL DEFAULT 'expected',
    clamp            boolean     NOT NULL DEFAULT false,
    wait_s           double precision NOT NULL DEFAULT 5,
    on_extend_denied text        NOT NULL DEFAULT 'cut',
    created_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    changed_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    deleted_at       timestamptz,
    CONSTRAINT named CHECK (length(name) BETWEEN 1 AND 300),
    CONSTRAINT names_of_keys CHECK ((source = 'key') = starts_with(name, 'key:')),
    CONSTRAINT source_known CHECK (source IN ('config', 'api', 'key')),
    CONSTRAINT purpose_known CHECK (purpose = 'budget' OR (purpose = 'rate' AND source = 'key')),
    CONSTRAINT scope_known CHECK (scope IN ('global', 'team', 'project', 'user', 'key', 'session', 'model')),
    CONSTRAINT keys_are_named CHECK ((source = 'key') = (key_id IS NOT NULL) AND (key_id IS NULL OR scope = 'key')),
    CONSTRAINT limits_something CHECK (num_nonnulls(limit_usd, limit_tokens, limit_requests, limit_open) > 0),
    CONSTRAINT limits_are_amounts CHECK (
        limit_usd >= 0 AND limit_usd < 'Infinity' AND limit_tokens >= 0 AND limit_requests >= 0 AND limit_open >= 0),
    CONSTRAINT window_known CHECK ("window" IN ('minute', 'hour', 'day', 'week', 'month', 'total')),
    CONSTRAINT timezone_is_a_name CHECK (timezone ~ '^[A-Za-z0-9_]+(/[A-Za-z0-9_+-]+)*$'),
    CONSTRAINT thresholds_are_parts CHECK (0 < ALL (thresholds) AND 'Infinity' > ALL (thresholds)
        AND cardinality(thresholds) <= 20 AND array_position(thresholds, NULL) IS NULL),
    CONSTRAINT on_exceed_known CHECK (on_exceed IN ('reject', 'warn')),
    CONSTRAINT admission_known CHECK (admission IN ('expected', 'strict')),
    CONSTRAINT waits_a_while CHECK (wait_s >= 0 AND wait_s <= 3600),
    CONSTRAINT on_extend_denied_known CHECK (on_extend_denied IN ('cut', 'overrun'))
);

CREATE UNIQUE INDEX budget_name ON farebox.budget (name) WHERE deleted_at IS NULL;
CREATE INDEX budget_changed ON farebox.budget (changed_at);
CREATE INDEX budget_key ON farebox.budget (key_id) WHERE key_id IS NOT NULL;

-- Also the changes made by hand: it is how running processes learn of them.
CREATE FUNCTION farebox.stamp_budget() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.changed_at := clock_timestamp();
    -- Raises what is no time zone.
    PERFORM now() AT TIME ZONE NEW.timezone;
    RETURN NEW;
END $$;

CREATE TRIGGER stamp_budget BEFORE INSERT OR UPDATE ON farebox.budget
    FOR EACH ROW EXECUTE FUNCTION farebox.stamp_budget();

-- Who changed what, from what, to what. Only ever added to.
CREATE TABLE farebox.audit (
    id     bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor  text        NOT NULL,
    action text        NOT NULL,  -- create, change, delete, correct
    kind   text        NOT NULL,  -- budget, usage
    name   text        NOT NULL,  -- the budget's name; the id of a usage row
    before jsonb,
    after  jsonb,
    CONSTRAINT somebody CHECK (length(actor) BETWEEN 1 AND 300)
);

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON farebox.audit
    FOR EACH STATEMENT EXECUTE FUNCTION farebox.refuse_change();

-- ---- counters ----------------------------------------------------------------------------------------

-- One budget, one value of its scope, one window. No index on a counter, and room on the page: an update stays
-- where it is (HOT). The limits are copies, so that the guard reads the row it locks.
CREATE TABLE farebox.budget_window (
    id              bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    budget_id       uuid        NOT NULL,
    subject         text        NOT NULL,
    window_start    timestamptz NOT NULL,  -- of a total: the epoch
    window_end      timestamptz NOT NULL,  -- of a total: infinity
    warn            boolean     NOT NULL DEFAULT false, -- everything fits, and what passes a limit is said
    limit_usd       numeric,
    limit_tokens    bigint,
    limit_requests  bigint,
    limit_open      bigint,
    spent_usd       numeric     NOT NULL DEFAULT 0,
    reserved_usd    numeric     NOT NULL DEFAULT 0,
    spent_tokens    bigint      NOT NULL DEFAULT 0,
    reserved_tokens bigint      NOT NULL DEFAULT 0,
    requests        bigint      NOT NULL DEFAULT 0,
    open            bigint      NOT NULL DEFAULT 0,
    overrun_usd     numeric     NOT NULL DEFAULT 0,
    overrun_tokens  bigint      NOT NULL DEFAULT 0,
    floor_usd       numeric     NOT NULL DEFAULT 0, -- spent + reserved when a limit was set below them; else 0
    floor_tokens    bigint      NOT NULL DEFAULT 0,
    CONSTRAINT nothing_negative CHECK (
        spent_usd >= 0 AND spent_usd < 'Infinity' AND reserved_usd >= 0 AND reserved_usd < 'Infinity'
        AND spent_tokens >= 0 AND reserved_tokens >= 0 AND requests >= 0 AND open >= 0
        AND overrun_usd >= 0 AND overrun_tokens >= 0)
) WITH (fillfactor = 50);

CREATE UNIQUE INDEX budget_window_of ON farebox.budget_window (budget_id, subject, window_start);
CREATE INDEX budget_window_end ON farebox.budget_window (window_end);

-- One process, from its start to its end.
CREATE TABLE farebox.owner (
    id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    label        text        NOT NULL,
    seen         timestamptz NOT NULL DEFAULT farebox.clock(),
    steady_since timestamptz NOT NULL DEFAULT farebox.clock(), -- it has been heard of without a gap since then
    gap_max      interval    NOT NULL DEFAULT '15 s',          -- a longer silence is a gap: half a lease
    dead         boolean     NOT NULL DEFAULT false
) WITH (fillfactor = 50);

-- What is held for calls under way, and ids that must not be reserved any more (void). The array members
-- belong together one by one. A settled reservation is deleted: its usage row is the proof.
CREATE TABLE farebox.reservation (
    id            uuid        PRIMARY KEY,
    owner         bigint,
    state         text        NOT NULL DEFAULT 'open',
    windows       bigint[]    NOT NULL DEFAULT '{}',
    held_usd      numeric[]   NOT NULL DEFAULT '{}',
    held_tokens   bigint[]    NOT NULL DEFAULT '{}',
    held_requests bigint[]    NOT NULL DEFAULT '{}',
    facts         json,       -- the usage event as far as it is known: what is posted if its owner dies
    made_at       timestamptz NOT NULL DEFAULT farebox.clock(),
    done_at       timestamptz,
    CONSTRAINT state_known CHECK (state IN ('open', 'void')),
    CONSTRAINT open_is_whole CHECK (state = 'void' OR (
        owner IS NOT NULL AND facts IS NOT NULL AND cardinality(windows) > 0
        AND cardinality(windows) = cardinality(held_usd) AND cardinality(windows) = cardinality(held_tokens)
        AND cardinality(windows) = cardinality(held_requests))),
    CONSTRAINT holds_are_amounts CHECK (0 <= ALL (held_usd) AND 'Infinity' > ALL (held_usd)
        AND 0 <= ALL (held_tokens) AND 0 <= ALL (held_requests))
);

CREATE INDEX reservation_open ON farebox.reservation (owner) WHERE state = 'open';
CREATE INDEX reservation_void ON farebox.reservation (done_at) WHERE state = 'void';

-- ---- windows -----------------------------------------------------------------------------------------

-- The window of `kind` on the calendar of `zone` that `moment` falls into. Days, weeks and months are cut in local
-- time, so that one with a change of clocks is as long as it is; hours and minutes as they pass. A midnight that
-- comes twice is the first of the two, so that the windows of a budget always join.
CREATE FUNCTION farebox.window_bounds(
    kind text, zone text, moment timestamptz, OUT window_start timestamptz, OUT window_end timestamptz
) LANGUAGE plpgsql STABLE AS $$
DECLARE
    step  interval;
    local timestamp;
BEGIN
    IF kind = 'total' THEN
        window_start := 'epoch';
        window_end := 'infinity';
    ELSIF kind IN ('minute', 'hour') THEN
        window_start := date_trunc(kind, moment, zone);
        window_end := window_start + ('1 ' || kind)::interval;
    ELSE
        step := ('1 ' || kind)::interval;
        local := date_trunc(kind, moment AT TIME ZONE zone);
        window_start := farebox.first_instant(local, zone);
        window_end := farebox.first_instant(local + step, zone);
    END IF;
END $$;

-- When clocks in `zone` first show `local`. Postgres answers with the second time where it comes twice.
CREATE FUNCTION farebox.first_instant(local timestamp, zone text) RETURNS timestamptz LANGUAGE sql STABLE AS $$
    SELECT coalesce(min(earlier) FILTER (WHERE earlier AT TIME ZONE zone = local), local AT TIME ZONE zone)
    FROM (SELECT local AT TIME ZONE zone - ago AS earlier
          FROM unnest('{0,30 min,1 h,2 h}'::interval[]) AS ago) AS candidates
$$;

-- The current window of a budget for a subject as it would be made now, not stored yet. A deleted budget limits
-- nothing. One that another took the place of does, and a key's: for a moment there are processes that still go by it,
-- and what they let through the other does not count; or they still know a key that was revoked.
-- With `hold` no limit can change until the transaction ends, so none is born with an old one.
CREATE FUNCTION farebox.new_window(p_budget uuid, p_subject text, hold boolean) RETURNS farebox.budget_window
LANGUAGE plpgsql AS $$
DECLARE
    b   farebox.budget;
    new farebox.budget_window;
BEGIN
    IF hold THEN
        SELECT * INTO b FROM farebox.budget WHERE id = p_budget FOR SHARE;
    ELSE
        SELECT * INTO b FROM farebox.budget WHERE id = p_budget;
    END IF;
    IF b.id IS NULL THEN
        RAISE EXCEPTION 'there is no budget %', p_budget USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT w.window_start, w.window_end INTO new.window_start, new.window_end
    FROM farebox.window_bounds(b."window", b.timezone, farebox.clock()) AS w;
    new.id := 0;
    new.budget_id := p_budget;
    new.subject := p_subject;
    new.warn := b.on_exceed = 'warn';
    IF b.deleted_at IS NULL OR b.source = 'key'
            OR EXISTS (SELECT FROM farebox.budget AS other WHERE other.name = b.name AND other.deleted_at IS NULL) THEN
        new.limit_usd := b.limit_usd;
        new.limit_tokens := b.limit_tokens;
        new.limit_requests := b.limit_requests;
        new.limit_open := b.limit_open;
    END IF;
    new.spent_usd := 0; new.reserved_usd := 0; new.overrun_usd := 0; new.floor_usd := 0;
    new.spent_tokens := 0; new.reserved_tokens := 0; new.overrun_tokens := 0; new.floor_tokens := 0;
    new.requests := 0; new.open := 0;
    RETURN new;
END $$;

-- Find or make that window; its id.
CREATE FUNCTION farebox.open_window(p_budget uuid, p_subject text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    new farebox.budget_window := farebox.new_window(p_budget, p_subject, true);
    its bigint;
BEGIN
    INSERT INTO farebox.budget_window (
        budget_id, subject, window_start, window_end, warn, limit_usd, limit_tokens, limit_requests, limit_open)
    VALUES (new.budget_id, new.subject, new.window_start, new.window_end, new.warn, new.limit_usd, new.limit_tokens,
            new.limit_requests, new.limit_open)
    ON CONFLICT (budget_id, subject, window_start) DO NOTHING
    RETURNING id INTO its;
    IF its IS NULL THEN
        -- A statement of its own: it sees what another session committed while the insert waited for it.
        SELECT id INTO its FROM farebox.budget_window AS w
        WHERE w.budget_id = new.budget_id AND w.subject = new.subject AND w.window_start = new.window_start;
    END IF;
    RETURN its;
END $$;

-- Whether a window takes this much more. Nothing more always fits, whatever is over already.
CREATE FUNCTION farebox.fits(
    w farebox.budget_window, usd numeric, tokens bigint, requests bigint, opening bigint
) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT (usd = 0 OR w.limit_usd IS NULL OR w.spent_usd + w.reserved_usd + usd <= w.limit_usd)
       AND (tokens = 0 OR w.limit_tokens IS NULL
            OR w.spent_tokens::numeric + w.reserved_tokens + tokens <= w.limit_tokens)
       AND (requests = 0 OR w.limit_requests IS NULL OR w.requests::numeric + requests <= w.limit_requests)
       AND (opening = 0 OR w.limit_open IS NULL OR w.open + opening <= w.limit_open)
$$;

-- ---- reserve and extend ------------------------------------------------------------------------------

-- What reserve and extend answer: a row for each window of each id, or one without a window.
CREATE TYPE farebox.grant_row AS (
    id uuid, state text, fits boolean, w farebox.budget_window
);

-- Reserve for a batch of calls, in the order given, each all or nothing. `ids` and `facts` are one a call; the
-- other arrays one a want, in the order of the calls, `asks` being the place of its call from 1.
-- open: reserved, now or before. denied: it does not fit, and nothing is left of it. gone: that id was released or
-- has its usage row already.
CREATE FUNCTION farebox.reserve(
    p_owner bigint, p_ids uuid[], p_facts text[],
    p_asks integer[], p_budgets uuid[], p_subjects text[], p_usd numeric[], p_tokens bigint[], p_requests bigint[]
) RETURNS SETOF farebox.grant_row LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    n_asks  CONSTANT integer := cardinality(p_ids);
    n_wants CONSTANT integer := cardinality(p_asks);
    states  text[] := array_fill(NULL::text, ARRAY[n_asks]);
    wins    farebox.budget_window[]; -- a want's window as it is found
    ids     bigint[];                -- a want's window, 0: there is none yet
    locked  farebox.budget_window[]; -- the windows under lock, by id
    locked_ids bigint[];
    places  integer[];               -- a want's window in `locked`
    more_usd numeric[]; more_tokens bigint[]; more_requests bigint[]; more_open bigint[];
    trying  uuid[] := '{}';
    failed  uuid[] := '{}';
    fits    boolean[] := array_fill(true, ARRAY[n_wants]);
    w       farebox.budget_window;
    one     record;
    i integer; j integer; k integer; spot integer; ok boolean; known boolean;
    answer  farebox.grant_row;
BEGIN
    IF NOT EXISTS (SELECT FROM farebox.owner WHERE owner.id = p_owner AND NOT dead) THEN
        RAISE EXCEPTION 'owner % is not alive', p_owner USING ERRCODE = 'FB001';
    END IF;
    FOR i IN 1 .. n_wants LOOP
        -- NaN is greater than infinity, and NULL is neither.
        IF (p_usd[i] >= 0 AND p_usd[i] < 'Infinity' AND p_tokens[i] >= 0 AND p_requests[i] >= 0) IS NOT TRUE THEN
            RAISE EXCEPTION 'an amount to hold is negative or not finite' USING ERRCODE = 'invalid_parameter_value';
        END IF;
    END LOOP;

    -- What is known of these ids. Most often nothing, and to ask whether there is anything costs less.
    known := EXISTS (SELECT FROM farebox.reservation WHERE reservation.id = ANY (p_ids));
    IF known THEN
        FOR one IN
            SELECT reservation.id, reservation.state FROM farebox.reservation WHERE reservation.id = ANY (p_ids)
        LOOP
            states[array_position(p_ids, one.id)] := CASE one.state WHEN 'open' THEN 'open' ELSE 'gone' END;
        END LOOP;
    END IF;

    -- The look without a lock: a storm of refusals must not stand in line for the row it is refused by.
    -- One by one where they are few, which is cheaper then.
    IF n_wants <= 4 THEN
        FOR i IN 1 .. n_wants LOOP
            SELECT * INTO w FROM farebox.budget_window AS bw
            WHERE bw.budget_id = p_budgets[i] AND bw.subject = p_subjects[i]
              AND bw.window_start <= farebox.clock() AND bw.window_end > farebox.clock()
            ORDER BY bw.window_start DESC LIMIT 1;
            wins[i] := w;
        END LOOP;
    ELSE
        SELECT array_agg(current ORDER BY place) INTO wins
        FROM unnest(p_budgets, p_subjects) WITH ORDINALITY AS want(budget, subject, place)
        LEFT JOIN LATERAL (
            SELECT bw FROM farebox.budget_window AS bw
            WHERE bw.budget_id = want.budget AND bw.subject = want.subject
              AND bw.window_start <= farebox.clock() AND bw.window_end > farebox.clock()
            ORDER BY bw.window_start DESC LIMIT 1
        ) AS live(current) ON true;
    END IF;
    FOR i IN 1 .. n_wants LOOP
        w := wins[i];
        IF w.id IS NULL THEN
            w := farebox.new_window(p_budgets[i], p_subjects[i], false);
            wins[i] := w;
        END IF;
        ids[i] := w.id;
        j := p_asks[i];
        fits[i] := farebox.fits(w, p_usd[i], p_tokens[i], p_requests[i], 1);
        IF NOT fits[i] AND NOT w.warn AND states[j] IS DISTINCT FROM 'open' AND states[j] IS DISTINCT FROM 'gone' THEN
            states[j] := 'denied';
        END IF;
    END LOOP;

    IF array_position(states, NULL) IS NOT NULL THEN
        -- Windows that are not there yet, in one order for all. The share lock on their budgets comes first of all.
        FOR one IN
            SELECT DISTINCT budget, subject
            FROM unnest(p_budgets, p_subjects, ids, p_asks) AS want(budget, subject, id, ask)
            WHERE id = 0 AND states[ask] IS NULL ORDER BY budget, subject
        LOOP
            k := farebox.open_window(one.budget, one.subject);
            FOR i IN 1 .. n_wants LOOP
                IF p_budgets[i] = one.budget AND p_subjects[i] = one.subject THEN
                    ids[i] := k;
                END IF;
            END LOOP;
        END LOOP;

        -- Reservations first, by id. A twin of this call waits here until it is known what became of the other.
        IF n_asks = 1 THEN
            INSERT INTO farebox.reservation (id, owner, windows, held_usd, held_tokens, held_requests, facts)
            VALUES (p_ids[1], p_owner, ids, p_usd, p_tokens, p_requests, p_facts[1]::json)
            ON CONFLICT (id) DO NOTHING;
            IF FOUND THEN
                trying := p_ids;
            END IF;
        ELSE
            WITH made AS (
                INSERT INTO farebox.reservation (id, owner, windows, held_usd, held_tokens, held_requests, facts)
                SELECT p_ids[ask], p_owner, array_agg(window_id ORDER BY window_id), array_agg(usd ORDER BY window_id),
                       array_agg(tokens ORDER BY window_id), array_agg(requests ORDER BY window_id), p_facts[ask]::json
                FROM unnest(p_asks, ids, p_usd, p_tokens, p_requests) AS want(ask, window_id, usd, tokens, requests)
                WHERE states[ask] IS NULL
                GROUP BY ask ORDER BY p_ids[ask]
                ON CONFLICT (id) DO NOTHING
                RETURNING reservation.id
            )
            SELECT coalesce(array_agg(made.id), '{}') INTO trying FROM made;
        END IF;
        FOR j IN 1 .. n_asks LOOP
            IF states[j] IS NULL AND NOT p_ids[j] = ANY (trying) THEN
                -- No row: its twin was denied, or has been settled, and then there is a usage row.
                known := true;
                states[j] := coalesce((SELECT CASE r.state WHEN 'open' THEN 'open' ELSE 'gone' END
                                       FROM farebox.reservation AS r WHERE r.id = p_ids[j]), 'denied');
            END IF;
        END LOOP;
    END IF;

    -- A usage row: it was settled, or swept. Asked after the insert, which waited for whoever was settling it.
    FOR j IN 1 .. n_asks LOOP
        IF states[j] = 'denied' THEN
            -- What it does not fit beside may be its own twin, reserved since this began.
            ok := (SELECT r.state = 'open' FROM farebox.reservation AS r WHERE r.id = p_ids[j]);
            IF ok IS NOT NULL THEN
                states[j] := CASE WHEN ok THEN 'open' ELSE 'gone' END;
                known := true;
            END IF;
        END IF;
        IF coalesce(states[j], 'denied') = 'denied'
                AND EXISTS (SELECT FROM farebox.usage_entry AS e WHERE e.id = p_ids[j]) THEN
            states[j] := 'gone';
            failed := failed || p_ids[j];
        END IF;
    END LOOP;

    IF array_position(states, NULL) IS NOT NULL THEN
        IF n_wants = 1 THEN
            SELECT * INTO w FROM farebox.budget_window AS bw WHERE bw.id = ids[1] FOR UPDATE;
            locked := ARRAY[w];
        ELSE
            SELECT array_agg(line ORDER BY (line).id) INTO locked FROM (
                SELECT bw AS line FROM farebox.budget_window AS bw
                WHERE bw.id IN (SELECT id FROM unnest(ids, p_asks) AS want(id, ask) WHERE states[ask] IS NULL)
                ORDER BY bw.id FOR UPDATE
            ) AS lines;
        END IF;
        k := cardinality(locked);
        more_usd := array_fill(0::numeric, ARRAY[k]);
        more_tokens := array_fill(0::bigint, ARRAY[k]);
        more_requests := more_tokens;
        more_open := more_tokens;
        FOR i IN 1 .. k LOOP
            locked_ids[i] := locked[i].id;
        END LOOP;
        FOR i IN 1 .. n_wants LOOP
            places[i] := array_position(locked_ids, ids[i]);
        END LOOP;
        i := 1;
        WHILE i <= n_wants LOOP
            j := p_asks[i];
            k := i;
            IF states[j] IS NULL THEN
                ok := true;
                WHILE k <= n_wants AND p_asks[k] = j LOOP
                    w := locked[places[k]];
                    fits[k] := farebox.fits(
                        w, p_usd[k] + more_usd[places[k]], p_tokens[k] + more_tokens[places[k]],
                        p_requests[k] + more_requests[places[k]], 1 + more_open[places[k]]);
                    ok := ok AND (fits[k] OR w.warn);
                    k := k + 1;
                END LOOP;
                states[j] := CASE WHEN ok THEN 'open' ELSE 'denied' END;
                IF NOT ok THEN
                    failed := failed || p_ids[j];
                END IF;
                FOR m IN i .. k - 1 LOOP
                    spot := places[m];
                    IF ok THEN
                        more_usd[spot] := more_usd[spot] + p_usd[m];
                        more_tokens[spot] := more_tokens[spot] + p_tokens[m];
                        more_requests[spot] := more_requests[spot] + p_requests[m];
                        more_open[spot] := more_open[spot] + 1;
                    END IF;
                    w := locked[spot];
                    w.reserved_usd := w.reserved_usd + more_usd[spot];
                    w.reserved_tokens := w.reserved_tokens + more_tokens[spot];
                    w.requests := w.requests + more_requests[spot];
                    w.open := w.open + more_open[spot];
                    wins[m] := w;
                END LOOP;
            END IF;
            WHILE i <= n_wants AND p_asks[i] = j LOOP
                i := i + 1;
            END LOOP;
        END LOOP;
        IF n_wants = 1 THEN
            UPDATE farebox.budget_window AS bw
            SET reserved_usd = bw.reserved_usd + more_usd[1], reserved_tokens = bw.reserved_tokens + more_tokens[1],
                requests = bw.requests + more_requests[1], open = bw.open + 1
            WHERE bw.id = ids[1] AND more_open[1] > 0;
        ELSE
            UPDATE farebox.budget_window AS bw
            SET reserved_usd = bw.reserved_usd + step.usd, reserved_tokens = bw.reserved_tokens + step.tokens,
                requests = bw.requests + step.requests, open = bw.open + step.open
            FROM unnest(locked_ids, more_usd, more_tokens, more_requests, more_open)
                AS step(id, usd, tokens, requests, open)
            WHERE bw.id = step.id AND step.open > 0;
        END IF;
    END IF;

    IF cardinality(failed) > 0 THEN
        DELETE FROM farebox.reservation WHERE reservation.id = ANY (failed) AND reservation.id = ANY (trying);
    END IF;

    FOR j IN 1 .. n_asks LOOP
        answer.id := p_ids[j];
        answer.state := states[j];
        IF states[j] = 'gone' THEN
            answer.fits := NULL;
            answer.w := NULL;
            RETURN NEXT answer;
        END IF;
    END LOOP;
    FOR i IN 1 .. n_wants LOOP
        j := p_asks[i];
        IF states[j] = 'denied' OR p_ids[j] = ANY (trying) AND states[j] = 'open' THEN
            answer.id := p_ids[j];
            answer.state := states[j];
            answer.fits := fits[i];
            answer.w := wins[i];
            RETURN NEXT answer;
        END IF;
    END LOOP;
    -- Reserved before: the windows it was reserved in, which need not be today's.
    -- Unless it was settled or released since it was looked up.
    IF known THEN
        FOR j IN 1 .. n_asks LOOP
            IF states[j] = 'open' AND NOT p_ids[j] = ANY (trying) THEN
                RETURN QUERY
                SELECT r.id, 'open'::text, true, bw
                FROM farebox.reservation AS r JOIN farebox.budget_window AS bw ON bw.id = ANY (r.windows)
                WHERE r.id = p_ids[j] AND r.state = 'open' ORDER BY bw.id;
                IF NOT FOUND THEN
                    answer.id := p_ids[j];
                    answer.state := 'gone';
                    answer.fits := NULL;
                    answer.w := NULL;
                    RETURN NEXT answer;
                END IF;
            END IF;
        END LOOP;
    END IF;
END $$;

-- Raise what is held for open calls to larger totals, each all or nothing over the budgets that cut. Asks for a total, so that asking again
-- does nothing. A call that was swept meanwhile reserves anew what it needs beyond what it was charged. gone: it
-- was settled or released, or never reserved.
CREATE FUNCTION farebox.extend(p_owner bigint, p_ids uuid[], p_usd numeric[], p_tokens bigint[])
RETURNS SETOF farebox.grant_row LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    r           farebox.reservation;
    last        farebox.usage_entry;
    swept       uuid[];
    more_usd    numeric[];
    more_tokens bigint[];
    ok          boolean;
    answer      farebox.grant_row;
BEGIN
    IF NOT EXISTS (SELECT FROM farebox.owner WHERE owner.id = p_owner AND NOT dead) THEN
        RAISE EXCEPTION 'owner % is not alive', p_owner USING ERRCODE = 'FB001';
    END IF;
    FOR i IN 1 .. cardinality(p_ids) LOOP
        IF (p_usd[i] >= 0 AND p_usd[i] < 'Infinity' AND p_tokens[i] >= 0) IS NOT TRUE THEN
            RAISE EXCEPTION 'an amount to hold is negative or not finite' USING ERRCODE = 'invalid_parameter_value';
        END IF;
    END LOOP;
    WITH made AS (
        INSERT INTO farebox.reservation (id, owner, windows, held_usd, held_tokens, held_requests, facts)
        SELECT e.id, p_owner, e.window_ids, array_fill(0::numeric, size), array_fill(0::bigint, size),
               array_fill(0::bigint, size), to_json(e)
        FROM farebox.usage_entry AS e CROSS JOIN LATERAL (SELECT ARRAY[cardinality(e.window_ids)] AS size) AS sized
        WHERE e.id = ANY (p_ids) AND e.outcome = 'farebox_cut' AND e.usage_source = 'hold'
          AND e.window_ids IS NOT NULL
          AND NOT EXISTS (SELECT FROM farebox.usage_entry AS newer
                          WHERE newer.id = e.id AND newer.posting_no > e.posting_no)
        ORDER BY e.id
        ON CONFLICT (id) DO NOTHING
        RETURNING reservation.id
    )
    SELECT coalesce(array_agg(made.id), '{}') INTO swept FROM made;
    PERFORM FROM farebox.reservation WHERE reservation.id = ANY (p_ids) ORDER BY reservation.id FOR UPDATE;
    PERFORM FROM farebox.budget_window AS bw
    WHERE bw.id IN (SELECT unnest(windows) FROM farebox.reservation AS held WHERE held.id = ANY (p_ids))
    ORDER BY bw.id FOR UPDATE;

    FOR i IN 1 .. cardinality(p_ids) LOOP
        answer := NULL;
        answer.id := p_ids[i];
        answer.state := 'gone';
        SELECT * INTO r FROM farebox.reservation AS held WHERE held.id = p_ids[i] AND held.state = 'open';
        -- Read under the locks of the windows: what it was charged can't change any more.
        SELECT * INTO last FROM farebox.usage_entry AS e
        WHERE e.id = p_ids[i] ORDER BY e.posting_no DESC LIMIT 1;
        IF r.id IS NOT NULL AND last.id IS NOT NULL
                AND (last.outcome <> 'farebox_cut' OR last.usage_source <> 'hold') THEN
            DELETE FROM farebox.reservation AS held WHERE held.id = r.id AND held.id = ANY (swept);
            r := NULL;
        END IF;
        IF r.id IS NULL THEN
            RETURN NEXT answer;
            CONTINUE;
        END IF;
        SELECT array_agg(greatest(p_usd[i] - coalesce(last.cost_usd, 0) - usd, 0) ORDER BY place),
               array_agg(greatest(p_tokens[i] - farebox.tokens_of(last) - tokens, 0) ORDER BY place)
        INTO more_usd, more_tokens
        FROM unnest(r.held_usd, r.held_tokens) WITH ORDINALITY AS held(usd, tokens, place);
        -- A pace, and a budget that lets streams overrun, hold more only while they have room. They keep nobody from
        -- holding it in the others, which would else not be asked, and be overspent unseen.
        SELECT array_agg(CASE WHEN held THEN step.usd ELSE 0 END ORDER BY step.place),
               array_agg(CASE WHEN held THEN step.tokens ELSE 0 END ORDER BY step.place)
        INTO more_usd, more_tokens
        FROM unnest(r.windows, more_usd, more_tokens) WITH ORDINALITY AS step(id, usd, tokens, place)
        LEFT JOIN farebox.budget_window AS bw ON bw.id = step.id
        LEFT JOIN farebox.budget AS b ON b.id = bw.budget_id
        CROSS JOIN LATERAL (SELECT (b.purpose = 'budget' AND b.on_extend_denied = 'cut') OR bw.warn
                                   OR farebox.fits(bw, step.usd, step.tokens, 0, 0)) AS kept(held);
        SELECT bool_and(bw.warn OR farebox.fits(bw, step.usd, step.tokens, 0, 0)) INTO ok
        FROM unnest(r.windows, more_usd, more_tokens) AS step(id, usd, tokens)
        JOIN farebox.budget_window AS bw ON bw.id = step.id;
        answer.state := CASE WHEN ok IS FALSE THEN 'denied' ELSE 'open' END;
        RETURN QUERY
        SELECT r.id, answer.state, farebox.fits(bw, step.usd, step.tokens, 0, 0), bw
        FROM unnest(r.windows, more_usd, more_tokens) AS step(id, usd, tokens)
        JOIN farebox.budget_window AS bw ON bw.id = step.id
        WHERE answer.state = 'denied' ORDER BY bw.id;
        IF answer.state = 'denied' THEN
            -- What was there before the denial stays; a swept one was nothing but its row.
            DELETE FROM farebox.reservation AS held WHERE held.id = r.id AND held.id = ANY (swept);
            CONTINUE;
        END IF;
        RETURN QUERY
        WITH moved AS (
            UPDATE farebox.budget_window AS bw
            SET reserved_usd = bw.reserved_usd + step.usd, reserved_tokens = bw.reserved_tokens + step.tokens,
                open = bw.open + CASE WHEN r.id = ANY (swept) THEN 1 ELSE 0 END
            FROM unnest(r.windows, more_usd, more_tokens) AS step(id, usd, tokens)
            WHERE bw.id = step.id
            RETURNING bw
        )
        SELECT r.id, 'open'::text, farebox.fits((moved.bw), 0, 0, 0, 0), moved.bw FROM moved ORDER BY (moved.bw).id;
        UPDATE farebox.reservation AS held
        SET owner = p_owner,
            held_usd = ARRAY(SELECT was + more FROM unnest(held.held_usd, more_usd)
                             WITH ORDINALITY AS h(was, more, place) ORDER BY place),
            held_tokens = ARRAY(SELECT was + more FROM unnest(held.held_tokens, more_tokens)
                                WITH ORDINALITY AS h(was, more, place) ORDER BY place)
        WHERE held.id = r.id;
    END LOOP;
END $$;

-- ---- postings ----------------------------------------------------------------------------------------

-- The windows an attempt was charged to; every later posting of it has them, too.
ALTER TABLE farebox.usage_entry ADD COLUMN window_ids bigint[];

CREATE FUNCTION farebox.tokens_of(e farebox.usage_entry) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(e.input_tokens, 0) + coalesce(e.output_tokens, 0)
$$;

-- Recording is settling: a posting moves what its windows have spent by what it says more or less than the one
-- before it, and frees what was held for it. Whoever posts, and for whatever reason: this is the only place where
-- spent changes. What a bill is above its hold, or a correction above what was known, is an overrun.
CREATE FUNCTION farebox.charge_windows() RETURNS trigger LANGUAGE plpgsql
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
                        WHERE e.id = posting.id AND e.posting_no = posting.posting_no - 1 LIMIT 1
                    ) AS was ON posting.posting_no > 1
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

-- Its name is before count_corrections, and so is its turn: windows, then cost_correction.
CREATE TRIGGER charge_windows AFTER INSERT ON farebox.usage_entry
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION farebox.charge_windows();

-- Lock what postings for these ids will move: their open reservations, then the windows of these and of the
-- postings there are.
CREATE FUNCTION farebox.lock_charged(p_ids uuid[]) RETURNS void LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    touched bigint[];
BEGIN
    PERFORM FROM farebox.reservation WHERE id = ANY (p_ids) ORDER BY id FOR UPDATE;
    SELECT array_agg(DISTINCT window_id) INTO touched FROM (
        SELECT unnest(windows) AS window_id FROM farebox.reservation WHERE id = ANY (p_ids)
        UNION ALL
        SELECT unnest(window_ids) FROM farebox.usage_entry WHERE id = ANY (p_ids) AND posting_no = 1
    ) AS windows;
    IF touched IS NOT NULL THEN
        PERFORM FROM farebox.budget_window WHERE id = ANY (touched) ORDER BY id FOR UPDATE;
    END IF;
END $$;

-- The same, and which of the ids nothing is held for: only those may be corrected, or their hold would be freed.
CREATE FUNCTION farebox.lock_settled(p_ids uuid[]) RETURNS SETOF uuid LANGUAGE plpgsql AS $$
BEGIN
    PERFORM farebox.lock_charged(p_ids);
    RETURN QUERY SELECT wanted.id FROM unnest(p_ids) AS wanted(id)
    WHERE NOT EXISTS (SELECT FROM farebox.reservation AS r WHERE r.id = wanted.id AND r.state = 'open');
END $$;

-- Post a JSON array of events, members named like columns. A new id becomes an original. An id that is stored as cut
-- off by farebox is corrected by one that comes with an answer, or that knows what was only held; all else is known
-- already and left out. An id with an open reservation is charged to its windows, and one posted as a hold costs
-- what was held for it at least. Answers how many postings were added, and how many should have been: fewer were
-- when another session added the same id at the same moment, and then asking again settles it.
CREATE FUNCTION farebox.post_events(document json, OUT added bigint, OUT wanted bigint) LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    incoming farebox.usage_entry[];
    ids      uuid[];
BEGIN
    -- Only what names budgets was reserved: the others pay nothing for locks.
    SELECT array_agg(event), array_agg((event).id) FILTER (WHERE (event).budget_ids IS NOT NULL) INTO incoming, ids
    FROM (
        SELECT DISTINCT ON (event.id) event
        FROM json_populate_recordset(NULL::farebox.usage_entry, document) AS event
        ORDER BY event.id, (event.outcome = 'farebox_cut')
    ) AS events;
    IF ids IS NOT NULL THEN
        PERFORM farebox.lock_charged(ids);
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
            coalesce(r.windows, newest.window_ids) AS window_ids
        FROM unnest(incoming) AS e
        LEFT JOIN LATERAL (
            SELECT windows, held_usd, held_tokens FROM farebox.reservation WHERE id = e.id AND state = 'open' LIMIT 1
        ) AS r ON true
        LEFT JOIN LATERAL (
            SELECT entry.posting_no, entry.outcome, entry.usage_source, entry.window_ids,
                   coalesce(entry.cost_usd, 0) AS cost_usd,
                   coalesce(entry.input_tokens, 0) + coalesce(entry.output_tokens, 0) AS tokens
            FROM farebox.usage_entry AS entry
            WHERE entry.id = e.id ORDER BY entry.posting_no DESC LIMIT 1
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
END $$;

-- Give back what is held for calls that were provably not sent. An id that is not known yet can't be reserved any
-- more; one that was swept costs nothing after all.
CREATE FUNCTION farebox.release(p_ids uuid[]) RETURNS void LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE
    swept json;
BEGIN
    INSERT INTO farebox.reservation (id, state, done_at)
    SELECT id, 'void', farebox.clock() FROM (SELECT DISTINCT unnest(p_ids) AS id) AS wanted
    WHERE NOT EXISTS (SELECT FROM farebox.usage_entry AS e WHERE e.id = wanted.id)
    ORDER BY id
    ON CONFLICT (id) DO NOTHING;
    PERFORM farebox.lock_charged(p_ids);
    SELECT json_agg(to_jsonb(e) - '{input_tokens,cache_read_tokens,cache_write_tokens,cache_write_1h_tokens,'
                    'output_tokens,reasoning_tokens,audio_input_tokens,audio_output_tokens,image_tokens,price_id}'::text[]
                    || '{"cost_usd": 0, "cost_source": "none", "usage_source": "none"}')
    INTO swept
    FROM unnest(p_ids) AS wanted(id) CROSS JOIN LATERAL (
        SELECT * FROM farebox.usage_entry WHERE usage_entry.id = wanted.id ORDER BY posting_no DESC LIMIT 1) AS e
    WHERE e.outcome = 'farebox_cut' AND e.usage_source = 'hold';
    IF swept IS NOT NULL THEN
        PERFORM farebox.post_events(swept);
    END IF;
    UPDATE farebox.budget_window AS bw
    SET reserved_usd = bw.reserved_usd - step.usd, reserved_tokens = bw.reserved_tokens - step.tokens,
        requests = bw.requests - step.requests, open = bw.open - step.calls
    FROM (
        SELECT held.id, sum(usd) AS usd, sum(tokens)::bigint AS tokens, sum(requests)::bigint AS requests,
               count(*) AS calls
        FROM farebox.reservation AS r
        CROSS JOIN LATERAL unnest(r.windows, r.held_usd, r.held_tokens, r.held_requests)
            AS held(id, usd, tokens, requests)
        WHERE r.id = ANY (p_ids) AND r.state = 'open'
        GROUP BY held.id
    ) AS step
    WHERE bw.id = step.id;
    UPDATE farebox.reservation
    SET state = 'void', done_at = farebox.clock(), windows = '{}', held_usd = '{}', held_tokens = '{}',
        held_requests = '{}', facts = NULL, owner = NULL
    WHERE id = ANY (p_ids) AND state = 'open';
END $$;

-- The newest posting of an attempt again, at a cost that an operator knows. No row: there is no such attempt.
-- One that is still running can't be corrected yet.
-- Tokens that are not given stay as they were.
CREATE FUNCTION farebox.correct_usage(
    p_id uuid, p_cost numeric, p_actor text, p_reason text, p_input bigint DEFAULT NULL, p_output bigint DEFAULT NULL)
RETURNS SETOF numeric LANGUAGE plpgsql AS $$
DECLARE
    e   farebox.usage_entry;
    old numeric;
    was jsonb;
BEGIN
    PERFORM farebox.lock_charged(ARRAY[p_id]);
    SELECT * INTO e FROM farebox.usage_entry WHERE id = p_id ORDER BY posting_no DESC LIMIT 1;
    IF e.id IS NULL THEN
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM farebox.reservation WHERE id = p_id AND state = 'open') THEN
        RAISE EXCEPTION 'the call is still running' USING ERRCODE = 'FB002';
    END IF;
    old := e.cost_usd;
    e.posting_no := e.posting_no + 1;
    e.posted_at := now();
    e.cost_usd := p_cost;
    e.cost_source := 'operator';
    e.price_id := NULL;
    was := jsonb_build_object('cost_usd', old::text) || jsonb_strip_nulls(jsonb_build_object(
        'input_tokens', CASE WHEN p_input IS NOT NULL THEN e.input_tokens END,
        'output_tokens', CASE WHEN p_output IS NOT NULL THEN e.output_tokens END));
    e.input_tokens := coalesce(p_input, e.input_tokens);
    e.output_tokens := coalesce(p_output, e.output_tokens);
    INSERT INTO farebox.usage_entry SELECT e.*;
    INSERT INTO farebox.audit (actor, action, kind, name, before, after)
    VALUES (p_actor, 'correct', 'usage', p_id::text, was,
            jsonb_build_object('cost_usd', p_cost::text, 'reason', p_reason)
            || jsonb_strip_nulls(jsonb_build_object('input_tokens', p_input, 'output_tokens', p_output)));
    RETURN NEXT old;
END $$;

-- ---- owners ------------------------------------------------------------------------------------------

-- A sign of life; false: it was taken for dead, and its holds are charged.
CREATE FUNCTION farebox.beat(p_owner bigint) RETURNS boolean LANGUAGE sql AS $$
    WITH heard AS (
        UPDATE farebox.owner
        SET seen = farebox.clock(),
            steady_since = CASE WHEN farebox.clock() - seen > gap_max THEN farebox.clock() ELSE steady_since END
        WHERE id = p_owner AND NOT dead RETURNING 1
    )
    SELECT EXISTS (SELECT FROM heard)
$$;

-- Take owners that were silent for a lease for dead, and charge what dead ones left open, at most `p_rows` of them;
-- how many. Does nothing while the caller has not been heard of without a gap for a lease, or the server not up
-- that long: after an outage everyone was silent, and gets one lease to be heard of.
CREATE FUNCTION farebox.sweep(p_owner bigint, p_lease interval, p_rows integer) RETURNS integer
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

-- A call's facts as the event that is posted when its owner is gone. What a row must have and the facts lack is
-- said to be unknown.
CREATE FUNCTION farebox.as_hold(p_id uuid, facts json) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object(
        'request_id', p_id, 'attempt', 1, 'started_at', now(), 'finished_at', now(), 'provider', 'unknown',
        'dialect', 'unknown', 'endpoint', 'unknown', 'operation', 'other')
        || jsonb_strip_nulls(facts::jsonb)
        || jsonb_build_object('id', p_id, 'outcome', 'farebox_cut', 'usage_source', 'hold')
$$;

-- Forget what nobody asks for any more, a bounded part at a time.
CREATE FUNCTION farebox.purge_budgets() RETURNS void LANGUAGE sql AS $$
    DELETE FROM farebox.reservation WHERE id IN (
        SELECT id FROM farebox.reservation WHERE state = 'void' AND done_at < farebox.clock() - interval '1 day'
        ORDER BY id LIMIT 10000 FOR UPDATE SKIP LOCKED);
    DELETE FROM farebox.budget_window WHERE id IN (
        SELECT w.id FROM farebox.budget_window AS w JOIN farebox.budget AS b ON b.id = w.budget_id
        WHERE w.open = 0 AND least(w.window_end, b.deleted_at) < farebox.clock()
            - CASE b.purpose WHEN 'rate' THEN interval '1 day' ELSE interval '400 days' END
        ORDER BY w.id LIMIT 10000 FOR UPDATE OF w SKIP LOCKED);
    DELETE FROM farebox.owner WHERE dead AND seen < farebox.clock() - interval '1 day'
        AND NOT EXISTS (SELECT FROM farebox.reservation AS r WHERE r.owner = owner.id AND r.state = 'open');
$$;

-- ---- changing definitions ----------------------------------------------------------------------------

-- What the audit tells of a budget.
CREATE FUNCTION farebox.budget_facts(b farebox.budget) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT to_jsonb(b) - '{created_at,changed_at,deleted_at}'::text[]
        || jsonb_build_object('limit_usd', b.limit_usd::text)
$$;

-- End budgets. Their windows limit nothing any more; what is open there still settles. Those of a key end here with
-- their key only, and limit it to its last call: not every process knows at once that it was revoked.
CREATE FUNCTION farebox.retire_budgets(p_ids uuid[], p_actor text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM farebox.budget WHERE id = ANY (p_ids) ORDER BY id FOR UPDATE;
    INSERT INTO farebox.audit (actor, action, kind, name, before)
    SELECT p_actor, 'delete', 'budget', b.name, farebox.budget_facts(b)
    FROM farebox.budget AS b WHERE b.id = ANY (p_ids) AND b.deleted_at IS NULL ORDER BY b.name;
    UPDATE farebox.budget SET deleted_at = clock_timestamp() WHERE id = ANY (p_ids) AND deleted_at IS NULL;
    PERFORM farebox.apply_limits(ARRAY(SELECT id FROM farebox.budget WHERE id = ANY (p_ids) AND source <> 'key'));
END $$;

-- Give the living windows of budgets the limits these have now, all under lock, by id.
CREATE FUNCTION farebox.apply_limits(p_budgets uuid[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM farebox.budget_window WHERE budget_id = ANY (p_budgets) AND window_end > farebox.clock()
    ORDER BY id FOR UPDATE;
    UPDATE farebox.budget_window AS w
    SET warn = b.on_exceed = 'warn', limit_usd = b.limit_usd, limit_tokens = b.limit_tokens,
        limit_requests = b.limit_requests, limit_open = b.limit_open,
        floor_usd = CASE WHEN w.spent_usd + w.reserved_usd > b.limit_usd THEN w.spent_usd + w.reserved_usd ELSE 0 END,
        floor_tokens = CASE WHEN w.spent_tokens + w.reserved_tokens > b.limit_tokens
                            THEN w.spent_tokens + w.reserved_tokens ELSE 0 END
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

-- Make budgets as `p_wanted` says, a JSON array of objects with members named like columns. Those of the same name
-- are changed; one whose kind of counting changes (scope, only, window, timezone) gets new counters, under a new id.
-- `p_whole`: of the living budgets of this source (and key) those that are not wanted end, and what an object leaves
-- out is the default; otherwise it stays as it was. Budgets of a key are known by what follows the key's name.
-- Answers the living budgets that were wanted.
CREATE FUNCTION farebox.put_budgets(p_wanted jsonb, p_source text, p_actor text, p_whole boolean, p_key uuid)
RETURNS SETOF farebox.budget LANGUAGE plpgsql AS $$
DECLARE
    wish    jsonb;
    old     farebox.budget;
    new     farebox.budget;
    kept    uuid[] := '{}';
    changed uuid[] := '{}';
    ended   uuid[];
BEGIN
    -- One change of definitions at a time, each seeing what the one before did.
    PERFORM pg_advisory_xact_lock(x'6661726562756467'::bigint);
    -- A revoked key gets none any more; one that is being revoked is waited for.
    PERFORM FROM farebox.key WHERE id = p_key FOR SHARE;
    IF EXISTS (SELECT FROM farebox.key WHERE id = p_key AND revoked_at IS NOT NULL) THEN
        p_wanted := '[]';
    END IF;
    PERFORM FROM farebox.budget
    WHERE (deleted_at IS NULL OR (source = 'config' AND p_source = 'config'))
      AND (name IN (SELECT w ->> 'name' FROM jsonb_array_elements(p_wanted) AS w)
           OR (p_whole AND source = p_source AND key_id IS NOT DISTINCT FROM p_key))
    ORDER BY id FOR UPDATE;
    FOR wish IN SELECT * FROM jsonb_array_elements(p_wanted) LOOP
        SELECT * INTO old FROM farebox.budget AS b
        WHERE b.deleted_at IS NULL AND CASE WHEN p_source = 'key'
            THEN b.key_id = p_key AND substring(b.name FROM '[^:]*$') = substring(wish ->> 'name' FROM '[^:]*$')
            ELSE b.name = wish ->> 'name' END
        FOR UPDATE;
        IF old.source = 'config' AND p_source <> 'config' THEN
            RAISE EXCEPTION 'the budget % belongs to the config', old.name USING ERRCODE = 'FB003';
        END IF;
        IF old.id IS NOT NULL AND NOT p_whole THEN
            new := jsonb_populate_record(old, wish);
        ELSE
            new := jsonb_populate_record(farebox.plain_budget(), wish);
        END IF;
        new.source := p_source;
        new.key_id := p_key;
        new.deleted_at := NULL;
        IF old.id IS NULL AND p_source = 'config' THEN
            -- One that was in the config before, and left it by mistake perhaps: what it had spent is spent.
            SELECT * INTO old FROM farebox.budget AS b
            WHERE b.deleted_at IS NOT NULL AND b.source = 'config' AND b.name = new.name
              AND (b.scope, b."only", b."window", b.timezone, b.purpose)
                  IS NOT DISTINCT FROM (new.scope, new."only", new."window", new.timezone, new.purpose)
            ORDER BY b.deleted_at DESC LIMIT 1;
        END IF;
        IF old.id IS NOT NULL
                AND (new.scope, new."only", new."window", new.timezone, new.purpose)
                    IS NOT DISTINCT FROM (old.scope, old."only", old."window", old.timezone, old.purpose) THEN
            new.id := old.id;
            new.created_at := old.created_at;
            new.changed_at := old.changed_at;
            kept := kept || new.id;
            CONTINUE WHEN new IS NOT DISTINCT FROM old;
            UPDATE farebox.budget AS b
            SET name = new.name, source = new.source, limit_usd = new.limit_usd, limit_tokens = new.limit_tokens,
                limit_requests = new.limit_requests, limit_open = new.limit_open, thresholds = new.thresholds,
                on_exceed = new.on_exceed, admission = new.admission, clamp = new.clamp, wait_s = new.wait_s,
                on_extend_denied = new.on_extend_denied, deleted_at = NULL
            WHERE b.id = new.id;
            changed := changed || new.id;
        ELSE
            new.id := gen_random_uuid();
            new.created_at := clock_timestamp();
            IF old.id IS NOT NULL THEN
                -- Its windows keep their limits: see new_window.
                UPDATE farebox.budget SET deleted_at = clock_timestamp() WHERE id = old.id;
            END IF;
            INSERT INTO farebox.budget SELECT new.*;
            kept := kept || new.id;
        END IF;
        INSERT INTO farebox.audit (actor, action, kind, name, before, after)
        VALUES (p_actor, CASE WHEN old.id IS NULL OR old.deleted_at IS NOT NULL THEN 'create' ELSE 'change' END,
                'budget', new.name,
                CASE WHEN old.id IS NOT NULL AND old.deleted_at IS NULL THEN farebox.budget_facts(old) END,
                farebox.budget_facts(new));
    END LOOP;
    IF p_whole THEN
        SELECT array_agg(id) INTO ended FROM farebox.budget
        WHERE deleted_at IS NULL AND source = p_source AND key_id IS NOT DISTINCT FROM p_key
          AND NOT id = ANY (kept);
        IF ended IS NOT NULL THEN
            INSERT INTO farebox.audit (actor, action, kind, name, before)
            SELECT p_actor, 'delete', 'budget', b.name, farebox.budget_facts(b)
            FROM farebox.budget AS b WHERE b.id = ANY (ended) ORDER BY b.name;
            UPDATE farebox.budget SET deleted_at = clock_timestamp() WHERE id = ANY (ended);
            changed := changed || ended;
        END IF;
    END IF;
    -- All windows of all that changed, at once and last: by id, like everybody else.
    PERFORM farebox.apply_limits(changed);
    RETURN QUERY SELECT * FROM farebox.budget WHERE id = ANY (kept) ORDER BY name;
END $$;

-- A budget of defaults.
CREATE FUNCTION farebox.plain_budget() RETURNS farebox.budget LANGUAGE plpgsql STABLE AS $$
DECLARE
    b farebox.budget;
BEGIN
    b.purpose := 'budget'; b."only" := '{}'; b."window" := 'month'; b.timezone := 'UTC';
    b.thresholds := '{0.5,0.8,1.0}'; b.on_exceed := 'reject'; b.admission := 'expected'; b.clamp := false;
    b.wait_s := 5; b.on_extend_denied := 'cut';
    RETURN b;
END $$;

-- A key that ends takes its budgets with it, whoever ends it.
CREATE FUNCTION farebox.retire_with_key() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    its uuid[];
BEGIN
    SELECT array_agg(id) INTO its FROM farebox.budget WHERE key_id = NEW.id AND deleted_at IS NULL;
    IF its IS NOT NULL THEN
        PERFORM farebox.retire_budgets(its, 'key ' || NEW.name || ' revoked');
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER retire_budgets AFTER UPDATE OF revoked_at ON farebox.key
    FOR EACH ROW WHEN (OLD.revoked_at IS NULL AND NEW.revoked_at IS NOT NULL)
    EXECUTE FUNCTION farebox.retire_with_key();
