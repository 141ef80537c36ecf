-- Change WAITING to RUNNING for one caller only, and write the values, if any are given. A JSON
-- array: 'ok', 'missing', 'running' or 'finished'; whether the trial began at p_start. A caller
-- whose first answer got lost knows by that time that the trial is its own.
CREATE OR REPLACE FUNCTION service.begin_enqueued(
  p_trial int, p_start timestamp,
  p_values float8[] DEFAULT NULL, p_value_kinds text[] DEFAULT NULL)
RETURNS json LANGUAGE plpgsql AS $$
DECLARE
  now_in trialstate;
  began timestamp;
BEGIN
  SELECT state, datetime_start INTO now_in, began
    FROM trials WHERE trial_id = p_trial FOR UPDATE;
  IF now_in IN ('RUNNING', 'WAITING') THEN
    PERFORM service.write_values(p_trial, p_values, p_value_kinds);
  END IF;
  IF now_in = 'WAITING' THEN
    UPDATE trials SET state = 'RUNNING', datetime_start = p_start WHERE trial_id = p_trial;
    RETURN json_build_array('ok', true);
  END IF;
  RETURN json_build_array(CASE WHEN now_in IS NULL THEN 'missing'
                               WHEN now_in = 'RUNNING' THEN 'running' ELSE 'finished' END,
                          coalesce(began = p_start, false));
END $$;
