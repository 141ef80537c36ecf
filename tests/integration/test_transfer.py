"""One study as one file: what is refused, and that an import is whole or nothing."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.distributions import FloatDistribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial

from service import Budget, ConfigurationError, Hall, Settings, Spec, Study, UnknownStudy
from service.database import schema
from service.storage import leases
from service.studies import archive, transfer


@pytest.fixture
def full(hall: Hall) -> Study:
    """A study with a complete, a failed, an interrupted and a waiting trial."""
    study = hall.create("full", Spec("stubs:quick", seed=3), Budget(n_trials=9))
    for place in range(3):
        lease = leases.claim(hall.engine, study.study_id, "w", 60.0)
        assert lease is not None
        trial = study.optuna.trials[place]
        study._storage.set_trial_param(trial._trial_id, "x", place / 4, FloatDistribution(0, 1))
        study._storage.set_trial_intermediate_value(trial._trial_id, 0, float("nan"))
    study.optuna.tell(0, 0.5)
    study.optuna.tell(1, state=TrialState.FAIL)
    study.optuna.enqueue_trial({"x": 0.5})
    study.optuna.set_user_attr("who", "me")
    return study


@pytest.fixture
def file(full: Study, tmp_path: Path) -> Path:
    file = tmp_path / "full.json"
    full.export_study(file)
    return file


def rewrite(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the study in a file, with a hash that fits, as an attacker would."""
    whole = json.loads(file.read_text())
    change(whole["study"])
    canonical = json.dumps(whole["study"], sort_keys=True, separators=(",", ":"))
    whole["sha256"] = hashlib.sha256(canonical.encode()).hexdigest()
    file.write_text(json.dumps(whole))


def test_trials_are_in_order_whatever_the_plan_of_the_statement(
    hall: Hall, tmp_path: Path
) -> None:
    study = hall.create("order", Spec("stubs:quick"), Budget(1))
    with_x = {"x": FloatDistribution(0, 1)}
    for place in range(4):
        spaces = with_x if place > 1 else {}  # the join may return those with parameters first
        study.optuna.add_trial(
            create_trial(value=place, params=dict.fromkeys(spaces, 0.5), distributions=spaces)
        )
    study.export_study(tmp_path / "order.json")
    again = hall.import_study(tmp_path / "order.json", "again")
    assert [trial.value for trial in again.optuna.trials] == list(range(4))


def test_numbers_are_kept_to_the_bit(hall: Hall, tmp_path: Path) -> None:
    study = hall.create("numbers", Spec("stubs:quick"), Budget(1))
    numbers = [1 / 3, 0.1 + 0.2, 5e-324, -1.7976931348623157e308]
    for number in numbers:
        trial = study.optuna.ask()
        trial.suggest_float("x", number, number)
        for step, value in enumerate([number, math.nan, math.inf, -math.inf]):
            trial.report(value, step)
        study.optuna.tell(trial, number)
    study.export_study(tmp_path / "numbers.json")
    hall.import_study(tmp_path / "numbers.json", "again")
    stock = RDBStorage(hall.url, skip_table_creation=True)
    for trial in optuna.load_study(study_name="again", storage=stock).trials:
        number = numbers[trial.number]
        reported = [*trial.intermediate_values.values()]
        assert repr([*trial.values, *reported[:1]]) == repr([number, number])
        assert repr([*trial.params.values()]) == repr([number])
        assert [math.isnan(reported[1]), *reported[2:]] == [True, math.inf, -math.inf]
    stock.engine.dispose()


def test_a_trial_that_ran_is_interrupted_after_an_import_and_keeps_its_attempts(
    hall: Hall, full: Study, file: Path
) -> None:
    study = hall.import_study(file, "other")
    progress = study.progress()
    assert (progress.interrupted, progress.running, progress.waiting) == (1, 0, 1)
    assert (progress.begun, progress.n_trials, progress.state) == (3, 9, "running")
    lease = leases.claim(hall.engine, study.study_id, "new", 60.0)
    assert lease is not None and (lease.number, lease.attempt) == (2, 2)
    assert [row.cause for row in study.attempts()[lease.trial_id]] == ["preempted", None]
    assert full.progress().running == 1, "the original goes on"
    assert study.uid != full.uid


