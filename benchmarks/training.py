"""Training speed, side by side in one run: plain `model.fit` and studyhall's trainer.

    python benchmarks/training.py                     epochs: MLP at batch 128 and 32, a CNN
    python benchmarks/training.py --quality           the same accuracy? five seeds of each
    python benchmarks/training.py --study             a whole study: script, Keras Tuner, studyhall

Each side runs in processes of its own, the sides take turns, and the median round counts. Run it
on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

MLP = {"n_layers": 2, "units_0": 256, "units_1": 256, "dropout": 0.0}
CNN = {
    "num_conv_layers": 2,
    "filters_0": 32,
    "filters_1": 64,
    "kernel_size": 3,
    "dense_units": 128,
    "dropout": 0.2,
}
LEARNING = {"optimizer": "adam", "learning_rate": 1e-3}
JOBS: dict[str, dict[str, Any]] = {
    "mlp-128": {"objective": "mnist-mlp", "batch_size": 128, **MLP, **LEARNING},
    "mlp-32": {"objective": "mnist-mlp", "batch_size": 32, **MLP, **LEARNING},
    "cnn-128": {"objective": "cifar10-cnn", "batch_size": 128, **CNN, **LEARNING},
}
# What is wanted of one worker, and of two side by side: times as fast as plain fit.
TARGETS = {"mlp-128": (2.2, 4.0), "mlp-32": (3.8, 7.0), "cnn-128": (None, 1.6)}
TRAIN_SIZE = {"cnn-128": 10_000}


def main() -> None:
    options = _options()
    if options.role:
        print(json.dumps(ROLES[options.role](options)), flush=True)
    elif options.quality:
        quality(options)
    elif options.study:
        study(options)
    else:
        epochs(options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--data-dir", help="folder with mnist.npz and cifar10.npz")
    parser.add_argument("--short", action="store_true", help="small and quick: only to try it")
    parser.add_argument(
        "--epochs", type=int, default=5, help="epochs a round, the first uncounted"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", default=",".join(JOBS), help="which of: " + ", ".join(JOBS))
    parser.add_argument("--quality", action="store_true")
    parser.add_argument(
        "--dtype-policy", help="studyhall's side in another precision, e.g. mixed_bfloat16"
    )
    parser.add_argument("--study", action="store_true")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument(
        "--keras-tuner", metavar="PYTHON", help="a Python with keras-tuner[bayesian], tensorboard"
    )
    parser.add_argument("--role", choices=list(ROLES), help=argparse.SUPPRESS)
    parser.add_argument("--job", default="mlp-128", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help="of a whole study's samplers")
    return parser.parse_args()


# The two sides of an epoch, each in a process of its own.


def plain_epochs(options: argparse.Namespace) -> dict[str, Any]:
    """The usual script: float arrays, model.fit, default threads."""
    params, data = JOBS[options.job], _data(options)
    import keras

    keras.utils.set_random_seed(options.seed)
    model = plain_model(params, data.input_shape)
    stamps = _Stamps()
    history = model.fit(
        data.train.x.astype("float32") / 255,
        data.train.y,
        batch_size=params["batch_size"],
        epochs=options.epochs,
        validation_data=(data.validation.x.astype("float32") / 255, data.validation.y),
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: stamps.note())],
        verbose=0,
    )
    return {"epochs": stamps.seconds, "val_accuracy": history.history["val_accuracy"][-1]}


def our_epochs(options: argparse.Namespace) -> dict[str, Any]:
    """studyhall's objective, as a worker calls it."""
    import optuna

    stamps = _Stamps()
    values: list[float] = []

    class Trial(optuna.trial.FixedTrial):
        seed = options.seed
        checkpoint = _Nowhere()

        def report(self, value: float, step: int) -> None:
            values.append(value)
            stamps.note()

    trial = Trial({k: v for k, v in JOBS[options.job].items() if k != "objective"})
    _objective(options)(trial)
    return {
        "epochs": stamps.seconds,
        "val_accuracy": values[-1],
        "training": trial.user_attrs["training"],
    }


class _Nowhere:
    """A checkpoint whose bytes are made and dropped: writing is another thread's work."""

    def load(self) -> None:
        return None

    def save(self, epoch: int, state: bytes) -> None:
        del epoch, state


