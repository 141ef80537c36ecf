"""Leases: claims are exact, old tokens are refused, interrupted trials are taken over."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState

from service import Budget, Hall, Spec, Study, database, doctor
from service.errors import StaleLease
from service.storage import leases
from service.storage.leases import Lease
from service.storage.storage import StudyStorage

LONG = 60.0
OVER = 0.0


def claim(study: Study, hall: Hall, worker: str = "w1", seconds: float = LONG) -> Lease | None:
    return leases.claim(hall.engine, study.study_id, worker, seconds)


def finish(hall: Hall, lease: Lease, value: float = 1.0) -> None:
    storage = StudyStorage(hall.engine)
    storage.hold(lease)
    storage.set_trial_state_values(lease.trial_id, TrialState.COMPLETE, [value])


def test_claims_number_the_trials_from_zero_up_to_the_budget(hall: Hall, study: Study) -> None:
    claimed = [claim(study, hall) for _ in range(12)]
    assert [lease.number for lease in claimed if lease] == list(range(10))
    assert claimed[10:] == [None, None]


def test_many_claimers_at_once_spend_the_budget_exactly(
    hall: Hall, study: Study, database_url: str
) -> None:
    start = threading.Barrier(6)

    def take(index: int) -> list[int]:
        engine = database.create_engine(database_url)
        start.wait()
        taken = []
        while lease := leases.claim(engine, study.study_id, f"w{index}", LONG):
            taken.append(lease.number)
        engine.dispose()
        return taken

    with ThreadPoolExecutor(6) as pool:
        numbers = [number for taken in pool.map(take, range(6)) for number in taken]
    assert sorted(numbers) == list(range(10))


def test_an_expired_lease_is_taken_over_under_the_same_number(hall: Hall, study: Study) -> None:
    first = claim(study, hall, "w1", OVER)
    second = claim(study, hall, "w2")
    assert first is not None and second is not None
    assert (second.trial_id, second.number) == (first.trial_id, first.number)
    assert second.token > first.token
    assert second.attempt == 2 and second.taken_over
    attempts = study.attempts()[first.trial_id]
    assert [(a.worker, a.cause) for a in attempts] == [("w1", "lost"), ("w2", None)]


def test_a_living_lease_is_not_taken_over(hall: Hall, study: Study) -> None:
    first, second = claim(study, hall, "w1"), claim(study, hall, "w2")
    assert first is not None and second is not None
    assert first.trial_id != second.trial_id


def test_writes_with_an_old_token_are_refused(hall: Hall, study: Study) -> None:
    old = claim(study, hall, "w1", OVER)
    new = claim(study, hall, "w2")
    assert old is not None and new is not None
    storage = StudyStorage(hall.engine)
    storage.hold(old)
    distribution = optuna.distributions.FloatDistribution(0, 1)
    with pytest.raises(StaleLease):
        storage.set_trial_intermediate_value(old.trial_id, 0, 1.0)
    with pytest.raises(StaleLease):
        storage.set_trial_param(old.trial_id, "x", 0.5, distribution)
    with pytest.raises(StaleLease):
        storage.set_trial_user_attr(old.trial_id, "key", 1)
    with pytest.raises(StaleLease):
        storage.set_trial_system_attr(old.trial_id, "key", 1)
    with pytest.raises(StaleLease):
        storage.set_trial_state_values(old.trial_id, TrialState.COMPLETE, [1.0])
    with pytest.raises(StaleLease):
        storage.delete_reports(old)
    with pytest.raises(StaleLease):
        leases.renew(hall.engine, old, LONG)
    with pytest.raises(StaleLease):
        leases.release(hall.engine, old, "preempted")
    trial = storage.get_trial(old.trial_id)
    assert trial.state == TrialState.RUNNING
    assert not (trial.params or trial.intermediate_values or trial.user_attrs)


def test_a_deletion_that_a_network_delivers_late_deletes_no_new_reports(
    hall: Hall, study: Study
) -> None:
    """The first sending was cut off; the second one is answered; then the first one arrives."""
    old = claim(study, hall, "w1", OVER)
    assert old is not None
    storage = StudyStorage(hall.engine)
    storage.hold(old)
    for step in range(5):
        storage.set_trial_intermediate_value(old.trial_id, step, 1.0)
    new = claim(study, hall, "w2")
    assert new is not None
    storage.hold(new)
    storage.delete_reports(new, step=3)
    storage.set_trial_intermediate_value(new.trial_id, 3, 2.0)
    late = "SELECT service.delete_reports(%(trial)s, %(token)s, 3)"
    with hall.engine.begin() as connection:
        connection.exec_driver_sql(late, {"trial": new.trial_id, "token": new.token})
    reports = study.optuna.trials[0].intermediate_values
    assert reports == {0: 1.0, 1: 1.0, 2: 1.0, 3: 2.0}


def test_an_end_of_leases_that_a_network_delivers_late_ends_no_new_lease(
    hall: Hall, study: Study
) -> None:
    """The first sending was cut off; the second one is answered; then the first one arrives."""
    assert claim(study, hall, "w1") is not None
    sent: list[tuple[str, dict[str, object]]] = []

    def note(_connection: object, _cursor: object, text: str, values: object, *_: object) -> None:
        sent.append((text, values))  # type: ignore[arg-type]

    sqlalchemy.event.listen(hall.engine, "before_cursor_execute", note)
    assert leases.expire_held_by(hall.engine, "w1")
    sqlalchemy.event.remove(hall.engine, "before_cursor_execute", note)
    again = claim(study, hall, "w1")
    assert again is not None and again.number == 0
    for text, values in sent:
        with hall.engine.begin() as connection:
            connection.exec_driver_sql(text, values)
    leases.renew(hall.engine, again, LONG)
    assert study.progress().interrupted == 0
    assert not leases.expire_held_by(hall.engine, "w2")


def test_failing_a_worker_leaves_no_trial_without_a_lease(hall: Hall, study: Study) -> None:
    """A network delivered a claim of the worker late: it has two leases, and knows one."""
    running, unknown = claim(study, hall, "w1"), claim(study, hall, "w1", OVER)
    assert running is not None and unknown is not None
    leases.fail(hall.engine, "w1", "timeout", "it did not end in its time")
    again = claim(study, hall, "w2")
    assert again is not None and again.number == unknown.number
    assert [row["state"] for row in study.records()] == ["fail", "running"]


def test_an_expired_lease_that_nobody_took_can_be_renewed(hall: Hall, study: Study) -> None:
    lease = claim(study, hall, "w1", OVER)
    assert lease is not None
    leases.renew(hall.engine, lease, LONG)
    other = claim(study, hall, "w2")
    assert other is not None and other.trial_id != lease.trial_id


def test_a_released_trial_is_interrupted_at_once(hall: Hall, study: Study) -> None:
    lease = claim(study, hall, "w1")
    assert lease is not None
    leases.release(hall.engine, lease, "preempted")
    assert study.progress().interrupted == 1
    again = claim(study, hall, "w2")
    assert again is not None and again.trial_id == lease.trial_id


def test_finishing_ends_lease_and_attempt_in_one_transaction(hall: Hall, study: Study) -> None:
    lease = claim(study, hall)
    assert lease is not None
    finish(hall, lease)
    with hall.engine.connect() as connection:
        left = connection.execute(sqlalchemy.text("SELECT count(*) FROM service.leases")).scalar()
    assert left == 0
    attempt = study.attempts()[lease.trial_id][0]
    assert attempt.ended_at is not None and attempt.cause is None
    assert study.progress().complete == 1


def test_interrupted_trials_are_taken_over_even_when_the_budget_is_spent(
    hall: Hall, study: Study
) -> None:
    for _ in range(9):
        assert claim(study, hall) is not None
    last = claim(study, hall, "w1", OVER)
    again = claim(study, hall, "w2")
    assert last is not None and again is not None
    assert again.number == last.number
    assert claim(study, hall) is None


def test_enqueued_trials_come_first_and_count(hall: Hall, study: Study) -> None:
    study.optuna.enqueue_trial({"x": 3.0})
    first = claim(study, hall)
    assert first is not None and first.number == 0
    assert study.optuna.trials[0].state == TrialState.RUNNING
    rest = [claim(study, hall) for _ in range(10)]
    assert [lease.number for lease in rest if lease] == list(range(1, 10))


def test_a_stopped_study_has_nothing_to_claim_until_it_is_resumed(
    hall: Hall, study: Study
) -> None:
    study.stop()
    assert claim(study, hall) is None
    study.resume()
    assert claim(study, hall) is not None


def test_a_renewal_returns_the_stop_reason(hall: Hall, study: Study) -> None:
    lease = claim(study, hall)
    assert lease is not None
    assert leases.renew(hall.engine, lease, LONG).stop_reason is None
    study.stop("enough")
    assert leases.renew(hall.engine, lease, LONG).stop_reason == "enough"


def test_resume_extends_the_budget_to_the_new_total(hall: Hall, study: Study) -> None:
    while claim(study, hall):
        pass
    study.resume(n_trials=12)
    assert [lease.number for lease in (claim(study, hall), claim(study, hall)) if lease] == [
        10,
        11,
    ]
    assert claim(study, hall) is None


def test_the_wall_clock_starts_with_the_first_claim_and_ends_the_study(hall: Hall) -> None:
    study = hall.create("timed", Spec("stubs:quick"), Budget(None, timeout=1000))
    lost = claim(study, hall, "w1", OVER)
    again = claim(study, hall, "w2")
    assert lost is not None and again is not None and again.trial_id == lost.trial_id
    leases.expire_held_by(hall.engine, "w2")
    with hall.engine.begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE service.studies SET deadline = now()"))
    assert claim(study, hall, "w3") is None
    progress = study.progress()
    assert (progress.state, progress.failed, progress.interrupted) == ("finished", 1, 0)
    assert study.attempts()[lost.trial_id][-1].cause == "timeout"


@pytest.mark.parametrize(("good", "stops"), [(False, True), (True, False)])
def test_five_failures_in_a_row_stop_the_study(
    hall: Hall, study: Study, good: bool, stops: bool
) -> None:
    storage = StudyStorage(hall.engine)
    for index in range(6):
        lease = claim(study, hall)
        if lease is None:
            break
        storage.hold(lease)
        if good and index == 3:
            storage.set_trial_state_values(lease.trial_id, TrialState.COMPLETE, [1.0])
            continue
        storage.set_cause("error", "ValueError: no such layer")
        storage.set_trial_state_values(lease.trial_id, TrialState.FAIL)
    progress = study.progress()
    assert (progress.state == "stopped") is stops
    if stops:
        assert progress.failed == 5
        assert progress.stop_reason is not None and "no such layer" in progress.stop_reason


@pytest.mark.parametrize(
    ("state", "cause", "stops"),
    [
        (TrialState.COMPLETE, None, False),
        (TrialState.PRUNED, None, False),
        (TrialState.FAIL, "nan", True),
        (TrialState.FAIL, "oom", True),
        (TrialState.FAIL, "timeout", True),
    ],
)
def test_only_success_ends_a_row_of_failures(
    hall: Hall, study: Study, state: TrialState, cause: str | None, stops: bool
) -> None:
    storage = StudyStorage(hall.engine)
    failure = (TrialState.FAIL, "error")
    for end, why in [failure] * 4 + [(state, cause)] + [failure]:
        lease = claim(study, hall)
        assert lease is not None
        storage.hold(lease)
        values = [1.0] if end == TrialState.COMPLETE else None
        storage.finish(lease, end, values, cause=why, detail="ValueError: wrong")
    assert (study.progress().state == "stopped") is stops
    assert (claim(study, hall) is None) is stops


@pytest.mark.parametrize("how", ["expires", "its worker dies", "is released"])
def test_a_trial_without_a_valid_lease_is_interrupted_wherever_it_is_shown(
    hall: Hall, study: Study, how: str
) -> None:
    lease = claim(study, hall, "w1", OVER if how == "expires" else LONG)
    other = claim(study, hall, "w2")
    assert lease is not None and other is not None
    if how == "its worker dies":
        leases.expire_held_by(hall.engine, "w1")
    elif how == "is released":
        leases.release(hall.engine, lease, "preempted")
    if how == "expires":  # the second claim has taken the first trial over
        assert other.number == lease.number
        assert [row["state"] for row in study.records()] == ["running"]
        lease = claim(study, hall, "w3", OVER)
        assert lease is not None
    progress = study.progress()
    assert (progress.running, progress.interrupted) == (1, 1)
    shown = {row["number"]: row["state"] for row in study.records()}
    assert shown == {lease.number: "interrupted", 1 - lease.number: "running"}
    assert study.records(state="running") == study.records()
    found = [row.problem for row in doctor.examine(hall.settings)]
    assert any(f"its trial {lease.number} can be taken over now" in problem for problem in found)
