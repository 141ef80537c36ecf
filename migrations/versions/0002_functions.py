"""Indexes on Optuna's trials, and the storage's statements as functions.

A function's plans are kept by the connection, so a write costs one short round trip. Optuna's
tables are named without a schema, as Optuna names them itself, and the functions' bodies are
text to PostgreSQL: nothing here holds up a migration of Optuna's own.
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

INDEXES = (
    """CREATE INDEX studyhall_trials_by_study ON trials (study_id, trial_id)""",
    """CREATE INDEX studyhall_trials_unfinished ON trials (study_id, trial_id)
    WHERE state IN ('RUNNING', 'WAITING')""",
    """CREATE INDEX studyhall_trial_values_ranked ON trial_values (objective, value)""",
)

# --- reading ---------------------------------------------------------------------------------

DOCUMENTS = """
CREATE FUNCTION service.documents(p_trials int[]) RETURNS json
LANGUAGE plpgsql STABLE AS $$
-- These trials, each whole as one JSON array; service/rows.py reads it. Before them stand their
-- shapes, each once, by the key that stands for it: a shape is the names and the distributions of
-- a trial's parameters, which most trials of a study share and which would be most of the answer.
BEGIN
  RETURN (
    WITH shaped AS MATERIALIZED (
      SELECT trial_id, array_agg(param_value ORDER BY param_id) AS params,
             hashtextextended(string_agg(param_name || chr(1) || distribution_json, chr(2)
                                         ORDER BY param_id), 0)::text AS shape
        FROM trial_params WHERE trial_id = ANY (p_trials) GROUP BY trial_id)
    SELECT json_build_array(
      (SELECT json_object_agg(shape, (
                SELECT json_agg(json_build_array(p.param_name, p.distribution_json)
                                ORDER BY p.param_id)
                  FROM trial_params p WHERE p.trial_id = an_example.trial_id))
         FROM (SELECT DISTINCT ON (shape) shape, trial_id FROM shaped) an_example),
      (SELECT json_agg(json_build_array(
          t.trial_id, t.number, t.state,
          extract(epoch FROM t.datetime_start), extract(epoch FROM t.datetime_complete),
          (SELECT json_agg(coalesce(to_json(v.value), to_json(v.value_type))
                           ORDER BY v.objective)
             FROM trial_values v WHERE v.trial_id = t.trial_id),
          s.shape, s.params,
          (SELECT json_object_agg(a.key, a.value_json)
             FROM trial_user_attributes a WHERE a.trial_id = t.trial_id),
          (SELECT json_object_agg(a.key, a.value_json)
             FROM trial_system_attributes a WHERE a.trial_id = t.trial_id),
          (SELECT json_object_agg(i.step, coalesce(to_json(i.intermediate_value),
                                                   to_json(i.intermediate_value_type)))
             FROM trial_intermediate_values i WHERE i.trial_id = t.trial_id)))
         FROM (SELECT * FROM trials WHERE trial_id = ANY (p_trials) ORDER BY trial_id) t
              LEFT JOIN shaped s USING (trial_id))));
END $$
"""

NEWS = """
CREATE FUNCTION service.news(
  p_study int, p_after int, p_known int[], p_since bigint, p_children boolean, p_limit int)
RETURNS json LANGUAGE plpgsql STABLE AS $$
-- What a reader has not seen yet; service/news.py says why nothing is missed.
-- STABLE: every statement in here sees the caller's one snapshot.
DECLARE
  horizon bigint := pg_snapshot_xmin(pg_current_snapshot())::text::bigint;
  reach int := CASE WHEN horizon - p_since > 1000000000 THEN 2147483647
                    ELSE age(mod(p_since, 4294967296)::text::xid) END;
  created int[];
  changed int[];
BEGIN
  IF NOT EXISTS (SELECT FROM studies WHERE study_id = p_study) THEN
    RETURN NULL;
  END IF;
  created := ARRAY(SELECT trial_id FROM trials WHERE study_id = p_study AND trial_id > p_after
                    ORDER BY trial_id LIMIT p_limit);
  changed := ARRAY(
    SELECT t.trial_id FROM trials t
     WHERE t.trial_id = ANY (p_known)
       AND (age(t.xmin) <= reach OR (p_children AND t.state = 'RUNNING' AND (
         EXISTS (SELECT FROM trial_intermediate_values c
                  WHERE c.trial_id = t.trial_id AND age(c.xmin) <= reach)
         OR EXISTS (SELECT FROM trial_params c
                     WHERE c.trial_id = t.trial_id AND age(c.xmin) <= reach)
         OR EXISTS (SELECT FROM trial_system_attributes c
                     WHERE c.trial_id = t.trial_id AND age(c.xmin) <= reach)
         OR EXISTS (SELECT FROM trial_user_attributes c
                     WHERE c.trial_id = t.trial_id AND age(c.xmin) <= reach)))));
  RETURN json_build_array(horizon, cardinality(created),
    CASE WHEN created = '{}' AND changed = '{}' THEN NULL
         ELSE service.documents(created || changed) END);
