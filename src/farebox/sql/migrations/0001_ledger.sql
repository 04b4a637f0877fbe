-- Runs before the deploy. The ledger: what every attempt sent to a provider came to.
--
-- A posting is a whole statement about one attempt. The first for an id is its original; a later truth
-- (a late answer, a new price) is a correction: another posting of that id with the next number. The
-- newest holds. Postings are only ever added, so what was once reported can always be shown again.

CREATE TABLE farebox.usage_entry (
    id                    uuid        NOT NULL,
    posting_no            integer     NOT NULL DEFAULT 1,
    posted_at             timestamptz NOT NULL DEFAULT now(),
    request_id            uuid        NOT NULL,
    attempt               integer     NOT NULL,
    started_at            timestamptz NOT NULL,
    finished_at           timestamptz NOT NULL,
    key_id                uuid,       -- no reference to farebox.key: an event is taken whatever became of its key
    key_name              text,
    team                  text,
    project               text,
    end_user              text,
    session               text,
    tags                  jsonb       NOT NULL DEFAULT '{}',
    provider              text        NOT NULL,
    dialect               text        NOT NULL,
    endpoint              text        NOT NULL,
    operation             text        NOT NULL,
    requested_model       text,
    model                 text,
    service_tier          text,
    stream                boolean     NOT NULL DEFAULT false,
    status                smallint,
    outcome               text        NOT NULL,
    upstream_request_id   text,
    input_tokens          bigint,
    cache_read_tokens     bigint,
    cache_write_tokens    bigint,
    cache_write_1h_tokens bigint,
    output_tokens         bigint,
    reasoning_tokens      bigint,
    audio_input_tokens    bigint,
    audio_output_tokens   bigint,
    image_tokens          bigint,
    units                 jsonb       NOT NULL DEFAULT '{}',
    usage_source          text        NOT NULL DEFAULT 'none',
    usage_raw             jsonb,
    cost_usd              numeric,
    cost_source           text,
    provider_cost_usd     numeric,
    price_id              text,
    budget_ids            text[],
    duration_ms           double precision,
    ttft_ms               double precision,
    upstream_ms           double precision,
    overhead_ms           double precision,
    tool_calls_count      integer     NOT NULL DEFAULT 0,
    tool_calls            jsonb       NOT NULL DEFAULT '[]',
    error_type            text,
    error_code            text,
    unparsed_events       integer     NOT NULL DEFAULT 0,
    PRIMARY KEY (id, posting_no),
    CONSTRAINT numbered_from_one CHECK (posting_no >= 1),
    CONSTRAINT outcome_known CHECK (outcome IN
        ('complete', 'upstream_error', 'upstream_cut', 'client_gone', 'budget_cut', 'farebox_cut', 'reported')),
    CONSTRAINT usage_source_known CHECK (usage_source IN ('provider', 'partial', 'estimate', 'hold', 'none')),
    CONSTRAINT counted_from_zero CHECK (
        attempt >= 0 AND tool_calls_count >= 0 AND unparsed_events >= 0
        AND input_tokens >= 0 AND cache_read_tokens >= 0 AND cache_write_tokens >= 0 AND cache_write_1h_tokens >= 0
        AND output_tokens >= 0 AND reasoning_tokens >= 0
        AND audio_input_tokens >= 0 AND audio_output_tokens >= 0 AND image_tokens >= 0),
    CONSTRAINT money_not_negative CHECK (
        cost_usd >= 0 AND cost_usd < 'Infinity' AND provider_cost_usd >= 0 AND provider_cost_usd < 'Infinity'),
    CONSTRAINT shapes CHECK (
        jsonb_typeof(tags) = 'object' AND jsonb_typeof(units) = 'object' AND jsonb_typeof(tool_calls) = 'array')
);

-- Which postings have a newer one. Beside the postings and not in them, because those never change, and
-- because of the planner: corrections come in waves, and it sees the size of this table at once, where
-- its statistics of the large one would still say "none" and lead it to compare each row with each.
CREATE TABLE farebox.usage_superseded (
    id         uuid    NOT NULL,
    posting_no integer NOT NULL,
    PRIMARY KEY (id, posting_no),
    FOREIGN KEY (id, posting_no) REFERENCES farebox.usage_entry
);

-- The id ends each index so that pages of equal times have an order.
CREATE INDEX usage_entry_started ON farebox.usage_entry (started_at, id);
CREATE INDEX usage_entry_key ON farebox.usage_entry (key_id, started_at, id);
CREATE INDEX usage_entry_request ON farebox.usage_entry (request_id);

CREATE FUNCTION farebox.supersede() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO farebox.usage_superseded VALUES (NEW.id, NEW.posting_no - 1);
    RETURN NULL;
END $$;

CREATE TRIGGER supersede AFTER INSERT ON farebox.usage_entry
    FOR EACH ROW WHEN (NEW.posting_no > 1) EXECUTE FUNCTION farebox.supersede();

CREATE FUNCTION farebox.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% on %.%: rows there are only ever added', TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation', HINT = 'A correction is another posting of the same id.';
END $$;

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON farebox.usage_entry
    FOR EACH STATEMENT EXECUTE FUNCTION farebox.refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON farebox.usage_superseded
    FOR EACH STATEMENT EXECUTE FUNCTION farebox.refuse_change();

-- Stable: for SQL and dashboards. One row per attempt, the newest posting of each.
CREATE VIEW farebox.usage AS
SELECT
    id,
    request_id, attempt, started_at, finished_at, key_id, key_name, team, project, end_user, session, tags,
    provider, dialect, endpoint, operation, requested_model, model, service_tier, stream, status, outcome,
    upstream_request_id, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens,
    audio_input_tokens, audio_output_tokens, image_tokens,
    CASE WHEN input_tokens IS NOT NULL OR output_tokens IS NOT NULL
         THEN coalesce(input_tokens, 0) + coalesce(output_tokens, 0) END AS total_tokens,
    units, usage_source, usage_raw, cost_usd, cost_source, provider_cost_usd, price_id, budget_ids,
    duration_ms, ttft_ms, upstream_ms, overhead_ms, tool_calls_count, tool_calls, error_type, error_code
FROM farebox.usage_entry AS posting
WHERE NOT EXISTS (
    SELECT FROM farebox.usage_superseded AS old WHERE old.id = posting.id AND old.posting_no = posting.posting_no);

COMMENT ON VIEW farebox.usage IS 'One row per attempt forwarded to a provider, corrections folded in.';

-- Stable: each posting. More columns may be added at the end.
CREATE VIEW farebox.usage_entries AS
SELECT
    id, posting_no, CASE posting_no WHEN 1 THEN 'original' ELSE 'correction' END AS posting_kind, posted_at,
    request_id, attempt, started_at, finished_at, key_id, key_name, team, project, end_user, session, tags,
    provider, dialect, endpoint, operation, requested_model, model, service_tier, stream, status, outcome,
    upstream_request_id, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens,
    audio_input_tokens, audio_output_tokens, image_tokens,
    CASE WHEN input_tokens IS NOT NULL OR output_tokens IS NOT NULL
         THEN coalesce(input_tokens, 0) + coalesce(output_tokens, 0) END AS total_tokens,
    units, usage_source, usage_raw, cost_usd, cost_source, provider_cost_usd, price_id, budget_ids,
    duration_ms, ttft_ms, upstream_ms, overhead_ms, tool_calls_count, tool_calls, error_type, error_code,
    cache_write_1h_tokens, unparsed_events
FROM farebox.usage_entry;

COMMENT ON VIEW farebox.usage_entries IS 'Each posting about an attempt: the original and its corrections.';
