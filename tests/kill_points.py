"""The built-in MLP, killed once in each trial, at another place in each; run by real workers."""

from __future__ import annotations

import hashlib
import io
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import optuna

from objectives import KerasObjective, mnist
from service.artifacts import store

POINTS = ("in the epoch", "saving", "saved", "reported", "before tell")
"""Where trial 0, 1, … is killed: in mid-epoch; in the middle of writing a checkpoint; between
checkpoint and report; between report and the lease's renewal; between the last report and tell."""
EPOCH = 2


class Deadly(KerasObjective):
    """Kills its process once a trial, where KILL_MARKERS names a folder to note that in."""

    def __call__(self, trial: optuna.Trial) -> float:
        folder = os.environ.get("KILL_MARKERS")
        marker = Path(folder or "", str(trial.number))
        point = "" if folder is None or marker.exists() else POINTS[trial.number]
        ARMED.get(point, lambda *_: None)(trial, marker)
        value = super().__call__(trial)
        if point == "before tell":
            die(marker)
        return value


def die(marker: Path) -> None:
    marker.touch()
    os.kill(os.getpid(), signal.SIGKILL)


def in_the_epoch(trial: Any, marker: Path) -> None:
    """At the second question of the epoch, between two pieces of it."""
    should_stop, report, asked = trial.should_stop, trial.report, []

    def reported(value: float, step: int) -> None:
        report(value, step)
        asked.clear()
        asked.append(step)

    def stop() -> bool:
        if asked[:1] == [EPOCH]:
            asked.append(EPOCH)
            if len(asked) == 3:
                die(marker)
        return bool(should_stop())

    trial.report, trial.should_stop = reported, stop


def saving(trial: Any, marker: Path) -> None:
    """With half of the checkpoint's bytes in the file."""

    class Half(io.FileIO):
        def write(self, data: Any) -> int:
            super().write(data[: len(data) // 2])
            os.fsync(self.fileno())
            die(marker)
            return len(data)

    def opened(path: str, mode: str, **options: Any) -> Any:
        is_it = f"-{EPOCH:08d}.ckpt" in path
        return Half(path, "w") if is_it else open(path, mode, **options)

    store.open = opened  # type: ignore[attr-defined]


def saved(trial: Any, marker: Path) -> None:
    report = trial.report

    def dying(value: float, step: int) -> None:
        if step == EPOCH:
            trial.checkpoint._files.wait()
            die(marker)
        report(value, step)

    trial.report = dying


def reported(trial: Any, marker: Path) -> None:
    report = trial.report

    def dying(value: float, step: int) -> None:
        report(value, step)
        if step == EPOCH:
            die(marker)

    trial.report = dying


ARMED: dict[str, Callable[[Any, Path], None]] = {
    "in the epoch": in_the_epoch,
    "saving": saving,
    "saved": saved,
    "reported": reported,
}


def weighed(trial: optuna.Trial) -> Sequence[Any]:
    """Notes the SHA-256 of the weights with which the training ends."""
    import keras

    class Weighed(keras.callbacks.Callback):
        def on_train_end(self, logs: Any = None) -> None:
            digest = hashlib.sha256()
            for array in self.model.get_weights():
                digest.update(array.tobytes())
            Path(os.environ["KILL_WEIGHTS"], str(trial.number)).write_text(digest.hexdigest())

    return [Weighed()]


mlp = Deadly(
    **{f.name: getattr(mnist.mlp, f.name) for f in fields(mnist.mlp)} | {"callbacks": weighed}
)
