-- auto-migrate only
-- An event that is given up twice, long apart, is known by its version: its envelopes differ in their time.
CREATE INDEX IF NOT EXISTS exhausted_events_version ON {schema}.exhausted_events ((dlq_payload ->> 'event_version'));
