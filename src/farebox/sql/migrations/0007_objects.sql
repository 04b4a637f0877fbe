-- Runs before the deploy. Stored objects (files, responses, batches ...) and the keys they were made with.
--
-- All keys share a provider's credential, so only this table says whose an object is. The first owner
-- stays: an id that turns up again, whoever brings it, changes nothing until the object was deleted.
-- There is no reference to farebox.key: keys are never deleted, and locking one for each object made
-- with it would cost more than it proves.

CREATE TABLE farebox.stored_object (
    id         text        NOT NULL,                  -- the provider's, as it goes into paths and bodies
    provider   text        NOT NULL,                  -- its name in the config: where the object is
    kind       text        NOT NULL,                  -- file, response, batch, item ...
    key_id     uuid        NOT NULL,                  -- whose; a rotated key keeps its id
    created_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,                           -- the provider confirmed that it is gone
    PRIMARY KEY (id, provider),                       -- by id first: a routed path names no provider
    CONSTRAINT id_is_short CHECK (length(id) BETWEEN 1 AND 512),
    CONSTRAINT kind_is_a_word CHECK (length(kind) BETWEEN 1 AND 64)
);