END $$
"""

# --- writing ---------------------------------------------------------------------------------

PUT = """
CREATE FUNCTION service.put(
  p_trial int,
  p_names text[], p_params float8[], p_distributions text[],
  p_user_keys text[], p_user_values text[], p_system_keys text[], p_system_values text[],
  p_steps int[], p_reported float8[], p_kinds text[])
RETURNS void LANGUAGE plpgsql AS $$
-- A trial's rows, unguarded: only the functions below call it.
BEGIN
  IF p_names IS NOT NULL THEN
    INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)
    SELECT p_trial, n, v, d
      FROM unnest(p_names, p_params, p_distributions) WITH ORDINALITY AS new (n, v, d, place)
     ORDER BY place
    ON CONFLICT (trial_id, param_name) DO NOTHING;
  END IF;
  IF p_user_keys IS NOT NULL THEN
    INSERT INTO trial_user_attributes (trial_id, key, value_json)
    SELECT p_trial, k, v FROM unnest(p_user_keys, p_user_values) AS new (k, v)
    ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json;
  END IF;
  IF p_system_keys IS NOT NULL THEN
    INSERT INTO trial_system_attributes (trial_id, key, value_json)
    SELECT p_trial, k, v FROM unnest(p_system_keys, p_system_values) AS new (k, v)
    ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json;
  END IF;
  IF p_steps IS NOT NULL THEN
    INSERT INTO trial_intermediate_values
           (trial_id, step, intermediate_value, intermediate_value_type)
    SELECT p_trial, s, v, k::trialintermediatevaluetype
      FROM unnest(p_steps, p_reported, p_kinds) AS new (s, v, k)
    ON CONFLICT (trial_id, step) DO UPDATE
       SET intermediate_value = excluded.intermediate_value,
           intermediate_value_type = excluded.intermediate_value_type;
  END IF;
END $$
"""

GUARD = """
CREATE FUNCTION service.guard(p_trial int, p_token bigint) RETURNS text
LANGUAGE plpgsql AS $$
-- Whether this transaction may write to the trial, decided for as long as it lasts: 'ok',
-- 'stale' (the lease has passed on), 'missing' or 'finished'.
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
    SELECT state INTO now_in FROM trials WHERE trial_id = p_trial;
  END IF;
  RETURN CASE WHEN now_in IS NULL THEN 'missing'
              WHEN now_in IN ('RUNNING', 'WAITING') THEN 'ok' ELSE 'finished' END;
END $$
"""

WRITE = """
CREATE FUNCTION service.write(
  p_trial int, p_token bigint,
  p_names text[] DEFAULT NULL, p_params float8[] DEFAULT NULL,
  p_distributions text[] DEFAULT NULL,
  p_user_keys text[] DEFAULT NULL, p_user_values text[] DEFAULT NULL,
  p_system_keys text[] DEFAULT NULL, p_system_values text[] DEFAULT NULL,
  p_steps int[] DEFAULT NULL, p_reported float8[] DEFAULT NULL, p_kinds text[] DEFAULT NULL,
  p_study int DEFAULT NULL, p_after int DEFAULT NULL, p_known int[] DEFAULT NULL,
  p_since bigint DEFAULT NULL)
RETURNS json LANGUAGE plpgsql AS $$
-- Parameters, attributes and reports of one trial; what its study was told meanwhile, if the
-- trial is leased; and the study's finished trials since, if p_study is given.
DECLARE
  verdict text := service.guard(p_trial, p_token);
  orders json;
  news json;
