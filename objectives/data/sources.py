"""Where data sets come from: published files, Keras's cache, a download, a user's function."""

from __future__ import annotations

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from objectives.data import synthetic
from objectives.data.download import fetch, keras_cache
from objectives.data.files import Array, Arrays, Found, find_cifar10, find_mnist
from objectives.errors import DataError, DataMissing, SettingError

Kind = Literal["real", "synthetic", "auto"]
KINDS: tuple[Kind, ...] = ("real", "synthetic", "auto")


class Examples(NamedTuple):
    """Inputs [n, ...] and targets [n, ...]; read-only."""

    x: Array
    y: Array

    @property
    def size(self) -> int:
        """How many examples these are."""
        return len(self.x)


class Loaded(NamedTuple):
    """A source's arrays, with where they come from; `test` is None where there is none."""

    train: Examples
    test: Examples | None
    source: str
    kind: str


class Source(ABC):
    """Where a data set comes from. Subclasses are hashable: the split is cached by them."""

    @abstractmethod
    def load(self, kind: Kind, data_dir: Path | None) -> Loaded:
        """All of it.

        Raises:
            DataError: A file is broken.
            DataMissing: It cannot be had.
            SettingError: The source has no data of this kind.
        """

    def identity(self, kind: Kind, data_dir: Path | None) -> list[Any] | None:
        """What tells these data from others without reading them, as JSON; None: nothing does."""
        return None


@dataclass(frozen=True)
class CallableSource(Source):
    """Arrays from a user's function: (x, y), or ((x, y), (x_test, y_test)) as Keras's loaders.

    A function with a parameter `data_dir` is given the folder, or None.
    """

    function: Callable[..., Any]

    def load(self, kind: Kind, data_dir: Path | None) -> Loaded:
        """Calls the function."""
        name = f"{self.function.__module__}.{self.function.__qualname__}"
        if kind == "synthetic":
            raise SettingError(f"{name} has no generated stand-in: --data synthetic is not for it")
        takes_dir = "data_dir" in inspect.signature(self.function).parameters
        found = self.function(data_dir=data_dir) if takes_dir else self.function()
        try:
            (x, y), *rest = (found, None) if _is_pair_of_arrays(found) else found
        except (TypeError, ValueError):
            raise DataError(
                f"{name}: must return (x, y) or ((x, y), (x_test, y_test)), arrays"
            ) from None
        test = Examples(*map(frozen, rest[0])) if rest and rest[0] is not None else None
        train = Examples(frozen(x), _targets(y))
        _check_lengths(train, name)
        return Loaded(train, test, name, "real")


@dataclass(frozen=True)
class ImageSource(Source):
    """A published image data set.

    Attributes:
        title: Its name in messages.
        shape: One image's shape.
        n_classes: How many classes it has.
        find: Looks for it in a folder.
        draw: Generates the stand-in.
        files: What a folder may hold, in words.
        url: Where it is published; `sha256` is that file's, `cached_as` its name in Keras's cache.
    """

    title: str
    shape: tuple[int, ...]
    n_classes: int
    find: Callable[[Path], Found | None]
    draw: Callable[[], Arrays]
    files: str
    url: str
    sha256: str
    cached_as: str

    def load(self, kind: Kind, data_dir: Path | None) -> Loaded:
        """The files of `data_dir`, or else of Keras's cache or of its download; or generated."""
        if kind == "synthetic":
            return self._generated()
        try:
            found = self._in_folder(data_dir) if data_dir else self._cached_or_fetched()
        except DataMissing:
            if kind == "auto":
                return self._generated()
            raise
        return self._checked(found.read(), str(found.path), "real")

    def identity(self, kind: Kind, data_dir: Path | None) -> list[Any] | None:
        """The files' paths, sizes and times of change; the generator's code."""
        if kind == "synthetic":
            return [self.title, kind, _digest(Path(synthetic.__file__))]
        found = self.find(data_dir or keras_cache())
        return None if found is None else [self.title, "real", *_stats(found.path)]

    def _generated(self) -> Loaded:
        return self._checked(self.draw(), "synthetic (generated)", "synthetic")

    def _in_folder(self, folder: Path) -> Found:
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder to find {self.title} in")
        found = self.find(folder)
        if found is None:
            raise DataMissing(
                f"{folder}: no {self.title} in it (looked for {self.files}); put it there, "
                "or use --data synthetic"
            )
        return found

    def _cached_or_fetched(self) -> Found:
        cache = keras_cache()
        found = self.find(cache)
        if found is not None:
            return found
        try:
            fetch(self.url, cache / self.cached_as, self.sha256)
        except OSError as error:
            reason = " ".join(str(error).split())
            raise DataMissing(
                f"no {self.title} in {cache}, and {self.url} cannot be downloaded ({reason}); "
                f"name a folder that has it by --data-dir ({self.files}), or use --data synthetic"
            ) from error
        return self._in_folder(cache)

    def _checked(self, arrays: Arrays, source: str, kind: str) -> Loaded:
        train = self._examples(arrays.x_train, arrays.y_train, f"{source}: x_train, y_train")
        test = self._examples(arrays.x_test, arrays.y_test, f"{source}: x_test, y_test")
        return Loaded(train, test, source, kind)

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
        return Examples(frozen(x), _targets(y.reshape(-1)))


MNIST = ImageSource(
    title="MNIST",
    shape=(28, 28),
    n_classes=10,
    find=find_mnist,
    draw=synthetic.digits,
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
    draw=synthetic.shapes,
    files="cifar10.npz, cifar-10-batches-py, cifar-10-batches-bin or their tarballs",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    cached_as="cifar-10-batches-py-target_archive",
)


def _stats(path: Path) -> list[Any]:
    """A file's, or those of all files of a folder."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [(file, file.stat()) for file in files]
    return [[str(file.absolute()), s.st_size, s.st_mtime_ns] for file, s in stats]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def are_labels(y: Array) -> bool:
    """Whether targets are class labels: whole numbers [n]."""
    return y.ndim == 1 and np.issubdtype(y.dtype, np.integer)


def _targets(y: Any) -> Array:
    """Targets in one form whatever file they came from: labels as int32 [n]."""
    targets = np.asarray(y)
    return frozen(targets.astype(np.int32) if are_labels(targets) else targets)


def frozen(values: Any) -> Array:
    """A view that cannot be written through, so that no trial spoils the next one's data."""
    array = np.asarray(values)
    if array.dtype.hasobject:
        raise DataError(f"arrays of numbers are needed, not of {array.dtype}")
    view = array.view()
    view.flags.writeable = False
    return view


def _is_pair_of_arrays(found: Any) -> bool:
    return len(found) == 2 and hasattr(found[0], "shape") and hasattr(found[1], "shape")


def _check_lengths(examples: Examples, source: str) -> None:
    if examples.x.ndim == 0 or len(examples.x) != len(examples.y) or not len(examples.x):
        raise DataError(f"{source}: {examples.x.shape} inputs for {examples.y.shape} targets")
