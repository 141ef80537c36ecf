"""The data set as a trial sees it: split, fingerprinted, read-only and read once per process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from objectives.data import cache
from objectives.data.arrays import Array, Examples, as_labels, read_only
from objectives.data.folds import rows_of_fold
from objectives.data.parts import Split, divide, used_rows
from objectives.data.sources import CallableSource, DataKind, Source
from objectives.errors import DataError
from objectives.settings import Settings


@dataclass(frozen=True, eq=False)
class Dataset:
    """The training and the validation part of a data set. A trial never gets the test set.

    Attributes:
        train: The part that the model is fitted to.
        validation: The part that the trial is judged by; it has the classes in the same
            proportion.
        source: Where the data come from, in words.
        kind: "real" or "synthetic".
        fingerprint: SHA-256 of the data, the test set included, and of the split.
        content: SHA-256 of both parts as this process has read them from the cache, or None.
        sample_weight: The weights of the training examples, float32 [n, ...]; None: all are equal.
        validation_sample_weight: The same of the validation examples.
        fold: The fold whose parts these are, from 0; None without folds.
        parts: How many examples each part has, the test set too, in words.
    """

    train: Examples
    validation: Examples
    source: str
    kind: str
    fingerprint: str
    content: str | None = None
    sample_weight: Array | None = None
    validation_sample_weight: Array | None = None
    fold: int | None = None
    parts: str = ""

    @property
    def train_arrays(self) -> tuple[Array, ...]:
        """What a model is fitted to: inputs, targets and, if there are any, sample weights."""
        return _with_weights(self.train, self.sample_weight)

    @property
    def validation_arrays(self) -> tuple[Array, ...]:
        """The same of the validation part."""
        return _with_weights(self.validation, self.validation_sample_weight)

    def mapped(self, function: Callable[[Array], Array]) -> Dataset:
        """Return a data set with other arrays: inputs, targets and weights of both parts."""
        weights = (self.sample_weight, self.validation_sample_weight)
        train, validation = (None if weight is None else function(weight) for weight in weights)
        return replace(
            self,
            train=Examples(*map(function, self.train)),
            validation=Examples(*map(function, self.validation)),
            sample_weight=train,
            validation_sample_weight=validation,
        )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.train.x.shape[1:])

    @property
    def n_classes(self) -> int:
        """The number of classes: the largest label plus one.

        Raises:
            ValueError: The targets are not class labels.
        """
        parts = [as_labels(examples.y) for examples in (self.train, self.validation)]
        labels = [part for part in parts if part is not None and part.min() >= 0]
        if len(labels) < len(parts):
            raise ValueError(f"targets of {self.train.y.dtype} {self.train.y.shape} are no labels")
        return int(max(part.max() for part in labels)) + 1

    def with_all_in_training(self) -> Dataset:
        """Return a data set whose training part is this one's training and validation part.

        The validation part stays what it is, so the model has seen it.
        """
        parts = self.train_arrays, self.validation_arrays
        n = max(map(len, parts))
        x, y, *weights = (
            read_only(np.concatenate(both))
            for both in zip(*(_with_ones(part, n) for part in parts), strict=True)
        )
        sample_weight = weights[0] if weights else None
        return replace(self, train=Examples(x, y), sample_weight=sample_weight)


@dataclass(frozen=True, eq=False)
class Folds:
    """A data set for cross-validation.

    Attributes:
        entry: The training set, with the fold of each row as ``folds``.
        split: How it is divided.
    """

    entry: cache.Entry
    split: Split

    def dataset(self, fold: int) -> Dataset:
        """Return copies of both parts of a fold, from 0."""
        arrays = self.entry.arrays
        rows = rows_of_fold(arrays["folds"], fold, time_order=self.split.time_order)
        train = used_rows(arrays["train_y"], rows[0], self.split)
        parts = {
            f"{part}_{name}": arrays[f"train_{name}"][chosen]
            for part, chosen in (("train", train), ("validation", rows[1]))
            for name in ("x", "y", "weight")
            if f"train_{name}" in arrays
        }
        return _as_dataset(cache.Entry(parts, self.entry.metadata, self.entry.content), fold=fold)


def load_dataset(
    source: Source,
    kind: DataKind,
    data_dir: Path | None,
    settings: Settings,
    fold: int | None = None,
) -> Dataset:
    """Load and split a data set. The process keeps it for its next trials.

    A data set whose source has an identity is split once per machine; `objectives.data.cache`
    keeps it.

    Args:
        source: Where the data come from.
        kind: "real", "synthetic" or "auto".
        data_dir: The folder of the data.
        settings: How to split them.
        fold: The fold, from 0, if the settings ask for folds; None: the last one.

    Raises:
        DataError: A file is broken, or the data set cannot be found.
        SettingError: The settings ask for more examples than there are, or contradict the data.
    """
    loaded = _load(source, kind, data_dir, Split.of(settings))
    if isinstance(loaded, Dataset):
        return loaded
    return loaded.dataset(settings.folds - 1 if fold is None else fold)


def load_test_set(source: Source, kind: DataKind, data_dir: Path | None) -> Examples:
    """Load the sealed test set. No trial sees it, and the process does not keep it.

    Raises:
        DataError: A file is broken, or there is no test set.
    """
    x, y, *_ = load_test_arrays(source, kind, data_dir)
    return Examples(x, y)


def load_test_arrays(source: Source, kind: DataKind, data_dir: Path | None) -> tuple[Array, ...]:
    """Load the sealed test set: inputs, targets and, if there are any, sample weights.

    Raises:
        DataError: A file is broken, or there is no test set.
    """
    data = source.load(kind, data_dir)
    if data.test is None:
        raise DataError(f"{data.source}: there is no test set")
    return _with_weights(data.test, data.test_weight)


@lru_cache(maxsize=2)
def _load(source: Source, kind: DataKind, data_dir: Path | None, split: Split) -> Dataset | Folds:
    def make() -> cache.Entry:
        # The splits of built-in data sets are older than seeded ties, and stay as they are.
        seeded = isinstance(source, CallableSource)
        return divide(source.load(kind, data_dir), split, seeded_ties=seeded)

    identity = source.identity(kind, data_dir)
    key = [identity, *split.identity()]
    entry = make() if identity is None else cache.load_or_make(key, make)
    if split.folds:
        return Folds(replace(entry, arrays=_read_only(entry.arrays)), split)
    return _as_dataset(entry)


def _as_dataset(entry: cache.Entry, **more: Any) -> Dataset:
    arrays = _read_only(entry.arrays)
    return Dataset(
        train=Examples(arrays["train_x"], arrays["train_y"]),
        validation=Examples(arrays["validation_x"], arrays["validation_y"]),
        sample_weight=arrays.get("train_weight"),
        validation_sample_weight=arrays.get("validation_weight"),
        **entry.metadata,
        content=entry.content,
        **more,
    )


def _read_only(arrays: dict[str, Array]) -> dict[str, Array]:
    return {name: read_only(array) for name, array in arrays.items()}


def _with_weights(examples: Examples, weights: Array | None) -> tuple[Array, ...]:
    return (*examples,) if weights is None else (*examples, weights)


def _with_ones(arrays: tuple[Array, ...], n: int) -> tuple[Array, ...]:
    """Return `n` arrays of a part: if the sample weights are missing, they are ones."""
    return (*arrays, np.ones(len(arrays[0]), np.float32))[:n]
