"""Readers see every change, in whatever order writers commit, and read unchanged trials once."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import text
from sqlalchemy.engine import Connection, Engine

from service import Hall, Study, database
from service.database.connection import REPLAN
from service.storage import leases, news
from service.storage.storage import StudyStorage

UNIT = FloatDistribution(0, 1)
REPORT = """INSERT INTO trial_intermediate_values
 (trial_id, step, intermediate_value, intermediate_value_type)
 VALUES (:trial_id, :step, :value, 'FINITE')
 ON CONFLICT (trial_id, step) DO UPDATE SET intermediate_value = excluded.intermediate_value"""


@pytest.fixture
def writer(engine: Engine) -> StudyStorage:
    return StudyStorage(engine)


@pytest.fixture
def reader(database_url: str) -> Iterator[StudyStorage]:
    engine = database.create_engine(database_url)
    yield StudyStorage(engine)
    engine.dispose()


@pytest.fixture
def study_id(writer: StudyStorage) -> int:
    return writer.create_new_study([StudyDirection.MINIMIZE], "news")


@pytest.fixture
def open_transaction(database_url: str) -> Iterator[Connection]:
    """A connection with a transaction that the test commits late."""
    engine = database.create_engine(database_url)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def read_trials(reader: StudyStorage, study_id: int) -> list[FrozenTrial]:
    return reader.get_all_trials(study_id, deepcopy=False)


def report(connection: Connection, trial_id: int, step: int, value: float) -> None:
    connection.execute(text(REPORT), {"trial_id": trial_id, "step": step, "value": value})


def test_a_report_that_commits_late_is_seen(
    writer: StudyStorage, reader: StudyStorage, study_id: int, open_transaction: Connection
) -> None:
    first, second = writer.create_new_trial(study_id), writer.create_new_trial(study_id)
    report(open_transaction, first, 0, 1.0)
    writer.set_trial_intermediate_value(second, 0, 2.0)
    assert [t.intermediate_values for t in read_trials(reader, study_id)] == [{}, {0: 2.0}]
    writer.set_trial_intermediate_value(second, 1, 3.0)
    assert [t.intermediate_values for t in read_trials(reader, study_id)] == [{}, {0: 2.0, 1: 3.0}]
    open_transaction.commit()
    assert [t.intermediate_values for t in read_trials(reader, study_id)] == [
        {0: 1.0},
        {0: 2.0, 1: 3.0},
    ]


def test_a_late_overwrite_in_a_savepoint_is_seen(
    writer: StudyStorage, reader: StudyStorage, study_id: int, open_transaction: Connection
) -> None:
    trial_id = writer.create_new_trial(study_id)
    writer.set_trial_intermediate_value(trial_id, 0, 1.0)
    with open_transaction.begin_nested():
        report(open_transaction, trial_id, 0, 9.0)
    assert read_trials(reader, study_id)[0].intermediate_values == {0: 1.0}
    open_transaction.commit()
    assert read_trials(reader, study_id)[0].intermediate_values == {0: 9.0}


def test_readers_of_finished_trials_see_an_end_that_commits_late(
    writer: StudyStorage, reader: StudyStorage, study_id: int, open_transaction: Connection
) -> None:
    first, second = writer.create_new_trial(study_id), writer.create_new_trial(study_id)
    assert reader.get_n_trials(study_id, TrialState.COMPLETE) == 0
    open_transaction.execute(
        text("UPDATE trials SET state = 'COMPLETE' WHERE trial_id = :id"), {"id": first}
    )
    writer.set_trial_state_values(second, TrialState.COMPLETE, [1.0])
    assert reader.get_n_trials(study_id, TrialState.COMPLETE) == 1
    open_transaction.commit()
    assert reader.get_n_trials(study_id, TrialState.COMPLETE) == 2


def test_reading_finished_trials_does_not_hide_reports_from_the_next_read_of_all_trials(
    writer: StudyStorage, reader: StudyStorage, study_id: int
) -> None:
    trial_id = writer.create_new_trial(study_id)
    read_trials(reader, study_id)
    writer.set_trial_intermediate_value(trial_id, 0, 1.0)
    assert reader.get_n_trials(study_id, TrialState.COMPLETE) == 0
    assert read_trials(reader, study_id)[0].intermediate_values == {0: 1.0}


@pytest.mark.parametrize("stock", [True, False])
def test_no_reader_sees_a_trial_before_one_with_a_lower_id(
    writer: StudyStorage,
    reader: StudyStorage,
    study_id: int,
    open_transaction: Connection,
    database_url: str,
    stock: bool,
) -> None:
    open_transaction.execute(
        text("SELECT 1 FROM studies WHERE study_id = :id FOR UPDATE"), {"id": study_id}
    )
    low = open_transaction.execute(
        text(
            "INSERT INTO trials (study_id, number, state) VALUES (:id, 0, 'RUNNING')"
            " RETURNING trial_id"
        ),
        {"id": study_id},
    ).scalar_one()
    other = RDBStorage(database_url) if stock else writer
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(other.create_new_trial, study_id)
        time.sleep(0.3)
        assert not later.done() and read_trials(reader, study_id) == []
        open_transaction.commit()
        high = later.result(10)
    assert [t._trial_id for t in read_trials(reader, study_id)] == [low, high]
    assert [t.number for t in read_trials(reader, study_id)] == [0, 1]


def test_readers_see_that_a_new_lease_deletes_reports(hall: Hall, study: Study) -> None:
    storage, reader = StudyStorage(hall.engine), StudyStorage(hall.engine)
    lease = leases.claim(hall.engine, study.study_id, "w1", 0.0)
    assert lease is not None
    storage.hold(lease)
    for step in range(3):
        storage.set_trial_intermediate_value(lease.trial_id, step, 1.0)
    assert len(read_trials(reader, study.study_id)[0].intermediate_values) == 3
    new_lease = leases.claim(hall.engine, study.study_id, "w2", 60.0)
    assert new_lease is not None and new_lease.trial is not None
    assert len(new_lease.trial.intermediate_values) == 3
    successor = StudyStorage(hall.engine)
    successor.hold(new_lease)
    successor.delete_reports(new_lease, step=1)
    assert read_trials(reader, study.study_id)[0].intermediate_values == {0: 1.0}


def test_unchanged_trials_are_not_read_again(
    writer: StudyStorage, reader: StudyStorage, study_id: int
) -> None:
    templates = [
        create_trial(
            state=state, params={"x": 0.5}, distributions={"x": UNIT}, intermediate_values={0: 1.0}
        )
        for state in (TrialState.RUNNING, TrialState.WAITING)
        for _ in range(200)
    ]
    ids = writer.add_trials(study_id, templates)
    assert len(read_trials(reader, study_id)) == 400
    assert new_documents(reader, study_id) == []
    writer.set_trial_intermediate_value(ids[7], 1, 2.0)
    assert writer.set_trial_state_values(ids[300], TrialState.RUNNING)
    assert sorted(document[0] for document in new_documents(reader, study_id)) == [
        ids[7],
        ids[300],
    ]


def test_reading_running_trials_finds_changes_that_reading_finished_trials_skips(
    writer: StudyStorage, reader: StudyStorage, study_id: int
) -> None:
    first, second = writer.create_new_trial(study_id), writer.create_new_trial(study_id)
    assert reader.digest_cache(study_id).finished == []
    writer.set_trial_param(first, "x", 0.5, UNIT)
    writer.set_trial_intermediate_value(first, 0, 1.0)
    writer.set_trial_state_values(second, TrialState.COMPLETE, [1.0])
    assert [digest.trial_id for digest in reader.digest_cache(study_id).finished] == [second]
    assert reader.digest_cache(study_id).running == {}
    running = reader.digest_cache(study_id, running=True).running
    assert {trial_id: digest.params for trial_id, digest in running.items()} == {first: [0.5]}
    writer.set_trial_intermediate_value(first, 1, 2.0)
    assert new_digests(reader, study_id) == []
    assert read_trials(reader, study_id)[0].intermediate_values == {0: 1.0, 1: 2.0}


def test_a_connection_makes_new_plans_as_the_tables_grow(
    writer: StudyStorage, reader: StudyStorage, study_id: int, engine: Engine
) -> None:
    """Its first plans are for an empty study; even so, later reads touch only the new rows."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    writer.create_new_trial(study_id)
    read_trials(reader, study_id)
    new = 20
    for _ in range(4 * REPLAN):
        writer.add_trials(study_id, [create_trial(value=1.0)] * new)
        before = count_index_reads(reader)
        read_trials(reader, study_id)
        index_reads = count_index_reads(reader) - before
    assert new <= index_reads <= 2 * new


