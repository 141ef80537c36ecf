-- Write a trial's values and final state without any check; returns the time at which it ended.
CREATE OR REPLACE FUNCTION service.end_trial(
  p_trial int, p_state text, p_values float8[], p_value_kinds text[])
RETURNS float8 LANGUAGE plpgsql AS $$
DECLARE
  ended timestamptz := clock_timestamp();
BEGIN
  IF p_values IS NOT NULL THEN
    INSERT INTO trial_values (trial_id, objective, value, value_type)
    SELECT p_trial, place - 1, v, k::trialvaluetype
      FROM unnest(p_values, p_value_kinds) WITH ORDINALITY AS new (v, k, place)
    ON CONFLICT (trial_id, objective) DO UPDATE
       SET value = excluded.value, value_type = excluded.value_type;
  END IF;
  UPDATE trials
     SET state = p_state::trialstate,
         datetime_complete = CASE WHEN p_state = 'WAITING' THEN datetime_complete
                                  ELSE ended AT TIME ZONE 'UTC' END
   WHERE trial_id = p_trial;
  PERFORM service.store_digest(p_trial);
  RETURN extract(epoch FROM ended);
END $$;
