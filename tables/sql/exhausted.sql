-- name: lock_event
-- Two replicas that park the same event ($2: its subject, and its version or time) do so one after the other.
SELECT pg_advisory_xact_lock(hashtextextended('daisi exhausted ' || $1 || ' ' || $2, 0))

-- name: lock_row
-- Wait for the command that replays this row: it resolves the row when its replay is confirmed, and not before.
SELECT FROM {schema}.exhausted_events WHERE id = $1 FOR UPDATE

-- name: insert_or_reopen
-- Store a parked event unless it has its row: the one it was replayed from ($8), or one with this very envelope, or
-- one with an envelope of another time: after a long outage the dead-letter stream no longer knows the first one.
-- A row that was resolved is opened again. `IS NOT DISTINCT FROM` keeps the planner from the index on source_subject,
-- which finds every event of the type, payload and all. Returns the row's id if anything was done.
WITH known AS (
    SELECT e.id, e.resolved IS TRUE AS resolved, e.id = $8::bigint AS replayed
    FROM {schema}.exhausted_events AS e
    WHERE e.id = $8::bigint AND e.source_subject = $2::text
    UNION ALL
    SELECT e.id, e.resolved IS TRUE, false
    FROM {schema}.exhausted_events AS e
    WHERE e.source_subject IS NOT DISTINCT FROM $2::text
      AND (e.event_timestamp = $5::timestamptz OR (e.event_timestamp IS NULL AND $5::timestamptz IS NULL))
      AND e.dlq_payload = $6::text::jsonb
    UNION ALL
    SELECT e.id, e.resolved IS TRUE, false
    FROM {schema}.exhausted_events AS e
    WHERE (e.dlq_payload ->> 'event_version' = $6::text::jsonb ->> 'event_version'
        -- A worker that does not know the third part of a version, or no such part at all, parked it before.
        OR substring(e.dlq_payload ->> 'event_version' FROM '^[0-9]+-[0-9]+')
            = substring($6::text::jsonb ->> 'event_version' FROM '^[0-9]+-[0-9]+'))
      AND e.source_subject IS NOT DISTINCT FROM $2::text
      AND e.original_payload IS NOT DISTINCT FROM $7::text::jsonb
), chosen AS (
    SELECT known.id, known.resolved FROM known ORDER BY known.replayed DESC, known.resolved, known.id DESC LIMIT 1
), reopened AS (
    UPDATE {schema}.exhausted_events AS e
    SET resolved = false,
        resolved_at = NULL,
        last_error = $3::text,
        retry_count = coalesce(e.retry_count, 0) + greatest($4::bigint, 1),
        notes = concat_ws(E'\n', nullif(e.notes, ''),
            'given up again at ' || to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'))
    FROM chosen
    WHERE e.id = chosen.id AND chosen.resolved
    RETURNING e.id
), noted AS (
    INSERT INTO {schema}.exhausted_reopened (exhausted_id, reopened_at)
    SELECT reopened.id, now() FROM reopened
    ON CONFLICT (exhausted_id) DO UPDATE SET reopened_at = excluded.reopened_at
), inserted AS (
    INSERT INTO {schema}.exhausted_events (
        created_at, company_id, source_subject, last_error, retry_count, event_timestamp, dlq_payload,
        original_payload, resolved, notes)
    SELECT now(), $1::text, $2::text, $3::text, $4::bigint, $5::timestamptz, $6::text::jsonb, $7::text::jsonb,
        false, ''
    WHERE NOT EXISTS (SELECT FROM chosen)
    RETURNING id
)
SELECT id FROM inserted UNION ALL SELECT id FROM reopened

-- name: count_unresolved
-- What waits for an operator.
SELECT count(*) FROM {schema}.exhausted_events WHERE resolved IS NOT TRUE

-- name: newest
-- When the last row came or was opened again; the key's order spares an index on created_at.
SELECT greatest(
    (SELECT created_at FROM {schema}.exhausted_events ORDER BY id DESC LIMIT 1),
    (SELECT max(reopened_at) FROM {schema}.exhausted_reopened))

-- name: find
-- Rows for operators, the newest first: part of the error ($1, any case), age in seconds ($2 at least, $3 at most),
-- resolved or not ($4); NULL is any. At most $5, NULL is all.
SELECT found.id, found.source_subject, found.last_error, found.retry_count, found.given_up_at, found.resolved
FROM (
    SELECT e.id, e.source_subject, coalesce(e.last_error, '') AS last_error,
        coalesce(e.retry_count, 0) AS retry_count, greatest(e.created_at, r.reopened_at) AS given_up_at,
        e.resolved IS TRUE AS resolved
    FROM {schema}.exhausted_events AS e
    LEFT JOIN {schema}.exhausted_reopened AS r ON r.exhausted_id = e.id
    WHERE ($1::text IS NULL OR position(lower($1::text) IN lower(e.last_error)) > 0)
      AND ($4::boolean IS NULL OR (e.resolved IS TRUE) = $4::boolean)
) AS found
WHERE ($2::float8 IS NULL OR found.given_up_at <= now() - make_interval(secs => $2::float8))
  AND ($3::float8 IS NULL OR found.given_up_at >= now() - make_interval(secs => $3::float8))
ORDER BY found.given_up_at DESC NULLS LAST, found.id DESC
LIMIT $5

-- name: read
-- All of one row; the payloads as text that a person can read.
SELECT e.id, e.company_id, e.source_subject, e.last_error, e.retry_count, e.created_at, r.reopened_at,
    e.event_timestamp, e.dlq_payload ->> 'event_version' AS event_version, e.resolved IS TRUE AS resolved,
    e.resolved_at, e.notes, jsonb_pretty(e.dlq_payload) AS dlq_payload,
    jsonb_pretty(e.original_payload) AS original_payload
FROM {schema}.exhausted_events AS e
LEFT JOIN {schema}.exhausted_reopened AS r ON r.exhausted_id = e.id
WHERE e.id = $1

-- name: lock
-- One row, kept from others until the end of the transaction.
SELECT id, coalesce(retry_count, 0) AS retry_count, resolved IS TRUE AS resolved, dlq_payload::text AS dlq_payload
FROM {schema}.exhausted_events WHERE id = $1 FOR UPDATE

-- name: resolve
-- Resolve a row, and note who did what ($2) and why ($3) beside the time.
UPDATE {schema}.exhausted_events
SET resolved = true,
    resolved_at = clock_timestamp(),
    notes = concat_ws(E'\n', nullif(notes, ''),
        $2::text || ' at ' || to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') || $3::text)
WHERE id = $1
