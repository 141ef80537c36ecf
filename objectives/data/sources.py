"""Sources of data sets: published files, Keras's cache, a download, or a user's function."""

from __future__ import annotations

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from objectives.data import synthetic
from objectives.data.arrays import Array, Examples, TrainTestArrays, read_only
from objectives.data.download import download, keras_cache
from objectives.data.files import DataFiles, find_cifar10, find_mnist
from objectives.errors import DataError, DataMissing, SettingError

DataKind = Literal["real", "synthetic", "auto"]
"""Which data to load: the published ones, generated ones, or generated ones as a fallback."""

DATA_KINDS: tuple[DataKind, ...] = ("real", "synthetic", "auto")


class SourceData(NamedTuple):
    """What a source has loaded.

    Attributes:
        train: The training set; not split yet, unless there is a validation set.
        test: The test set; None if there is none.
        source: Where the data come from, in words.
        kind: "real" or "synthetic".
        sample_weight: The weight of each training example, float32 [n, ...]; None: all are equal.
        validation: The validation set, if the source has one.
        validation_weight: The weights of the validation examples.
        test_weight: The weights of the test examples.
        groups: The number of the group of each training example, int [n]; None: no groups.
    """

    train: Examples
    test: Examples | None
    source: str
    kind: str
    sample_weight: Array | None = None
    validation: Examples | None = None
    validation_weight: Array | None = None
    test_weight: Array | None = None
    groups: Array | None = None


class Source(ABC):
    """Where a data set comes from. Subclasses are hashable: the process caches data by source."""

    @abstractmethod
    def load(self, kind: DataKind, data_dir: Path | None) -> SourceData:
        """Load the training and the test set.

        Raises:
            DataError: A file is broken.
            DataMissing: The data set is not found.
            SettingError: The source has no data of this kind.
        """

    def identity(self, kind: DataKind, data_dir: Path | None) -> list[Any] | None:
        """Return what identifies the data without reading them, as JSON; None if nothing does."""
        return None


@dataclass(frozen=True)
class CallableSource(Source):
    """A user's function that returns its data by name or by position.

    By name: ``{"train": part, "validation": part, "test": part, "groups": groups}``; all but
    "train" may be missing or None. By position: one part is the training set; two are training
    and test set, as Keras's loaders return them; three are training, validation and test set. A
    part is ``(x, y)`` or ``(x, y, sample_weight)``.

    Attributes:
        function: Is called without arguments, or with `data_dir` if it has such a parameter.
    """

    function: Callable[..., Any]

    def load(self, kind: DataKind, data_dir: Path | None) -> SourceData:
        """Call the function and check what it returns."""
        name = f"{self.function.__module__}.{self.function.__qualname__}"
        if kind == "synthetic":
            raise SettingError(f"{name} has no generated stand-in: --data synthetic is not for it")
        takes_dir = "data_dir" in inspect.signature(self.function).parameters
        returned = self.function(data_dir=data_dir) if takes_dir else self.function()
        parts = _by_name(name, returned)
        groups = parts.pop("groups", None)
        read = {key: _read_part(name, key, part) for key, part in parts.items()}
        train, weight = read["train"]
        for key, (examples, _) in read.items():
            _check_shapes(f"{name}: {key}", examples, train)
        validation, validation_weight = read.get("validation", (None, None))
        test, test_weight = read.get("test", (None, None))
        return SourceData(
            train,
            test,
            name,
            "real",
            weight,
            validation,
            validation_weight,
            test_weight,
            None if groups is None else _groups(groups, train.size, name),
        )


