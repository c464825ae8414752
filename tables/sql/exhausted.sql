-- name: lock_event
-- Two replicas that give up the same event take turns; events are told apart only by their subject ($2) here.
SELECT pg_advisory_xact_lock(hashtextextended('daisi exhausted ' || $1 || ' ' || $2, 0))

-- name: insert
-- Store a given-up event unless it has its row, in this very envelope, or in one that was made at another time:
-- after a long outage the dead-letter stream no longer knows the first one. Returns the row's id.
INSERT INTO {schema}.exhausted_events (
    created_at, company_id, source_subject, last_error, retry_count, event_timestamp, dlq_payload,
    original_payload, resolved, notes)
SELECT now(), $1::text, $2::text, $3::text, $4::bigint, $5::timestamptz, $6::text::jsonb, $7::text::jsonb, false, ''
WHERE NOT EXISTS (
    SELECT FROM {schema}.exhausted_events AS e
    WHERE e.source_subject = $2::text
      AND (e.event_timestamp = $5::timestamptz OR (e.event_timestamp IS NULL AND $5::timestamptz IS NULL))
      AND e.dlq_payload = $6::text::jsonb)
  AND NOT EXISTS (
    SELECT FROM {schema}.exhausted_events AS e
    WHERE e.dlq_payload ->> 'event_version' = $6::text::jsonb ->> 'event_version'
      AND e.source_subject = $2::text
      AND e.original_payload IS NOT DISTINCT FROM $7::text::jsonb)
RETURNING id

-- name: count_unresolved
-- What waits for an operator.
SELECT count(*) FROM {schema}.exhausted_events WHERE resolved IS NOT TRUE

-- name: newest
-- When the last row came; the key's order spares an index on created_at.
SELECT created_at FROM {schema}.exhausted_events ORDER BY id DESC LIMIT 1
