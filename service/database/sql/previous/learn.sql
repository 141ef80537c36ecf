-- The previous name of read_digests; to be deleted one release later.
CREATE OR REPLACE FUNCTION service.learn(
  p_study int, p_after int, p_known int[], p_since bigint, p_running boolean, p_shapes bigint[],
  p_limit int)
RETURNS text LANGUAGE sql STABLE AS $$
  SELECT service.read_digests(p_study, p_after, p_known, p_since, p_running, p_shapes, p_limit);
$$;
