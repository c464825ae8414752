-- name: limit
-- The probe waits no longer than $1 (milliseconds as text) for a statement or a lock.
SELECT set_config('statement_timeout', $1, true), set_config('lock_timeout', $1, true)

-- name: known_agent
-- An account that the database has accepted, for foreign keys that an operator added.
SELECT agent_id FROM {schema}.agents WHERE agent_id <> '' ORDER BY id LIMIT 1

-- name: commit
-- A write without table, row or lock that is committed like any other: it takes a transaction id, is written to the
-- WAL and waits for synchronous standbys. It needs no right beyond the connection.
SELECT pg_logical_emit_message(true, 'daisi-write-probe', '')
