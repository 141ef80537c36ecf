"""The test set is sealed: a trial cannot reach it through anything that it is given."""

from __future__ import annotations

import gc
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from objectives import Dataset, KerasObjective, Settings
from service import Budget, Hall, Spec
from service import Settings as ServiceSettings
from service.workers.worker import Worker

MARK = 77.0
"""What only the test set contains."""

CODE = (types.ModuleType, types.FunctionType, types.CodeType, types.FrameType, type)
"""Not walked through: a program can always load its data again by its own code."""

found: list[str] = []
walked: list[int] = []


def load() -> Any:
    x = np.random.RandomState(0).uniform(size=(60, 3)).astype("float32")
    y = (x[:, 0] > x[:, 1]).astype("int32")
    return (x[:40], y[:40]), (np.full((20, 3), MARK, "float32"), y[40:])


def everything(*roots: Any) -> Iterator[Any]:
    """All objects that can be reached from these."""
    left, seen = [*roots], set()
    while left:
        part = left.pop()
        if id(part) not in seen and not isinstance(part, CODE):
            seen.add(id(part))
            yield part
            left.extend(gc.get_referents(part))
            base = getattr(part, "base", None) if isinstance(part, np.ndarray) else None
            left.extend([] if base is None else [base])


def build(trial: optuna.Trial, data: Dataset) -> Any:
    n = 0
    for part in everything(trial, data):
        n += 1
        if isinstance(part, np.ndarray) and part.dtype.kind == "f" and MARK in part:
            found.append(f"an array {part.shape}")
    walked.append(n)
    import keras

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"])
    return model


objective = KerasObjective("sealed", load, build, Settings(epochs=1, batch_sizes=(16,)))


def test_a_trial_cannot_reach_the_test_set(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MARK in objective.test_set().x
    hall = Hall(ServiceSettings(database_url, tmp_path, lease_seconds=20.0))
    monkeypatch.setenv("STUDYHALL_ALLOW", __name__)
    spec = Spec(
        f"{__name__}:objective",
        settings=objective.settings_dict(),
        pruner="none",
        sampler="random",
    )
    study = hall.create("sealed", spec, Budget(2))
    assert Worker(study, hall, objective, "w", "cpu").run() == 0
    assert study.progress().complete == 2
    assert min(walked) > 1000, "the walk goes through the trial, its study and its storage"
    assert found == []
    hall.engine.dispose()


def test_the_winners_model_is_there_in_the_shell(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras_stub

    monkeypatch.setenv("STUDYHALL_ALLOW", "keras_stub")
    hall = Hall(ServiceSettings(database_url, tmp_path, lease_seconds=20.0))
    of = keras_stub.objective
    spec = Spec("keras_stub:objective", settings=of.settings_dict(), direction="maximize")
    study = hall.create("larger", spec, Budget(1))
    assert Worker(study, hall, of, "w", "cpu").run() == 0
    x, y = of.dataset().validation
    predicted = study.model().predict(x, verbose=0).argmax(axis=1)
    assert study.best is not None
    assert float((predicted == y).mean()) == pytest.approx(study.best.value, abs=1e-6)
    hall.engine.dispose()