class _Stamps:
    """The seconds between one note and the next."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = time.perf_counter()

    def note(self) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now


def plain_model(params: dict[str, Any], shape: tuple[int, ...]) -> Any:
    """The tutorial's model on scaled float images."""
    import keras

    layers: list[Any] = [keras.Input(shape)]
    for i in range(params.get("num_conv_layers", 0)):
        filters, size = params[f"filters_{i}"], params["kernel_size"]
        layers += [
            keras.layers.Conv2D(filters, size, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(2),
        ]
    layers.append(keras.layers.Flatten())
    widths = [params[f"units_{i}"] for i in range(params.get("n_layers", 0))]
    for units in widths or [params["dense_units"]]:
        layers += [
            keras.layers.Dense(units, activation="relu"),
            keras.layers.Dropout(params["dropout"]),
        ]
    model = keras.Sequential([*layers, keras.layers.Dense(10)])
    optimizers = {
        "adam": keras.optimizers.Adam,
        "rmsprop": keras.optimizers.RMSprop,
        "sgd": lambda rate: keras.optimizers.SGD(rate, momentum=0.9, nesterov=True),
    }
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        optimizers[params["optimizer"]](params["learning_rate"]), loss, metrics=["accuracy"]
    )
    return model


def _objective(options: argparse.Namespace) -> Any:
    from objectives import cifar10, mnist

    found = {"mnist-mlp": mnist.mlp, "cifar10-cnn": cifar10.cnn}
    params = JOBS[options.job]
    settings: dict[str, Any] = {"epochs": options.epochs, "patience": None}
    settings["batch_sizes"] = [params["batch_size"]]
    settings["dtype_policy"] = options.dtype_policy
    size = 2_000 if options.short else TRAIN_SIZE.get(options.job)
    kind = "real" if options.data_dir else "synthetic"
    if size:
        settings["train_size"] = size
    return found[params["objective"]].configured(settings, data=kind, data_dir=options.data_dir)


def _data(options: argparse.Namespace) -> Any:
    return _objective(options).dataset()


# The table of epochs.


def epochs(options: argparse.Namespace) -> None:
    """Rounds of plain fit, one worker, and a worker for each of two cores, taking turns."""
    heads = ("one worker", "on one of two cores", "two side by side")
    print(f"{'epoch of':10} {'plain fit':>10} " + " ".join(f"{head:>22}" for head in heads))
    for job in options.jobs.split(","):
        rounds = [_round(options, job) for _ in range(1 if options.short else options.rounds)]
        plain, *ours = (statistics.median(column) for column in zip(*rounds, strict=True))
        one, two = TARGETS[job]
        told = map(_ratio, ours, [plain] * 3, (one, None, two))
        print(f"{job:10} {plain:8.2f} s " + " ".join(f"{text:>22}" for text in told), flush=True)


def _ratio(seconds: float, plain: float, wanted: float | None) -> str:
    goal = "" if wanted is None else f" (of {wanted})"
    return f"{seconds:.2f} s {plain / seconds:.2f}x{goal}"


def _round(options: argparse.Namespace, job: str) -> tuple[float, ...]:
    """Seconds an epoch: plain, one worker with two cores, with one, two workers' together."""
    plain = _epoch_seconds(_ended(_start(options, "plain", job)))
    alone = [_epoch_seconds(_ended(_start(options, "ours", job, cores=n))) for n in (2, 1)]
    both = [_start(options, "ours", job, cores=1, core=core) for core in range(2)]
    rates = [1 / _epoch_seconds(_ended(process)) for process in both]
    return plain, *alone, 1 / sum(rates)


def _epoch_seconds(told: dict[str, Any]) -> float:
    return statistics.median(told["epochs"][1:])


def _start(
    options: argparse.Namespace, role: str, job: str, cores: int = 0, core: int = 0, seed: int = 0
) -> subprocess.Popen[str]:
    """One side in a process of its own, with all cores, or bound as the service binds it."""
    from service.workers.devices import Device

    command = [sys.executable, __file__, "--role", role, "--job", job, "--seed", str(seed)]
    command += ["--epochs", str(options.epochs), *(["--short"] if options.short else [])]
    command += ["--trials", str(options.trials)]
    command += ["--dtype-policy", options.dtype_policy] if options.dtype_policy else []
    command += ["--data-dir", options.data_dir] if options.data_dir else []
    own = sorted(os.sched_getaffinity(0))[core : core + cores]
    device = Device("cpu", cores, tuple(own))
    environment = device.environment() if cores else {"CUDA_VISIBLE_DEVICES": "-1"}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    device.bind(process.pid)
    return process


def _ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate()
    if process.returncode:
        sys.exit(err)
    told: dict[str, Any] = json.loads(out.splitlines()[-1])
    return told


# The same accuracy.


