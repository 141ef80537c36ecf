-- The previous name of store_digest; to be deleted one release later.
CREATE OR REPLACE FUNCTION service.keep_digest(p_trial int)
RETURNS void LANGUAGE sql AS $$
  SELECT service.store_digest(p_trial);
$$;