@dataclass(frozen=True)
class ImageSource(Source):
    """A published data set of labelled images.

    Attributes:
        title: Its name in messages.
        shape: The shape of one image.
        n_classes: The number of classes.
        find: Looks for the data set in a folder.
        generate: Generates the synthetic stand-in.
        files: The files that `find` looks for, in words.
        url: Where the data set is published.
        sha256: The checksum of the file at `url`.
        cached_as: The name of that file in Keras's cache.
    """

    title: str
    shape: tuple[int, ...]
    n_classes: int
    find: Callable[[Path], DataFiles | None]
    generate: Callable[[], TrainTestArrays]
    files: str
    url: str
    sha256: str
    cached_as: str

    def load(self, kind: DataKind, data_dir: Path | None) -> SourceData:
        """Read `data_dir`, else Keras's cache, else download; or generate the stand-in."""
        if kind == "synthetic":
            return self._generated()
        try:
            files = self._in_folder(data_dir) if data_dir else self._cached_or_downloaded()
        except DataMissing:
            if kind == "auto":
                return self._generated()
            raise
        return self._checked(files.read(), str(files.path), "real")

    def identity(self, kind: DataKind, data_dir: Path | None) -> list[Any] | None:
        """Return paths, sizes and times of change of the files; or a hash of the generator."""
        if kind == "synthetic":
            return [self.title, kind, _sha256(Path(synthetic.__file__))]
        files = self.find(data_dir or keras_cache())
        return None if files is None else [self.title, "real", *_stats(files.path)]

    def _generated(self) -> SourceData:
        return self._checked(self.generate(), "synthetic (generated)", "synthetic")

    def _in_folder(self, folder: Path) -> DataFiles:
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder to find {self.title} in")
        files = self.find(folder)
        if files is None:
            raise DataMissing(
                f"{folder}: no {self.title} in it (looked for {self.files}); put it there, "
                "or use --data synthetic"
            )
        return files

    def _cached_or_downloaded(self) -> DataFiles:
        folder = keras_cache()
        files = self.find(folder)
        if files is not None:
            return files
        try:
            download(self.url, folder / self.cached_as, self.sha256)
        except OSError as error:
            reason = " ".join(str(error).split())
            raise DataMissing(
                f"no {self.title} in {folder}, and {self.url} cannot be downloaded ({reason}); "
                f"name a folder that has it by --data-dir ({self.files}), or use --data synthetic"
            ) from error
        return self._in_folder(folder)

    def _checked(self, arrays: TrainTestArrays, source: str, kind: str) -> SourceData:
        train = self._examples(arrays.x_train, arrays.y_train, f"{source}: x_train, y_train")
        test = self._examples(arrays.x_test, arrays.y_test, f"{source}: x_test, y_test")
        return SourceData(train, test, source, kind)

    def _examples(self, x: Array, y: Array, source: str) -> Examples:
        if x.dtype != np.uint8 or x.shape[1:] != self.shape:
            want = ", ".join(map(str, self.shape))
            raise DataError(
                f"{source}: images of {x.dtype} {x.shape}, must be uint8 (n, {want}) for "
                f"{self.title}"
            )
        if not np.issubdtype(y.dtype, np.integer) or y.shape not in ((len(x),), (len(x), 1)):
            raise DataError(
                f"{source}: labels of {y.dtype} {y.shape} for {len(x)} images, must be whole "
                "numbers, one for each"
            )
        if not len(x):
            raise DataError(f"{source}: holds no image")
        if not 0 <= y.min() <= y.max() < self.n_classes:
            raise DataError(
                f"{source}: labels from {y.min()} to {y.max()}, must be 0 to {self.n_classes - 1}"
            )
        return Examples(read_only(x), _targets(y.reshape(-1)))


MNIST = ImageSource(
    title="MNIST",
    shape=(28, 28),
    n_classes=10,
    find=find_mnist,
    generate=synthetic.digits,
    files="mnist.npz or the four IDX files",
    url="https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz",
    sha256="731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1",
    cached_as="mnist.npz",
)

CIFAR10 = ImageSource(
    title="CIFAR-10",
    shape=(32, 32, 3),
    n_classes=10,
    find=find_cifar10,
    generate=synthetic.shapes,
    files="cifar10.npz, cifar-10-batches-py, cifar-10-batches-bin or their tarballs",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    cached_as="cifar-10-batches-py-target_archive",
)


def _stats(path: Path) -> list[Any]:
    """Return path, size, times and inode of a file, or of every file in a folder.

    A program can set back the time of modification, but not the time of change.
    """
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [(file, file.stat()) for file in files]
    return [
        [str(file.absolute()), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino]
        for file, s in stats
    ]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _targets(y: Any) -> Array:
    """Return integers [n] as int32, if they fit, and other targets as they are."""
    targets = np.asarray(y)
    if targets.ndim != 1 or targets.dtype.kind not in "iu" or not targets.size:
        return read_only(targets)
    limits = np.iinfo(np.int32)
    fits = limits.min <= targets.min() and targets.max() <= limits.max
    return read_only(targets.astype(np.int32) if fits else targets)


