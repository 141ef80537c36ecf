-- The previous name of write_trial; to be deleted one release later.
CREATE OR REPLACE FUNCTION service.write(
  p_trial int, p_token bigint,
  p_names text[] DEFAULT NULL, p_params float8[] DEFAULT NULL,
  p_distributions text[] DEFAULT NULL,
  p_user_keys text[] DEFAULT NULL, p_user_values text[] DEFAULT NULL,
  p_system_keys text[] DEFAULT NULL, p_system_values text[] DEFAULT NULL,
  p_steps int[] DEFAULT NULL, p_reported float8[] DEFAULT NULL, p_kinds text[] DEFAULT NULL,
  p_study int DEFAULT NULL, p_after int DEFAULT NULL, p_known int[] DEFAULT NULL,
  p_shapes bigint[] DEFAULT NULL)
RETURNS text LANGUAGE sql AS $$
  SELECT service.write_trial(p_trial, p_token, p_names, p_params, p_distributions, p_user_keys,
                             p_user_values, p_system_keys, p_system_values, p_steps, p_reported,
                             p_kinds, p_study, p_after, p_known, p_shapes);
$$;
