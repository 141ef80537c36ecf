"""A worker survives what objectives and operators do; a bad trial ends alone."""

from __future__ import annotations

import contextlib

import optuna

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
