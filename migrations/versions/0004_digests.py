"""Digests: of each trial, written once, what every worker's sampler and pruner want to know.

With N workers, each trial is read N times, as it runs and when it has ended. Its digest is made in
the transaction that writes its parameters or its end, so that a reader takes one row as it stands
instead of putting a trial together from five tables. A trial that has none, because stock Optuna
wrote it or it was imported, is digested by whoever reads it.
"""

from __future__ import annotations

from importlib import import_module

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

SCHEMA = "service"

DIGESTED = """
CREATE FUNCTION service.digested(p_trials int[])
RETURNS TABLE (trial_id int, finished boolean, shape bigint, digest text)
LANGUAGE sql STABLE AS $$
-- These trials as JSON arrays; service/digests.py reads them. A shape stands for the names and the
-- distributions of a trial's parameters. Of system attributes only those that TPE asks for.
SELECT t.trial_id, t.state NOT IN ('RUNNING', 'WAITING'), p.shape,
       json_build_array(
         t.trial_id, t.number, t.state,
         (SELECT json_agg(coalesce(to_json(v.value), to_json(v.value_type)) ORDER BY v.objective)
            FROM trial_values v WHERE v.trial_id = t.trial_id),
         p.shape, p.params, i.steps, i.reported,
         (SELECT json_object_agg(a.key, a.value_json) FROM trial_system_attributes a
           WHERE a.trial_id = t.trial_id
             AND (a.key LIKE 'constraints%'
                  OR a.key LIKE 'tpe:relative_params%' AND t.state = 'RUNNING')))::text
  FROM trials t,
       LATERAL (SELECT array_agg(c.param_value ORDER BY c.param_id) AS params,
                       hashtextextended(string_agg(c.param_name || chr(1) || c.distribution_json,
                                                   chr(2) ORDER BY c.param_id), 0) AS shape
                  FROM trial_params c WHERE c.trial_id = t.trial_id) p,
       LATERAL (SELECT array_agg(c.step ORDER BY c.step) AS steps,
                       json_agg(coalesce(to_json(c.intermediate_value),
                                         to_json(c.intermediate_value_type))
                                ORDER BY c.step) AS reported
                  FROM trial_intermediate_values c
                 WHERE c.trial_id = t.trial_id AND t.state NOT IN ('RUNNING', 'WAITING')) i
 WHERE t.trial_id = ANY (p_trials)
$$
"""

KEEP_DIGEST = """
CREATE FUNCTION service.keep_digest(p_trial int) RETURNS void LANGUAGE plpgsql AS $$
-- Digest a trial for its readers, in the transaction that has written it.
BEGIN
  INSERT INTO service.digests (trial_id, finished, shape, digest)
  SELECT trial_id, finished, shape, digest FROM service.digested(ARRAY[p_trial])
  ON CONFLICT ON CONSTRAINT pk_digests DO UPDATE
     SET finished = excluded.finished, shape = excluded.shape, digest = excluded.digest;
END $$
"""

LEARN = """
CREATE FUNCTION service.learn(
  p_study int, p_after int, p_known int[], p_since bigint, p_running boolean, p_shapes bigint[],
  p_limit int)
RETURNS text LANGUAGE plpgsql STABLE AS $$
-- The digests of what a reader has not seen yet: of what has ended and, if p_running is set, of
-- running trials whose parameters are new; service/news.py says why nothing is missed. A JSON
-- array: the horizon, how many trials are new, the last one's id, those of the new ones that are
-- unfinished, shapes beyond p_shapes, digests.
-- STABLE: every statement in here sees the caller's one snapshot.
DECLARE
  horizon bigint := pg_snapshot_xmin(pg_current_snapshot())::text::bigint;
  reach int := CASE WHEN horizon - p_since > 1000000000 THEN 2147483647
                    ELSE age(mod(p_since, 4294967296)::text::xid) END;
  created int[];
  unfinished int[];
  told int[];
  shapes bigint[];
  digests text[];
  unkept int[];
  meant text;
BEGIN
  IF NOT EXISTS (SELECT FROM studies WHERE study_id = p_study) THEN
    RETURN NULL;
  END IF;
  created := ARRAY(SELECT trial_id FROM trials WHERE study_id = p_study AND trial_id > p_after
                    ORDER BY trial_id LIMIT p_limit);
  IF created <> '{}' THEN
    unfinished := ARRAY(SELECT trial_id FROM trials
                         WHERE trial_id = ANY (created) AND state IN ('RUNNING', 'WAITING'));
  END IF;
  IF p_running THEN
    SELECT array_agg(t.trial_id), array_agg(d.shape), array_agg(d.digest),
           array_agg(t.trial_id) FILTER (WHERE d.trial_id IS NULL)
      INTO told, shapes, digests, unkept
      FROM trials t LEFT JOIN service.digests d
           ON d.trial_id = t.trial_id AND d.finished = (t.state NOT IN ('RUNNING', 'WAITING'))
     WHERE t.trial_id = ANY (created || p_known)
       AND CASE WHEN t.state = 'WAITING' THEN false
                WHEN t.state <> 'RUNNING' THEN true
                WHEN d.trial_id IS NOT NULL THEN age(d.xmin) <= reach
                ELSE EXISTS (SELECT FROM trial_params c
                              WHERE c.trial_id = t.trial_id AND age(c.xmin) <= reach)
                     OR EXISTS (SELECT FROM trial_system_attributes c
                                 WHERE c.trial_id = t.trial_id AND age(c.xmin) <= reach) END;
  ELSE
    SELECT array_agg(t.trial_id), array_agg(d.shape), array_agg(d.digest),
           array_agg(t.trial_id) FILTER (WHERE d.trial_id IS NULL)
      INTO told, shapes, digests, unkept
      FROM trials t LEFT JOIN service.digests d ON d.trial_id = t.trial_id AND d.finished
     WHERE t.trial_id = ANY (created || p_known) AND t.state NOT IN ('RUNNING', 'WAITING');
  END IF;
  IF unkept IS NOT NULL THEN
    SELECT told || array_agg(trial_id), shapes || array_agg(shape), digests || array_agg(digest)
      INTO told, shapes, digests FROM service.digested(unkept);
  END IF;
  IF NOT array_remove(shapes, NULL) <@ p_shapes THEN
    SELECT json_object_agg(example.shape, (
             SELECT json_agg(json_build_array(p.param_name, p.distribution_json)
                             ORDER BY p.param_id)
               FROM trial_params p WHERE p.trial_id = example.trial_id))
      INTO meant
      FROM (SELECT DISTINCT ON (shape) shape, trial_id
              FROM unnest(shapes, told) AS u (shape, trial_id)
             WHERE shape IS NOT NULL AND shape <> ALL (p_shapes)) example;
  END IF;
  RETURN concat('[', horizon, ',', cardinality(created), ',',
                coalesce(created[cardinality(created)]::text, 'null'), ',',
                coalesce(array_to_json(unfinished)::text, 'null'), ',',
                coalesce(meant, 'null'), ',[', array_to_string(digests, ','), ']]');
END $$
"""

