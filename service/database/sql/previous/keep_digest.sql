-- Now store_digest.
CREATE OR REPLACE FUNCTION service.keep_digest(p_trial int)
RETURNS void LANGUAGE sql AS $$
  SELECT service.store_digest(p_trial);
$$;
