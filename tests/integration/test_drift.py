"""Drift: what a worker may differ in, and what never mixes; attempts name their provenance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy
import stubs

from service import Budget, DataMismatch, Hall, SourceMismatch, Spec, Study, doctor
from service.studies import provenance, registry
from service.studies.permission import Permission
from service.studies.source import Source
from service.workers import process
from service.workers.assignment import Assignment
from service.workers.worker import Worker

ONE = Source("/one", {"mine.py": "1" * 64, "helper.py": "2" * 64})
OTHER = Source("/other", {"mine.py": "1" * 64, "helper.py": "3" * 64})


def execute(hall: Hall, statement: str) -> None:
    with hall.engine.begin() as connection:
        connection.execute(sqlalchemy.text(statement))


@pytest.fixture
def old_study(hall: Hall, study: Study) -> Study:
    """A study of an earlier version: without source and provenance."""
    execute(hall, "UPDATE service.studies SET source = NULL, provenance = NULL")
    return study


def test_a_new_study_has_its_source_and_another_one_is_refused(study: Study) -> None:
    here = study.read_source()
    assert here is not None and {*here.files} == {"stubs.py"}
    assert study.check_source(here) is None
    with pytest.raises(SourceMismatch, match=r"helper\.py is new, mine\.py is new, stubs\.py is"):
        study.check_source(ONE)


def test_the_first_worker_of_an_old_study_sets_its_source(old_study: Study) -> None:
    assert old_study.check_source(None) is None
    assert old_study.check_source(ONE) is None
    with pytest.raises(SourceMismatch, match="no Python file of it is found here"):
        old_study.check_source(None)
    assert old_study.check_source(Source("/elsewhere", ONE.files)) is None
    with pytest.raises(SourceMismatch, match=r"helper\.py changed \(in /other\)") as caught:
        old_study.check_source(OTHER)
    assert "\n" not in str(caught.value) and "--allow-drift" in str(caught.value)
    assert old_study.check_source(OTHER, allow_drift=True) == ["helper.py changed"]
    with pytest.raises(SourceMismatch):
        old_study.check_source(OTHER)  # what was allowed once does not become the study's


def test_a_worker_process_refuses_another_source_unless_it_may_drift(
    hall: Hall, study: Study
) -> None:
    here = Permission(("stubs",))
    assignment = Assignment(
        study=study.study_id,
        worker="w",
        device="cpu",
        database_url=hall.url,
        home=str(hall.settings.home),
        lease_seconds=3.0,
        database_patience=5.0,
        artifacts=None,
        data_dir=None,
        permission=here,
        recycle_after=None,
        max_rss=None,
        command="studyhall worker plain",
    )
    assert Assignment.from_line(assignment.to_line().encode()) == assignment
    execute(hall, "UPDATE service.studies SET source = NULL")
    study.check_source(ONE)
    with pytest.raises(SourceMismatch, match=r"stubs\.py is new"):
        process.run_worker(assignment)
    assert study.progress().begun == 0 and study.progress().drift is None

    may_drift = replace(assignment, permission=replace(here, drift=True))
    assert process.run_worker(may_drift) == 0
    words = ["helper.py is missing", "mine.py is missing", "stubs.py is new"]
    assert study.progress().drift == {"source": words}
    (worker,) = study.provenance()["workers"]
    assert (worker["attempts"], worker["document"]["drift"]) == (10, {"source": words})
    assert worker["document"]["command"] == "studyhall worker plain"


def test_the_doctor_says_so_but_sets_nothing(hall: Hall, study: Study) -> None:
    here = Permission(("stubs",))
    execute(hall, "UPDATE service.studies SET source = NULL")
    assert [*doctor.examine_study(hall, study, here)] == []
    assert study.provenance()["source"] is None
    study.check_source(ONE)
    (finding,) = doctor.examine_study(hall, study, here)
    assert "the objective's source is not the one of study 'plain' any more" in finding.problem
    assert "--allow-drift" in finding.cure


@pytest.mark.parametrize("first", ["with_data", "generated"])
def test_real_and_generated_data_never_mix(hall: Hall, first: str) -> None:
    second = {"with_data": "generated", "generated": "with_data"}[first]
    study = hall.create("d", Spec(f"stubs:{first}", direction="maximize"), Budget(1))
    study.check_data(getattr(stubs, first))
    for allowed in (False, True):
        with pytest.raises(DataMismatch, match="these never mix"):
            study.check_data(getattr(stubs, second), allow_drift=allowed)


def test_other_data_of_the_same_kind_may_be_allowed(hall: Hall, tmp_path: Path) -> None:
    study = hall.create("d", Spec("stubs:with_data", direction="maximize"), Budget(1))
    study.check_data(stubs.with_data)
    theirs = registry.configure(stubs.with_data, {}, None, str(tmp_path / "b"))
    with pytest.raises(DataMismatch, match="--allow-drift"):
        study.check_data(theirs)
    assert study.check_data(theirs, allow_drift=True) == f"{'b' * 16} from folder b"


def test_a_changed_cache_is_refused_even_so(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    study = hall.create("c", Spec("stubs:cached", direction="maximize"), Budget(1))
    monkeypatch.setenv("STUB_CONTENT", "one")
    study.check_data(stubs.cached)
    monkeypatch.setenv("STUB_CONTENT", "two")
    with pytest.raises(DataMismatch, match="but their content differs"):
        study.check_data(stubs.cached, allow_drift=True)


def test_values_after_a_drift_are_marked_wherever_they_are_shown(
    hall: Hall, study: Study, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "studyhall")
    study.resume(n_trials=1)
    Worker(study, hall, study.spec.load(), "before", "cpu").run()
    assert "DRIFT" not in caplog.text + str(study.progress())
    found = provenance.gather(ONE, study.spec.to_json(), drift={"source": ["mine.py changed"]})
    with hall.engine.begin() as connection:
        found.store(connection)
        found.store(connection)
    study.mark_drift(found.document["drift"])
    study.resume(n_trials=2)
    Worker(study, hall, lambda trial: -1.0, "after", "cpu", provenance=found).run()
    assert "value -1 DRIFT" in caplog.text
    fresh = hall.study(study.name)
    assert str(fresh.progress()).endswith("best -1 DRIFT")
    assert fresh.best is not None and fresh.best.drift == ("source",)
    assert [row["drift"] for row in fresh.records()] == [[], ["source"]]
    (first,), (second,) = fresh.attempts().values()
    assert (first.provenance, second.provenance) == (None, found.sha256)
    (attempt,) = fresh.provenance(1)["attempts"]
    assert attempt["document"] == found.document
    assert attempt["differs"]["source.folder"][1] == "/one"
