"""Checkpoints: the newest undamaged one is loaded; stores that fail are reported."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from service.artifacts.checkpoints import TrialCheckpoints
from service.artifacts.store import Store
from service.errors import ConfigurationError


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    folder = tmp_path / 'a folder\'s "checkpoints"'
    return Store(str(folder) if request.param == "folder" else f"memory://{tmp_path}")


def saved(store: Store, *states: bytes) -> TrialCheckpoints:
    checkpoints = TrialCheckpoints(store, "study/3")
    for epoch, state in enumerate(states):
        checkpoints.save(epoch, state)
    checkpoints.close()
    return TrialCheckpoints(store, "study/3")


def test_the_newest_is_loaded_and_two_are_kept(store: Store) -> None:
    checkpoints = saved(store, b"a", b"b\nb", b"c" * 100_000)
    found = checkpoints.load()
    assert found is not None and (found.epoch, found.state) == (2, b"c" * 100_000)
    assert store.names("study/3") == [
        f"{0:012d}-00000001.ckpt",
        f"{0:012d}-00000002.ckpt",
        f"{0:012d}.owner",
    ]


def test_without_a_checkpoint_load_returns_none(store: Store) -> None:
    assert TrialCheckpoints(store, "study/4").load() is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:5],
        lambda data: b"",
        lambda data: data[:-1] + b"!",
        lambda data: data + b"!",
        lambda data: b"not json\nstate",
    ],
)
def test_a_damaged_checkpoint_is_logged_and_the_one_before_is_loaded(
    store: Store, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = saved(store, b"first", b"second")
    name = f"study/3/{0:012d}-00000001.ckpt"
    store.write(name, damage(store.read(name)))  # type: ignore[operator]
    with caplog.at_level(logging.WARNING, "studyhall"):
        found = checkpoints.load()
    assert found is not None and (found.epoch, found.state) == (0, b"first")
    assert "00000001.ckpt cannot be used" in caplog.text


def test_if_all_are_damaged_load_returns_none(store: Store) -> None:
    checkpoints = saved(store, b"first", b"second")
    for name in store.names("study/3"):
        store.write(f"study/3/{name}", b"?")
    assert checkpoints.load() is None


def test_clear_deletes_all_checkpoints(store: Store) -> None:
    checkpoints = saved(store, b"first", b"second")
    checkpoints.clear()
    checkpoints.clear()
    assert store.names("study/3") == []


def test_a_half_written_file_is_not_loaded(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    checkpoints = saved(store, b"first")
    (tmp_path / "study/3/000000000000-00000001.ckpt.77-1.tmp").write_bytes(b"half")
    found = checkpoints.load()
    assert found is not None and found.state == b"first"


def test_a_store_that_cannot_be_written_is_logged_and_training_continues(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    checkpoints = TrialCheckpoints(Store(str(blocker / "below")), "study/1")
    with caplog.at_level(logging.WARNING, "studyhall"):
        checkpoints.save(0, b"state")
        checkpoints.clear()
        checkpoints.close()
    assert "the checkpoint cannot be written" in caplog.text
    assert str(blocker) in caplog.text


def test_a_store_that_is_a_file_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="it is a file"):
        Store(str(tmp_path / "file"))


def test_an_unknown_protocol_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="gopher"):
        Store("gopher://hole")


def attempt(store: Store, token: int, *epochs: int) -> TrialCheckpoints:
    """An attempt that has saved these epochs; its states say who made them."""
    checkpoints = TrialCheckpoints(store, "study/3", token)
    for epoch in epochs:
        checkpoints.save(epoch, f"{token}: {epoch}".encode())
    checkpoints.wait()
    return checkpoints


def test_a_stale_workers_file_neither_evicts_the_owners_nor_is_loaded(store: Store) -> None:
    stale = attempt(store, 5, 0, 1)
    owner = attempt(store, 7)
    found = owner.load()
    assert found is not None and found.state == b"5: 1"
    owner.save(2, b"7: 2")
    owner.wait()
    for epoch in range(2, 9):  # the stale worker wakes up
        stale.save(epoch, b"stale")
    stale.wait()
    found = attempt(store, 8).load()
    assert found is not None and (found.epoch, found.state) == (2, b"7: 2")


def test_what_a_stale_worker_writes_before_the_owners_first_file_is_not_loaded(
    store: Store,
) -> None:
    stale = attempt(store, 5, 0, 1)
    owner = attempt(store, 7)
    assert owner.load() is not None
    stale.save(2, b"stale")
    stale.wait()
    found = attempt(store, 8).load()
    assert found is not None and found.state == b"5: 1"
    stale.save(3, b"stale")
    stale.wait()
    found = attempt(store, 9).load()
    assert found is not None and found.state == b"5: 1"


def test_a_trial_begun_again_stays_at_its_beginning(store: Store) -> None:
    stale, owner = attempt(store, 5), attempt(store, 7)
    assert owner.load() is None
    stale.save(0, b"stale")
    stale.wait()
    assert attempt(store, 8).load() is None


def test_an_owner_removes_what_older_tokens_left(store: Store) -> None:
    stale, owner = attempt(store, 5, 0, 1), attempt(store, 7)
    owner.load()
    for epoch in (2, 3):
        stale.save(epoch, b"stale")
        stale.wait()
        owner.save(epoch, b"7")
        owner.wait()
    kept = [f"{7:012d}-00000002.ckpt", f"{7:012d}-00000003.ckpt", f"{7:012d}.owner"]
    assert store.names("study/3") == kept


def test_checkpoints_of_the_version_before_are_loaded(store: Store) -> None:
    state = b"old"
    header = {"epoch": 4, "size": 3, "sha256": hashlib.sha256(state).hexdigest()}
    store.write("study/3/00000004.ckpt", json.dumps(header).encode() + b"\n" + state)
    found = attempt(store, 9).load()
    assert found is not None and (found.epoch, found.state) == (4, state)


def test_a_file_under_another_token_is_refused(store: Store) -> None:
    attempt(store, 5, 0)
    data = store.read(f"study/3/{5:012d}-00000000.ckpt")
    store.write(f"study/3/{6:012d}-00000000.ckpt", data)
    found = attempt(store, 7).load()
    assert found is not None and found.state == b"5: 0"


@pytest.mark.parametrize(
    "name",
    ["../victim", "a/../../victim", "/victim", "", "a//b", ".", "a\0b", "a\nb", "a\\b", "*"],
)
def test_no_name_leads_outside_the_store(store: Store, tmp_path: Path, name: str) -> None:
    (tmp_path / "victim").write_text("precious")
    for deed in (store.read, store.remove, store.names, lambda name: store.write(name, b"x")):
        with pytest.raises(ConfigurationError, match="outside the store"):
            deed(name)
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_link_in_the_store_leads_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "victim" / "3").mkdir(parents=True)
    (tmp_path / "store" / "checkpoints").mkdir(parents=True)
    (tmp_path / "store" / "checkpoints" / "uid").symlink_to(tmp_path / "victim")
    store = Store(str(tmp_path / "store"))
    for deed in (store.remove, lambda name: store.write(name, b"x")):
        with pytest.raises(ConfigurationError, match="outside the store"):
            deed("checkpoints/uid/3")
    assert (tmp_path / "victim" / "3").is_dir()


def test_only_our_own_account_can_read_a_checkpoint(tmp_path: Path) -> None:
    saved(Store(str(tmp_path / "store")), b"state")
    (file,) = (tmp_path / "store" / "study" / "3").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


def named(epoch: int, token: int = 0) -> str:
    return f"{token:012d}-{epoch:08d}.ckpt"


def sparse(path: Path) -> None:
    """A terabyte that takes no place, with the first line of a checkpoint of this size."""
    fields = {"token": 0, "epoch": 1, "size": 2**40, "sha256": "0" * 64}
    line = json.dumps(fields).encode() + b"\n"
    path.write_bytes(line)
    os.truncate(path, len(line) + 2**40)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("plant", "reason"),
    [
        (os.mkfifo, "it is no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "it is no regular file"),
        (lambda path: path.symlink_to(named(0)), "it is no regular file"),
        (Path.mkdir, "it is no regular file"),
        (sparse, "are free in memory here"),
        (lambda path: path.write_bytes(b"x" * 10_000), "first line cannot be read"),
        (lambda path: path.write_bytes(b"[1]\nstate"), "first line cannot be read"),
        (lambda path: path.write_bytes(b'{"token": 0, "epoch": 7, "size": 1}\nx'), "epoch"),
    ],
)
def test_only_regular_files_of_the_right_size_are_read(
    tmp_path: Path,
    plant: Callable[[Path], None],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    checkpoints = saved(Store(str(tmp_path)), b"first")
    plant(tmp_path / "study" / "3" / named(1))
    with caplog.at_level(logging.WARNING, "studyhall"):
        found = checkpoints.load()
    assert found is not None and (found.epoch, found.state) == (0, b"first")
    (warning,) = caplog.messages
    assert f"{named(1)} cannot be used: " in warning and reason in warning
    checkpoints.save(2, b"next")
    checkpoints.save(3, b"next")
    checkpoints.close()
    assert not (tmp_path / "study" / "3" / named(1)).exists(), "it is removed like an old one"
    assert len(caplog.messages) == 1


@pytest.mark.timeout(20)
@pytest.mark.parametrize("plant", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_an_owner_file_that_is_no_file_does_not_hold_a_worker_up(
    tmp_path: Path, plant: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = saved(Store(str(tmp_path)), b"first")
    plant(tmp_path / "study" / "3" / f"{9:012d}.owner")
    with caplog.at_level(logging.WARNING, "studyhall"):
        assert checkpoints.load() is None
    assert "it is no regular file" in caplog.text


@pytest.mark.timeout(20)
def test_a_named_pipe_in_the_place_of_a_new_file_does_not_hold_a_worker_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = saved(Store(str(tmp_path)), b"first")
    thread = checkpoints._writer.submit(threading.get_ident).result()
    os.mkfifo(tmp_path / "study" / "3" / f"{named(1)}.{os.getpid()}-{thread}.tmp")
    with caplog.at_level(logging.WARNING, "studyhall"):
        checkpoints.save(1, b"second")
        checkpoints.close()
    assert "the checkpoint cannot be written" in caplog.text


def test_an_epoch_that_no_column_holds_is_refused(store: Store) -> None:
    checkpoints = saved(store, b"first")
    epoch = 2**31 - 1
    fields = {"token": 0, "epoch": epoch, "size": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    store.write(f"study/3/{named(epoch)}", json.dumps(fields).encode() + b"\nx")
    found = checkpoints.load()
    assert found is not None and found.epoch == 0
