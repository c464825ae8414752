-- The messages of one tenant, partitioned by month (TAB-1, TAB-2).
CREATE TABLE IF NOT EXISTS {schema}.messages (
    id bigserial,
    message_id text,
    from_phone text,
    to_phone text,
    chat_id text,
    jid text,
    message_text text,
    message_url text,
    message_type text,
    company_id text,
    key jsonb,
    edited_message_obj jsonb,
    message_obj jsonb,
    flow text,
    agent_id text,
    status text,
    is_deleted boolean DEFAULT false,
    message_timestamp bigint,
    message_date date NOT NULL,
    last_metadata jsonb,
    created_at timestamptz,
    updated_at timestamptz,
    PRIMARY KEY (id, message_date)
) PARTITION BY RANGE (message_date);

CREATE TABLE IF NOT EXISTS {schema}.messages_default PARTITION OF {schema}.messages DEFAULT;

-- The unique index also serves look-ups by message_id alone; every further index costs write speed.
SELECT {schema}.index_once('messages', '{message_id,message_date}', true);
SELECT {schema}.index_once('messages', '{from_phone}');
SELECT {schema}.index_once('messages', '{to_phone}');
SELECT {schema}.index_once('messages', '{chat_id}');
SELECT {schema}.index_once('messages', '{jid}');
SELECT {schema}.index_once('messages', '{agent_id}');
SELECT {schema}.index_once('messages', '{message_date}');
