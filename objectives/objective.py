"""KerasObjective: a data set, a builder and settings, callable as Optuna calls an objective."""

from __future__ import annotations

import gc
import importlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import optuna
from optuna.distributions import CategoricalDistribution

from objectives.data.dataset import Dataset, load_dataset, load_test_set
from objectives.data.sources import KINDS, CallableSource, Examples, Kind, Source
from objectives.errors import BuildError, SettingError
from objectives.settings import Direction, Settings
from objectives.space import Space, described, gridded
from objectives.training.fit import fit, prepare
from objectives.training.recorder import Course

Builder = Callable[[optuna.Trial, Dataset], Any]
Callbacks = Callable[[optuna.Trial], Sequence[Any]]


@dataclass(frozen=True)
class KerasObjective:
    """What a study optimizes: each trial builds a model, fits it and gives its best epoch's value.

    It runs under plain Optuna and on a study service alike. One of your own::

        import numpy as np
        from objectives import KerasObjective, Settings

        def load():
            table = np.loadtxt("wine.csv", delimiter=",", skiprows=1, dtype="float32")
            return table[:, :-1], table[:, -1]

        def build(trial, data):
            import keras
            units = trial.suggest_int("units", 8, 128, log=True)
            model = keras.Sequential([keras.Input(data.input_shape),
                                      keras.layers.Dense(units, "relu"), keras.layers.Dense(1)])
            model.compile(keras.optimizers.Adam(trial.suggest_float("lr", 1e-4, 1e-1, log=True)),
                          loss="mse", metrics=["mae"])
            return model

        wine = KerasObjective("wine", load, build, Settings(epochs=50, monitor="val_mae"))

    `load` returns arrays, `(x, y)` or Keras's `((x, y), (x_test, y_test))`: the validation part is
    cut from the former, the latter is kept from every trial. It is called once per process. With a
    parameter `data_dir` it is given the folder that was asked for. `batch_size` is suggested for
    you, from `settings.batch_sizes`.

    After each epoch the monitor is reported to the trial and its pruner asked. A NaN or an
    infinity in an epoch's logs ends the trial, whose value is then NaN: Optuna's FAIL. The trial's
    user attributes tell the best `epoch`, and under `training` how the model was trained, its
    size, the seconds of compilation and the examples a second.

    A trial may have more than Optuna's: `seed` (else the trial's number seeds the training),
    `should_stop()`, asked in mid-epoch about every second, and `checkpoint`, with
    `save(epoch, state)`, called after each epoch and before it is reported, and `load()`. Not for
    several threads at once: Keras's state is the process's.

    Attributes:
        name: How the data set and the objective are called in messages.
        load: The data: a function as above, or a `Source`.
        build: Makes a compiled model for a trial and its data set.
        settings: What stays fixed while the study varies the parameters.
        space: The parameters that `build` suggests, for `search_space` and `grid`; optional.
        layers: For each name of `space` that ends in `_i`, how many layers there may be.
        metrics: What the model's logs hold, without `val_`: another monitor is then refused
            already among the settings; None: only the first trial can tell.
        callbacks: Makes a trial's own `keras.callbacks.Callback`s. What they remember in plain
            attributes (numbers, words) is kept in checkpoints.
        data_kind: "real", "synthetic" (the generated stand-in) or "auto" (that, if real is not
            to be had).
        data_dir: The folder that holds the data; None: Keras's cache, then its download.

    Raises:
        SettingError: A setting is not allowed.
    """

    name: str
    load: Callable[..., Any] | Source
    build: Builder
    settings: Settings = field(default_factory=Settings)
    space: Space = field(default_factory=dict, hash=False)
    layers: Mapping[str, int] = field(default_factory=dict, hash=False)
    metrics: tuple[str, ...] | None = None
    callbacks: Callbacks | None = None
    data_kind: Kind = "real"
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        self._check_monitor(self.monitor)

    @property
    def monitor(self) -> str:
        """The metric that is reported and that makes the trial's value."""
        return self.settings.monitor

    @property
    def direction(self) -> Direction:
        """Which way the monitor gets better."""
        return self.settings.direction

    def settings_dict(self) -> dict[str, Any]:
        """The settings in effect, as JSON holds them."""
        return self.settings.as_dict()

    def configured(
        self,
        settings: Mapping[str, Any],
        *,
        data: str | None = None,
        data_dir: str | os.PathLike[str] | None = None,
    ) -> Self:
        """The same objective with other settings or data; None leaves as it is.

        Args:
            settings: New values by name, each a string or JSON.
            data: "real", "synthetic" or "auto".
            data_dir: The folder that holds the data.

        Raises:
            SettingError: A name is unknown or a value is not allowed.
        """
        if data is not None and data not in KINDS:
            raise SettingError(f"data {data!r}: must be one of {', '.join(KINDS)}")
        # Before the settings ask which way a name that they do not know gets better.
        self._check_monitor(str(settings.get("monitor", self.monitor)))
        return replace(
            self,
            settings=self.settings.changed(settings),
            data_kind=self.data_kind if data is None else data,
            data_dir=self.data_dir if data_dir is None else Path(data_dir).expanduser().absolute(),
        )

    def dataset(self) -> Dataset:
        """The training and the validation part, read once per process.

        Raises:
            DataError: A file is broken, or the data set cannot be had.
            SettingError: The settings ask for more than there is.
        """
        return load_dataset(self._source, self.data_kind, self.data_dir, self.settings)

    def warm_up(self) -> None:
        """Begins to import Keras beside whatever else a process does before its first trial."""
        threading.Thread(target=_import_keras, name="warm-up").start()

    def test_set(self) -> Examples:
        """The sealed test set: for measuring a study's winner once, never for a trial.

        Raises:
            DataError: There is none, or its file is broken.
        """
        return load_test_set(self._source, self.data_kind, self.data_dir)

    def data(self) -> dict[str, str]:
        """Which data these are: name, kind, source and fingerprint.

        Raises:
            DataError: A file is broken, or the data set cannot be had.
            SettingError: The settings ask for more than there is.
        """
        dataset = self.dataset()
        return {
            "name": getattr(self._source, "title", self.name),
            "kind": dataset.kind,
            "source": dataset.source,
            "fingerprint": dataset.fingerprint,
        }

    def search_space(self) -> dict[str, str]:
        """Each parameter's values in words."""
        return described(self._whole_space)

    def grid(self) -> dict[str, list[Any]]:
        """A few values of each parameter, for Optuna's GridSampler."""
        return gridded(self._whole_space, self.layers)

    def __call__(self, trial: optuna.Trial) -> float:
        """Trains the trial's model and returns the monitor's best value; NaN if it broke.

        Raises:
            optuna.TrialPruned: The pruner ended the trial.
            BuildError: No model can be built with these parameters.
            MonitorError: The model does not produce the monitor.
            TrialStopped: The trial was asked to stop.
            MemoryError: The machine's or the device's memory does not hold this model.
        """
        with _naming_memory():
            return self._trained(trial, self.dataset())

    def _trained(self, trial: optuna.Trial, dataset: Dataset) -> float:
        seed = getattr(trial, "seed", trial.number)
        prepare(seed, self.settings.dtype_policy)
        batch_size = trial.suggest_categorical("batch_size", self.settings.batch_sizes)
        model = self._built(trial, dataset)
        callbacks = self.callbacks(trial) if self.callbacks else ()
        course = self._course(batch_size, seed)
        result = fit(model, dataset, course, trial, callbacks=callbacks)
        if result.epoch is not None:
            trial.set_user_attr("epoch", result.epoch)
        return result.value

    def _course(self, batch_size: int, seed: int) -> Course:
        return Course(
            epochs=self.settings.epochs,
            batch_size=batch_size,
            patience=self.settings.patience,
            monitor=self.monitor,
            direction=self.direction,
            checkpoint_every=self.settings.checkpoint_every,
            seed=seed,
        )

    def _check_monitor(self, monitor: str) -> None:
        produced = [p + name for p in ("", "val_") for name in self.metrics or ()]
        if produced and monitor not in produced:
            raise SettingError(
                f"setting monitor={monitor}: {self.name} produces {', '.join(produced)}"
            )

    def _built(self, trial: optuna.Trial, dataset: Dataset) -> Any:
        import keras

        try:
            model = self.build(trial, dataset)
        except ValueError as error:
            raise BuildError(f"the model cannot be built: {_first_line(error)}") from error
        if not isinstance(model, keras.Model):
            raise BuildError(f"build must return a keras.Model, not {model!r}")
        if not model.compiled:
            raise BuildError("build must return a compiled model: call model.compile in it")
        return model

    @property
    def _source(self) -> Source:
        return self.load if isinstance(self.load, Source) else CallableSource(self.load)

    @property
    def _whole_space(self) -> Space:
        batch_sizes = CategoricalDistribution(self.settings.batch_sizes)
        return {**self.space, "batch_size": batch_sizes}


def _import_keras() -> None:
    # A process that is told to end meanwhile cannot import any more; nor does it need to.
    with suppress(RuntimeError):
        importlib.import_module("keras")
    # What was imported stays. Keras collects garbage before every model, and would look at all of
    # it each time, for a sixth of a second.
    gc.freeze()


@contextmanager
def _naming_memory() -> Iterator[None]:
    """Gives each backend's own out-of-memory error Python's name, which a service can know."""
    try:
        yield
    except Exception as error:
        name, line = type(error).__name__, _first_line(error)
        if name == "ResourceExhaustedError" or "RESOURCE_EXHAUSTED" in line:
            raise MemoryError(f"out of memory: {line}") from error
        raise


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
