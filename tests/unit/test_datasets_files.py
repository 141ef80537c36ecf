"""Every published file format gives the same arrays; a broken file is named with its fault."""

from __future__ import annotations

import gzip
import io
import pickle
import random
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from objectives import DataError, DataMissing, Settings
from objectives.data.arrays import TrainTestArrays
from objectives.data.dataset import Dataset, load_dataset, load_test_set
from objectives.data.sources import CIFAR10, MNIST, ImageSource

_IDX = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


def _arrays(shape: tuple[int, ...]) -> TrainTestArrays:
    rng = np.random.RandomState(3)
    return TrainTestArrays(
        rng.randint(0, 256, (100, *shape)).astype(np.uint8),
        (np.arange(100) % 10).astype(np.uint8),
        rng.randint(0, 256, (20, *shape)).astype(np.uint8),
        (np.arange(20) % 10).astype(np.uint8),
    )


DIGITS = _arrays((28, 28))
COLOURS = _arrays((32, 32, 3))


def _npz(folder: Path, name: str, arrays: TrainTestArrays) -> Path:
    np.savez_compressed(folder / name, **arrays._asdict())
    return folder / name


def _idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(f">2xBB{array.ndim}I", 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def _idx(folder: Path, *, gzipped: bool) -> None:
    for key, name in _IDX.items():
        content = _idx_bytes(getattr(DIGITS, key))
        if gzipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


def _batches() -> list[tuple[str, np.ndarray, np.ndarray]]:
    train = [
        (f"data_batch_{i + 1}", COLOURS.x_train[20 * i :][:20], COLOURS.y_train[20 * i :][:20])
        for i in range(5)
    ]
    return [*train, ("test_batch", COLOURS.x_test, COLOURS.y_test)]


def _rows(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


def _python_batch(images: np.ndarray, labels: np.ndarray) -> bytes:
    batch = {b"data": _rows(images), b"labels": labels.tolist(), b"batch_label": b"a batch"}
    return pickle.dumps(batch, protocol=2)


def _binary_batch(images: np.ndarray, labels: np.ndarray) -> bytes:
    return np.column_stack([labels, _rows(images)]).astype(np.uint8).tobytes()


def _cifar_files(kind: str) -> dict[str, bytes]:
    encode, suffix = (_python_batch, "") if kind == "py" else (_binary_batch, ".bin")
    return {
        f"cifar-10-batches-{kind}/{name}{suffix}": encode(images, labels)
        for name, images, labels in _batches()
    }


def _cifar_folder(folder: Path, kind: str) -> None:
    for name, content in _cifar_files(kind).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


def _cifar_tarball(folder: Path, kind: str) -> None:
    name = "cifar-10-python.tar.gz" if kind == "py" else "cifar-10-binary.tar.gz"
    with tarfile.open(folder / name, "w:gz") as archive:
        for member, content in _cifar_files(kind).items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def _load(source: ImageSource, folder: Path) -> Dataset:
    return load_dataset(source, "real", folder, Settings())


FORMATS: dict[str, tuple[ImageSource, TrainTestArrays, Callable[[Path], object]]] = {
    "mnist.npz": (MNIST, DIGITS, lambda d: _npz(d, "mnist.npz", DIGITS)),
    "idx": (MNIST, DIGITS, lambda d: _idx(d, gzipped=False)),
    "idx.gz": (MNIST, DIGITS, lambda d: _idx(d, gzipped=True)),
    "cifar10.npz": (
        CIFAR10,
        COLOURS,
        lambda d: _npz(d, "cifar10.npz", COLOURS._replace(y_train=COLOURS.y_train[:, None])),
    ),
    "batches-py": (CIFAR10, COLOURS, lambda d: _cifar_folder(d, "py")),
    "batches-bin": (CIFAR10, COLOURS, lambda d: _cifar_folder(d, "bin")),
    "python.tar.gz": (CIFAR10, COLOURS, lambda d: _cifar_tarball(d, "py")),
    "binary.tar.gz": (CIFAR10, COLOURS, lambda d: _cifar_tarball(d, "bin")),
}


@pytest.mark.parametrize("format_", FORMATS)
def test_every_format_reads_to_the_same_images_labels_and_fingerprint(
    format_: str, tmp_path: Path
) -> None:
    source, arrays, write = FORMATS[format_]
    write(tmp_path)
    reference = tmp_path / "reference"
    reference.mkdir()
    _npz(reference, source.find.__name__.removeprefix("find_") + ".npz", arrays)
    dataset, test = _load(source, tmp_path), load_test_set(source, "real", tmp_path)
    assert dataset.fingerprint == _load(source, reference).fingerprint
    assert str(tmp_path) in dataset.source
    assert np.array_equal(test.x, arrays.x_test)
    assert np.array_equal(test.y, arrays.y_test)


def test_without_a_folder_keras_cache_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "datasets").mkdir()
    path = _npz(tmp_path / "datasets", "mnist.npz", DIGITS)
    assert load_dataset(MNIST, "real", None, Settings()).source == str(path)


def test_a_folder_without_the_data_set_says_what_to_put_there(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"mnist\.npz or the four IDX files.*--data synthetic"):
        _load(MNIST, tmp_path)


def test_a_missing_folder_is_an_error_even_with_data_auto(
    tmp_path: Path,
) -> None:
    with pytest.raises(DataError, match="no such folder"):
        load_dataset(MNIST, "auto", tmp_path / "absent", Settings())


def _broken_npz(**changes: object) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        arrays = {k: v for k, v in {**DIGITS._asdict(), **changes}.items() if v is not None}
        np.savez_compressed(folder / "mnist.npz", **arrays)  # type: ignore[arg-type]
        return folder / "mnist.npz"

    return write


def _cut_npz(folder: Path) -> Path:
    path = _npz(folder, "mnist.npz", DIGITS)
    path.write_bytes(path.read_bytes()[:5000])
    return path


def _text_npz(folder: Path) -> Path:
    path = folder / "mnist.npz"
    path.write_text("<html>not found</html>")
    return path


def _idx_with(name: str, content: bytes | None) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        _idx(folder, gzipped=False)
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)
        return folder / name

    return write


