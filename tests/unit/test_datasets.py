"""Data sets: the stand-in, the split, the fingerprint, a user's own arrays, the download."""

from __future__ import annotations

import functools
import hashlib
import http.server
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from objectives import DataError, DataMissing, Dataset, KerasObjective, SettingError, Settings
from objectives.cifar10 import cnn as cifar10_cnn
from objectives.data import synthetic
from objectives.data.dataset import load_dataset, load_test_set
from objectives.data.sources import MNIST, CallableSource
from objectives.data.split import stratified_split
from objectives.mnist import mlp

LABELS = np.repeat(np.arange(10), np.arange(50, 150, 10))


def _stand_in(**settings: object) -> Dataset:
    return mlp.configured(settings, data="synthetic").dataset()


@pytest.mark.parametrize(
    ("draw", "shape", "digest"),
    [
        (
            synthetic.digits,
            (28, 28),
            "8a2fd5dccdfa6f3c828d90ac789d2bf777018c1db2d5c1882d9534285565ed8a",
        ),
        (
            synthetic.shapes,
            (32, 32, 3),
            "3c49377d986a75839cfad72595ffba43618066c0f1f187f286de4f18843c389d",
        ),
    ],
)
def test_the_stand_in_is_the_same_bytes_everywhere(
    draw: object, shape: tuple[int, ...], digest: str
) -> None:
    arrays = draw()  # type: ignore[operator]
    assert arrays.x_train.shape == (10_000, *shape)
    assert arrays.x_test.shape == (2_000, *shape)
    assert arrays.x_train.dtype == np.uint8
    assert np.bincount(arrays.y_train).min() > 900
    content = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    assert hashlib.sha256(content).hexdigest() == digest


def test_the_stand_in_says_that_it_is_one() -> None:
    data = cifar10_cnn.configured({}, data="synthetic").data()
    assert data.keys() == {"name", "kind", "source", "fingerprint", "content", "parts"}
    assert data["parts"] == "8,500 training, 1,500 validation, test sealed (2,000)"
    assert (data["name"], data["kind"]) == ("CIFAR-10", "synthetic")
    assert data["source"] == "synthetic (generated)"


def test_auto_falls_back_to_the_stand_in_and_real_does_not(tmp_path: Path) -> None:
    assert mlp.configured({}, data="auto", data_dir=tmp_path).data()["kind"] == "synthetic"
    with pytest.raises(DataMissing):
        mlp.configured({}, data="real", data_dir=tmp_path).data()


