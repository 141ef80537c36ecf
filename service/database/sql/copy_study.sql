-- Copy a study under a new name, with all its trials and attempts; returns the copy's id. Its uid
-- is new, so it shares no checkpoint with the original. Trials that run are interrupted in the copy.
-- Call it in a transaction of isolation level REPEATABLE READ: the original may be worked on.
-- Rows of our own tables pass through jsonb, so that a column that is added later is copied too.
CREATE OR REPLACE FUNCTION service.copy_study(p_study int, p_name text)
RETURNS int LANGUAGE plpgsql AS $$
DECLARE
  made int;
  old int[] := ARRAY(SELECT trial_id FROM trials WHERE study_id = p_study ORDER BY trial_id);
  new int[];
BEGIN
  INSERT INTO studies (study_name) VALUES (p_name) RETURNING study_id INTO made;
  INSERT INTO study_directions (study_id, objective, direction)
  SELECT made, objective, direction FROM study_directions WHERE study_id = p_study;
  INSERT INTO study_user_attributes (study_id, key, value_json)
  SELECT made, key, value_json FROM study_user_attributes WHERE study_id = p_study;
  INSERT INTO study_system_attributes (study_id, key, value_json)
  SELECT made, key, value_json FROM study_system_attributes WHERE study_id = p_study;
  INSERT INTO service.studies
  SELECT copied.*
    FROM service.studies s,
         jsonb_populate_record(NULL::service.studies, to_jsonb(s) || jsonb_build_object(
           'study_id', made, 'uid', gen_random_uuid(), 'created_at', now())) copied
   WHERE s.study_id = p_study;

  new := ARRAY(SELECT nextval(pg_get_serial_sequence('trials', 'trial_id'))
                 FROM generate_series(1, cardinality(old)));
  INSERT INTO trials (trial_id, study_id, number, state, datetime_start, datetime_complete)
  SELECT ids.new_id, made, t.number, t.state, t.datetime_start, t.datetime_complete
    FROM unnest(old, new) AS ids (old_id, new_id) JOIN trials t ON t.trial_id = ids.old_id;
  INSERT INTO trial_values (trial_id, objective, value, value_type)
  SELECT ids.new_id, v.objective, v.value, v.value_type
    FROM unnest(old, new) AS ids (old_id, new_id) JOIN trial_values v ON v.trial_id = ids.old_id;
  INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)
  SELECT ids.new_id, p.param_name, p.param_value, p.distribution_json
    FROM unnest(old, new) AS ids (old_id, new_id) JOIN trial_params p ON p.trial_id = ids.old_id
   ORDER BY p.param_id;  -- a trial's parameters keep their order
  INSERT INTO trial_user_attributes (trial_id, key, value_json)
  SELECT ids.new_id, a.key, a.value_json
    FROM unnest(old, new) AS ids (old_id, new_id)
    JOIN trial_user_attributes a ON a.trial_id = ids.old_id;
  INSERT INTO trial_system_attributes (trial_id, key, value_json)
  SELECT ids.new_id, a.key, a.value_json
    FROM unnest(old, new) AS ids (old_id, new_id)
    JOIN trial_system_attributes a ON a.trial_id = ids.old_id
   WHERE NOT EXISTS (SELECT FROM service.models m WHERE a.key = 'artifacts:' || m.artifact_id);
  INSERT INTO trial_intermediate_values
         (trial_id, step, intermediate_value, intermediate_value_type)
  SELECT ids.new_id, i.step, i.intermediate_value, i.intermediate_value_type
    FROM unnest(old, new) AS ids (old_id, new_id)
    JOIN trial_intermediate_values i ON i.trial_id = ids.old_id;

  INSERT INTO service.attempts
  SELECT copied.*
    FROM unnest(old, new) AS ids (old_id, new_id)
    JOIN service.attempts a ON a.trial_id = ids.old_id,
         jsonb_populate_record(NULL::service.attempts, to_jsonb(a) || jsonb_build_object(
           'study_id', made, 'trial_id', ids.new_id)) copied;
  -- The copy's test set is the same one: it has been opened as often.
  INSERT INTO service.openings (study_id, number, sha256, who, opened_at, result)
  SELECT made, number, sha256, who, opened_at, result
    FROM service.openings WHERE study_id = p_study ORDER BY opening_id;
  PERFORM service.interrupt_begun(made);
  RETURN made;
END $$;
