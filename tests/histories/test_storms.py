"""Storms: what random histories hardly meet. Many processes claim at once; old tokens write."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from digest_comparison import check_digests
from optuna.trial import TrialState
from sqlalchemy.engine import Engine

from service import Budget, Hall, Settings, Spec, Study, database
from service.database.connection import SharedConnection
from service.errors import StaleLease
from service.storage import leases
from service.storage.leases import Lease
from service.storage.storage import StudyStorage

PROCESSES = 8
ROUNDS = 25
BUDGETS = (1, 2, 5, 13)
LONG = 60.0
Job = Callable[[str, list[int], Barrier, int, Any], None]


@pytest.fixture
def hall(database_url: str, tmp_path: Path) -> Iterator[Hall]:
    hall = Hall(Settings(database_url, tmp_path, lease_seconds=3.0))
    yield hall
    hall.engine.dispose()


def studies(hall: Hall, count: int) -> list[Study]:
    """Studies with small budgets."""
    return [
        hall.create(
            f"s{index}", Spec("history_objective:objective"), Budget(BUDGETS[index % len(BUDGETS)])
        )
        for index in range(count)
    ]


def storm(job: Job, url: str, study_ids: list[int], processes: int = PROCESSES) -> list[Any]:
    """Run a job in many processes, which begin each round together; what they have sent back.

    Raises:
        RuntimeError: A process has failed.
    """
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(processes), context.Queue()
    started = [
        context.Process(target=_run, args=(job, url, study_ids, barrier, index, queue))
        for index in range(processes)
    ]
    for process in started:
        process.start()
    answers = [queue.get(timeout=240) for _ in started]
    for process in started:
        process.join(30)
    failed = [answer for answer in answers if isinstance(answer, str)]
    if failed:
        raise RuntimeError(failed[0])
    return [item for answer in answers for item in answer]


def _run(
    job: Job, url: str, study_ids: list[int], barrier: Barrier, index: int, queue: Any
) -> None:
    found: list[Any] = []
    try:
        job(url, study_ids, barrier, index, found)
        queue.put(found)
    except BaseException as error:
        barrier.abort()
        queue.put(repr(error))


def together(engine: Engine, study_ids: list[int], barrier: Barrier) -> Iterator[int]:
    """Yield each study once all processes are connected and have come to it."""
    for study_id in study_ids:
        SharedConnection.of(engine).query("SELECT 1")
        barrier.wait(60)
        yield study_id


def claim_all(
    url: str, study_ids: list[int], barrier: Barrier, index: int, found: list[Any]
) -> None:
    """Claim until the budget of each study is spent."""
    engine = database.create_engine(url)
    for study_id in together(engine, study_ids, barrier):
        while lease := leases.claim(engine, study_id, f"w{index}", LONG):
            found.append((study_id, lease.trial_id, lease.number, lease.token))


def test_claims_at_once_spend_small_budgets_exactly(hall: Hall, database_url: str) -> None:
    made = studies(hall, ROUNDS)
    claimed = storm(claim_all, database_url, [study.study_id for study in made])
    assert max(Counter(token for *_, token in claimed).values()) == 1
    for index, study in enumerate(made):
        numbers = sorted(
            number for study_id, _, number, _ in claimed if study_id == study.study_id
        )
        assert numbers == list(range(BUDGETS[index % len(BUDGETS)])), study.name
    check_numbers(hall, made)


def claim_or_create(
    url: str, study_ids: list[int], barrier: Barrier, index: int, found: list[Any]
) -> None:
    """Half of the processes claim; the others begin trials as plain Optuna does."""
    engine = database.create_engine(url)
    storage = StudyStorage(engine)
    for study_id in together(engine, study_ids, barrier):
        for _ in range(6):
            if index % 2:
                found.append((study_id, storage.create_new_trial(study_id)))
            elif lease := leases.claim(engine, study_id, f"w{index}", LONG):
                found.append((study_id, lease.trial_id))


def test_trials_that_are_begun_at_once_are_numbered_without_gaps(
    hall: Hall, database_url: str
) -> None:
    made = studies(hall, ROUNDS)
    begun = storm(claim_or_create, database_url, [study.study_id for study in made])
    assert max(Counter(trial_id for _, trial_id in begun).values()) == 1
    check_numbers(hall, made)


def check_numbers(hall: Hall, made: list[Study]) -> None:
    """Each study's trials are numbered from 0, and as many are counted as have a lease."""
    statement = sqlalchemy.text(
        """SELECT ARRAY(SELECT number FROM trials WHERE study_id = :id ORDER BY number) AS numbers,
                  (SELECT count(*) FROM service.leases WHERE study_id = :id) AS leased,
                  (SELECT n_claimed FROM service.studies WHERE study_id = :id) AS counted"""
    )
    for study in made:
        with hall.engine.connect() as connection:
            row = connection.execute(statement, {"id": study.study_id}).one()
        assert row.numbers == list(range(len(row.numbers))), study.name
        assert row.leased == row.counted <= BUDGETS[made.index(study) % len(BUDGETS)], study.name