def test_a_broken_file_is_no_reason_to_fall_back(tmp_path: Path) -> None:
    (tmp_path / "mnist.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"mnist\.npz"):
        mlp.configured({}, data="auto", data_dir=tmp_path).data()


@pytest.mark.parametrize("fraction", [0.1, 0.15, 1 / 3])
@pytest.mark.parametrize("train_size", [None, 200])
def test_the_split_keeps_every_class_in_proportion(
    fraction: float, train_size: int | None
) -> None:
    train, validation = stratified_split(
        LABELS, validation_fraction=fraction, train_size=train_size, seed=0
    )
    assert not set(train) & set(validation)
    assert len(validation) == round(fraction * len(LABELS))
    assert train_size is None or len(train) == train_size
    shares = np.bincount(LABELS) / len(LABELS)
    for part in (train, validation):
        assert np.abs(np.bincount(LABELS[part]) - shares * len(part)).max() <= 2


def test_a_smaller_training_part_is_a_subset_and_leaves_the_validation_part_alone() -> None:
    whole, large, small = (
        stratified_split(LABELS, validation_fraction=0.2, train_size=size, seed=0)
        for size in (None, 300, 100)
    )
    assert set(small[0]) < set(large[0]) < set(whole[0])
    assert np.array_equal(small[1], whole[1])


def test_the_split_follows_its_seed_alone() -> None:
    one, again, other = (
        stratified_split(LABELS, validation_fraction=0.2, train_size=None, seed=seed)
        for seed in (1, 1, 2)
    )
    assert np.array_equal(one[0], again[0])
    assert not np.array_equal(one[1], other[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_size": 8501}, "train_size=8501: must be at most 8500"),
        ({"validation_fraction": 1e-5}, "leaves 0 of 10000"),
        ({"validation_fraction": 0.99999}, "leaves 10000 of 10000"),
    ],
)
def test_more_than_there_is_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        _stand_in(**settings)


def test_the_fingerprint_changes_with_the_split_and_the_data_and_nothing_else() -> None:
    plain = _stand_in().fingerprint
    assert _stand_in(epochs=1, batch_sizes=[8], patience=None).fingerprint == plain
    varied = [_stand_in(**{name: value}).fingerprint for name, value in _OTHER_SPLITS]
    varied.append(cifar10_cnn.configured({}, data="synthetic").dataset().fingerprint)
    assert len({plain, *varied}) == 1 + len(varied)


_OTHER_SPLITS = [("split_seed", 1), ("train_size", 1000), ("validation_fraction", 0.2)]


def test_one_pixel_of_the_test_set_changes_the_fingerprint() -> None:
    def fingerprint(pixel: int) -> str:
        x, y = np.zeros((20, 3)), np.arange(20) % 2
        x_test = np.full((4, 3), pixel)
        source = CallableSource(lambda: ((x, y), (x_test, y[:4])))
        return load_dataset(source, "real", None, Settings()).fingerprint

    assert fingerprint(0) != fingerprint(1)


def test_no_trial_sees_or_changes_the_test_set_or_the_next_trials_data() -> None:
    dataset = _stand_in()
    test = load_test_set(MNIST, "synthetic", None)
    seen = {image.tobytes() for part in (dataset.train, dataset.validation) for image in part.x}
    assert not [image for image in test.x if image.tobytes() in seen]
    with pytest.raises(ValueError, match="read-only"):
        dataset.train.x[0] = 0


def test_the_data_are_loaded_once_for_all_trials() -> None:
    calls = []

    def load() -> tuple[np.ndarray, np.ndarray]:
        calls.append(1)
        return np.zeros((20, 3)), np.arange(20) % 2

    objective = KerasObjective("mine", load, build=lambda trial, data: None)
    assert objective.dataset() is objective.configured({"epochs": 1}).dataset()
    assert len(calls) == 1


def test_a_function_with_a_data_dir_is_given_it(tmp_path: Path) -> None:
    def load(data_dir: Path | None) -> tuple[np.ndarray, np.ndarray]:
        assert data_dir == tmp_path
        return np.zeros((20, 3)), np.linspace(0, 1, 20)

    objective = KerasObjective("mine", load, build=lambda trial, data: None)
    dataset = objective.configured({}, data_dir=tmp_path).dataset()
    assert (dataset.train.size, dataset.validation.size) == (17, 3)
    with pytest.raises(ValueError, match="no labels"):
        _ = dataset.n_classes


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (3, "must return"),
        ((np.zeros((5, 2)), np.zeros(4)), r"\(5, 2\) inputs for \(4,\) targets"),
        ((np.array([None] * 5), np.zeros(5)), "arrays of numbers"),
        ((np.zeros((0, 2)), np.zeros(0)), r"\(0, 2\) inputs"),
    ],
)
def test_what_a_function_may_not_return(returned: object, message: str) -> None:
    source = CallableSource(lambda: returned)
    with pytest.raises(DataError, match=message):
        load_dataset(source, "real", None, Settings())


def test_own_data_have_no_stand_in_and_may_have_no_test_set() -> None:
    source = CallableSource(lambda: (np.zeros((20, 3)), np.arange(20) % 2))
    with pytest.raises(SettingError, match="no generated stand-in"):
        load_dataset(source, "synthetic", None, Settings())
    with pytest.raises(DataError, match="no test set"):
        load_test_set(source, "real", None)


