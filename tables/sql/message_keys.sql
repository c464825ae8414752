-- name: lock_fill
-- How far the keys are filled, locked: one replica at a time.
SELECT filled_to, complete FROM {schema}.message_keys_fill FOR UPDATE

-- name: fill_page
-- Keys for the next $2 rows above id $1, a message_id that is there twice for its lowest id; sorted as every
-- writer of keys sorts, else two would wait for each other. Returns the page's last id, NULL after the last page.
WITH page AS (
    SELECT id, message_id, message_date FROM {schema}.messages WHERE id > $1 ORDER BY id LIMIT $2
), filled AS (
    INSERT INTO {schema}.message_keys (message_id, message_date)
    SELECT message_id, message_date FROM (
        SELECT DISTINCT ON (message_id) message_id, message_date
        FROM page WHERE message_id IS NOT NULL ORDER BY message_id, id
    ) AS lowest
    ORDER BY message_id COLLATE "C"
    ON CONFLICT (message_id) DO NOTHING
)
SELECT max(id) FROM page

-- name: note_fill
-- Remember how far the keys are filled.
UPDATE {schema}.message_keys_fill SET filled_to = $1, complete = $2

-- name: is_complete
-- Whether every row has its key.
SELECT complete FROM {schema}.message_keys_fill

-- name: resume_fill
-- Fill again from where it ended if the newest row has no key: another service has written meanwhile.
UPDATE {schema}.message_keys_fill SET complete = false
WHERE complete AND EXISTS (
    SELECT FROM (SELECT message_id FROM {schema}.messages ORDER BY id DESC LIMIT 1) AS newest
    WHERE newest.message_id IS NOT NULL
      AND NOT EXISTS (SELECT FROM {schema}.message_keys AS k WHERE k.message_id = newest.message_id))
