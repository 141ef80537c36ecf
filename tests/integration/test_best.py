"""The best trial is the one that Optuna names, and finding it stays cheap."""

from __future__ import annotations

import math
import random
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.study._constrained_optimization import _get_constraints_from_system_attrs
from optuna.trial import FrozenTrial, TrialState, create_trial

from service import Budget, Hall, Spec, Study, database
from service.storage.constraints import constraints, is_feasible, is_infeasible
from service.storage.storage import StudyStorage
from service.studies import feasible

ATTRIBUTES: list[dict[str, Any]] = [
    {},
    {"constraints": []},
    {"constraints": [0.0, -1.0]},
    {"constraints": [-1.0, 0.5]},
    {"constraints": [math.inf]},
    {"constraints:memory": 0.0},
    {"constraints:memory": 2.0, "constraints:time": -1.0},
    {"constraints:memory": -math.inf},
    {"constraintsless": [1.0]},
]


def any_value(chance: random.Random) -> float:
    """One of few values, so that there are ties; some are infinite."""
    if chance.random() < 0.1:
        return chance.choice([math.inf, -math.inf])
    return round(chance.uniform(-1, 1), 1)


def any_trial(chance: random.Random, constrained: float) -> FrozenTrial:
    state = chance.choice([TrialState.COMPLETE] * 4 + [*TrialState])
    attrs = chance.choice(ATTRIBUTES) if chance.random() < constrained else {}
    value = any_value(chance) if state == TrialState.COMPLETE else None
    return create_trial(state=state, value=value, system_attrs=attrs)


def end_with_any_value(storage: StudyStorage, study: Study, chance: random.Random) -> None:
    """End a trial, some with NaN, which no template may have."""
    attrs = chance.choice(ATTRIBUTES)
    trial_id = storage.create_new_trial(
        study.study_id, create_trial(state=TrialState.RUNNING, system_attrs=attrs)
    )
    value = math.nan if chance.random() < 0.3 else any_value(chance)
    storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [value])


def number_of_optunas_best(study: optuna.Study) -> int | None:
    try:
        return study.best_trial.number
    except ValueError:
        return None


