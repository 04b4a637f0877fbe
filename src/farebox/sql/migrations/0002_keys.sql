-- Runs before the deploy. Virtual keys: who may call, and in whose name.
--
-- The secret is stored as a hash only. Keys are revoked, never deleted: usage rows name them. Every
-- change moves `changed_at`, also one made by hand, because that is how the caches of running
-- processes learn of it.

CREATE TABLE farebox.key (
    id                   uuid        PRIMARY KEY DEFAULT gen_random_uuid(),
    name                 text        NOT NULL,
    secret_hash          bytea       NOT NULL,
    team                 text,
    project              text,
    "user"               text,
    models               text[]      NOT NULL DEFAULT '{}', -- globs; empty: all
    providers            text[]      NOT NULL DEFAULT '{}', -- names; empty: all
    tags                 jsonb       NOT NULL DEFAULT '{}',
    allow_shared_objects boolean     NOT NULL DEFAULT false,
    expires_at           timestamptz,
    created_at           timestamptz NOT NULL DEFAULT now(),
    changed_at           timestamptz NOT NULL DEFAULT now(),
    revoked_at           timestamptz,
    CONSTRAINT named CHECK (length(name) BETWEEN 1 AND 200),
    CONSTRAINT hashed CHECK (length(secret_hash) = 32),
    CONSTRAINT tags_are_an_object CHECK (jsonb_typeof(tags) = 'object')
);

-- A name is free again once its key is revoked; a secret never is.
CREATE UNIQUE INDEX key_name ON farebox.key (name) WHERE revoked_at IS NULL;
CREATE UNIQUE INDEX key_secret ON farebox.key (secret_hash);
CREATE INDEX key_changed ON farebox.key (changed_at);

CREATE FUNCTION farebox.stamp_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.revoked_at IS NOT NULL AND NEW.revoked_at IS NULL THEN
        RAISE EXCEPTION 'a revoked key stays revoked' USING ERRCODE = 'restrict_violation';
    END IF;
    NEW.changed_at := clock_timestamp();
    RETURN NEW;
END $$;

CREATE TRIGGER stamp_change BEFORE UPDATE ON farebox.key
    FOR EACH ROW EXECUTE FUNCTION farebox.stamp_change();

CREATE FUNCTION farebox.refuse_delete() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% on %.%: keys are revoked, never deleted', TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation', HINT = 'Set revoked_at, or use: farebox keys revoke';
END $$;

CREATE TRIGGER never_deleted BEFORE DELETE OR TRUNCATE ON farebox.key
    FOR EACH STATEMENT EXECUTE FUNCTION farebox.refuse_delete();
