"""A held trial costs few statements, is fenced by its lease, and ends in one transaction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState
from sqlalchemy.engine import Engine

from service import Hall, Study
from service.errors import StaleLease
from service.sampling import pruners, tpe
from service.storage import leases
from service.storage.leases import Lease
from service.storage.storage import StudyStorage

UNIT = FloatDistribution(0, 1)


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """The statements that the engine sends inside the block."""
    sent: list[str] = []

    def note(_c: object, _cursor: object, statement: str, *_rest: object) -> None:
        sent.append(statement)

    sqlalchemy.event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        sqlalchemy.event.remove(engine, "before_cursor_execute", note)


def claim(hall: Hall, study: Study, seconds: float = 60.0) -> Lease:
    lease = leases.claim(hall.engine, study.study_id, "w", seconds)
    assert lease is not None
    return lease


def run(storage: StudyStorage, study: optuna.Study, lease: Lease, reports: int) -> None:
    """One trial of eight parameters, as a worker runs it."""
    storage.hold(lease)
    study._thread_local.cached_all_trials = None
    trial = optuna.Trial(study, lease.trial_id)
    for index in range(8):
        trial.suggest_float(f"x{index}", 0, 1)
    for step in range(reports):
        trial.report(float(step), step)
        trial.should_prune()
    study.tell(trial, 1.0)
    storage.drop(lease)


@pytest.mark.parametrize(
    ("sampler", "pruner", "news"),
    [
        (tpe.TPESampler, pruners.MedianPruner, 1),
        (optuna.samplers.TPESampler, optuna.pruners.MedianPruner, 12),
    ],
)
def test_a_trial_takes_two_statements_its_reports_and_the_news(
    hall: Hall, study: Study, sampler: Any, pruner: Any, news: int
) -> None:
    storage = StudyStorage(hall.engine)
    optuna_study = optuna.load_study(
        study_name=study.name,
        storage=storage,
        sampler=sampler(seed=1, n_startup_trials=2),
        pruner=pruner(n_startup_trials=1),
    )
    for _ in range(4):
        run(storage, optuna_study, claim(hall, study), 2)
    with statements(hall.engine) as sent:
        run(storage, optuna_study, claim(hall, study), 10)
    read = ("SELECT service.read_trials", "SELECT service.read_digests")
    own = [statement for statement in sent if not any(asked in statement for asked in read)]
    assert len(own) == 1 + 10 + 1, own
    assert len(sent) - len(own) <= news


def test_parameters_wait_for_the_first_report_and_go_with_it(hall: Hall, study: Study) -> None:
    storage, other = StudyStorage(hall.engine), StudyStorage(hall.engine)
    lease = claim(hall, study)
    storage.hold(lease)
    with statements(hall.engine) as sent:
        storage.set_trial_param(lease.trial_id, "x", 0.25, UNIT)
        storage.set_trial_param(lease.trial_id, "y", 0.5, UNIT)
        assert storage.get_trial(lease.trial_id).params == {"x": 0.25, "y": 0.5}
    assert [statement for statement in sent if "service.write_trial" in statement] == []
    with statements(hall.engine) as sent:
        storage.set_trial_intermediate_value(lease.trial_id, 0, 1.0)
    assert len(sent) == 1
    seen = other.get_trial(lease.trial_id)
    assert seen.params == {"x": 0.25, "y": 0.5} and list(seen.params) == ["x", "y"]
    assert seen.intermediate_values == {0: 1.0}


def test_a_samplers_notes_wait_with_its_suggestions_and_a_pruners_do_not(
    hall: Hall, study: Study
) -> None:
    storage, other = StudyStorage(hall.engine), StudyStorage(hall.engine)
    lease = claim(hall, study)
    storage.hold(lease)
    storage.set_trial_system_attr(lease.trial_id, "sampler", 1)
    assert storage.get_trial_system_attrs(lease.trial_id) == {"sampler": 1}
    assert other.get_trial_system_attrs(lease.trial_id) == {}
    storage.set_trial_intermediate_value(lease.trial_id, 0, 1.0)
    assert other.get_trial_system_attrs(lease.trial_id) == {"sampler": 1}
    storage.set_trial_system_attr(lease.trial_id, "pruner", 2)
    assert other.get_trial_system_attrs(lease.trial_id) == {"sampler": 1, "pruner": 2}


def test_flush_writes_what_waits(hall: Hall, study: Study) -> None:
    storage = StudyStorage(hall.engine)
    lease = claim(hall, study)
    storage.hold(lease)
    storage.set_trial_param(lease.trial_id, "x", 0.25, UNIT)
    storage.flush()
    assert StudyStorage(hall.engine).get_trial(lease.trial_id).params == {"x": 0.25}
    with statements(hall.engine) as sent:
        storage.flush()
    assert sent == []


def test_a_trial_that_never_reports_keeps_its_parameters(hall: Hall, study: Study) -> None:
    storage = StudyStorage(hall.engine)
    lease = claim(hall, study)
    storage.hold(lease)
    storage.set_trial_param(lease.trial_id, "x", 0.25, UNIT)
    storage.set_trial_state_values(lease.trial_id, TrialState.COMPLETE, [3.0])
    seen = StudyStorage(hall.engine).get_trial(lease.trial_id)
    assert (seen.params, seen.value) == ({"x": 0.25}, 3.0)


def test_what_is_kept_of_a_held_trial_equals_what_is_stored(hall: Hall, study: Study) -> None:
    storage = StudyStorage(hall.engine)
    lease = claim(hall, study)
    storage.hold(lease)
    storage.set_trial_param(lease.trial_id, "x", 0.25, UNIT)
    storage.set_trial_user_attr(lease.trial_id, "key", {"a": [1, None]})
    storage.set_trial_system_attr(lease.trial_id, "key", 1)
    for step, value in enumerate((1.0, float("inf"), float("-inf"))):
        storage.set_trial_intermediate_value(lease.trial_id, step, value)
    assert storage.get_trial(lease.trial_id) == StudyStorage(hall.engine).get_trial(lease.trial_id)
    storage.delete_reports(lease, step=1)
    assert storage.get_trial(lease.trial_id) == StudyStorage(hall.engine).get_trial(lease.trial_id)
    storage.finish(lease, TrialState.COMPLETE, [2.0], attrs={"epoch": 7})
    assert storage.get_trial(lease.trial_id) == StudyStorage(hall.engine).get_trial(lease.trial_id)
    assert storage.get_trial(lease.trial_id).user_attrs["epoch"] == 7


def test_a_stale_lease_writes_nothing_with_what_waited(hall: Hall, study: Study) -> None:
    storage = StudyStorage(hall.engine)
    lease = claim(hall, study, seconds=0.0)
    storage.hold(lease)
    storage.set_trial_param(lease.trial_id, "x", 0.25, UNIT)
    taken = claim(hall, study)
    assert taken.trial_id == lease.trial_id
    with pytest.raises(StaleLease):
        storage.set_trial_intermediate_value(lease.trial_id, 0, 1.0)
    with pytest.raises(StaleLease):
        storage.finish(lease, TrialState.COMPLETE, [1.0])
    seen = StudyStorage(hall.engine).get_trial(lease.trial_id)
    assert seen.state == TrialState.RUNNING
    assert (seen.params, seen.intermediate_values, seen.values) == ({}, {}, None)


def test_an_end_whose_answer_was_lost_may_be_told_again(hall: Hall, study: Study) -> None:
    lease = claim(hall, study)
    for _ in range(2):
        storage = StudyStorage(hall.engine)
        storage.hold(lease)
        assert storage.finish(lease, TrialState.FAIL, cause="error", detail="ValueError: no")
    with hall.engine.connect() as connection:
        failures = connection.execute(
            sqlalchemy.text("SELECT failures FROM service.studies")
        ).scalar_one()
    assert failures == 1


def test_a_trial_that_stock_optuna_finished_refuses_its_holder(
    hall: Hall, study: Study, database_url: str
) -> None:
    storage = StudyStorage(hall.engine)
    lease = claim(hall, study)
    storage.hold(lease)
    stock = optuna.storages.RDBStorage(database_url)
    stock.set_trial_state_values(lease.trial_id, TrialState.FAIL)
    with pytest.raises(StaleLease, match="trial 0 was ended by somebody else"):
        storage.set_trial_intermediate_value(lease.trial_id, 0, 1.0)
    with pytest.raises(StaleLease):
        leases.renew(hall.engine, lease, 60.0)


def test_a_released_lease_cannot_be_renewed(hall: Hall, study: Study) -> None:
    lease = claim(hall, study)
    leases.release(hall.engine, lease, "preempted")
    with pytest.raises(StaleLease):
        leases.renew(hall.engine, lease, 60.0)