def _by_name(source: str, returned: Any) -> dict[str, Any]:
    """Return the parts that a function returns by their names, without those that are None."""
    if isinstance(returned, Mapping):
        unknown = [key for key in returned if key not in (*_PARTS, "groups")]
        if unknown:
            raise DataError(
                f"{source}: returns {unknown[0]!r} by name; the names are {', '.join(_PARTS)} and "
                "groups"
            )
        parts = dict(returned)
    else:
        if isinstance(returned, list | tuple):
            _check_single_arrays(source, returned)
        try:
            positions = (returned,) if _are_arrays(returned) else tuple(returned)
        except TypeError:
            raise _unusable(source) from None
        if len(positions) not in (1, 2, 3):
            raise _unusable(source)
        names = ("train", "test") if len(positions) < 3 else _PARTS
        parts = dict(zip(names, positions, strict=False))
    parts = {key: part for key, part in parts.items() if part is not None}
    if "train" not in parts:
        raise DataError(f"{source}: returns no training set; its name is 'train'")
    return parts


_PARTS = ("train", "validation", "test")


def _unusable(source: str) -> DataError:
    return DataError(
        f"{source}: must return (x, y) or ((x, y), (x_test, y_test)), arrays, or by name "
        "{'train': (x, y), 'validation': (x, y), 'test': (x, y)}; each pair may be "
        "(x, y, sample_weight)"
    )


def _read_part(source: str, name: str, part: Any) -> tuple[Examples, Array | None]:
    """Return the examples of a part and their weights."""
    if isinstance(part, list | tuple):
        _check_single_arrays(source, part)
    try:
        x, y, weights = part if len(part) == 3 else (*part, None)
    except (TypeError, ValueError):
        raise _unusable(source) from None
    where = source if name == "train" else f"{source}: {name}"
    # The labels of a test set keep their dtype, which fingerprints of older studies contain.
    examples = Examples(read_only(x), read_only(y) if name == "test" else _targets(y))
    _check_lengths(examples, where)
    return examples, None if weights is None else _weights(weights, examples.size, where)


def _check_shapes(source: str, examples: Examples, train: Examples) -> None:
    """Check that examples have the shape of the training examples."""
    for what, one, other in zip(("inputs", "targets"), examples, train, strict=True):
        if one.shape[1:] != other.shape[1:]:
            raise DataError(
                f"{source}: {what} of the shape {one.shape[1:]}, must be that of the training "
                f"set, {other.shape[1:]}"
            )


def _groups(values: Any, n: int, source: str) -> Array:
    """Return the number of each example's group, in the order of their names."""
    groups = np.asarray(values)
    if groups.shape != (n,):
        raise DataError(
            f"{source}: groups of the shape {groups.shape}, must be {n} numbers or names, one for "
            "each training example"
        )
    # Objects may not compare with each other (a missing name among strings).
    names = groups.astype(str) if groups.dtype.hasobject else groups
    return read_only(np.unique(names, return_inverse=True)[1])


def _weights(values: Any, n: int, source: str) -> Array:
    """Return sample weights as float32."""
    weights = np.asarray(values)
    if weights.dtype.kind not in "biuf" or weights.shape[:1] != (n,):
        raise DataError(
            f"{source}: sample weights of {weights.dtype} {weights.shape}, must be {n} numbers, "
            "one for each example"
        )
    return read_only(weights.astype(np.float32))


def _are_arrays(returned: Any) -> bool:
    """Return whether these are (x, y) or (x, y, sample_weight)."""
    return len(returned) in (2, 3) and all(hasattr(part, "shape") for part in returned)


def _check_single_arrays(name: str, returned: Any) -> None:
    """Check that inputs and targets are one array each, not several by name or in a row."""
    parts = list(returned)
    arrays = len(parts) in (2, 3) and (isinstance(parts[0], dict) or hasattr(parts[1], "shape"))
    if not arrays:
        parts = [part for pair in parts if isinstance(pair, list | tuple) for part in pair]
    for part in parts:
        if isinstance(part, dict | list | tuple) and not _is_one_array(part):
            raise DataError(
                f"{name}: returns a {type(part).__name__} of arrays as inputs or targets; only "
                "one array for each is supported: join them, and let the model take them apart"
            )


def _is_one_array(part: Any) -> bool:
    """Return whether a list is numbers, or arrays of one shape, which numpy joins to one array."""
    return not isinstance(part, dict) and len({np.shape(item) for item in part}) <= 1


def _check_lengths(examples: Examples, source: str) -> None:
    if examples.x.ndim == 0 or len(examples.x) != len(examples.y) or not len(examples.x):
        raise DataError(f"{source}: {examples.x.shape} inputs for {examples.y.shape} targets")
