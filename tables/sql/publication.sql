-- name: exists
-- Whether the publication is there.
SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = 'daisi_pub')

-- name: create
-- The publication of all tenants.
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

-- name: members
-- The tenant's four tables and every partition of its messages, each with what it still needs: the statement
-- for whole rows in every message about it, and its name if it is to be published. NULL: nothing.
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
SELECT
    CASE WHEN m.relreplident <> 'f' THEN format('ALTER TABLE %s REPLICA IDENTITY FULL', m.name) END AS identity,
    CASE WHEN NOT p.puballtables AND NOT EXISTS (
        SELECT FROM pg_publication_rel AS r WHERE r.prpubid = p.oid AND r.prrelid = m.oid)
    THEN m.name END AS addition
FROM members AS m LEFT JOIN pg_publication AS p ON p.pubname = 'daisi_pub'
ORDER BY m.name
