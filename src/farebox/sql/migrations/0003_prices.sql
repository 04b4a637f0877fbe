-- Runs before the deploy. What tokens cost: every price that was ever in force, and which are in force now.
--
-- A price is one immutable entry; its id is made from its content, so that every process names the same
-- price alike and a usage row's price_id always finds the rates that row was costed with. A list is what
-- was in force from a moment on: the published prices whole, or the prices the config sets for one
-- provider. The newest list of a name holds. A price that is gone is one the newest list leaves out; one
-- that comes back is the old entry in a new list. Both tables only ever grow.

CREATE TABLE farebox.price_list (
    revision bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name     text        NOT NULL, -- published, or config:PROVIDER
    source   text        NOT NULL,
    snapshot timestamptz NOT NULL, -- as of when its facts were true; the younger of two snapshots is the better one
    prices   text[]      NOT NULL, -- ids, in the order in which they are searched
    digest   text        NOT NULL, -- of the ids, to tell lists apart without reading them
    added_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT source_known CHECK (source IN ('shipped', 'sync', 'config')),
    CONSTRAINT named CHECK (name = 'published' OR (name LIKE 'config:%' AND source = 'config'))
);

CREATE INDEX price_list_newest ON farebox.price_list (name, revision);

CREATE TABLE farebox.price (
    id       text        PRIMARY KEY,
    book     text        NOT NULL, -- whose prices: openai, anthropic ... config:PROVIDER
    model    text        NOT NULL,
    entry    jsonb       NOT NULL, -- the whole of it: rates, cliffs, conditions, which names it matches
    revision bigint      NOT NULL REFERENCES farebox.price_list, -- the list that brought it
    added_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT id_fits_a_row CHECK (length(id) BETWEEN 1 AND 200),
    CONSTRAINT entry_has_periods CHECK (jsonb_typeof(entry -> 'periods') = 'array')
);

CREATE INDEX price_model ON farebox.price (book, model);

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON farebox.price_list
    FOR EACH STATEMENT EXECUTE FUNCTION farebox.refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON farebox.price
    FOR EACH STATEMENT EXECUTE FUNCTION farebox.refuse_change();

-- Stable. Every price a row may name: JOIN farebox.prices_all USING (price_id). The rates are those of the
-- standard tier below every cliff, today; a price with hours or weekdays shows its plain one.
CREATE VIEW farebox.prices_all AS
SELECT
    price.id AS price_id, book, model, price.id IN (
        SELECT unnest(list.prices) FROM farebox.price_list AS list
        WHERE NOT EXISTS (
            SELECT FROM farebox.price_list AS newer WHERE newer.name = list.name AND newer.revision > list.revision)
    ) AS current,
    (period.usd ->> 'input')::numeric AS input_usd_per_mtok,
    (period.usd ->> 'output')::numeric AS output_usd_per_mtok,
    (period.usd ->> 'cache_read')::numeric AS cache_read_usd_per_mtok,
    (period.usd ->> 'cache_write')::numeric AS cache_write_usd_per_mtok,
    coalesce(period.since, (entry ->> 'since')::date) AS since,
    (entry ->> 'context_window')::bigint AS context_window,
    (entry ->> 'max_output')::bigint AS max_output_tokens,
    brought.source, brought.snapshot, price.revision, price.added_at, entry
FROM farebox.price AS price
JOIN farebox.price_list AS brought USING (revision)
LEFT JOIN LATERAL (
    SELECT given -> 'rates' -> 'usd' AS usd, (given ->> 'since')::date AS since
    FROM jsonb_array_elements(entry -> 'periods') WITH ORDINALITY AS periods(given, place)
    WHERE NOT given ?| '{hours,weekdays}' AND (place = 1 OR coalesce((given ->> 'since')::date <= current_date, true))
    ORDER BY place DESC LIMIT 1
) AS period ON true;

COMMENT ON VIEW farebox.prices_all IS
    'Every price that was ever in force. Rates are the standard tier''s today, per million tokens; entry has all.';

-- Stable. The prices in force, which is what the next call is costed with (and, by date, the one after a change).
CREATE VIEW farebox.prices AS SELECT * FROM farebox.prices_all WHERE current;

COMMENT ON VIEW farebox.prices IS 'The prices in force: the published ones and those the config sets.';

-- What corrections did to the sum of costs, kept up beside the postings because a counter is read every few
-- seconds and a large reprice leaves millions of corrections. An unknown cost counts as nothing, so at every
-- moment the sum of the originals, plus `up`, less `down`, is the sum over farebox.usage.
CREATE TABLE farebox.cost_correction (
    one      boolean PRIMARY KEY DEFAULT true CHECK (one),
    up_usd   numeric NOT NULL CHECK (up_usd >= 0),
    down_usd numeric NOT NULL CHECK (down_usd >= 0)
);

-- For every statement, and with the rows it added in hand: a row's own trigger would change the one row above as
-- often as there are corrections. The limit of one has the planner look each predecessor up by its key, however
-- few rows it believes there are.
CREATE FUNCTION farebox.count_corrections() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM added WHERE posting_no > 1) THEN
        UPDATE farebox.cost_correction AS total
        SET up_usd = total.up_usd + step.up_usd, down_usd = total.down_usd + step.down_usd
        FROM (
            SELECT coalesce(sum(change) FILTER (WHERE change > 0), 0) AS up_usd,
                   coalesce(-sum(change) FILTER (WHERE change < 0), 0) AS down_usd
            FROM (
                SELECT coalesce(added.cost_usd, 0) - coalesce(predecessor.cost_usd, 0) AS change
                FROM added CROSS JOIN LATERAL (
                    SELECT entry.cost_usd FROM farebox.usage_entry AS entry
                    WHERE entry.id = added.id AND entry.posting_no = added.posting_no - 1 LIMIT 1
                ) AS predecessor
                WHERE added.posting_no > 1
            ) AS changes
        ) AS step
        WHERE step.up_usd > 0 OR step.down_usd > 0;
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER count_corrections AFTER INSERT ON farebox.usage_entry
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION farebox.count_corrections();

INSERT INTO farebox.cost_correction (up_usd, down_usd)
SELECT coalesce(sum(change) FILTER (WHERE change > 0), 0), coalesce(-sum(change) FILTER (WHERE change < 0), 0)
FROM (
    SELECT coalesce(new.cost_usd, 0) - coalesce(old.cost_usd, 0) AS change
    FROM farebox.usage_superseded AS gone
    JOIN farebox.usage_entry AS old ON old.id = gone.id AND old.posting_no = gone.posting_no
    JOIN farebox.usage_entry AS new ON new.id = gone.id AND new.posting_no = gone.posting_no + 1
) AS changes;
