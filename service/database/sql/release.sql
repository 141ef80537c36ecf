-- Give an unfinished trial back: it is interrupted from this moment on.
CREATE OR REPLACE FUNCTION service.release(
  p_trial int, p_token bigint, p_cause text, p_detail text DEFAULT NULL)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  tried int;
BEGIN
  UPDATE service.leases SET expires_at = '-infinity'
   WHERE trial_id = p_trial AND token = p_token RETURNING attempt INTO tried;
  IF NOT FOUND THEN
    RETURN 'stale';
  END IF;
  PERFORM service.close_attempt(p_trial, tried, p_cause, p_detail);
  RETURN 'ok';
END $$;
