"""Where StudyStorage once differed from stock Optuna: one test for each difference.

`tests/differential` finds such differences; these tests say what each of them was.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial
from sqlalchemy import Connection
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError

from service import Hall, Study
from service.database.connection import SharedConnection
from service.errors import StaleLease
from service.storage import leases
from service.storage.storage import StudyStorage

UNIT = FloatDistribution(0, 1)


@pytest.fixture
def storage(engine: Engine) -> StudyStorage:
    return StudyStorage(engine)


@pytest.fixture
def study_id(storage: StudyStorage) -> int:
    return storage.create_new_study([StudyDirection.MINIMIZE], "equal")


@pytest.fixture
def stock(database_url: str, study_id: int) -> RDBStorage:
    return RDBStorage(database_url)


@pytest.fixture
def lose_answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Breaks the connection after the first statement with a text was done."""

    def lose(part: str) -> list[str]:
        lost: list[str] = []
        send = SharedConnection._send

        def broken(
            self: SharedConnection, connection: Connection, sql: str, values: Any = None
        ) -> Any:
            answer = send(self, connection, sql, values)
            if part in sql and not lost:
                lost.append(sql)
                self._drop()
                cause = Exception("server closed the connection unexpectedly")
                raise OperationalError(sql, None, cause, connection_invalidated=True)
            return answer

        monkeypatch.setattr(SharedConnection, "_send", broken)
        return lost

    return lose


def test_equal_choices_of_other_types_keep_their_types(
    storage: StudyStorage, study_id: int, stock: RDBStorage
) -> None:
    for choices in ((0, 1), (False, True), (0.0, 1.0)):
        trial_id = storage.create_new_trial(study_id)
        storage.set_trial_param(trial_id, "x", 1, CategoricalDistribution(choices))
        for reader in (storage, stock):
            assert repr(reader.get_trial(trial_id).params["x"]) == repr(choices[1])


def test_choices_may_be_lists_and_dicts(storage: StudyStorage, stock: RDBStorage) -> None:
    study = optuna.load_study(study_name="equal", storage=storage)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study.optimize(
            lambda trial: len(trial.suggest_categorical("layers", [[32], [64, 64]])), n_trials=3
        )
    assert stock.get_all_trials(study._study_id) == study.trials


def test_a_trial_that_another_ends_meanwhile_is_not_overwritten(hall: Hall, study: Study) -> None:
    lease = leases.claim(hall.engine, study.study_id, "w", 60.0)
    assert lease is not None
    storage = StudyStorage(hall.engine)
    storage.hold(lease)
    errors: list[BaseException] = []

    def finish() -> None:
        try:
            storage.finish(lease, TrialState.COMPLETE, [1.0])
        except StaleLease as error:
            errors.append(error)

    with hall.engine.connect() as connection:  # a plain tell(FAIL), before its commit
        key = {"id": lease.trial_id}
        for statement in (
            "SELECT state FROM trials WHERE trial_id = :id FOR UPDATE",
            "UPDATE trials SET state = 'FAIL', datetime_complete = now() WHERE trial_id = :id",
        ):
            connection.execute(sqlalchemy.text(statement), key)
        thread = threading.Thread(target=finish)
        thread.start()
        time.sleep(0.5)
        assert thread.is_alive()
        connection.commit()
    thread.join(20)
    assert len(errors) == 1
    trial = StudyStorage(hall.engine).get_trial(lease.trial_id)
    assert (trial.state, trial.values) == (TrialState.FAIL, None)


