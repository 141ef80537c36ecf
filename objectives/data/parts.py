"""Parts: divide what a source has loaded into training and validation, or into folds."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from objectives.data.arrays import Array
from objectives.data.cache import Entry
from objectives.data.folds import class_folds, group_folds, rows_of_fold, time_folds
from objectives.data.sources import SourceData
from objectives.data.split import (
    check_train_size,
    draw_rows,
    group_split,
    shuffled_by_class,
    stratified_split,
    time_split,
)
from objectives.errors import SettingError
from objectives.settings import DEFAULT_VALIDATION_FRACTION, Settings


@dataclass(frozen=True)
class Split:
    """The settings that decide which example is in which part; `Settings` describes them."""

    validation_fraction: float
    train_size: int | None
    seed: int
    folds: int = 0
    time_order: bool = False

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the split that the settings of an objective ask for."""
        return cls(
            settings.validation_fraction,
            settings.train_size,
            settings.split_seed,
            settings.folds,
            settings.time_order,
        )

    def identity(self) -> list[Any]:
        """Return what identifies the split, as JSON."""
        more = [self.folds, self.time_order] if self.folds or self.time_order else []
        return [self.validation_fraction, self.train_size, self.seed, *more]


def divide(data: SourceData, split: Split, *, seeded_ties: bool) -> Entry:
    """Divide a data set.

    Args:
        data: What the source has loaded.
        split: How to divide it.
        seeded_ties: See `stratified_split`.

    Returns:
        The arrays ``train_x``, ``train_y`` and ``train_weight``; with folds, also ``folds``, the
        fold of each row (`objectives.data.folds`); without, also ``validation_x``, … .

    Raises:
        SettingError: The split is not possible.
    """
    _check_settings(data, split)
    if data.validation is not None:
        return _with_given_validation(data, split)
    if split.folds:
        return _with_folds(data, split)
    return _without_folds(data, split, seeded_ties)


def _check_settings(data: SourceData, split: Split) -> None:
    given = data.validation is not None
    if given and split.folds:
        raise SettingError(
            f"setting folds={split.folds}: {data.source} returns validation data of its own; "
            "return them as training data, or set folds=0"
        )
    if given and split.validation_fraction != DEFAULT_VALIDATION_FRACTION:
        raise SettingError(
            f"setting validation_fraction={split.validation_fraction}: does not apply, since "
            f"{data.source} returns validation data of its own"
        )
    if given and data.groups is not None:
        raise SettingError(
            f"{data.source} returns groups and validation data; groups only tell how to divide "
            "training data"
        )
    if data.groups is not None and split.time_order:
        raise SettingError(
            f"setting time_order=true: {data.source} returns groups; a split keeps groups whole "
            "or follows time, not both"
        )


def _with_given_validation(data: SourceData, split: Split) -> Entry:
    assert data.validation is not None
    rows = used_rows(data.train.y, np.arange(data.train.size), split)
    arrays = {
        **_arrays("train", *data.train, data.sample_weight, rows),
        **_arrays("validation", *data.validation, data.validation_weight),
    }
    parts = f"{len(rows):,} training, {data.validation.size:,} validation (given)"
    names = np.array(["validation", "given"])
    weight = () if data.validation_weight is None else (data.validation_weight,)
    return _entry(data, arrays, parts, rows, names, *data.validation, *weight)


def _with_folds(data: SourceData, split: Split) -> Entry:
    x, y = data.train
    if split.time_order:
        folds, how = time_folds(len(x), split.folds), "in order of time"
    elif data.groups is not None:
        folds, how = group_folds(data.groups, split.folds, split.seed), "of whole groups"
    else:
        folds = class_folds(y, split.folds, split.seed)
        how = "stratified" if len(shuffled_by_class(y, split.seed)[2]) > 1 else "at random"
    for fold in range(split.folds):
        train, _ = rows_of_fold(folds, fold, time_order=split.time_order)
        check_train_size(split.train_size, len(train))
    size = "" if split.train_size is None else f" with {split.train_size:,} training examples each"
    parts = f"{len(x):,} in {split.folds} folds {how}{size}"
    arrays = {**_arrays("train", x, y, data.sample_weight), "folds": folds}
    identifying = np.array([-1 if split.train_size is None else split.train_size])
    return _entry(data, arrays, parts, folds, identifying, np.array(["folds", how]))


def _without_folds(data: SourceData, split: Split, seeded_ties: bool) -> Entry:
    x, y = data.train
    fraction, how = split.validation_fraction, ""
    if split.time_order:
        train, validation = time_split(len(x), validation_fraction=fraction)
        train, how = used_rows(y, train, split), " (the latest)"
    elif data.groups is not None:
        train, validation = group_split(data.groups, validation_fraction=fraction, seed=split.seed)
        train, how = used_rows(y, train, split), " (whole groups)"
    else:
        train, validation = stratified_split(
            y,
            validation_fraction=fraction,
            train_size=split.train_size,
            seed=split.seed,
            seeded_ties=seeded_ties,
        )
    arrays = {
        **_arrays("train", x, y, data.sample_weight, train),
        **_arrays("validation", x, y, data.sample_weight, validation),
    }
    parts = f"{len(train):,} training, {len(validation):,} validation{how}"
    return _entry(data, arrays, parts, train, validation)


def used_rows(targets: Array, rows: Array, split: Split) -> Array:
    """Return the training rows that are used: `train_size` of these, in order of time the last.

    Args:
        targets: The targets of all rows: [n, ...].
        rows: The rows that are left for training, ascending.
        split: The settings.

    Raises:
        SettingError: There are fewer rows than `train_size`.
    """
    if not split.time_order or split.train_size is None:
        return draw_rows(targets, rows, split.train_size, split.seed)
    check_train_size(split.train_size, len(rows))
    return rows[-split.train_size :]


def _arrays(
    part: str, x: Array, y: Array, weight: Array | None, rows: Array | None = None
) -> dict[str, Array]:
    """Return the arrays of a part by their names in an entry."""
    named = {"x": x, "y": y, **({} if weight is None else {"weight": weight})}
    return {f"{part}_{k}": a if rows is None else a[rows] for k, a in named.items()}


def _entry(data: SourceData, arrays: dict[str, Array], parts: str, *split: Array) -> Entry:
    """Return an entry whose fingerprint covers all data and the arrays that tell the split."""
    test = data.test
    weights = [w for w in (data.sample_weight, data.test_weight) if w is not None]
    sealed = "no test set" if test is None else f"test sealed ({test.size:,})"
    metadata = {
        "source": data.source,
        "kind": data.kind,
        "fingerprint": _fingerprint(*data.train, *(test or ()), *split, *weights),
        "parts": f"{parts}, {sealed}",
    }
    return Entry(arrays, metadata)


def _fingerprint(*arrays: Array) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
