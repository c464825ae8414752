-- name: lock
-- One writer at a time for each pair and chat_id of this tenant; the keys come sorted, so two batches never
-- wait for each other in a circle. The locks end with the transaction.
SELECT count(pg_advisory_xact_lock(key)) FROM unnest($1::bigint[]) AS wanted(key)

-- name: find
-- The contacts of these pairs (account, cleaned phone), and whoever holds one of these chat_ids. A contact may
-- come twice. `IS NOT DISTINCT FROM` keeps the planner from the index on agent_id, which finds thousands a pair.
SELECT c.id, c.xmin::text AS row_version, c.agent_id, c.company_id, c.phone_number, c.chat_id, c.push_name, c.tags,
    c.assigned_to, c.origin, c.first_message_id, c.first_message_timestamp, c.last_metadata, c.created_at
FROM unnest($1::text[], $2::text[]) AS pair(agent_id, phone)
JOIN {schema}.contacts AS c
    ON translate(c.phone_number, '+ ()', '') = pair.phone AND c.agent_id IS NOT DISTINCT FROM pair.agent_id
UNION ALL
SELECT c.id, c.xmin::text, c.agent_id, c.company_id, c.phone_number, c.chat_id, c.push_name, c.tags,
    c.assigned_to, c.origin, c.first_message_id, c.first_message_timestamp, c.last_metadata, c.created_at
FROM unnest($3::text[]) AS held(chat_id)
JOIN {schema}.contacts AS c ON c.chat_id = held.chat_id

-- name: insert
-- New contacts. One whose chat_id another writer took in this moment is left out.
INSERT INTO {schema}.contacts (
    id, agent_id, company_id, phone_number, chat_id, push_name, tags, assigned_to, origin, first_message_id,
    first_message_timestamp, last_metadata, type, custom_name, notes, avatar, pob, gender, status, created_at,
    updated_at
)
SELECT id, agent_id, company_id, phone_number, chat_id, push_name, tags, assigned_to, origin, first_message_id,
    first_message_timestamp, last_metadata::jsonb, '', '', '', '', '', 'MALE', 'ACTIVE', now(), now()
FROM unnest(
    $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
    $10::text[], $11::bigint[], $12::text[]
) AS fresh(
    id, agent_id, company_id, phone_number, chat_id, push_name, tags, assigned_to, origin, first_message_id,
    first_message_timestamp, last_metadata
)
ON CONFLICT DO NOTHING

-- name: update
-- Write contacts back, unless another program changed the row since it was read.
UPDATE {schema}.contacts AS c
SET id = fresh.id, phone_number = fresh.phone_number, chat_id = fresh.chat_id, push_name = fresh.push_name,
    tags = fresh.tags, assigned_to = fresh.assigned_to, origin = fresh.origin,
    first_message_id = fresh.first_message_id, first_message_timestamp = fresh.first_message_timestamp,
    last_metadata = fresh.last_metadata::jsonb, updated_at = now()
FROM unnest(
    $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
    $10::text[], $11::bigint[], $12::text[]
) AS fresh(
    stored_id, row_version, id, phone_number, chat_id, push_name, tags, assigned_to, origin, first_message_id,
    first_message_timestamp, last_metadata
)
WHERE c.id = fresh.stored_id AND c.xmin::text = fresh.row_version
