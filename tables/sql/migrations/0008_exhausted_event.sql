-- auto-migrate only
-- An event is known by the time and sequence of its version: letters of releases before have no third part.
CREATE INDEX IF NOT EXISTS exhausted_events_event
    ON {schema}.exhausted_events (substring(dlq_payload ->> 'event_version' FROM '^[0-9]+-[0-9]+'));