@pytest.fixture
def published(tmp_path: Path) -> Iterator[str]:
    """A web server's address for the folder `published`."""
    folder = tmp_path / "published"
    folder.mkdir()
    handler = functools.partial(_SilentHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _SilentHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        return


def _publish(tmp_path: Path) -> str:
    path = tmp_path / "published" / "mnist.npz"
    np.savez(path, **synthetic.digits()._asdict())
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_download_is_checked_kept_and_not_repeated(
    published: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    source = replace(MNIST, url=f"{published}/mnist.npz", sha256=_publish(tmp_path))
    cached = tmp_path / "keras" / "datasets" / "mnist.npz"
    assert source.load("real", None).source == str(cached)
    (tmp_path / "published" / "mnist.npz").unlink()
    assert source.load("real", None).source == str(cached)
    assert list(cached.parent.iterdir()) == [cached]


def test_a_download_with_another_checksum_leaves_nothing_behind(
    published: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    digest = _publish(tmp_path)
    source = replace(MNIST, url=f"{published}/mnist.npz", sha256="0" * 64)
    with pytest.raises(DataError, match=f"its SHA-256 is {digest}, must be 0000"):
        source.load("auto", None)
    assert list((tmp_path / "keras" / "datasets").iterdir()) == []


@pytest.mark.parametrize("path", ["absent.npz", ""])
def test_what_cannot_be_downloaded_names_the_remedies(
    path: str, published: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        refused = f"http://127.0.0.1:{closed.getsockname()[1]}/"
    source = replace(MNIST, url=f"{published}/{path}" if path else refused)
    with pytest.raises(DataMissing, match=r"--data-dir.*--data synthetic") as error:
        source.load("real", None)
    assert "\n" not in str(error.value)
    assert source.load("auto", None).kind == "synthetic"


def _prices(dtype: str = "int64") -> np.ndarray:
    return (20_000 + np.arange(1000) * 137).astype(dtype)


@pytest.mark.parametrize("dtype", ["int64", "float64"])
def test_whole_numbers_that_seldom_repeat_are_no_classes(dtype: str) -> None:
    prices = _prices(dtype)
    train, validation = stratified_split(prices, validation_fraction=0.15, train_size=500, seed=0)
    for part in (train, validation):
        assert prices[part].mean() == pytest.approx(prices.mean(), rel=0.1)


def test_ties_between_classes_are_decided_by_the_seed() -> None:
    labels = np.repeat(np.arange(200), 4)
    chosen = [
        stratified_split(labels, validation_fraction=0.125, train_size=None, seed=seed)[1]
        for seed in (0, 1)
    ]
    assert all(80 < labels[part].mean() < 120 for part in chosen)
    assert set(labels[chosen[0]]) != set(labels[chosen[1]])


@pytest.mark.parametrize("change", [np.float32, np.uint16, lambda y: y.reshape(-1, 1)])
def test_labels_are_stratified_in_whatever_form_they_come(change: Any) -> None:
    def parts(y: np.ndarray) -> list[list[int]]:
        both = stratified_split(y, validation_fraction=0.2, train_size=300, seed=3)
        return [part.tolist() for part in both]

    assert parts(change(LABELS)) == parts(LABELS)
    source = CallableSource(lambda: (np.zeros((len(LABELS), 2)), change(LABELS)))
    assert load_dataset(source, "real", None, Settings()).n_classes == 10


@pytest.mark.parametrize(
    ("settings", "fingerprint"),
    [
        ({}, "310d146a45ad9fb90dcd3703c0221c61657f01e1b205a23a883fdfddb54260c0"),
        ({"train_size": 603}, "c31a864d7b85af649f9baf251f6d98ce06296f93c898afa4bbbf678c7b0ed1eb"),
    ],
)
def test_the_splits_of_built_in_data_sets_stay_the_same(
    settings: dict[str, object], fingerprint: str
) -> None:
    assert _stand_in(**settings).fingerprint == fingerprint


def test_integers_beyond_int32_keep_their_values() -> None:
    y = np.arange(40) + 2**40
    source = CallableSource(lambda: (np.zeros((40, 2)), y))
    dataset = load_dataset(source, "real", None, Settings())
    assert set(dataset.train.y) | set(dataset.validation.y) == set(y)


@pytest.mark.parametrize(
    "x", [{"a": np.zeros((9, 2)), "b": np.zeros(9)}, [np.zeros((9, 2)), np.zeros((9, 3))]]
)
def test_several_inputs_are_refused_in_one_line(x: object) -> None:
    source = CallableSource(lambda: (x, np.zeros(9)))
    with pytest.raises(DataError, match="of arrays as inputs or targets; only one array"):
        load_dataset(source, "real", None, Settings())