BEGIN
  IF verdict <> 'ok' THEN
    RETURN json_build_array(verdict);
  END IF;
  PERFORM service.put(p_trial, p_names, p_params, p_distributions, p_user_keys, p_user_values,
                      p_system_keys, p_system_values, p_steps, p_reported, p_kinds);
  IF p_token IS NOT NULL THEN
    SELECT json_build_array(s.stop_reason, coalesce(s.deadline <= clock_timestamp(), false))
      INTO orders
      FROM service.leases l JOIN service.studies s USING (study_id) WHERE l.trial_id = p_trial;
  END IF;
  IF p_study IS NOT NULL THEN
    news := service.news(p_study, p_after, p_known, p_since, false, 2000);
  END IF;
  RETURN json_build_array(verdict, orders, news);
END $$
"""

CLOSE = """
CREATE FUNCTION service.close_attempt(p_trial int, p_attempt int, p_cause text, p_detail text)
RETURNS void LANGUAGE sql AS $$
-- How an attempt ended, and how many epochs it reported.
  UPDATE service.attempts a
     SET ended_at = clock_timestamp(), cause = p_cause, detail = p_detail,
         epochs = (SELECT count(*) FROM trial_intermediate_values v
                    WHERE v.trial_id = p_trial AND v.step >= a.first_epoch)
   WHERE a.trial_id = p_trial AND a.attempt = p_attempt AND a.ended_at IS NULL;
$$
"""

RELEASE = """
CREATE FUNCTION service.release(
  p_trial int, p_token bigint, p_cause text, p_detail text DEFAULT NULL)
RETURNS text LANGUAGE plpgsql AS $$
-- Give an unfinished trial back: it is interrupted from this moment on.
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
END $$
"""

FORGET = """
CREATE FUNCTION service.forget(p_trial int, p_token bigint, p_step int) RETURNS text
LANGUAGE plpgsql AS $$
-- Delete what was reported from a step on. The trial's own row is rewritten, so that readers,
-- who cannot see what is missing, read the trial again.
DECLARE
  verdict text := service.guard(p_trial, p_token);
BEGIN
  IF verdict = 'ok' THEN
    UPDATE service.attempts a SET first_epoch = p_step FROM service.leases l
     WHERE l.trial_id = p_trial AND (a.trial_id, a.attempt) = (l.trial_id, l.attempt);
    DELETE FROM trial_intermediate_values WHERE trial_id = p_trial AND step >= p_step;
    IF FOUND THEN
      UPDATE trials SET state = state WHERE trial_id = p_trial;
    END IF;
  END IF;
  RETURN verdict;
END $$
"""

CREATE = """
CREATE FUNCTION service.create(
  p_study int,
  p_states text[] DEFAULT '{RUNNING}',
  p_starts timestamp[] DEFAULT NULL, p_ends timestamp[] DEFAULT NULL,
  p_value_of int[] DEFAULT NULL, p_objectives int[] DEFAULT NULL, p_values float8[] DEFAULT NULL,
  p_value_kinds text[] DEFAULT NULL,
  p_param_of int[] DEFAULT NULL, p_names text[] DEFAULT NULL, p_params float8[] DEFAULT NULL,
  p_distributions text[] DEFAULT NULL,
  p_user_of int[] DEFAULT NULL, p_user_keys text[] DEFAULT NULL,
  p_user_values text[] DEFAULT NULL,
  p_system_of int[] DEFAULT NULL, p_system_keys text[] DEFAULT NULL,
  p_system_values text[] DEFAULT NULL,
  p_step_of int[] DEFAULT NULL, p_steps int[] DEFAULT NULL, p_reported float8[] DEFAULT NULL,
  p_kinds text[] DEFAULT NULL)
RETURNS json LANGUAGE plpgsql AS $$
-- New trials, as many as there are states; the *_of arrays say by place (from 1) whose each
-- row is. They are numbered under the lock on Optuna's own line of the study, as Optuna numbers
-- its trials: numbers have no gaps, and ids become visible in their order.
DECLARE
  ids int[];
  first int;
  began float8 := extract(epoch FROM clock_timestamp());
