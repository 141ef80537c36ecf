-- Write a trial's values without any check; p_values may be null.
CREATE OR REPLACE FUNCTION service.write_values(
  p_trial int, p_values float8[], p_value_kinds text[])
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF p_values IS NOT NULL THEN
    INSERT INTO trial_values (trial_id, objective, value, value_type)
    SELECT p_trial, place - 1, v, k::trialvaluetype
      FROM unnest(p_values, p_value_kinds) WITH ORDINALITY AS new (v, k, place)
    ON CONFLICT (trial_id, objective) DO UPDATE
       SET value = excluded.value, value_type = excluded.value_type;
  END IF;
END $$;
