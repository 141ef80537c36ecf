"""The database's clock jumps: trials may change their worker, and nothing else happens."""

from __future__ import annotations

import time
from collections.abc import Callable

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState

from service import Budget, Hall, Spec, Study
from service.storage import leases
from service.storage.leases import Lease
from service.storage.storage import StudyStorage
from service.workers import presence
from service.workers.presence import WorkerProcess
from service.workers.worker import Worker

HOUR = 3600.0
DAY = 24 * HOUR
TIMES = {
    "service.leases": ("expires_at",),
    "service.workers": ("started_at", "seen_at"),
    "service.attempts": ("started_at", "ended_at"),
    "service.studies": ("created_at", "deadline"),
    "trials": ("datetime_start", "datetime_complete"),
}


def jump(hall: Hall, seconds: float) -> None:
    """Let the database's clock jump ahead: every time in its tables is that much longer ago."""
    with hall.engine.begin() as connection:
        for table, columns in TIMES.items():
            changes = ", ".join(f"{c} = {c} - :seconds * interval '1 second'" for c in columns)
            connection.execute(
                sqlalchemy.text(f"UPDATE {table} SET {changes}"), {"seconds": seconds}
            )


def new(hall: Hall, n_trials: int, **spec: object) -> Study:
    return hall.create("s", Spec("stubs:quick", **spec), Budget(n_trials))  # type: ignore[arg-type]


def claim(hall: Hall, study: Study, worker: str) -> Lease:
    lease = leases.claim(hall.engine, study.study_id, worker, 60.0)
    assert lease is not None
    return lease


@pytest.mark.parametrize("seconds", [HOUR, 2 * DAY])
def test_a_jump_ahead_lets_a_trial_change_its_worker_and_counts_no_death(
    hall: Hall, seconds: float
) -> None:
    study, taken = new(hall, 3, max_attempts=1), []

    def objective(trial: optuna.Trial) -> float:
        if not taken:
            jump(hall, seconds)
            taken.append(claim(hall, study, "other"))
        trial.report(1.0, 0)
        return 1.0

    assert Worker(study, hall, objective, "slow", "cpu").run() == 0
    assert (taken[0].number, taken[0].attempt) == (0, 2)
    storage = StudyStorage(hall.engine)
    storage.hold(taken[0])
    storage.set_trial_state_values(taken[0].trial_id, TrialState.COMPLETE, [2.0])
    rows = study.records()
    assert [(row["number"], row["state"], row["value"]) for row in rows] == [
        (0, "complete", 2.0),
        (1, "complete", 1.0),
        (2, "complete", 1.0),
    ]
    assert [attempt["cause"] for attempt in rows[0]["history"]] == ["expired", None]


def test_a_jump_ahead_that_nobody_uses_changes_nothing(hall: Hall) -> None:
    study = new(hall, 1, max_attempts=1)

    def objective(trial: optuna.Trial) -> float:
        jump(hall, HOUR)
        assert study.progress().interrupted == 1
        wait(lambda: study.progress().interrupted == 0, "the lease was not renewed")
        return 1.0

    assert Worker(study, hall, objective, "w", "cpu").run() == 0
    (row,) = study.records()
    assert (row["state"], row["attempts"]) == ("complete", 1)


def test_a_worker_that_a_jump_by_days_has_removed_joins_again(hall: Hall) -> None:
    study = new(hall, 1)
    other = WorkerProcess("new", "host", 1, "cpu")

    def alive() -> list[str]:
        return [process.worker for process in presence.alive(hall.engine, 60.0)]

    def objective(trial: optuna.Trial) -> float:
        jump(hall, 2 * DAY)
        presence.join(hall.engine, study.study_id, other)
        wait(lambda: "w" in alive(), "the living worker is gone")
        return 1.0

    assert Worker(study, hall, objective, "w", "cpu").run() == 0
    assert alive() == ["new"]
    # An assertion that fails in the objective fails the trial.
    assert [row["state"] for row in study.records()] == ["complete"], study.records()[0]["detail"]


def test_a_jump_back_lengthens_a_lease_until_its_worker_renews_it(hall: Hall) -> None:
    study = new(hall, 1)
    lease = claim(hall, study, "w")
    jump(hall, -HOUR)
    assert seconds_left(hall) > HOUR
    leases.renew(hall.engine, lease, 3.0)
    assert seconds_left(hall) <= 3.0


def seconds_left(hall: Hall) -> float:
    with hall.engine.connect() as connection:
        return float(
            connection.execute(
                sqlalchemy.text(
                    "SELECT extract(epoch FROM expires_at - clock_timestamp()) FROM service.leases"
                )
            ).scalar_one()
        )


def wait(condition: Callable[[], bool], failure: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, failure
        time.sleep(0.1)