BEGIN
  PERFORM FROM studies WHERE study_id = p_study FOR UPDATE;
  IF NOT FOUND THEN
    RETURN NULL;
  END IF;
  SELECT coalesce((SELECT number + 1 FROM trials WHERE study_id = p_study
                    ORDER BY trial_id DESC LIMIT 1), 0) INTO first;
  began := extract(epoch FROM clock_timestamp());
  ids := ARRAY(SELECT nextval(pg_get_serial_sequence('trials', 'trial_id'))
                 FROM generate_series(1, cardinality(p_states)));
  INSERT INTO trials (trial_id, study_id, number, state, datetime_start, datetime_complete)
  SELECT ids[place], p_study, first + place - 1, new.state::trialstate,
         CASE WHEN p_starts IS NULL THEN to_timestamp(began) AT TIME ZONE 'UTC'
              ELSE p_starts[place] END,
         p_ends[place]
    FROM unnest(p_states) WITH ORDINALITY AS new (state, place);
  IF p_value_of IS NOT NULL THEN
    INSERT INTO trial_values (trial_id, objective, value, value_type)
    SELECT ids[place], o, v, k::trialvaluetype
      FROM unnest(p_value_of, p_objectives, p_values, p_value_kinds) AS new (place, o, v, k);
  END IF;
  IF p_param_of IS NOT NULL THEN
    INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)
    SELECT ids[place], n, v, d
      FROM unnest(p_param_of, p_names, p_params, p_distributions)
           WITH ORDINALITY AS new (place, n, v, d, line)
     ORDER BY line;
  END IF;
  IF p_user_of IS NOT NULL THEN
    INSERT INTO trial_user_attributes (trial_id, key, value_json)
    SELECT ids[place], k, v
      FROM unnest(p_user_of, p_user_keys, p_user_values) AS new (place, k, v);
  END IF;
  IF p_system_of IS NOT NULL THEN
    INSERT INTO trial_system_attributes (trial_id, key, value_json)
    SELECT ids[place], k, v
      FROM unnest(p_system_of, p_system_keys, p_system_values) AS new (place, k, v);
  END IF;
  IF p_step_of IS NOT NULL THEN
    INSERT INTO trial_intermediate_values
           (trial_id, step, intermediate_value, intermediate_value_type)
    SELECT ids[place], s, v, k::trialintermediatevaluetype
      FROM unnest(p_step_of, p_steps, p_reported, p_kinds) AS new (place, s, v, k);
  END IF;
  RETURN json_build_array(first, ids, began);
END $$
"""

BEGIN_WAITING = """
CREATE FUNCTION service.begin_waiting(p_trial int) RETURNS text LANGUAGE plpgsql AS $$
-- WAITING to RUNNING, for one caller only: 'ok', or what stands against it.
DECLARE
  now_in trialstate;
BEGIN
  SELECT state INTO now_in FROM trials WHERE trial_id = p_trial FOR NO KEY UPDATE;
  IF now_in = 'WAITING' THEN
    UPDATE trials
       SET state = 'RUNNING', datetime_start = clock_timestamp() AT TIME ZONE 'UTC'
     WHERE trial_id = p_trial;
    RETURN 'ok';
  END IF;
  RETURN CASE WHEN now_in IS NULL THEN 'missing'
              WHEN now_in = 'RUNNING' THEN 'running' ELSE 'finished' END;
END $$
"""

SETTLE = """
CREATE FUNCTION service.settle(
  p_trial int, p_state text, p_values float8[], p_value_kinds text[])
RETURNS float8 LANGUAGE plpgsql AS $$
-- A trial's values and state, unguarded; returns when it ended.
DECLARE
  ended timestamptz := clock_timestamp();
BEGIN
  IF p_values IS NOT NULL THEN
    INSERT INTO trial_values (trial_id, objective, value, value_type)
    SELECT p_trial, place - 1, v, k::trialvaluetype
      FROM unnest(p_values, p_value_kinds) WITH ORDINALITY AS new (v, k, place)
    ON CONFLICT (trial_id, objective) DO UPDATE
       SET value = excluded.value, value_type = excluded.value_type;
  END IF;
  UPDATE trials
     SET state = p_state::trialstate,
         datetime_complete = CASE WHEN p_state = 'WAITING' THEN datetime_complete
                                  ELSE ended AT TIME ZONE 'UTC' END
   WHERE trial_id = p_trial;
  RETURN extract(epoch FROM ended);
END $$
"""

FINISH = """
CREATE FUNCTION service.finish(
  p_trial int, p_state text, p_values float8[] DEFAULT NULL, p_value_kinds text[] DEFAULT NULL)
RETURNS json LANGUAGE plpgsql AS $$
-- The end of a trial that nobody has leased.
DECLARE
  now_in trialstate;
BEGIN
  SELECT state INTO now_in FROM trials WHERE trial_id = p_trial FOR UPDATE;
  IF now_in IS NULL OR now_in NOT IN ('RUNNING', 'WAITING') THEN
    RETURN json_build_array(CASE WHEN now_in IS NULL THEN 'missing' ELSE 'finished' END);
  END IF;
  RETURN json_build_array('ok', service.settle(p_trial, p_state, p_values, p_value_kinds));
