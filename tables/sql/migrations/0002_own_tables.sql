-- What only this service uses; never published.

-- Which day, and so which partition, holds the row of a message.
CREATE TABLE {schema}.message_keys (
    message_id text PRIMARY KEY,
    message_date date NOT NULL
);

-- How far message_keys knows the rows that were there before it: one row.
CREATE TABLE {schema}.message_keys_fill (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    filled_to bigint NOT NULL,
    complete boolean NOT NULL
);
INSERT INTO {schema}.message_keys_fill (filled_to, complete)
SELECT 0, NOT EXISTS (SELECT FROM {schema}.messages);

-- The unread steps of a chat that are newer than its last absolute value; the version is (ns, sequence).
CREATE TABLE {schema}.chat_steps (
    chat_id text NOT NULL,
    ns bigint NOT NULL,
    sequence bigint NOT NULL,
    PRIMARY KEY (chat_id, ns, sequence)
);

-- Agents whose contacts are looked at again after their last history batch.
CREATE TABLE {schema}.post_scan_jobs (
    agent_id text PRIMARY KEY,
    due_at timestamptz NOT NULL,
    last_metadata jsonb,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON {schema}.post_scan_jobs (due_at);