@pytest.mark.parametrize("method", ["add_trial", "add_trials"])
def test_a_trial_of_another_kind_of_parameter_is_refused(
    storage: StudyStorage, study_id: int, method: str
) -> None:
    def template(distribution: BaseDistribution, value: Any) -> optuna.trial.FrozenTrial:
        return create_trial(params={"x": value}, distributions={"x": distribution}, value=0.0)

    def add(*trials: optuna.trial.FrozenTrial) -> None:
        if method == "add_trials":
            storage.add_trials(study_id, trials)
        for trial in trials if method == "add_trial" else ():
            storage.create_new_trial(study_id, trial)

    add(template(CategoricalDistribution(("a", "b")), "b"))
    for other in (CategoricalDistribution(("b", "a")), CategoricalDistribution(("b",))):
        with pytest.raises(ValueError, match="dynamic value space"):
            add(template(other, "b"))
    with pytest.raises(ValueError, match="kind"):
        add(template(UNIT, 0.5))
    assert len(storage.get_all_trials(study_id)) == 1


def test_a_refused_parameter_does_not_bind_its_name(storage: StudyStorage, study_id: int) -> None:
    done = storage.create_new_trial(study_id)
    storage.set_trial_state_values(done, TrialState.FAIL)
    with pytest.raises(UpdateFinishedTrialError):
        storage.set_trial_param(done, "x", 0, CategoricalDistribution(("a", "b")))
    storage.set_trial_param(storage.create_new_trial(study_id), "x", 0.5, UNIT)


def test_a_value_that_is_nan_in_stock_is_read(
    storage: StudyStorage, study_id: int, stock: RDBStorage
) -> None:
    for writer in (stock, storage):
        trial_id = writer.create_new_trial(study_id)
        writer.set_trial_state_values(trial_id, TrialState.COMPLETE, [float("nan")])
    assert repr(storage.get_all_trials(study_id)) == repr(stock.get_all_trials(study_id))
    assert [repr(digest.values) for digest in storage.digest_cache(study_id).finished] == [
        "[nan]"
    ] * 2


def test_the_maker_of_a_trial_sees_that_another_has_ended_it(
    storage: StudyStorage, study_id: int, stock: RDBStorage
) -> None:
    trial_id = storage.create_new_trial(study_id)
    stock.set_trial_state_values(trial_id, TrialState.COMPLETE, [1.0])
    assert storage.get_trial(trial_id).state == TrialState.COMPLETE


def test_a_trial_that_waits_again_is_read_again(
    storage: StudyStorage, study_id: int, stock: RDBStorage
) -> None:
    trial_id = storage.create_new_trial(study_id)
    storage.set_trial_param(trial_id, "x", 0.5, UNIT)
    assert trial_id in storage.digest_cache(study_id, running=True).running
    storage.set_trial_state_values(trial_id, TrialState.WAITING)
    assert trial_id not in storage.digest_cache(study_id, running=True).running
    storage.set_trial_state_values(trial_id, TrialState.RUNNING)
    stock.set_trial_param(trial_id, "y", 0.5, UNIT)
    digest = storage.digest_cache(study_id, running=True).running[trial_id]
    assert (digest.state, digest.params) == (TrialState.RUNNING, [0.5, 0.5])


def test_a_trial_that_begins_keeps_the_values_it_is_given(
    storage: StudyStorage, study_id: int
) -> None:
    trial_id = storage.create_new_trial(study_id, create_trial(state=TrialState.WAITING))
    assert storage.set_trial_state_values(trial_id, TrialState.RUNNING, [1.0])
    assert not storage.set_trial_state_values(trial_id, TrialState.RUNNING, [2.0])
    assert storage.get_trial(trial_id).values == [2.0]


def test_an_enqueued_trial_with_the_last_possible_step_is_claimed(
    hall: Hall, study: Study
) -> None:
    storage = StudyStorage(hall.engine)
    template = create_trial(state=TrialState.WAITING, intermediate_values={2**31 - 1: 0.5, 0: 1.0})
    trial_id = storage.create_new_trial(study.study_id, template)
    lease = leases.claim(hall.engine, study.study_id, "w", 60.0)
    assert lease is not None and lease.trial_id == trial_id


