-- auto-migrate only
-- Phones compare cleaned, but are stored as sent (contract 5.2, OC16): the look-up needs the cleaned form.
CREATE INDEX IF NOT EXISTS contacts_agent_cleaned_phone
    ON {schema}.contacts (agent_id, translate(phone_number, '+ ()', ''));
