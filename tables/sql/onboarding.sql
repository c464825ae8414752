-- name: find
-- The log rows of these pairs (account, cleaned phone), the first of each pair in front. `IS NOT
-- DISTINCT FROM` keeps the planner from the index on agent_id, which finds thousands a pair.
SELECT log.id, pair.agent_id, pair.phone, log.company_id, log.last_metadata ->> 'version' AS version
FROM unnest($1::text[], $2::text[]) AS pair(agent_id, phone)
JOIN {schema}.onboarding_log AS log
    ON log.phone_number = pair.phone AND log.agent_id IS NOT DISTINCT FROM pair.agent_id
ORDER BY log.id

-- name: insert
-- One row for each pair that is onboarded, of the company $6.
INSERT INTO {schema}.onboarding_log (
    message_id, agent_id, company_id, phone_number, timestamp, last_metadata, created_at
)
SELECT n.message_id, n.agent_id, $6, n.phone, n.sent_at, n.last_metadata::jsonb, now()
FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[])
    AS n (message_id, agent_id, phone, sent_at, last_metadata)

-- name: update
-- The log names the earliest message, also when that comes late.
UPDATE {schema}.onboarding_log AS log
SET message_id = n.message_id, timestamp = n.sent_at, last_metadata = n.last_metadata::jsonb
FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::text[]) AS n (stored_id, message_id, sent_at, last_metadata)
WHERE log.id = n.stored_id
