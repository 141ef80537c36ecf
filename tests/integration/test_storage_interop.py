"""Stock Optuna and StudyStorage read and write the same studies; plain Optuna runs on ours."""

from __future__ import annotations

import json
import multiprocessing
import random
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.engine import Engine

from service import database
from service.sampling import tpe
from service.storage.storage import StudyStorage
from service.storage.trials import CHUNK

CHOICES = (None, True, 3, 0.5, "text")
ROOT = Path(__file__).parents[2]
PLAIN = """
import sys, optuna
from service import database
from service.storage.storage import StudyStorage
def objective(trial):
    x = trial.suggest_float("x", -1, 1) + trial.suggest_int("n", 1, 3)
    trial.suggest_categorical("c", ["a", "b"])
    for step in range(3):
        trial.report(x + step, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return x
optuna.logging.set_verbosity(optuna.logging.ERROR)
storage = StudyStorage(database.create_engine(sys.argv[1]))
optuna.load_study(study_name="plain", storage=storage).optimize(objective, n_trials=15)
"""


def template(chance: random.Random) -> FrozenTrial:
    space = {
        "x": FloatDistribution(-1, 1),
        "n": IntDistribution(1, 9, log=True),
        "c": CategoricalDistribution(CHOICES),
    }
    params = {"x": chance.uniform(-1, 1), "n": chance.randint(1, 9), "c": chance.choice(CHOICES)}
    state = chance.choice([s for s in TrialState if s != TrialState.WAITING])
    steps = {step: chance.choice([chance.random(), float("inf")]) for step in range(3)}
    return create_trial(
        state=state,
        value=chance.choice([chance.random(), float("-inf")])
        if state == TrialState.COMPLETE
        else None,
        params=params,
        distributions=space,
        user_attrs={"note": ["ä", None, {"%s": 1}], "n": chance.random()},
        system_attrs={"inner": chance.random()},
        intermediate_values=steps,
    )


def test_both_read_the_same_of_what_either_wrote(engine: Engine, database_url: str) -> None:
    ours, stock = StudyStorage(engine), RDBStorage(database_url)
    study_id = ours.create_new_study([StudyDirection.MAXIMIZE], "both")
    chance = random.Random(3)
    for turn in range(20):
        (ours if turn % 2 else stock).create_new_trial(study_id, template(chance))
    assert ours.get_all_trials(study_id) == stock.get_all_trials(study_id)
    for trial in stock.get_all_trials(study_id):
        assert ours.get_trial(trial._trial_id) == trial
        assert ours.get_trial_id_from_study_id_trial_number(study_id, trial.number) == (
            trial._trial_id
        )
    assert [s.study_name for s in stock.get_all_studies()] == ["both"]
    assert ours.get_all_studies() == stock.get_all_studies()


def test_turns_may_be_taken_on_one_running_trial(engine: Engine, database_url: str) -> None:
    ours, stock = StudyStorage(engine), RDBStorage(database_url)
    study_id = stock.create_new_study([StudyDirection.MINIMIZE], "turns")
    trial_id = ours.create_new_trial(study_id)
    unit = FloatDistribution(0, 1)
    stock.set_trial_param(trial_id, "x", 0.5, unit)
    ours.set_trial_param(trial_id, "y", 0.25, unit)
    ours.set_trial_param(trial_id, "x", 0.75, unit)  # the first value of a parameter stays
    stock.set_trial_intermediate_value(trial_id, 0, 1.0)
    ours.set_trial_intermediate_value(trial_id, 0, float("nan"))
    assert ours.get_trial(trial_id).params == {"x": 0.5, "y": 0.25}
    with pytest.raises(ValueError, match="distribution"):
        ours.set_trial_param(trial_id, "x", 0.0, CategoricalDistribution((1, 2)))
    stock.set_trial_state_values(trial_id, TrialState.COMPLETE, [2.0])
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        ours.set_trial_user_attr(trial_id, "late", 1)
    assert ours.get_best_trial(study_id) == ours.get_trial(trial_id)
    assert repr(ours.get_trial(trial_id)) == repr(stock.get_trial(trial_id))


def test_an_enqueued_trial_is_begun_once(engine: Engine, database_url: str) -> None:
    study = optuna.create_study(storage=StudyStorage(engine), study_name="queue")
    other = optuna.load_study(study_name="queue", storage=RDBStorage(database_url))
    study.enqueue_trial({"x": 0.5})
    first, second = study.ask(), other.ask()
    assert (first.number, second.number) == (0, 1)
    assert first.suggest_float("x", 0, 1) == 0.5


