"""The cache of split data sets: made once, mapped by every process, checked when opened."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from objectives import Dataset
from objectives.data import cache
from objectives.data.dataset import _load, load_dataset
from objectives.data.sources import MNIST
from objectives.mnist import mlp
from objectives.settings import Settings
from objectives.training.compiled.feed import to_tensor

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def entries_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the test's own cache."""
    monkeypatch.setenv("STUDYHALL_CACHE", str(tmp_path / "cache"))
    _load.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A folder with a small mnist.npz."""
    folder = tmp_path / "data"
    folder.mkdir()
    _save(folder, seed=0)
    return folder


def _save(folder: Path, seed: int) -> None:
    rng = np.random.RandomState(seed)
    x, y = rng.randint(0, 256, (400, 28, 28), dtype=np.uint8), np.arange(400) % 10
    np.savez(folder / "mnist.npz", x_train=x, y_train=y, x_test=x[:50], y_test=y[:50])


def _read(data_dir: Path, **settings: object) -> Dataset:
    _load.cache_clear()
    return load_dataset(MNIST, "real", data_dir, Settings().changed(settings))


def _entries(entries_dir: Path) -> list[Path]:
    return sorted(entries_dir.glob("*/about.json"))


def _as_bytes(dataset: Dataset) -> bytes:
    return b"".join(a.tobytes() for part in (dataset.train, dataset.validation) for a in part)


def test_a_second_process_opens_the_entry_of_the_first(data_dir: Path, entries_dir: Path) -> None:
    first = _read(data_dir)
    made = _entries(entries_dir)[0].stat().st_mtime_ns
    second = _read(data_dir)
    assert _as_bytes(second) == _as_bytes(first)
    assert (second.fingerprint, second.source, second.kind) == (
        first.fingerprint,
        first.source,
        first.kind,
    )
    assert [path.stat().st_mtime_ns for path in _entries(entries_dir)] == [made]


def test_it_is_the_data_set_that_would_be_read_without_a_cache(
    data_dir: Path, entries_dir: Path
) -> None:
    cached = _read(data_dir)
    shutil.rmtree(entries_dir)
    entries_dir.write_text("a file where the folder should be")
    assert _as_bytes(_read(data_dir)) == _as_bytes(cached)
    assert _read(data_dir).fingerprint == cached.fingerprint


def test_processes_that_start_together_make_one_entry(data_dir: Path, entries_dir: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from objectives.data import cache\n"
        "from objectives.data.dataset import load_dataset\n"
        "from objectives.settings import Settings; from objectives.data.sources import MNIST\n"
        "write = cache._write\n"
        "cache._write = lambda *args: (print('made'), write(*args))\n"
        "d = load_dataset(MNIST, 'real', Path(sys.argv[1]), Settings()); print(d.fingerprint)"
    )
    command = [sys.executable, "-c", program, str(data_dir)]
    started = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ)
        for _ in range(4)
    ]
    lines = [line for process in started for line in process.communicate()[0].split()]
    assert lines.count("made") == 1
    assert len(set(lines) - {"made"}) == 1 and len(lines) == 5


def test_the_arrays_are_mapped_and_the_device_reads_the_map(data_dir: Path) -> None:
    train = _read(data_dir).train
    _read(data_dir)
    base: object = train.x
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    assert not train.x.flags.writeable
    assert train.x.ctypes.data % 64 == 0
    assert to_tensor(train.x).__dlpack__() is not None
    assert np.array_equal(to_tensor(train.x).numpy(), train.x)


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: (entry / "train_x.npy").write_bytes(b"torn"),
        lambda entry: (entry / "train_y.npy").unlink(),
        lambda entry: (entry / "about.json").write_text("{"),
        lambda entry: _flip(entry / "validation_x.npy"),
    ],
    ids=["torn", "missing", "unreadable", "changed"],
)
def test_a_damaged_entry_is_made_again(data_dir: Path, entries_dir: Path, damage: object) -> None:
    whole = _as_bytes(_read(data_dir))
    damage(_entries(entries_dir)[0].parent)  # type: ignore[operator]
    assert _as_bytes(_read(data_dir)) == whole
    assert _as_bytes(_read(data_dir)) == whole


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_other_files_and_other_splits_are_other_entries(data_dir: Path, entries_dir: Path) -> None:
    before = _read(data_dir).fingerprint
    assert _read(data_dir, split_seed=1).fingerprint != before
    assert _read(data_dir, train_size=100).train.size == 100
    _save(data_dir, seed=1)
    assert _read(data_dir).fingerprint != before
    assert len(_entries(entries_dir)) == 4


def test_the_entry_opened_longest_ago_is_removed(
    data_dir: Path, entries_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_MAX_ENTRIES", 2)
    used = _read(data_dir, split_seed=0).fingerprint
    _read(data_dir, split_seed=1)
    for age, entry in enumerate(_entries(entries_dir)):
        about = json.loads(entry.read_text())
        old = 1e9 + age if about["fingerprint"] == used else 1e9 - age
        os.utime(entry.parent, (old, old))
    _read(data_dir, split_seed=2)
    left = {json.loads(entry.read_text())["fingerprint"] for entry in _entries(entries_dir)}
    assert used in left and len(left) == 2


def test_the_stand_in_is_drawn_once(entries_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = mlp.configured({}, data="synthetic").data()
    _load.cache_clear()
    monkeypatch.setattr("objectives.data.sources.ImageSource.load", None)
    assert mlp.configured({}, data="synthetic").data() == first


def test_a_users_function_is_called_by_every_process(entries_dir: Path) -> None:
    from objectives.data.sources import CallableSource

    source = CallableSource(lambda: (np.zeros((40, 2)), np.arange(40) % 2))
    load_dataset(source, "real", None, Settings())
    assert not entries_dir.exists()
