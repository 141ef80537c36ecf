"""Pool: it replaces workers that end badly, and knows when there is nothing left to do."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg2
import pytest
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from service import Budget, Hall, Spec, Study
from service.storage import leases
from service.studies.permission import Permission
from service.workers.assignment import Assignment
from service.workers.devices import Device
from service.workers.limits import own_code
from service.workers.pool import Pool
from service.workers.slot import Slot

TESTS = Path(__file__).parents[1]


def pool(hall: Hall, study: Study, lines: list[str], workers: int = 1) -> Pool:
    return Pool(
        hall,
        study,
        [Device("cpu", 1)] * workers,
        lines.append,
        permission=Permission(path=str(TESTS)),
    )


@pytest.mark.parametrize("code", [1, 3])
def test_a_worker_that_ends_with_an_error_is_replaced_and_the_pool_goes_on(
    hall: Hall, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    start, started = Slot.start, []

    def first_fails(slot: Slot, assignment: Assignment) -> None:
        started.append(assignment.worker)
        if len(started) > 1:
            start(slot, assignment)
            return
        slot.worker = assignment.worker
        slot._process = subprocess.Popen(["sh", "-c", f"exit {own_code(code)}"], text=True)

    monkeypatch.setattr(Slot, "start", first_fails)
    study = hall.create("s", Spec("stubs:quick"), Budget(3))
    lines: list[str] = []
    assert pool(hall, study, lines).run() == 0
    assert study.progress().complete == 3
    assert f"{started[0]} died (exit code {code}); starting another one" in lines


def test_a_trial_ended_from_outside_starts_no_worker_again(hall: Hall) -> None:
    study = hall.create("s", Spec("stubs:quick"), Budget(2))
    lease = leases.claim(hall.engine, study.study_id, "gone", 0.0)
    assert lease is not None
    study.optuna.tell(lease.number, state=TrialState.FAIL)
    assert study.progress().interrupted == 0
    lines: list[str] = []
    assert pool(hall, study, lines).run() == 0
    assert (study.progress().state, study.progress().finished) == ("finished", 2)
    assert sum("trial" in line for line in lines) == 1


def test_an_abandoned_ask_does_not_hold_the_pool(hall: Hall) -> None:
    study = hall.create("s", Spec("stubs:quick"), Budget(2))
    study.optuna.ask()
    assert pool(hall, study, []).run() == 0
    progress = study.progress()
    assert (progress.state, progress.complete, progress.running) == ("finished", 2, 1)


def test_a_pool_starts_no_worker_while_there_is_nothing_to_claim(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = hall.create("s", Spec("stubs:quick"), Budget(3))
    assert leases.claim(hall.engine, study.study_id, "elsewhere", 60.0)
    waiting = pool(hall, study, [])
    started: list[str] = []
    monkeypatch.setattr(Slot, "start", lambda slot, assignment: started.append(assignment.worker))
    assert waiting._wait_for_others(study.progress()) and len(started) == 1
    assert waiting._wait_for_others(study.progress()) and len(started) == 1
    waiting._next_restart = 0.0
    study.stop()
    assert waiting._wait_for_others(study.progress()) and len(started) == 1
    study.resume()
    study.mark_exhausted()
    assert waiting._wait_for_others(study.progress()) and len(started) == 1


@pytest.mark.parametrize("code", [0, 1, 2, 75])
def test_an_objective_that_ends_its_process_fails_and_the_pool_goes_on(
    hall: Hall, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setenv("STUB_CODE", str(code))
    study = hall.create("s", Spec("stubs:exits", max_attempts=2), Budget(3))
    lines: list[str] = []
    assert pool(hall, study, lines).run() == 0
    states = [(row["state"], row["cause"]) for row in study.records()]
    assert states == [("fail", "lost"), ("complete", None), ("complete", None)]
    assert sum(f"died (exit code {code}); starting another one" in line for line in lines) == 2
    assert lines.count("trial 0: failed (lost): 2 workers died of this trial") == 1


def test_the_pool_says_which_trials_the_end_of_the_studys_time_has_failed(hall: Hall) -> None:
    study = hall.create("s", Spec("stubs:quick"), Budget(None, timeout=1000))
    lease = leases.claim(hall.engine, study.study_id, "gone", 0.0)
    assert lease is not None
    with hall.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE service.studies SET deadline = now()")
    lines: list[str] = []
    one = pool(hall, study, lines)
    one._tick()
    assert leases.claim(hall.engine, study.study_id, "w1", 60.0) is None
    one._tick()
    one._tick()
    one._end_all()
    assert lines.count("trial 0: failed (timeout): the study's time is over") == 1


def test_one_worker_is_one_worker(hall: Hall, study: Study) -> None:
    lines: list[str] = []
    one = pool(hall, study, lines)
    one._start(one._slots[0])
    one._signal = signal.SIGTERM
    one._end_all()
    assert any("for 1 worker to save" in line for line in lines)
    study = hall.create("s", Spec("stubs:quick", max_attempts=1), Budget(1))
    lease = leases.claim(hall.engine, study.study_id, "gone", 0.0)
    assert lease is not None and leases.claim(hall.engine, study.study_id, "w", 60.0) is None
    assert study.records()[0]["detail"] == "1 worker died of this trial"
    assert str(study.progress()).endswith("0 workers")


@pytest.mark.parametrize("question", ["overdue", "count_workers_with_results"])
def test_an_outage_while_the_pool_looks_after_its_workers_ends_nothing(
    hall: Hall, monkeypatch: pytest.MonkeyPatch, question: str
) -> None:
    answer, asked = getattr(leases, question), []

    def away_at_first(*arguments: Any) -> Any:
        asked.append(question)
        if len(asked) == 1:
            raise OperationalError("SELECT", {}, psycopg2.OperationalError("it went away"))
        return answer(*arguments)

    monkeypatch.setattr(leases, question, away_at_first)
    monkeypatch.setattr("service.workers.pool.OVERDUE_SECONDS", 0.0)
    study = hall.create("s", Spec("stubs:quick"), Budget(3))
    lines: list[str] = []
    capacity = SimpleNamespace(more_devices=list)
    one = Pool(
        hall,
        study,
        [Device("cpu", 1)],
        lines.append,
        permission=Permission(path=str(TESTS)),
        gpu_capacity=capacity,  # type: ignore[arg-type]
    )
    assert one.run() == 0
    assert study.progress().complete == 3
    assert any("it went away" in line for line in lines)