def test_plain_optuna_runs_in_several_processes_on_our_storage(
    engine: Engine, database_url: str
) -> None:
    study = optuna.create_study(storage=StudyStorage(engine), study_name="plain")
    command = [sys.executable, "-c", PLAIN, database_url]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    stock = optuna.load_study(study_name="plain", storage=RDBStorage(database_url))
    stock.optimize(lambda trial: trial.suggest_float("x", -1, 1), n_trials=5)
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    trials = study.get_trials()
    assert [trial.number for trial in trials] == list(range(50))
    assert trials == RDBStorage(database_url).get_all_trials(study._study_id)
    assert all(trial.state.is_finished() for trial in trials)
    assert study.best_value == min(t.value for t in trials if t.state == TrialState.COMPLETE)


def test_forked_processes_connect_anew(engine: Engine) -> None:
    study = optuna.create_study(storage=StudyStorage(engine), sampler=tpe.TPESampler(seed=1))

    def optimize() -> None:
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=15)

    optimize()
    children = [multiprocessing.get_context("fork").Process(target=optimize) for _ in range(3)]
    for child in children:
        child.start()
    optimize()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert [trial.number for trial in study.trials] == list(range(75))
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}


def test_optunas_command_reads_our_studies(engine: Engine, database_url: str) -> None:
    storage = StudyStorage(engine)
    study = optuna.create_study(storage=storage, study_name="shown")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    url = database.database_url_for_stock(database_url)
    code = "import sys; from optuna.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "trials", "--storage", url, "-f", "json"]
    command += ["--study-name", "shown"]
    shown = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert [line["number"] for line in shown] == [0, 1, 2]


def test_many_trials_are_added_at_once_as_one_by_one(engine: Engine, database_url: str) -> None:
    storage = StudyStorage(engine)
    one, many = (storage.create_new_study([StudyDirection.MINIMIZE]) for _ in range(2))
    chance = random.Random(5)
    templates = [template(chance) for _ in range(30)]
    for trial in templates:
        storage.create_new_trial(one, trial)
    sent = []
    sqlalchemy.event.listen(engine, "before_cursor_execute", lambda *given: sent.append(given[2]))
    ids = storage.add_trials(many, templates)
    creations = [statement for statement in sent if "service.create" in statement]
    assert len(creations) == 1 and len(ids) == 30 < CHUNK
    assert len(sent) <= 3  # the study, and the kinds of its parameters
    for left, right in zip(
        storage.get_all_trials(one), RDBStorage(database_url).get_all_trials(many), strict=True
    ):
        left._trial_id = right._trial_id
        assert left == right


def test_a_study_is_deleted_by_one_statement_with_all_that_belongs_to_it(
    engine: Engine, database_url: str
) -> None:
    storage = StudyStorage(engine)
    doomed, kept = (storage.create_new_study([StudyDirection.MINIMIZE]) for _ in range(2))
    chance = random.Random(5)
    for study_id in (doomed, kept):
        storage.add_trials(study_id, [template(chance) for _ in range(10)])
        storage.set_study_user_attr(study_id, "key", 1)
        storage.get_all_trials(study_id)
    reader = StudyStorage(database.create_engine(database_url))
    reader.get_all_trials(doomed)
    sent = []
    sqlalchemy.event.listen(engine, "before_cursor_execute", lambda *given: sent.append(given[2]))
    storage.delete_study(doomed)
    assert len(sent) == 1
    for side in (storage, reader):
        with pytest.raises(KeyError):
            side.get_all_trials(doomed)
    assert len(storage.get_all_trials(kept)) == 10
    with engine.connect() as connection:
        for table in ("trials", "trial_params", "trial_values", "study_directions"):
            left = connection.execute(sqlalchemy.text(f"SELECT count(*) FROM {table}")).scalar()
            assert left is not None and left <= 30
        assert connection.execute(sqlalchemy.text("SELECT count(*) FROM studies")).scalar() == 1


def test_times_are_the_same_for_both(engine: Engine, database_url: str) -> None:
    ours, stock = StudyStorage(engine), RDBStorage(database_url)
    study_id = ours.create_new_study([StudyDirection.MINIMIZE])
    before = datetime.now()
    trial_id = ours.create_new_trial(study_id)
    ours.set_trial_state_values(trial_id, TrialState.COMPLETE, [0.0])
    trial = stock.get_trial(trial_id)
    assert trial.datetime_start is not None and trial.datetime_complete is not None
    assert before <= trial.datetime_start <= trial.datetime_complete <= datetime.now()
    assert trial == ours.get_trial(trial_id)
