-- name: has_wanted
-- Whether a migration has noted anything: schemas made before have no such table.
SELECT EXISTS (
    SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = 'wanted_indexes')

-- name: wanted
-- What is not built yet, the unique ones first; only those if $1.
SELECT name, table_name, keys, is_unique FROM {schema}.wanted_indexes
WHERE is_unique OR NOT $1 ORDER BY is_unique DESC, name

-- name: built
-- It is there.
DELETE FROM {schema}.wanted_indexes WHERE name = $1

-- name: stay_idle
-- The transaction that holds the lock does nothing for as long as the build lasts.
SELECT set_config('idle_in_transaction_session_timeout', '0', true)

-- name: try_lock
-- Whether nobody else builds.
SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0))

-- name: lift_limits
-- For the session that builds, which is closed afterwards.
SELECT set_config('statement_timeout', '0', false), set_config('lock_timeout', $1, false)

-- name: partitions
-- The partitions of a table, and whether each has its part of the index; none if the table is not partitioned.
SELECT c.relname, EXISTS (
    SELECT FROM pg_index AS i
    JOIN pg_inherits AS part ON part.inhrelid = i.indexrelid
    JOIN pg_class AS whole ON whole.oid = part.inhparent AND whole.relname = $3
    WHERE i.indrelid = c.oid) AS attached
FROM pg_inherits AS h
JOIN pg_class AS c ON c.oid = h.inhrelid
JOIN pg_class AS p ON p.oid = h.inhparent
JOIN pg_namespace AS n ON n.oid = p.relnamespace
WHERE n.nspname = $1 AND p.relname = $2 AND p.relkind = 'p'
ORDER BY c.relname

-- name: state
-- What there is of an index, and who builds it.
SELECT i.indisvalid, (SELECT min(b.pid) FROM pg_stat_progress_create_index AS b WHERE b.index_relid = c.oid) AS builder
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_index AS i ON i.indexrelid = c.oid
WHERE n.nspname = $1 AND c.relname = $2

-- name: progress
-- How far a process is with an index.
SELECT phase
    || CASE WHEN blocks_total > 0 THEN format(', %s %%', 100 * blocks_done / blocks_total) ELSE '' END
    || CASE WHEN current_locker_pid > 0 THEN format(', waits for process %s', current_locker_pid) ELSE '' END
    AS progress
FROM pg_stat_progress_create_index WHERE pid = $1

-- name: write_create
-- The statement that makes the index $3 of the keys $7: unique if $1, in the way $2, on the table $6 of the schema $5,
-- with $4 'ONLY' for that of a partitioned table itself.
SELECT format('CREATE %s INDEX %s %I ON %s %I.%I (%s)', CASE WHEN $1::boolean THEN 'UNIQUE' ELSE '' END,
    $2::text, $3::text, $4::text, $5::text, $6::text, $7::text)

-- name: write_drop
-- The statement that drops the index $2 of the schema $1 while others use the table.
SELECT format('DROP INDEX CONCURRENTLY %I.%I', $1::text, $2::text)

-- name: write_attach
-- The statement that makes the index $3 a part of $2.
SELECT format('ALTER INDEX %I.%I ATTACH PARTITION %I.%I', $1::text, $2::text, $1::text, $3::text)
