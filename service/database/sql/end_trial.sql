-- Write a trial's values and final state without any check; returns the time at which it ended.
CREATE OR REPLACE FUNCTION service.end_trial(
  p_trial int, p_state text, p_values float8[], p_value_kinds text[])
RETURNS float8 LANGUAGE plpgsql AS $$
DECLARE
  ended timestamptz := clock_timestamp();
BEGIN
  PERFORM service.write_values(p_trial, p_values, p_value_kinds);
  UPDATE trials
     SET state = p_state::trialstate,
         datetime_complete = CASE WHEN p_state = 'WAITING' THEN datetime_complete
                                  ELSE ended AT TIME ZONE 'UTC' END
   WHERE trial_id = p_trial;
  IF p_state = 'WAITING' THEN
    DELETE FROM service.digests WHERE trial_id = p_trial;
  ELSE
    PERFORM service.store_digest(p_trial);
  END IF;
  RETURN extract(epoch FROM ended);
END $$;