def quality(options: argparse.Namespace) -> None:
    """Five seeds of each side: the means' difference and the spread."""
    print(f"{'':10} {'plain fit':>18} {'studyhall':>18} {'difference':>11}")
    for job in options.jobs.split(","):
        sides = [
            [
                _ended(_start(options, role, job, seed=seed, cores=cores))["val_accuracy"]
                for seed in range(5)
            ]
            for role, cores in (("plain", 0), ("ours", 1))
        ]
        (m0, s0), (m1, s1) = ((statistics.mean(v), statistics.stdev(v)) for v in sides)
        print(f"{job:10} {m0:9.4f} ± {s0:.4f} {m1:9.4f} ± {s1:.4f} {m1 - m0:+11.4f}", flush=True)


# A whole study.


def study(options: argparse.Namespace) -> None:
    """The same trials, epochs, space and split: the script, Keras Tuner, and the service."""
    sides = [
        ("the tutorial's script", _ended(_start(options, "script", "mlp-128", seed=options.seed)))
    ]
    if options.keras_tuner:
        sides.append(("Keras Tuner", _by_keras_tuner(options)))
    sides.append(("studyhall, 2 workers", _by_studyhall(options)))
    ours = sides[-1][1]
    for name, told in sides:
        print(
            f"{name:22} {told['seconds']:7.1f} s  best {told['best']:.4f}  "
            f"{told['seconds'] / ours['seconds']:.2f} times ours"
        )


def tutorial_script(options: argparse.Namespace) -> dict[str, Any]:
    """One process: Optuna's study.optimize around model.fit, with MedianPruner."""
    import keras
    import optuna

    data = _data(options)
    x, x_val = (part.x.astype("float32") / 255 for part in (data.train, data.validation))

    def objective(trial: optuna.Trial) -> float:
        keras.utils.clear_session()
        params = _suggested(trial)
        values: list[float] = []

        def report(epoch: int, logs: dict[str, float]) -> None:
            values.append(logs["val_accuracy"])
            trial.report(values[-1], epoch)
            model.stop_training = trial.should_prune()

        model = plain_model(params, data.input_shape)
        model.fit(
            x,
            data.train.y,
            batch_size=params["batch_size"],
            epochs=10,
            validation_data=(x_val, data.validation.y),
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=report)],
            verbose=0,
        )
        if len(values) < 10:
            raise optuna.TrialPruned
        return max(values)

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    start = time.perf_counter()
    made = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=options.seed),
        pruner=optuna.pruners.MedianPruner(),
    )
    made.optimize(objective, n_trials=options.trials)
    return {"seconds": time.perf_counter() - start, "best": made.best_value}


def _suggested(trial: Any) -> dict[str, Any]:
    from objectives.architectures import MLP_SPACE
    from objectives.space import suggest

    params = {name: suggest(trial, MLP_SPACE, name) for name in MLP_SPACE if name != "units_i"}
    for i in range(params["n_layers"]):
        params[f"units_{i}"] = suggest(trial, MLP_SPACE, "units_i", i)
    return {**params, "batch_size": trial.suggest_categorical("batch_size", (32, 64, 128))}


def _by_keras_tuner(options: argparse.Namespace) -> dict[str, Any]:
    import numpy as np

    data = _data(options)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(
            Path(folder) / "data.npz",
            x=data.train.x,
            y=data.train.y,
            x_val=data.validation.x,
            y_val=data.validation.y,
        )
        script = Path(__file__).with_name("keras_tuner_study.py")
        command = [options.keras_tuner, str(script), folder]
        command += [str(options.trials), str(options.seed)]
        return _ended(
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder
            )
        )


def _by_studyhall(options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "service"]
    data = ["--data-dir", options.data_dir] if options.data_dir else ["--data", "synthetic"]
    more = ["--set", "train_size=2000"] if options.short else []
    more += ["--set", f"dtype_policy={options.dtype_policy}"] if options.dtype_policy else []
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "STUDYHALL_HOME": home, "CUDA_VISIBLE_DEVICES": "-1"}

        def run(*arguments: str) -> str:
            return subprocess.run(
                [*command, *arguments],
                env=environment,
                cwd=ROOT,
                check=True,
                capture_output=True,
                text=True,
            ).stdout

        run("db", "start")
        start = time.perf_counter()
        run(
            *("run", "mnist-mlp", "--trials", str(options.trials), "--workers", "2"),
            *("--set", "epochs=10", "--set", "patience=none", *more, *data),
            *("--seed", str(options.seed)),
        )
        seconds = time.perf_counter() - start
        trials = json.loads(run("trials", "mnist-mlp", "--format", "json"))
        run("db", "stop")
    values = [trial["value"] for trial in trials if trial["state"].upper() == "COMPLETE"]
    return {"seconds": seconds, "best": max(values)}


ROLES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "plain": plain_epochs,
    "ours": our_epochs,
    "script": tutorial_script,
}

if __name__ == "__main__":
    main()
