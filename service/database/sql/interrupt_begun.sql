-- After a copy or an import of a study: RUNNING trials that workers had begun are interrupted, so
-- that the next worker takes them over. Their checkpoints are not here, so they start from the
-- beginning. Returns how many there are.
-- The lease has a name of its own: one worker's name on two leases would make its pool kill it.
CREATE OR REPLACE FUNCTION service.interrupt_begun(p_study int)
RETURNS int LANGUAGE plpgsql AS $$
DECLARE
  begun int;
BEGIN
  INSERT INTO service.leases (trial_id, study_id, token, worker, attempt, expires_at)
  SELECT trial_id, p_study, nextval('service.lease_tokens'), worker || ' (of the original)',
         attempt, '-infinity'
    FROM (SELECT DISTINCT ON (a.trial_id) a.trial_id, a.worker, a.attempt
            FROM service.attempts a JOIN trials t USING (trial_id)
           WHERE t.study_id = p_study AND t.state = 'RUNNING'
           ORDER BY a.trial_id, a.attempt DESC) last;
  GET DIAGNOSTICS begun = ROW_COUNT;
  PERFORM service.close_attempt(trial_id, attempt, 'preempted', 'the study was copied meanwhile')
    FROM service.leases WHERE study_id = p_study;
  RETURN begun;
END $$;
