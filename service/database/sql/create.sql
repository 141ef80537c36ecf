-- Create as many trials as p_states has elements. The *_of arrays give, for each row, the position
-- (from 1) of its trial. Trials are numbered under the lock on Optuna's row of the study, as
-- Optuna numbers its own: numbers have no gaps, and ids become visible in ascending order.
-- A JSON array: the first trial's number, the ids, the time of creation.
CREATE OR REPLACE FUNCTION service.create(
  p_study int,
  p_states text[] DEFAULT '{RUNNING}',
  p_starts timestamp[] DEFAULT NULL, p_ends timestamp[] DEFAULT NULL,
  p_value_of int[] DEFAULT NULL, p_objectives int[] DEFAULT NULL, p_values float8[] DEFAULT NULL,
  p_value_kinds text[] DEFAULT NULL,
  p_param_of int[] DEFAULT NULL, p_names text[] DEFAULT NULL, p_params float8[] DEFAULT NULL,
  p_distributions text[] DEFAULT NULL,
  p_user_of int[] DEFAULT NULL, p_user_keys text[] DEFAULT NULL,
  p_user_values text[] DEFAULT NULL,
  p_system_of int[] DEFAULT NULL, p_system_keys text[] DEFAULT NULL,
  p_system_values text[] DEFAULT NULL,
  p_step_of int[] DEFAULT NULL, p_steps int[] DEFAULT NULL, p_reported float8[] DEFAULT NULL,
  p_kinds text[] DEFAULT NULL)
RETURNS json LANGUAGE plpgsql AS $$
DECLARE
  ids int[];
  first int;
  began float8 := extract(epoch FROM clock_timestamp());
BEGIN
  PERFORM FROM studies WHERE study_id = p_study FOR UPDATE;
  IF NOT FOUND THEN
    RETURN NULL;
  END IF;
  SELECT coalesce((SELECT number + 1 FROM trials WHERE study_id = p_study
                    ORDER BY trial_id DESC LIMIT 1), 0) INTO first;
  began := extract(epoch FROM clock_timestamp());
  ids := ARRAY(SELECT nextval(pg_get_serial_sequence('trials', 'trial_id'))
                 FROM generate_series(1, cardinality(p_states)));
  INSERT INTO trials (trial_id, study_id, number, state, datetime_start, datetime_complete)
  SELECT ids[place], p_study, first + place - 1, new.state::trialstate,
         CASE WHEN p_starts IS NULL THEN to_timestamp(began) AT TIME ZONE 'UTC'
              ELSE p_starts[place] END,
         p_ends[place]
    FROM unnest(p_states) WITH ORDINALITY AS new (state, place);
  IF p_value_of IS NOT NULL THEN
    INSERT INTO trial_values (trial_id, objective, value, value_type)
    SELECT ids[place], o, v, k::trialvaluetype
      FROM unnest(p_value_of, p_objectives, p_values, p_value_kinds) AS new (place, o, v, k);
  END IF;
  IF p_param_of IS NOT NULL THEN
    INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)
    SELECT ids[place], n, v, d
      FROM unnest(p_param_of, p_names, p_params, p_distributions)
           WITH ORDINALITY AS new (place, n, v, d, line)
     ORDER BY line;
  END IF;
  IF p_user_of IS NOT NULL THEN
    INSERT INTO trial_user_attributes (trial_id, key, value_json)
    SELECT ids[place], k, v
      FROM unnest(p_user_of, p_user_keys, p_user_values) AS new (place, k, v);
  END IF;
  IF p_system_of IS NOT NULL THEN
    INSERT INTO trial_system_attributes (trial_id, key, value_json)
    SELECT ids[place], k, v
      FROM unnest(p_system_of, p_system_keys, p_system_values) AS new (place, k, v);
  END IF;
  IF p_step_of IS NOT NULL THEN
    INSERT INTO trial_intermediate_values
           (trial_id, step, intermediate_value, intermediate_value_type)
    SELECT ids[place], s, v, k::trialintermediatevaluetype
      FROM unnest(p_step_of, p_steps, p_reported, p_kinds) AS new (place, s, v, k);
  END IF;
  RETURN json_build_array(first, ids, began);
END $$;
