-- name: lift_limits
-- The pool's limits hold neither for waiting for the turn nor for work such as an index on a table with data.
SELECT set_config('lock_timeout', '0', true), set_config('statement_timeout', '0', true)

-- name: wait
-- One transaction at a time under this name.
SELECT pg_advisory_xact_lock(hashtextextended($1, 0))

-- name: limit_locks
-- A table that others use must not be waited for at length: whoever comes later queues behind us.
SELECT set_config('lock_timeout', '10s', true)