def _cut_gzip(folder: Path) -> Path:
    _idx(folder, gzipped=True)
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-2000])
    return path


_IMAGES = "train-images-idx3-ubyte"
BROKEN_MNIST: dict[str, tuple[Callable[[Path], Path], str]] = {
    "truncated npz": (_cut_npz, "unreadable"),
    "a page instead of an npz": (_text_npz, "unreadable"),
    "missing keys": (_broken_npz(y_test=None, x_test=None), "lacks x_test, y_test"),
    "wrong shape": (
        _broken_npz(x_train=np.zeros((100, 28, 27), np.uint8)),
        r"\(100, 28, 27\), must be uint8 \(n, 28, 28\)",
    ),
    "wrong dtype": (_broken_npz(x_train=DIGITS.x_train / 255), "images of float64"),
    "pickled labels": (_broken_npz(y_train=np.array([None] * 100)), "unreadable.*allow_pickle"),
    "labels that are no numbers": (_broken_npz(y_train=np.full(100, 0.5)), "labels of float64"),
    "labels beyond the classes": (_broken_npz(y_train=np.full(100, 10)), "must be 0 to 9"),
    "fewer labels": (_broken_npz(y_train=DIGITS.y_train[:99]), r"\(99,\) for 100 images"),
    "no image": (
        _broken_npz(x_test=DIGITS.x_test[:0], y_test=DIGITS.y_test[:0]),
        "holds no image",
    ),
    "truncated idx": (_idx_with(_IMAGES, _idx_bytes(DIGITS.x_train)[:-7]), "truncated: 78393 of"),
    "overlong idx": (_idx_with(_IMAGES, _idx_bytes(DIGITS.x_train) + b"!"), "more bytes than"),
    "not an idx": (_idx_with(_IMAGES, b"\x1f\x8b\x08\x00 zip"), "not an IDX file"),
    "an empty idx": (_idx_with(_IMAGES, b""), "not an IDX file"),
    "an idx that announces too much": (
        _idx_with(_IMAGES, struct.pack(">2xBB3I", 8, 3, 2**32 - 1, 2**32 - 1, 2)),
        "truncated",
    ),
    "a missing idx": (_idx_with(_IMAGES, None), "missing"),
    "truncated gzip": (_cut_gzip, "unreadable"),
}