def count_index_reads(storage: StudyStorage) -> int:
    """How many index entries of trial_values the database has read so far."""
    storage._connection.query("SELECT pg_stat_force_next_flush()")
    return int(
        storage._connection.query(
            "SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = 'trial_values'"
        )
    )


def new_documents(reader: StudyStorage, study_id: int) -> list[list[Any]]:
    """The documents of whole trials that the next read returns; does not change the cache."""
    position = reader._caches[study_id].trials.position
    arguments = {"p_study": study_id, **position.arguments(), "p_since": position.since}
    documents = reader._connection.query_json(
        news.READ_TRIALS, arguments | {"p_running": True, "p_limit": 2000}
    )[-1]
    return [] if documents is None else documents[1]


def new_digests(reader: StudyStorage, study_id: int) -> list[list[Any]]:
    """The digests that the next read returns; does not change the cache."""
    digest_cache = reader._caches[study_id].digests
    arguments = news.digest_arguments(study_id, digest_cache) | {
        "p_since": digest_cache.position.since
    }
    digests: list[list[Any]] = reader._connection.query_json(
        news.READ_DIGESTS, arguments | {"p_running": True, "p_limit": 2000}
    )[-1]
    return digests


def test_a_study_larger_than_a_portion_is_read_completely(
    writer: StudyStorage,
    reader: StudyStorage,
    study_id: int,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(news, "PORTION", 7)
    templates = [
        create_trial(value=float(i), params={"x": i / 100}, distributions={"x": UNIT})
        for i in range(28)
    ]
    writer.add_trials(study_id, templates)
    stock = RDBStorage(database_url).get_all_trials(study_id)
    assert read_trials(reader, study_id) == stock and len(stock) == 28


def test_readers_equal_stock_optuna_after_concurrent_writes(
    study_id: int, database_url: str
) -> None:
    """Stock storages and ours write and some transactions stay open, while others read."""
    ended = threading.Event()
    factories: list[Callable[[], optuna.storages.BaseStorage]] = [
        lambda: RDBStorage(database_url, engine_kwargs={"pool_size": 1}),
        lambda: StudyStorage(database.create_engine(database_url)),
    ]

    def write(index: int) -> None:
        chance, storage = random.Random(index), factories[index % 2]()
        for _ in range(12):
            trial_id = storage.create_new_trial(study_id)
            for name in ("x", "y"):
                storage.set_trial_param(trial_id, name, chance.random(), UNIT)
            for step in range(chance.randrange(4)):
                storage.set_trial_intermediate_value(trial_id, step, chance.random())
            if chance.random() < 0.8:
                storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [chance.random()])

    def overwrite(index: int) -> None:
        """Overwrite values of running trials in transactions that stay open for some time."""
        chance, engine = random.Random(100 + index), database.create_engine(database_url)
        running = text("SELECT trial_id FROM trials WHERE state = 'RUNNING' ORDER BY random()")
        while not ended.is_set():
            with engine.begin() as connection:
                for (trial_id,) in connection.execute(running).all()[:2]:
                    report(connection, trial_id, 50 + index, chance.random())
                time.sleep(chance.random() * 0.05)
        engine.dispose()

    readers = [StudyStorage(database.create_engine(database_url)) for _ in range(2)]

    def read(reader: StudyStorage) -> None:
        while not ended.is_set():
            reader.get_all_trials(study_id, deepcopy=False)
            reader.get_n_trials(study_id, TrialState.COMPLETE)

    with ThreadPoolExecutor(8) as pool:
        background = [pool.submit(read, reader) for reader in readers]
        background += [pool.submit(overwrite, index) for index in range(2)]
        for writing in [pool.submit(write, index) for index in range(4)]:
            writing.result(60)
        ended.set()
        for task in background:
            task.result(60)
    stock = RDBStorage(database_url).get_all_trials(study_id)
    assert [trial.number for trial in stock] == list(range(48))
    finished = {t.number for t in stock if t.state.is_finished()}
    for reader in readers:
        trials = reader.get_all_trials(study_id)
        assert [t.number for t in trials] == list(range(48))
        for mine, theirs in zip(trials, stock, strict=True):
            if theirs.number not in finished:
                assert mine == theirs
            assert (mine.state, mine.params, mine.values) == (
                theirs.state,
                theirs.params,
                theirs.values,
            )
