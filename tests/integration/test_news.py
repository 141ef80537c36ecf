"""A reader misses nothing, whatever the order of commits, and reads nothing twice for nothing."""

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
def slow(database_url: str) -> Iterator[Connection]:
    """A connection whose transaction the test ends when it likes."""
    engine = database.create_engine(database_url)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def seen(reader: StudyStorage, study_id: int) -> list[FrozenTrial]:
    return reader.get_all_trials(study_id, deepcopy=False)


def report(connection: Connection, trial_id: int, step: int, value: float) -> None:
    connection.execute(text(REPORT), {"trial_id": trial_id, "step": step, "value": value})


def test_a_report_that_commits_late_is_seen(
    writer: StudyStorage, reader: StudyStorage, study_id: int, slow: Connection
) -> None:
    first, second = writer.create_new_trial(study_id), writer.create_new_trial(study_id)
    report(slow, first, 0, 1.0)
    writer.set_trial_intermediate_value(second, 0, 2.0)
    assert [t.intermediate_values for t in seen(reader, study_id)] == [{}, {0: 2.0}]
    writer.set_trial_intermediate_value(second, 1, 3.0)
    assert [t.intermediate_values for t in seen(reader, study_id)] == [{}, {0: 2.0, 1: 3.0}]
    slow.commit()
    assert [t.intermediate_values for t in seen(reader, study_id)] == [
        {0: 1.0},
        {0: 2.0, 1: 3.0},
    ]


def test_a_value_overwritten_late_in_a_savepoint_is_seen(
    writer: StudyStorage, reader: StudyStorage, study_id: int, slow: Connection
) -> None:
    trial_id = writer.create_new_trial(study_id)
    writer.set_trial_intermediate_value(trial_id, 0, 1.0)
    with slow.begin_nested():
        report(slow, trial_id, 0, 9.0)
    assert seen(reader, study_id)[0].intermediate_values == {0: 1.0}
    slow.commit()
    assert seen(reader, study_id)[0].intermediate_values == {0: 9.0}


def test_an_end_that_commits_late_is_seen_by_those_who_read_finished_trials_only(
    writer: StudyStorage, reader: StudyStorage, study_id: int, slow: Connection
) -> None:
    first, second = writer.create_new_trial(study_id), writer.create_new_trial(study_id)
    assert reader.get_n_trials(study_id, TrialState.COMPLETE) == 0
    slow.execute(text("UPDATE trials SET state = 'COMPLETE' WHERE trial_id = :id"), {"id": first})
    writer.set_trial_state_values(second, TrialState.COMPLETE, [1.0])
    assert reader.get_n_trials(study_id, TrialState.COMPLETE) == 1
    slow.commit()
    assert reader.get_n_trials(study_id, TrialState.COMPLETE) == 2


def test_reports_seen_between_readings_of_finished_trials_are_not_lost(
    writer: StudyStorage, reader: StudyStorage, study_id: int
) -> None:
    trial_id = writer.create_new_trial(study_id)
    seen(reader, study_id)
    writer.set_trial_intermediate_value(trial_id, 0, 1.0)
    assert reader.get_n_trials(study_id, TrialState.COMPLETE) == 0
    assert seen(reader, study_id)[0].intermediate_values == {0: 1.0}


