"""The winner of a study: its kept model, the one measurement on the test set, and its export."""

from __future__ import annotations

import getpass
import hashlib
import json
import math
import os
import shlex
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, Engine, text

from service.artifacts.models import ModelFiles
from service.artifacts.store import Store
from service.errors import ConfigurationError, StudyhallError, WorkFailed
from service.settings import Settings
from service.storage import kept_models
from service.storage.kept_models import KeptModel
from service.studies import card, provenance
from service.studies.confirmation import Confirmation
from service.studies.linked import CONFIRM, REFIT, SOURCE, SPLIT_SEED
from service.studies.permission import Permission
from service.studies.progress import Best, Progress
from service.studies.source import Source
from service.studies.spec import Spec
from service.studies.task import Task

TOLERANCE = 1e-4
"""Relative difference at which a reloaded model still reproduces its recorded metrics: float32
sums on another device, or one example of 10,000 that lies on the border of two classes."""

OPENINGS = text(
    """-- The openings of a study's test set, the first one first.
    SELECT number, sha256, who, opened_at, result FROM service.openings
     WHERE study_id = :study_id ORDER BY opening_id"""
)
LOCK = text(
    """-- Only one process at a time opens the test set of a study.
    SELECT FROM service.studies WHERE study_id = :study_id FOR UPDATE"""
)
OPEN = text(
    """-- Record an opening before the test set is read.
    INSERT INTO service.openings (study_id, number, sha256, who)
    VALUES (:study_id, :number, :sha256, :who) RETURNING opening_id"""
)
ROOT = text(
    """-- The study to which a study is linked, if that is still there.
    SELECT root.study_id FROM service.studies linked
      JOIN service.studies root ON root.uid = linked.spec->'linked'->>'uid'
     WHERE linked.study_id = :study_id"""
)
WITHDRAW = text(
    """-- Delete the record of an opening that has measured nothing.
    DELETE FROM service.openings WHERE opening_id = :opening_id"""
)
MEASURED = text(
    """-- The result of an opening.
    UPDATE service.openings SET result = CAST(:result AS jsonb) WHERE opening_id = :opening_id"""
)


class Searched(Protocol):
    """What is needed of a `Study`."""

    name: str
    study_id: int

    @property
    def spec(self) -> Spec: ...

    @property
    def engine(self) -> Engine: ...

    @property
    def settings(self) -> Settings: ...

    @property
    def optuna(self) -> optuna.Study: ...

    @property
    def best(self) -> Best | None: ...

    def progress(self) -> Progress: ...

    def trial(self, trial_id: int) -> FrozenTrial: ...

    def best_of(self, trial: FrozenTrial) -> Best: ...

    def confirmation(self) -> Confirmation | None: ...

    def linked(self, purpose: str | None = None) -> Sequence[Searched]: ...

    def read_source(self, permission: Permission | None = None) -> Source | None: ...

    def check_source(
        self, here: Source | None, *, allow_drift: bool = False
    ) -> list[str] | None: ...


