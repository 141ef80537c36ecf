"""A leased trial sends few statements, its lease protects it, and one transaction ends it."""

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
    """The statements that the engine sends in the block."""
    sent: list[str] = []

    def append(_c: object, _cursor: object, statement: str, *_rest: object) -> None:
        sent.append(statement)

    sqlalchemy.event.listen(engine, "before_cursor_execute", append)
    try:
        yield sent
    finally:
        sqlalchemy.event.remove(engine, "before_cursor_execute", append)


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
    ("sampler", "pruner", "max_reads"),
    [
        (tpe.TPESampler, pruners.MedianPruner, 1),
        (optuna.samplers.TPESampler, optuna.pruners.MedianPruner, 12),
    ],
)
def test_a_trial_sends_a_claim_its_reports_an_end_and_few_reads(
    hall: Hall, study: Study, sampler: Any, pruner: Any, max_reads: int
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
    reads = ("SELECT service.read_trials", "SELECT service.read_digests")
    writes = [statement for statement in sent if not any(read in statement for read in reads)]
    assert len(writes) == 1 + 10 + 1, writes
    assert len(sent) - len(writes) <= max_reads


def test_the_first_report_writes_the_parameters_in_the_same_statement(
    hall: Hall, study: Study
) -> None:
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
    stored = other.get_trial(lease.trial_id)
    assert stored.params == {"x": 0.25, "y": 0.5} and list(stored.params) == ["x", "y"]
    assert stored.intermediate_values == {0: 1.0}


def test_the_first_report_writes_the_samplers_attributes_and_later_ones_are_written_at_once(
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


def test_flush_writes_unwritten_parameters(hall: Hall, study: Study) -> None:
    storage = StudyStorage(hall.engine)
    lease = claim(hall, study)
    storage.hold(lease)
    storage.set_trial_param(lease.trial_id, "x", 0.25, UNIT)
    storage.flush()
    assert StudyStorage(hall.engine).get_trial(lease.trial_id).params == {"x": 0.25}
    with statements(hall.engine) as sent:
        storage.flush()
    assert sent == []


def test_the_end_of_a_trial_without_reports_writes_its_parameters(
    hall: Hall, study: Study
) -> None:
    storage = StudyStorage(hall.engine)
    lease = claim(hall, study)
    storage.hold(lease)
    storage.set_trial_param(lease.trial_id, "x", 0.25, UNIT)
    storage.set_trial_state_values(lease.trial_id, TrialState.COMPLETE, [3.0])
    stored = StudyStorage(hall.engine).get_trial(lease.trial_id)
    assert (stored.params, stored.value) == ({"x": 0.25}, 3.0)


def test_the_leased_trial_in_memory_equals_the_stored_one(hall: Hall, study: Study) -> None:
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


def test_a_stale_lease_writes_nothing_not_even_earlier_parameters(
    hall: Hall, study: Study
) -> None:
    storage = StudyStorage(hall.engine)
    lease = claim(hall, study, seconds=0.0)
    storage.hold(lease)
    storage.set_trial_param(lease.trial_id, "x", 0.25, UNIT)
    new_lease = claim(hall, study)
    assert new_lease.trial_id == lease.trial_id
    with pytest.raises(StaleLease):
        storage.set_trial_intermediate_value(lease.trial_id, 0, 1.0)
    with pytest.raises(StaleLease):
        storage.finish(lease, TrialState.COMPLETE, [1.0])
    stored = StudyStorage(hall.engine).get_trial(lease.trial_id)
    assert stored.state == TrialState.RUNNING
    assert (stored.params, stored.intermediate_values, stored.values) == ({}, {}, None)


def test_a_trial_that_fails_twice_with_one_lease_counts_once(hall: Hall, study: Study) -> None:
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


def test_a_leased_trial_that_stock_optuna_finished_accepts_no_report(
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
