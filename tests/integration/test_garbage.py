"""Garbage: what `gc` removes, and above all what it does not."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy
from databases import temporary_database
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from objectives.data import cache
from service import Budget, Hall, Settings, Spec, Study, doctor
from service.artifacts import data_cache
from service.artifacts.store import Store
from service.storage import leases
from service.studies.sweep import Sweep

DAY = 86_400.0


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STUDYHALL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def save(hall: Hall, name: str, days_ago: float = 0.0) -> None:
    """Write a file into the store, with a time in the past."""
    store = Store(hall.settings.artifact_store)
    store.write(name, b"12345")
    moment = time.time() - days_ago * DAY
    os.utime(Path(hall.settings.artifact_store, name), (moment, moment))


def files(hall: Hall) -> list[str]:
    return [file.name for file in Store(hall.settings.artifact_store).files()]


def sweep(hall: Hall, **options: object) -> Sweep:
    """Find garbage and remove it."""
    found = hall.find_garbage(**options)  # type: ignore[arg-type]
    assert hall.remove_garbage(found) == []
    return found


def begin(hall: Hall, study: Study, seconds: float = 60.0) -> int:
    """Begin a trial; it is interrupted when the lease ends."""
    lease = leases.claim(hall.engine, study.study_id, "w", seconds)
    assert lease is not None
    return lease.number


def test_what_unfinished_trials_may_need_is_never_removed(hall: Hall, study: Study) -> None:
    study.optuna.enqueue_trial({"x": 0.5})
    begin(hall, study)
    begin(hall, study)
    with hall.engine.begin() as connection:
        connection.execute(
            sqlalchemy.text("UPDATE service.leases SET expires_at = '-infinity' WHERE attempt = 1")
        )
    assert study.progress().interrupted == 2
    study.optuna.enqueue_trial({"x": 0.5})
    study.optuna.ask()  # it takes the trial that waits: RUNNING without a lease
    study.optuna.enqueue_trial({"x": 0.5})
    names = [f"{study.checkpoints(number)}/000000000001-00000000.ckpt" for number in range(4)]
    for name in names:
        save(hall, name, days_ago=1000)
    save(hall, f"checkpoints/{study.uid}/of-a-later-version/state", days_ago=1000)
    assert len(sweep(hall, unclaimed=True, older_than=1.0).garbage) == 0
    assert files(hall)[:4] == names


def test_checkpoints_of_ended_trials_are_garbage_after_a_day(hall: Hall, study: Study) -> None:
    for number, state in enumerate([TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED]):
        begin(hall, study)
        study.optuna.tell(number, 0.5 if state == TrialState.COMPLETE else None, state=state)
        save(hall, f"{study.checkpoints(number)}/a.ckpt", days_ago=0.9 if number == 1 else 1.1)
    save(hall, f"{study.checkpoints(7)}/a.ckpt", days_ago=2)  # of a trial without a row
    found = sweep(hall)
    assert [each.reason for each in found.garbage] == [
        f"trial {number} of study plain has ended" for number in (0, 2, 7)
    ]
    assert files(hall) == [f"{study.checkpoints(1)}/a.ckpt"]
    assert len(found.kept) == 1 and len(sweep(hall, older_than=60.0).garbage) == 1


def test_one_young_file_keeps_the_folder(hall: Hall, study: Study) -> None:
    begin(hall, study)
    study.optuna.tell(0, 0.5)
    save(hall, f"{study.checkpoints(0)}/a.ckpt", days_ago=9)
    save(hall, f"{study.checkpoints(0)}/b.ckpt")
    assert len(sweep(hall).garbage) == 0 and len(files(hall)) == 2


@pytest.fixture
def other_hall(hall: Hall, server_url: str, template: str) -> Iterator[Hall]:
    """Another database with the same artifact store."""
    with temporary_database(server_url, template) as url:
        yield Hall(Settings(database_url=url, home=hall.settings.home, lease_seconds=3.0))


def test_another_databases_files_are_removed_only_on_request(
    hall: Hall, study: Study, other_hall: Hall
) -> None:
    theirs = other_hall.create("theirs", Spec("stubs:quick"), Budget(3))
    begin(other_hall, theirs)
    save(hall, f"{theirs.checkpoints(0)}/a.ckpt", days_ago=29)
    save(hall, "models/0123-4567", days_ago=400)
    found = sweep(hall, older_than=60.0)
    assert len(found.garbage) == 0
    assert {each.name for each in found.kept} == {f"checkpoints/{theirs.uid}", "models/0123-4567"}
    assert [each.name for each in sweep(hall, unclaimed=True).garbage] == ["models/0123-4567"]
    assert len(sweep(other_hall, unclaimed=True, older_than=1.0).garbage) == 0
    assert files(hall) == [f"{theirs.checkpoints(0)}/a.ckpt"]


def test_what_a_deletion_has_left_is_garbage_at_once(
    hall: Hall, study: Study, other_hall: Hall
) -> None:
    uid = study.uid
    study.delete()
    save(hall, f"checkpoints/{uid}/0/a.ckpt")  # a worker that had not noticed it
    assert len(sweep(other_hall).garbage) == 0, "the other database does not know whose it is"
    (found,) = sweep(hall).garbage
    assert found.reason.startswith("study plain was deleted on 20") and files(hall) == []


def test_rows_that_plain_optunas_deletion_leaves_are_removed(hall: Hall, study: Study) -> None:
    begin(hall, study)
    save(hall, f"{study.checkpoints(0)}/a.ckpt")
    stock = RDBStorage(hall.url, skip_table_creation=True)
    stock.delete_study(study.study_id)
    stock.engine.dispose()
    problems = [
        f"{row.about}: {row.problem} -> {row.cure}" for row in doctor.examine(hall.settings)
    ]
    assert any("1 study that plain Optuna has deleted" in line for line in problems), problems
    found = sweep(hall)
    assert found.rows == [study.study_id] and files(hall) == []
    with hall.engine.connect() as connection:
        for table in ("studies", "leases", "attempts", "digests"):
            count = connection.execute(sqlalchemy.text(f"SELECT count(*) FROM service.{table}"))
            assert count.scalar_one() == 0, table


def test_parts_of_files_of_killed_writers(hall: Hall, study: Study) -> None:
    save(hall, "models/abc.12-34.tmp", days_ago=2)
    save(hall, "models/def.12-34.tmp")
    assert [each.name for each in sweep(hall).garbage] == ["models/abc.12-34.tmp"]
    assert files(hall) == ["models/def.12-34.tmp"]


def test_links_in_the_store_are_left_alone(hall: Hall, study: Study, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    uid = study.uid
    study.delete()
    save(hall, f"checkpoints/{uid}/0/a.ckpt")
    Path(hall.settings.artifact_store, "checkpoints", uid, "1").symlink_to(outside)
    Path(hall.settings.artifact_store, "checkpoints", "linked").symlink_to(outside)
    sweep(hall, unclaimed=True, older_than=0.0)
    assert (outside / "precious").exists() and files(hall) == []


def test_the_doctor_names_garbage_and_the_cure(hall: Hall, study: Study) -> None:
    uid = study.uid
    study.delete()
    assert list(doctor.examine(hall.settings)) == []
    save(hall, f"checkpoints/{uid}/0/a.ckpt")
    save(hall, "checkpoints/unknown/0/a.ckpt", days_ago=99)
    certain, unclaimed = doctor.examine(hall.settings)
    assert certain.problem == f"no study needs 1 folder (5 B), such as checkpoints/{uid}"
    assert certain.cure == "studyhall gc" and certain.wrong
    assert "no study of this database has 1 folder (5 B)" in unclaimed.problem
    assert not unclaimed.wrong and "--unclaimed" in unclaimed.cure


def entry(folder: Path, name: str, days_ago: float) -> Path:
    """An entry of the data cache that was last opened so long ago."""
    path = folder / name
    path.mkdir(parents=True)
    (path / "x.npy").write_bytes(b"123")
    moment = time.time() - days_ago * DAY
    os.utime(path, (moment, moment))
    return path


def test_entries_of_the_data_cache_that_nobody_opens_are_stale(
    hall: Hall, empty_cache: Path
) -> None:
    assert data_cache.folder() == cache.cache_folder() == empty_cache
    old = entry(empty_cache, "a" * 32, 31)
    young = entry(empty_cache, "b" * 32, 29)
    killed = entry(empty_cache, f".{'c' * 32}.x1", 2)
    being_made = entry(empty_cache, f".{'d' * 32}.x1", 0.1)
    theirs = entry(empty_cache, "precious", 999)
    found = sweep(hall)
    assert {entry.path for entry in found.entries} == {old, killed} and found.size == 6
    assert not old.exists() and not killed.exists()
    assert young.exists() and being_made.exists() and theirs.exists()


def test_an_entry_that_a_process_opens_stays(hall: Hall, empty_cache: Path) -> None:
    old = entry(empty_cache, "a" * 32, 31)
    with open(empty_cache / f"{'a' * 32}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        refused = hall.remove_garbage(hall.find_garbage())
    assert refused == [f"{old}: a process opens it"] and old.exists()


def test_a_real_entry_of_the_cache_is_known(hall: Hall, empty_cache: Path) -> None:
    made = cache.load_or_make({"a": 1}, lambda: cache.Entry({}, {"fingerprint": "f"}))
    assert made.metadata["fingerprint"] == "f"
    (known,) = data_cache.entries(empty_cache)
    assert known.finished and known.size > 0 and hall.usage().cache_bytes == known.size
