-- name: missing
-- The months of $2 without a partition.
SELECT month FROM unnest($2::date[]) AS month
WHERE NOT EXISTS (
    SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = to_char(month, '"messages_y"YYYY"m"MM'))
ORDER BY month

-- name: in_the_way
-- Rows of the month $1 in the default partition, counted up to $2.
SELECT count(*) FROM (
    SELECT FROM {schema}.messages_default
    WHERE message_date >= $1 AND message_date < ($1 + interval '1 month')::date
    LIMIT $2) AS rows

-- name: limit
-- For each statement from now on: whoever writes to the default partition waits for it.
SELECT set_config('statement_timeout', $1, true)

-- name: make
-- The statements that give each month of $2 without a partition one: a table of its own is filled with the
-- month's rows from the default partition, then attached, so that writers of other months need not wait.
-- It sends its changes to subscribers as completely as its parent does.
WITH parent AS (
    SELECT c.oid, c.relreplident
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = 'messages'
), wanted AS (
    SELECT to_char(month, '"messages_y"YYYY"m"MM') AS name, month, (month + interval '1 month')::date AS next
    FROM unnest($2::date[]) AS month
), missing AS (
    SELECT w.name, format('%I.%I', $1, w.name) AS partition, w.month, w.next
    FROM wanted AS w
    WHERE NOT EXISTS (
        SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = $1 AND c.relname = w.name)
), columns AS (
    SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) AS list
    FROM pg_attribute AS a JOIN parent AS p ON a.attrelid = p.oid
    WHERE a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
)
SELECT m.name, concat_ws('; ',
    format('CREATE TABLE %s (LIKE %I.messages INCLUDING ALL)', m.partition, $1),
    CASE WHEN p.relreplident = 'f' THEN format('ALTER TABLE %s REPLICA IDENTITY FULL', m.partition) END,
    format(
        'WITH moved AS (DELETE FROM %I.messages_default WHERE message_date >= %L AND message_date < %L'
        ' RETURNING %s) INSERT INTO %s (%s) SELECT %s FROM moved',
        $1, m.month, m.next, c.list, m.partition, c.list, c.list),
    format(
        'ALTER TABLE %I.messages ATTACH PARTITION %s FOR VALUES FROM (%L) TO (%L)',
        $1, m.partition, m.month, m.next)) AS ddl
FROM missing AS m CROSS JOIN parent AS p CROSS JOIN columns AS c
ORDER BY m.month

-- name: make_first
-- The statements that give each month of $2 its partition, where nobody else uses the table yet.
SELECT string_agg(
    format('CREATE TABLE %I.%I PARTITION OF %I.messages FOR VALUES FROM (%L) TO (%L)',
        $1::text, to_char(month, '"messages_y"YYYY"m"MM'), $1::text, month, (month + interval '1 month')::date),
    '; ' ORDER BY month)
FROM unnest($2::date[]) AS month

-- name: attached
-- The partitions in use: a table of the right name that is not attached takes no rows.
SELECT c.relname
FROM pg_inherits AS i
JOIN pg_class AS c ON c.oid = i.inhrelid
JOIN pg_class AS p ON p.oid = i.inhparent
JOIN pg_namespace AS n ON n.oid = p.relnamespace
WHERE n.nspname = $1 AND p.relname = 'messages'

-- name: lock_default
-- Nobody adds a row to the default partition between the move and the new partition.
LOCK TABLE {schema}.messages_default IN ACCESS EXCLUSIVE MODE
