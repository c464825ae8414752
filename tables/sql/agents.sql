-- name: insert
-- The agents that are not there yet, in the order of all writers; returns their agent_ids.
INSERT INTO {schema}.agents (
    agent_id, company_id, qr_code, status, agent_name, phone_number, host_name, version, last_metadata, created_at,
    updated_at)
SELECT
    n.agent_id, n.company_id, n.qr_code, n.status, n.agent_name, n.phone_number, n.host_name, n.version,
    n.last_metadata::jsonb, now(), now()
FROM unnest(
    $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[]
) AS n (agent_id, company_id, qr_code, status, agent_name, phone_number, host_name, version, last_metadata)
-- Most accounts are there: without this each try would use up an id.
WHERE NOT EXISTS (SELECT FROM {schema}.agents AS a WHERE a.agent_id = n.agent_id)
ORDER BY n.agent_id COLLATE "C"
ON CONFLICT (agent_id) DO NOTHING
RETURNING agent_id

-- name: lock
-- Lock the rows of these agent_ids, in the order of all writers.
SELECT
    id, agent_id, company_id, last_metadata,
    array_remove(ARRAY[
        CASE WHEN qr_code <> '' THEN 'qr_code' END,
        CASE WHEN status <> '' THEN 'status' END,
        CASE WHEN agent_name <> '' THEN 'agent_name' END,
        CASE WHEN phone_number <> '' THEN 'phone_number' END,
        CASE WHEN host_name <> '' THEN 'host_name' END,
        CASE WHEN version <> '' THEN 'version' END
    ], NULL) AS filled
FROM {schema}.agents WHERE agent_id = ANY ($1::text[])
ORDER BY agent_id COLLATE "C"
FOR UPDATE

-- name: update
-- Locked rows: NULL leaves a column as it is; an empty company_id is filled.
UPDATE {schema}.agents AS a SET
    company_id = COALESCE(NULLIF(a.company_id, ''), n.company_id),
    qr_code = COALESCE(n.qr_code, a.qr_code),
    status = COALESCE(n.status, a.status),
    agent_name = COALESCE(n.agent_name, a.agent_name),
    phone_number = COALESCE(n.phone_number, a.phone_number),
    host_name = COALESCE(n.host_name, a.host_name),
    version = COALESCE(n.version, a.version),
    last_metadata = n.last_metadata::jsonb,
    updated_at = now()
FROM unnest(
    $1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[]
) AS n (id, last_metadata, company_id, qr_code, status, agent_name, phone_number, host_name, version)
WHERE a.id = n.id
