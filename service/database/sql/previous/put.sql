-- The previous name of write_rows; to be deleted one release later.
CREATE OR REPLACE FUNCTION service.put(
  p_trial int,
  p_names text[], p_params float8[], p_distributions text[],
  p_user_keys text[], p_user_values text[], p_system_keys text[], p_system_values text[],
  p_steps int[], p_reported float8[], p_kinds text[])
RETURNS void LANGUAGE sql AS $$
  SELECT service.write_rows(p_trial, p_names, p_params, p_distributions, p_user_keys,
                            p_user_values, p_system_keys, p_system_values, p_steps, p_reported,
                            p_kinds);
$$;
