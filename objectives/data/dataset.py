"""The data set as a trial sees it: split, fingerprinted, read-only and read once per process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from objectives.data import cache
from objectives.data.arrays import Array, Examples, as_labels, read_only
from objectives.data.sources import CallableSource, DataKind, Source, SourceData
from objectives.data.split import stratified_split
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
    """

    train: Examples
    validation: Examples
    source: str
    kind: str
    fingerprint: str
    content: str | None = None
    sample_weight: Array | None = None
    validation_sample_weight: Array | None = None

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


def load_dataset(
    source: Source, kind: DataKind, data_dir: Path | None, settings: Settings
) -> Dataset:
    """Load and split a data set. The process keeps it for its next trials.

    A data set whose source has an identity is split once per machine; `objectives.data.cache`
    keeps it.

    Raises:
        DataError: A file is broken, or the data set cannot be found.
        SettingError: The settings ask for more examples than there are.
    """
    return _load(
        source,
        kind,
        data_dir,
        settings.validation_fraction,
        settings.train_size,
        settings.split_seed,
    )


def load_test_set(source: Source, kind: DataKind, data_dir: Path | None) -> Examples:
    """Load the sealed test set. No trial sees it, and the process does not keep it.

    Raises:
        DataError: A file is broken, or there is no test set.
    """
    data = source.load(kind, data_dir)
    if data.test is None:
        raise DataError(f"{data.source}: there is no test set")
    return data.test


@lru_cache(maxsize=2)
def _load(
    source: Source,
    kind: DataKind,
    data_dir: Path | None,
    validation_fraction: float,
    train_size: int | None,
    seed: int,
) -> Dataset:
    def make() -> cache.Entry:
        data = source.load(kind, data_dir)
        # The splits of built-in data sets are older than seeded ties, and stay as they are.
        seeded = isinstance(source, CallableSource)
        return _split(data, validation_fraction, train_size, seed, seeded_ties=seeded)

    identity = source.identity(kind, data_dir)
    if identity is None:
        return _as_dataset(make())
    key = [identity, validation_fraction, train_size, seed]
    return _as_dataset(cache.load_or_make(key, make))


def _split(
    data: SourceData,
    validation_fraction: float,
    train_size: int | None,
    seed: int,
    *,
    seeded_ties: bool,
) -> cache.Entry:
    x, y = data.train
    train, validation = stratified_split(
        y,
        validation_fraction=validation_fraction,
        train_size=train_size,
        seed=seed,
        seeded_ties=seeded_ties,
    )
    arrays = {
        "train_x": x[train],
        "train_y": y[train],
        "validation_x": x[validation],
        "validation_y": y[validation],
    }
    identifying = [x, y, *(data.test or ()), train, validation]
    weights = data.sample_weight
    if weights is not None:
        arrays |= {"train_weight": weights[train], "validation_weight": weights[validation]}
        identifying.append(weights)
    return cache.Entry(
        arrays,
        {"source": data.source, "kind": data.kind, "fingerprint": _fingerprint(*identifying)},
    )


def _as_dataset(entry: cache.Entry) -> Dataset:
    arrays = {name: read_only(array) for name, array in entry.arrays.items()}
    return Dataset(
        train=Examples(arrays["train_x"], arrays["train_y"]),
        validation=Examples(arrays["validation_x"], arrays["validation_y"]),
        sample_weight=arrays.get("train_weight"),
        validation_sample_weight=arrays.get("validation_weight"),
        **entry.metadata,
        content=entry.content,
    )


def _with_weights(examples: Examples, weights: Array | None) -> tuple[Array, ...]:
    return (*examples,) if weights is None else (*examples, weights)


def _fingerprint(*arrays: Array) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
