-- Fail the trial that a worker holds, on the worker's behalf; returns the trial's number, or null.
CREATE OR REPLACE FUNCTION service.fail_worker(p_worker text, p_cause text, p_detail text)
RETURNS int LANGUAGE plpgsql AS $$
DECLARE
  lease service.leases;
  failed int;
BEGIN
  DELETE FROM service.leases WHERE worker = p_worker RETURNING * INTO lease;
  IF lease.trial_id IS NULL THEN
    RETURN NULL;
  END IF;
  PERFORM service.close_attempt(lease.trial_id, lease.attempt, p_cause, p_detail);
  PERFORM service.end_trial(lease.trial_id, 'FAIL', NULL, NULL);
  SELECT number INTO failed FROM trials WHERE trial_id = lease.trial_id;
  RETURN failed;
END $$;
