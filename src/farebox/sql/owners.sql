-- Owners of reservations at their end. What they do while they live is in budgets.sql.

-- name: end_owner
-- One that still holds something stays, to be swept.
DELETE FROM farebox.owner
WHERE id = $1 AND NOT EXISTS (SELECT FROM farebox.reservation WHERE owner = $1 AND state = 'open')
  AND NOT EXISTS (SELECT FROM farebox.budget_float WHERE owner = $1)
RETURNING id

-- name: held_by
-- By the labels of their owners, which are minted: a number means another owner in another database.
-- $2: how many at most.
SELECT id FROM farebox.reservation
WHERE owner IN (SELECT id FROM farebox.owner WHERE label = ANY ($1)) AND state = 'open' ORDER BY id LIMIT $2

-- name: fence_owners
-- The processes of these owners are gone: what they still had under way makes nothing any more. Waits for a float that
-- is just being made.
UPDATE farebox.owner SET dead = true WHERE label = ANY ($1) AND NOT dead

-- name: floats_held_by
-- The same for their floats.
SELECT id FROM farebox.budget_float
WHERE owner IN (SELECT id FROM farebox.owner WHERE label = ANY ($1)) ORDER BY id LIMIT $2

-- name: floats_of
-- All floats of one owner, by its number.
SELECT id FROM farebox.budget_float WHERE owner = $1 ORDER BY id
