-- Prices and what they correct. Like all statements here, each stands alone.

-- name: newest_price_list
-- The list $1 as it is in force, without its prices. No row: there never was one.
SELECT revision, name, source, snapshot, digest, added_at, cardinality(prices) AS prices
FROM farebox.price_list WHERE name = $1 ORDER BY revision DESC LIMIT 1

-- name: price_list_digests
-- The lists in force whose names begin with $1.
SELECT DISTINCT ON (name) name, digest FROM farebox.price_list WHERE starts_with(name, $1) ORDER BY name, revision DESC

-- name: lock_price_lists
-- Held to the end of the transaction: who compares with the newest list sees no other come between.
SELECT pg_advisory_xact_lock(x'6661726570726963'::bigint)

-- name: put_price_list
-- $1 name, $2 source, $3 snapshot, $4 digest, $5 a JSON array of prices, members named like columns. What is shipped
-- is added where what is there is older, or was shipped then and made otherwise; the config's where it differs;
-- what was synced always, for its date. Prices that are known already stay as they are. Answers the list's
-- revision, or no row where it was not added.
WITH incoming AS MATERIALIZED (
    SELECT price.*, row_number() OVER () AS place
    FROM json_to_recordset($5::json) AS price(id text, book text, model text, entry jsonb)
),
newest AS MATERIALIZED (
    SELECT source, snapshot, digest FROM farebox.price_list WHERE name = $1 ORDER BY revision DESC LIMIT 1
),
list AS (
    INSERT INTO farebox.price_list (name, source, snapshot, digest, prices)
    SELECT $1, $2, $3, $4, coalesce((SELECT array_agg(id ORDER BY place) FROM incoming), '{}')
    WHERE $2::text = 'sync'
       OR NOT EXISTS (SELECT FROM newest)
       OR ($2 = 'shipped' AND EXISTS (
           SELECT FROM newest
           WHERE snapshot < $3::timestamptz OR (source = 'shipped' AND snapshot = $3 AND digest <> $4::text)))
       OR ($2 = 'config' AND EXISTS (SELECT FROM newest WHERE digest <> $4))
    RETURNING revision
),
added AS (
    INSERT INTO farebox.price (id, book, model, entry, revision)
    SELECT id, book, model, entry, list.revision FROM list CROSS JOIN incoming
    ON CONFLICT (id) DO NOTHING
    RETURNING 1
)
SELECT revision, (SELECT count(*) FROM added) AS added FROM list

-- name: load_price_list
-- The entries of revision $1, in the order in which they are searched.
SELECT price.id, price.book, price.model, price.entry
FROM farebox.price_list AS list
CROSS JOIN LATERAL unnest(list.prices) WITH ORDINALITY AS listed(id, place)
JOIN farebox.price AS price ON price.id = listed.id
WHERE list.revision = $1
ORDER BY listed.place

-- name: priced_postings
-- What a price can depend on, and the cost as it stands.
SELECT id, posting_no, request_id, attempt, started_at, finished_at, provider, dialect, endpoint, operation,
       requested_model, model, service_tier, stream, status, outcome, input_tokens, cache_read_tokens,
       cache_write_tokens, cache_write_1h_tokens, output_tokens, reasoning_tokens, audio_input_tokens,
       audio_output_tokens, image_tokens, units, usage_source, usage_raw, cost_usd, cost_source, provider_cost_usd,
       price_id
FROM farebox.usage_entry AS posting

-- name: not_superseded
NOT EXISTS (
    SELECT FROM farebox.usage_superseded AS newer WHERE newer.id = posting.id AND newer.posting_no = posting.posting_no)

-- name: usage_page_end
-- Where the page of $3 postings ends that comes after $1, $2 (a posting's started_at and id), before $4. No row:
-- it is the last one. Asked by itself: from the index alone, whatever the planner's statistics say of the table.
SELECT started_at, id FROM farebox.usage_entry
WHERE (started_at, id) > ($1::timestamptz, $2::uuid) AND started_at < $4::timestamptz
ORDER BY started_at, id OFFSET $3 - 1 LIMIT 1

-- name: usage_to_price
-- The attempts of a page with something to price, each as its newest posting: after $1, $2, and not after $3, $4.
-- $5 providers, $6 a regular expression for the model's name (NULL: any).
{{priced_postings}}
WHERE (started_at, id) > ($1::timestamptz, $2::uuid) AND (started_at, id) <= ($3::timestamptz, $4::uuid)
  AND started_at >= $1 AND started_at <= $3
  AND usage_source <> 'none'
  AND provider = ANY ($5::text[])
  AND ($6::text IS NULL OR coalesce(model, requested_model) ~ $6)
  AND {{not_superseded}}

-- name: usage_to_price_again
-- The newest postings of the attempts $1.
{{priced_postings}}
WHERE id = ANY ($1::uuid[])
  AND {{not_superseded}}

-- name: usage_span
-- When the first attempt from $1 on began, and the last before $2; NULL: there is none.
SELECT min(started_at) AS first, max(started_at) AS last
FROM farebox.usage_entry WHERE started_at >= $1 AND started_at < $2

-- name: post_costs
-- $1: a JSON array of what attempts cost: id, posting_no (the posting it was worked out from), cost_usd,
-- cost_source, price_id. Each becomes a correction that differs from that posting in nothing else, unless a newer
-- posting is there by now, or the call runs again: then what it holds was worked out from that posting. Answers the
-- ids that were corrected.
WITH wanted AS MATERIALIZED (
    SELECT * FROM json_to_recordset($1::json) AS wanted(
        id uuid, posting_no integer, cost_usd numeric, cost_source text, price_id text)
    ORDER BY id -- one order for all who add postings, so that they can't wait for each other in a circle
),
-- Before the first posting: windows come before postings in the order of locks.
free AS MATERIALIZED (
    SELECT farebox.lock_settled(ARRAY(SELECT id FROM wanted)) AS id
)
INSERT INTO farebox.usage_entry ({{posting_columns}})
SELECT
    was.id, was.posting_no + 1, request_id, attempt, started_at, finished_at,
    key_id, key_name, team, project, end_user, session, tags,
    provider, dialect, endpoint, operation, requested_model, model, service_tier, stream, status, outcome,
    upstream_request_id, input_tokens, cache_read_tokens, cache_write_tokens, cache_write_1h_tokens,
    output_tokens, reasoning_tokens, audio_input_tokens, audio_output_tokens, image_tokens, units, usage_source,
    usage_raw, wanted.cost_usd, wanted.cost_source, provider_cost_usd, wanted.price_id, budget_ids, duration_ms,
    ttft_ms, upstream_ms, overhead_ms, tool_calls_count, tool_calls, error_type, error_code, unparsed_events, window_ids
FROM wanted JOIN free USING (id) CROSS JOIN LATERAL (
    -- The limit has the planner go by the key, whatever its statistics say of a table that grows.
    SELECT * FROM farebox.usage_entry AS entry
    WHERE entry.id = wanted.id AND entry.posting_no = wanted.posting_no
      AND NOT EXISTS (
          SELECT FROM farebox.usage_superseded AS gone
          WHERE gone.id = entry.id AND gone.posting_no = entry.posting_no)
    LIMIT 1
) AS was
ON CONFLICT (id, posting_no) DO NOTHING
RETURNING id

-- name: cost_corrections
-- What all corrections so far added to the sum of costs, and what they took from it.
SELECT up_usd, down_usd FROM farebox.cost_correction
