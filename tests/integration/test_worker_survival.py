"""A worker survives what objectives and operators do; a bad trial ends alone."""

from __future__ import annotations

import contextlib
import time

import optuna
import sqlalchemy
from optuna.trial import TrialState

from service import Budget, Hall, Spec, Study
from service.storage import leases
from service.workers.worker import Worker


def new(hall: Hall, n_trials: int = 3, **spec: object) -> Study:
    return hall.create("s", Spec("stubs:quick", **spec), Budget(n_trials))  # type: ignore[arg-type]


def causes(study: Study) -> list[tuple[str, str | None]]:
    return [(row["state"], row["cause"]) for row in study.records()]


def test_a_lost_lease_ends_an_objective_that_catches_every_exception(hall: Hall) -> None:
    study, trained = new(hall, 2), []

    def careless(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        for epoch in range(10):
            if trial.number == 0 and epoch == 1:
                leases.free(hall.engine, "slow")
                assert leases.claim(hall.engine, study.study_id, "other", 60.0)
            trained.append((trial.number, epoch))
            with contextlib.suppress(Exception):
                trial.report(x, epoch)
        return x

    assert Worker(study, hall, careless, "slow", "cpu").run() == 0
    assert trained == [(0, 0), (0, 1), *((1, epoch) for epoch in range(10))]
    assert causes(study) == [("running", None), ("complete", None)]


def test_a_trial_that_an_operator_ends_with_plain_optuna_ends_alone(
    hall: Hall, database_url: str
) -> None:
    study = new(hall, 3)
    operator = optuna.load_study(study_name="s", storage=database_url)
    states = iter([TrialState.COMPLETE, TrialState.FAIL])

    def ended_from_outside(trial: optuna.Trial) -> float:
        trial.report(trial.suggest_float("x", 0, 1), 0)
        if trial.number < 2:
            state = next(states)
            value = 7.0 if state == TrialState.COMPLETE else None
            operator.tell(trial.number, value, state=state)
        if trial.number != 1:  # trial 1 returns without another report
            trial.report(1.0, 1)
        return 1.0

    assert Worker(study, hall, ended_from_outside, "w", "cpu").run() == 0
    assert causes(study) == [("complete", "ended"), ("fail", None), ("complete", None)]
    assert study.records()[0]["value"] == 7.0
    progress = study.progress()
    assert (progress.state, progress.running, progress.interrupted) == ("finished", 0, 0)
    with hall.engine.connect() as connection:
        assert not connection.execute(sqlalchemy.text("TABLE service.leases")).all()


def test_the_keeper_tells_a_trial_that_it_was_ended(hall: Hall, database_url: str) -> None:
    study = new(hall, 1)
    operator = optuna.load_study(study_name="s", storage=database_url)

    def trains_until_it_is_told(trial: optuna.Trial) -> float:
        operator.tell(trial.number, state=TrialState.FAIL)
        deadline = time.monotonic() + 30
        while not trial.should_stop():  # type: ignore[attr-defined]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return 1.0

    assert Worker(study, hall, trains_until_it_is_told, "w", "cpu").run() == 0
    assert causes(study) == [("fail", "ended")]
