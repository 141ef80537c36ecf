"""Every sampler and pruner of Optuna with workers that sample at the same moment."""

from __future__ import annotations

import importlib.util
import multiprocessing
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import optuna
import pytest
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from service import Budget, ConfigurationError, Hall, Settings, Spec, Study, database
from service.sampling import factory, tpe
from service.storage import leases
from service.storage.storage import StudyStorage
from service.workers import turn
from service.workers.turn import Turn
from service.workers.worker import Worker

UNIT = optuna.distributions.FloatDistribution(0, 1)


def test_what_a_sampler_suggests_that_looks_at_running_trials_is_written_at_once(
    hall: Hall,
) -> None:
    study = hall.create("seen", Spec("stubs:quick"), Budget(n_trials=2))
    lease = leases.claim(hall.engine, study.study_id, "w", 60.0)
    assert lease is not None
    storage = StudyStorage(hall.engine)
    storage.hold(lease)
    storage.get_all_trials(study.study_id)  # as its sampler does
    storage.set_trial_param(lease.trial_id, "x", 0.5, UNIT)
    storage.set_trial_system_attr(lease.trial_id, "grid_id", 3)
    other = StudyStorage(hall.engine).get_trial(lease.trial_id)
    assert (other.params, other.system_attrs) == ({"x": 0.5}, {"grid_id": 3})


def test_trials_that_run_together_get_distinct_points_from_brute_force(hall: Hall) -> None:
    study = hall.create("points", Spec("stubs:quick"), Budget(n_trials=8))
    points = set()
    for name in "abcdefgh":  # eight workers, whose trials all run
        lease = leases.claim(hall.engine, study.study_id, name, 60.0)
        assert lease is not None
        storage = StudyStorage(hall.engine)
        storage.hold(lease)
        sampler = factory.make_sampler("BruteForceSampler", {}, 1, lease.number)
        plain = optuna.load_study(study_name=study.name, storage=storage, sampler=sampler)
        trial = optuna.Trial(plain, lease.trial_id)
        points.add((trial.suggest_int("a", 0, 3), trial.suggest_categorical("b", ["p", "q"])))
    assert len(points) == 8


N_POINTS = 12
"""Points of the search space of ``stubs.points``, and the budget."""

SAMPLER_ARGUMENTS: dict[str, dict[str, Any]] = {
    "CmaEsSampler": {"n_startup_trials": 3},
    "GPSampler": {"n_startup_trials": 6},
    "GridSampler": {"search_space": {"a": [0, 1, 2, 3], "b": [0, 1, 2]}},
    "NSGAIISampler": {"population_size": 4},
    "NSGAIIISampler": {"population_size": 4},
    "PartialFixedSampler": {"fixed_params": {"b": 1}, "base_sampler": "TPESampler"},
    "TPESampler": {"n_startup_trials": 4},
}
PRUNER_ARGUMENTS: dict[str, dict[str, Any]] = {
    "HyperbandPruner": {"max_resource": 4},
    "PatientPruner": {"wrapped_pruner": "median", "patience": 1},
    "PercentilePruner": {"percentile": 50.0},
    "ThresholdPruner": {"upper": 2.5},
}


def names(module: Any, base: type) -> list[str]:
    """The classes of Optuna that a spec can name."""
    classes = {name: getattr(module, name) for name in module.__all__}
    return [
        name
        for name, cls in classes.items()
        if isinstance(cls, type) and issubclass(cls, base) and not name.startswith("Base")
    ]


def work(url: str, home: Any, name: str, barrier: Any) -> None:
    """One worker, in a process of its own."""
    hall = Hall(Settings(database_url=url, home=home, lease_seconds=20.0))
    study = hall.study("together")
    barrier.wait(60)
    sys.exit(Worker(study, hall, study.spec.load(), name, "cpu").run())


