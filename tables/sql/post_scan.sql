-- name: schedule
-- The last history batch of an account: look at its contacts later. A later batch puts it off, a repeat does not
-- bring it forward.
INSERT INTO {schema}.post_scan_jobs AS job (agent_id, due_at, last_metadata, created_at)
VALUES ($1, $2, $3::jsonb, now())
ON CONFLICT (agent_id) DO UPDATE
SET due_at = greatest(job.due_at, excluded.due_at), last_metadata = excluded.last_metadata

-- name: claim
-- Take one due job until $2. Whoever dies with it in hand leaves it due again then.
UPDATE {schema}.post_scan_jobs AS job
SET due_at = $2
FROM (
    SELECT agent_id FROM {schema}.post_scan_jobs
    WHERE due_at <= $1
    ORDER BY due_at, agent_id
    LIMIT 1
    FOR UPDATE SKIP LOCKED
) AS due
WHERE job.agent_id = due.agent_id
RETURNING job.agent_id, job.last_metadata

-- name: extend
-- Keep a claimed job until $3; no row if it is no longer ours.
UPDATE {schema}.post_scan_jobs SET due_at = $3 WHERE agent_id = $1 AND due_at = $2 RETURNING agent_id

-- name: finish
-- A job that was asked for again meanwhile stays.
DELETE FROM {schema}.post_scan_jobs
WHERE agent_id = $1 AND due_at = $2 AND last_metadata IS NOT DISTINCT FROM $3::jsonb

-- name: page
-- The next contacts of an account without origin, oldest first, behind the key ($3, $4), which is
-- NULL at the beginning.
SELECT id, phone_number, coalesce(created_at, '-infinity') AS created_at
FROM {schema}.contacts
WHERE agent_id = $1 AND coalesce(company_id, '') IN ('', $2) AND coalesce(origin, '') = ''
    AND ($3::timestamptz IS NULL OR (coalesce(created_at, '-infinity'), id) > ($3::timestamptz, $4::text))
ORDER BY coalesce(created_at, '-infinity'), id
LIMIT $5

-- name: first_incoming
-- The earliest incoming message from each of these phones; `phone` is the form it was asked by. `IS NOT
-- DISTINCT FROM` keeps the planner from the index on agent_id. A phone that any of its messages shows to be a linked
-- id, by an address `<phone>@lid` or `<phone>:<device>@hosted.lid`, is nobody's number.
SELECT phone, message_id, message_timestamp
FROM (
    SELECT DISTINCT ON (wanted.phone) wanted.phone, m.message_id, m.message_timestamp,
        bool_or(address.is_linked) OVER (PARTITION BY wanted.phone) AS is_linked
    FROM unnest($3::text[]) AS wanted(phone)
    JOIN {schema}.messages AS m ON m.from_phone = wanted.phone
    CROSS JOIN LATERAL (
        SELECT coalesce(bool_or(
            it ~ '@(hosted\.)?lid$'
            AND split_part(split_part(it, '@', 1), ':', 1) = regexp_replace(wanted.phone, '[+ ()-]', '', 'g')
        ), false) AS is_linked
        FROM unnest(ARRAY[m.jid, m.key ->> 'remoteJid']) AS it
    ) AS address
    WHERE m.agent_id IS NOT DISTINCT FROM $1 AND m.company_id = $2 AND m.flow = 'IN'
    ORDER BY wanted.phone, m.message_timestamp, m.id
) AS first
WHERE NOT is_linked
