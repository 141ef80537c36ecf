-- Withdraw candidates of a confirmation: note why in the study's system attributes, and end those
-- of their trials that nobody has begun. These count as begun, so that the budget stays exact.
-- Every claim locks the study's row too, so no worker takes one of them meanwhile. Returns how many
-- have ended; a repeated call ends none.
CREATE OR REPLACE FUNCTION service.withdraw(p_study int, p_sources int[], p_reasons text[])
RETURNS int LANGUAGE plpgsql AS $$
DECLARE
  trial int;
  ended int := 0;
BEGIN
  PERFORM FROM service.studies WHERE study_id = p_study FOR UPDATE;
  INSERT INTO study_system_attributes (study_id, key, value_json)
  SELECT p_study, 'studyhall:withdrawn:' || source, reason
    FROM unnest(p_sources, p_reasons) AS new (source, reason)
  ON CONFLICT (study_id, key) DO NOTHING;
  FOR trial IN
    SELECT t.trial_id FROM trials t JOIN trial_system_attributes a USING (trial_id)
     WHERE t.study_id = p_study AND t.state = 'WAITING' AND a.key = 'studyhall:source'
       AND a.value_json::int = ANY (p_sources)
     ORDER BY t.trial_id FOR UPDATE OF t
  LOOP
    INSERT INTO trial_system_attributes (trial_id, key, value_json)
    VALUES (trial, 'studyhall:withdrawn', 'true');
    -- Optuna expects that a finished trial has begun.
    UPDATE trials SET datetime_start = clock_timestamp() AT TIME ZONE 'UTC'
     WHERE trial_id = trial;
    PERFORM service.end_trial(trial, 'PRUNED', NULL, NULL);
    ended := ended + 1;
  END LOOP;
  UPDATE service.studies SET n_claimed = n_claimed + ended WHERE study_id = p_study;
  RETURN ended;
END $$;
