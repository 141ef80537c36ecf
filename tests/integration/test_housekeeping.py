"""Delete, rename, copy and measure studies."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from service import Budget, ConfigurationError, Hall, Settings, Spec, Study, UnknownStudy
from service.artifacts.store import Store
from service.database.models import Base
from service.errors import WorkFailed
from service.storage import leases
from service.storage.storage import StudyStorage
from service.studies import housekeeping, usage
from service.studies.permission import Permission
from service.studies.transfer import _content
from service.workers import presence
from service.workers.devices import Device
from service.workers.pool import Pool
from service.workers.presence import WorkerProcess
from service.workers.worker import Worker

TESTS = Path(__file__).parents[1]


def join(hall: Hall, study: Study, worker: str = "w1") -> None:
    presence.join(hall.engine, study.study_id, WorkerProcess(worker, "far", 7, "cpu"))


def count_rows(hall: Hall) -> dict[str, int]:
    """The rows of every table that a study has rows in."""
    with hall.engine.connect() as connection:
        tables = connection.execute(
            sqlalchemy.text(
                """SELECT schemaname || '.' || tablename FROM pg_tables
                    WHERE schemaname IN ('public', 'service') AND tablename NOT IN
                          ('alembic_version', 'versions', 'version_info', 'deletions')"""
            )
        ).scalars()
        return {
            table: connection.execute(
                sqlalchemy.text(f"SELECT count(*) FROM {table}")
            ).scalar_one()
            for table in tables
        }


def work(hall: Hall, study: Study, trials: int = 3) -> None:
    """Run trials with leases, checkpoints and attributes; the last one is left running."""
    storage = StudyStorage(hall.engine)
    for number in range(trials):
        lease = leases.claim(hall.engine, study.study_id, "w", 60.0)
        assert lease is not None
        storage.hold(lease)
        loaded = optuna.load_study(study_name=study.name, storage=storage)
        trial = optuna.trial.Trial(loaded, lease.trial_id)
        trial.suggest_float("x", 0, 1)
        trial.set_user_attr("k", number)
        trial.report(0.5, 0)
        checkpoint = f"{study.checkpoints(number)}/000000000001-00000000.ckpt"
        Store(hall.settings.artifact_store).write(checkpoint, b"c" * 100)
        if number < trials - 1:
            storage.finish(lease, TrialState.COMPLETE, [0.5])
    study.optuna.set_user_attr("of", "the study")


def test_deletion_leaves_no_row_and_no_file(hall: Hall, study: Study) -> None:
    other = hall.create("other", Spec("stubs:quick"), Budget(9))
    work(hall, other)
    before = count_rows(hall)
    work(hall, study)
    join(hall, study)
    presence.leave(hall.engine, "w1")
    study.delete()
    hall_files = [file.name for file in Store(hall.settings.artifact_store).files()]
    assert {name.split("/")[1] for name in hall_files} == {other.uid}
    assert hall.names() == ["other"]
    of_new_study = ("public.studies", "public.study_directions", "service.studies")
    assert count_rows(hall) == before | {table: before[table] - 1 for table in of_new_study}


def test_a_deletion_that_was_killed_between_rows_and_files_goes_on(
    hall: Hall, study: Study
) -> None:
    work(hall, study)
    store = Store(hall.settings.artifact_store)
    housekeeping.delete_rows(hall.engine, study.study_id)  # and here it is killed
    assert len(store.files("checkpoints")) == 3
    assert hall.delete("plain") is False
    assert store.files("checkpoints") == []
    assert hall.delete("plain") is False
    with pytest.raises(UnknownStudy, match="there is no study 'plane'"):
        hall.delete("plane")
    with pytest.raises(UnknownStudy):
        hall.delete("\0")


def test_a_new_study_of_the_same_name_keeps_its_files(hall: Hall, study: Study) -> None:
    study.delete()
    again = hall.create("plain", Spec("stubs:quick"), Budget(9))
    work(hall, again)
    assert housekeeping.deleted_artifacts(hall.engine, "plain") == [f"checkpoints/{study.uid}"]
    assert len(Store(hall.settings.artifact_store).files("checkpoints")) == 3


@pytest.mark.parametrize("uid", ["../../victim", "..", "a/b", "", "x" * 100])
def test_a_hostile_uid_removes_nothing(hall: Hall, study: Study, tmp_path: Path, uid: str) -> None:
    (tmp_path / "victim").mkdir()
    Store(hall.settings.artifact_store).write("checkpoints/a/b/0/file", b"theirs")
    with hall.engine.begin() as connection:
        changed = sqlalchemy.text("UPDATE service.studies SET uid = :uid")
        connection.execute(changed, {"uid": uid})
    hall.delete("plain")
    assert (tmp_path / "victim").exists() and hall.names() == []
    assert len(Store(hall.settings.artifact_store).files("checkpoints")) == 1


def test_a_store_that_is_away_is_named_with_the_cure(hall: Hall, study: Study) -> None:
    broken = Hall(Settings(hall.url, hall.settings.home, artifacts="sftp-nowhere://user:pw@x/y"))
    with pytest.raises(
        WorkFailed, match=r"rows are deleted, but files are left .*studyhall gc"
    ) as e:
        broken.delete("plain")
    assert "pw" not in str(e.value) and hall.names() == []


def test_a_study_with_live_workers_is_not_deleted(hall: Hall, study: Study) -> None:
    join(hall, study)
    with pytest.raises(ConfigurationError, match=r"1 worker works on study 'plain' \(w1 on far\)"):
        study.delete()
    assert hall.names() == ["plain"]


def test_force_stops_the_workers_first(hall: Hall, study: Study) -> None:
    join(hall, study)
    seen: list[str | None] = []

    def leave() -> None:
        elsewhere = Hall(hall.settings)
        while (reason := elsewhere.study("plain").progress().stop_reason) is None:
            time.sleep(0.05)
        seen.append(reason)
        presence.leave(elsewhere.engine, "w1")

    worker = threading.Thread(target=leave)
    worker.start()
    study.delete(force=True)
    worker.join()
    assert seen == ["it is being deleted"] and hall.names() == []


def test_force_does_not_wait_for_ever(hall: Hall, study: Study) -> None:
    join(hall, study)
    left = housekeeping.wait_for_workers(hall.engine, study.study_id, 60.0, seconds=0.1)
    assert [worker.worker for worker in left] == ["w1"]


def test_rename(hall: Hall, study: Study) -> None:
    held = hall.study("plain")
    assert held.optuna.study_name == "plain"
    later = hall.study("plain")
    study.rename("new name")
    assert (study.name, hall.names()) == ("new name", ["new name"])
    assert later.optuna.study_name == "new name", "it was loaded after it had been renamed"
    assert str(held.progress()).startswith("new name: ")
    assert held.name == "new name"
    hall.create("other", Spec("stubs:quick"), Budget(1))
    with pytest.raises(ConfigurationError, match="there is a study 'other' already"):
        study.rename("other")
    with pytest.raises(ConfigurationError, match="cannot be called"):
        study.rename("a\nb")
    study.delete()
    with pytest.raises(UnknownStudy, match="has been deleted"):
        study.rename("x")


def test_a_worker_that_knows_the_old_name_works(hall: Hall, study: Study) -> None:
    hall.study("plain").rename("new")
    assert study.name == "plain"
    study.resume(n_trials=2)
    study.name = "plain"
    assert Worker(study, hall, study.spec.load(), "w1", "cpu").run() == 0
    assert hall.study("new").progress().complete == 2


def test_a_pool_that_knows_the_old_name_starts_workers(hall: Hall, study: Study) -> None:
    study.resume(n_trials=1)
    hall.study("plain").rename("new")
    lines: list[str] = []
    permission = Permission(path=str(TESTS))
    pool = Pool(hall, study, [Device("cpu", 1)], lines.append, permission=permission)
    assert pool.run() == 0, lines
    assert hall.study("new").progress().complete == 1


def test_a_study_that_plain_optuna_has_deleted_has_no_progress(hall: Hall, study: Study) -> None:
    stock = RDBStorage(hall.url, skip_table_creation=True)
    stock.delete_study(study.study_id)
    stock.engine.dispose()
    with pytest.raises(UnknownStudy, match="study 'plain' has been deleted"):
        study.progress()


def test_linked_studies_learn_the_new_name(hall: Hall, study: Study) -> None:
    linked = hall.create("plain-confirm", Spec("stubs:quick"), Budget(1))
    with hall.engine.begin() as connection:
        link = """UPDATE service.studies SET spec = spec || jsonb_build_object(
                    'linked', jsonb_build_object('study', 'plain', 'uid', CAST(:uid AS text)))
                   WHERE study_id = :id"""
        values = {"uid": study.uid, "id": linked.study_id}
        connection.execute(sqlalchemy.text(link), values)
    study.rename("new")
    with hall.engine.connect() as connection:
        asked = "SELECT spec #>> '{linked,study}' FROM service.studies WHERE study_id = :id"
        found = connection.execute(sqlalchemy.text(asked), {"id": linked.study_id})
        assert found.scalar_one() == "new"


def test_a_copy_has_everything_but_what_runs(hall: Hall, study: Study) -> None:
    work(hall, study)
    study.optuna.enqueue_trial({"x": 0.25})
    before = study.progress()
    copied = hall.copy("plain", "copied")
    assert copied.uid != study.uid
    progress = copied.progress()
    assert (progress.interrupted, progress.running, progress.waiting) == (1, 0, 1)
    assert (progress.begun, progress.n_trials) == (before.begun, before.n_trials)
    stock = RDBStorage(hall.url, skip_table_creation=True)
    found, expected = (
        [_content(trial) for trial in optuna.load_study(study_name=name, storage=stock).trials]
        for name in ("copied", "plain")
    )
    stock.engine.dispose()
    assert found == expected
    assert copied.optuna.user_attrs == {"of": "the study"}
    history = {
        trial_id: [row.cause for row in rows] for trial_id, rows in copied.attempts().items()
    }
    assert [*history.values()] == [[None], [None], ["preempted"]]
    assert study.progress().running == 1, "the original goes on"


def test_the_copys_interrupted_trial_starts_from_the_beginning(hall: Hall, study: Study) -> None:
    work(hall, study)
    copied = hall.copy("plain", "copied")
    lease = leases.claim(hall.engine, copied.study_id, "w", 60.0)
    assert lease is not None and (lease.number, lease.attempt, lease.taken_over) == (2, 2, True)
    original = study.optuna.trials[2]._trial_id
    assert leases.overdue(hall.engine, ["w"], 1e9, 0.0) == [], "no lease of a copy is overdue"
    with hall.engine.connect() as connection:
        asked = sqlalchemy.text("SELECT trial_id FROM service.leases WHERE worker = 'w'")
        assert {*connection.execute(asked).scalars()} == {original, lease.trial_id}


def test_the_death_of_a_worker_does_not_touch_the_copy(hall: Hall, study: Study) -> None:
    work(hall, study)
    copied = hall.copy("plain", "copied")
    leases.fail(hall.engine, "w", "timeout", "killed")
    assert study.optuna.trials[2].state == TrialState.FAIL
    assert copied.optuna.trials[2].state == TrialState.RUNNING
    assert copied.progress().interrupted == 1


def test_a_copy_keeps_every_column(hall: Hall, study: Study) -> None:
    """Columns that are added to our tables later are copied without a change of the function."""
    work(hall, study)
    with hall.engine.begin() as connection:
        for table in ("studies", "attempts"):
            statement = f"ALTER TABLE service.{table} ADD COLUMN later text DEFAULT 'other'"
            connection.execute(sqlalchemy.text(statement))
            connection.execute(sqlalchemy.text(f"UPDATE service.{table} SET later = 'mine'"))
    hall.copy("plain", "copied")
    with hall.engine.connect() as connection:
        for table in ("studies", "attempts"):
            asked = sqlalchemy.text(f"SELECT DISTINCT later FROM service.{table}")
            assert connection.execute(asked).scalars().all() == ["mine"]


def test_a_copy_needs_a_free_name(hall: Hall, study: Study) -> None:
    with pytest.raises(ConfigurationError, match="there is a study 'plain' already"):
        hall.copy("plain", "plain")
    with pytest.raises(UnknownStudy):
        hall.copy("nothing", "new")
    assert hall.names() == ["plain"]


def test_usage_counts_rows_and_files_of_each_study(hall: Hall, study: Study) -> None:
    hall.create("empty", Spec("stubs:quick"), Budget(1))
    work(hall, study)
    Store(hall.settings.artifact_store).write("checkpoints/unknown/0/a.ckpt", b"12345")
    found = hall.usage()
    plain, empty = found.studies
    assert (plain.study, plain.trials, plain.checkpoints, plain.models) == ("plain", 3, 300, 0)
    assert plain.database > empty.database > 0 and empty.total == empty.database
    assert found.other_artifacts == 5 and found.tables > plain.database
    assert hall.usage("empty").studies == [empty]
    with pytest.raises(UnknownStudy):
        hall.usage("nothing")


def test_usage_knows_every_table_with_rows_of_a_study() -> None:
    """A table that is added later belongs into the statement, or among these."""
    small = {"service.leases", "service.workers", "service.versions", "service.deletions"}
    small |= {"service.provenances"}  # several studies may share one
    assert {name for name in Base.metadata.tables if name not in str(usage.ROWS)} == small