DROP_WRITE = "DROP FUNCTION service.write"
WRITE = """
CREATE FUNCTION service.write(
  p_trial int, p_token bigint,
  p_names text[] DEFAULT NULL, p_params float8[] DEFAULT NULL,
  p_distributions text[] DEFAULT NULL,
  p_user_keys text[] DEFAULT NULL, p_user_values text[] DEFAULT NULL,
  p_system_keys text[] DEFAULT NULL, p_system_values text[] DEFAULT NULL,
  p_steps int[] DEFAULT NULL, p_reported float8[] DEFAULT NULL, p_kinds text[] DEFAULT NULL,
  p_study int DEFAULT NULL, p_after int DEFAULT NULL, p_known int[] DEFAULT NULL,
  p_shapes bigint[] DEFAULT NULL)
RETURNS text LANGUAGE plpgsql AS $$
-- Parameters, attributes and reports of one trial; what its study was told meanwhile, if the
-- trial is leased; and the study's finished trials since, if p_study is given. A JSON array.
DECLARE
  verdict text := service.guard(p_trial, p_token);
  orders json;
  news text;
BEGIN
  IF verdict <> 'ok' THEN
    RETURN json_build_array(verdict);
  END IF;
  PERFORM service.put(p_trial, p_names, p_params, p_distributions, p_user_keys, p_user_values,
                      p_system_keys, p_system_values, p_steps, p_reported, p_kinds);
  IF p_token IS NOT NULL THEN
    IF p_names IS NOT NULL THEN
      PERFORM service.keep_digest(p_trial);
    END IF;
    SELECT json_build_array(s.stop_reason, coalesce(s.deadline <= clock_timestamp(), false))
      INTO orders
      FROM service.leases l JOIN service.studies s USING (study_id) WHERE l.trial_id = p_trial;
  END IF;
  IF p_study IS NOT NULL THEN
    news := service.learn(p_study, p_after, p_known, 0, false, p_shapes, 2000);
  END IF;
  RETURN concat('["ok",', coalesce(orders::text, 'null'), ',', coalesce(news, 'null'), ']');
END $$
"""

CHANGES = (
    (
        "SETTLE",
        "  RETURN extract(epoch FROM ended);",
        "  PERFORM service.keep_digest(p_trial);\n  RETURN extract(epoch FROM ended);",
    ),
    (
        "DELETE_STUDY",
        "  DELETE FROM service.leases",
        "  DELETE FROM service.digests WHERE trial_id = ANY (ids);\n  DELETE FROM service.leases",
    ),
)
"""Functions of 0002 that stay as they are but for one place: what stands there, what shall."""

before = import_module("migrations.versions.0003_depths_and_plans")


def upgrade() -> None:
    op.create_table(
        "digests",
        sa.Column("trial_id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("finished", sa.Boolean, nullable=False),
        sa.Column("shape", sa.BigInteger),
        sa.Column("digest", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("trial_id", name="pk_digests"),
        schema=SCHEMA,
    )
    # A digest is replaced once, by that of the finished trial: room for it on the same page.
    op.execute("ALTER TABLE service.digests SET (fillfactor = 50)")
    for statement in (DROP_WRITE, DIGESTED, KEEP_DIGEST, LEARN, WRITE):
        op.execute(statement)
    for name, old, new in CHANGES:
        as_it_was = before.function(name)
        assert as_it_was.count(old) == 1
        op.execute(as_it_was.replace(old, new))
    for called in ("learn", "write", "delete_study"):
        op.execute(f"ALTER FUNCTION service.{called} {before.SETTINGS}")


def downgrade() -> None:
    for name in ("write", "learn", "keep_digest", "digested"):
        op.execute(f"DROP FUNCTION service.{name}")
    name, old, new = before.CHANGES[0]
    op.execute(before.function(name).replace(old, new))
    for name, _, _ in CHANGES:
        op.execute(before.function(name))
    for called in ("write", "delete_study"):
        op.execute(f"ALTER FUNCTION service.{called} {before.SETTINGS}")
    op.drop_table("digests", schema=SCHEMA)
