-- Runs before the deploy. The calls of a session: found by index, or each look at a session would read the
-- whole ledger. Rows without a session, often most of them, are not in it and pay nothing for it.
--
-- Nothing else is indexed for reports on purpose: they are read by time, which has an index, and each
-- further one would be paid for by every row written.

CREATE INDEX usage_entry_session ON farebox.usage_entry (session, started_at, id) WHERE session IS NOT NULL;