@pytest.mark.parametrize("fault", BROKEN_MNIST)
def test_a_broken_mnist_file_is_one_line_that_names_it(fault: str, tmp_path: Path) -> None:
    write, expected = BROKEN_MNIST[fault]
    path = write(tmp_path)
    with pytest.raises(DataError, match=expected) as error:
        _load(MNIST, tmp_path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not isinstance(error.value, DataMissing)


def _cifar_with(name: str, content: bytes | None, kind: str = "py") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        _cifar_folder(folder, kind)
        path = folder / f"cifar-10-batches-{kind}" / name
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        return path

    return write


def _pickled(**batch: object) -> bytes:
    return pickle.dumps({key.encode(): value for key, value in batch.items()}, protocol=2)


class _Attack:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("owned"),)  # type: ignore[return-value]


def _cut_tarball(folder: Path) -> Path:
    _cifar_tarball(folder, "py")
    path = folder / "cifar-10-python.tar.gz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


_PIXELS = _rows(COLOURS.x_train[:20])
_LABELS = COLOURS.y_train[:20].tolist()
BROKEN_CIFAR10: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a pickle that runs code": (
        _cifar_with("data_batch_2", pickle.dumps(_Attack(), protocol=2)),
        "has no place in a CIFAR-10 batch",
    ),
    "a truncated pickle": (
        _cifar_with("data_batch_2", _pickled(data=_PIXELS, labels=_LABELS)[:3000]),
        "unreadable",
    ),
    "no pickle": (_cifar_with("data_batch_3", b"hello"), "unreadable"),
    "a pickle without labels": (
        _cifar_with("data_batch_3", _pickled(data=_PIXELS)),
        "no data and",
    ),
    "pixels that are floats": (
        _cifar_with("data_batch_1", _pickled(data=_PIXELS / 2, labels=_LABELS)),
        "must be of uint8",
    ),
    "pixels in another shape": (
        _cifar_with("data_batch_1", _pickled(data=_PIXELS[:, :100], labels=_LABELS)),
        "shape",
    ),
    "labels beyond the classes": (
        _cifar_with("data_batch_1", _pickled(data=_PIXELS, labels=[11] * 20)),
        "must be 0 to 9",
    ),
    "labels that are no numbers": (
        _cifar_with("data_batch_1", _pickled(data=_PIXELS, labels=["cat"] * 20)),
        "not a list of whole numbers",
    ),
    "a missing batch": (_cifar_with("data_batch_4", None), "missing"),
    "a truncated binary": (
        _cifar_with("data_batch_2.bin", b"\0" * 5000, "bin"),
        "truncated: 5000 bytes",
    ),
    "an empty binary": (_cifar_with("data_batch_2.bin", b"", "bin"), "truncated: 0 bytes"),
    "a truncated tarball": (_cut_tarball, "unreadable"),
}


@pytest.mark.parametrize("fault", BROKEN_CIFAR10)
def test_a_broken_cifar10_file_is_one_line_that_names_it(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write, expected = BROKEN_CIFAR10[fault]
    path = write(tmp_path)
    with pytest.raises(DataError, match=expected) as error:
        _load(CIFAR10, tmp_path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("source", "write"),
    [
        (MNIST, lambda d: _npz(d, "mnist.npz", DIGITS)),
        (CIFAR10, lambda d: _cifar_folder(d, "py")),
        (CIFAR10, lambda d: _cifar_tarball(d, "py")),
    ],
    ids=["npz", "pickle", "tarball"],
)
def test_flipped_bytes_never_raise_anything_else(
    source: ImageSource, write: Callable[[Path], object], tmp_path: Path
) -> None:
    write(tmp_path)
    path = next(p for p in sorted(tmp_path.rglob("*")) if p.is_file())
    whole = path.read_bytes()
    rng = random.Random(7)
    refused = 0
    for _ in range(60):
        flipped = bytearray(whole)
        for _ in range(3):
            at = rng.choice(
                [rng.randrange(len(whole)), rng.randrange(300), -rng.randrange(1, 300)]
            )
            flipped[at] = rng.randrange(256)
        path.write_bytes(flipped)
        try:
            load_test_set(source, "real", tmp_path)
        except DataError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 10