def run_together(hall: Hall, spec: Spec, n_trials: int = N_POINTS, workers: int = 4) -> Study:
    """Run a study with so many workers at once."""
    missing = [
        package
        for name in (spec.sampler, spec.pruner)
        for package in factory.PACKAGES.get(name, ())
        if importlib.util.find_spec(package) is None
    ]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    study = hall.create("together", spec, Budget(n_trials))
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(workers)
    url = database.full_url(hall.engine.url)
    arguments = [(url, hall.settings.home, f"w{n}", barrier) for n in range(workers)]
    processes = [context.Process(target=work, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * workers
    return study


def check_all_ended(study: Study, n_trials: int = N_POINTS) -> list[optuna.trial.FrozenTrial]:
    """All trials of the budget have ended, none by an error, and no process ran all."""
    trials = study.optuna.trials
    assert [trial.number for trial in trials] == list(range(n_trials))
    problems = [row["detail"] for row in study.records() if row["cause"] is not None]
    assert problems == []
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    progress = study.progress()
    assert (progress.begun, progress.finished, progress.remaining) == (n_trials, n_trials, 0)
    assert len({row["worker"] for row in study.records()}) > 1
    return trials


def points(trials: list[optuna.trial.FrozenTrial]) -> set[tuple[int, int]]:
    return {(trial.params["a"], trial.params["b"]) for trial in trials}


@pytest.mark.parametrize("name", names(optuna.samplers, BaseSampler))
def test_each_sampler_serves_four_workers_at_once(hall: Hall, name: str) -> None:
    arguments = SAMPLER_ARGUMENTS.get(name, {})
    spec = Spec("stubs:points", sampler=name, sampler_arguments=arguments, pruner="none")
    study = run_together(hall, spec)
    trials = check_all_ended(study)
    if name in ("BruteForceSampler", "GridSampler"):
        assert len(points(trials)) == N_POINTS
    if name == "PartialFixedSampler":
        assert {trial.params["b"] for trial in trials} == {1}
    if name == "QMCSampler":  # the first trial is random; each of the others has its own point
        attrs = StudyStorage(hall.engine).get_study_system_attrs(study.study_id)
        assert [value for key, value in attrs.items() if key[:4] == "qmc:"] == [N_POINTS - 2]


@pytest.mark.parametrize("name", names(optuna.pruners, BasePruner))
def test_each_pruner_serves_four_workers_at_once(hall: Hall, name: str) -> None:
    arguments = PRUNER_ARGUMENTS.get(name, {})
    spec = Spec("stubs:points", sampler="random", pruner=name, pruner_arguments=arguments)
    study = run_together(hall, spec, n_trials=24)
    trials = check_all_ended(study, n_trials=24)
    pruned = {trial.number for trial in trials if trial.state == TrialState.PRUNED}
    if name == "NopPruner":
        assert pruned == set()
    if name == "ThresholdPruner":
        high = {trial.number for trial in trials if trial.intermediate_values[0] > 2.5}
        assert pruned == high
    if name in ("SuccessiveHalvingPruner", "HyperbandPruner"):
        assert pruned and any("completed_rung_0" in trial.system_attrs for trial in trials)


@pytest.mark.parametrize("seed", range(3))
def test_brute_force_tries_every_point_once(hall: Hall, seed: int) -> None:
    spec = Spec("stubs:points", sampler="BruteForceSampler", pruner="none", seed=seed)
    assert len(points(check_all_ended(run_together(hall, spec)))) == N_POINTS


@pytest.mark.parametrize("last_first", [False, True])
def test_a_trial_without_a_point_yet_keeps_its_point_of_the_grid(last_first: bool) -> None:
    """All trials have begun; they ask for their points in either order."""
    sampler = factory.make_sampler("grid", {"search_space": {"x": [0, 1, 2, 3, 4, 5]}}, 0, 0)
    study = optuna.create_study(sampler=sampler)
    for _ in range(3):
        study.add_trial(optuna.trial.create_trial(value=9.0))
    begun = [study._storage.create_new_trial(study._study_id) for _ in range(6)]
    drawn = []
    for trial_id in sorted(begun, reverse=last_first):
        trial = optuna.Trial(study, trial_id)
        drawn.append(trial.suggest_int("x", 0, 5))
    assert sorted(drawn) == [0, 1, 2, 3, 4, 5]


def test_a_grid_after_imported_trials_is_covered_once(hall: Hall) -> None:
    """Imported trials take numbers, so that the last points are drawn among the unvisited."""
    spec = Spec(
        "stubs:points",
        sampler="grid",
        sampler_arguments=SAMPLER_ARGUMENTS["GridSampler"],
        pruner="none",
    )
    study = hall.create("together", spec, Budget(N_POINTS))
    for _ in range(6):
        study.optuna.add_trial(optuna.trial.create_trial(value=9.0))
    run_together(hall, spec)
    ran = [trial for trial in study.optuna.trials if trial.params]
    assert len(ran) == len(points(ran)) == N_POINTS
    assert study.progress().begun == N_POINTS


def test_hyperband_shows_the_sampler_the_trials_of_its_own_bracket(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, set[int]]] = []
    infer = tpe.TPESampler.infer_relative_search_space

    def note(self: Any, study: Any, trial: Any) -> Any:
        brackets = {study.pruner._get_bracket_id(study, each) for each in study.trials}
        seen.append((study._bracket_id, brackets))
        return infer(self, study, trial)

    arguments = PRUNER_ARGUMENTS["HyperbandPruner"]
    spec = Spec("stubs:points", pruner="hyperband", pruner_arguments=arguments)
    study = hall.create("brackets", spec, Budget(10))
    monkeypatch.setattr(tpe.TPESampler, "infer_relative_search_space", note)
    assert Worker(study, hall, study.spec.load(), "w", "cpu").run() == 0
    assert {bracket for bracket, _ in seen} == {0, 1}
    assert all(brackets == {bracket} for bracket, brackets in seen)


def test_a_rung_is_written_at_once(hall: Hall) -> None:
    study = hall.create("rungs", Spec("stubs:quick"), Budget(n_trials=2))
    lease = leases.claim(hall.engine, study.study_id, "w", 60.0)
    assert lease is not None
    storage = StudyStorage(hall.engine)
    storage.hold(lease)
    plain = optuna.load_study(
        study_name="rungs", storage=storage, pruner=optuna.pruners.SuccessiveHalvingPruner(1)
    )
    trial = optuna.Trial(plain, lease.trial_id)
    trial.suggest_float("x", 0, 1)
    trial.report(0.5, 1)
    trial.should_prune()
    other = StudyStorage(hall.engine).get_all_trials(study.study_id)[0]
    assert other.system_attrs["completed_rung_0"] == 0.5
    assert other.intermediate_values == {1: 0.5} and "x" in other.params


@pytest.fixture
def turns(hall: Hall, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Turn]]:
    """Of two processes; a turn ends a second after its last use."""
    monkeypatch.setattr(turn, "PAUSE", 1.0)
    other = database.create_engine(database_url)
    made = [Turn(hall.engine, 1), Turn(other, 1)]
    yield made
    for each in made:
        each.end()
    other.dispose()


