"""Worker: it claims, runs and records; every way in which a trial can end."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import optuna
import pytest
import sqlalchemy
import stubs
from optuna.trial import TrialState

from service import Budget, ConfigurationError, DataMismatch, Hall, Spec, Study
from service.storage import leases
from service.storage.storage import StudyStorage
from service.studies import registry
from service.workers.worker import Worker


def new(hall: Hall, objective: str, n_trials: int = 4, **spec: object) -> Study:
    made = Spec(f"stubs:{objective}", **spec)  # type: ignore[arg-type]
    return hall.create(objective, made, Budget(n_trials))


def work(hall: Hall, study: Study, name: str = "w1") -> int:
    return Worker(study, hall, study.spec.load(), name, "cpu").run()


def states(study: Study) -> list[str]:
    return [row["state"] for row in study.records()]


def test_a_worker_runs_the_budget_and_ends_with_zero(hall: Hall) -> None:
    study = new(hall, "quick", 6)
    assert work(hall, study) == 0
    progress = study.progress()
    assert (progress.state, progress.complete, progress.workers) == ("finished", 6, 0)
    assert progress.best is not None
    assert progress.best.value == min(trial.value for trial in study.optuna.trials)
    assert work(hall, study, "w2") == 0
    assert study.progress().finished == 6


def test_the_same_seed_gives_the_same_study_and_trials_differ(hall: Hall) -> None:
    one, two = new(hall, "quick", 5), hall.create("two", Spec("stubs:quick"), Budget(5))
    work(hall, one)
    work(hall, two)
    params = [[row["params"]["x"] for row in study.records()] for study in (one, two)]
    assert params[0] == params[1]
    assert len(set(params[0])) == 5


def test_a_resumed_study_does_not_repeat_its_first_points(hall: Hall) -> None:
    study = new(hall, "quick", 3)
    work(hall, study)
    study.resume(n_trials=6)
    work(hall, study, "w2")
    assert len({row["params"]["x"] for row in study.records()}) == 6


def test_median_pruner_prunes_by_what_was_reported(hall: Hall) -> None:
    study = new(hall, "stepped", 12)
    work(hall, study)
    pruned = [row for row in study.records() if row["state"] == "pruned"]
    assert pruned
    # No judgement before the warm-up step: every trial reported at least two values.
    assert all(len(row["intermediate_values"]) >= 2 for row in pruned)


def test_nan_and_infinity_are_failures(hall: Hall) -> None:
    study = new(hall, "not_a_number")
    work(hall, study)
    assert [row["cause"] for row in study.records()] == ["nan", "nan", None, None]
    assert study.progress().failed == 2
    assert study.progress().stop_reason is None


def test_a_failing_objective_keeps_its_traceback_and_the_worker_goes_on(hall: Hall) -> None:
    study = new(hall, "sometimes_failing", 6)
    work(hall, study)
    assert states(study) == ["complete", "fail"] * 3
    failed = study.records(state="fail")[0]
    assert failed["cause"] == "error"
    assert "ZeroDivisionError: odd" in failed["detail"]
    assert "stubs.py" in failed["detail"]


def test_five_failures_in_a_row_stop_the_worker(hall: Hall) -> None:
    study = new(hall, "failing", 20)
    work(hall, study)
    progress = study.progress()
    assert (progress.state, progress.failed) == ("stopped", 5)
    assert "ZeroDivisionError: the divisor was nought" in str(progress.stop_reason)


def test_nan_between_failures_does_not_hide_them(hall: Hall) -> None:
    study = new(hall, "failing_or_nan", 20)
    work(hall, study)
    causes = [row["cause"] for row in study.records()]
    assert causes == ["error", "nan"] * 4 + ["error"]
    assert study.progress().state == "stopped"
    assert "5 trials failed in a row, the last one with" in str(study.progress().stop_reason)


def test_a_budget_does_not_count_trials_that_plain_optuna_adds(hall: Hall) -> None:
    study = new(hall, "quick", 2)
    for value in (100.0, 200.0, 300.0):
        study.optuna.add_trial(optuna.trial.create_trial(value=value))
    study.optuna.ask()
    work(hall, study)
    progress = study.progress()
    assert (progress.begun, progress.added, progress.finished) == (2, 4, 5)
    assert "5 trials, 2/2 of the budget, 4 added by plain Optuna" in str(progress)
    with pytest.raises(ConfigurationError, match="has begun 2 trials already"):
        study.resume(n_trials=1)
    study.resume(n_trials=3)
    work(hall, study, "w2")
    work(hall, study, "w3")
    assert (study.progress().begun, len(study.optuna.trials)) == (3, 7)


def test_a_value_that_is_no_number_fails_with_a_message(hall: Hall) -> None:
    study = new(hall, "no_number", 1)
    work(hall, study)
    assert "'high', which is not a number" in study.records()[0]["detail"]


def test_an_objective_that_interrupts_itself_fails(hall: Hall) -> None:
    study = new(hall, "interrupting", 2)
    assert work(hall, study) == 0
    assert [(row["state"], row["cause"]) for row in study.records()] == [("fail", "error")] * 2


def test_the_wall_clock_ends_an_objective_that_never_checks_it(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.workers.stop_requests.RESPONSE_SECONDS", 0.2)
    study = hall.create("unresponsive", Spec("stubs:unresponsive"), Budget(None, timeout=1.0))
    began = time.monotonic()
    assert work(hall, study) == 0
    assert time.monotonic() - began < 10
    (row,) = study.records()
    assert (row["state"], row["cause"]) == ("fail", "timeout")


def test_a_configuration_mistake_stops_the_study_at_once(hall: Hall) -> None:
    study = new(hall, "misconfigured")
    with pytest.raises(ConfigurationError, match="val_f1"):
        work(hall, study)
    assert study.progress().state == "stopped"
    assert states(study) == ["fail"]


def test_study_stop_in_an_objective_finishes_the_study(hall: Hall) -> None:
    study = new(hall, "stopping", 20)
    work(hall, study)
    assert len(states(study)) == 4
    assert study.progress().state == "finished"


def test_a_trial_taken_over_replaces_its_earlier_values(hall: Hall) -> None:
    study = new(hall, "stepped", 1)
    lease = leases.claim(hall.engine, study.study_id, "dead", 0.0)
    assert lease is not None
    storage = StudyStorage(hall.engine)
    storage.hold(lease)
    distribution = optuna.distributions.FloatDistribution(-10, 10)
    storage.set_trial_param(lease.trial_id, "x", 3.0, distribution)
    for step in range(8):
        storage.set_trial_intermediate_value(lease.trial_id, step, 99.0)
    work(hall, study)
    (row,) = study.records()
    assert (row["number"], row["state"], row["attempts"]) == (0, "complete", 2)
    assert row["params"] == {"x": 3.0}
    assert row["intermediate_values"] == {step: 9.0 + 4 - step for step in range(5)}


def test_a_worker_that_lost_its_lease_writes_nothing_and_goes_on(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = new(hall, "stepped", 3)
    taken = []

    def takes_the_lease_away(trial: optuna.Trial) -> float:
        if trial.number == 0 and not taken:
            leases.expire_held_by(hall.engine, "slow")
            taken.append(leases.claim(hall.engine, study.study_id, "other", 60.0))
        return stubs.stepped(trial)

    assert Worker(study, hall, takes_the_lease_away, "slow", "cpu").run() == 0
    rows = study.records()
    assert [row["state"] for row in rows] == ["running", "complete", "complete"]
    assert (rows[0]["worker"], rows[0]["intermediate_values"]) == ("other", {})


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_releases_the_trial_at_once(
    hall: Hall, monkeypatch: pytest.MonkeyPatch, kind: signal.Signals
) -> None:
    study = new(hall, "slow")
    threading.Timer(1.0, os.kill, (os.getpid(), kind)).start()
    began = time.monotonic()
    assert work(hall, study) == (130 if kind == signal.SIGINT else 0)
    assert time.monotonic() - began < 4
    progress = study.progress()
    assert (progress.running, progress.interrupted, progress.workers) == (0, 1, 0)
    assert study.attempts()[study.optuna.trials[0]._trial_id][0].cause == "preempted"


def test_an_objective_that_ignores_a_signal_is_interrupted_after_a_while(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.workers.stop_requests.RESPONSE_SECONDS", 0.5)
    study = new(hall, "unresponsive")
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    began = time.monotonic()
    assert work(hall, study) == 0
    assert time.monotonic() - began < 10
    assert study.progress().interrupted == 1


def test_stop_reaches_a_running_trial_at_its_next_report(hall: Hall) -> None:
    study = new(hall, "slow")
    threading.Timer(1.0, study.stop).start()
    assert work(hall, study) == 0
    progress = study.progress()
    assert (progress.state, progress.interrupted) == ("stopped", 1)


def test_a_spent_wall_clock_ends_the_running_trial_as_pruned(hall: Hall) -> None:
    study = hall.create("timed", Spec("stubs:slow"), Budget(None, timeout=1.0))
    assert work(hall, study) == 0
    (row,) = study.records()
    assert (row["state"], row["cause"]) == ("pruned", "timeout")
    assert study.progress().state == "finished"


def test_a_lease_is_renewed_while_a_trial_lasts_longer(hall: Hall) -> None:
    study = new(hall, "slow", 1)
    seen = []

    def look() -> None:
        with hall.engine.connect() as connection:
            left = "SELECT expires_at > clock_timestamp() FROM service.leases"
            seen.append(connection.execute(sqlalchemy.text(left)).scalar())

    timer = threading.Timer(4.0, look)  # the lease lasts 3 s, the trial 5 s
    timer.start()
    work(hall, study)
    assert seen == [True]
    assert study.records()[0]["attempts"] == 1


@pytest.mark.parametrize(
    ("sampler", "arguments"),
    [
        ("tpe", {"n_startup_trials": 2}),
        ("random", {}),
        ("grid", {"search_space": {"x": [1.0, 2.0, 3.0]}}),
        ("cmaes", {}),
        ("qmc", {}),
        ("BruteForceSampler", {}),
    ],
)
def test_every_sampler_runs_a_study(
    hall: Hall, sampler: str, arguments: dict[str, object]
) -> None:
    objective = "three" if sampler == "BruteForceSampler" else "quick"
    study = hall.create(
        "s", Spec(f"stubs:{objective}", sampler=sampler, sampler_arguments=arguments), Budget(5)
    )
    work(hall, study)
    rows = study.records()
    assert {row["state"] for row in rows} == {"complete"}
    assert len({row["params"]["x"] for row in rows}) == len(rows) >= 3
    assert study.progress().state == "finished"


@pytest.mark.parametrize(
    ("pruner", "arguments"),
    [
        ("median", {}),
        ("hyperband", {"max_resource": 5}),
        ("asha", {}),
        ("percentile", {}),
        ("patient", {}),
        ("wilcoxon", {}),
        ("none", {}),
        ("ThresholdPruner", {"upper": 60.0}),
    ],
)
def test_every_pruner_runs_a_study(hall: Hall, pruner: str, arguments: dict[str, object]) -> None:
    study = hall.create(
        "p", Spec("stubs:stepped", pruner=pruner, pruner_arguments=arguments), Budget(6)
    )
    work(hall, study)
    assert {row["state"] for row in study.records()} <= {"complete", "pruned"}
    assert len(study.records()) == 6


def test_the_first_workers_data_become_the_studys_and_others_are_refused(
    hall: Hall, tmp_path: Path
) -> None:
    study = new(hall, "with_data", direction="maximize")
    mine = registry.configure(stubs.with_data, {}, None, str(tmp_path / "a"))
    theirs = registry.configure(stubs.with_data, {}, None, str(tmp_path / "b"))
    study.check_data(mine)
    study.check_data(mine)
    with pytest.raises(DataMismatch, match=r"here b{16} from folder b, there a{16} from folder a"):
        study.check_data(theirs)
    progress = study.progress()
    assert progress.data is not None and progress.data["fingerprint"] == "a" * 64


def test_optuna_reads_what_the_service_wrote(hall: Hall, database_url: str) -> None:
    study = new(hall, "stepped", 8)
    work(hall, study)
    stock = optuna.load_study(study_name="stepped", storage=database_url)
    assert [trial.number for trial in stock.trials] == list(range(8))
    assert stock.best_value == study.progress().best.value  # type: ignore[union-attr]
    assert {trial.state for trial in stock.trials} <= {TrialState.COMPLETE, TrialState.PRUNED}


def test_data_of_the_same_fingerprint_with_another_content_are_refused(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = new(hall, "cached")
    monkeypatch.setenv("STUB_CONTENT", "one")
    study.check_data(stubs.cached)
    study.check_data(stubs.cached)
    monkeypatch.setenv("STUB_CONTENT", "two")
    with pytest.raises(DataMismatch, match="but their content differs"):
        study.check_data(stubs.cached)
    monkeypatch.delenv("STUB_CONTENT")
    study.check_data(stubs.cached)  # read without a cache
