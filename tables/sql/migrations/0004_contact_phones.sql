-- auto-migrate only
-- Phones compare cleaned, but are stored as sent: the look-up needs the cleaned form.
SELECT {schema}.index_now_or_later(
    'contacts', 'contacts_cleaned_phone', '', false, $keys$translate(phone_number, '+ ()', '')$keys$);
