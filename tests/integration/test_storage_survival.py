"""Workers are killed, connections are cut and the server is full: nothing is lost or doubled.

STUDYHALL_TEST_WORKERS and STUDYHALL_TEST_KILLS make the massacre larger than it is by default.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from databases import execute
from digest_comparison import check_digests
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy.engine import Engine

from service import Budget, Hall, Spec, database
from service.database.connection import SharedConnection
from service.settings import normalize_url
from service.storage.storage import StudyStorage

ROOT = Path(__file__).parents[2]
WORKERS = int(os.environ.get("STUDYHALL_TEST_WORKERS", "6"))
KILLS = int(os.environ.get("STUDYHALL_TEST_KILLS", "5"))
WORKER = """
import contextlib, sys, threading, time, optuna
from service import Hall, Settings
from service.sampling import pruners, tpe
from service.storage import leases
from service.errors import StaleLease
from service.storage.storage import StudyStorage
from optuna.trial import TrialState
SECONDS = 3.0
hall = Hall(Settings(database_url=sys.argv[1]))
storage = StudyStorage(hall.engine)
study = optuna.load_study(study_name="killed", storage=storage, pruner=pruners.MedianPruner())
def renew(lease, ended):
    with contextlib.suppress(StaleLease):
        while not ended.wait(SECONDS / 3):
            leases.renew(hall.engine, lease, SECONDS)
def run(lease):
    if lease.taken_over:
        storage.delete_reports(lease)
    study.sampler = tpe.TPESampler(seed=lease.number)
    study._thread_local.cached_all_trials = None
    trial = optuna.Trial(study, lease.trial_id)
    x, n = trial.suggest_float("x", 0, 1), trial.suggest_int("n", 1, 8)
    for step in range(5):
        time.sleep(0.02)
        trial.report(x + 1 / (step + n), step)
        if trial.should_prune():
            return study.tell(trial, state=TrialState.PRUNED)
    return study.tell(trial, x)
while lease := leases.claim(hall.engine, study._study_id, sys.argv[2], SECONDS):
    storage.hold(lease)
    ended = threading.Event()
    threading.Thread(target=renew, args=(lease, ended), daemon=True).start()
    with contextlib.suppress(StaleLease):
        run(lease)
    ended.set()
    storage.drop(lease)