END $$
"""

END_LEASE = """
CREATE FUNCTION service.finish_leased(
  p_trial int, p_token bigint, p_attempt int, p_state text,
  p_values float8[], p_value_kinds text[], p_cause text, p_detail text,
  p_failure_limit int, p_failure_reason text,
  p_names text[] DEFAULT NULL, p_params float8[] DEFAULT NULL,
  p_distributions text[] DEFAULT NULL,
  p_user_keys text[] DEFAULT NULL, p_user_values text[] DEFAULT NULL,
  p_system_keys text[] DEFAULT NULL, p_system_values text[] DEFAULT NULL)
RETURNS json LANGUAGE plpgsql AS $$
-- The end of a leased trial, of its lease and of its attempt; failures of the objective's code
-- (p_failure_reason says what to tell the study) are counted until one trial succeeds. Asked a
-- second time, because the answer got lost on its way, it answers the same.
DECLARE
  study int;
  now_in trialstate;
  ended float8;
BEGIN
  DELETE FROM service.leases WHERE trial_id = p_trial AND token = p_token
  RETURNING study_id INTO study;
  SELECT state, extract(epoch FROM datetime_complete) INTO now_in, ended
    FROM trials WHERE trial_id = p_trial;
  IF study IS NULL THEN
    RETURN CASE WHEN now_in = p_state::trialstate AND EXISTS (
             SELECT FROM service.attempts
              WHERE trial_id = p_trial AND attempt = p_attempt AND ended_at IS NOT NULL
                AND cause IS NOT DISTINCT FROM p_cause)
           THEN json_build_array('ok', ended) ELSE json_build_array('stale') END;
  END IF;
  PERFORM service.close_attempt(p_trial, p_attempt, p_cause, p_detail);
  IF now_in IS NULL OR now_in NOT IN ('RUNNING', 'WAITING') THEN
    RETURN json_build_array(CASE WHEN now_in IS NULL THEN 'missing' ELSE 'finished' END);
  END IF;
  PERFORM service.put(p_trial, p_names, p_params, p_distributions, p_user_keys, p_user_values,
                      p_system_keys, p_system_values, NULL, NULL, NULL);
  ended := service.settle(p_trial, p_state, p_values, p_value_kinds);
  UPDATE service.studies
     SET failures = CASE WHEN p_failure_reason IS NULL THEN 0 ELSE failures + 1 END,
         stop_reason = CASE WHEN p_failure_reason IS NOT NULL AND failures + 1 >= p_failure_limit
                            THEN coalesce(stop_reason, p_failure_reason) ELSE stop_reason END
   WHERE study_id = study AND (p_failure_reason IS NOT NULL OR failures > 0);
  RETURN json_build_array('ok', ended);
