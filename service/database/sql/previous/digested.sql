-- The previous name of make_digests; to be deleted one release later.
CREATE OR REPLACE FUNCTION service.digested(p_trials int[])
RETURNS TABLE (trial_id int, finished boolean, shape bigint, digest text)
LANGUAGE sql STABLE AS $$
  SELECT * FROM service.make_digests(p_trials);
$$;
