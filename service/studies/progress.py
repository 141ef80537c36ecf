"""Progress: how far a study is, and its best trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.studies.progress_reader import Snapshot


@dataclass(frozen=True)
class Progress:
    """How far a study is.

    Attributes:
        state: ``new``, ``running``, ``stopped`` or ``finished``.
        n_trials: The budget; None where only the wall-clock limits the study.
        begun: Trials that workers have begun; these the budget counts.
        running: RUNNING trials that are not interrupted, leased or not.
        interrupted: RUNNING trials whose lease has expired or was released.
        workers: Worker processes that were heard of lately.
        eta_seconds: Expected time to the end at the present pace, or None.
        remaining: Trials that may still be begun; None without such a budget.
        stop_reason: Why the study was stopped, where it was.
        late: Whether the study's wall-clock is spent.
    """

    study: str
    objective: str
    state: str
    n_trials: int | None
    complete: int
    pruned: int
    failed: int
    running: int
    interrupted: int
    waiting: int
    workers: int
    best: Best | None
    eta_seconds: float | None
    data: dict[str, Any] | None
    remaining: int | None = None
    stop_reason: str | None = None
    late: bool = False
    begun: int = 0

    @property
    def synthetic(self) -> bool:
        """Whether the study's data are generated, so that its values say nothing of real data."""
        return is_synthetic(self.data)

    @property
    def finished(self) -> int:
        """Trials that have ended, well or not."""
        return self.complete + self.pruned + self.failed

    @property
    def total(self) -> int:
        """All trials, whatever their state."""
        return self.finished + self.running + self.interrupted + self.waiting

    @property
    def added(self) -> int:
        """Trials that plain Optuna has added or begun; the budget does not count them."""
        return max(0, self.finished + self.running + self.interrupted - self.begun)

    @property
    def count_line(self) -> str:
        """How many trials have ended, and how much of the budget that is."""
        total = "?" if self.n_trials is None else self.n_trials
        if not self.added:
            return f"{self.finished}/{total} trials"
        budget = f"{self.begun}/{total} of the budget"
        return f"{self.finished} trials, {budget}, {self.added} added by plain Optuna"

    def to_json(self) -> dict[str, Any]:
        """The object that ``studyhall status --json`` prints."""
        best = None if self.best is None else self.best.to_json()
        return {**self.__dict__, "best": best, "synthetic": self.synthetic}

    def __str__(self) -> str:
        line = (
            f"{self.study}: {self.state}, {self.count_line} "
            f"({self.complete} complete, {self.pruned} pruned, {self.failed} failed, "
            f"{self.running} running, {self.interrupted} interrupted), {self.workers} workers"
        )
        if self.best is None:
            return line
        return f"{line}, best {self.best.value:.6g}{mark(self.synthetic)}"


def is_synthetic(data: Mapping[str, Any] | None) -> bool:
    """Whether a study's data are generated."""
    return data is not None and data.get("kind") == "synthetic"


def mark(synthetic: bool) -> str:
    """What stands behind every value that was measured on generated data."""
    return " SYNTHETIC" if synthetic else ""


@dataclass(frozen=True)
class Best:
    """The best trial of a study.

    Attributes:
        number: The trial's number.
        value: Its value: the monitored metric at its best epoch.
        params: Its parameters.
        epoch: Its best epoch, from 0; None where the objective names none.
        seed: The seed of everything random in the trial.
        synthetic: Whether the value was measured on generated data.
    """

    number: int
    value: float
    params: dict[str, Any]
    epoch: int | None
    seed: int
    synthetic: bool = False

    def to_json(self) -> dict[str, Any]:
        """As ``studyhall best --json`` prints it."""
        return dict(self.__dict__)


def progress(name: str, snapshot: Snapshot, best: Best | None) -> Progress:
    """The progress of a study.

    Args:
        name: The study's name.
        snapshot: What the database says.
        best: The best trial, which the caller has looked up.
    """
    row, counts = snapshot.row, snapshot.counts
    running = max(0, row.unfinished - row.interrupted)
    return Progress(
        study=name,
        objective=row.spec["objective"],
        state=_state(row, counts.finished),
        n_trials=row.n_trials,
        complete=counts.complete,
        pruned=counts.pruned,
        failed=counts.failed,
        running=running,
        interrupted=row.interrupted,
        waiting=row.waiting,
        workers=row.workers,
        best=best,
        eta_seconds=_eta(snapshot, running),
        data=row.data,
        remaining=_remaining(row),
        stop_reason=row.stop_reason,
        late=is_late(row),
        begun=row.n_claimed,
    )


def is_late(row: Any) -> bool:
    """Whether the study's wall-clock is spent."""
    return row.seconds_left is not None and row.seconds_left <= 0


def _remaining(row: Any) -> int | None:
    if row.exhausted:
        return 0
    return None if row.n_trials is None else max(0, row.n_trials - row.n_claimed)


def _state(row: Any, finished: int) -> str:
    # A trial that runs without a lease (plain Optuna's ask) may never end: nobody waits for it.
    spent = row.n_trials is not None and row.n_claimed >= row.n_trials
    late = is_late(row)
    if row.leased:
        return "running"
    if row.stop_reason is not None:
        return "stopped"
    if (late or ((spent or row.exhausted) and not row.interrupted)) and finished:
        return "finished"
    return "running" if row.n_claimed or finished or row.workers else "new"


def _eta(snapshot: Snapshot, running: int) -> float | None:
    row, counts = snapshot.row, snapshot.counts
    ended = counts.complete + counts.pruned
    limits = []
    if row.seconds_left is not None:
        limits.append(max(0.0, float(row.seconds_left)))
    if row.n_trials is not None and ended:
        # A running trial is, on average, half done.
        left = max(0, row.n_trials - row.n_claimed) + row.interrupted + running / 2
        pace = max(1, running, row.workers)
        limits.append(counts.seconds / ended * left / pace)
    if row.stop_reason is not None or not limits:
        return None
    return round(min(limits), 1)
