-- Now begin_enqueued.
CREATE OR REPLACE FUNCTION service.begin_waiting(p_trial int)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  now_in trialstate;
BEGIN
  SELECT state INTO now_in FROM trials WHERE trial_id = p_trial FOR NO KEY UPDATE;
  IF now_in = 'WAITING' THEN
    UPDATE trials
       SET state = 'RUNNING', datetime_start = clock_timestamp() AT TIME ZONE 'UTC'
     WHERE trial_id = p_trial;
    RETURN 'ok';
  END IF;
  RETURN CASE WHEN now_in IS NULL THEN 'missing'
              WHEN now_in = 'RUNNING' THEN 'running' ELSE 'finished' END;
END $$;
