-- auto-migrate only
-- The tables that other systems share with this service (TAB-1).
CREATE TABLE IF NOT EXISTS {schema}.chats (
    id bigserial PRIMARY KEY,
    chat_id text,
    jid text,
    push_name text,
    is_group boolean,
    group_name text,
    unread_count integer,
    last_message jsonb,
    conversation_timestamp bigint,
    not_spam boolean,
    agent_id text,
    company_id text,
    phone_number text,
    last_metadata jsonb,
    created_at timestamptz,
    updated_at timestamptz
);
SELECT {schema}.index_once('chats', '{chat_id}', true);
SELECT {schema}.index_once('chats', '{agent_id}');

CREATE TABLE IF NOT EXISTS {schema}.contacts (
    id text PRIMARY KEY,
    phone_number text,
    agent_id text,
    chat_id text,
    type text,
    custom_name text,
    notes text,
    tags text,
    company_id text,
    avatar text,
    assigned_to text,
    pob text,
    dob date,
    gender text DEFAULT 'MALE',
    origin text,
    push_name text,
    status text DEFAULT 'ACTIVE',
    first_message_id text,
    first_message_timestamp bigint,
    created_at timestamptz,
    updated_at timestamptz,
    last_metadata jsonb
);
SELECT {schema}.index_once('contacts', '{chat_id}', true);
SELECT {schema}.index_once('contacts', '{agent_id}');
SELECT {schema}.index_once('contacts', '{assigned_to}');
-- Not unique: the existing service left pairs twice.
SELECT {schema}.index_once('contacts', '{phone_number,agent_id}');

CREATE TABLE IF NOT EXISTS {schema}.agents (
    id bigserial PRIMARY KEY,
    agent_id text,
    qr_code text,
    status text,
    agent_name text,
    phone_number text,
    host_name text,
    version text,
    company_id text,
    created_at timestamptz,
    updated_at timestamptz,
    last_metadata jsonb
);
SELECT {schema}.index_once('agents', '{agent_id}', true);

CREATE TABLE IF NOT EXISTS {schema}.onboarding_log (
    id bigserial PRIMARY KEY,
    message_id text,
    agent_id text,
    company_id text,
    phone_number text,
    timestamp bigint,
    created_at timestamptz,
    last_metadata jsonb
);
SELECT {schema}.index_once('onboarding_log', '{message_id}');
SELECT {schema}.index_once('onboarding_log', '{agent_id}');
SELECT {schema}.index_once('onboarding_log', '{phone_number}');
SELECT {schema}.index_once('onboarding_log', '{phone_number,agent_id}');

CREATE TABLE IF NOT EXISTS {schema}.exhausted_events (
    id bigserial PRIMARY KEY,
    created_at timestamptz,
    company_id text NOT NULL,
    source_subject text NOT NULL,
    last_error text,
    retry_count bigint,
    event_timestamp timestamptz,
    dlq_payload jsonb NOT NULL,
    original_payload jsonb,
    resolved boolean DEFAULT false,
    resolved_at timestamptz,
    notes text
);
SELECT {schema}.index_once('exhausted_events', '{source_subject}');
SELECT {schema}.index_once('exhausted_events', '{event_timestamp}');
SELECT {schema}.index_once('exhausted_events', '{resolved}');
SELECT {schema}.index_once('exhausted_events', '{resolved_at}');