@dataclass(frozen=True)
class Opening:
    """An opening of the test set.

    Attributes:
        number: The trial that was measured.
        sha256: The SHA-256 of its model's file.
        who: The account and the machine.
        opened_at: When.
        result: As `objectives.evaluation.measure` returns it; None if the measurement failed.
    """

    number: int
    sha256: str
    who: str
    opened_at: datetime
    result: dict[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """As ``status --json`` and the card have it."""
        return {**self.__dict__, "opened_at": self.opened_at.isoformat()}


@dataclass(frozen=True)
class Winner:
    """The winner of a study, with its model.

    Attributes:
        number: The trial of the study whose parameters it has.
        trial: The trial that was trained: that one, or its median run in the confirmation.
        study_id: The study of that trial.
        model: Its model.
        split_seed: The trial's own split seed, if it has one.
        confirmation: The confirmation that it has won; None: it is the best trial of the search.
    """

    number: int
    trial: Best
    study_id: int
    model: KeptModel
    split_seed: int | None = None
    confirmation: Confirmation | None = None


def openings(engine: Engine, study_id: int) -> list[Opening]:
    """The openings of a study's test set, the first one first; of a linked one, its root's."""
    with engine.connect() as connection:
        return _openings(connection, _root(connection, study_id))


def _openings(connection: Connection, root: int) -> list[Opening]:
    return [Opening(*row) for row in connection.execute(OPENINGS, {"study_id": root})]


def _root(connection: Connection, study_id: int) -> int:
    """The study at the end of the links: there is one test set for all of them."""
    root = connection.execute(ROOT, {"study_id": study_id}).scalar()
    return study_id if root is None else int(root)


def find_winner(study: Searched) -> Winner:
    """The winner of the confirmation, if there is one, else the best trial; with its model.

    Of a confirmed winner, the run with the median value counts: the best of its runs would be the
    luckiest.

    Raises:
        WorkFailed: No trial is complete, or the model was not kept.
    """
    confirmation = study.confirmation()
    if confirmation is not None and (candidate := confirmation.winner) is not None:
        return _median_run(study, confirmation, candidate.number)
    best = study.best
    if best is None:
        raise WorkFailed(f"no feasible trial of study {study.name!r} is complete")
    maximize = study.spec.direction == "maximize"
    for model in kept_models.find(study.engine, study.study_id, maximize=maximize):
        if model.number == best.number:
            split_seed = study.trial(model.trial_id).system_attrs.get(SPLIT_SEED)
            return Winner(best.number, best, study.study_id, model, split_seed)
    raise WorkFailed(
        f"the model of trial {best.number}, the best of study {study.name!r}, was not kept: "
        f"{_why_not(study)}"
    )


def _refits(study: Searched) -> str:
    """The refit of a study, if there is one, which has a model."""
    names = [shlex.quote(one.name) for one in study.linked(REFIT)]
    return f"; its refit has one: studyhall export {names[-1]} DIR" if names else ""


def _median_run(study: Searched, confirmation: Confirmation, number: int) -> Winner:
    (linked,) = (one for one in study.linked(CONFIRM) if one.name == confirmation.linked)
    runs = [
        trial
        for trial in linked.optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if trial.system_attrs.get(SOURCE) == number
    ]
    runs.sort(key=lambda trial: (trial.values[0], trial.number))
    median = runs[(len(runs) - 1) // 2]
    for model in kept_models.find(linked.engine, linked.study_id, maximize=True):
        if model.number == median.number:
            split_seed = median.system_attrs.get(SPLIT_SEED)
            run = linked.best_of(median)
            return Winner(number, run, linked.study_id, model, split_seed, confirmation)
    raise WorkFailed(
        f"the model of trial {median.number} of {linked.name!r}, the winner's median run, was not "
        f"kept: {_why_not(linked)}"
    )


def _why_not(study: Searched) -> str:
    if study.spec.keep == 0:
        return "the study was created with --keep 0"
    return (
        "its objective calls no trial.save_model, as KerasObjective does; or a trial trains "
        "several models (folds, executions), and studyhall refit makes one; or the artifact store "
        f"could not be written; or the trial was added from elsewhere{_refits(study)}"
    )


def evaluate(
    study: Searched, permission: Permission, data_dir: str | None = None, *, again: bool = False
) -> Opening:
    """Measure the winner on the sealed test set, on record.

    Args:
        study: The study.
        permission: What the measuring process may import.
        data_dir: Folder of the data on this machine; by default the study's.
        again: Allow another measurement after the first one.

    Raises:
        ConfigurationError: The test set was opened before, or the objective is not allowed.
        WorkFailed: There is no winner.
        TaskFailed: The measurement failed.
    """
    _refuse_unfinished(study)
    winner = find_winner(study)
    _require(study, permission)
    who = f"{_account()}@{socket.gethostname()}"
    with study.engine.begin() as connection:
        root = _root(connection, study.study_id)
        connection.execute(LOCK, {"study_id": root})
        before = [row for row in _openings(connection, root) if row.result is not None]
        if before and not again:
            raise ConfigurationError(_opened_before(study.name, before))
        values = {"number": winner.number, "sha256": winner.model.sha256, "who": who}
        opening_id = connection.execute(OPEN, {"study_id": root, **values}).scalar_one()
    try:
        with _model_file(study, winner) as path:
            result = _task(
                study, permission, data_dir, winner, "evaluate", path, part="test"
            ).run()
    except StudyhallError:
        # Nothing was measured. An opening whose process was killed stays: nobody knows of it.
        with study.engine.begin() as connection:
            connection.execute(WITHDRAW, {"opening_id": opening_id})
        raise
    with study.engine.begin() as connection:
        connection.execute(MEASURED, {"opening_id": opening_id, "result": json.dumps(result)})
        return _openings(connection, root)[-1]


def _refuse_unfinished(study: Searched) -> None:
    """Refuse to open the test set before the search is over: a better trial may come.

    Raises:
        ConfigurationError: It is not over.
    """
    if study.progress().state == "running":
        raise ConfigurationError(
            f"study {study.name!r} is still running, and its test set is opened once, for its "
            f"winner; wait for its end, or end it: studyhall stop {shlex.quote(study.name)}"
        )


def _require(study: Searched, permission: Permission) -> None:
    """Refuse code that this process may not run, and another source than the study's."""
    # Nothing is sampled, so the study's sampler needs no permission.
    replace(study.spec, sampler="random", sampler_arguments={}).require(permission)
    study.check_source(study.read_source(permission), allow_drift=permission.drift)


def _opened_before(name: str, before: list[Opening]) -> str:
    times = "once" if len(before) == 1 else f"{len(before)} times"
    last = before[-1]
    return (
        f"the test set of study {name!r} was opened {times}, last on {last.opened_at:%Y-%m-%d} by "
        f"{last.who} for trial {last.number}; another measurement is no test any more, but "
        "--again allows it"
    )


def export(
    study: Searched, folder: Path, permission: Permission, data_dir: str | None = None
) -> dict[str, Any]:
    """Write the winner's model with its card into a new folder; prove that it is that model.

    The model is loaded again in a fresh process and measured on the validation part. It must come
    to the metrics that were recorded when it was trained.

    Args:
        study: The study.
        folder: A folder that does not exist yet, or is empty.
        permission: What the processes may import.
        data_dir: Folder of the data on this machine; by default the study's.

    Returns:
        The content of ``card.json``.

    Raises:
        ConfigurationError: The folder is not empty, or the objective is not allowed.
        WorkFailed: There is no winner, or the model does not reproduce its metrics.
        TaskFailed: The model cannot be made, or not be loaded again.
    """
    _refuse_full(folder)
    winner = find_winner(study)
    _require(study, permission)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        _model_file(study, winner) as path,
        tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary,
    ):
        new = Path(temporary, "new")
        new.mkdir()
        made = _task(study, permission, data_dir, winner, "export", path, folder=str(new)).run()
        check = {"part": "validation", "alone": True}
        found = _task(study, permission, data_dir, winner, "evaluate", Path(made), **check).run()
        reproduced = {f"val_{name}": value for name, value in found["metrics"].items()}
        _compare(winner, reproduced)
        content = _card(study, winner, reproduced, Path(made))
        card.write(content, new)
        _refuse_full(folder)
        new.replace(folder)
    return content


def _refuse_full(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(f"{str(folder)!r} exists already; name a new folder")


def _compare(winner: Winner, reproduced: Mapping[str, float]) -> None:
    """Compare the metrics of a reloaded model with those that were recorded.

    Raises:
        WorkFailed: One differs, or none can be compared.
    """
    recorded = {k: v for k, v in winner.model.logs.items() if k in reproduced}
    if not recorded:
        raise WorkFailed(
            f"the model of trial {winner.trial.number} cannot be checked: no validation metric "
            "was recorded with it"
        )
    wrong = [
        f"{name} {reproduced[name]:.6g} instead of {value:.6g}"
        for name, value in recorded.items()
        if not math.isclose(reproduced[name], value, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    ]
    if wrong:
        raise WorkFailed(
            f"the exported model does not reproduce what trial {winner.trial.number} recorded: "
            f"{', '.join(wrong)}; the objective's code or data have changed since"
        )


def model(study: Searched, permission: Permission, data_dir: str | None = None) -> Any:
    """The winner's model, made in this process by the objective's method `model`.

    Raises:
        ConfigurationError: The objective is not allowed, or has no such method.
        WorkFailed: There is no winner with a model.
    """
    winner = find_winner(study)
    _require(study, permission)
    with _model_file(study, winner) as path:
        task = _task(study, permission, data_dir, winner, "model", path)
        return task.call()


def _card(
    study: Searched, winner: Winner, reproduced: Mapping[str, float], model: Path
) -> dict[str, Any]:
    """The content of ``card.json``."""
    progress, trial, file = (
        study.progress(),
        study.trial(winner.model.trial_id),
        model.read_bytes(),
    )
    found, confirmed = openings(study.engine, study.study_id), winner.confirmation
    return {
        "study": study.name,
        "objective": study.spec.objective,
        "settings": study.spec.settings,
        "monitor": study.spec.monitor or "value",
        "direction": study.spec.direction,
        "synthetic": winner.trial.synthetic,
        "search": {
            "sampler": study.spec.sampler,
            "pruner": study.spec.pruner,
            "seed": study.spec.seed,
            "complete": progress.complete,
            "pruned": progress.pruned,
            "failed": progress.failed,
        },
        "number": winner.number,
        "trial": winner.trial.to_json(),
        "confirmation": None if confirmed is None else confirmed.to_json(),
        "training": trial.user_attrs.get("training"),
        "curve": {str(k): v for k, v in sorted(trial.intermediate_values.items())},
        "recorded": winner.model.logs,
        "reproduced": dict(reproduced),
        "model": {
            "file": model.name,
            "sha256": hashlib.sha256(file).hexdigest(),
            "bytes": len(file),
        },
        "data": progress.data,
        "provenance": _provenance(study, winner),
        "test": [
            {**opening.to_json(), "of_this_model": opening.sha256 == winner.model.sha256}
            for opening in found
        ],
    }


def _provenance(study: Searched, winner: Winner) -> Mapping[str, Any] | None:
    """Where the winner's trial comes from; None if that was not recorded."""
    with study.engine.connect() as connection:
        found = provenance.of_trial(connection, winner.study_id, winner.trial.number)
    documents = [attempt["document"] for attempt in found["attempts"]]
    return documents[-1] if documents else None


def _task(
    study: Searched,
    permission: Permission,
    data_dir: str | None,
    winner: Winner,
    method: str,
    path: Path,
    **arguments: Any,
) -> Task:
    trial = {"params": winner.trial.params, "seed": winner.trial.seed}
    given = {"path": str(path), **trial, "split_seed": winner.split_seed, **arguments}
    data = study.progress().data
    return Task(study.name, study.spec, permission, data_dir, method, given, data)


@contextmanager
def _model_file(study: Searched, winner: Winner) -> Iterator[Path]:
    """A copy of the winner's file, verified by its SHA-256."""
    files = ModelFiles(Store(study.settings.artifact_store))
    with tempfile.TemporaryDirectory(prefix="studyhall-") as folder:
        yield files.fetch(winner.model.artifact_id, winner.model.sha256, Path(folder))


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without a name
        return str(os.getuid())
