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

CHANGES = (
    ("WRITE", "p_since, false, 2000", "p_since, 'finished', 2000"),
    # An attempt that ends before it has begun, so to speak, has trained nothing.
    (
        "CLAIM",
        """INSERT INTO service.attempts (trial_id, attempt, study_id, worker, host, device)
  SELECT lease.trial_id, lease.attempt, p_study, p_worker, w.host, w.device
""",
        """INSERT INTO service.attempts
         (trial_id, attempt, study_id, worker, host, device, first_epoch)
  SELECT lease.trial_id, lease.attempt, p_study, p_worker, w.host, w.device,
         coalesce((SELECT max(step) + 1 FROM trial_intermediate_values
                    WHERE trial_id = lease.trial_id), 0)
""",
    ),
    # A checkpoint may hold an epoch that its attempt did not live to report.
    (
        "FORGET",
        """    DELETE FROM trial_intermediate_values""",
        """    UPDATE service.attempts a SET epochs = greatest(epochs, p_step - first_epoch)
      FROM service.leases l
     WHERE l.trial_id = p_trial AND (a.trial_id, a.attempt) = (l.trial_id, l.attempt - 1);
    DELETE FROM trial_intermediate_values""",
    ),
)
"""Functions of 0002 that stay as they are but for one place: what stands there, what shall."""

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
    op.execute(DROP_NEWS)
    op.execute(NEWS)
    for name, old, new in CHANGES:
        before = function(name)
        assert before.count(old) == 1
        op.execute(before.replace(old, new))
    for called in CALLED:
        op.execute(f"ALTER FUNCTION service.{called} {SETTINGS}")


def downgrade() -> None:
    op.execute(DROP_NEWS)
    for name in ("NEWS", *(name for name, _, _ in CHANGES)):
        op.execute(function(name))
    for called in CALLED:
        op.execute(f"ALTER FUNCTION service.{called} RESET ALL")


def function(name: str) -> str:
    """A function as 0002 made it, to be put in the place of what there is."""
    made: str = getattr(import_module("migrations.versions.0002_functions"), name)
    return made.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION")