def test_a_turn_ends_by_itself_or_when_it_is_told_to(turns: list[Turn]) -> None:
    first, second = turns
    began = time.monotonic()
    with first:
        pass
    with second:
        waited = time.monotonic() - began
    assert turn.PAUSE <= waited < turn.PATIENCE
    second.end()
    began = time.monotonic()
    with first:
        assert time.monotonic() - began < turn.PAUSE / 2


def test_a_turn_that_goes_on_keeps_others_out(turns: list[Turn]) -> None:
    first, second = turns
    inside: list[float] = []

    def wait() -> None:
        with second:
            inside.append(time.monotonic())

    with first:
        thread = threading.Thread(target=wait)
        thread.start()
    for _ in range(15):
        time.sleep(turn.PAUSE / 10)
        with first:
            assert inside == []
    first.end()
    ended = time.monotonic()
    thread.join(10)
    assert 0 <= inside[0] - ended < turn.PAUSE / 2


def test_nobody_waits_for_ever_and_other_studies_do_not_wait(
    turns: list[Turn], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "PATIENCE", 0.5)
    first, second = turns
    began = time.monotonic()
    with first, second:
        assert 0.5 <= time.monotonic() - began < 2.0
        engine = database.create_engine(database_url)
        began = time.monotonic()
        with Turn(engine, 2):
            assert time.monotonic() - began < 0.5
        engine.dispose()


@pytest.mark.parametrize(
    ("name", "arguments", "turns"),
    [
        ("BruteForceSampler", {}, True),
        ("grid", {}, True),
        ("qmc", {}, True),
        ("tpe", {}, False),
        ("random", {}, False),
        ("PartialFixedSampler", {"fixed_params": {}, "base_sampler": "qmc"}, True),
        ("PartialFixedSampler", {"fixed_params": {}, "base_sampler": "tpe"}, False),
    ],
)
def test_samplers_that_choose_what_no_other_trial_has_take_turns(
    name: str, arguments: dict[str, Any], turns: bool
) -> None:
    assert factory.takes_turns(name, arguments) is turns


def test_a_sampler_inside_another_one_cannot_unpickle() -> None:
    for inner in ("cmaes", "CmaEsSampler"):
        with pytest.raises(ConfigurationError, match="cannot be the base_sampler of another"):
            factory.make_sampler(
                "PartialFixedSampler", {"fixed_params": {}, "base_sampler": inner}, 1, 0
            )
