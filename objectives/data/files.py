"""Read MNIST and CIFAR-10 in the forms they are distributed in, trusting none of them.

Every reader returns uint8 images and integer labels, or raises a `DataError` of one line that
names the file and what is wrong with it.
"""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from objectives.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]
_NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")
_IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_CIFAR_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
_CIFAR_ROW = 3 * 32 * 32
_BATCH_LIMIT = 64 * 2**20


class Arrays(NamedTuple):
    """A data set as its publishers split it: images uint8 [n, ...], labels integer [n]."""

    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array


class Found(NamedTuple):
    """Where a data set was found, and how to read it."""

    path: Path
    read: Callable[[], Arrays]


def find_mnist(folder: Path) -> Found | None:
    """MNIST in `folder`: `mnist.npz`, or the four IDX files, gzipped or not.

    Raises:
        DataError: Some of the four IDX files are there and others are not.
    """
    npz = folder / "mnist.npz"
    if npz.is_file():
        return Found(npz, partial(read_npz, npz))
    files = [_plain_or_gzipped(folder / name) for name in _IDX_FILES]
    if not any(files):
        return None
    paths = [_required(file, folder / name) for file, name in zip(files, _IDX_FILES, strict=True)]
    return Found(folder, partial(_read_idx_files, paths))


def find_cifar10(folder: Path) -> Found | None:
    """CIFAR-10 in `folder`: `cifar10.npz`, the Python or binary batches, or their tarballs."""
    npz = folder / "cifar10.npz"
    if npz.is_file():
        return Found(npz, partial(read_npz, npz))
    for inner in (folder, *(folder / name for name in _CIFAR_FOLDERS)):
        for suffix, parse in _CIFAR_PARSERS.items():
            if (inner / f"data_batch_1{suffix}").is_file():
                return _found_batches(inner, suffix, parse)
    for name in _CIFAR_TARBALLS:
        tarball = folder / name
        if tarball.is_file():
            return Found(tarball, partial(read_cifar10_tarball, tarball))
    return None


_CIFAR_FOLDERS = (
    "cifar-10-batches-py",
    "cifar-10-batches-bin",
    "cifar-10-batches-py-target/cifar-10-batches-py",
)
_CIFAR_TARBALLS = (
    "cifar-10-python.tar.gz",
    "cifar-10-binary.tar.gz",
    "cifar-10-batches-py-target_archive",
    "cifar-10-batches-py.tar.gz",
)


def read_npz(path: Path) -> Arrays:
    """An archive with Keras's keys: x_train, y_train, x_test, y_test."""
    with _naming(path), np.load(path, allow_pickle=False) as archive:
        names = getattr(archive, "files", ())
        missing = [key for key in _NPZ_KEYS if key not in names]
        if missing:
            has = ", ".join(names) or "none"
            raise DataError(f"{path}: lacks {', '.join(missing)} (it has {has})")
        return Arrays(*(archive[key] for key in _NPZ_KEYS))


def read_idx(path: Path) -> Array:
    """One IDX file of unsigned bytes (yann.lecun.com/exdb/mnist), gzipped or not."""
    opener: Callable[[Path, str], Any] = gzip.open if path.suffix == ".gz" else open
    with _naming(path), opener(path, "rb") as file:
        magic = file.read(4)
        if len(magic) < 4 or magic[:3] != b"\0\0\x08" or not 1 <= magic[3] <= 3:
            raise DataError(f"{path}: not an IDX file of bytes (it begins with {magic.hex()})")
        shape = struct.unpack(f">{magic[3]}I", file.read(4 * magic[3]))
        size = int(np.prod(shape, dtype=object))
        content = _read_exactly(file, size, path)
    return np.frombuffer(content, np.uint8).reshape(shape)


def read_cifar10_tarball(path: Path) -> Arrays:
    """`cifar-10-python.tar.gz` or `cifar-10-binary.tar.gz`, read without unpacking it to disk."""
    with _naming(path), tarfile.open(path) as archive:
        members = {Path(m.name).name: m for m in archive if m.isfile()}
        suffix = "" if "data_batch_1" in members else ".bin"
        return _join_batches(
            _CIFAR_PARSERS[suffix](_member(archive, members, name + suffix, path), source)
            for name in _CIFAR_BATCHES
            for source in [f"{path}: {name}{suffix}"]
        )


def _member(
    archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo], name: str, path: Path
) -> bytes:
    if name not in members:
        raise DataError(f"{path}: lacks {name}")
    if members[name].size > _BATCH_LIMIT:
        raise DataError(f"{path}: {name} is {members[name].size} bytes, too large for a batch")
    file = archive.extractfile(members[name])
    return file.read() if file else b""


