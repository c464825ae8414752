-- The incarnation of the stream that a step came from, 0 where it is not known: versions of one incarnation compare by
-- sequence. A replica of the release before goes on: its statements name their columns.
ALTER TABLE {schema}.chat_steps ADD COLUMN incarnation bigint NOT NULL DEFAULT 0;
