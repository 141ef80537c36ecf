"""What a trial sees of a data set: read once per process, split, fingerprinted, read-only."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from objectives.data import cache
from objectives.data.files import Array
from objectives.data.sources import Examples, Kind, Loaded, Source, are_labels, frozen
from objectives.data.split import stratified
from objectives.errors import DataError
from objectives.settings import Settings


@dataclass(frozen=True, eq=False)
class Dataset:
    """What one trial sees: a training and a validation part, and no test set.

    Attributes:
        train: The part to fit.
        validation: The part that judges a trial; its classes in the training set's proportion.
        source: Where the data come from, in words.
        kind: "real" or "synthetic".
        fingerprint: SHA-256 over the data, the test set included, and the split.
    """

    train: Examples
    validation: Examples
    source: str
    kind: str
    fingerprint: str

    @property
    def input_shape(self) -> tuple[int, ...]:
        """One input's shape."""
        return tuple(self.train.x.shape[1:])

    @property
    def n_classes(self) -> int:
        """How many classes the labels count, from 0.

        Raises:
            ValueError: The targets are no class labels.
        """
        if not are_labels(self.train.y):
            raise ValueError(f"targets of {self.train.y.dtype} {self.train.y.shape} are no labels")
        return int(max(self.train.y.max(), self.validation.y.max())) + 1


def load_dataset(source: Source, kind: Kind, data_dir: Path | None, settings: Settings) -> Dataset:
    """The split data set, read once per process and kept for the next trials.

    What has an identity is read once per machine (`objectives.data.cache`).

    Raises:
        DataError: A file is broken, or the data set cannot be had.
        SettingError: The settings ask for more than there is.
    """
    return _split(
        source,
        kind,
        data_dir,
        settings.validation_fraction,
        settings.train_size,
        settings.split_seed,
    )


def load_test_set(source: Source, kind: Kind, data_dir: Path | None) -> Examples:
    """The sealed test set, read anew: no trial sees it, and nothing keeps it.

    Raises:
        DataError: A file is broken, or there is no test set.
    """
    loaded = source.load(kind, data_dir)
    if loaded.test is None:
        raise DataError(f"{loaded.source}: there is no test set")
    return loaded.test


@lru_cache(maxsize=2)
def _split(
    source: Source,
    kind: Kind,
    data_dir: Path | None,
    validation_fraction: float,
    train_size: int | None,
    seed: int,
) -> Dataset:
    def make() -> cache.Entry:
        return _entry(source.load(kind, data_dir), validation_fraction, train_size, seed)

    identity = source.identity(kind, data_dir)
    if identity is None:
        return _dataset(make())
    return _dataset(cache.shared([identity, validation_fraction, train_size, seed], make))


def _entry(
    loaded: Loaded, validation_fraction: float, train_size: int | None, seed: int
) -> cache.Entry:
    x, y = loaded.train
    train, validation = stratified(
        y, validation_fraction=validation_fraction, train_size=train_size, seed=seed
    )
    return cache.Entry(
        {
            "train_x": x[train],
            "train_y": y[train],
            "validation_x": x[validation],
            "validation_y": y[validation],
        },
        {
            "source": loaded.source,
            "kind": loaded.kind,
            "fingerprint": _fingerprint(x, y, *(loaded.test or ()), train, validation),
        },
    )


def _dataset(entry: cache.Entry) -> Dataset:
    arrays = {name: frozen(array) for name, array in entry.arrays.items()}
    return Dataset(
        train=Examples(arrays["train_x"], arrays["train_y"]),
        validation=Examples(arrays["validation_x"], arrays["validation_y"]),
        **entry.about,
    )


def _fingerprint(*arrays: Array) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
