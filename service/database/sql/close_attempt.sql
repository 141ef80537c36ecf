-- Record how an attempt ended, and how many epochs it reported.
CREATE OR REPLACE FUNCTION service.close_attempt(
  p_trial int, p_attempt int, p_cause text, p_detail text)
RETURNS void LANGUAGE sql AS $$
  UPDATE service.attempts a
     SET ended_at = clock_timestamp(), cause = p_cause, detail = p_detail,
         epochs = (SELECT count(*) FROM trial_intermediate_values v
                    WHERE v.trial_id = p_trial AND v.step >= a.first_epoch)
   WHERE a.trial_id = p_trial AND a.attempt = p_attempt AND a.ended_at IS NULL;
$$;
