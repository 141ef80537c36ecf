"""Costs: each number is what was done; the estimate of the audit is near the truth."""

from __future__ import annotations

import os
import signal

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState
from scipy.stats import binomtest

from service import Budget, Hall, Spec, Study
from service.sampling import factory
from service.storage.storage import StudyStorage
from service.studies.costs import binomial_interval
from service.workers.worker import Worker

STEPS = 5


def threshold_study(hall: Hall, trials: int, **more: object) -> Study:
    """A study whose pruner ends trials that report more than 1, or less than -1, at step 1."""
    spec = Spec(
        "stubs:quick",
        sampler="random",
        pruner="ThresholdPruner",
        pruner_arguments={"lower": -1.0, "upper": 1.0, "n_warmup_steps": 1},
        **more,  # type: ignore[arg-type]
    )
    return hall.create("costs", spec, Budget(trials))


def reporting(trial: optuna.Trial, high: bool, last: float) -> float:
    for step in range(STEPS):
        trial.report(9.0 if high and step < STEPS - 1 else last, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return last


def execute(hall: Hall, statement: str) -> None:
    with hall.engine.begin() as connection:
        connection.execute(sqlalchemy.text(statement))


def test_every_number_is_what_was_done(hall: Hall) -> None:
    planned = [0.5, 0.25, 5.0, 5.0, -1.0, 0.5, 0.75, 6.0]
    study = threshold_study(hall, len(planned))
    for x in planned:
        study.optuna.enqueue_trial({"x": x})
    interrupted = []

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", -10, 10)
        if x < 0:
            trial.report(0.0, 0)
            raise ZeroDivisionError
        if x == 0.75 and not interrupted:
            for step in range(3):
                trial.report(x, step)
            interrupted.append(trial.number)
            os.kill(os.getpid(), signal.SIGTERM)
            trial.should_prune()
        return reporting(trial, x > 1, x)

    Worker(study, hall, objective, "one", "cpu").run()
    Worker(study, hall, objective, "two", "cpu").run()
    study.optuna.add_trial(optuna.trial.create_trial(value=0.0))  # nobody here has paid for it
    found = study.costs()

    assert (found.complete.trials, found.complete.epochs) == (4, 4 * STEPS + 3)
    assert (found.pruned.trials, found.pruned.epochs) == (3, 3 * 2)
    assert (found.failed.trials, found.failed.epochs) == (1, 1)
    assert (found.trained.trials, found.trained.epochs) == (8, 4 * STEPS + 3 + 3 * 2 + 1)
    assert (found.repeated.trials, found.repeated.epochs) == (1, 3)
    assert found.duplicates.trials == 2
    assert (found.failures, found.interruptions) == ({"error": 1}, {"preempted": 1})
    assert (found.pruning.pruned, found.pruning.full_epochs) == (3, STEPS)
    assert found.pruning.epochs == 3 * (STEPS - 2)
    assert found.audit is None
    seconds = sum(
        (attempt.ended_at - attempt.started_at).total_seconds()
        for attempts in study.attempts().values()
        for attempt in attempts
        if attempt.ended_at is not None
    )
    assert found.trained.hours == pytest.approx(seconds / 3600)
    assert found.seconds_per_epoch is not None and found.pruning.hours is not None
    assert found.pruning.hours == pytest.approx(9 * found.seconds_per_epoch / 3600)


def test_the_time_of_a_worker_that_died_long_ago_is_that_of_its_epochs(hall: Hall) -> None:
    study = threshold_study(hall, 2)
    lost = []

    def objective(trial: optuna.Trial) -> float:
        if trial.number == 1 and not lost:
            lost.append(1)
            trial.report(0.5, 0)
            execute(hall, "UPDATE service.leases SET expires_at = now() - interval '1 hour'")
            execute(
                hall,
                "UPDATE service.attempts SET started_at = now() - interval '10 hours' "
                "WHERE ended_at IS NULL",
            )
            Worker(study, hall, objective, "other", "cpu").run()
        return reporting(trial, False, trial.suggest_float("x", 0, 1))

    Worker(study, hall, objective, "one", "cpu").run()
    assert [a.cause for a in [*study.attempts().values()][1]] == ["expired", None]
    found = study.costs()
    assert found.trained.hours < 0.1
    assert (found.trained.epochs, found.repeated.epochs) == (2 * STEPS + 1, 1)


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_the_audits_estimate_is_compared_with_the_truth(hall: Hall, direction: str) -> None:
    sign = -1 if direction == "maximize" else 1
    study = threshold_study(hall, 60, pruner_audit=0.4, seed=1, direction=direction)

    def last_value(number: int) -> float:
        """Of the trials that look bad, every third ends well."""
        return sign * (0.01 if number % 3 == 0 else 0.9)

    def objective(trial: optuna.Trial) -> float:
        looks_bad = trial.number % 2 == 0
        return reporting(trial, looks_bad, last_value(trial.number) if looks_bad else sign * 0.5)

    Worker(study, hall, objective, "one", "cpu").run()
    audited = [n for n in range(0, 60, 2) if factory.is_audited(1, n, 0.4)]
    pruned = [n for n in range(0, 60, 2) if n not in audited]
    states = {trial.number: trial.state for trial in study.optuna.trials}
    assert {n for n in states if states[n] == TrialState.PRUNED} == {*pruned}

    found = study.costs()
    assert found.audit is not None
    assert (found.audit.audited, found.audit.unfinished) == (len(audited), 0)
    good = sum(last_value(n) == sign * 0.01 for n in audited)
    assert (found.audit.threshold, found.audit.good) == (sign * 0.5, good)
    assert found.audit.better_than_best == good
    assert found.audit.lost == pytest.approx(good / len(audited) * len(pruned))
    low, high = found.audit.lost_interval or (0.0, 0.0)
    truth = sum(last_value(n) == sign * 0.01 for n in pruned)
    assert 0 < low < truth < high < len(pruned)
    assert (found.pruning.estimated_from, found.pruning.full_epochs) == ("audited", STEPS)
    assert study.best is not None and study.best.value == sign * 0.01, "it can win"


def test_a_few_audited_trials_do_not_say_how_long_others_would_have_run(hall: Hall) -> None:
    study = threshold_study(hall, 3, pruner_audit=1.0)

    def objective(trial: optuna.Trial) -> float:
        if trial.number == 0:
            return reporting(trial, True, 0.9)
        trial.report(0.5, 0)
        return 0.5

    Worker(study, hall, objective, "one", "cpu").run()
    found = study.costs()
    assert found.audit is not None and (found.audit.audited, found.audit.lost) == (1, 0)
    assert (found.pruning.estimated_from, found.pruning.full_epochs) == ("complete", 1)


def test_the_end_of_the_studys_time_is_no_verdict_of_the_pruner(hall: Hall) -> None:
    study = hall.create("costs", Spec("stubs:slow"), Budget(None, timeout=0.3))
    Worker(study, hall, study.spec.load(), "one", "cpu").run()
    found = study.costs()
    assert (found.pruned.trials, found.pruning.pruned) == (1, 0)


@pytest.mark.parametrize(("hits", "trials"), [(0, 1), (0, 7), (1, 7), (3, 30), (12, 12)])
def test_the_interval_is_the_exact_binomial_one(hits: int, trials: int) -> None:
    reference = binomtest(hits, trials).proportion_ci(0.95, method="exact")
    assert binomial_interval(hits, trials) == pytest.approx((reference.low, reference.high))


def test_importances_are_optunas(hall: Hall) -> None:
    study = hall.create("costs", Spec("stubs:two", sampler="random"), Budget(40))
    assert (study.costs().importances, study.costs().trained.trials) == ({}, 0)
    Worker(study, hall, study.spec.load(), "one", "cpu").run()
    found = study.costs()
    assert found.importances == optuna.importance.get_param_importances(study.optuna)
    assert found.importance_trials == 40


def test_conditional_and_categorical_parameters_are_no_obstacle(hall: Hall) -> None:
    study = hall.create("costs", Spec("stubs:quick", sampler="random"), Budget(22))
    for name in "bc":
        study.optuna.enqueue_trial({name: 0.5})  # another parameter is no duplicate

    def objective(trial: optuna.Trial) -> float:
        if trial.number < 2:
            return trial.suggest_float("bc"[trial.number], 0, 1)
        kind = trial.suggest_categorical("kind", ["a", None, 3])
        return trial.suggest_float("x", 0, 1) if kind == "a" else 0.5

    Worker(study, hall, objective, "one", "cpu").run()
    StudyStorage(hall.engine).create_new_trial(study.study_id)
    found = study.costs()
    assert {*found.importances} >= {"kind"} and found.complete.trials == 22
    kinds = [trial.params for trial in study.optuna.trials[:22]]
    again = [params for place, params in enumerate(kinds) if params in kinds[:place]]
    assert found.duplicates.trials == len(again) > 0
