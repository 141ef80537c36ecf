"""Any study through a file into another database, and into plain Optuna: stock reads the same."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import sqlalchemy
from databases import temporary_database
from hypothesis import HealthCheck, Phase, given, settings
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from spaces import json_values, keys, templates

from service import Hall, Settings
from service.errors import DatabaseError
from service.storage import leases
from service.storage.storage import StudyStorage
from service.studies import transfer
from service.studies.transfer import _content

EXAMPLES = int(os.environ.get("STUDYHALL_FUZZ_EXAMPLES") or 24) // 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("transfer")


@pytest.fixture(scope="module")
def halls(server_url: str, template: str, folder: Path) -> Iterator[tuple[Hall, Hall]]:
    with (
        pytest.MonkeyPatch.context() as patch,
        temporary_database(server_url, template) as one,
        temporary_database(server_url, template) as other,
    ):
        patch.syspath_prepend(str(Path(__file__).parents[1]))
        patch.setenv("STUDYHALL_ALLOW", "stubs")
        yield tuple(Hall(Settings(database_url=url, home=folder)) for url in (one, other))


def stock_reads(url: str, name: str) -> tuple[Any, list[FrozenTrial]]:
    """Everything that stock Optuna's storage finds of a study."""
    storage = RDBStorage(url, skip_table_creation=True)
    try:
        study_id = storage.get_study_id_from_name(name)
        attributes = [
            sorted(read(study_id).items(), key=repr)
            for read in (storage.get_study_user_attrs, storage.get_study_system_attrs)
        ]
        directions = storage.get_study_directions(study_id)
        return repr((directions, attributes)), storage.get_all_trials(study_id)
    finally:
        storage.remove_session()
        storage.engine.dispose()


def fill(hall: Hall, study_id: int, made: list[FrozenTrial], attrs: dict[str, Any]) -> None:
    """Add the trials and attributes that a storage takes."""
    storage = StudyStorage(hall.engine)
    for trial in made:
        try:
            storage.create_new_trial(study_id, trial)
        except (ValueError, TypeError, StorageInternalError):
            continue  # misuse; test_storage.py compares how it is refused
    for key, value in attrs.items():
        try:
            storage.set_study_user_attr(study_id, key, value)
            storage.set_study_system_attr(study_id, key, value)
        except (ValueError, TypeError, StorageInternalError):
            continue


def attempts(hall: Hall, name: str) -> list[tuple[Any, ...]]:
    """The attempts of a study, with the numbers of their trials; times as they are stored."""
    with hall.engine.connect() as connection:
        columns = "attempt, worker, host, device, first_epoch, started_at, ended_at, cause, state"
        return [
            tuple(row)
            for row in connection.execute(
                sqlalchemy.text(
                    f"""SELECT number, {columns} FROM service.attempts
                          JOIN public.trials USING (trial_id)
                          JOIN public.studies s ON s.study_id = trials.study_id
                         WHERE study_name = :name ORDER BY number, attempt"""
                ),
                {"name": name},
            )
        ]


def stored_study(hall: Hall, name: str) -> dict[str, Any]:
    """Our row of a study, but for what each database fills in."""
    with hall.engine.connect() as connection:
        row = connection.execute(
            sqlalchemy.text(
                """SELECT to_jsonb(s) - '{study_id,uid,created_at}'::text[] FROM service.studies s
                     JOIN public.studies o USING (study_id) WHERE study_name = :name"""
            ),
            {"name": name},
        )
        return dict(row.scalar_one())


@pytest.mark.filterwarnings("ignore")
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="STUDYHALL_FUZZ_EXAMPLES" not in os.environ,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(
    made=st.lists(templates(), max_size=12),
    attrs=st.dictionaries(keys, json_values, max_size=3),
    directions=st.lists(st.sampled_from(["MINIMIZE", "MAXIMIZE"]), min_size=1, max_size=3),
    claims=st.integers(0, 3),
    seconds=st.sampled_from([0.0, 60.0]),
    compressed=st.booleans(),
)
def test_a_study_is_the_same_after_an_export_and_an_import(
    halls: tuple[Hall, Hall],
    folder: Path,
    made: list[FrozenTrial],
    attrs: dict[str, Any],
    directions: list[str],
    claims: int,
    seconds: float,
    compressed: bool,
) -> None:
    here, there = halls
    name = f"s{len(here.names())}"
    StudyStorage(here.engine).create_new_study([StudyDirection[each] for each in directions], name)
    study_id = StudyStorage(here.engine).get_study_id_from_name(name)
    with here.engine.begin() as connection:
        connection.execute(
            sqlalchemy.text(
                """INSERT INTO service.studies (study_id, spec, n_trials, timeout_seconds)
                   VALUES (:id, CAST(:spec AS jsonb), 50, 1e-3)"""
            ),
            {"id": study_id, "spec": '{"objective": "stubs:quick", "of_a_newer_version": 1}'},
        )
    fill(here, study_id, made, attrs)
    for _ in range(claims):
        leases.claim(here.engine, study_id, "w", seconds)

    with tempfile.TemporaryDirectory(dir=folder) as place:
        file = Path(place, "study.json.gz" if compressed else "study.json")
        here.study(name).export_study(file)
        there.import_study(file)
        expected, trials = stock_reads(here.url, name)
        found, imported = stock_reads(there.url, name)
        assert found == expected
        assert list(map(_content, imported)) == list(map(_content, trials))
        assert stored_study(there, name) == stored_study(here, name)
        compare_attempts(attempts(here, name), attempts(there, name))
        compare_plain(file, f"sqlite:///{folder}/plain.db", name, trials)


def compare_attempts(here: list[tuple[Any, ...]], there: list[tuple[Any, ...]]) -> None:
    """Equal, but what runs here is interrupted there."""
    assert len(here) == len(there)
    for one, other in zip(here, there, strict=True):
        if one[-3] is None and one[-1] == "RUNNING":
            assert other[-2] == "preempted" and other[-3] is not None
            one, other = one[:-3], other[:-3]
        assert one == other


def compare_plain(file: Path, url: str, name: str, trials: list[FrozenTrial]) -> None:
    """Equal, but what runs here has failed there; SQLite keeps no NaN as a value."""
    has_nan = any(value != value for trial in trials for value in trial.values or ())
    try:
        transfer.import_plain(file, url)
    except DatabaseError as error:
        assert has_nan, error
        with pytest.raises(KeyError):
            stock_reads(url, name)
        return
    assert not has_nan
    _, found = stock_reads(url, name)
    for one, other in zip(trials, found, strict=True):
        if one.state == TrialState.RUNNING:
            assert other.state == TrialState.FAIL and other.datetime_complete is not None
            one.state, one.datetime_complete = other.state, other.datetime_complete
        assert _content(one) == _content(other)
