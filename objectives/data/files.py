"""Find and read MNIST and CIFAR-10 in the file formats in which they are published.

No file is trusted. Every reader returns uint8 images and integer labels, or raises a `DataError`
of one line that names the file and its fault.
"""

from __future__ import annotations

import gzip
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from objectives.data.arrays import Array, TrainTestArrays
from objectives.data.unpickle import unpickle_arrays
from objectives.errors import DataError

Batch = tuple[Array, Array]
"""A CIFAR-10 batch: pixels uint8 [n, 3072] and labels uint8 [n]."""

_NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")
_IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_CIFAR_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
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
_CIFAR_PIXELS = 3 * 32 * 32
_MAX_BATCH_BYTES = 64 * 2**20
MAX_NPZ_BYTES = 32 * _MAX_BATCH_BYTES
_MAX_IDX_BYTES = 16 * _MAX_BATCH_BYTES


class DataFiles(NamedTuple):
    """The file or folder of a data set, and the function that reads it."""

    path: Path
    read: Callable[[], TrainTestArrays]


def find_mnist(folder: Path) -> DataFiles | None:
    """Look in `folder` for `mnist.npz`, or for the four IDX files, gzipped or not.

    Raises:
        DataError: Some of the four IDX files are missing.
    """
    npz = folder / "mnist.npz"
    if npz.is_file():
        return DataFiles(npz, partial(read_npz, npz))
    files = [_plain_or_gzipped(folder / name) for name in _IDX_FILES]
    if not any(files):
        return None
    paths = [_required(file, folder / name) for file, name in zip(files, _IDX_FILES, strict=True)]
    return DataFiles(folder, partial(_read_idx_files, paths))


def find_cifar10(folder: Path) -> DataFiles | None:
    """Look in `folder` for `cifar10.npz`, the Python or binary batches, or their tarballs."""
    npz = folder / "cifar10.npz"
    if npz.is_file():
        return DataFiles(npz, partial(read_npz, npz))
    for inner in (folder, *(folder / name for name in _CIFAR_FOLDERS)):
        for suffix in _CIFAR_PARSERS:
            if (inner / f"data_batch_1{suffix}").is_file():
                return DataFiles(inner, partial(_read_batch_files, inner, suffix))
    for name in _CIFAR_TARBALLS:
        tarball = folder / name
        if tarball.is_file():
            return DataFiles(tarball, partial(read_cifar10_tarball, tarball))
    return None


def read_npz(path: Path) -> TrainTestArrays:
    """Read an archive with Keras's keys: x_train, y_train, x_test, y_test."""
    _refuse_large_archive(path)
    with _data_errors(path), np.load(path, allow_pickle=False) as archive:
        names = getattr(archive, "files", ())
        missing = [key for key in _NPZ_KEYS if key not in names]
        if missing:
            has = ", ".join(names) or "none"
            raise DataError(f"{path}: lacks {', '.join(missing)} (it has {has})")
        return TrainTestArrays(*(archive[key] for key in _NPZ_KEYS))


def _refuse_large_archive(path: Path) -> None:
    """Refuse an archive by the sizes in its directory; a member is not read beyond its size."""
    with _data_errors(path):
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_NPZ_BYTES:
            raise DataError(
                f"{path}: {size} bytes when unpacked, too large (at most {MAX_NPZ_BYTES})"
            )


def read_idx(path: Path) -> Array:
    """Read one IDX file of unsigned bytes (yann.lecun.com/exdb/mnist), gzipped or not."""
    opener: Callable[[Path, str], Any] = gzip.open if path.suffix == ".gz" else open
    with _data_errors(path), opener(path, "rb") as file:
        magic = file.read(4)
        if len(magic) < 4 or magic[:3] != b"\0\0\x08" or not 1 <= magic[3] <= 3:
            raise DataError(f"{path}: not an IDX file of bytes (it begins with {magic.hex()})")
        shape = struct.unpack(f">{magic[3]}I", file.read(4 * magic[3]))
        size = int(np.prod(shape, dtype=object))
        content = _read_exactly(file, size, path)
    return np.frombuffer(content, np.uint8).reshape(shape)


