"""Digests say what the tables say, whoever wrote them and whenever they were made."""

from __future__ import annotations

import math
import random

import optuna
import pytest
from databases import execute
from digested import check_digests
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
NOTE = "tpe:relative_params:0"


def kept(engine: Engine) -> dict[int, bool]:
    """The trials that have a digest, and whether it is that of a finished trial."""
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT trial_id, finished FROM service.digests"))
        return {row.trial_id: row.finished for row in rows}


def claim(hall: Hall, study: Study) -> tuple[StudyStorage, Lease]:
    storage = StudyStorage(hall.engine)
    lease = leases.claim(hall.engine, study.study_id, "w", 60.0)
    assert lease is not None
    storage.hold(lease)
    return storage, lease


def template(chance: random.Random) -> FrozenTrial:
    """A trial of any state, with some of its parameters and values that are no numbers."""
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


def test_trials_that_have_no_digest_are_digested_by_their_reader(engine: Engine) -> None:
    storage, chance = StudyStorage(engine), random.Random(1)
    study_id = storage.create_new_study([StudyDirection.MINIMIZE])
    storage.add_trials(study_id, [template(chance) for _ in range(60)])
    assert kept(engine) == {}
    check_digests(storage, study_id)


def test_a_held_trial_is_digested_with_its_parameters_and_with_its_end(
    hall: Hall, study: Study
) -> None:
    storage, lease = claim(hall, study)
    storage.set_trial_param(lease.trial_id, "x", 0.25, UNIT)
    storage.set_trial_param(lease.trial_id, "kind", 1, KIND)
    storage.set_trial_intermediate_value(lease.trial_id, 0, math.nan)
    assert kept(hall.engine) == {lease.trial_id: False}
    check_digests(storage, study.study_id)
    storage.set_trial_intermediate_value(lease.trial_id, 3, math.inf)
    storage.set_trial_param(lease.trial_id, "late", 0.5, UNIT)
    storage.set_trial_intermediate_value(lease.trial_id, 4, 2.0)
    check_digests(storage, study.study_id)
    storage.finish(lease, TrialState.COMPLETE, [-math.inf])
    assert kept(hall.engine) == {lease.trial_id: True}
    check_digests(storage, study.study_id)


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.FAIL])
def test_the_digest_of_a_running_trial_that_stock_optuna_ended_is_not_believed(
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


def test_a_trial_that_is_continued_keeps_its_place(hall: Hall, study: Study) -> None:
    storage, lease = claim(hall, study)
    reader = StudyStorage(hall.engine)
    storage.set_trial_param(lease.trial_id, "x", 0.25, UNIT)
    storage.set_trial_intermediate_value(lease.trial_id, 0, 1.0)
    leases.release(hall.engine, lease, "signal")
    assert [*reader.digest_cache(study.study_id, running=True).running] == [lease.trial_id]
    successor, taken = claim(hall, study)
    assert taken.trial_id == lease.trial_id
    successor.delete_reports(taken, 0)
    successor.set_trial_intermediate_value(lease.trial_id, 0, 2.0)
    assert [*reader.digest_cache(study.study_id, running=True).running] == [lease.trial_id]
    successor.finish(taken, TrialState.PRUNED)
    assert [digest.reported for digest in reader.digest_cache(study.study_id).finished] == [[2.0]]
    check_digests(storage, study.study_id)


def test_plain_trials_are_digested_at_their_end(engine: Engine) -> None:
    storage = StudyStorage(engine)
    study = optuna.create_study(storage=storage)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    study.ask().suggest_float("x", 0, 1)
    assert list(kept(engine).values()) == [True] * 3
    check_digests(storage, study._study_id)
    storage.delete_study(study._study_id)
    assert kept(engine) == {}


def test_studies_from_before_there_were_digests_are_read_as_well(
    engine: Engine, database_url: str
) -> None:
    study = optuna.create_study(storage=StudyStorage(engine), study_name="old")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    execute(database_url, "DROP TABLE service.digests, service.versions")
    execute(database_url, "UPDATE service.alembic_version SET version_num = '0003'")
    schema.upgrade(database_url)
    assert kept(engine) == {}
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    assert len(kept(engine)) == 2
    check_digests(StudyStorage(engine), study._study_id)


def test_what_a_sampler_announces_is_written_until_all_of_it_is_suggested(
    hall: Hall, study: Study
) -> None:
    storage, lease = claim(hall, study)
    reader = StudyStorage(hall.engine)
    storage.set_trial_system_attr(lease.trial_id, NOTE, '{"x": 0.25, "kind": "b"}')
    storage.set_trial_param(lease.trial_id, "x", 0.25, UNIT)
    storage.flush()
    assert reader.get_trial_system_attrs(lease.trial_id) == {NOTE: '{"x": 0.25, "kind": "b"}'}
    running = reader.digest_cache(study.study_id, running=True).running[lease.trial_id]
    assert running.notes == {NOTE: '{"x": 0.25, "kind": "b"}'}
    storage.finish(lease, TrialState.PRUNED)

    storage, lease = claim(hall, study)
    storage.set_trial_system_attr(lease.trial_id, NOTE, '{"x": 0.25, "kind": "b"}')
    storage.set_trial_param(lease.trial_id, "x", 0.25, UNIT)
    storage.set_trial_param(lease.trial_id, "kind", 1, KIND)
    storage.flush()
    assert reader.get_trial_system_attrs(lease.trial_id) == {}
    assert storage.get_trial(lease.trial_id) == reader.get_trial(lease.trial_id)
