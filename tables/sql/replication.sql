-- name: durability
-- Standbys that follow this server, and what a commit waits for. A sender with a logical slot feeds a subscriber of
-- changes, one with the name of a backup tool copies and goes.
SELECT current_setting('synchronous_standby_names') <> '' AS synchronous,
    current_setting('synchronous_commit') AS commit,
    (SELECT count(*) FROM pg_stat_replication AS r
     WHERE r.application_name <> 'pg_basebackup'
       AND NOT EXISTS (
         SELECT FROM pg_replication_slots AS s WHERE s.active_pid = r.pid AND s.slot_type = 'logical')) AS standbys
