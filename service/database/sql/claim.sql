-- Claim a trial: an interrupted one, else an enqueued one, else a new one of the budget; null if
-- there is nothing to do. Every claim locks the study's row in service.studies, so the budget is
-- exact. A JSON array: trial id, token, attempt, the answer of create for a new trial, the document
-- of an existing one, whether the trial must have its device alone.
CREATE OR REPLACE FUNCTION service.claim(p_study int, p_worker text, p_seconds float8)
RETURNS json LANGUAGE plpgsql AS $$
DECLARE
  study service.studies;
  lease service.leases;
  lasts interval := p_seconds * interval '1 second';
  made json;
  document json;
  lost int;
  alone boolean;
BEGIN
  SELECT * INTO STRICT study FROM service.studies WHERE study_id = p_study FOR UPDATE;
  IF study.deadline <= clock_timestamp() THEN
    -- The study's time is over: interrupted trials fail.
    WITH late AS (
      DELETE FROM service.leases WHERE study_id = p_study AND expires_at <= clock_timestamp()
      RETURNING trial_id, attempt),
    closed AS (
      UPDATE service.attempts a
         SET cause = 'timeout', ended_at = coalesce(ended_at, clock_timestamp())
        FROM late WHERE (a.trial_id, a.attempt) = (late.trial_id, late.attempt))
    UPDATE trials t SET state = 'FAIL', datetime_complete = clock_timestamp() AT TIME ZONE 'UTC'
      FROM late WHERE t.trial_id = late.trial_id AND t.state = 'RUNNING';
    RETURN NULL;
  END IF;
  IF study.exhausted OR study.stop_reason IS NOT NULL THEN
    RETURN NULL;
  END IF;

  LOOP
    SELECT l.* INTO lease FROM service.leases l JOIN trials t USING (trial_id)
     WHERE l.study_id = p_study AND l.expires_at <= clock_timestamp() AND t.state = 'RUNNING'
     ORDER BY l.trial_id LIMIT 1 FOR UPDATE OF l SKIP LOCKED;
    EXIT WHEN NOT FOUND;
    PERFORM service.close_attempt(lease.trial_id, lease.attempt, 'lost', NULL);
    -- A worker counts as dead if its pool removed it, or if it was not seen since it lost the
    -- trial: after an outage, leases of live workers have expired too.
    SELECT count(*) FILTER (WHERE a.cause = 'lost' AND NOT EXISTS (
             SELECT FROM service.workers w
              WHERE w.worker = a.worker
                AND (a.attempt = lease.attempt OR w.seen_at > a.ended_at))),
           bool_or(a.cause = 'oom')
      INTO lost, alone FROM service.attempts a WHERE a.trial_id = lease.trial_id;
    EXIT WHEN lost < coalesce((study.spec->>'max_attempts')::int, 3);
    -- Too many workers died of this trial: it fails.
    DELETE FROM service.leases WHERE trial_id = lease.trial_id;
    PERFORM service.end_trial(lease.trial_id, 'FAIL', NULL, NULL);
    UPDATE service.attempts
       SET detail = format('%s died of this trial',
                           CASE lost WHEN 1 THEN '1 worker' ELSE lost || ' workers' END)
     WHERE trial_id = lease.trial_id AND attempt = lease.attempt;
  END LOOP;
  IF lease.trial_id IS NOT NULL THEN
    UPDATE service.leases
       SET token = nextval('service.lease_tokens'), worker = p_worker, attempt = attempt + 1,
           expires_at = clock_timestamp() + lasts
     WHERE trial_id = lease.trial_id RETURNING * INTO lease;
    UPDATE trials SET state = state WHERE trial_id = lease.trial_id;
    document := service.documents(ARRAY[lease.trial_id]);
  ELSIF study.n_claimed >= study.n_trials THEN
    RETURN NULL;
  ELSE
    UPDATE trials
       SET state = 'RUNNING', datetime_start = clock_timestamp() AT TIME ZONE 'UTC'
     WHERE trial_id = (SELECT trial_id FROM trials WHERE study_id = p_study AND state = 'WAITING'
                        ORDER BY trial_id LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING trial_id INTO lease.trial_id;
    IF FOUND THEN
      document := service.documents(ARRAY[lease.trial_id]);
    ELSIF study.spec->>'linked' IS NOT NULL THEN
      -- A linked study begins only what was enqueued; plain Optuna has taken the rest.
      UPDATE service.studies SET exhausted = true WHERE study_id = p_study;
      RETURN NULL;
    ELSE
      made := service.create(p_study);
      lease.trial_id := made->1->>0;
    END IF;
    UPDATE service.studies
       SET n_claimed = n_claimed + 1,
           deadline = coalesce(deadline, now() + timeout_seconds * interval '1 second')
     WHERE study_id = p_study;
    INSERT INTO service.leases (trial_id, study_id, token, worker, attempt, expires_at)
    VALUES (lease.trial_id, p_study, nextval('service.lease_tokens'), p_worker, 1,
            clock_timestamp() + lasts)
    RETURNING * INTO lease;
  END IF;
  INSERT INTO service.attempts
         (trial_id, attempt, study_id, worker, host, device, provenance, first_epoch)
  SELECT lease.trial_id, lease.attempt, p_study, p_worker, w.host, w.device, w.provenance,
         coalesce((SELECT max(least(step, 2147483646)) + 1 FROM trial_intermediate_values
                    WHERE trial_id = lease.trial_id), 0)
    FROM (VALUES (p_worker)) asking (worker) LEFT JOIN service.workers w USING (worker);
  RETURN json_build_array(
    lease.trial_id, lease.token, lease.attempt, made, document, coalesce(alone, false));
END $$;
