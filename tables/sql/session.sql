-- name: pid
-- The server process that does the work.
SELECT pg_backend_pid()

-- name: settings
-- What applies to this session.
SELECT lower(name) AS name, setting FROM pg_settings WHERE lower(name) = ANY($1::text[])
