-- name: schemas
-- Every schema that is or may be a company's.
SELECT nspname FROM pg_namespace WHERE starts_with(nspname, 'daisi_')

-- name: contents
-- The tables of the schema $1, partitions added to their parents, with rows as the statistics have them, and bytes.
SELECT coalesce(parent.relname, c.relname) AS name,
    sum(greatest(c.reltuples, pg_stat_get_live_tuples(c.oid), 0))::bigint AS rows,
    sum(pg_total_relation_size(c.oid))::bigint AS bytes
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace AND n.nspname = $1
LEFT JOIN pg_inherits AS i ON i.inhrelid = c.oid
LEFT JOIN pg_class AS parent ON parent.oid = i.inhparent
WHERE c.relkind IN ('r', 'm')
GROUP BY 1
ORDER BY 3 DESC, 1

-- name: dependents
-- What is in other schemas and would go with the schema $1: views of its tables, tables that refer to them.
SELECT DISTINCT format('%I.%I', home.nspname, outer_one.relname) AS name
FROM (
    SELECT r.ev_class AS oid, d.refobjid AS inner_oid
    FROM pg_depend AS d JOIN pg_rewrite AS r ON r.oid = d.objid
    WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
    UNION ALL
    SELECT conrelid, confrelid FROM pg_constraint WHERE contype = 'f'
) AS uses
JOIN pg_class AS outer_one ON outer_one.oid = uses.oid
JOIN pg_namespace AS home ON home.oid = outer_one.relnamespace AND home.nspname <> $1
JOIN pg_class AS inner_one ON inner_one.oid = uses.inner_oid
JOIN pg_namespace AS n ON n.oid = inner_one.relnamespace AND n.nspname = $1
ORDER BY 1

-- name: no_limit
-- The files of large tables take their time to go; by then nobody waits for a lock of ours.
SELECT set_config('statement_timeout', '0', true)

-- name: drop
-- All that a company has, in one transaction.
DROP SCHEMA {schema} CASCADE

-- name: countable
-- Those of the schemas $1 that have exhausted events to be counted.
SELECT n.nspname AS schema
FROM pg_namespace AS n
JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = 'exhausted_events' AND c.relkind IN ('r', 'p')
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'resolved' AND NOT a.attisdropped
WHERE n.nspname = ANY ($1::text[]) AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')

-- name: exhausted
-- What waits for an operator in one schema.
SELECT count(*) FROM {schema}.exhausted_events WHERE resolved IS NOT TRUE