"""


def test_both_read_the_same_after_workers_were_killed(hall: Hall, database_url: str) -> None:
    budget = 12 * WORKERS
    study = hall.create(
        "killed", Spec("stubs:quick", direction="minimize", max_attempts=50), Budget(budget)
    )
    alive = [start(database_url, index) for index in range(WORKERS)]
    await_trials(hall, study.study_id, WORKERS)
    chance = random.Random(1)
    reader = StudyStorage(hall.engine)
    for kill in range(KILLS):
        victim = alive.pop(chance.randrange(len(alive)))
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        alive.append(start(database_url, WORKERS + kill))
        reader.get_all_trials(study.study_id, deepcopy=False)
        time.sleep(0.1)
    assert {process.wait(300) for process in alive} == {0}
    time.sleep(3)  # until the leases of those who were killed last have expired
    assert start(database_url, 1000).wait(60) == 0
    stock = RDBStorage(database_url).get_all_trials(study.study_id)
    assert reader.get_all_trials(study.study_id) == stock
    assert StudyStorage(hall.engine).get_all_trials(study.study_id) == stock
    check_digests(reader, study.study_id)
    assert [trial.number for trial in stock] == list(range(budget))
    for trial in stock:
        assert trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        assert set(trial.params) == {"x", "n"}
        assert list(trial.intermediate_values) == list(range(len(trial.intermediate_values)))
        if trial.state == TrialState.COMPLETE:
            assert trial.value == trial.params["x"] and len(trial.intermediate_values) == 5
    tried = [len(attempts) for attempts in study.attempts().values()]
    assert len(tried) == budget and sum(tried) > budget


def start(database_url: str, index: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WORKER, database_url, f"w{index}"], cwd=ROOT)


def await_trials(hall: Hall, study_id: int, count: int) -> None:
    storage, deadline = StudyStorage(hall.engine), time.monotonic() + 120
    while storage.get_n_trials(study_id) < count and time.monotonic() < deadline:
        time.sleep(0.05)


def test_a_cut_connection_is_made_again(engine: Engine, database_url: str) -> None:
    storage = StudyStorage(engine)
    study_id = storage.create_new_study([StudyDirection.MINIMIZE])
    trial_id = storage.create_new_trial(study_id)
    other = database.create_engine(database_url)
    cut = sqlalchemy.text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    for action in (
        lambda: storage.set_trial_intermediate_value(trial_id, 0, 1.0),
        lambda: storage.get_all_trials(study_id),
        lambda: storage.set_trial_state_values(trial_id, TrialState.COMPLETE, [1.0]),
    ):
        with other.begin() as connection:
            connection.execute(cut)
        action()
    assert storage.get_trial(trial_id).intermediate_values == {0: 1.0}
    other.dispose()


@pytest.fixture
def limited_url(database_url: str) -> Iterator[str]:
    """A URL of a role that may have one connection only."""
    role = f"studyhall_test_{os.getpid()}"
    execute(database_url, f"CREATE ROLE {role} LOGIN PASSWORD '{role}' CONNECTION LIMIT 1")
    url = normalize_url(database_url).set(username=role, password=role)
    yield url.render_as_string(hide_password=False)
    execute(database_url, f"DROP ROLE {role}")


def test_a_worker_waits_for_a_connection_of_a_full_server(limited_url: str) -> None:
    first, second = database.create_engine(limited_url), database.create_engine(limited_url)
    holding = first.connect()
    leaving = threading.Timer(1.0, lambda: (holding.close(), first.dispose()))
    leaving.start()
    began = time.monotonic()
    assert SharedConnection.of(second).query("SELECT 1") == 1
    assert time.monotonic() - began > 0.5
    leaving.join()
    SharedConnection.of(second).release()
    second.dispose()


def test_waiting_for_a_database_draws_no_random_number(tmp_path: Path) -> None:
    """Else an outage would change the first weights of the model that is built meanwhile."""
    engine = database.create_engine(f"postgresql:///nowhere?host={tmp_path}")
    before = random.getstate()
    with pytest.raises(sqlalchemy.exc.OperationalError):
        SharedConnection(engine, retry_seconds=0.5).query("SELECT 1")
    assert random.getstate() == before


def test_a_refused_statement_is_not_repeated(engine: Engine) -> None:
    storage = StudyStorage(engine)
    study_id = storage.create_new_study([StudyDirection.MINIMIZE])
    with pytest.raises(optuna.exceptions.StorageInternalError, match="too long"):
        storage.set_study_user_attr(study_id, "k" * 600, 1)


def test_a_single_try_does_not_wait_for_a_database(tmp_path: Path) -> None:
    connection = SharedConnection(database.create_engine(f"postgresql:///no?host={tmp_path}"))
    began = time.monotonic()
    with connection.without_retries():
        with connection.without_retries(), pytest.raises(sqlalchemy.exc.OperationalError):
            connection.query("SELECT 1")
        with pytest.raises(sqlalchemy.exc.OperationalError):
            connection.query("SELECT 1")
    assert time.monotonic() - began < 10


def test_a_released_connection_leaves_its_place_to_others(limited_url: str) -> None:
    engines = [database.create_engine(limited_url) for _ in range(3)]
    for engine in engines:  # the role may have one connection
        connection = SharedConnection(engine, retry_seconds=0.0)
        with connection.without_retries():
            assert connection.query("SELECT 1") == 1
        connection.release()
    for engine in engines:
        with engine.connect():
            pass
        connection = SharedConnection.of(engine)
        with connection.without_retries():
            assert connection.query("SELECT 1") == 1
        connection.release()
        assert connection.query("SELECT 1") == 1
        connection.release()
