-- name: schema_exists
-- Whether the schema is there: the right to create one may be missing when it is.
SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)

-- name: create_schema
-- The tenant's schema.
CREATE SCHEMA {schema}

-- name: create_journal
-- Which migrations have been applied.
CREATE TABLE IF NOT EXISTS {schema}.schema_migrations (
    name text PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
)

-- name: applied
-- The names of the migrations applied so far.
SELECT name FROM {schema}.schema_migrations

-- name: record
-- Remember these migrations.
INSERT INTO {schema}.schema_migrations (name) SELECT unnest($1::text[])

-- name: set_schema
-- The schema's name for index_once, which cannot take it from its own text safely.
SELECT set_config('daisi.schema', $1, true)

-- name: create_wanted
-- Indexes for tables that had rows when they were taken over: built later, without keeping writers waiting.
CREATE TABLE IF NOT EXISTS {schema}.wanted_indexes (
    name text PRIMARY KEY,
    table_name text NOT NULL,
    keys text NOT NULL,
    is_unique boolean NOT NULL
)

-- name: create_index_once
-- A helper of the migrations: makes an index unless the columns have one, whatever its name.
CREATE FUNCTION {schema}.index_once(name text, columns text[], is_unique boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql AS $function$
DECLARE
    target regclass := format('%I.%I', current_setting('daisi.schema'), name)::regclass;
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_index AS i
        WHERE i.indrelid = target AND i.indpred IS NULL AND i.indexprs IS NULL AND i.indisvalid
          AND i.indisunique >= is_unique
          AND columns = ARRAY(
              SELECT a.attname::text
              FROM unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (number, place)
              JOIN pg_attribute AS a ON a.attrelid = target AND a.attnum = k.number
              WHERE k.place <= i.indnkeyatts
              ORDER BY k.place)
    ) THEN
        PERFORM {schema}.index_now_or_later(
            name, '', array_to_string(columns, '_'), is_unique,
            (SELECT string_agg(quote_ident(c), ', ') FROM unnest(columns) AS c));
    END IF;
END
$function$

-- name: create_index_now_or_later
-- A helper of the migrations: an empty table gets its index at once, one with rows is noted for later. Without a
-- name the server chooses it; `label` is part of the one that is noted.
CREATE FUNCTION {schema}.index_now_or_later(
    name text, index_name text, label text, is_unique boolean, keys text) RETURNS void
LANGUAGE plpgsql AS $function$
DECLARE
    target regclass := format('%I.%I', current_setting('daisi.schema'), name)::regclass;
    filled boolean;
BEGIN
    IF index_name <> '' THEN
        IF to_regclass(format('%I.%I', current_setting('daisi.schema'), index_name)) IS NOT NULL THEN
            RETURN;
        END IF;
    END IF;
    EXECUTE format('SELECT EXISTS (SELECT FROM %s)', target) INTO filled;
    IF filled THEN
        INSERT INTO {schema}.wanted_indexes
        VALUES (coalesce(nullif(index_name, ''), left(name || '_' || label, 50) || '_daisi_idx'),
            name, keys, is_unique)
        ON CONFLICT DO NOTHING;
    ELSE
        EXECUTE format('CREATE %s INDEX %s ON %s (%s)', CASE WHEN is_unique THEN 'UNIQUE' ELSE '' END,
            CASE WHEN index_name <> '' THEN quote_ident(index_name) ELSE '' END, target, keys);
    END IF;
END
$function$

-- name: drop_index_once
-- The helpers are gone before the migration commits: nobody else sees them.
DROP FUNCTION {schema}.index_once, {schema}.index_now_or_later

-- name: missing_tables
-- Those of the shared tables that are not there.
SELECT name FROM unnest($2::text[]) AS name
WHERE NOT EXISTS (
    SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = name AND c.relkind IN ('r', 'p'))
ORDER BY name

-- name: lacks_columns
-- Whether one of these columns ($3, each of the table in $2) is not there.
SELECT EXISTS (
    SELECT FROM unnest($2::text[], $3::text[]) AS made (table_name, column_name)
    WHERE NOT EXISTS (
        SELECT FROM pg_class AS c
        JOIN pg_namespace AS n ON n.oid = c.relnamespace AND n.nspname = $1
        JOIN pg_attribute AS a ON a.attrelid = c.oid AND NOT a.attisdropped
        WHERE c.relname = made.table_name AND a.attname = made.column_name))

-- name: state
-- What the catalogue says of the schema $1 and needs none of its tables: the note beside it, whether all tables $2 are
-- there, all columns ($4, each of the table in $3), and whether everything of it is published. Milliseconds for one of
-- a thousand schemas: the text is the same for all, and is planned once.
WITH present AS MATERIALIZED (
    SELECT c.oid, c.relname, c.relreplident
    FROM pg_class AS c
    WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = $1)
      AND c.relname = ANY ($2::name[]) AND c.relkind IN ('r', 'p')
), members AS (
    SELECT oid, relname, relreplident FROM present WHERE relname IN ('chats', 'agents', 'contacts', 'messages')
    UNION ALL
    SELECT c.oid, c.relname, c.relreplident
    FROM present AS m JOIN pg_inherits AS i ON i.inhparent = m.oid JOIN pg_class AS c ON c.oid = i.inhrelid
    WHERE m.relname = 'messages'
)
SELECT
    (SELECT obj_description(oid, 'pg_class') FROM present WHERE relname = 'schema_migrations') AS note,
    (SELECT count(*) FROM present) = cardinality($2::name[]) AS has_tables,
    ARRAY(SELECT relname::text FROM members WHERE starts_with(relname, 'messages_')) AS partitions,
    NOT EXISTS (
        SELECT FROM unnest($3::name[], $4::name[]) AS made (table_name, column_name)
        LEFT JOIN present AS c ON c.relname = made.table_name
        LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = made.column_name AND NOT a.attisdropped
        WHERE a.attname IS NULL) AS has_columns,
    NOT EXISTS (
        SELECT FROM members AS m
        WHERE m.relreplident <> 'f' OR NOT EXISTS (
            SELECT FROM pg_publication AS p
            WHERE p.pubname = 'daisi_pub' AND (p.puballtables OR EXISTS (
                SELECT FROM pg_publication_rel AS r WHERE r.prpubid = p.oid AND r.prrelid = m.oid)))) AS is_published

-- name: contents
-- Whether every row of the schema $1 has its key, an index is missing without which nothing can be stored, and the newest
-- row of these months has its key. Without such a row only a schema whose messages have no page at all is known to need
-- no closer look. For some days, so that two partitions are opened, not all of them with all their indexes.
SELECT
    f.complete,
    EXISTS (SELECT FROM {schema}.wanted_indexes WHERE is_unique) AS lacks_index,
    COALESCE((
        SELECT newest.message_id IS NULL
            OR EXISTS (SELECT FROM {schema}.message_keys AS k WHERE k.message_id = newest.message_id)
        FROM (
            SELECT message_id FROM {schema}.messages
            WHERE message_date BETWEEN DATE '-infinity' AND DATE 'infinity'
            ORDER BY id DESC LIMIT 1) AS newest
    ), (
        SELECT sum(pg_relation_size(i.inhrelid)) = 0
        FROM pg_inherits AS i WHERE i.inhparent = to_regclass(format('%I.messages', $1::text))
    )) AS newest_has_key
FROM {schema}.message_keys_fill AS f
