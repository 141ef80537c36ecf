"""Outcome: how a trial ends, judged by what its objective returned or raised."""

from __future__ import annotations

import math
import traceback
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import TrialState

from service.errors import headline
from service.studies.progress import spread
from service.workers.stop_requests import TrialTimeout

CAUSES = ("error", "invalid", "nan", "oom", "timeout", "configuration")
"""The causes that an objective's exception may name."""

MAX_DETAIL = 100_000
"""Characters of a traceback that are kept."""


@dataclass(frozen=True)
class Outcome:
    """How a trial ends: its state with its value, or with the cause of its failure."""

    state: TrialState
    value: float | None = None
    cause: str | None = None
    detail: str | None = None

    @classmethod
    def of_value(cls, value: Any) -> Outcome:
        """COMPLETE for a finite number; FAIL for NaN, infinity and anything else."""
        try:
            number = float(value) if not isinstance(value, str) else None
        except Exception:  # a class of the objective's may raise anything
            number = None
        if number is None:
            what = f"the objective returned {_shown(value)}, which is not a number"
            return cls._fail("error", what)
        if not math.isfinite(number):
            return cls._fail("nan", f"the objective's value or its loss became {number}")
        return cls(TrialState.COMPLETE, number)

    @classmethod
    def of_error(cls, error: BaseException) -> Outcome:
        """PRUNED, or FAIL with the cause that the exception names, else ``error``."""
        if isinstance(error, TrialTimeout):
            return cls._fail("timeout", str(error))
        if isinstance(error, optuna.TrialPruned):
            return cls(TrialState.PRUNED)
        cause = "oom" if isinstance(error, MemoryError) else _cause(error)
        known = cause if isinstance(cause, str) and cause in CAUSES else "error"
        return cls._fail(known, "".join(traceback.format_exception(error)))

    @classmethod
    def of_study_timeout(cls, error: BaseException, *, reported: bool) -> Outcome:
        """PRUNED if the trial has reported a value, else FAIL."""
        state = TrialState.PRUNED if reported else TrialState.FAIL
        return cls(state, cause="timeout", detail=str(error))

    @classmethod
    def _fail(cls, cause: str, detail: str) -> Outcome:
        return cls(TrialState.FAIL, cause=cause, detail=storable(detail))

    def describe(self, monitor: str | None, epoch: int | None, std: float | None = None) -> str:
        """The outcome in one line.

        Args:
            monitor: Name of the metric, if it has one.
            epoch: The best epoch, if one has the value.
            std: The spread of the trainings whose mean the value is, if it is one.
        """
        if self.state == TrialState.COMPLETE:
            at = "" if epoch is None else f" at epoch {epoch}"
            return f"complete, {monitor or 'value'} {self.value:.6g}{spread(std)}{at}"
        if self.state == TrialState.PRUNED:
            return "pruned" if self.cause is None else f"pruned ({self.cause})"
        return f"failed ({self.cause}): {headline(self.detail)}"


def storable(text: str) -> str:
    """The text as a database can keep it: without NUL and lone surrogates, of bounded length."""
    if len(text) > MAX_DETAIL:
        half = MAX_DETAIL // 2
        text = f"{text[:half]}\n[...]\n{text[-half:]}"
    return text.replace("\0", "\\x00").encode(errors="backslashreplace").decode()


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except Exception:
        return f"a {type(value).__name__}"


def _cause(error: BaseException) -> Any:
    try:
        return getattr(error, "cause", None)
    except Exception:
        return None
