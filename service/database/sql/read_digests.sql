-- News for a reader of digests; service/storage/news.py says why no news is missed. Digests of
-- finished trials and, with p_running, of running trials that have new parameters, and of trials
-- that wait again. A JSON array:
-- the horizon, the number of new trials, the id of the last one, the ids of new unfinished trials,
-- the parameter spaces that are not among p_spaces, digests.
-- STABLE: all statements of this function see the caller's one snapshot.
-- The joins name the ids twice: else a plan made for empty tables reads all digests by their index.
CREATE OR REPLACE FUNCTION service.read_digests(
  p_study int, p_after int, p_known int[], p_since bigint, p_running boolean, p_spaces bigint[],
  p_limit int)
RETURNS text LANGUAGE plpgsql STABLE AS $$
DECLARE
  horizon bigint := pg_snapshot_xmin(pg_current_snapshot())::text::bigint;
  reach int := CASE WHEN p_since > horizon OR horizon - p_since > 1000000000
                    THEN 2147483647 ELSE age(mod(p_since, 4294967296)::text::xid) END;
  created int[];
  unfinished int[];
  chosen int[];
  spaces bigint[];
  digests text[];
  missing int[];
  described text;
BEGIN
  IF NOT EXISTS (SELECT FROM studies WHERE study_id = p_study) THEN
    RETURN NULL;
  END IF;
  created := ARRAY(SELECT trial_id FROM trials WHERE study_id = p_study AND trial_id > p_after
                    ORDER BY trial_id LIMIT p_limit);
  IF created <> '{}' THEN
    unfinished := ARRAY(SELECT trial_id FROM trials
                         WHERE trial_id = ANY (created) AND state IN ('RUNNING', 'WAITING'));
  END IF;
  IF p_running THEN
    SELECT array_agg(t.trial_id), array_agg(d.shape), array_agg(d.digest),
           array_agg(t.trial_id) FILTER (WHERE d.trial_id IS NULL)
      INTO chosen, spaces, digests, missing
      FROM trials t LEFT JOIN service.digests d
           ON d.trial_id = t.trial_id AND d.finished = (t.state NOT IN ('RUNNING', 'WAITING'))
              AND t.state <> 'WAITING' AND d.trial_id = ANY (created || p_known)
     WHERE t.trial_id = ANY (created || p_known)
       AND CASE WHEN t.state = 'WAITING'
                THEN t.trial_id = ANY (p_known) AND age(t.xmin) <= reach
                WHEN t.state <> 'RUNNING' THEN true
                WHEN d.trial_id IS NOT NULL THEN least(age(d.xmin), age(t.xmin)) <= reach
                ELSE EXISTS (SELECT FROM trial_params c
                              WHERE c.trial_id = t.trial_id
                                AND least(age(c.xmin), age(t.xmin)) <= reach)
                     OR EXISTS (SELECT FROM trial_system_attributes c
                                 WHERE c.trial_id = t.trial_id
                                   AND least(age(c.xmin), age(t.xmin)) <= reach) END;
  ELSE
    SELECT array_agg(t.trial_id), array_agg(d.shape), array_agg(d.digest),
           array_agg(t.trial_id) FILTER (WHERE d.trial_id IS NULL)
      INTO chosen, spaces, digests, missing
      FROM trials t LEFT JOIN service.digests d
           ON d.trial_id = t.trial_id AND d.finished AND d.trial_id = ANY (created || p_known)
     WHERE t.trial_id = ANY (created || p_known) AND t.state NOT IN ('RUNNING', 'WAITING');
  END IF;
  IF missing IS NOT NULL THEN
    SELECT chosen || array_agg(trial_id), spaces || array_agg(space), digests || array_agg(digest)
      INTO chosen, spaces, digests FROM service.make_digests(missing);
  END IF;
  IF NOT array_remove(spaces, NULL) <@ p_spaces THEN
    SELECT json_object_agg(example.space, (
             SELECT json_agg(json_build_array(p.param_name, p.distribution_json)
                             ORDER BY p.param_id)
               FROM trial_params p WHERE p.trial_id = example.trial_id))
      INTO described
      FROM (SELECT DISTINCT ON (space) space, trial_id
              FROM unnest(spaces, chosen) AS u (space, trial_id)
             WHERE space IS NOT NULL AND space <> ALL (p_spaces)) example;
  END IF;
  RETURN concat('[', horizon, ',', cardinality(created), ',',
                coalesce(created[cardinality(created)]::text, 'null'), ',',
                coalesce(array_to_json(unfinished)::text, 'null'), ',',
                coalesce(described, 'null'), ',[', array_to_string(digests, ','), ']]');
END $$;
