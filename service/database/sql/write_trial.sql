-- Write parameters, attributes and reports of one trial. A JSON array: the verdict of check_write;
-- for a leased trial the study's orders (stop reason, whether its time is over); if p_study is
-- given, the digests of trials that have finished since, as read_digests returns them.
CREATE OR REPLACE FUNCTION service.write_trial(
  p_trial int, p_token bigint,
  p_names text[] DEFAULT NULL, p_params float8[] DEFAULT NULL,
  p_distributions text[] DEFAULT NULL,
  p_user_keys text[] DEFAULT NULL, p_user_values text[] DEFAULT NULL,
  p_system_keys text[] DEFAULT NULL, p_system_values text[] DEFAULT NULL,
  p_steps int[] DEFAULT NULL, p_reported float8[] DEFAULT NULL, p_kinds text[] DEFAULT NULL,
  p_study int DEFAULT NULL, p_after int DEFAULT NULL, p_known int[] DEFAULT NULL,
  p_spaces bigint[] DEFAULT NULL)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  verdict text := service.check_write(p_trial, p_token);
  orders json;
  news text;
BEGIN
  IF verdict <> 'ok' THEN
    RETURN json_build_array(verdict);
  END IF;
  PERFORM service.write_rows(p_trial, p_names, p_params, p_distributions, p_user_keys,
                             p_user_values, p_system_keys, p_system_values, p_steps,
                             p_reported, p_kinds);
  IF p_names IS NOT NULL AND (
      p_token IS NOT NULL OR EXISTS (SELECT FROM service.digests WHERE trial_id = p_trial)) THEN
    PERFORM service.store_digest(p_trial);
  END IF;
  IF p_token IS NOT NULL THEN
    SELECT json_build_array(s.stop_reason, coalesce(s.deadline <= clock_timestamp(), false))
      INTO orders
      FROM service.leases l JOIN service.studies s USING (study_id) WHERE l.trial_id = p_trial;
  END IF;
  IF p_study IS NOT NULL THEN
    news := service.read_digests(p_study, p_after, p_known, 0, false, p_spaces, 2000);
  END IF;
  RETURN concat('["ok",', coalesce(orders::text, 'null'), ',', coalesce(news, 'null'), ']');
END $$;
