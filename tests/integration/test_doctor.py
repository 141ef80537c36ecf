"""Doctor: it finds what is wrong, nothing else, and names the cure."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import sqlalchemy
import stubs

from service import Budget, Hall, Settings, Spec, Study, UnknownStudy, doctor
from service.storage import leases
from service.studies import registry
from service.workers import presence
from service.workers.presence import WorkerProcess


def problems(hall: Hall, study: str | None = None) -> list[str]:
    return [f"{row.problem} -> {row.cure}" for row in doctor.examine(hall.settings, study)]


def test_nothing_is_wrong_with_a_new_study(hall: Hall, study: Study) -> None:
    assert problems(hall) == []


def test_an_interrupted_trial_can_be_taken_over(hall: Hall, study: Study) -> None:
    leases.claim(hall.engine, study.study_id, "gone", 0.0)
    (found,) = problems(hall)
    assert "worker gone has left; its trial 0 can be taken over now" in found
    assert "studyhall resume plain" in found


def test_a_released_trial_can_be_taken_over(hall: Hall, study: Study) -> None:
    lease = leases.claim(hall.engine, study.study_id, "polite", 50.0)
    assert lease is not None
    leases.release(hall.engine, lease, "preempted")
    (found,) = problems(hall)
    assert "worker polite has left; its trial 0 can be taken over now" in found


def test_the_trial_of_a_dead_worker_can_be_taken_over_when_its_lease_expires(
    hall: Hall, study: Study
) -> None:
    leases.claim(hall.engine, study.study_id, "gone", 50.0)
    (found,) = problems(hall)
    assert "taken over in 50 s" in found or "taken over in 49 s" in found


def die(hall: Hall, study: Study, worker: str) -> None:
    """A worker that joined, claimed a trial, and was last seen 99 seconds ago."""
    presence.join(hall.engine, study.study_id, WorkerProcess(worker, "far", 7, "gpu:0"))
    leases.claim(hall.engine, study.study_id, worker, 0.0)
    with hall.engine.begin() as connection:
        silence = "UPDATE service.workers SET seen_at = now() - interval '99 seconds'"
        connection.execute(sqlalchemy.text(silence))


def test_a_silent_worker_is_named_with_its_trial(hall: Hall, study: Study) -> None:
    die(hall, study, "quiet")
    (found,) = problems(hall)
    assert re.search(r"worker quiet \(host far, pid 7\) has been silent for (99|100) s", found)
    assert found.endswith("; its trial 0 can be taken over now -> studyhall resume plain")


def test_living_workers_take_a_silent_ones_trial_over(hall: Hall, study: Study) -> None:
    die(hall, study, "quiet")
    presence.join(hall.engine, study.study_id, WorkerProcess("alive", "here", 8, "gpu:0"))
    (found,) = problems(hall)
    assert found.endswith("another worker takes the trial over by itself")


def test_dead_workers_of_a_study_that_is_over_are_no_problem(hall: Hall) -> None:
    study = hall.create("it's over", Spec("stubs:quick"), Budget(1))
    die(hall, study, "quiet")
    lease = leases.claim(hall.engine, study.study_id, "other", 50.0)
    assert lease is not None
    study.optuna.tell(lease.number, 0.5)
    assert study.progress().state == "finished"
    assert problems(hall) == []


def test_a_cure_can_be_pasted_into_a_shell(hall: Hall) -> None:
    study = hall.create("it's over", Spec("stubs:quick"), Budget(1))
    die(hall, study, "quiet")
    (found,) = problems(hall)
    assert shlex.split(found.rpartition(" -> ")[2]) == ["studyhall", "resume", "it's over"]


def test_a_stopped_study_is_found_with_its_reason(hall: Hall, study: Study) -> None:
    study.stop("the objective is broken")
    (found,) = problems(hall, "plain")
    assert found == "is stopped: the objective is broken -> studyhall resume plain"


def test_running_trials_without_a_lease_are_plain_optunas(hall: Hall, study: Study) -> None:
    study.optuna.ask()
    (found,) = problems(hall)
    assert "1 RUNNING trial has no lease" in found


def test_an_objective_that_cannot_be_imported_here(
    hall: Hall, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUDYHALL_ALLOW", "gone")
    with hall.engine.begin() as connection:
        elsewhere = """UPDATE service.studies SET spec = spec || '{"objective": "gone:f"}'"""
        connection.execute(sqlalchemy.text(elsewhere))
    (found,) = problems(hall)
    assert "no worker on this machine can run it" in found and "--path" in found


def test_other_data_here(hall: Hall, tmp_path: Path) -> None:
    study = hall.create("data", Spec("stubs:with_data", direction="maximize"), Budget(3))
    assert problems(hall) == []
    assert study.progress().data is None, "looking must not set the study's data"
    theirs = registry.configure(stubs.with_data, {}, None, str(tmp_path / "b"))
    study.check_data(theirs)
    (found,) = problems(hall)
    assert "differ" in found and "--data-dir" in found


def test_an_artifact_store_that_cannot_be_written(hall: Hall, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    settings = Settings(hall.settings.database_url, artifacts=str(tmp_path / "file"))
    (found,) = list(doctor.examine(settings))
    assert found.about == "artifacts" and "STUDYHALL_ARTIFACTS" in found.cure


def test_a_database_that_is_not_there() -> None:
    settings = Settings("postgresql+psycopg2://127.0.0.1:9/x", artifacts="memory://doctor")
    (found,) = list(doctor.examine(settings))
    assert found.about == "database" and "127.0.0.1:9" in found.problem


def test_an_unknown_study(hall: Hall) -> None:
    with pytest.raises(UnknownStudy):
        problems(hall, "nothing")