END $$
"""

CLAIM = """
CREATE FUNCTION service.claim(p_study int, p_worker text, p_seconds float8) RETURNS json
LANGUAGE plpgsql AS $$
-- A trial to run, with its first or next lease: an interrupted one, else an enqueued one, else a
-- new one of the budget; null where there is nothing to do. Every claim in a study passes through
-- the lock on its line here, so the budget is exact.
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
    -- Interrupted trials of a study whose time is over never run again.
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
    SELECT count(*) FILTER (WHERE cause = 'lost'), bool_or(cause = 'oom')
      INTO lost, alone FROM service.attempts WHERE trial_id = lease.trial_id;
    EXIT WHEN lost < coalesce((study.spec->>'max_attempts')::int, 3);
    -- A trial that kills its workers is not tried for ever.
    DELETE FROM service.leases WHERE trial_id = lease.trial_id;
    PERFORM service.settle(lease.trial_id, 'FAIL', NULL, NULL);
    UPDATE service.attempts SET detail = format('%s workers died of this trial', lost)
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
    UPDATE service.studies
       SET n_claimed = n_claimed + 1,
           deadline = coalesce(deadline, now() + timeout_seconds * interval '1 second')
     WHERE study_id = p_study;
    UPDATE trials
       SET state = 'RUNNING', datetime_start = clock_timestamp() AT TIME ZONE 'UTC'
     WHERE trial_id = (SELECT trial_id FROM trials WHERE study_id = p_study AND state = 'WAITING'
                        ORDER BY trial_id LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING trial_id INTO lease.trial_id;
    IF FOUND THEN
      document := service.documents(ARRAY[lease.trial_id]);
    ELSE
      made := service.create(p_study);
      lease.trial_id := made->1->>0;
    END IF;
    INSERT INTO service.leases (trial_id, study_id, token, worker, attempt, expires_at)
    VALUES (lease.trial_id, p_study, nextval('service.lease_tokens'), p_worker, 1,
            clock_timestamp() + lasts)
    RETURNING * INTO lease;
  END IF;
  INSERT INTO service.attempts (trial_id, attempt, study_id, worker, host, device)
  SELECT lease.trial_id, lease.attempt, p_study, p_worker, w.host, w.device
    FROM (VALUES (p_worker)) asking (worker) LEFT JOIN service.workers w USING (worker);
  RETURN json_build_array(
    lease.trial_id, lease.token, lease.attempt, made, document, coalesce(alone, false));
END $$
"""

FAIL_WORKER = """
CREATE FUNCTION service.fail_worker(p_worker text, p_cause text, p_detail text) RETURNS int
LANGUAGE plpgsql AS $$
-- Fail what a worker holds, for it; the trial's number, or null where it held nothing.
DECLARE
  lease service.leases;
  failed int;
BEGIN
  DELETE FROM service.leases WHERE worker = p_worker RETURNING * INTO lease;
  IF lease.trial_id IS NULL THEN
    RETURN NULL;
  END IF;
  PERFORM service.close_attempt(lease.trial_id, lease.attempt, p_cause, p_detail);
  PERFORM service.settle(lease.trial_id, 'FAIL', NULL, NULL);
  SELECT number INTO failed FROM trials WHERE trial_id = lease.trial_id;
  RETURN failed;
END $$
"""

DELETE_STUDY = """
CREATE FUNCTION service.delete_study(p_study int) RETURNS boolean LANGUAGE plpgsql AS $$
-- A study with everything of it, ours and Optuna's, in as many statements as there are tables.
DECLARE
  ids int[];
BEGIN
  PERFORM FROM studies WHERE study_id = p_study FOR UPDATE;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  ids := ARRAY(SELECT trial_id FROM trials WHERE study_id = p_study FOR UPDATE);
  DELETE FROM trial_values WHERE trial_id = ANY (ids);
  DELETE FROM trial_params WHERE trial_id = ANY (ids);
  DELETE FROM trial_intermediate_values WHERE trial_id = ANY (ids);
  DELETE FROM trial_user_attributes WHERE trial_id = ANY (ids);
  DELETE FROM trial_system_attributes WHERE trial_id = ANY (ids);
  DELETE FROM trial_heartbeats WHERE trial_id = ANY (ids);
  DELETE FROM trials WHERE study_id = p_study;
  DELETE FROM study_directions WHERE study_id = p_study;
  DELETE FROM study_user_attributes WHERE study_id = p_study;
  DELETE FROM study_system_attributes WHERE study_id = p_study;
  DELETE FROM studies WHERE study_id = p_study;
  DELETE FROM service.leases WHERE study_id = p_study;
  DELETE FROM service.attempts WHERE study_id = p_study;
  DELETE FROM service.workers WHERE study_id = p_study;
  DELETE FROM service.studies WHERE study_id = p_study;
  RETURN true;
END $$
"""

FUNCTIONS = (
    DOCUMENTS,
    NEWS,
    PUT,
    GUARD,
    WRITE,
    CLOSE,
    RELEASE,
    FORGET,
    CREATE,
    BEGIN_WAITING,
    SETTLE,
    FINISH,
    END_LEASE,
    CLAIM,
    FAIL_WORKER,
    DELETE_STUDY,
)
DROPPED = (
    "documents",
    "news",
    "put",
    "guard",
    "write",
    "close_attempt",
    "release",
    "forget",
    "create",
    "begin_waiting",
    "settle",
    "finish",
    "finish_leased",
    "claim",
    "fail_worker",
    "delete_study",
)


def upgrade() -> None:
    for statement in INDEXES + FUNCTIONS:
        op.execute(statement)


def downgrade() -> None:
    for name in DROPPED:
        op.execute(f"DROP FUNCTION service.{name}")
    op.execute("DROP INDEX studyhall_trials_by_study")
    op.execute("DROP INDEX studyhall_trials_unfinished")
    op.execute("DROP INDEX studyhall_trial_values_ranked")
