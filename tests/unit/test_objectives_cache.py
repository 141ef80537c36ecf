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
from objectives.errors import DataError
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
        lambda entry: _relabel(entry, fingerprint="0" * 64),
        lambda entry: _relabel(entry, kind="synthetic"),
    ],
    ids=["torn", "missing", "unreadable", "changed", "other fingerprint", "other kind"],
)
def test_a_damaged_entry_is_made_again(data_dir: Path, entries_dir: Path, damage: object) -> None:
    whole, fingerprint = _as_bytes(_read(data_dir)), _read(data_dir).fingerprint
    damage(_entries(entries_dir)[0].parent)  # type: ignore[operator]
    assert _as_bytes(_read(data_dir)) == whole
    assert (_read(data_dir).fingerprint, _read(data_dir).kind) == (fingerprint, "real")


def _relabel(entry: Path, **values: str) -> None:
    about = entry / "about.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), **values}))


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _forge(entry: Path) -> None:
    """Change the arrays, and let the metadata say what belongs to the new ones."""
    array = np.load(entry / "train_y.npy")
    array[:] = array[::-1].copy()
    about = json.loads((entry / "about.json").read_text())
    about["sha256"]["train_y"] = cache._save(entry / "train_y.npy", array)
    del about["seal"]
    (entry / "about.json").write_text(json.dumps({**about, "seal": cache._seal(about)}))


def test_a_forged_entry_has_another_content(data_dir: Path, entries_dir: Path) -> None:
    before, again = _read(data_dir), _read(data_dir)
    assert before.content is not None and before.content == again.content
    whole = _as_bytes(before)
    _forge(_entries(entries_dir)[0].parent)
    forged = _read(data_dir)
    assert _as_bytes(forged) != whole
    assert forged.fingerprint == before.fingerprint
    assert forged.content != before.content


def test_the_content_is_that_of_the_arrays(data_dir: Path, entries_dir: Path) -> None:
    """A cache that is made again has the same content, another split has another one."""
    before = _read(data_dir).content
    assert _read(data_dir, split_seed=1).content != before
    shutil.rmtree(entries_dir)
    assert _read(data_dir).content == before
    shutil.rmtree(entries_dir)
    entries_dir.write_text("a file where the folder should be")
    assert _read(data_dir).content is None


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


def test_a_replaced_file_of_equal_size_and_time_is_noticed(data_dir: Path) -> None:
    before, file = _read(data_dir).fingerprint, data_dir / "mnist.npz"
    status = file.stat()
    _save(data_dir, seed=1)
    assert file.stat().st_size == status.st_size
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert _read(data_dir).fingerprint != before


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
def test_a_cache_that_others_can_write_is_not_used(
    data_dir: Path, entries_dir: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    real = _as_bytes(_read(data_dir))
    for file in _entries(entries_dir)[0].parent.glob("*.npy"):
        file.unlink()
        file.write_bytes(b"planted")
    entries_dir.chmod(mode)
    assert _as_bytes(_read(data_dir)) == real
    assert "other accounts can write" in caplog.text
    assert (_entries(entries_dir)[0].parent / "train_x.npy").read_bytes() == b"planted"


def test_the_cache_is_our_own_accounts(data_dir: Path, entries_dir: Path) -> None:
    _read(data_dir)
    assert entries_dir.stat().st_mode & 0o777 == 0o700


def test_an_archive_that_unpacks_to_too_much_is_refused(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("objectives.data.files.MAX_NPZ_BYTES", 1000)
    monkeypatch.setattr(np, "load", None)
    with pytest.raises(DataError, match=r"mnist\.npz: \d+ bytes when unpacked, too large"):
        _read(data_dir)
