-- The previous name of end_trial; to be deleted one release later.
CREATE OR REPLACE FUNCTION service.settle(
  p_trial int, p_state text, p_values float8[], p_value_kinds text[])
RETURNS float8 LANGUAGE sql AS $$
  SELECT service.end_trial(p_trial, p_state, p_values, p_value_kinds);
$$;
