"""A sampler that looks at running trials sees what the other workers' samplers suggest."""

from __future__ import annotations

import optuna

from service import Budget, Hall, Spec
from service.sampling import factory
from service.storage import leases
from service.storage.storage import StudyStorage

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
