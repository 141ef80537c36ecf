"""Readers say how deep they look; and the functions' plans suit the tables that will be.

A connection plans a function's statements when it first comes to them and keeps the plans. A
worker that begins with a new study plans on tables without rows or statistics, where reading a
whole table looks cheapest. Every statement in here has an index to go by, so the functions are
told to consider nothing else. Where there is no index after all, PostgreSQL counts the whole table
as dear beyond measure, and would compile such a plan at each call: hence no JIT. And it plans anew
at every call what might gain from knowing the arguments, which takes longer than the statement
itself: hence generic plans. (``service.link`` has them planned anew as the tables grow.)
"""

from __future__ import annotations

from importlib import import_module

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

DROP_NEWS = "DROP FUNCTION service.news"
NEWS = """
CREATE FUNCTION service.news(
  p_study int, p_after int, p_known int[], p_since bigint, p_depth text, p_limit int)
RETURNS json LANGUAGE plpgsql STABLE AS $$
-- What a reader has not seen yet, as deep as it looks; service/news.py says why nothing is missed.
-- 'finished': what has ended, and the ids of what has begun; 'params': all trials, but of those
-- that go on running only what a sampler asks for counts as news; 'all': everything.
-- STABLE: every statement in here sees the caller's one snapshot.
DECLARE
  horizon bigint := pg_snapshot_xmin(pg_current_snapshot())::text::bigint;
  reach int := CASE WHEN horizon - p_since > 1000000000 THEN 2147483647
                    ELSE age(mod(p_since, 4294967296)::text::xid) END;
  created int[];
  unfinished int[];
  told int[];
BEGIN
  IF NOT EXISTS (SELECT FROM studies WHERE study_id = p_study) THEN
    RETURN NULL;
  END IF;
  created := ARRAY(SELECT trial_id FROM trials WHERE study_id = p_study AND trial_id > p_after
                    ORDER BY trial_id LIMIT p_limit);
  IF p_depth = 'finished' THEN
    IF created <> '{}' THEN
      unfinished := ARRAY(SELECT trial_id FROM trials
                           WHERE trial_id = ANY (created) AND state IN ('RUNNING', 'WAITING'));
    END IF;
    told := ARRAY(SELECT trial_id FROM trials
                   WHERE trial_id = ANY (created || p_known)
                     AND state NOT IN ('RUNNING', 'WAITING'));
  ELSE
    told := created || ARRAY(
      SELECT t.trial_id FROM trials t
       WHERE t.trial_id = ANY (p_known)
         AND (age(t.xmin) <= reach OR (t.state = 'RUNNING' AND (
           EXISTS (SELECT FROM trial_params c
                    WHERE c.trial_id = t.trial_id AND age(c.xmin) <= reach)
           OR EXISTS (SELECT FROM trial_system_attributes c
                       WHERE c.trial_id = t.trial_id AND age(c.xmin) <= reach)
           OR p_depth = 'all' AND (
             EXISTS (SELECT FROM trial_intermediate_values c
                      WHERE c.trial_id = t.trial_id AND age(c.xmin) <= reach)
             OR EXISTS (SELECT FROM trial_user_attributes c
                         WHERE c.trial_id = t.trial_id AND age(c.xmin) <= reach))))));
  END IF;
  RETURN json_build_array(
    horizon, cardinality(created), created[cardinality(created)], unfinished,
    CASE WHEN told <> '{}' THEN service.documents(told) END);
END $$
"""

WRITE = """
CREATE OR REPLACE FUNCTION service.write(
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
    news := service.news(p_study, p_after, p_known, p_since, 'finished', 2000);
  END IF;
  RETURN json_build_array(verdict, orders, news);
END $$
"""

SETTINGS = "SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan"
CALLED = (
    "documents",
    "news",
    "write",
    "release",
    "forget",
    "create",
    "begin_waiting",
    "finish",
    "finish_leased",
    "claim",
    "fail_worker",
    "delete_study",
)
"""What the service itself calls; functions that only these call inherit their settings."""


def upgrade() -> None:
    for statement in (DROP_NEWS, NEWS, WRITE):
        op.execute(statement)
    for name in CALLED:
        op.execute(f"ALTER FUNCTION service.{name} {SETTINGS}")


def downgrade() -> None:
    before = import_module("migrations.versions.0002_functions")
    for statement in (DROP_NEWS, before.NEWS, before.WRITE.replace("CREATE", "CREATE OR REPLACE")):
        op.execute(statement)
    for name in CALLED:
        op.execute(f"ALTER FUNCTION service.{name} RESET ALL")
