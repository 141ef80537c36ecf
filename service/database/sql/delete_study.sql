-- Delete a study and all its rows, Optuna's and ours, one statement for each table. If plain Optuna
-- has deleted its own rows, ours are deleted. What the study had in the artifact store is noted in
-- service.deletions, in the same transaction: whoever removes these files may be killed before.
CREATE OR REPLACE FUNCTION service.delete_study(p_study int)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
  ids int[];
BEGIN
  PERFORM FROM studies WHERE study_id = p_study FOR UPDATE;
  IF NOT FOUND AND NOT EXISTS (SELECT FROM service.studies WHERE study_id = p_study) THEN
    RETURN false;
  END IF;
  INSERT INTO service.deletions (study_name, artifacts)
  SELECT (SELECT study_name FROM studies WHERE study_id = p_study),
         service.study_artifacts(p_study)
    FROM service.studies WHERE study_id = p_study;
  ids := ARRAY(SELECT trial_id FROM trials WHERE study_id = p_study FOR UPDATE);
  DELETE FROM trial_values WHERE trial_id = ANY (ids);
  DELETE FROM trial_params WHERE trial_id = ANY (ids);
  DELETE FROM trial_intermediate_values WHERE trial_id = ANY (ids);
  DELETE FROM trial_user_attributes WHERE trial_id = ANY (ids);
  DELETE FROM trial_system_attributes WHERE trial_id = ANY (ids);
  DELETE FROM trial_heartbeats WHERE trial_id = ANY (ids);
  DELETE FROM trials WHERE study_id = p_study;
  DELETE FROM study_directions WHERE study_id = p_study;
  DELETE FROM study_user_attributes WHERE study_id = p_study;
  DELETE FROM study_system_attributes WHERE study_id = p_study;
  DELETE FROM studies WHERE study_id = p_study;
  DELETE FROM service.digests
   WHERE trial_id = ANY (ids || ARRAY(SELECT trial_id FROM service.attempts
                                       WHERE study_id = p_study));
  DELETE FROM service.leases WHERE study_id = p_study;
  DELETE FROM service.attempts WHERE study_id = p_study;
  DELETE FROM service.models WHERE study_id = p_study;
  DELETE FROM service.openings WHERE study_id = p_study;
  DELETE FROM service.workers WHERE study_id = p_study;
  DELETE FROM service.studies WHERE study_id = p_study;
  RETURN true;
END $$;
