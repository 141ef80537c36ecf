-- Now check_write.
CREATE OR REPLACE FUNCTION service.guard(p_trial int, p_token bigint)
RETURNS text LANGUAGE sql AS $$
  SELECT service.check_write(p_trial, p_token);
$$;
