-- auto-migrate only
-- An event is known by the time and sequence of its version: letters of releases before have no third part.
SELECT {schema}.index_now_or_later(
    'exhausted_events', 'exhausted_events_event', '', false,
    $keys$substring(dlq_payload ->> 'event_version' FROM '^[0-9]+-[0-9]+')$keys$);