def take_over(
    url: str, study_ids: list[int], barrier: Barrier, index: int, found: list[Any]
) -> None:
    """All processes claim the one interrupted trial of each study."""
    engine = database.create_engine(url)
    found += [
        (study_id, lease.attempt)
        for study_id in together(engine, study_ids, barrier)
        if (lease := leases.claim(engine, study_id, f"w{index}", LONG))
    ]


def test_an_interrupted_trial_is_taken_over_once(hall: Hall, database_url: str) -> None:
    made = [
        hall.create(f"t{index}", Spec("history_objective:objective"), Budget(1))
        for index in range(ROUNDS)
    ]
    for study in made:
        assert leases.claim(hall.engine, study.study_id, "gone", 0.0)
    taken = storm(take_over, database_url, [study.study_id for study in made])
    assert sorted(taken) == [(study.study_id, 2) for study in made]


def write_until_stale(
    url: str, study_ids: list[int], barrier: Barrier, index: int, found: list[Any]
) -> None:
    """One process writes to a trial with a lease that has expired; another takes it over."""
    engine = database.create_engine(url)
    for round_, study_id in enumerate(study_ids):
        owner = round_ % PROCESSES
        lease = leases.claim(engine, study_id, f"w{index}", 0.0) if index == owner else None
        barrier.wait(60)
        if index == (owner + 1) % PROCESSES:
            # While the owner writes, a claim finds nothing.
            while leases.claim(engine, study_id, f"w{index}", LONG) is None:
                pass
            found.append(("taken", study_id, time.monotonic()))
        elif lease is not None:
            storage = StudyStorage(engine)
            storage.hold(lease)
            found += [("written", study_id, at) for at in _written(storage, lease)]
        barrier.wait(60)


def _written(storage: StudyStorage, lease: Lease) -> Iterator[float]:
    """When each report was sent that was accepted."""
    deadline = time.monotonic() + 20
    for step in range(10_000):
        sent = time.monotonic()
        assert sent < deadline, "an old token is accepted for ever"
        try:
            storage.set_trial_intermediate_value(lease.trial_id, step, float(step))
        except StaleLease:
            return
        yield sent


def test_reports_that_race_with_a_takeover_are_accepted_before_it_only(
    hall: Hall, database_url: str
) -> None:
    made = [
        hall.create(f"r{index}", Spec("history_objective:objective"), Budget(1))
        for index in range(ROUNDS)
    ]
    events = storm(write_until_stale, database_url, [study.study_id for study in made])
    taken = {study_id: at for what, study_id, at in events if what == "taken"}
    assert taken.keys() == {study.study_id for study in made}
    late = [event for event in events if event[0] == "written" and event[2] > taken[event[1]]]
    assert not late


OLD: dict[str, Callable[[Any, StudyStorage, Lease], object]] = {
    "report": lambda engine, storage, lease: storage.set_trial_intermediate_value(
        lease.trial_id, 3, 1.0
    ),
    "attribute": lambda engine, storage, lease: storage.set_trial_user_attr(
        lease.trial_id, "old", 1
    ),
    "delete": lambda engine, storage, lease: storage.delete_reports(lease),
    "renew": lambda engine, storage, lease: leases.renew(engine, lease, LONG),
    "release": lambda engine, storage, lease: leases.release(engine, lease, "preempted"),
    "finish": lambda engine, storage, lease: storage.finish(lease, TrialState.COMPLETE, [9.0]),
}


@pytest.mark.parametrize("what", OLD)
def test_an_old_token_changes_nothing(hall: Hall, what: str) -> None:
    study = hall.create("old", Spec("history_objective:objective"), Budget(1))
    old = leases.claim(hall.engine, study.study_id, "old", 0.0)
    new = leases.claim(hall.engine, study.study_id, "new", LONG)
    assert old is not None and new is not None
    owner, stale = StudyStorage(hall.engine), StudyStorage(hall.engine)
    owner.hold(new)
    stale.hold(old)
    owner.set_trial_param(new.trial_id, "x", 0.5, optuna.distributions.FloatDistribution(0, 1))
    owner.set_trial_intermediate_value(new.trial_id, 0, 0.25)
    before = everything(hall, new)
    with pytest.raises(StaleLease):
        OLD[what](hall.engine, stale, old)
    assert everything(hall, new) == before
    owner.set_trial_state_values(new.trial_id, TrialState.COMPLETE, [0.5])
    assert [(row["state"], row["value"]) for row in study.records()] == [("complete", 0.5)]
    check_digests(owner, study.study_id)


def everything(hall: Hall, lease: Lease) -> list[Any]:
    """All rows of a trial."""
    tables = ("trials", "trial_intermediate_values", "trial_user_attributes", "trial_values")
    ours = ("service.leases", "service.attempts")
    with hall.engine.connect() as connection:
        return [
            sorted(
                map(
                    repr,
                    connection.exec_driver_sql(
                        f"SELECT * FROM {table} WHERE trial_id = {lease.trial_id}"
                    ),
                )
            )
            for table in (*tables, *ours)
        ]
