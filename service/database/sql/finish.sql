-- End a trial that nobody has leased.
CREATE OR REPLACE FUNCTION service.finish(
  p_trial int, p_state text, p_values float8[] DEFAULT NULL, p_value_kinds text[] DEFAULT NULL)
RETURNS json LANGUAGE plpgsql AS $$
DECLARE
  now_in trialstate;
BEGIN
  SELECT state INTO now_in FROM trials WHERE trial_id = p_trial FOR UPDATE;
  IF now_in IS NULL OR now_in NOT IN ('RUNNING', 'WAITING') THEN
    RETURN json_build_array(CASE WHEN now_in IS NULL THEN 'missing' ELSE 'finished' END);
  END IF;
  RETURN json_build_array('ok', service.end_trial(p_trial, p_state, p_values, p_value_kinds));
END $$;
