-- When events were given up once more after their row had been resolved; never published. The table of the existing service has
-- no column for it. No foreign key: that table may be an adopted one without a primary key.
CREATE TABLE {schema}.exhausted_reopened (
    exhausted_id bigint PRIMARY KEY,
    reopened_at timestamptz NOT NULL
);
