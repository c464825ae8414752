-- name: note
-- What is noted beside the schema $1, and whether our role may note something: it needs the rights of the table's
-- owner. The note is a comment on a table of our own: it is kept with the schema by dumps and renames, is read for all
-- schemas with one statement, and leaves a comment that an operator has given the schema.
SELECT obj_description(c.oid, 'pg_class') AS note, pg_has_role(c.relowner, 'USAGE') AS is_ours
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = 'schema_migrations'

-- name: write_note
-- The statement that notes $2 beside the schema $1.
SELECT format('COMMENT ON TABLE %I.schema_migrations IS %L', $1::text, $2::text)

-- name: rows
-- The companies in both ends of each table but $1: a full scan of a large table would take minutes.
SELECT DISTINCT company_id FROM (
    (SELECT company_id FROM {schema}.agents LIMIT 1000)
    UNION ALL (SELECT company_id FROM {schema}.messages ORDER BY id LIMIT 100)
    UNION ALL (SELECT company_id FROM {schema}.messages ORDER BY id DESC LIMIT 100)
    UNION ALL (SELECT company_id FROM {schema}.chats ORDER BY id LIMIT 100)
    UNION ALL (SELECT company_id FROM {schema}.chats ORDER BY id DESC LIMIT 100)
    UNION ALL (SELECT company_id FROM {schema}.contacts ORDER BY id LIMIT 100)
    UNION ALL (SELECT company_id FROM {schema}.contacts ORDER BY id DESC LIMIT 100)
    UNION ALL (SELECT company_id FROM {schema}.onboarding_log ORDER BY id LIMIT 100)
    UNION ALL (SELECT company_id FROM {schema}.onboarding_log ORDER BY id DESC LIMIT 100)
    UNION ALL (SELECT company_id FROM {schema}.exhausted_events ORDER BY id LIMIT 100)
    UNION ALL (SELECT company_id FROM {schema}.exhausted_events ORDER BY id DESC LIMIT 100)
) AS rows
WHERE company_id IS NOT NULL AND company_id <> $1

-- name: all
-- Every company's schema with its note, and its size on the disk if $1 (one look at each file).
SELECT n.nspname AS schema, obj_description(journal.oid, 'pg_class') AS note, sizes.bytes::bigint AS bytes
FROM pg_namespace AS n
LEFT JOIN pg_class AS journal ON journal.relnamespace = n.oid AND journal.relname = 'schema_migrations'
LEFT JOIN (
    SELECT relnamespace, sum(pg_total_relation_size(oid)) AS bytes
    FROM pg_class WHERE relkind = 'r' AND $1::boolean
    GROUP BY relnamespace
) AS sizes ON sizes.relnamespace = n.oid
WHERE starts_with(n.nspname, 'daisi_') AND EXISTS (
    SELECT FROM pg_class AS c
    WHERE c.relnamespace = n.oid AND c.relname = 'messages' AND c.relkind IN ('r', 'p'))
ORDER BY n.nspname
