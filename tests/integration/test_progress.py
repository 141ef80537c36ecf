"""Progress that counts each trial once says the same as counting all of them again."""

from __future__ import annotations

import random
from typing import Any

import pytest
import sqlalchemy
from databases import execute
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.engine import Engine

from service import Budget, Hall, Spec, Study, UnknownStudy, database
from service.storage.storage import StudyStorage


def counted_again(hall: Hall, study: Study) -> Any:
    """The progress as a process says it that has just opened the study."""
    return hall.study(study.name).progress()


def trial(chance: random.Random) -> FrozenTrial:
    state = chance.choice([*TrialState])
    value = chance.choice([chance.random(), 0.5, float("inf"), float("-inf")])
    return create_trial(state=state, value=value if state == TrialState.COMPLETE else None)


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_any_history_is_counted_as_from_the_beginning(hall: Hall, direction: str) -> None:
    chance = random.Random(direction)
    study = hall.create("p", Spec("stubs:quick", direction=direction), Budget(1000))
    storage = StudyStorage(hall.engine)
    for _ in range(40):
        if chance.random() < 0.6:
            storage.add_trials(study.study_id, [trial(chance) for _ in range(chance.randrange(4))])
        else:
            unfinished = [
                t
                for t in storage.get_all_trials(study.study_id, deepcopy=False)
                if not t.state.is_finished()
            ]
            for t in chance.sample(unfinished, min(2, len(unfinished))):
                state = chance.choice([*TrialState])
                value = [chance.choice([chance.random(), 0.5])]
                storage.set_trial_state_values(
                    t._trial_id, state, value if state == TrialState.COMPLETE else None
                )
        assert study.progress() == counted_again(hall, study)
        assert study.best == study.progress().best


def statements(engine: Engine) -> list[str]:
    sent: list[str] = []

    def listen(*arguments: Any) -> None:
        sent.append(arguments[2])

    sqlalchemy.event.listen(engine, "before_cursor_execute", listen)
    return sent


def test_a_second_look_reads_new_and_unfinished_trials_only(hall: Hall) -> None:
    study = hall.create("p", Spec("stubs:quick"), Budget(10))
    storage = StudyStorage(hall.engine)
    done = [create_trial(value=float(number)) for number in range(5)]
    storage.add_trials(study.study_id, [*done, create_trial(state=TrialState.RUNNING)])
    study.progress()
    counts = study._reader._counts
    assert (counts.complete, len(counts.unfinished)) == (5, 1)
    sent = statements(hall.engine)
    assert study.progress().complete == 5
    assert len(sent) == 1
    with hall.engine.connect() as connection:
        row = study._reader._read(connection, 5.0)
    assert (row.complete, row.unfinished) == (0, 1)


def test_trials_that_stock_optuna_ends_are_seen(hall: Hall, database_url: str) -> None:
    study = hall.create("p", Spec("stubs:quick"), Budget(10))
    running = StudyStorage(hall.engine).create_new_trial(study.study_id)
    assert study.progress().running == 1
    stock = RDBStorage(database.database_url_for_stock(database_url))
    stock.set_trial_state_values(running, TrialState.COMPLETE, [0.25])
    progress = study.progress()
    assert (progress.running, progress.complete) == (0, 1)
    assert progress.best is not None and progress.best.value == 0.25


def test_a_restored_backup_is_counted_from_the_beginning(hall: Hall, database_url: str) -> None:
    study = hall.create("p", Spec("stubs:quick"), Budget(10))
    storage = StudyStorage(hall.engine)
    storage.add_trials(study.study_id, [create_trial(value=float(n)) for n in range(5)])
    assert study.progress().best is not None
    execute(database_url, "DELETE FROM trial_values")
    execute(database_url, "DELETE FROM trials WHERE number > 1")
    execute(database_url, "UPDATE trials SET state = 'FAIL'")
    assert study.progress() == counted_again(hall, study)


def test_a_deleted_study_is_said_to_be_deleted(hall: Hall) -> None:
    study = hall.create("p", Spec("stubs:quick"), Budget(10))
    StudyStorage(hall.engine).delete_study(study.study_id)
    with pytest.raises(UnknownStudy, match="study 'p' has been deleted"):
        study.progress()
