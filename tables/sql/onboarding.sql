-- name: find
-- The log rows of these pairs (agent, cleaned phone), the first of each pair in front. `IS NOT
-- DISTINCT FROM` keeps the planner from the index on agent_id, which finds thousands a pair.
SELECT log.id, pair.agent_id, pair.phone, log.company_id, log.last_metadata ->> 'version' AS version
FROM unnest($1::text[], $2::text[]) AS pair(agent_id, phone)
JOIN {schema}.onboarding_log AS log
    ON log.phone_number = pair.phone AND log.agent_id IS NOT DISTINCT FROM pair.agent_id
ORDER BY log.id

-- name: insert
-- One row for each pair that is onboarded (contract 5.5).
INSERT INTO {schema}.onboarding_log (
    message_id, agent_id, company_id, phone_number, timestamp, last_metadata, created_at
)
SELECT message_id, agent_id, $1, phone, sent_at, last_metadata::jsonb, now()
FROM unnest($2::text[], $3::text[], $4::text[], $5::bigint[], $6::text[])
    AS fresh(message_id, agent_id, phone, sent_at, last_metadata)

-- name: update
-- The log names the earliest message, also when that comes late (design 5).
UPDATE {schema}.onboarding_log AS log
SET message_id = fresh.message_id, timestamp = fresh.sent_at, last_metadata = fresh.last_metadata::jsonb
FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::text[]) AS fresh(id, message_id, sent_at, last_metadata)
WHERE log.id = fresh.id
