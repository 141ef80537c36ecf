"""The models of the best trials are kept, and no others, whatever happens to the workers."""

from __future__ import annotations

import json
import multiprocessing
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore, download_artifact, get_all_artifact_meta

from service import Budget, Hall, Settings, Spec, Study
from service.artifacts.models import DamagedModel, ModelFiles
from service.artifacts.store import Store
from service.storage import kept_models, leases
from service.storage.kept_models import KeptModel
from service.studies.winner import find_winner
from service.workers.worker import Worker


@pytest.fixture
def hall(database_url: str, tmp_path: Path) -> Iterator[Hall]:
    hall = Hall(Settings(database_url, tmp_path, lease_seconds=20.0))
    yield hall
    hall.engine.dispose()


def create(
    hall: Hall, values: list[float], monkeypatch: pytest.MonkeyPatch, **spec: object
) -> Study:
    monkeypatch.setenv("STUB_VALUES", json.dumps(values))
    made = Spec("stubs:modelled", sampler="random", pruner="none", **spec)  # type: ignore[arg-type]
    return hall.create("modelled", made, Budget(len(values)))


def work(hall: Hall, name: str = "w") -> int:
    study = hall.study("modelled")
    return Worker(study, hall, study.spec.load(), name, "cpu").run()


def kept(hall: Hall, study: Study) -> list[KeptModel]:
    maximize = study.spec.direction == "maximize"
    return kept_models.find(hall.engine, study.study_id, maximize=maximize)


def check_files(hall: Hall, models: list[KeptModel]) -> None:
    """The store has the files of these models and no others, each with its content."""
    folder = Path(hall.settings.artifact_store, "models")
    files = ModelFiles(Store(hall.settings.artifact_store))
    assert {path.name for path in folder.iterdir()} == {m.artifact_id for m in models}
    for model in models:
        content = files.read(model.artifact_id, model.sha256).decode()
        assert content == f"model of trial {model.number}"


@pytest.mark.parametrize(
    ("direction", "keep", "best"),
    [
        ("minimize", 1, [3]),
        ("maximize", 1, [1]),
        ("minimize", 2, [3, 0]),
        ("maximize", 3, [1, 2, 4]),
    ],
)
def test_the_best_models_are_kept(
    hall: Hall, monkeypatch: pytest.MonkeyPatch, direction: str, keep: int, best: list[int]
) -> None:
    study = create(hall, [2, 7, 5, 1, 5, 3], monkeypatch, direction=direction, keep=keep)
    assert work(hall) == 0
    models = kept(hall, study)
    assert [model.number for model in models] == best
    check_files(hall, models)
    assert find_winner(study).model == models[0]
    assert models[0].logs == {"val_loss": models[0].value}
    saved = [trial.user_attrs["saved"] for trial in study.optuna.trials]
    assert False in saved, "no model is written that is not among the best"


def test_no_model_is_kept_if_none_is_asked_for(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = create(hall, [2, 1], monkeypatch, keep=0)
    work(hall)
    assert kept(hall, study) == []
    assert not Path(hall.settings.artifact_store, "models").exists()


def test_optunas_artifacts_are_the_models(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    study = create(hall, [3, 2, 4], monkeypatch)
    work(hall)
    store = FileSystemArtifactStore(Path(hall.settings.artifact_store, "models"))
    fresh = optuna.load_study(study_name="modelled", storage=study.optuna._storage)
    storage = fresh._storage
    found = [
        meta for trial in fresh.trials for meta in get_all_artifact_meta(trial, storage=storage)
    ]
    assert [meta.filename for meta in found] == ["model.txt"]
    target = Path(hall.settings.home, "downloaded")
    download_artifact(
        artifact_store=store, artifact_id=found[0].artifact_id, file_path=str(target)
    )
    assert target.read_text() == "model of trial 1"


def test_a_model_of_a_trial_that_fails_afterwards_is_removed(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_FAIL_AT", "1")
    study = create(hall, [3, 2], monkeypatch)
    work(hall)
    models = kept(hall, study)
    assert [model.number for model in models] == [0]
    check_files(hall, models)


def test_a_worker_killed_while_it_keeps_a_new_best_model_leaves_the_old_one_whole(
    hall: Hall, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    study = create(hall, [3, 2], monkeypatch)
    monkeypatch.setenv("STUB_DIE_AT", "1")
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_die, args=(database_url, hall.settings.home))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    winner = find_winner(study)
    assert winner.trial.number == winner.model.number == 0
    files = ModelFiles(Store(hall.settings.artifact_store))
    assert files.read(winner.model.artifact_id, winner.model.sha256) == b"model of trial 0"
    # Another worker takes the trial over, and its model replaces what the dead one has written.
    monkeypatch.delenv("STUB_DIE_AT")
    assert leases.expire_held_by(hall.engine, "dies")
    assert work(hall, "goes on") == 0
    models = kept(hall, study)
    assert [model.number for model in models] == [1]
    check_files(hall, models)
    attributes = study.trial(models[0].trial_id).system_attrs
    assert [k for k in attributes if "artifacts" in k] == [f"artifacts:{models[0].artifact_id}"]


def test_the_model_of_a_confirmed_winner_is_that_of_its_median_run(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = create(hall, [3, 2, 4], monkeypatch)
    work(hall)
    assert find_winner(study).trial.number == 1
    linked = study.confirm(top=2, seeds=3)
    assert find_winner(study).confirmation is None, "it has not ended"
    # Candidates 1 and 0 take turns: the first one has 5, 7, 6, the other one 1, 3, 2.
    monkeypatch.setenv("STUB_VALUES", json.dumps([5, 1, 7, 3, 6, 2]))
    assert Worker(linked, hall, linked.spec.load(), "again", "cpu").run() == 0
    winner = find_winner(study)
    assert winner.confirmation is not None
    assert (winner.number, winner.trial.number, winner.trial.value) == (0, 5, 2.0)
    files = ModelFiles(Store(hall.settings.artifact_store))
    assert files.read(winner.model.artifact_id, winner.model.sha256) == b"model of trial 5"
    assert len(kept(hall, linked)) == 6


def _die(url: str, home: Path) -> None:
    hall = Hall(Settings(url, home, lease_seconds=20.0))
    sys.exit(work(hall, "dies"))


def test_a_store_that_cannot_be_written_costs_the_model_and_not_the_trial(
    hall: Hall, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    study = create(hall, [3, 2], monkeypatch)
    folder = Path(hall.settings.artifact_store)
    folder.mkdir(parents=True)
    (folder / "models").write_text("a file where the folder should be")
    work(hall)
    assert study.progress().complete == 2
    assert "its model cannot be kept" in caplog.text


def test_a_damaged_model_is_refused(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    study = create(hall, [3], monkeypatch)
    work(hall)
    model = find_winner(study).model
    path = Path(hall.settings.artifact_store, "models", model.artifact_id)
    path.write_bytes(b"model of trial 7")
    files = ModelFiles(Store(hall.settings.artifact_store))
    with pytest.raises(DamagedModel, match="SHA-256 differs"):
        files.fetch(model.artifact_id, model.sha256, hall.settings.home)
    path.unlink()
    with pytest.raises(DamagedModel, match=r"is not in .* STUDYHALL_ARTIFACTS"):
        files.fetch(model.artifact_id, model.sha256, hall.settings.home)