@pytest.mark.parametrize("stock", [True, False])
def test_a_trial_with_a_higher_id_cannot_be_seen_first(
    writer: StudyStorage,
    reader: StudyStorage,
    study_id: int,
    slow: Connection,
    database_url: str,
    stock: bool,
) -> None:
    slow.execute(text("SELECT 1 FROM studies WHERE study_id = :id FOR UPDATE"), {"id": study_id})
    low = slow.execute(
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
        assert not later.done() and seen(reader, study_id) == []
        slow.commit()
        high = later.result(10)
    assert [t._trial_id for t in seen(reader, study_id)] == [low, high]
    assert [t.number for t in seen(reader, study_id)] == [0, 1]


def test_a_take_over_and_what_it_deletes_are_seen(hall: Hall, study: Study) -> None:
    holder, reader = StudyStorage(hall.engine), StudyStorage(hall.engine)
    lease = leases.claim(hall.engine, study.study_id, "w1", 0.0)
    assert lease is not None
    holder.hold(lease)
    for step in range(3):
        holder.set_trial_intermediate_value(lease.trial_id, step, 1.0)
    assert len(seen(reader, study.study_id)[0].intermediate_values) == 3
    taken = leases.claim(hall.engine, study.study_id, "w2", 60.0)
    assert taken is not None and taken.trial is not None
    assert len(taken.trial.intermediate_values) == 3
    successor = StudyStorage(hall.engine)
    successor.hold(taken)
    successor.delete_reports(taken, step=1)
    assert seen(reader, study.study_id)[0].intermediate_values == {0: 1.0}


def test_standing_trials_are_not_read_again(
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
    assert len(seen(reader, study_id)) == 400
    assert new_documents(reader, study_id) == []
    writer.set_trial_intermediate_value(ids[7], 1, 2.0)
    assert writer.set_trial_state_values(ids[300], TrialState.RUNNING)
    assert sorted(document[0] for document in new_documents(reader, study_id)) == [
        ids[7],
        ids[300],
    ]


def test_what_a_shallow_look_passes_over_a_deeper_one_finds(
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
    assert seen(reader, study_id)[0].intermediate_values == {0: 1.0, 1: 2.0}


def test_a_connection_plans_anew_as_the_tables_grow(
    writer: StudyStorage, reader: StudyStorage, study_id: int, engine: Engine
) -> None:
    """It plans for an empty study first; yet later looks touch no more rows than they bring."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    writer.create_new_trial(study_id)
    seen(reader, study_id)
    new = 20
    for _ in range(4 * REPLAN):
        writer.add_trials(study_id, [create_trial(value=1.0)] * new)
        before = values_touched(reader)
        seen(reader, study_id)
        touched = values_touched(reader) - before
    assert new <= touched <= 2 * new


def values_touched(storage: StudyStorage) -> int:
    """How many index entries of trial_values this storage's connection has read so far."""
    storage._connection.query("SELECT pg_stat_force_next_flush()")
    return int(
        storage._connection.query(
            "SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = 'trial_values'"
        )
    )


def new_documents(reader: StudyStorage, study_id: int) -> list[list[Any]]:
    """The documents that the next look at whole trials would bring, without looking."""
    position = reader._caches[study_id].trials.position
    asked = {"p_study": study_id, **position.arguments(), "p_since": position.since}
    documents = reader._connection.query_json(
        news.READ_TRIALS, asked | {"p_running": True, "p_limit": 2000}
    )[-1]
    return [] if documents is None else documents[1]


def new_digests(reader: StudyStorage, study_id: int) -> list[list[Any]]:
    """The digests that the next look would bring, without looking."""
    digest_cache = reader._caches[study_id].digests
    asked = news.digest_arguments(study_id, digest_cache) | {
        "p_since": digest_cache.position.since
    }
    digests: list[list[Any]] = reader._connection.query_json(
        news.READ_DIGESTS, asked | {"p_running": True, "p_limit": 2000}
    )[-1]
    return digests


def test_a_study_larger_than_a_portion_is_read_whole(
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
    assert seen(reader, study_id) == stock and len(stock) == 28


def test_readers_agree_with_the_tables_after_everybody_has_written_at_once(
    study_id: int, database_url: str
) -> None:
    """Stock storages and ours write, with transactions held open at random, under a reader."""
    ended = threading.Event()
    makers: list[Callable[[], optuna.storages.BaseStorage]] = [
        lambda: RDBStorage(database_url, engine_kwargs={"pool_size": 1}),
        lambda: StudyStorage(database.create_engine(database_url)),
    ]

    def write(index: int) -> None:
        chance, storage = random.Random(index), makers[index % 2]()
        for _ in range(12):
            trial_id = storage.create_new_trial(study_id)
            for name in ("x", "y"):
                storage.set_trial_param(trial_id, name, chance.random(), UNIT)
            for step in range(chance.randrange(4)):
                storage.set_trial_intermediate_value(trial_id, step, chance.random())
            if chance.random() < 0.8:
                storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [chance.random()])

    def dawdle(index: int) -> None:
        """Overwrite values of running trials in transactions that stay open for a while."""
        chance, engine = random.Random(100 + index), database.create_engine(database_url)
        running = text("SELECT trial_id FROM trials WHERE state = 'RUNNING' ORDER BY random()")
        while not ended.is_set():
            with engine.begin() as connection:
                for (trial_id,) in connection.execute(running).all()[:2]:
                    report(connection, trial_id, 50 + index, chance.random())
                time.sleep(chance.random() * 0.05)
        engine.dispose()

    readers = [StudyStorage(database.create_engine(database_url)) for _ in range(2)]

    def look(reader: StudyStorage) -> None:
        while not ended.is_set():
            reader.get_all_trials(study_id, deepcopy=False)
            reader.get_n_trials(study_id, TrialState.COMPLETE)

    with ThreadPoolExecutor(8) as pool:
        around = [pool.submit(look, reader) for reader in readers]
        around += [pool.submit(dawdle, index) for index in range(2)]
        for writing in [pool.submit(write, index) for index in range(4)]:
            writing.result(60)
        ended.set()
        for task in around:
            task.result(60)
    stock = RDBStorage(database_url).get_all_trials(study_id)
    assert [trial.number for trial in stock] == list(range(48))
    finished = {t.number for t in stock if t.state.is_finished()}
    for reader in readers:
        found = reader.get_all_trials(study_id)
        assert [t.number for t in found] == list(range(48))
        for mine, theirs in zip(found, stock, strict=True):
            if theirs.number not in finished:
                assert mine == theirs
            assert (mine.state, mine.params, mine.values) == (
                theirs.state,
                theirs.params,
                theirs.values,
            )
