-- News for a reader of whole trials; service/storage/news.py says why no news is missed.
-- With p_running: all trials. Without: finished trials, and the ids of new unfinished ones.
-- A JSON array: the horizon, the number of new trials, the id of the last one, the ids of new
-- unfinished trials, documents.
-- STABLE: all statements of this function see the caller's one snapshot.
CREATE OR REPLACE FUNCTION service.read_trials(
  p_study int, p_after int, p_known int[], p_since bigint, p_running boolean, p_limit int)
RETURNS json LANGUAGE plpgsql STABLE AS $$
DECLARE
  horizon bigint := pg_snapshot_xmin(pg_current_snapshot())::text::bigint;
  reach int := CASE WHEN p_since > horizon OR horizon - p_since > 1000000000
                    THEN 2147483647 ELSE age(mod(p_since, 4294967296)::text::xid) END;
  created int[];
  unfinished int[];
  chosen int[];
BEGIN
  IF NOT EXISTS (SELECT FROM studies WHERE study_id = p_study) THEN
    RETURN NULL;
  END IF;
  created := ARRAY(SELECT trial_id FROM trials WHERE study_id = p_study AND trial_id > p_after
                    ORDER BY trial_id LIMIT p_limit);
  IF p_running THEN
    chosen := created || ARRAY(
      SELECT t.trial_id FROM trials t
       WHERE t.trial_id = ANY (p_known)
         AND (age(t.xmin) <= reach OR (t.state = 'RUNNING' AND (
           EXISTS (SELECT FROM trial_params c
                    WHERE c.trial_id = t.trial_id AND age(c.xmin) <= reach)
           OR EXISTS (SELECT FROM trial_system_attributes c
                       WHERE c.trial_id = t.trial_id AND age(c.xmin) <= reach)
           OR EXISTS (SELECT FROM trial_intermediate_values c
                       WHERE c.trial_id = t.trial_id AND age(c.xmin) <= reach)
           OR EXISTS (SELECT FROM trial_user_attributes c
                       WHERE c.trial_id = t.trial_id AND age(c.xmin) <= reach)))));
  ELSE
    IF created <> '{}' THEN
      unfinished := ARRAY(SELECT trial_id FROM trials
                           WHERE trial_id = ANY (created) AND state IN ('RUNNING', 'WAITING'));
    END IF;
    chosen := ARRAY(SELECT trial_id FROM trials
                     WHERE trial_id = ANY (created || p_known)
                       AND state NOT IN ('RUNNING', 'WAITING'));
  END IF;
  RETURN json_build_array(
    horizon, cardinality(created), created[cardinality(created)], unfinished,
    CASE WHEN chosen <> '{}' THEN service.documents(chosen) END);
END $$;