def test_plain_optuna_gets_spec_and_budget_as_an_attribute(file: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/plain.db"
    imported = transfer.import_plain(file, url, "there")
    assert (imported.trials, imported.unfinished) == (4, 1)
    study = optuna.load_study(study_name="there", storage=url)
    assert study.user_attrs["studyhall"]["spec"]["seed"] == 3
    assert study.user_attrs["studyhall"]["n_trials"] == 9 and study.user_attrs["who"] == "me"
    states = [trial.state.name for trial in study.trials]
    assert states == ["COMPLETE", "FAIL", "FAIL", "WAITING"]
    with pytest.raises(ConfigurationError, match="there is a study 'there' already"):
        transfer.import_plain(file, url, "there")


@pytest.mark.parametrize("url", ["nonsense", "oracle://x/y", "sqlite:////no/such/folder/x.db"])
def test_a_storage_that_is_none_is_refused_in_one_line(file: Path, url: str) -> None:
    with pytest.raises(Exception, match="storage") as caught:
        transfer.import_plain(file, url)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_taken_is_refused(hall: Hall, full: Study, file: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is a study 'full' already"):
        hall.import_study(file)
    with pytest.raises(ConfigurationError, match="cannot be called"):
        hall.import_study(file, "-x")
    assert hall.names() == ["full"]


def first_trial(study: dict[str, Any], **changes: Any) -> None:
    study["trials"][0] |= changes


def first_attempt(study: dict[str, Any], **changes: Any) -> None:
    study["attempts"][0] |= changes


def spec(study: dict[str, Any], **changes: Any) -> None:
    study["row"]["spec"] |= changes


NOT_ONE = '{"name": "CategoricalDistribution", "attributes": {"choices": ["a"]}}'
HOSTILE: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
    ("has no trials", lambda study: study.pop("trials")),
    ("its directions", lambda study: study.update(directions=["UP"])),
    ("its directions", lambda study: study.update(directions=[])),
    ("contains NUL", lambda study: study["user_attrs"].update({"a\0": "1"})),
    ("is no JSON", lambda study: study["user_attrs"].update(a="{")),
    ("half a character", lambda study: study["user_attrs"].update({"\ud800": "1"})),
    ("more than 512", lambda study: study["user_attrs"].update({"k" * 513: "1"})),
    ("has the number 7", lambda study: first_trial(study, number=7)),
    ("its state is 'DONE'", lambda study: first_trial(study, state="DONE")),
    ("no number", lambda study: first_trial(study, values=["much"])),
    ("no number", lambda study: first_trial(study, values=[True])),
    ("64 bits", lambda study: first_trial(study, values=[10**400])),
    ("is no step", lambda study: first_trial(study, reports={"2147483648": 1.0})),
    ("is no step", lambda study: first_trial(study, reports={"1.5": 1.0})),
    ("is no time", lambda study: first_trial(study, start=1e300)),
    ("parameter space 9", lambda study: first_trial(study, space=9)),
    ("0 of 1 parameters", lambda study: first_trial(study, params=[])),
    ("distribution of 'x'", lambda study: study.update(spaces=[[["x", "[]"]]])),
    ("distribution of 'x'", lambda study: study.update(spaces=[[["x", '{"name": "os"}']]])),
    ("outside its distr", lambda study: study.update(spaces=[[["x", NOT_ONE]]]) or first_trial(
        study, params=[7])),
    ("no objective", lambda study: spec(study, objective=None)),
    ("settings is 5", lambda study: spec(study, settings=5)),
    ("max attempts", lambda study: spec(study, max_attempts=0)),
    ("direction", lambda study: spec(study, direction="sideways")),
    ("n_trials is '9'", lambda study: study["row"].update(n_trials="9")),
    ("n_claimed is -1", lambda study: study["row"].update(n_claimed=-1)),
    ("n_claimed is missing", lambda study: study["row"].update(n_claimed=None)),
    ("is no time", lambda study: study["row"].update(deadline="infinity")),
    ("data: source", lambda study: study["row"].update(data={"name": "a"})),
    ("trial 99", lambda study: first_attempt(study, trial=99)),
    ("occurs twice", lambda study: study["attempts"].append(study["attempts"][0])),
    ("worker is missing", lambda study: first_attempt(study, worker=None)),
    ("contains NUL", lambda study: first_attempt(study, worker="\0")),
]  # fmt: skip


@pytest.mark.parametrize(("message", "change"), HOSTILE, ids=[row[0] for row in HOSTILE])
def test_what_no_study_has_is_refused_before_anything_is_written(
    tmp_path: Path, valid: dict[str, Any], message: str, change: Callable[[dict[str, Any]], object]
) -> None:
    file = tmp_path / "hostile.json"
    file.write_text(json.dumps({"format": archive.FORMAT, "version": 1, "study": valid}))
    rewrite(file, lambda study: None)
    archive.read(file)
    rewrite(file, change)
    with pytest.raises(ConfigurationError, match=message) as caught:
        archive.read(file)
    assert "\n" not in str(caught.value)


@pytest.fixture
def valid() -> dict[str, Any]:
    """A small study as a file holds it."""
    distribution = '{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, '
    distribution += '"high": 1.0, "log": false}}'
    moment = "2026-11-20T10:00:00+00:00"
    trial = {"number": 0, "state": "COMPLETE", "start": 1.5, "end": 2.5, "values": [0.5]}
    trial |= {"space": 0, "params": [0.5], "user_attrs": None, "system_attrs": {"a": "[1]"}}
    trial |= {"reports": {"0": "NaN", "-1": 2}}
    attempt = {"trial": 0, "attempt": 1, "worker": "w", "host": None, "started_at": moment}
    return {
        "name": "s",
        "directions": ["MINIMIZE"],
        "user_attrs": {"k": "NaN"},
        "system_attrs": {},
        "row": {"spec": {"objective": "stubs:quick"}, "n_claimed": 1, "deadline": moment},
        "spaces": [[["x", distribution]]],
        "trials": [trial],
        "attempts": [attempt],
    }


def test_a_damaged_file_is_refused(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    damaged = tmp_path / "damaged.json"
    packed = gzip.compress(whole)
    for content, message in (
        (whole.replace(b'"number": 2', b'"number": 2').replace(b"0.25", b"0.26"), "SHA-256"),
        (whole[:-40], "no JSON"),
        (b"", "no JSON"),
        (b"[" * 200_000, "no JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "no JSON"),
        (b"[]", "no study's file"),
        (whole.replace(b'"version": 1', b'"version": 2'), "version 2"),
        (packed[:-100], "cannot be unpacked"),
        (packed[:60] + b"0000" + packed[64:], "damaged|no JSON"),
        (b"\xff\xfe", "no JSON"),
    ):
        damaged.write_bytes(content)
        with pytest.raises(ConfigurationError, match=message) as caught:
            archive.read(damaged)
        assert "\n" not in str(caught.value)


def test_a_file_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_BYTES", 10_000)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(b" " * 1_000_000))
    with pytest.raises(ConfigurationError, match="more than 10000 bytes"):
        archive.read(tmp_path / "bomb.gz")


def test_a_row_that_the_database_refuses_leaves_nothing_behind(
    hall: Hall, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(file, lambda study: study["attempts"].append({**study["attempts"][0], "attempt": 9}))
    rewrite(file, lambda study: study["attempts"].append(study["attempts"][0]))
    monkeypatch.setattr(archive, "check", lambda study: None)
    with pytest.raises(ConfigurationError, match="the database refuses a row: duplicate key"):
        hall.import_study(file, "odd")
    assert hall.names() == ["full"]
    with hall.engine.connect() as connection:
        count = connection.execute(sqlalchemy.text("SELECT count(*) FROM public.studies"))
        assert count.scalar_one() == 1


def test_an_export_that_fails_leaves_the_file_as_it_was(
    full: Study, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = file.read_bytes()

    def refuse(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="no space"):
        full.export_study(file)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["full.json"]
    assert stat.S_IMODE(file.stat().st_mode) & 0o400


def test_a_study_whose_rows_are_odd_is_not_exported(
    hall: Hall, full: Study, tmp_path: Path
) -> None:
    with hall.engine.begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE public.trials SET number = number + 1"))
    with pytest.raises(ConfigurationError, match="'full' cannot be exported: trial 0 has the num"):
        full.export_study(tmp_path / "odd.json")
    assert [*tmp_path.glob("*odd*")] == []


def test_a_deleted_study_cannot_be_exported(full: Study, tmp_path: Path) -> None:
    full.delete(force=True)
    with pytest.raises(UnknownStudy):
        full.export_study(tmp_path / "x.json")


def test_an_import_into_an_empty_database(empty_database_url: str, file: Path) -> None:
    schema.upgrade(empty_database_url)
    there = Hall(Settings(database_url=empty_database_url, home=file.parent))
    assert there.import_study(file).progress().waiting == 1
