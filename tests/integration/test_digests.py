"""Digests equal the trials in the tables, whoever writes these and whenever digests are made."""

from __future__ import annotations

import math
import random

import optuna
import pytest
from databases import execute
from digest_comparison import check_digests
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import text
from sqlalchemy.engine import Engine

from service import Hall, Study, database
from service.database import schema
from service.storage import leases
from service.storage.leases import Lease
from service.storage.storage import StudyStorage

UNIT = FloatDistribution(0, 1)
KIND = CategoricalDistribution(("a", "b"))
RELATIVE_PARAMS = "tpe:relative_params:0"


def stored_digests(engine: Engine) -> dict[int, bool]:
    """The ids of the trials that have a digest, and whether it is a finished trial's."""
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT trial_id, finished FROM service.digests"))
        return {row.trial_id: row.finished for row in rows}


def claim(hall: Hall, study: Study) -> tuple[StudyStorage, Lease]:
    storage = StudyStorage(hall.engine)
    lease = leases.claim(hall.engine, study.study_id, "w", 60.0)
    assert lease is not None
    storage.hold(lease)
    return storage, lease


def random_trial(chance: random.Random) -> FrozenTrial:
    """A trial in any state, with some of the parameters; some values are infinite or NaN."""
    state = chance.choice(list(TrialState))
    params = {"x": chance.random(), "kind": chance.choice("ab")}
    for name in chance.sample([*params], chance.randrange(3)):
        del params[name]
    numbers = [chance.random(), 1.0, math.inf, -math.inf]
    trial = create_trial(
        state=state,
        value=chance.choice(numbers) if state == TrialState.COMPLETE else None,
        params=params,
        distributions={name: UNIT if name == "x" else KIND for name in params},
        intermediate_values={
            step: chance.choice([*numbers, math.nan])
            for step in chance.sample(range(20), chance.randrange(4))
        },
    )
    trial.intermediate_values = dict(sorted(trial.intermediate_values.items()))
    return trial


def test_reading_trials_without_digests_makes_their_digests(engine: Engine) -> None:
    storage, chance = StudyStorage(engine), random.Random(1)
    study_id = storage.create_new_study([StudyDirection.MINIMIZE])
    storage.add_trials(study_id, [random_trial(chance) for _ in range(60)])
    assert stored_digests(engine) == {}
    check_digests(storage, study_id)


def test_a_leased_trial_gets_a_digest_with_its_first_report_and_with_its_end(
    hall: Hall, study: Study
) -> None:
    storage, lease = claim(hall, study)
    storage.set_trial_param(lease.trial_id, "x", 0.25, UNIT)
    storage.set_trial_param(lease.trial_id, "kind", 1, KIND)
    storage.set_trial_intermediate_value(lease.trial_id, 0, math.nan)
    assert stored_digests(hall.engine) == {lease.trial_id: False}
    check_digests(storage, study.study_id)
    storage.set_trial_intermediate_value(lease.trial_id, 3, math.inf)
    storage.set_trial_param(lease.trial_id, "late", 0.5, UNIT)
    storage.set_trial_intermediate_value(lease.trial_id, 4, 2.0)
    check_digests(storage, study.study_id)
    storage.finish(lease, TrialState.COMPLETE, [-math.inf])
    assert stored_digests(hall.engine) == {lease.trial_id: True}
    check_digests(storage, study.study_id)


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.FAIL])
def test_readers_ignore_the_running_digest_of_a_trial_that_stock_optuna_ended(
    hall: Hall, study: Study, state: TrialState
) -> None:
    storage, lease = claim(hall, study)
    reader = StudyStorage(hall.engine)
    storage.set_trial_param(lease.trial_id, "x", 0.25, UNIT)
    storage.set_trial_intermediate_value(lease.trial_id, 0, 1.0)
    assert lease.trial_id in reader.digest_cache(study.study_id, running=True).running
    url = database.database_url_for_stock(database.full_url(hall.engine.url))
    stock = RDBStorage(url)
    values = [3.0] if state == TrialState.COMPLETE else None
    stock.set_trial_state_values(lease.trial_id, state, values)
    digest_cache = reader.digest_cache(study.study_id)
    assert [(digest.state, list(digest.values)) for digest in digest_cache.finished] == [
        (state, values or [])
    ]
    assert digest_cache.running == {}
    check_digests(storage, study.study_id)


def test_a_continued_trial_stays_one_running_trial_for_readers(hall: Hall, study: Study) -> None:
    storage, lease = claim(hall, study)
    reader = StudyStorage(hall.engine)
    storage.set_trial_param(lease.trial_id, "x", 0.25, UNIT)
    storage.set_trial_intermediate_value(lease.trial_id, 0, 1.0)
    leases.release(hall.engine, lease, "signal")
    assert [*reader.digest_cache(study.study_id, running=True).running] == [lease.trial_id]
    successor, new_lease = claim(hall, study)
    assert new_lease.trial_id == lease.trial_id
    successor.delete_reports(new_lease, 0)
    successor.set_trial_intermediate_value(lease.trial_id, 0, 2.0)
    assert [*reader.digest_cache(study.study_id, running=True).running] == [lease.trial_id]
    successor.finish(new_lease, TrialState.PRUNED)
    assert [digest.reported for digest in reader.digest_cache(study.study_id).finished] == [[2.0]]
    check_digests(storage, study.study_id)


def test_the_end_of_a_trial_without_a_lease_stores_its_digest(engine: Engine) -> None:
    storage = StudyStorage(engine)
    study = optuna.create_study(storage=storage)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    study.ask().suggest_float("x", 0, 1)
    assert list(stored_digests(engine).values()) == [True] * 3
    check_digests(storage, study._study_id)
    storage.delete_study(study._study_id)
    assert stored_digests(engine) == {}


def test_readers_make_digests_of_studies_from_before_the_digests_table(
    engine: Engine, database_url: str
) -> None:
    study = optuna.create_study(storage=StudyStorage(engine), study_name="old")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    execute(database_url, "DROP SCHEMA service CASCADE")
    schema.upgrade(database_url)
    assert stored_digests(engine) == {}
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    assert len(stored_digests(engine)) == 2
    check_digests(StudyStorage(engine), study._study_id)


def test_relative_params_are_stored_only_until_all_of_them_are_suggested(
    hall: Hall, study: Study
) -> None:
    storage, lease = claim(hall, study)
    reader = StudyStorage(hall.engine)
    storage.set_trial_system_attr(lease.trial_id, RELATIVE_PARAMS, '{"x": 0.25, "kind": "b"}')
    storage.set_trial_param(lease.trial_id, "x", 0.25, UNIT)
    storage.flush()
    assert reader.get_trial_system_attrs(lease.trial_id) == {
        RELATIVE_PARAMS: '{"x": 0.25, "kind": "b"}'
    }
    running = reader.digest_cache(study.study_id, running=True).running[lease.trial_id]
    assert running.notes == {RELATIVE_PARAMS: '{"x": 0.25, "kind": "b"}'}
    storage.finish(lease, TrialState.PRUNED)

    storage, lease = claim(hall, study)
    storage.set_trial_system_attr(lease.trial_id, RELATIVE_PARAMS, '{"x": 0.25, "kind": "b"}')
    storage.set_trial_param(lease.trial_id, "x", 0.25, UNIT)
    storage.set_trial_param(lease.trial_id, "kind", 1, KIND)
    storage.flush()
    assert reader.get_trial_system_attrs(lease.trial_id) == {}
    assert storage.get_trial(lease.trial_id) == reader.get_trial(lease.trial_id)
