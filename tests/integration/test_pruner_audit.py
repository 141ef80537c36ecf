"""The pruner's audit: a seeded share of the trials runs on although the pruner would end them."""

from __future__ import annotations

import os
import signal

import optuna
import pytest
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState

from service import Budget, ConfigurationError, Hall, Spec, Study
from service.sampling import factory
from service.sampling.factory import AUDIT_KEY
from service.workers.worker import Worker

ABOVE_ONE = {"upper": 1.0, "n_warmup_steps": 1}
"""Arguments of a ThresholdPruner that ends a trial at step 1 if it reports more than 1."""


def run(hall: Hall, name: str, audit: float, trials: int = 16) -> list[FrozenTrial]:
    spec = Spec("stubs:stepped", sampler="random", seed=3, pruner_audit=audit)
    study = hall.create(name, spec, Budget(trials))
    assert Worker(study, hall, study.spec.load(), name, "cpu").run() == 0
    return study.optuna.trials


def audited(trials: list[FrozenTrial]) -> dict[int, int]:
    return {t.number: t.system_attrs[AUDIT_KEY] for t in trials if AUDIT_KEY in t.system_attrs}


def test_only_the_seeded_share_runs_on_and_the_step_is_the_pruners(hall: Hall) -> None:
    plain, all_run_on, half = (
        run(hall, name, share) for name, share in (("plain", 0.0), ("all", 1.0), ("half", 0.5))
    )
    pruned = [trial for trial in plain if trial.state == TrialState.PRUNED]
    assert pruned and audited(plain) == {}

    assert {trial.state for trial in all_run_on} == {TrialState.COMPLETE}
    # Until the first verdict the three studies are the same.
    first = pruned[0]
    assert next(iter(audited(all_run_on).items())) == (first.number, first.last_step)
    assert all_run_on[first.number].last_step == 4

    chosen = {trial.number for trial in half if factory.is_audited(3, trial.number, 0.5)}
    assert {trial.state for trial in half if trial.number in chosen} == {TrialState.COMPLETE}
    assert {*audited(half)} <= chosen
    ended = {trial.number for trial in half if trial.state == TrialState.PRUNED}
    assert ended and audited(half) and not ended & chosen


def test_the_share_is_that_of_all_trials_and_follows_from_the_seed() -> None:
    draws = [[factory.is_audited(seed, number, 0.05) for number in range(4000)] for seed in (1, 2)]
    assert all(0.035 < sum(drawn) / 4000 < 0.065 for drawn in draws)
    assert draws[0] != draws[1]
    assert not any(factory.is_audited(1, number, 0.0) for number in range(4000))
    assert all(factory.is_audited(1, number, 1.0) for number in range(4000))


def audited_study(hall: Hall) -> Study:
    spec = Spec(
        "stubs:quick", pruner="ThresholdPruner", pruner_arguments=ABOVE_ONE, pruner_audit=1.0
    )
    return hall.create("a", spec, Budget(1))


def test_a_continued_trial_decides_the_same(hall: Hall) -> None:
    study = audited_study(hall)

    def is_interrupted(trial: optuna.Trial) -> float:
        for step in range(3):
            trial.report(5.0, step)
            assert not trial.should_prune()
        os.kill(os.getpid(), signal.SIGTERM)
        trial.should_prune()
        raise AssertionError("the signal has interrupted the trial")

    def goes_on(trial: optuna.Trial) -> float:
        for step in range(5):
            trial.report(5.0, step)
            assert not trial.should_prune()
        return 0.5

    Worker(study, hall, is_interrupted, "one", "cpu").run()
    assert study.progress().interrupted == 1
    Worker(study, hall, goes_on, "two", "cpu").run()
    (trial,) = study.optuna.trials
    assert (trial.state, audited([trial])) == (TrialState.COMPLETE, {0: 1})
    (row,) = study.records()
    assert (row["attempts"], row["pruner_audit"]) == (2, 1)
    assert study.best is not None and study.best.value == 0.5


def test_an_outage_at_the_verdict_loses_neither_the_trial_nor_the_step(hall: Hall) -> None:
    study = audited_study(hall)

    def loses_its_connection(trial: optuna.Trial) -> float:
        for step in range(4):
            trial.report(5.0, step)
            if step == 1:
                with hall.engine.connect() as connection:
                    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    where = "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    connection.execute(sqlalchemy.text(f"{others} {where}"))
            assert not trial.should_prune()
            if step == 1:
                assert audited(study.optuna.trials) == {}, "the outage has come at this moment"
        return 0.5

    Worker(study, hall, loses_its_connection, "one", "cpu").run()
    (trial,) = study.optuna.trials
    assert (trial.state, audited([trial])) == (TrialState.COMPLETE, {0: 1})


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_is_between_nought_and_one(share: float) -> None:
    with pytest.raises(ConfigurationError, match="a share from 0 to 1"):
        Spec("stubs:quick", pruner_audit=share)
