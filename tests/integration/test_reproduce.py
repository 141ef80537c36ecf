"""Reproduction and refit: one trial trained again, and what comes of it."""

from __future__ import annotations

import pytest
from optuna.trial import TrialState

from service import Budget, ConfigurationError, Hall, Spec, Study
from service.storage import leases
from service.studies import linked, reproduction
from service.studies.reproduction import Comparison, Reproduction
from service.workers.worker import Worker

SETTINGS = {"epochs": 3, "refit": False, "split_seed": 0}


def work(hall: Hall, study: Study, name: str = "w1") -> int:
    return Worker(study, hall, study.spec.load(), name, "cpu").run()


def searched(hall: Hall, objective: str = "settled", n_trials: int = 3, **spec: object) -> Study:
    direction = "maximize" if objective == "settled" else "minimize"
    made = Spec(f"stubs:{objective}", direction=direction, **spec)  # type: ignore[arg-type]
    study = hall.create(objective, made, Budget(n_trials))
    work(hall, study)
    return study


def reproduced(hall: Hall, study: Study, number: int) -> Reproduction:
    work(hall, study.reproduce(number))
    found = study.reproduction(number)
    assert found is not None and found.is_ended
    return found


def test_a_trial_is_reproduced_to_the_bit(hall: Hall) -> None:
    study = searched(hall)
    found = reproduced(hall, study, 1)
    assert (found.verdict, found.first_difference) == ("identical", None)
    assert [one.step for one in found.comparisons] == [0, 1, 2, None]
    trial = study.optuna.trials[1]
    (again,) = study.linked("reproduce")[0].optuna.trials
    assert (again.params, again.value) == (trial.params, trial.value)
    assert again.intermediate_values == trial.intermediate_values
    assert again.system_attrs[linked.SEED] == linked.seed_of(0, trial)


@pytest.mark.parametrize(("drift", "verdict"), [("0.0005", "within noise"), ("0.2", "different")])
def test_a_drift_is_found_at_its_first_step(
    hall: Hall, monkeypatch: pytest.MonkeyPatch, drift: str, verdict: str
) -> None:
    study = searched(hall)
    monkeypatch.setenv("STUB_DRIFT", drift)
    found = reproduced(hall, study, 0)
    assert found.verdict == verdict
    assert found.first_difference is not None and found.first_difference.step == 1


def test_a_pruned_trial_is_trained_up_to_the_step_at_which_it_was_pruned(hall: Hall) -> None:
    study = searched(hall, "stepped", 12)
    pruned = next(t for t in study.optuna.trials if t.state is TrialState.PRUNED)
    found = reproduced(hall, study, pruned.number)
    assert (found.verdict, found.repeated_state) == ("identical", "pruned")
    steps = [one.step for one in found.comparisons]
    assert steps == [*pruned.intermediate_values] and len(steps) < 5


def test_a_run_of_a_confirmation_is_reproduced_with_its_seed_and_its_split(hall: Hall) -> None:
    study = searched(hall, settings=SETTINGS)
    confirmation = study.confirm(top=1, seeds=2, resplit=True)
    work(hall, confirmation)
    found = reproduced(hall, confirmation, 1)
    assert (found.verdict, found.study) == ("identical", "settled-confirm")
    (again,) = confirmation.linked("reproduce")[0].optuna.trials
    run = confirmation.optuna.trials[1]
    assert again.system_attrs[linked.SPLIT_SEED] == run.system_attrs[linked.SPLIT_SEED]


def test_an_unfinished_reproduction_goes_on_and_a_finished_one_is_done_anew(hall: Hall) -> None:
    study = searched(hall)
    first = study.reproduce(2)
    lease = leases.claim(hall.engine, first.study_id, "dead", 0.0)
    assert lease is not None
    assert study.reproduce(2).name == first.name == "settled-reproduce-2"
    work(hall, first)
    assert study.reproduce(2).name == "settled-reproduce-2-2"
    assert study.reproduce(1).name == "settled-reproduce-1"


def test_a_repetition_that_fails_is_different(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_CHOICES", "1")
    grid = {"search_space": {"choice": [*range(5)]}}
    study = searched(hall, "fails_again", 5, sampler="grid", sampler_arguments=grid)
    failed = [trial.number for trial in study.optuna.trials if trial.state is TrialState.FAIL]
    complete = [t.number for t in study.optuna.trials if t.state is TrialState.COMPLETE]
    assert failed and complete
    found = reproduced(hall, study, failed[0])
    assert (found.verdict, found.cause) == ("identical", "nan")
    monkeypatch.setenv("STUB_CHOICES", "0,1,2,3,4")
    found = reproduced(hall, study, complete[0])
    assert (found.verdict, found.state, found.repeated_state) == ("different", "complete", "fail")


def test_the_data_must_be_those_of_the_study(hall: Hall) -> None:
    study = searched(hall, "with_data", 1, settings={"bound": 1.0})
    study.check_data(study.spec.load())
    again = study.reproduce(0)
    assert again.progress().data == study.progress().data is not None


def test_what_cannot_be_reproduced_is_refused_in_one_line(hall: Hall) -> None:
    study = searched(hall, n_trials=1)
    study.optuna.ask()
    for number, message in ((1, "has not ended"), (7, "has no trial 7")):
        with pytest.raises(ConfigurationError, match=message):
            study.reproduce(number)
    assert study.reproduction(0) is None


def test_numbers_are_compared_as_the_documentation_says() -> None:
    def verdict(recorded: float | None, repeated: float | None) -> str:
        return Comparison(0, recorded, repeated).verdict

    assert verdict(1.0, 1.0) == verdict(0.0, -0.0) == verdict(None, None) == "identical"
    assert verdict(float("nan"), float("nan")) == "identical"
    assert verdict(1.0, 1.0 + 1e-15) == verdict(-2.0, -2.02) == "within noise"
    assert verdict(1.0, 1.02) == verdict(1.0, None) == verdict(1.0, float("nan")) == "different"
    assert verdict(0.0, 1e-9) == verdict(float("inf"), 1.0) == "different"
    assert reproduction.TOLERANCE == 0.01


def test_refit_trains_the_best_trial_for_its_best_number_of_epochs(hall: Hall) -> None:
    study = searched(hall, settings=SETTINGS)
    best = study.best
    assert best is not None and best.epoch is not None
    again = study.refit()
    assert again.name == "settled-refit"
    assert again.spec.settings == {**SETTINGS, "refit": True, "epochs": best.epoch + 1}
    work(hall, again)
    (trial,) = again.optuna.trials
    assert trial.params == best.params
    assert len(trial.intermediate_values) == best.epoch + 1
    assert study.refit().name == "settled-refit"


def test_refit_takes_the_confirmed_winner_if_there_is_one(hall: Hall) -> None:
    study = searched(hall, settings=SETTINGS)
    before = study.refit()
    confirmation = study.confirm(top=2, seeds=3)
    assert study.refit().name == before.name  # no run has ended
    work(hall, confirmation)
    found = study.confirmation()
    assert found is not None and found.winner is not None
    epochs = sorted(found.winner.epochs)[1] + 1
    again = study.refit()
    (trial,) = again.optuna.trials
    assert trial.system_attrs[linked.SOURCE] == found.winner.number
    assert again.spec.settings["epochs"] == epochs


def test_refit_needs_an_objective_that_can_do_it(hall: Hall) -> None:
    study = searched(hall, "quick", 2)
    with pytest.raises(ConfigurationError, match=r"no setting epochs and no refit"):
        study.refit()
    assert study.linked() == []
