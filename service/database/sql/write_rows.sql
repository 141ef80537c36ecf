-- Insert a trial's rows without any check. Callers check the lease or the state first.
CREATE OR REPLACE FUNCTION service.write_rows(
  p_trial int,
  p_names text[], p_params float8[], p_distributions text[],
  p_user_keys text[], p_user_values text[], p_system_keys text[], p_system_values text[],
  p_steps int[], p_reported float8[], p_kinds text[])
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF p_names IS NOT NULL THEN
    INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)
    SELECT p_trial, n, v, d
      FROM unnest(p_names, p_params, p_distributions) WITH ORDINALITY AS new (n, v, d, place)
     ORDER BY place
    ON CONFLICT (trial_id, param_name) DO NOTHING;
  END IF;
  IF p_user_keys IS NOT NULL THEN
    INSERT INTO trial_user_attributes (trial_id, key, value_json)
    SELECT p_trial, k, v FROM unnest(p_user_keys, p_user_values) AS new (k, v)
    ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json;
  END IF;
  IF p_system_keys IS NOT NULL THEN
    INSERT INTO trial_system_attributes (trial_id, key, value_json)
    SELECT p_trial, k, v FROM unnest(p_system_keys, p_system_values) AS new (k, v)
    ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json;
  END IF;
  IF p_steps IS NOT NULL THEN
    INSERT INTO trial_intermediate_values
           (trial_id, step, intermediate_value, intermediate_value_type)
    SELECT p_trial, s, v, k::trialintermediatevaluetype
      FROM unnest(p_steps, p_reported, p_kinds) AS new (s, v, k)
    ON CONFLICT (trial_id, step) DO UPDATE
       SET intermediate_value = excluded.intermediate_value,
           intermediate_value_type = excluded.intermediate_value_type;
  END IF;
END $$;