@pytest.mark.parametrize("bad_id", [2**31 - 1, 2**31, 2**40, -1])
def test_an_id_beyond_the_columns_is_missing(storage: StudyStorage, bad_id: int) -> None:
    template = create_trial(value=0.0, params={"x": 0.5}, distributions={"x": UNIT})
    for call in (
        lambda: storage.get_trial(bad_id),
        lambda: storage.set_trial_param(bad_id, "x", 0.5, UNIT),
        lambda: storage.set_trial_intermediate_value(bad_id, 0, 0.5),
        lambda: storage.set_trial_user_attr(bad_id, "k", {1}),
        lambda: storage.set_trial_state_values(bad_id, TrialState.RUNNING),
        lambda: storage.set_trial_state_values(bad_id, TrialState.FAIL),
        lambda: storage.create_new_trial(bad_id),
        lambda: storage.create_new_trial(bad_id, template),
        lambda: storage.set_study_user_attr(bad_id, "a\0b", 1),
        lambda: storage.get_all_trials(bad_id),
        lambda: storage.delete_study(bad_id),
    ):
        with pytest.raises(KeyError):
            call()


def test_what_the_columns_cannot_hold_is_refused(storage: StudyStorage, study_id: int) -> None:
    trial_id = storage.create_new_trial(study_id)
    with pytest.raises(StorageInternalError):
        storage.set_trial_intermediate_value(trial_id, 2**31, 0.5)
    with pytest.raises(ValueError, match="NUL"):
        storage.set_trial_param(trial_id, "a\0b", 0.5, UNIT)
    storage.set_trial_state_values(trial_id, TrialState.FAIL)
    with pytest.raises(UpdateFinishedTrialError):
        storage.set_trial_intermediate_value(trial_id, 2**31, 0.5)


def test_an_enqueued_trial_is_begun_though_the_answer_is_lost(
    storage: StudyStorage, study_id: int, lose_answer: Callable[[str], list[str]]
) -> None:
    trial_id = storage.create_new_trial(study_id, create_trial(state=TrialState.WAITING))
    lost = lose_answer("begin_enqueued")
    assert storage.set_trial_state_values(trial_id, TrialState.RUNNING)
    assert lost and not storage.set_trial_state_values(trial_id, TrialState.RUNNING)


def test_a_trial_is_ended_though_the_answer_is_lost(
    storage: StudyStorage, study_id: int, lose_answer: Callable[[str], list[str]]
) -> None:
    trial_id = storage.create_new_trial(study_id)
    lost = lose_answer("service.finish(")
    assert storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [float("nan")])
    assert lost
    with pytest.raises(UpdateFinishedTrialError):
        storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [float("nan")])


def test_a_study_is_deleted_though_the_answer_is_lost(
    storage: StudyStorage, study_id: int, lose_answer: Callable[[str], list[str]]
) -> None:
    lost = lose_answer("delete_study")
    storage.delete_study(study_id)
    assert lost
    with pytest.raises(KeyError):
        storage.delete_study(study_id)


def test_a_server_with_a_lower_horizon_hides_no_news(
    storage: StudyStorage, study_id: int, stock: RDBStorage
) -> None:
    trial_id = storage.create_new_trial(study_id)
    storage.get_all_trials(study_id)
    storage.digest_cache(study_id, running=True)
    cache = storage._caches[study_id]
    cache.trials.position.since += 10**6
    cache.digests.position.since += 10**6
    stock.set_trial_param(trial_id, "x", 0.5, UNIT)
    assert storage.get_all_trials(study_id)[0].params == {"x": 0.5}
    assert trial_id in storage.digest_cache(study_id, running=True).running


def test_the_first_read_of_a_new_connection_takes_all_unfinished_trials(
    storage: StudyStorage, study_id: int, stock: RDBStorage
) -> None:
    trial_id = storage.create_new_trial(study_id)
    storage.get_all_trials(study_id)
    stock.set_trial_param(trial_id, "x", 0.5, UNIT)
    # Another server, whose transactions have passed the last horizon of the first one.
    storage._caches[study_id].trials.position.since += 10
    for _ in range(40):
        stock.set_study_user_attr(study_id, "k", 1)
    storage.remove_session()
    assert storage.get_all_trials(study_id)[0].params == {"x": 0.5}
