-- The tables as the existing service makes them (TAB-1), many indexes twice: once under a plain name, once
-- under a name that contains a quoted schema.
CREATE SCHEMA {schema};

CREATE TABLE {schema}.messages (
    id bigserial, message_id text, from_phone text, to_phone text, chat_id text, jid text, message_text text,
    message_url text, message_type text, company_id text, key jsonb, edited_message_obj jsonb, message_obj jsonb,
    flow text, agent_id text, status text, is_deleted boolean DEFAULT false, message_timestamp bigint,
    message_date date NOT NULL, last_metadata jsonb, created_at timestamptz, updated_at timestamptz,
    PRIMARY KEY (id, message_date)
) PARTITION BY RANGE (message_date);
CREATE UNIQUE INDEX idx_messages_message_id ON {schema}.messages (message_id, message_date);
CREATE INDEX idx_messages_message_id_only ON {schema}.messages (message_id);
CREATE INDEX idx_messages_from_phone ON {schema}.messages (from_phone);
CREATE INDEX idx_messages_to_phone ON {schema}.messages (to_phone);
CREATE INDEX idx_messages_chat_id ON {schema}.messages (chat_id);
CREATE INDEX idx_messages_jid ON {schema}.messages (jid);
CREATE INDEX idx_messages_agent_id ON {schema}.messages (agent_id);
CREATE INDEX idx_messages_message_date ON {schema}.messages (message_date);
CREATE INDEX "idx_""daisi_x""_messages_from_phone" ON {schema}.messages (from_phone);
CREATE INDEX "idx_""daisi_x""_messages_to_phone" ON {schema}.messages (to_phone);
CREATE INDEX "idx_""daisi_x""_messages_chat_id" ON {schema}.messages (chat_id);
CREATE INDEX "idx_""daisi_x""_messages_jid" ON {schema}.messages (jid);
CREATE INDEX "idx_""daisi_x""_messages_agent_id" ON {schema}.messages (agent_id);
CREATE TABLE {schema}.messages_default PARTITION OF {schema}.messages DEFAULT;
-- All months of last year and of this year.
DO $$
DECLARE
    month date := date_trunc('year', now() AT TIME ZONE 'UTC') - interval '1 year';
BEGIN
    FOR number IN 1..24 LOOP
        EXECUTE format(
            'CREATE TABLE {schema}.%s PARTITION OF {schema}.messages FOR VALUES FROM (%L) TO (%L)',
            to_char(month, '"messages_y"YYYY"m"MM'), month, (month + interval '1 month')::date);
        month := month + interval '1 month';
    END LOOP;
END
$$;

CREATE TABLE {schema}.chats (
    id bigserial PRIMARY KEY, chat_id text, jid text, push_name text, is_group boolean, group_name text,
    unread_count integer, last_message jsonb, conversation_timestamp bigint, not_spam boolean, agent_id text,
    company_id text, phone_number text, last_metadata jsonb, created_at timestamptz, updated_at timestamptz
);
CREATE UNIQUE INDEX "idx_""daisi_x""_chats_chat_id" ON {schema}.chats (chat_id);
CREATE INDEX "idx_""daisi_x""_chats_agent_id" ON {schema}.chats (agent_id);

CREATE TABLE {schema}.contacts (
    id text PRIMARY KEY, phone_number text, agent_id text, chat_id text, type text, custom_name text, notes text,
    tags text, company_id text, avatar text, assigned_to text, pob text, dob date, gender text DEFAULT 'MALE',
    origin text, push_name text, status text DEFAULT 'ACTIVE', first_message_id text,
    first_message_timestamp bigint, created_at timestamptz, updated_at timestamptz, last_metadata jsonb
);
CREATE UNIQUE INDEX idx_contacts_chat_id ON {schema}.contacts (chat_id);
CREATE UNIQUE INDEX "idx_""daisi_x""_contacts_chat_id" ON {schema}.contacts (chat_id);
CREATE INDEX "idx_""daisi_x""_contacts_agent_id" ON {schema}.contacts (agent_id);
CREATE INDEX idx_contacts_assigned_to ON {schema}.contacts (assigned_to);
CREATE INDEX "idx_""daisi_x""_contacts_assigned_to" ON {schema}.contacts (assigned_to);

CREATE TABLE {schema}.agents (
    id bigserial PRIMARY KEY, agent_id text, qr_code text, status text, agent_name text, phone_number text,
    host_name text, version text, company_id text, created_at timestamptz, updated_at timestamptz,
    last_metadata jsonb
);
CREATE UNIQUE INDEX "idx_""daisi_x""_agents_agent_id" ON {schema}.agents (agent_id);

CREATE TABLE {schema}.onboarding_log (
    id bigserial PRIMARY KEY, message_id text, agent_id text, company_id text, phone_number text,
    timestamp bigint, created_at timestamptz, last_metadata jsonb
);
CREATE INDEX "idx_""daisi_x""_onboarding_log_message_id" ON {schema}.onboarding_log (message_id);
CREATE INDEX "idx_""daisi_x""_onboarding_log_agent_id" ON {schema}.onboarding_log (agent_id);
CREATE INDEX "idx_""daisi_x""_onboarding_log_phone_number" ON {schema}.onboarding_log (phone_number);

CREATE TABLE {schema}.exhausted_events (
    id bigserial PRIMARY KEY, created_at timestamptz, company_id text NOT NULL, source_subject text NOT NULL,
    last_error text, retry_count bigint, event_timestamp timestamptz, dlq_payload jsonb NOT NULL,
    original_payload jsonb, resolved boolean DEFAULT false, resolved_at timestamptz, notes text
);
CREATE INDEX "idx_""daisi_x""_exhausted_events_source_subject" ON {schema}.exhausted_events (source_subject);
CREATE INDEX "idx_""daisi_x""_exhausted_events_event_timestamp" ON {schema}.exhausted_events (event_timestamp);
CREATE INDEX "idx_""daisi_x""_exhausted_events_resolved" ON {schema}.exhausted_events (resolved);
CREATE INDEX "idx_""daisi_x""_exhausted_events_resolved_at" ON {schema}.exhausted_events (resolved_at);
