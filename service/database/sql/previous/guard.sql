-- The previous name of check_write; to be deleted one release later.
CREATE OR REPLACE FUNCTION service.guard(p_trial int, p_token bigint)
RETURNS text LANGUAGE sql AS $$
  SELECT service.check_write(p_trial, p_token);
$$;
