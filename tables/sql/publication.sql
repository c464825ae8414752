-- name: exists
-- Whether the publication is there.
SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = 'daisi_pub')

-- name: create
-- The publication of all tenants (contract 6.4).
CREATE PUBLICATION daisi_pub
WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = false)

-- name: holds_messages
-- Whether the tenant's messages are published.
SELECT EXISTS (
    SELECT FROM pg_publication_rel AS r
    JOIN pg_publication AS p ON p.oid = r.prpubid
    JOIN pg_class AS c ON c.oid = r.prrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE p.pubname = 'daisi_pub' AND n.nspname = $1 AND c.relname = 'messages')

-- name: identities
-- The statements still needed for whole rows in every message about the tenant's four tables and the partitions.
WITH members AS (
    SELECT c.oid, c.relreplident, format('%I.%I', n.nspname, c.relname) AS name
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname IN ('chats', 'agents', 'contacts', 'messages')
      AND c.relkind IN ('r', 'p')
    UNION ALL
    SELECT c.oid, c.relreplident, format('%I.%I', n.nspname, c.relname)
    FROM pg_inherits AS i
    JOIN pg_class AS parent ON parent.oid = i.inhparent AND parent.relname = 'messages'
    JOIN pg_namespace AS home ON home.oid = parent.relnamespace AND home.nspname = $1
    JOIN pg_class AS c ON c.oid = i.inhrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE parent.relkind = 'p'
)
SELECT format('ALTER TABLE %s REPLICA IDENTITY FULL', m.name) AS ddl
FROM members AS m WHERE m.relreplident <> 'f' ORDER BY m.name

-- name: additions
-- The statement still needed to publish the tenant's four tables and every partition of its messages.
WITH members AS (
    SELECT c.oid, c.relreplident, format('%I.%I', n.nspname, c.relname) AS name
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname IN ('chats', 'agents', 'contacts', 'messages')
      AND c.relkind IN ('r', 'p')
    UNION ALL
    SELECT c.oid, c.relreplident, format('%I.%I', n.nspname, c.relname)
    FROM pg_inherits AS i
    JOIN pg_class AS parent ON parent.oid = i.inhparent AND parent.relname = 'messages'
    JOIN pg_namespace AS home ON home.oid = parent.relnamespace AND home.nspname = $1
    JOIN pg_class AS c ON c.oid = i.inhrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE parent.relkind = 'p'
)
SELECT 'ALTER PUBLICATION daisi_pub ADD TABLE ' || string_agg(m.name, ', ' ORDER BY m.name) AS ddl
FROM members AS m
JOIN pg_publication AS p ON p.pubname = 'daisi_pub' AND NOT p.puballtables
WHERE NOT EXISTS (SELECT FROM pg_publication_rel AS r WHERE r.prpubid = p.oid AND r.prrelid = m.oid)
HAVING count(*) > 0
