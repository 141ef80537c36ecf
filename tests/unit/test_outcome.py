"""Outcome: what an objective returns or raises decides how its trial ends."""

from __future__ import annotations

import math

import optuna
import pytest
from optuna.trial import TrialState

from service.workers.outcome import Outcome
from service.workers.stop_requests import StudyTimeout, TrialTimeout


class Named(Exception):
    def __init__(self, cause: str) -> None:
        self.cause = cause


@pytest.mark.parametrize(
    ("value", "state", "cause"),
    [
        (0.5, TrialState.COMPLETE, None),
        (True, TrialState.COMPLETE, None),
        (math.nan, TrialState.FAIL, "nan"),
        (-math.inf, TrialState.FAIL, "nan"),
        ("0.5", TrialState.FAIL, "error"),
        (None, TrialState.FAIL, "error"),
    ],
)
def test_a_finite_number_completes_the_trial(
    value: object, state: TrialState, cause: str | None
) -> None:
    outcome = Outcome.of_value(value)
    assert (outcome.state, outcome.cause) == (state, cause)


@pytest.mark.parametrize(
    ("error", "state", "cause"),
    [
        (optuna.TrialPruned(), TrialState.PRUNED, None),
        (TrialTimeout("too long"), TrialState.FAIL, "timeout"),
        (MemoryError(), TrialState.FAIL, "oom"),
        (Named("invalid"), TrialState.FAIL, "invalid"),
        (Named("bad luck"), TrialState.FAIL, "error"),
        (KeyboardInterrupt(), TrialState.FAIL, "error"),
    ],
)
def test_an_exception_prunes_the_trial_or_fails_it_with_a_cause(
    error: BaseException, state: TrialState, cause: str | None
) -> None:
    outcome = Outcome.of_error(error)
    assert (outcome.state, outcome.cause) == (state, cause)


@pytest.mark.parametrize(("reported", "state"), [(True, "PRUNED"), (False, "FAIL")])
def test_the_studys_timeout_prunes_a_trial_that_has_reported(reported: bool, state: str) -> None:
    outcome = Outcome.of_study_timeout(StudyTimeout("over"), reported=reported)
    assert (outcome.state.name, outcome.cause, outcome.detail) == (state, "timeout", "over")


def test_an_outcome_is_described_in_one_line() -> None:
    assert Outcome.of_value(0.25).describe("loss", 3) == "complete, loss 0.25 at epoch 3"
    assert Outcome.of_error(optuna.TrialPruned()).describe(None, None) == "pruned"
    assert Outcome.of_value(math.nan).describe(None, None).startswith("failed (nan): ")
