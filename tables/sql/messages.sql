-- name: insert
-- The rows whose message_id nobody has claimed yet; returns their message_ids. The claim in message_keys comes
-- first, so that of two writers one waits and then finds the key. A row that is there without its key stays.
WITH claimed AS (
    INSERT INTO {schema}.message_keys (message_id, message_date)
    SELECT message_id, message_date FROM unnest($1::text[], $16::date[]) AS n (message_id, message_date)
    ORDER BY message_id COLLATE "C"
    ON CONFLICT (message_id) DO NOTHING
    RETURNING message_id
)
INSERT INTO {schema}.messages (
    message_id, from_phone, to_phone, chat_id, jid, flow, message_text, message_url, message_type, agent_id,
    company_id, message_obj, key, status, message_timestamp, message_date, edited_message_obj, is_deleted,
    last_metadata, created_at, updated_at)
SELECT
    message_id, n.from_phone, n.to_phone, n.chat_id, n.jid, n.flow, n.message_text, n.message_url, n.message_type,
    n.agent_id, n.company_id, n.message_obj::jsonb, n.key::jsonb, n.status, n.message_timestamp, n.message_date,
    n.edited_message_obj::jsonb, COALESCE(n.is_deleted, false), n.last_metadata::jsonb, now(), now()
FROM unnest(
    $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
    $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::bigint[], $16::date[], $17::text[],
    $18::boolean[], $19::text[]
) AS n (
    message_id, from_phone, to_phone, chat_id, jid, flow, message_text, message_url, message_type, agent_id,
    company_id, message_obj, key, status, message_timestamp, message_date, edited_message_obj, is_deleted,
    last_metadata)
JOIN claimed USING (message_id)
ON CONFLICT (message_id, message_date) DO NOTHING
RETURNING message_id

-- name: lock
-- Lock the rows of these message_ids, in the order of all writers: by month, then by message_id. If the key of one of them
-- leads to another day than these, none is locked. Without a row `id` is NULL. The key's date leaves one partition a row;
-- LATERAL keeps the planner from reading whole partitions. Days travel as numbers: the existing service stored
-- dates that the driver takes for infinity (0001-01-01) or cannot express (years beyond 9999). `gaps`: whether one
-- of the columns that are stored once is still empty; most rows have none, and need none of them again.
WITH keys AS MATERIALIZED (
    SELECT message_id, message_date, message_date BETWEEN DATE '-infinity' AND DATE 'infinity' AS is_inside
    FROM {schema}.message_keys WHERE message_id = ANY ($1::text[])
)
SELECT k.message_id, k.message_date - DATE '1970-01-01' AS key_day, m.*
FROM (SELECT * FROM keys ORDER BY date_trunc('month', message_date), message_id COLLATE "C") AS k
LEFT JOIN LATERAL (
    SELECT
        id, message_date - DATE '1970-01-01' AS day, company_id, last_metadata,
        array_remove(ARRAY[
            CASE WHEN status <> '' THEN 'status' END,
            CASE WHEN message_text <> '' THEN 'message_text' END,
            CASE WHEN message_url <> '' THEN 'message_url' END,
            CASE WHEN message_type <> '' THEN 'message_type' END,
            CASE WHEN message_obj IS NOT NULL THEN 'message_obj' END,
            CASE WHEN edited_message_obj IS NOT NULL THEN 'edited_message_obj' END,
            CASE WHEN is_deleted THEN 'is_deleted' END
        ], NULL) AS filled,
        '' IN (
            COALESCE(from_phone, ''), COALESCE(to_phone, ''), COALESCE(chat_id, ''), COALESCE(jid, ''),
            COALESCE(flow, ''), COALESCE(agent_id, ''), COALESCE(company_id, '')
        ) OR key IS NULL AS gaps
    FROM {schema}.messages AS m
    WHERE message_id = k.message_id AND message_date = k.message_date AND (SELECT bool_and(is_inside) FROM keys)
    FOR UPDATE
) AS m ON true

-- name: key_days
-- Where the keys of these message_ids lead.
SELECT message_id, message_date - DATE '1970-01-01' AS key_day
FROM {schema}.message_keys WHERE message_id = ANY ($1::text[])

-- name: update
-- Locked rows: NULL leaves a column as it is; the columns from $11 on are only filled where they are empty.
UPDATE {schema}.messages AS m SET
    status = COALESCE(n.status, m.status),
    message_text = COALESCE(n.message_text, m.message_text),
    message_url = COALESCE(n.message_url, m.message_url),
    message_type = COALESCE(n.message_type, m.message_type),
    message_obj = COALESCE(n.message_obj::jsonb, m.message_obj),
    edited_message_obj = COALESCE(n.edited_message_obj::jsonb, m.edited_message_obj),
    is_deleted = COALESCE(n.is_deleted, m.is_deleted),
    from_phone = COALESCE(NULLIF(m.from_phone, ''), n.from_phone, m.from_phone),
    to_phone = COALESCE(NULLIF(m.to_phone, ''), n.to_phone, m.to_phone),
    chat_id = COALESCE(NULLIF(m.chat_id, ''), n.chat_id, m.chat_id),
    jid = COALESCE(NULLIF(m.jid, ''), n.jid, m.jid),
    flow = COALESCE(NULLIF(m.flow, ''), n.flow, m.flow),
    agent_id = COALESCE(NULLIF(m.agent_id, ''), n.agent_id, m.agent_id),
    company_id = COALESCE(NULLIF(m.company_id, ''), n.company_id, m.company_id),
    key = COALESCE(m.key, n.key::jsonb),
    last_metadata = n.last_metadata::jsonb,
    updated_at = now()
FROM unnest(
    $1::bigint[], $2::int[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
    $10::boolean[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[], $16::text[], $17::text[],
    $18::text[]
) AS n (
    id, day, last_metadata, status, message_text, message_url, message_type, message_obj,
    edited_message_obj, is_deleted, from_phone, to_phone, chat_id, jid, flow, agent_id, company_id, key)
WHERE m.id = n.id AND m.message_date = DATE '1970-01-01' + n.day

-- name: unclaimed
-- Which of these message_ids have no key.
SELECT message_id FROM unnest($1::text[]) AS n (message_id)
WHERE NOT EXISTS (SELECT FROM {schema}.message_keys AS k WHERE k.message_id = n.message_id)

-- name: probe
-- Look for these message_ids in every partition; of several rows the one with the lowest id counts.
SELECT n.message_id, m.message_date - DATE '1970-01-01' AS day
FROM unnest($1::text[]) AS n (message_id)
CROSS JOIN LATERAL (
    SELECT message_date FROM {schema}.messages WHERE message_id = n.message_id ORDER BY id LIMIT 1
) AS m

-- name: lock_keys
-- Who holds the keys decides where they lead.
SELECT message_id FROM {schema}.message_keys WHERE message_id = ANY ($1::text[])
ORDER BY message_id COLLATE "C" FOR UPDATE

-- name: repair_keys
-- The keys lead to these days.
INSERT INTO {schema}.message_keys (message_id, message_date)
SELECT message_id, DATE '1970-01-01' + day FROM unnest($1::text[], $2::int[]) AS n (message_id, day)
ORDER BY message_id COLLATE "C"
ON CONFLICT (message_id) DO UPDATE SET message_date = EXCLUDED.message_date

-- name: drop_keys
-- Keys that lead nowhere.
DELETE FROM {schema}.message_keys WHERE message_id = ANY ($1::text[])
