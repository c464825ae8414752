-- auto-migrate only
-- Phones compare cleaned, but are stored as sent (contract 5.2, OC16): the look-up needs the cleaned form.
CREATE INDEX IF NOT EXISTS contacts_cleaned_phone ON {schema}.contacts (translate(phone_number, '+ ()', ''));
