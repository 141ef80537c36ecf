-- Fail the trial that a worker holds, on the worker's behalf; returns the trial's number, or null.
-- A worker has two leases if a network has delivered the first sending of a claim late: the one
-- that it does not know is not renewed. Its trial is interrupted.
CREATE OR REPLACE FUNCTION service.fail_worker(p_worker text, p_cause text, p_detail text)
RETURNS int LANGUAGE plpgsql AS $$
DECLARE
  lease service.leases;
  failed int;
BEGIN
  SELECT l.* INTO lease FROM service.leases l JOIN service.attempts a USING (trial_id, attempt)
   WHERE l.worker = p_worker ORDER BY l.expires_at > clock_timestamp() DESC, a.started_at
   LIMIT 1 FOR UPDATE OF l;
  IF lease.trial_id IS NULL THEN
    RETURN NULL;
  END IF;
  DELETE FROM service.leases WHERE trial_id = lease.trial_id;
  UPDATE service.leases SET expires_at = '-infinity' WHERE worker = p_worker;
  PERFORM service.close_attempt(lease.trial_id, lease.attempt, p_cause, p_detail);
  PERFORM service.end_trial(lease.trial_id, 'FAIL', NULL, NULL);
  SELECT number INTO failed FROM trials WHERE trial_id = lease.trial_id;
  RETURN failed;
END $$;
