-- Whether this transaction may write to the trial; the answer holds until the transaction ends.
-- 'ok', 'stale' (another worker has the lease), 'missing' or 'finished'.
CREATE OR REPLACE FUNCTION service.check_write(p_trial int, p_token bigint)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  now_in trialstate;
BEGIN
  IF p_token IS NULL THEN
    SELECT state INTO now_in FROM trials WHERE trial_id = p_trial FOR SHARE;
  ELSE
    PERFORM FROM service.leases WHERE trial_id = p_trial AND token = p_token FOR SHARE;
    IF NOT FOUND THEN
      RETURN 'stale';
    END IF;
    -- The lock that the rows' foreign keys take anyway; who ends a trial waits for it.
    SELECT state INTO now_in FROM trials WHERE trial_id = p_trial FOR KEY SHARE;
  END IF;
  RETURN CASE WHEN now_in IS NULL THEN 'missing'
              WHEN now_in IN ('RUNNING', 'WAITING') THEN 'ok' ELSE 'finished' END;
END $$;
