-- The previous name of delete_reports; to be deleted one release later.
CREATE OR REPLACE FUNCTION service.forget(p_trial int, p_token bigint, p_step int)
RETURNS text LANGUAGE sql AS $$
  SELECT service.delete_reports(p_trial, p_token, p_step);
$$;
