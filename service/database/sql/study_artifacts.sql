-- What a study has in the artifact store: names of folders and files. Deletion, `du` and `gc` ask
-- here, and nowhere else; another kind of artifact is added here.
CREATE OR REPLACE FUNCTION service.study_artifacts(p_study int)
RETURNS text[] LANGUAGE sql STABLE AS $$
  SELECT 'checkpoints/' || uid
         || ARRAY(SELECT 'models/' || artifact_id FROM service.models WHERE study_id = p_study)
    FROM service.studies WHERE study_id = p_study
$$;
