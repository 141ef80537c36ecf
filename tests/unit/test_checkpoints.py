"""Checkpoints: the newest undamaged one is loaded; stores that fail are reported."""

from __future__ import annotations

import logging
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
    assert store.names("study/3") == ["00000001.ckpt", "00000002.ckpt"]


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
    name = "study/3/00000001.ckpt"
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
    (tmp_path / "study/3/00000001.ckpt.77-1.tmp").write_bytes(b"half")
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