def number(best: Any) -> int | None:
    return None if best is None else best.number


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("constrained", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_best_trial_is_optunas(
    hall: Hall, direction: str, constrained: float, seed: int
) -> None:
    chance = random.Random(f"{direction}{constrained}{seed}")
    study = hall.create("b", Spec("stubs:quick", direction=direction), Budget(1000))
    storage = StudyStorage(hall.engine)
    seen = set()
    for _ in range(25):
        if chance.random() < 0.3 and seed % 2:
            end_with_any_value(storage, study, chance)
        else:
            several = [any_trial(chance, constrained) for _ in range(chance.randrange(3))]
            storage.add_trials(study.study_id, several)
        expected = number_of_optunas_best(hall.study("b").optuna)
        assert number(study.best) == number(study.progress().best) == expected
        assert number(hall.study("b").progress().best) == expected
        seen.add(expected)
    assert len(seen) > 1


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("seed", range(3))
def test_stock_optuna_on_its_own_storage_says_the_same(
    hall: Hall, database_url: str, direction: str, seed: int
) -> None:
    chance = random.Random(f"{direction}{seed}")
    study = hall.create("b", Spec("stubs:quick", direction=direction), Budget(1000))
    storage = StudyStorage(hall.engine)
    stock = optuna.load_study(
        study_name="b", storage=RDBStorage(database.database_url_for_stock(database_url))
    )
    for _ in range(15):
        storage.add_trials(study.study_id, [any_trial(chance, 0.7)])
        expected = number_of_optunas_best(stock)
        best = study.best
        if best is None or expected is None:
            assert best is expected is None
        else:  # of equals, stock names any
            assert best.value == stock.best_trial.value
            assert is_feasible(stock.trials[best.number].system_attrs)


def test_a_better_infeasible_trial_takes_no_place_away(hall: Hall) -> None:
    study = hall.create("b", Spec("stubs:quick"), Budget(10))
    study.optuna.add_trial(create_trial(value=1.0, constraints={"c": 0.0}))
    first = study.progress()
    study.optuna.add_trial(create_trial(value=0.0, constraints={"c": 1.0}))
    assert first.best is not None and study.progress().best == first.best == study.best
    study.optuna.add_trial(create_trial(value=0.5, constraints={"c": -1.0}))
    assert number(study.progress().best) == number(study.best) == 2


def test_without_a_feasible_trial_there_is_no_best_one(hall: Hall) -> None:
    study = hall.create("b", Spec("stubs:quick"), Budget(10))
    for value in (1.0, 0.0, 2.0):
        study.optuna.add_trial(create_trial(value=value, constraints={"c": 1.0}))
        assert study.best is None and study.progress().best is None
    assert study.progress().complete == 3
    study.optuna.add_trial(create_trial(value=9.0))
    assert number(study.best) == number(study.progress().best) == 3


def test_constraints_are_read_as_optuna_reads_them() -> None:
    for attrs in [*ATTRIBUTES, {"constraints": [1.0, 2.0], "constraints:b": 3}]:
        found = constraints(attrs)
        assert found == _get_constraints_from_system_attrs(attrs)
        trial = create_trial(value=0.0, system_attrs=attrs)
        assert is_feasible(attrs) == all(value <= 0 for value in trial.constraints.values())
        assert is_infeasible(attrs) != is_feasible(attrs)


def test_constraints_that_are_no_numbers_do_not_hold() -> None:
    texts = {"constraints": ["x", None]}, {"constraints:a": "1"}
    for attrs in (*texts, {"constraints:a": math.nan}):
        assert not is_feasible(attrs) and not is_infeasible(attrs)
    assert is_feasible({"constraints": "a text is no list"})


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The constraints of every trial that a search looks at."""
    found: list[Any] = []

    def noting(attrs: Any) -> bool:
        found.append(attrs)
        return is_feasible(attrs)

    monkeypatch.setattr(feasible, "is_feasible", noting)
    return found


def test_each_finished_trial_is_read_once(hall: Hall, examined: list[Any]) -> None:
    study = hall.create("b", Spec("stubs:quick"), Budget(10))
    storage = StudyStorage(hall.engine)
    trials = [create_trial(value=-1.0, constraints={"c": 1.0})]
    trials += [create_trial(value=float(n), constraints={"c": 0.0}) for n in range(50)]
    storage.add_trials(study.study_id, trials)
    running = study.optuna.ask()
    assert number(study.progress().best) == 1 and len(examined) == 4
    examined.clear()
    study.progress()
    assert examined == []
    study.optuna.tell(running, -0.25)
    storage.add_trials(study.study_id, [create_trial(value=-0.5, constraints={"c": 0.0})])
    assert number(study.progress().best) == 52 and len(examined) == 2


def test_the_best_feasible_trial_of_many_is_found_without_reading_them_all(
    hall: Hall, examined: list[Any]
) -> None:
    study = hall.create("b", Spec("stubs:quick", direction="maximize"), Budget(10))
    with hall.engine.begin() as connection:
        connection.exec_driver_sql(MANY, {"study": study.study_id})
    best = study.best
    assert best is not None and (best.number, best.value) == (4_989, 4_989.0)
    assert len(examined) == 12  # the first of all, the ten best, and the one after them
    assert not study._storage._caches


MANY = """-- 5,000 complete trials; the ten best ones are infeasible.
WITH new AS (
  INSERT INTO public.trials (number, study_id, state, datetime_start, datetime_complete)
  SELECT n, %(study)s, 'COMPLETE', now(), now() FROM generate_series(0, 4999) n
  RETURNING trial_id, number),
valued AS (
  INSERT INTO public.trial_values (trial_id, objective, value, value_type)
  SELECT trial_id, 0, number, 'FINITE' FROM new)
INSERT INTO public.trial_system_attributes (trial_id, key, value_json)
SELECT trial_id, 'constraints', CASE WHEN number < 4990 THEN '[0.0]' ELSE '[1.0]' END FROM new"""


def test_a_study_without_constraints_reads_no_digests(hall: Hall) -> None:
    study = hall.create("b", Spec("stubs:quick"), Budget(10))
    storage = StudyStorage(hall.engine)
    storage.add_trials(study.study_id, [create_trial(value=float(n)) for n in range(5)])
    assert number(study.progress().best) == 0
    assert not study._storage._cache(study.study_id).digests.finished
