"""With an untested Optuna, its own sampler and pruners run, and one line says so."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from sqlalchemy.engine import Engine

from service import optuna_private
from service.errors import UnsupportedOptuna
from service.sampling import factory, pruners, tpe
from service.storage.storage import StudyStorage

ROOT = Path(__file__).parents[2]
OPTUNAS = {
    "tpe": optuna.samplers.TPESampler,
    "median": optuna.pruners.MedianPruner,
    "percentile": optuna.pruners.PercentilePruner,
}


@pytest.fixture
def untested(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An Optuna that says of itself that it is another version."""
    monkeypatch.setattr(optuna, "__version__", "5.1.0")
    optuna_private.warn_untested.cache_clear()
    yield
    optuna_private.warn_untested.cache_clear()


def by_name(number: int, pruner: str) -> tuple[Any, Any]:
    return factory.make_sampler("tpe", {}, 7, number), factory.make_pruner(pruner, {})


def own(number: int, pruner: str) -> tuple[Any, Any]:
    """Optuna's classes with the factory's arguments."""
    arguments = factory.PRUNERS[pruner][1]
    seed = factory.trial_seed(7, number)
    return optuna.samplers.TPESampler(seed=seed), OPTUNAS[pruner](**arguments)


def ours(number: int, pruner: str) -> tuple[Any, Any]:
    """Our classes, made without the factory."""
    classes = {"median": pruners.MedianPruner, "percentile": pruners.PercentilePruner}
    arguments = factory.PRUNERS[pruner][1]
    seed = factory.trial_seed(7, number)
    return tpe.TPESampler(seed=seed), classes[pruner](**arguments)


def history(storage: optuna.storages.BaseStorage, make: Any, pruner: str) -> list[Any]:
    """What a study of 30 trials tries, reports and prunes, with a sampler for each trial."""
    study = optuna.create_study(storage=storage)

    def objective(trial: optuna.Trial) -> float:
        rate = trial.suggest_float("rate", 1e-5, 1e-1, log=True)
        units = trial.suggest_int("units", 8, 256, log=True)
        kind = trial.suggest_categorical("kind", ["a", "b", "c"])
        for step in range(4):
            value = abs(rate * units - 0.5) + len(kind) / (1 + step)
            trial.report(value, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    for number in range(30):
        study.sampler, study.pruner = make(number, pruner)
        study.optimize(objective, n_trials=1)
    return [(t.state, t.params, t.intermediate_values, t.values) for t in study.trials]


@pytest.mark.usefixtures("untested")
def test_the_names_make_optunas_own_classes() -> None:
    assert type(factory.make_sampler("tpe", {}, 0, 0)) is optuna.samplers.TPESampler
    for name in ("median", "percentile"):
        assert type(factory.make_pruner(name, {})) is OPTUNAS[name]
    patient = factory.make_pruner("patient", {})
    assert type(patient._wrapped_pruner) is optuna.pruners.MedianPruner


@pytest.mark.usefixtures("untested")
def test_one_line_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "service"):
        for number in range(3):
            by_name(number, "median")
    (record,) = caplog.records
    text = record.getMessage()
    assert "\n" not in text
    assert text.startswith("Optuna 5.1.0 is not tested") and text.endswith("install optuna 5.0.x")


def test_a_process_says_so_once_and_a_tested_one_not_at_all() -> None:
    program = (
        "import optuna; optuna.__version__ = {version!r}\n"
        "from service.sampling import factory\n"
        "for number in range(3):\n"
        "    factory.make_sampler('tpe', {{}}, 0, number)\n"
        "    factory.make_pruner('median', {{}})\n"
    )
    for version, lines in (("5.1.0", 1), ("6.0.0.dev", 1), ("5.0.3", 0)):
        result = subprocess.run(
            [sys.executable, "-c", program.format(version=version)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=True,
        )
        assert len(result.stderr.splitlines()) == lines, result.stderr


@pytest.mark.usefixtures("untested")
@pytest.mark.parametrize("pruner", ["median", "percentile"])
@pytest.mark.parametrize("make", [by_name, ours])
def test_the_results_are_stock_optunas_through_our_storage(
    engine: Engine, make: Any, pruner: str
) -> None:
    stock = history(optuna.storages.InMemoryStorage(), own, pruner)
    assert history(StudyStorage(engine), make, pruner) == stock
    assert {state.name for state, *_ in stock} == {"COMPLETE", "PRUNED"}


def test_the_storage_refuses_an_optuna_that_lacks_a_name(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optuna_private, "MISSING", ["no optuna.study._frozen.FrozenStudy"])
    with pytest.raises(UnsupportedOptuna, match=r"FrozenStudy\); install optuna 5\.0\.x"):
        StudyStorage(engine)
