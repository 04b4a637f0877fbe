-- Whose a stored object is. What the rows mean stands in the migration that made the table.

-- name: keep_objects
-- Ids $1 at providers $2, kinds $3, owners $4: parallel arrays. Rows come back for those that are somebody
-- else's already, with that owner. Rows are locked in the order of the primary key.
WITH wanted AS (
    SELECT DISTINCT ON (id, provider) id, provider, kind, key_id
    FROM unnest($1::text[], $2::text[], $3::text[], $4::uuid[]) AS w (id, provider, kind, key_id)
    ORDER BY id, provider
), put AS (
    INSERT INTO farebox.stored_object AS held (id, provider, kind, key_id)
    SELECT id, provider, kind, key_id FROM wanted ORDER BY id, provider
    ON CONFLICT (id, provider) DO UPDATE SET
        kind = excluded.kind, key_id = excluded.key_id, created_at = now(), deleted_at = NULL
    WHERE held.deleted_at IS NOT NULL
)
SELECT o.id, o.provider, o.kind, o.key_id
FROM farebox.stored_object o JOIN wanted w USING (id, provider)
WHERE o.deleted_at IS NULL AND o.key_id <> w.key_id

-- name: find_objects
-- Objects with the ids $1, at one of the providers $2 or, where that is NULL, anywhere.
SELECT id, provider, kind, key_id
FROM farebox.stored_object
WHERE id = ANY ($1::text[]) AND ($2::text[] IS NULL OR provider = ANY ($2)) AND deleted_at IS NULL

-- name: forget_objects
-- Ids $1 at providers $2, pair by pair: the providers deleted them.
UPDATE farebox.stored_object o SET deleted_at = now()
FROM (
    SELECT id, provider FROM farebox.stored_object
    WHERE (id, provider) IN (SELECT * FROM unnest($1::text[], $2::text[])) AND deleted_at IS NULL
    ORDER BY id, provider FOR UPDATE
) gone
WHERE (o.id, o.provider) = (gone.id, gone.provider)
