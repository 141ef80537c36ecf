-- What samplers and pruners need of these trials, each as one JSON array;
-- service/storage/digests.py parses it. space is the key of the trial's parameter space: a hash of
-- its parameters' names and distributions. Of the system attributes only those that TPE reads.
CREATE OR REPLACE FUNCTION service.make_digests(p_trials int[])
RETURNS TABLE (trial_id int, finished boolean, space bigint, digest text)
LANGUAGE sql STABLE AS $$
SELECT t.trial_id, t.state NOT IN ('RUNNING', 'WAITING'), p.space,
       json_build_array(
         t.trial_id, t.number, t.state,
         (SELECT json_agg(coalesce(to_json(v.value), to_json(v.value_type)) ORDER BY v.objective)
            FROM trial_values v WHERE v.trial_id = t.trial_id),
         p.space, p.params, i.steps, i.reported,
         (SELECT json_object_agg(a.key, a.value_json) FROM trial_system_attributes a
           WHERE a.trial_id = t.trial_id
             AND (a.key LIKE 'constraints%'
                  OR a.key LIKE 'tpe:relative_params%' AND t.state = 'RUNNING')))::text
  FROM trials t,
       LATERAL (SELECT array_agg(c.param_value ORDER BY c.param_id) AS params,
                       hashtextextended(string_agg(c.param_name || chr(1) || c.distribution_json,
                                                   chr(2) ORDER BY c.param_id), 0) AS space
                  FROM trial_params c WHERE c.trial_id = t.trial_id) p,
       LATERAL (SELECT array_agg(c.step ORDER BY c.step) AS steps,
                       json_agg(coalesce(to_json(c.intermediate_value),
                                         to_json(c.intermediate_value_type))
                                ORDER BY c.step) AS reported
                  FROM trial_intermediate_values c
                 WHERE c.trial_id = t.trial_id AND t.state NOT IN ('RUNNING', 'WAITING')) i
 WHERE t.trial_id = ANY (p_trials)
$$;
