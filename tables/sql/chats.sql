-- name: insert
-- The chats that are not there yet, in the order of all writers; returns their chat_ids.
INSERT INTO {schema}.chats (
    chat_id, jid, company_id, agent_id, phone_number, push_name, is_group, group_name, last_message,
    conversation_timestamp, unread_count, not_spam, last_metadata, created_at, updated_at)
SELECT
    n.chat_id, n.jid, n.company_id, n.agent_id, n.phone_number, n.push_name, n.is_group, n.group_name,
    n.last_message::jsonb, n.conversation_timestamp, n.unread_count, n.not_spam, n.last_metadata::jsonb, now(), now()
FROM unnest(
    $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::boolean[], $8::text[], $9::text[],
    $10::bigint[], $11::integer[], $12::boolean[], $13::text[]
) AS n (
    chat_id, jid, company_id, agent_id, phone_number, push_name, is_group, group_name, last_message,
    conversation_timestamp, unread_count, not_spam, last_metadata)
-- Most chats are there: without this each try would use up an id.
WHERE NOT EXISTS (SELECT FROM {schema}.chats AS c WHERE c.chat_id = n.chat_id)
ORDER BY n.chat_id COLLATE "C"
ON CONFLICT (chat_id) DO NOTHING
RETURNING chat_id

-- name: lock
-- Lock the rows of these chat_ids, in the order of all writers. `unread_count` always counts as filled: 0 is a
-- value.
SELECT
    id, chat_id, company_id, last_metadata,
    array_remove(ARRAY[
        'unread_count',
        CASE WHEN push_name <> '' THEN 'push_name' END,
        CASE WHEN group_name <> '' THEN 'group_name' END,
        CASE WHEN last_message IS NOT NULL THEN 'last_message' END
    ], NULL) AS filled
FROM {schema}.chats WHERE chat_id = ANY ($1::text[])
ORDER BY chat_id COLLATE "C"
FOR UPDATE

-- name: drop_steps
-- An absolute value has overtaken the steps that are not newer than its version: of one incarnation and at most $5 ns
-- apart the sequence decides, otherwise the time.
DELETE FROM {schema}.chat_steps AS s
USING unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[]) AS n (chat_id, ns, sequence, incarnation)
WHERE s.chat_id = n.chat_id AND CASE
    WHEN s.incarnation = n.incarnation AND n.incarnation > 0 AND s.ns BETWEEN n.ns - $5::bigint AND n.ns + $5::bigint
    THEN (s.sequence, s.ns) <= (n.sequence, n.ns)
    ELSE (s.ns, s.sequence) <= (n.ns, n.sequence)
END

-- name: add_steps
-- Steps newer than the absolute value of their (locked) chat; a known one only learns its incarnation. `new`: it was
-- not known before (a row that is updated has the updating transaction as its xmax).
INSERT INTO {schema}.chat_steps AS s (chat_id, ns, sequence, incarnation)
SELECT chat_id, ns, sequence, incarnation
FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[]) AS n (chat_id, ns, sequence, incarnation)
ON CONFLICT (chat_id, ns, sequence) DO UPDATE SET incarnation = excluded.incarnation
WHERE s.incarnation = 0 AND excluded.incarnation > 0
RETURNING s.chat_id, s.ns, s.sequence, s.xmax = 0 AS new

-- name: update
-- Locked rows: NULL leaves a column as it is; the columns from $9 on are only filled where they are empty.
-- A new absolute `unread` counts together with the steps that are left; without one `steps` are added.
UPDATE {schema}.chats AS c SET
    push_name = COALESCE(n.push_name, c.push_name),
    group_name = COALESCE(n.group_name, c.group_name),
    last_message = COALESCE(n.last_message::jsonb, c.last_message),
    conversation_timestamp = GREATEST(c.conversation_timestamp, n.conversation_timestamp),
    unread_count = LEAST(2147483647, CASE
        WHEN n.unread IS NULL THEN COALESCE(c.unread_count, 0)::bigint + n.steps
        ELSE n.unread + (SELECT count(*) FROM {schema}.chat_steps AS s WHERE s.chat_id = c.chat_id AND s.ns > 0)
    END),
    jid = COALESCE(NULLIF(c.jid, ''), n.jid, c.jid),
    agent_id = COALESCE(NULLIF(c.agent_id, ''), n.agent_id, c.agent_id),
    company_id = COALESCE(NULLIF(c.company_id, ''), n.company_id, c.company_id),
    phone_number = COALESCE(NULLIF(c.phone_number, ''), n.phone_number, c.phone_number),
    is_group = COALESCE(c.is_group, n.is_group),
    not_spam = COALESCE(c.not_spam, n.not_spam),
    last_metadata = n.last_metadata::jsonb,
    updated_at = now()
FROM unnest(
    $1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::integer[], $8::integer[],
    $9::text[], $10::text[], $11::text[], $12::text[], $13::boolean[], $14::boolean[]
) AS n (
    id, last_metadata, push_name, group_name, last_message, conversation_timestamp, unread, steps, jid, agent_id,
    company_id, phone_number, is_group, not_spam)
WHERE c.id = n.id
