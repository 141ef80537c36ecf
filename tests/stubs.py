"""Small objectives for tests of the workers, without Keras."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import time
from pathlib import Path

import optuna


def quick(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", -10, 10)
    return x**2


def two(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", -10, 10) ** 2 + trial.suggest_float("y", -10, 10) ** 2


def stepped(trial: optuna.Trial) -> float:
    """Five reported steps of 20 ms; the best value is x squared."""
    x = trial.suggest_float("x", -10, 10)
    for step in range(5):
        time.sleep(0.02)
        trial.report(x**2 + 4 - step, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return x**2


def slow(trial: optuna.Trial) -> float:
    """A hundred steps of 50 ms, each reported."""
    x = trial.suggest_float("x", -10, 10)
    for step in range(int(os.environ.get("STUB_STEPS", "100"))):
        time.sleep(0.05)
        trial.report(x**2, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return x**2


def checks_rarely(trial: optuna.Trial) -> float:
    """Checks every two seconds whether to stop."""
    trial.report(trial.suggest_float("x", -10, 10), 0)
    while not trial.should_stop():  # type: ignore[attr-defined]
        time.sleep(2)
    return 0.0


def unresponsive(trial: optuna.Trial) -> float:
    """Sleeps for a minute without any check."""
    trial.suggest_float("x", -10, 10)
    time.sleep(60)
    return 0.0


def first_hangs(trial: optuna.Trial) -> float:
    """The first attempt at trial 2 waits to be killed; everything else is quick."""
    x = trial.suggest_float("x", -10, 10)
    trial.report(x, 0)
    marker = Path(os.environ["STUB_MARKER"])
    if trial.number == 2 and not marker.exists():
        marker.write_text(str(os.getpid()))
        trial.report(12345.0, 1)
        time.sleep(120)
    return x**2


def failing(trial: optuna.Trial) -> float:
    trial.suggest_float("x", -10, 10)
    raise ZeroDivisionError("the divisor was nought")


def sometimes_failing(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", -10, 10)
    if trial.number % 2:
        raise ZeroDivisionError("odd")
    return x**2


def not_a_number(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", -10, 10)
    return math.nan if trial.number == 0 else math.inf if trial.number == 1 else x


def no_number(trial: optuna.Trial) -> str:
    return "high"


def stopping(trial: optuna.Trial) -> float:
    if trial.number == 3:
        trial.study.stop()
    return trial.suggest_float("x", -10, 10)


class Misconfigured(ValueError):
    cause = "configuration"


def misconfigured(trial: optuna.Trial) -> float:
    raise Misconfigured("the monitor 'val_f1' is not among loss, accuracy")


class WithData:
    """An objective with settings and data, as service.studies.registry describes it."""

    direction = "maximize"
    monitor = "x"

    def __init__(self, bound: float = 1.0, fingerprint: str = "f" * 64) -> None:
        self.bound = bound
        self.fingerprint = fingerprint

    def __call__(self, trial: optuna.Trial) -> float:
        return trial.suggest_float("x", 0, self.bound)

    def configured(
        self, settings: dict[str, object], data: str | None = None, data_dir: str | None = None
    ) -> WithData:
        unknown = set(settings) - {"bound"}
        if unknown:
            raise ValueError(f"unknown setting {sorted(unknown)[0]!r}; allowed: bound")
        source = data_dir or "here"
        fingerprint = (Path(source).name[:1] or "f") * 64
        return WithData(float(str(settings.get("bound", self.bound))), fingerprint)

    def settings_dict(self) -> dict[str, object]:
        return {"bound": self.bound}

    def data(self) -> dict[str, str]:
        return {
            "name": "stub",
            "source": f"folder {self.fingerprint[0]}",
            "fingerprint": self.fingerprint,
            "kind": "real",
        }


with_data = WithData()


class Cached(WithData):
    """With the content in STUB_CONTENT, if there is one."""

    def configured(
        self, settings: dict[str, object], data: str | None = None, data_dir: str | None = None
    ) -> Cached:
        return Cached()

    def data(self) -> dict[str, str]:
        content = os.environ.get("STUB_CONTENT")
        return super().data() | ({} if content is None else {"content": content})


cached = Cached()


class Generated(WithData):
    """On generated data."""

    def configured(
        self, settings: dict[str, object], data: str | None = None, data_dir: str | None = None
    ) -> Generated:
        return Generated()

    def data(self) -> dict[str, str]:
        return {**super().data(), "kind": "synthetic"}


generated = Generated()


def three(trial: optuna.Trial) -> float:
    return float(trial.suggest_int("x", 1, 3))


def counted(trial: optuna.Trial) -> float:
    """Ten epochs with checkpoints; every epoch that is trained leaves a line in a file."""
    x = trial.suggest_float("x", 0, 1)
    saved = trial.checkpoint.load()
    state = json.loads(saved.state) if saved else {"epoch": -1, "values": []}
    for epoch, value in enumerate(state["values"]):
        trial.report(value, epoch)
    for epoch in range(state["epoch"] + 1, 10):
        with open(os.environ["STUB_TRAINED"], "a") as file:
            file.write(f"{trial.number} {epoch}\n")
        time.sleep(float(os.environ.get("STUB_EPOCH", "0.05")))
        state = {"epoch": epoch, "values": [*state["values"], x + epoch]}
        trial.checkpoint.save(epoch, json.dumps(state).encode())
        trial.report(x + epoch, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return float(state["values"][-1])


def out_of_memory(trial: optuna.Trial) -> float:
    """Trial 0 always runs out of memory, trial 1 at its first attempt."""
    x = trial.suggest_float("x", 0, 1)
    marker = Path(os.environ["STUB_MARKER"])
    if trial.number == 0 or (trial.number == 1 and not marker.exists()):
        if trial.number == 1:
            marker.write_text("once")
        raise MemoryError("no more")
    return x


def interrupting(trial: optuna.Trial) -> float:
    trial.suggest_float("x", 0, 1)
    raise KeyboardInterrupt


def blocks_signals(trial: optuna.Trial) -> float:
    """Trial 0 blocks every signal but SIGKILL."""
    x = trial.suggest_float("x", 0, 1)
    if trial.number == 0:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM, signal.SIGTERM, signal.SIGINT})
        time.sleep(120)
    return x


def exits(trial: optuna.Trial) -> float:
    """Trial 0 always ends its process with the exit code in STUB_CODE."""
    x = trial.suggest_float("x", 0, 1)
    if trial.number == 0:
        os._exit(int(os.environ["STUB_CODE"]))
    return x


def constrained(trial: optuna.Trial) -> float:
    """Only values of at least STUB_LEAST are feasible."""
    x = trial.suggest_int("x", 1, 8)
    trial.set_constraint("least", int(os.environ.get("STUB_LEAST", "3")) - x)
    return float(x)


def failing_or_nan(trial: optuna.Trial) -> float:
    """Every second trial raises, the others return NaN."""
    trial.suggest_float("x", -10, 10)
    if trial.number % 2:
        return math.nan
    raise ZeroDivisionError("the divisor was nought")


def points(trial: optuna.Trial) -> float:
    """Twelve points; a moment passes between the two parameters. Four reported steps."""
    a = trial.suggest_int("a", 0, 3)
    time.sleep(0.02)
    b = trial.suggest_int("b", 0, 2)
    for step in range(4):
        trial.report(a + b / 10 + (3 - step) / 100, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return a + b / 10


def modelled(trial: optuna.Trial) -> float:
    """Its values are given by STUB_VALUES, a JSON list; its "model" is a text with the number.

    At trial STUB_DIE_AT, the process dies by SIGKILL once the model is saved.
    """
    value = float(json.loads(os.environ["STUB_VALUES"])[trial.number])
    trial.suggest_float("x", -10, 10)

    def write(folder: Path) -> Path:
        path = folder / "model.txt"
        path.write_text(f"model of trial {trial.number}")
        return path

    saved = trial.save_model(value, write, {"val_loss": value})  # type: ignore[attr-defined]
    trial.set_user_attr("saved", saved)
    if str(trial.number) == os.environ.get("STUB_DIE_AT"):
        os.kill(os.getpid(), signal.SIGKILL)
    if str(trial.number) == os.environ.get("STUB_FAIL_AT"):
        raise ZeroDivisionError("after its model was saved")
    return value


def noisy(trial: optuna.Trial) -> float:
    """Noise of standard deviation 1 from the seed; configuration 7 is truly better by 2."""
    configuration = trial.suggest_int("configuration", 0, 30)
    time.sleep(float(os.environ.get("STUB_PAUSE", "0")))
    noise = random.Random(f"{trial.seed} {configuration}").gauss(0, 1)  # type: ignore[attr-defined]
    return noise + (2 if configuration == 7 else 0)


class Settled:
    """Three reported epochs from the trial's seed and split seed; what `KerasObjective` has."""

    direction = "maximize"
    monitor = "score"

    def __init__(self, epochs: int = 3, refit: bool = False, split_seed: int = 0) -> None:
        self.settings = {"epochs": epochs, "refit": refit, "split_seed": split_seed}

    def __call__(self, trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        split = getattr(trial, "split_seed", None) or self.settings["split_seed"]
        generator = random.Random(f"{trial.seed} {split}")  # type: ignore[attr-defined]
        values = []
        for epoch in range(int(self.settings["epochs"])):
            drift = float(os.environ.get("STUB_DRIFT", "0")) if epoch else 0.0
            values.append(1 + x + generator.random() / 100 + drift)
            trial.report(values[-1], epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        trial.set_user_attr("epoch", values.index(max(values)))
        return max(values)

    def configured(
        self, settings: dict[str, object], data: str | None = None, data_dir: str | None = None
    ) -> Settled:
        return Settled(**{**self.settings, **settings})  # type: ignore[arg-type]

    def settings_dict(self) -> dict[str, object]:
        return dict(self.settings)


settled = Settled()


def sometimes_other(trial: optuna.Trial) -> float:
    """Suggests x, and whatever else STUB_PARAMETERS names."""
    names = os.environ.get("STUB_PARAMETERS", "x").split(",")
    return sum(trial.suggest_float(name, 0, 1) for name in names)


def worse_by_far(trial: optuna.Trial) -> float:
    """The lower the better: choice 0 is the best by far, choice 2 fails on fresh seeds."""
    choice = trial.suggest_int("choice", 0, 4)
    noise = random.Random(f"{trial.seed} {choice}").gauss(0, 0.1)  # type: ignore[attr-defined]
    if choice == 2 and trial.study.study_name.endswith("-confirm"):
        return math.nan
    return 100.0 * choice + noise


def fails_again(trial: optuna.Trial) -> float:
    """NaN for the choices in STUB_CHOICES."""
    choice = trial.suggest_int("choice", 0, 4)
    return math.nan if str(choice) in os.environ["STUB_CHOICES"].split(",") else float(choice)
