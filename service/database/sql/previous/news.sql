-- The previous name of read_trials; to be deleted one release later.
CREATE OR REPLACE FUNCTION service.news(
  p_study int, p_after int, p_known int[], p_since bigint, p_depth text, p_limit int)
RETURNS json LANGUAGE sql STABLE AS $$
  SELECT service.read_trials(p_study, p_after, p_known, p_since, p_depth <> 'finished', p_limit);
$$;
