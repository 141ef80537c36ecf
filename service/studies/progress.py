"""Progress: how far a study is, and its best trial."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from service.errors import UnreadableRow, counted
from service.studies.progress_reader import Snapshot
from service.text import visible


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
        drift: What workers with ``--allow-drift`` have brought: another source, other data.
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
    drift: dict[str, Any] | None = None

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
            f"{self.running} running, {self.interrupted} interrupted), "
            f"{counted(self.workers, 'worker')}"
        )
        if self.best is not None:
            line = f"{line}, best {self.best.value:.6g}{mark(self.synthetic, self.best.drift)}"
        return visible(line)


@dataclass(frozen=True)
class Unreadable:
    """A study of which a row cannot be read.

    Attributes:
        study: The study's name.
        problem: What cannot be read, and why.
    """

    study: str
    problem: str

    def to_json(self) -> dict[str, Any]:
        """The object that ``studyhall status --json`` prints."""
        return {"study": self.study, "state": "unreadable", "problem": self.problem}

    def __str__(self) -> str:
        return visible(f"{self.study}: unreadable, {self.problem}")


def read_data(stored: Any) -> dict[str, Any] | None:
    """What identifies a study's data, as its row has it; None until a worker has read them.

    Raises:
        UnreadableRow: It is something else.
    """
    if stored is None:
        return None
    texts = ("name", "source", "fingerprint")
    if not isinstance(stored, dict) or not all(isinstance(stored.get(key), str) for key in texts):
        raise UnreadableRow(
            f"its data are {stored!s:.60}, not an object with the texts {', '.join(texts)}"
        )
    return stored


def is_synthetic(data: Mapping[str, Any] | None) -> bool:
    """Whether a study's data are generated."""
    return data is not None and data.get("kind") == "synthetic"


def mark(synthetic: bool, drift: Collection[str] = ()) -> str:
    """What stands behind a value that was measured on generated data, or after a drift."""
    return f"{' SYNTHETIC' if synthetic else ''}{' DRIFT' if drift else ''}"


def spread(std: float | None) -> str:
    """What stands behind a value that is the mean of several trainings."""
    return "" if std is None else f" (std {std:.2g})"


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
        std: The standard deviation of the trainings whose mean the value is; None: it is no mean.
        drift: What differed from the study as it was measured: ``source``, ``data``.
    """

    number: int
    value: float
    params: dict[str, Any]
    epoch: int | None
    seed: int
    synthetic: bool = False
    std: float | None = None
    drift: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As ``studyhall best --json`` prints it."""
        return dict(self.__dict__)


def progress(name: str, objective: str, snapshot: Snapshot, best: Best | None) -> Progress:
    """The progress of a study.

    Args:
        name: The study's name.
        objective: The objective of its spec.
        snapshot: What the database says.
        best: The best trial, which the caller has looked up.

    Raises:
        UnreadableRow: What is stored of its data is nothing that identifies data.
    """
    row, counts = snapshot.row, snapshot.counts
    running = max(0, row.unfinished - row.interrupted)
    return Progress(
        study=name,
        objective=objective,
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
        data=read_data(row.data),
        remaining=_remaining(row),
        stop_reason=row.stop_reason,
        late=is_late(row),
        begun=row.n_claimed,
        drift=row.drift,
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