def _found_batches(
    folder: Path, suffix: str, parse: Callable[[bytes, str], tuple[Array, Array]]
) -> Found:
    paths = [folder / f"{name}{suffix}" for name in _CIFAR_BATCHES]

    def read() -> Arrays:
        return _join_batches(_parse_file(_required(path, path), parse) for path in paths)

    return Found(folder, read)


def _parse_file(
    path: Path, parse: Callable[[bytes, str], tuple[Array, Array]]
) -> tuple[Array, Array]:
    with _naming(path):
        if path.stat().st_size > _BATCH_LIMIT:
            raise DataError(f"{path}: {path.stat().st_size} bytes, too large for a batch")
        return parse(path.read_bytes(), str(path))


def _parse_pickle(content: bytes, source: str) -> tuple[Array, Array]:
    with _naming(source):
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    if not isinstance(batch, dict) or not {b"data", b"labels"} <= batch.keys():
        raise DataError(f"{source}: not a CIFAR-10 batch (no data and labels in it)")
    rows, labels = batch[b"data"], batch[b"labels"]
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{source}: the labels are not a list of whole numbers")
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8:
        raise DataError(f"{source}: the images are not an array of uint8")
    if rows.shape != (len(labels), _CIFAR_ROW):
        raise DataError(f"{source}: images of shape {rows.shape} for {len(labels)} labels")
    if labels and not 0 <= min(labels) <= max(labels) <= 9:
        raise DataError(f"{source}: labels from {min(labels)} to {max(labels)}, must be 0 to 9")
    return rows, np.array(labels, np.uint8)


def _parse_binary(content: bytes, source: str) -> tuple[Array, Array]:
    record = 1 + _CIFAR_ROW
    if not content or len(content) % record:
        raise DataError(
            f"{source}: truncated: {len(content)} bytes is no whole number of {record}-byte images"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    return records[:, 1:], records[:, 0]


_CIFAR_PARSERS: dict[str, Callable[[bytes, str], tuple[Array, Array]]] = {
    "": _parse_pickle,
    ".bin": _parse_binary,
}


def _join_batches(batches: Iterator[tuple[Array, Array]]) -> Arrays:
    *train, (rows_test, y_test) = batches
    x_train = _pixels(np.concatenate([rows for rows, _ in train]))
    y_train = np.concatenate([labels for _, labels in train])
    return Arrays(x_train, y_train, _pixels(rows_test), y_test)


def _pixels(rows: Array) -> Array:
    """Rows of 1024 red, green and blue values as images [n, 32, 32, 3]."""
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


class _ArrayUnpickler(pickle.Unpickler):
    """Builds arrays of bytes beside pickle's own plain types; calls nothing a file names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a CIFAR-10 batch")


def _empty_array(*_: Any) -> Array:
    """Stands for numpy's `_reconstruct`: the state that follows fills in shape and bytes."""
    return np.empty(0, np.uint8)


def _byte_type(code: Any, *_: Any) -> np.dtype[Any]:
    if code not in (b"u1", "u1"):
        raise pickle.UnpicklingError(f"an array of {code!r}, must be of uint8")
    return np.dtype(np.uint8, copy=True)


def _no_array(*_: Any) -> Any:
    """Stands for numpy's ndarray, which is named as an argument and never called."""
    raise pickle.UnpicklingError("an array made in another way than numpy pickles them")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,
    ("numpy", "ndarray"): _no_array,
    ("numpy", "dtype"): _byte_type,
    ("_codecs", "encode"): lambda text, _encoding: text.encode("latin1"),
}


def _read_idx_files(paths: list[Path]) -> Arrays:
    x_train, y_train, x_test, y_test = (read_idx(path) for path in paths)
    return Arrays(x_train, y_train, x_test, y_test)


def _plain_or_gzipped(path: Path) -> Path | None:
    zipped = path.with_name(path.name + ".gz")
    return next((p for p in (path, zipped) if p.is_file()), None)


def _required(file: Path | None, expected: Path) -> Path:
    if file is None or not file.is_file():
        raise DataError(f"{expected}: missing, though other files of the data set are there")
    return file


def _read_exactly(file: IO[bytes], size: int, path: Path) -> bytes:
    content = file.read(size + 1) if size <= _BATCH_LIMIT * 16 else b""
    if len(content) < size:
        raise DataError(f"{path}: truncated: {len(content)} of {size} bytes")
    if len(content) > size:
        raise DataError(f"{path}: more bytes than the {size} that its header announces")
    return content


@contextmanager
def _naming(source: Path | str) -> Iterator[None]:
    """Turns whatever a broken file makes its reader raise into a DataError of one line.

    That may be anything: numpy alone lets a dozen kinds through, down to TokenError.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{source}: unreadable: {detail}") from error
