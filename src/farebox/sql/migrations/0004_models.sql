-- Runs before the deploy. What each provider said it has: the last list it gave, for GET /v1/models.
--
-- A cache, unlike the ledger: rows are overwritten, and losing one costs a request to the provider. A
-- provider that moved to another address is another row, so that no list outlives what it was taken from.

CREATE TABLE farebox.model_list (
    provider     text        NOT NULL,            -- its name in the config
    base_url     text        NOT NULL,
    attempted_at timestamptz NOT NULL,            -- when it was last asked, and by that who asks: see claim_model_list
    fetched_at   timestamptz,                     -- when it last answered; NULL: never
    error        text,                            -- why it last did not: one word, never its own
    models       jsonb,                           -- the last good list, kept when a later attempt fails
    version      bigint      NOT NULL DEFAULT 1,  -- moves with every change that readers should see
    PRIMARY KEY (provider, base_url),
    CONSTRAINT error_is_a_word CHECK (length(error) BETWEEN 1 AND 64),
    CONSTRAINT listed_when_fetched CHECK ((fetched_at IS NULL) = (models IS NULL)),
    CONSTRAINT models_are_a_list CHECK (jsonb_typeof(models) = 'array')
);
