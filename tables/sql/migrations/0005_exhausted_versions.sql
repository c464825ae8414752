-- auto-migrate only
-- An event that is given up twice, long apart, is known by its version: its envelopes differ in their time.
SELECT {schema}.index_now_or_later(
    'exhausted_events', 'exhausted_events_version', '', false, $keys$(dlq_payload ->> 'event_version')$keys$);
