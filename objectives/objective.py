"""KerasObjective: an Optuna objective made of a data set, a function that builds, and settings."""

from __future__ import annotations

import gc
import importlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, cast

import optuna
from optuna.distributions import CategoricalDistribution

from objectives.data.arrays import Array, Examples
from objectives.data.dataset import Dataset, load_dataset, load_test_arrays, load_test_set
from objectives.data.sources import DATA_KINDS, CallableSource, DataKind, Source
from objectives.errors import BuildError, NoModelError, SettingError
from objectives.evaluation import load_model, load_weights, measure, write_model
from objectives.settings import Direction, Settings
from objectives.space import Space, describe, make_grid
from objectives.training.fit import fit, prepare
from objectives.training.plan import noted_compilations
from objectives.training.recorder import FitResult
from objectives.training.refit import refit_callbacks, refit_settings, warn_if_short
from objectives.training.repeats import Repeats, RepeatTrial, repeats_of
from objectives.training.settings import TrainingSettings

Builder = Callable[[optuna.Trial, Dataset], Any]
Callbacks = Callable[[optuna.Trial], Sequence[Any]]
ClassWeight = Mapping[int, float]


@dataclass(frozen=True)
class KerasObjective:
    """An objective whose trials build a Keras model, fit it and return their best epoch's value.

    It runs under plain Optuna and on the service. An example of your own::

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

    `load` returns arrays: `(x, y)`; or Keras's `((x, y), (x_test, y_test))`; or by name
    `{"train": (x, y), "validation": (x, y), "test": (x, y)}`, of which only "train" is needed.
    Three pairs in a row are these three in this order. Without validation data, the validation
    part is cut from the training set; no trial sees the test set. `(x, y)` may be
    `(x, y, sample_weight)`; the weights count in training and in validation, as in
    `keras.Model.fit` with `validation_split`. By name there may also be "groups", a number or name
    for each training example: no group is in two parts. `load` is called once per process. If it
    has a parameter `data_dir`, it gets the folder that the user has named. The parameter
    `batch_size` is suggested for you, from `settings.batch_sizes`.

    With `settings.folds` or `settings.executions`, a trial trains several models; its value is
    their mean. Each of them is one step: its best value is reported, and the pruner is asked.
    `build` is called for each of them, with `data.fold`, and fits to `data.train` what it has to
    fit, such as `keras.layers.Normalization.adapt`.

    After each epoch the monitor is reported to the trial and the pruner is asked. A NaN or an
    infinity in an epoch's logs ends the trial with the value NaN, which makes it FAIL in Optuna.
    The trial's user attribute `epoch` is the best epoch. Its user attribute `training` says how
    the model was trained, its number of weights, the seconds of compilation and the examples a
    second.

    A trial may have more than Optuna's attributes: `seed`, the seed of the training (else the
    trial's number is); `split_seed`, which replaces the setting `split_seed` for this trial,
    unless it is None; `should_stop()`, called about every second during an epoch; and
    `checkpoint`, with `load()` and with `save(epoch, state)`, called after each epoch before it is
    reported (with folds or executions, `epoch` is the last step that is reported). Trials must not
    run in several threads of one process, since Keras has global state.

    Attributes:
        name: The name of the objective and its data set in messages.
        load: The data: a function as above, or a `Source`.
        build: Returns a compiled model for a trial and its data set.
        settings: What stays fixed while the study varies the parameters.
        space: The parameters that `build` suggests, for `search_space` and `grid`; optional.
        layers: The largest number of layers, for each name of `space` that ends in `_i`.
        metrics: The names in the model's logs, without `val_`. A monitor that is not among them is
            refused with the settings; None: the first trial finds out.
        callbacks: Returns the `keras.callbacks.Callback`s of a trial. Checkpoints hold their
            attributes that are numbers, strings, arrays, lists or dicts. A callback with
            `get_state()` and `set_state(state)` says itself what they hold.
        data_kind: "real", "synthetic" (the generated stand-in) or "auto" (the stand-in if the real
            data cannot be found).
        data_dir: The folder of the data; None: Keras's cache, then a download.
        class_weight: The weight of each class in training, as in `keras.Model.fit`; or a function
            that returns it for a trial.

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
    data_kind: DataKind = "real"
    data_dir: Path | None = None
    class_weight: ClassWeight | Callable[[optuna.Trial], ClassWeight] | None = field(
        default=None, hash=False
    )

    def __post_init__(self) -> None:
        self._check_monitor(self.monitor)

    @property
    def monitor(self) -> str:
        """The metric that is reported after each epoch and that makes the trial's value."""
        return self.settings.monitor

    @property
    def direction(self) -> Direction:
        """Whether the monitor is maximized or minimized."""
        return self.settings.direction

    def settings_dict(self) -> dict[str, Any]:
        """Return the settings as JSON; `configured` reads them."""
        return self.settings.as_dict()

    def configured(
        self,
        settings: Mapping[str, Any],
        *,
        data: str | None = None,
        data_dir: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Return a copy with other settings or data; None keeps what this objective has.

        Args:
            settings: New values by name, each a string or JSON.
            data: "real", "synthetic" or "auto".
            data_dir: The folder that holds the data.

        Raises:
            SettingError: A name is unknown or a value is not allowed.
        """
        if data is not None and data not in DATA_KINDS:
            raise SettingError(f"data {data!r}: must be one of {', '.join(DATA_KINDS)}")
        # First, because the settings refuse a metric of unknown direction in other words.
        self._check_monitor(str(settings.get("monitor", self.monitor)))
        return replace(
            self,
            settings=self.settings.changed(settings),
            data_kind=self.data_kind if data is None else data,
            data_dir=self.data_dir if data_dir is None else Path(data_dir).expanduser().absolute(),
        )

    def dataset(self, fold: int | None = None) -> Dataset:
        """Return the training and the validation part, loaded once per process.

        With `settings.refit`, the training part contains the validation part.

        Args:
            fold: The fold, from 0, if the settings ask for folds; None: the last one.

        Raises:
            DataError: A file is broken, or the data set cannot be found.
            SettingError: The settings ask for more examples than there are, or contradict the
                data.
        """
        dataset = self._load(fold)
        return dataset.with_all_in_training() if self.settings.refit else dataset

    def warm_up(self) -> None:
        """Import Keras in a thread, while the process prepares its first trial."""
        threading.Thread(target=_import_keras, name="warm-up").start()

    def test_set(self) -> Examples:
        """Return the sealed test set. It measures the winner of a study once; no trial uses it.

        Raises:
            DataError: There is no test set, or its file is broken.
        """
        return load_test_set(self._source, self.data_kind, self.data_dir)

    def test_arrays(self) -> tuple[Array, ...]:
        """Return the sealed test set with its sample weights, if it has any: (x, y[, weights]).

        Raises:
            DataError: There is no test set, or its file is broken.
        """
        return load_test_arrays(self._source, self.data_kind, self.data_dir)

    def data(self) -> dict[str, str]:
        """Return what identifies the data: name, kind, source, fingerprint; and `parts`, in words.

        For data from the cache also their content, which is computed from the arrays themselves.

        Raises:
            DataError: A file is broken, or the data set cannot be found.
            SettingError: The settings ask for more examples than there are.
        """
        dataset = self._load()
        refit = "; refit: validation is trained on, too" if self.settings.refit else ""
        return {
            "name": getattr(self._source, "title", self.name),
            "kind": dataset.kind,
            "source": dataset.source,
            "fingerprint": dataset.fingerprint,
            "parts": dataset.parts + refit,
            **({} if dataset.content is None else {"content": dataset.content}),
        }

    def search_space(self) -> dict[str, str]:
        """Return the values of each parameter in words."""
        return describe(self._space_with_batch_size)

    def grid(self) -> dict[str, list[Any]]:
        """Return a few values of each parameter, for Optuna's GridSampler."""
        return make_grid(self._space_with_batch_size, self.layers)

    def __call__(self, trial: optuna.Trial) -> float:
        """Train the trial's model; return the monitor's best value, NaN after a NaN in the logs.

        Raises:
            optuna.TrialPruned: The pruner ended the trial.
            BuildError: The model cannot be built with these parameters.
            NoModelError: `build` returns no compiled model.
            MonitorError: The model does not produce the monitor.
            TrialStopped: The trial was asked to stop.
            MemoryError: The model does not fit into the memory of the machine or the device.
        """
        with _memory_errors():
            return self._with_split(getattr(trial, "split_seed", None))._run(trial)

    def _run(self, trial: optuna.Trial) -> float:
        repeats = repeats_of(self.settings)
        if repeats is None:
            return self._train(trial, self.dataset())
        return Repeats(trial, *repeats, self.settings).run(self._train_repeat)

    def _with_split(self, seed: int | None) -> Self:
        """This objective with another split, if a seed is given."""
        if seed is None:
            return self
        return replace(self, settings=self.settings.changed({"split_seed": seed}))

    def _train(self, trial: optuna.Trial, dataset: Dataset) -> float:
        result = self._fit(trial, dataset)
        if result.epoch is not None:
            trial.set_user_attr("epoch", result.epoch)
        return result.value

    def _train_repeat(self, repeat: RepeatTrial) -> FitResult:
        fold = repeat.index if self.settings.folds else None
        return self._fit(cast(optuna.Trial, repeat), self.dataset(fold))

    def _fit(self, trial: optuna.Trial, dataset: Dataset) -> FitResult:
        seed = getattr(trial, "seed", trial.number)
        prepare(seed, self.settings.dtype_policy, deterministic=self.settings.deterministic)
        batch_size = trial.suggest_categorical("batch_size", self.settings.batch_sizes)
        model = self._build_model(trial, dataset)
        callbacks = self.callbacks(trial) if self.callbacks else ()
        settings = self._training_settings(batch_size, seed)
        weight = self.class_weight(trial) if callable(self.class_weight) else self.class_weight
        if self.settings.refit:
            settings, callbacks = refit_settings(settings), refit_callbacks(callbacks)
        result = fit(model, dataset, settings, trial, callbacks=callbacks, class_weight=weight)
        if self.settings.refit:
            warn_if_short(result, settings)
        save_model = getattr(trial, "save_model", None)
        if save_model is not None and result.epoch is not None:
            write = partial(write_model, model, result.best_weights)
            save_model(result.value, write, result.history[result.epoch])
        return result

    def _load(self, fold: int | None = None) -> Dataset:
        return load_dataset(self._source, self.data_kind, self.data_dir, self.settings, fold)

    def evaluate(
        self,
        path: Path,
        params: Mapping[str, Any],
        *,
        seed: int,
        part: Literal["validation", "test"],
        alone: bool = False,
        split_seed: int | None = None,
    ) -> dict[str, Any]:
        """Measure the saved model of a trial on the validation part or on the sealed test set.

        Args:
            path: The file.
            params: The parameters of the trial.
            seed: The seed of the trial.
            part: What to measure it on.
            alone: Load a ``.keras`` file as it is, as whoever gets it does; else only the weights
                are read from the file, and `build` makes the model.
            split_seed: The trial's own split seed, if it has one.

        Returns:
            As `objectives.evaluation.measure` does.

        Raises:
            BuildError: `build` makes another model now, or the file cannot be loaded alone.
            DataError: There is no test set, or its file is broken.
        """
        own = self._with_split(split_seed)
        arrays = own.dataset().validation_arrays if part == "validation" else own.test_arrays()
        as_it_is = path.suffix == ".keras" and alone
        model = (
            load_model(path)
            if as_it_is
            else self.model(path, params, seed=seed, split_seed=split_seed)
        )
        return measure(model, arrays, self.settings.validation_batch_size or params["batch_size"])

    def export(
        self,
        path: Path,
        params: Mapping[str, Any],
        *,
        seed: int,
        folder: Path,
        split_seed: int | None = None,
    ) -> Path:
        """Write the saved model of a trial as a file for others; return its path in `folder`.

        The weights are those of the saved file, the model is what `build` makes.

        Raises:
            BuildError: `build` makes another model now.
        """
        model = self.model(path, params, seed=seed, split_seed=split_seed)
        # Without its variables, Keras warns when the file is loaded.
        model.optimizer.build(model.trainable_variables)
        return write_model(model, model.get_weights(), folder)

    def model(
        self,
        path: Path,
        params: Mapping[str, Any],
        *,
        seed: int,
        split_seed: int | None = None,
    ) -> Any:
        """Return the saved model of a trial: `build` makes it, the weights are those of the file.

        Raises:
            BuildError: `build` makes another model now.
        """
        return self._with_split(split_seed)._rebuild(path, params, seed)

    def _rebuild(self, path: Path, params: Mapping[str, Any], seed: int) -> Any:
        prepare(seed, self.settings.dtype_policy, deterministic=self.settings.deterministic)
        trial: Any = optuna.trial.FixedTrial(dict(params))
        trial.seed = seed
        dataset = self.dataset()
        model = self._build_model(trial, dataset)
        model.evaluate(*(part[:2] for part in dataset.validation_arrays[:2]), verbose=0)  # builds
        load_weights(model, path)
        return model

    def _training_settings(self, batch_size: int, seed: int) -> TrainingSettings:
        return TrainingSettings(
            epochs=self.settings.epochs,
            batch_size=batch_size,
            patience=self.settings.patience,
            monitor=self.monitor,
            direction=self.direction,
            checkpoint_every=self.settings.checkpoint_every,
            seed=seed,
            validation_batch_size=self.settings.validation_batch_size or 0,
            deterministic=self.settings.deterministic,
        )

    def _check_monitor(self, monitor: str) -> None:
        produced = [p + name for p in ("", "val_") for name in self.metrics or ()]
        if produced and monitor not in produced:
            raise SettingError(
                f"setting monitor={monitor}: {self.name} produces {', '.join(produced)}"
            )

    def _build_model(self, trial: optuna.Trial, dataset: Dataset) -> Any:
        import keras

        try:
            with noted_compilations():
                model = self.build(trial, dataset)
        except ValueError as error:
            raise BuildError(f"the model cannot be built: {_first_line(error)}") from error
        if not isinstance(model, keras.Model):
            raise NoModelError(f"build must return a keras.Model, not {model!r}")
        if not model.compiled:
            raise NoModelError("build must return a compiled model: call model.compile in it")
        return model

    @property
    def _source(self) -> Source:
        return self.load if isinstance(self.load, Source) else CallableSource(self.load)

    @property
    def _space_with_batch_size(self) -> Space:
        batch_sizes = CategoricalDistribution(self.settings.batch_sizes)
        return {**self.space, "batch_size": batch_sizes}


def _import_keras() -> None:
    # A process that is ending cannot import any more, and does not need to.
    with suppress(RuntimeError):
        importlib.import_module("keras")
    # Imported modules are never garbage. Without this, the garbage collection that Keras starts
    # before every model would search all of them, for a sixth of a second.
    gc.freeze()


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Turn the out-of-memory errors of the backends into MemoryError, which a service knows."""
    try:
        yield
    except Exception as error:
        name, line = type(error).__name__, _first_line(error)
        if name == "ResourceExhaustedError" or "RESOURCE_EXHAUSTED" in line:
            raise MemoryError(f"out of memory: {line}") from error
        raise


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
