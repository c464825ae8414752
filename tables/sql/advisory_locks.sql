-- name: wait
-- One transaction at a time under this name.
SELECT pg_advisory_xact_lock(hashtextextended($1, 0))

-- name: limit_locks
-- A table that others use must not be waited for at length: whoever comes later queues behind us.
SELECT set_config('lock_timeout', $1, true)

-- name: holder
-- The oldest transaction that holds one of the schema's tables; what other roles do is not shown to everybody.
SELECT c.relname, l.pid, a.application_name, a.state,
    'for ' || extract(epoch FROM now() - a.xact_start)::int || ' s' AS lasts
FROM pg_locks AS l
JOIN pg_class AS c ON c.oid = l.relation AND c.relkind IN ('r', 'p')
JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_database AS d ON d.oid = l.database AND d.datname = current_database()
LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE n.nspname = $1 AND l.granted AND l.pid <> pg_backend_pid()
ORDER BY a.xact_start NULLS LAST, c.relname
LIMIT 1