def read_cifar10_tarball(path: Path) -> TrainTestArrays:
    """Read `cifar-10-python.tar.gz` or `cifar-10-binary.tar.gz` without unpacking it to disk."""
    with _data_errors(path), tarfile.open(path) as archive:
        members = {Path(m.name).name: m for m in archive if m.isfile()}
        suffix = "" if "data_batch_1" in members else ".bin"
        return _join_batches(
            _CIFAR_PARSERS[suffix](_read_member(archive, members, name + suffix, path), source)
            for name in _CIFAR_BATCHES
            for source in [f"{path}: {name}{suffix}"]
        )


def _read_idx_files(paths: list[Path]) -> TrainTestArrays:
    x_train, y_train, x_test, y_test = (read_idx(path) for path in paths)
    return TrainTestArrays(x_train, y_train, x_test, y_test)


def _read_exactly(file: IO[bytes], size: int, path: Path) -> bytes:
    content = file.read(size + 1) if size <= _MAX_IDX_BYTES else b""
    if len(content) < size:
        raise DataError(f"{path}: truncated: {len(content)} of {size} bytes")
    if len(content) > size:
        raise DataError(f"{path}: more bytes than the {size} that its header announces")
    return content


def _read_batch_files(folder: Path, suffix: str) -> TrainTestArrays:
    paths = [folder / f"{name}{suffix}" for name in _CIFAR_BATCHES]
    return _join_batches(_read_batch(_required(path, path), suffix) for path in paths)


def _read_batch(path: Path, suffix: str) -> Batch:
    with _data_errors(path):
        if path.stat().st_size > _MAX_BATCH_BYTES:
            raise DataError(f"{path}: {path.stat().st_size} bytes, too large for a batch")
        return _CIFAR_PARSERS[suffix](path.read_bytes(), str(path))


def _read_member(
    archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo], name: str, path: Path
) -> bytes:
    if name not in members:
        raise DataError(f"{path}: lacks {name}")
    if members[name].size > _MAX_BATCH_BYTES:
        raise DataError(f"{path}: {name} is {members[name].size} bytes, too large for a batch")
    file = archive.extractfile(members[name])
    return file.read() if file else b""


def _parse_pickle(content: bytes, source: str) -> Batch:
    with _data_errors(source):
        batch = unpickle_arrays(content)
    if not isinstance(batch, dict) or not {b"data", b"labels"} <= batch.keys():
        raise DataError(f"{source}: not a CIFAR-10 batch (no data and labels in it)")
    rows, labels = batch[b"data"], batch[b"labels"]
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{source}: the labels are not a list of whole numbers")
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8:
        raise DataError(f"{source}: the images are not an array of uint8")
    if rows.shape != (len(labels), _CIFAR_PIXELS):
        raise DataError(f"{source}: images of shape {rows.shape} for {len(labels)} labels")
    if labels and not 0 <= min(labels) <= max(labels) <= 9:
        raise DataError(f"{source}: labels from {min(labels)} to {max(labels)}, must be 0 to 9")
    return rows, np.array(labels, np.uint8)


def _parse_binary(content: bytes, source: str) -> Batch:
    record = 1 + _CIFAR_PIXELS
    if not content or len(content) % record:
        raise DataError(
            f"{source}: truncated: {len(content)} bytes is no whole number of {record}-byte images"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    return records[:, 1:], records[:, 0]


_CIFAR_PARSERS: dict[str, Callable[[bytes, str], Batch]] = {
    "": _parse_pickle,
    ".bin": _parse_binary,
}
"""The parser of a batch's bytes, by the suffix of the batch's file name."""


def _join_batches(batches: Iterator[Batch]) -> TrainTestArrays:
    *train, (test_pixels, y_test) = batches
    x_train = _images(np.concatenate([pixels for pixels, _ in train]))
    y_train = np.concatenate([labels for _, labels in train])
    return TrainTestArrays(x_train, y_train, _images(test_pixels), y_test)


def _images(pixels: Array) -> Array:
    """Turn rows of 1024 red, green and blue values into images [n, 32, 32, 3]."""
    return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _plain_or_gzipped(path: Path) -> Path | None:
    gzipped = path.with_name(path.name + ".gz")
    return next((p for p in (path, gzipped) if p.is_file()), None)


def _required(file: Path | None, expected: Path) -> Path:
    if file is None or not file.is_file():
        raise DataError(f"{expected}: missing, though other files of the data set are there")
    return file


@contextmanager
def _data_errors(source: Path | str) -> Iterator[None]:
    """Turn every exception of a reader into a `DataError` of one line.

    All types are caught: for a broken file, numpy alone raises a dozen, TokenError among them.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{source}: unreadable: {detail}") from error
