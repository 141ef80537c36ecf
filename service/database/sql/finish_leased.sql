-- End a leased trial, its lease and its attempt. Count failures of the objective's code
-- (p_failure_reason is set) until a trial is complete or pruned, and stop the study at
-- p_failure_limit. Other failures (NaN, out of memory) neither count nor end the row: they do not
-- show that the code works.
-- A repeated call, whose first answer got lost on its way, returns the same answer.
CREATE OR REPLACE FUNCTION service.finish_leased(
  p_trial int, p_token bigint, p_attempt int, p_state text,
  p_values float8[], p_value_kinds text[], p_cause text, p_detail text,
  p_failure_limit int, p_failure_reason text,
  p_names text[] DEFAULT NULL, p_params float8[] DEFAULT NULL,
  p_distributions text[] DEFAULT NULL,
  p_user_keys text[] DEFAULT NULL, p_user_values text[] DEFAULT NULL,
  p_system_keys text[] DEFAULT NULL, p_system_values text[] DEFAULT NULL)
RETURNS json LANGUAGE plpgsql AS $$
DECLARE
  study int;
  now_in trialstate;
  ended float8;
BEGIN
  DELETE FROM service.leases WHERE trial_id = p_trial AND token = p_token
  RETURNING study_id INTO study;
  SELECT state, extract(epoch FROM datetime_complete) INTO now_in, ended
    FROM trials WHERE trial_id = p_trial FOR UPDATE;
  IF study IS NULL THEN
    RETURN CASE WHEN now_in = p_state::trialstate AND EXISTS (
             SELECT FROM service.attempts
              WHERE trial_id = p_trial AND attempt = p_attempt AND ended_at IS NOT NULL
                AND cause IS NOT DISTINCT FROM p_cause)
           THEN json_build_array('ok', ended) ELSE json_build_array('stale') END;
  END IF;
  PERFORM service.close_attempt(p_trial, p_attempt, p_cause, p_detail);
  IF now_in IS NULL OR now_in NOT IN ('RUNNING', 'WAITING') THEN
    RETURN json_build_array(CASE WHEN now_in IS NULL THEN 'missing' ELSE 'finished' END);
  END IF;
  PERFORM service.write_rows(p_trial, p_names, p_params, p_distributions, p_user_keys,
                             p_user_values, p_system_keys, p_system_values, NULL, NULL, NULL);
  ended := service.end_trial(p_trial, p_state, p_values, p_value_kinds);
  UPDATE service.studies
     SET failures = CASE WHEN p_failure_reason IS NULL THEN 0 ELSE failures + 1 END,
         stop_reason = CASE WHEN p_failure_reason IS NOT NULL AND failures + 1 >= p_failure_limit
                            THEN coalesce(stop_reason, p_failure_reason) ELSE stop_reason END
   WHERE study_id = study
     AND (p_failure_reason IS NOT NULL OR failures > 0 AND p_state IN ('COMPLETE', 'PRUNED'));
  RETURN json_build_array('ok', ended);
END $$;
