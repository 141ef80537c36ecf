-- Whole trials, each as one JSON array; service/storage/rows.py parses it. Before the trials stand
-- their parameter spaces, each once under its key: the names and distributions of a trial's
-- parameters. Most trials of a study have the same space, and it is most of a trial's text.
CREATE OR REPLACE FUNCTION service.documents(p_trials int[])
RETURNS json LANGUAGE plpgsql STABLE AS $$
BEGIN
  RETURN (
    WITH spaced AS MATERIALIZED (
      SELECT trial_id, array_agg(param_value ORDER BY param_id) AS params,
             hashtextextended(string_agg(param_name || chr(1) || distribution_json, chr(2)
                                         ORDER BY param_id), 0)::text AS space
        FROM trial_params WHERE trial_id = ANY (p_trials) GROUP BY trial_id)
    SELECT json_build_array(
      (SELECT json_object_agg(space, (
                SELECT json_agg(json_build_array(p.param_name, p.distribution_json)
                                ORDER BY p.param_id)
                  FROM trial_params p WHERE p.trial_id = example.trial_id))
         FROM (SELECT DISTINCT ON (space) space, trial_id FROM spaced) example),
      (SELECT json_agg(json_build_array(
          t.trial_id, t.number, t.state,
          extract(epoch FROM t.datetime_start), extract(epoch FROM t.datetime_complete),
          (SELECT json_agg(coalesce(to_json(v.value), to_json(v.value_type))
                           ORDER BY v.objective)
             FROM trial_values v WHERE v.trial_id = t.trial_id),
          s.space, s.params,
          (SELECT json_object_agg(a.key, a.value_json)
             FROM trial_user_attributes a WHERE a.trial_id = t.trial_id),
          (SELECT json_object_agg(a.key, a.value_json)
             FROM trial_system_attributes a WHERE a.trial_id = t.trial_id),
          (SELECT json_object_agg(i.step, coalesce(to_json(i.intermediate_value),
                                                   to_json(i.intermediate_value_type)))
             FROM trial_intermediate_values i WHERE i.trial_id = t.trial_id)))
         FROM (SELECT * FROM trials WHERE trial_id = ANY (p_trials) ORDER BY trial_id) t
              LEFT JOIN spaced s USING (trial_id))));
END $$;
