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

-- name: companies
-- The companies in both ends of each table: a full scan of a large table would take minutes at every start.
SELECT DISTINCT company_id FROM (
    (SELECT company_id FROM {schema}.agents LIMIT 1000)
    UNION ALL (SELECT company_id FROM {schema}.messages ORDER BY id LIMIT 100)
    UNION ALL (SELECT company_id FROM {schema}.messages ORDER BY id DESC LIMIT 100)
    UNION ALL (SELECT company_id FROM {schema}.chats ORDER BY id LIMIT 100)
    UNION ALL (SELECT company_id FROM {schema}.chats ORDER BY id DESC LIMIT 100)
    UNION ALL (SELECT company_id FROM {schema}.contacts ORDER BY id LIMIT 100)
    UNION ALL (SELECT company_id FROM {schema}.contacts ORDER BY id DESC LIMIT 100)
    UNION ALL (SELECT company_id FROM {schema}.onboarding_log ORDER BY id LIMIT 100)
    UNION ALL (SELECT company_id FROM {schema}.onboarding_log ORDER BY id DESC LIMIT 100)
    UNION ALL (SELECT company_id FROM {schema}.exhausted_events ORDER BY id LIMIT 100)
    UNION ALL (SELECT company_id FROM {schema}.exhausted_events ORDER BY id DESC LIMIT 100)
) AS rows
WHERE company_id IS NOT NULL AND company_id <> $1
