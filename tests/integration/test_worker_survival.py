"""A worker survives what objectives and operators do; a bad trial ends alone."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import optuna
import pytest
import sqlalchemy
import stubs
from optuna.trial import TrialState

from service import Budget, Hall, Spec, Study
from service.database.connection import SharedConnection
from service.settings import normalize_url
from service.storage import leases
from service.storage.leases import Lease
from service.workers import presence
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
                leases.expire_held_by(hall.engine, "slow")
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


class Unprintable:
    """A value that raises whatever is asked of it."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __float__(self) -> float:
        raise RuntimeError("no float")


class Strange(Exception):
    """An exception whose cause cannot be compared."""

    cause = np.arange(3)


def raises(error: Exception) -> Callable[[optuna.Trial], object]:
    def objective(trial: optuna.Trial) -> object:
        raise error

    return objective


BAD: dict[str, Callable[[optuna.Trial], object]] = {
    "NUL in the text": raises(ValueError("a\0b")),
    "a surrogate in the text": raises(ValueError("a\ud800b")),
    "a cause that is an array": raises(Strange("text")),
    "an endless text": raises(ValueError("x" * 1_000_000)),
    "a huge integer": lambda trial: 10**400,
    "a value without repr": lambda trial: Unprintable(),
    "an array of choices": lambda trial: trial.suggest_categorical("c", np.arange(2)),  # type: ignore[arg-type]
    "a choice that JSON cannot hold": lambda trial: trial.suggest_categorical(
        "c",
        [object(), 1],  # type: ignore[list-item]
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_trial_fails_alone(hall: Hall, bad: str) -> None:
    study = new(hall, 2)

    def objective(trial: optuna.Trial) -> object:
        return BAD[bad](trial) if trial.number == 0 else 1.0

    assert Worker(study, hall, objective, "w", "cpu").run() == 0  # type: ignore[arg-type]
    assert causes(study) == [("fail", "error"), ("complete", None)]
    assert len(study.records()[0]["detail"]) < 101_000


def test_a_sampler_that_cannot_be_told_leaves_the_trial_as_it_ended(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise RuntimeError("after the trial")

    monkeypatch.setattr(optuna.samplers.RandomSampler, "after_trial", refuses)
    study = new(hall, 2, sampler="random")
    assert Worker(study, hall, lambda trial: 1.0, "w", "cpu").run() == 0
    assert causes(study) == [("complete", None)] * 2


class Unreachable(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """A file system that connects at once, and cannot."""

    protocol = "unreachable"
    cachable = False

    def __init__(self, **_: object) -> None:
        raise RuntimeError("no route to the store")


def test_an_unreachable_artifact_store_does_not_end_a_worker(
    hall: Hall, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.register_implementation("unreachable", Unreachable, clobber=True)
    monkeypatch.setenv("STUB_TRAINED", str(tmp_path / "trained"))
    monkeypatch.setenv("STUB_EPOCH", "0")
    study = new(hall, 1)
    assert leases.claim(hall.engine, study.study_id, "gone", 0.0)
    hall.settings = replace(hall.settings, artifacts="unreachable://store")
    with caplog.at_level(logging.WARNING, "studyhall"):
        assert Worker(study, hall, stubs.counted, "w", "cpu").run() == 0
    assert causes(study) == [("complete", None)]
    for what in ("cannot be reached", "cannot be read from", "cannot be written to"):
        assert what in caplog.text


DEFERRED: dict[str, Callable[[optuna.Trial], object]] = {
    "a long parameter": lambda trial: trial.suggest_float("x" * 513, 0, 1),
    "a parameter with NUL": lambda trial: trial.suggest_float("a\0b", 0, 1),
    "a parameter with a surrogate": lambda trial: trial.suggest_float("a\ud800", 0, 1),
    "a long key": lambda trial: trial.set_user_attr("k" * 513, 1),
    "a long system key": lambda trial: set_system_attr(trial, "k" * 513, 1),
    "an object": lambda trial: trial.set_user_attr("k", object()),
    "a system object": lambda trial: set_system_attr(trial, "k", object()),
}


def set_system_attr(trial: optuna.Trial, key: str, value: object) -> None:
    trial.storage.set_trial_system_attr(trial._trial_id, key, value)


@pytest.mark.parametrize("bad", DEFERRED)
def test_what_cannot_be_stored_fails_at_the_call_and_only_there(hall: Hall, bad: str) -> None:
    study, raised = new(hall, 1), []

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        try:
            DEFERRED[bad](trial)
        except Exception as error:
            raised.append(error)
        trial.report(x, 0)
        return x

    assert Worker(study, hall, objective, "w", "cpu").run() == 0
    assert len(raised) == 1
    assert causes(study) == [("complete", None)]
    assert list(study.records()[0]["params"]) == ["x"]


@pytest.mark.parametrize("bad", ["a long parameter", "a long key"])
def test_an_objective_that_does_not_catch_it_fails_alone(hall: Hall, bad: str) -> None:
    study = new(hall, 1)
    worker = Worker(study, hall, lambda trial: DEFERRED[bad](trial) or 1.0, "w", "cpu")  # type: ignore[arg-type, return-value]
    assert worker.run() == 0
    assert causes(study) == [("fail", "error")]


def test_an_attribute_may_be_none_after_a_report(hall: Hall) -> None:
    study = new(hall, 1)

    def objective(trial: optuna.Trial) -> float:
        trial.report(1.0, 0)
        set_system_attr(trial, "k", None)
        trial.set_user_attr("k", None)
        return 1.0

    assert Worker(study, hall, objective, "w", "cpu").run() == 0
    assert causes(study) == [("complete", None)]


@pytest.fixture
def impatient(hall: Hall) -> Hall:
    """The hall with locks that are waited for 0.2 s at a time, and leases of one second."""
    url = normalize_url(hall.url).update_query_dict({"options": "-c lock_timeout=200ms"})
    return Hall(
        replace(
            hall.settings,
            database_url=url.render_as_string(hide_password=False),
            lease_seconds=1.0,
        )
    )


def test_a_lock_that_is_held_long_delays_the_end_of_a_trial_and_loses_nothing(
    hall: Hall, impatient: Hall, caplog: pytest.LogCaptureFixture
) -> None:
    study = new(hall, 1)
    claimed: list[object] = []
    index = hall.engine.connect()

    def release() -> None:
        claimed.append(leases.claim(impatient.engine, study.study_id, "other", 60.0))
        index.commit()

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_float("x", 0, 1)
        # As CREATE INDEX does: it reads, and nobody writes.
        index.execute(sqlalchemy.text("LOCK TABLE trial_values, trial_params IN SHARE MODE"))
        threading.Timer(3.0, release).start()
        return 1.0

    with caplog.at_level(logging.WARNING, "studyhall"):
        mine = Hall(impatient.settings)
        assert Worker(mine.study("s"), mine, objective, "w", "cpu").run() == 0
    index.close()
    assert claimed == [None]
    (row,) = study.records()
    assert (row["state"], row["value"], row["attempts"]) == ("complete", 1.0, 1)
    assert "cannot reach" not in caplog.text


def test_a_report_that_meets_a_lock_is_written_later(
    hall: Hall, impatient: Hall, caplog: pytest.LogCaptureFixture
) -> None:
    new(hall, 1)

    def objective(trial: optuna.Trial) -> float:
        with hall.engine.begin() as index:
            index.execute(sqlalchemy.text("LOCK TABLE trial_intermediate_values IN SHARE MODE"))
            trial.report(1.0, 0)
        trial.report(2.0, 1)
        return 1.0

    with caplog.at_level(logging.WARNING, "studyhall"):
        study = impatient.study("s")
        assert Worker(study, impatient, objective, "w", "cpu").run() == 0
    assert study.records()[0]["intermediate_values"] == {0: 1.0, 1: 2.0}
    assert "is busy: canceling statement due to lock timeout" in caplog.text


def join(hall: Hall, study: Study, worker: str) -> None:
    presence.join(hall.engine, study.study_id, presence.WorkerProcess(worker, "host", 1, "cpu"))


def expire(hall: Hall, study: Study, worker: str) -> Lease | None:
    """A claim whose lease has expired already, as after an outage."""
    return leases.claim(hall.engine, study.study_id, worker, 0.0)


def test_leases_that_expire_in_outages_are_no_deaths(hall: Hall) -> None:
    study = new(hall, 1, max_attempts=2)
    for index in range(6):
        join(hall, study, f"w{index}")
        lease = expire(hall, study, f"w{index}")
        assert lease is not None and lease.attempt == index + 1
        for other in range(index):
            presence.refresh(hall.engine, f"w{other}")
    assert Worker(study, hall, stubs.quick, "last", "cpu").run() == 0
    assert causes(study) == [("complete", None)]


def test_workers_that_are_never_seen_again_count_as_dead(hall: Hall) -> None:
    study = new(hall, 1, max_attempts=2)
    for index in range(3):  # the last one may still be alive
        join(hall, study, f"w{index}")
        assert expire(hall, study, f"w{index}") is not None
    assert Worker(study, hall, stubs.quick, "last", "cpu").run() == 0
    assert causes(study) == [("fail", "lost")]


def test_a_worker_that_finds_its_lease_expired_says_that_it_lives(hall: Hall) -> None:
    study = new(hall, 1, max_attempts=1)
    taken = []

    def slow(trial: optuna.Trial) -> float:
        if not taken:
            with hall.engine.begin() as connection:
                late = "UPDATE service.leases SET expires_at = now() - interval '1 second'"
                connection.execute(sqlalchemy.text(late))
            taken.append(expire(hall, study, "other"))
        trial.report(1.0, 0)
        return 1.0

    assert Worker(study, hall, slow, "slow", "cpu").run() == 0
    (row,) = study.records()
    assert row["history"][0]["cause"] == "expired"


def test_after_an_outage_running_trials_renew_before_others_claim(hall: Hall) -> None:
    study = new(hall, 1)
    mine = expire(hall, study, "running")
    assert mine is not None
    worker = Worker(study, hall, stubs.quick, "idle", "cpu")
    SharedConnection.of(hall.engine).note_outage(10.0)
    renewal = threading.Timer(0.5, leases.renew, (hall.engine, mine, 60.0))
    renewal.start()
    assert worker.run() == 0
    renewal.join()
    (row,) = study.records()
    assert (row["state"], row["worker"], row["attempts"]) == ("running", "running", 1)
