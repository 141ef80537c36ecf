"""Continuation: trials go on from their checkpoints, or end with a cause."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from service import Budget, Hall, Spec, Study
from service.artifacts.store import Store
from service.storage import leases
from service.workers.limits import NO_LIMITS, RECYCLE, Limits
from service.workers.worker import Worker


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Counter[str]]:
    path = tmp_path / "trained"
    monkeypatch.setenv("STUB_TRAINED", str(path))
    return lambda: Counter(path.read_text().splitlines())


def new(hall: Hall, objective: str, n_trials: int = 2, **spec: object) -> Study:
    made = Spec(f"stubs:{objective}", **spec)  # type: ignore[arg-type]
    return hall.create(objective, made, Budget(n_trials))


def work(hall: Hall, study: Study, name: str, limits: Limits = NO_LIMITS) -> int:
    return Worker(study, hall, study.spec.load(), name, "cpu", limits).run()


def interrupted(hall: Hall, study: Study, after: float, name: str = "w1") -> None:
    threading.Timer(after, os.kill, (os.getpid(), signal.SIGTERM)).start()
    assert work(hall, study, name) == 0
    assert study.progress().interrupted == 1


def test_a_trial_goes_on_after_its_last_checkpoint(
    hall: Hall, trained: Callable[[], Counter[str]]
) -> None:
    study = new(hall, "counted", 1)
    interrupted(hall, study, 0.35)
    done = len(trained())
    assert 0 < done < 10
    assert work(hall, study, "w2") == 0
    (row,) = study.records()
    assert (row["number"], row["state"], row["attempts"]) == (0, "complete", 2)
    x = row["params"]["x"]
    assert row["intermediate_values"] == {epoch: x + epoch for epoch in range(10)}
    assert trained() == {f"0 {epoch}": 1 for epoch in range(10)}
    first, second = row["history"]
    assert (first["cause"], first["first_epoch"], first["epochs"]) == ("preempted", 0, done)
    assert (second["cause"], second["first_epoch"], second["epochs"]) == (None, done, 10 - done)


def test_a_damaged_checkpoint_costs_one_epoch(
    hall: Hall, trained: Callable[[], Counter[str]]
) -> None:
    study = new(hall, "counted", 1)
    interrupted(hall, study, 0.35)
    done = len(trained())
    store = Store(hall.settings.artifact_store)
    newest = f"{study.checkpoints(0)}/{store.names(study.checkpoints(0))[-1]}"
    store.write(newest, store.read(newest)[:-3])
    work(hall, study, "w2")
    assert trained() == {f"0 {e}": 2 if e == done - 1 else 1 for e in range(10)}
    assert study.records()[0]["intermediate_values"].keys() == set(range(10))


def test_without_checkpoints_it_begins_again(
    hall: Hall, trained: Callable[[], Counter[str]]
) -> None:
    study = new(hall, "counted", 1)
    interrupted(hall, study, 0.35)
    done = len(trained())
    Store(hall.settings.artifact_store).remove("checkpoints")
    work(hall, study, "w2")
    assert trained() == {f"0 {e}": 2 if e < done else 1 for e in range(10)}


def test_an_ended_trials_checkpoints_are_removed(
    hall: Hall, trained: Callable[[], Counter[str]]
) -> None:
    study = new(hall, "counted", 2)
    work(hall, study, "w1")
    assert len(trained()) == 20
    store = Store(hall.settings.artifact_store)
    assert [store.names(study.checkpoints(number)) for number in (0, 1)] == [[], []]


def test_a_trial_that_kills_its_workers_is_failed_as_lost(hall: Hall) -> None:
    study = new(hall, "quick", 2, max_attempts=3)
    for index in range(3):
        lease = leases.claim(hall.engine, study.study_id, f"dead{index}", 60)
        assert lease is not None and (lease.number, lease.attempt) == (0, index + 1)
        leases.expire_held_by(hall.engine, f"dead{index}")
    assert work(hall, study, "w1") == 0
    first, second = study.records()
    assert (first["state"], first["cause"], first["attempts"]) == ("fail", "lost", 3)
    assert "3 workers died of this trial" in first["detail"]
    assert [attempt["cause"] for attempt in first["history"]] == ["lost"] * 3
    assert second["state"] == "complete"


def test_preempted_attempts_do_not_count_as_deaths(hall: Hall) -> None:
    study = new(hall, "quick", 1)
    for index in range(5):
        lease = leases.claim(hall.engine, study.study_id, f"w{index}", 60)
        assert lease is not None
        leases.release(hall.engine, lease, "preempted")
    assert work(hall, study, "w9") == 0
    assert study.records()[0]["state"] == "complete"


def test_a_trial_out_of_memory_is_tried_once_more_alone_then_fails(
    hall: Hall, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_MARKER", str(tmp_path / "marker"))
    study = new(hall, "out_of_memory", 3)
    codes = []
    while study.progress().state != "finished":
        codes.append(work(hall, study, f"w{len(codes)}"))
        assert len(codes) < 10
    # A worker that ran out of memory asks for a fresh process each time.
    assert codes == [RECYCLE, RECYCLE, 0]
    first, second, third = study.records()
    assert (first["state"], first["cause"], first["attempts"]) == ("fail", "oom", 2)
    assert (second["state"], second["attempts"]) == ("complete", 2)
    assert (third["state"], third["attempts"]) == ("complete", 1)


@pytest.mark.parametrize("objective", ["slow", "unresponsive"])
def test_a_trial_timeout_fails_the_trial_and_the_worker_goes_on(
    hall: Hall, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    monkeypatch.setattr("service.workers.stop_requests.RESPONSE_SECONDS", 0.2)
    study = new(hall, objective, 2, trial_timeout=0.4)
    began = time.monotonic()
    assert work(hall, study, "w1") == 0
    assert time.monotonic() - began < 10
    assert {(row["state"], row["cause"]) for row in study.records()} == {("fail", "timeout")}
    assert study.progress().stop_reason is None


def test_a_worker_asks_for_a_fresh_process_after_so_many_trials(hall: Hall) -> None:
    study = new(hall, "quick", 5)
    assert work(hall, study, "w1", Limits(trials=3)) == RECYCLE
    assert study.progress().complete == 3
    assert work(hall, study, "w2", Limits(rss=1)) == RECYCLE
    assert study.progress().complete == 4
    assert work(hall, study, "w3", Limits(trials=3, rss=1 << 40)) == 0
