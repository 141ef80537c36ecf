"""Rows that another version or an operator has written: one line each, and the others go on."""

from __future__ import annotations

import json
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.trial import create_trial

from service import Budget, Hall, Spec, Study, UnreadableRow, doctor
from service.database.connection import SharedConnection
from service.sampling import TPESampler
from service.storage import leases
from service.storage.constraints import is_feasible
from service.studies import registry
from service.workers.worker import Worker


def write(hall: Hall, statement: str, **values: Any) -> None:
    with hall.engine.begin() as connection:
        connection.execute(sqlalchemy.text(statement), values)


@pytest.fixture
def odd(hall: Hall, study: Study) -> Study:
    """A second study, with one complete trial."""
    made = hall.create("odd", Spec("stubs:quick"), Budget(n_trials=10))
    x = {"x": optuna.distributions.FloatDistribution(0, 1)}
    made.optuna.add_trial(
        create_trial(params={"x": 0.5}, distributions=x, value=1.0, user_attrs={"note": 1})
    )
    return made


SPECS: list[tuple[Any, str]] = [
    ({}, "its spec names no objective"),
    ([1], "its spec is [1], not an object"),
    ("text", "its spec is text, not an object"),
    (None, "its spec is None, not an object"),
    *(
        ({"objective": "stubs:quick", key: value}, f"in its spec, {key} cannot be '{value}'")
        for key, value in [
            ("sampler", 5),
            ("monitor", 5),
            ("seed", "x"),
            ("seed", True),
            ("settings", [1]),
            ("sampler_arguments", None),
            ("direction", "up"),
            ("trial_timeout", "1h"),
        ]
    ),
    ({"objective": 5}, "in its spec, objective cannot be '5'"),
    ({"objective": "stubs:quick", "seed": -1}, "the seed must not be negative"),
    ({"objective": "stubs:quick", "max_attempts": 10**12}, "max attempts must be from 1 to"),
]


@pytest.mark.parametrize(("stored", "problem"), SPECS)
def test_an_odd_spec_makes_its_own_study_unreadable(
    hall: Hall, odd: Study, stored: Any, problem: str
) -> None:
    statement = "UPDATE service.studies SET spec = CAST(:spec AS jsonb) WHERE study_id = :id"
    write(hall, statement, spec=json.dumps(stored), id=odd.study_id)
    assert_unreadable(hall, problem)
    with pytest.raises(UnreadableRow) as error:
        hall.study("odd")
    assert problem in str(error.value) and "studyhall delete odd" in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize("data", ["[]", "{}", '"text"', "5", '{"name": 5, "source": "s"}'])
def test_odd_data_make_their_own_study_unreadable(hall: Hall, odd: Study, data: str) -> None:
    statement = "UPDATE service.studies SET data = CAST(:data AS jsonb) WHERE study_id = :id"
    write(hall, statement, data=data, id=odd.study_id)
    assert_unreadable(hall, "its data are")
    with pytest.raises(UnreadableRow, match="its data are"):
        hall.study("odd").is_synthetic()


DISTRIBUTION = "UPDATE public.trial_params SET distribution_json = :text"
ATTRIBUTE = "UPDATE public.trial_user_attributes SET value_json = :text"


@pytest.mark.parametrize(
    ("statement", "text", "problem"),
    [
        (DISTRIBUTION, '{"name": "Novel", "attributes": {}}', "parameter 'x' cannot be read"),
        (DISTRIBUTION, "no JSON", "the distribution of the parameter 'x' cannot be read"),
        (DISTRIBUTION, "[]", "the distribution of the parameter 'x' cannot be read"),
        (
            DISTRIBUTION,
            '{"name": "CategoricalDistribution", "attributes": {"choices": []}}',
            "the distribution of the parameter 'x' cannot be read",
        ),
        (
            DISTRIBUTION,
            '{"name": "FloatDistribution", "attributes": {"low": "a"}}',
            "the distribution of the parameter 'x' cannot be read",
        ),
        (ATTRIBUTE, "no JSON", "trial 0 cannot be read: the attribute 'note' is no JSON"),
        (ATTRIBUTE, "[" * 30_000, "trial 0 cannot be read: the attribute 'note' is no JSON"),
        ("UPDATE public.trial_params SET param_value = NULL WHERE :text = ''", "", "trial 0"),
        (
            "UPDATE public.trials SET datetime_start = 'infinity' WHERE :text = ''",
            "",
            "trial 0 cannot be read",
        ),
    ],
)
def test_an_odd_row_of_a_trial_is_named(
    hall: Hall, odd: Study, statement: str, text: str, problem: str
) -> None:
    write(hall, statement, text=text)
    assert_unreadable(hall, problem)
    study = hall.study("odd").optuna
    for _ in range(2):  # the second reading does not leave the trial out
        with pytest.raises(UnreadableRow, match=r"cannot be read"):
            study.get_trials()


def assert_unreadable(hall: Hall, problem: str) -> None:
    plain, odd = hall.studies()
    assert plain.progress().state == "new"
    assert repr(odd).startswith("<Study odd: unreadable, ") and problem in repr(odd)
    with pytest.raises(UnreadableRow):
        odd.progress()
    for name in (None, "odd"):
        (found,) = list(doctor.examine(hall.settings, name))
        assert found.about == "odd" and problem in found.problem
        assert "correct the row, or delete the study" in found.cure


def test_what_has_no_value_is_not_the_best(hall: Hall) -> None:
    study = hall.create("high", Spec("stubs:quick", direction="maximize"), Budget(10))
    for value in (0.25, 0.5):
        study.optuna.add_trial(create_trial(value=value))
    write(hall, "UPDATE public.trial_values SET value = NULL WHERE value = 0.5")
    best = hall.study("high").progress().best
    assert best is not None and best.number == 0


def test_a_deadline_at_infinity_is_none(hall: Hall, odd: Study) -> None:
    write(hall, "UPDATE service.studies SET deadline = 'infinity'")
    progress = hall.study("odd").progress()
    assert (progress.state, progress.late) == ("running", False)
    write(hall, "UPDATE service.studies SET deadline = '-infinity'")
    assert hall.study("odd").progress().late


def test_an_odd_digest_is_named(hall: Hall, odd: Study) -> None:
    insert = (
        "INSERT INTO service.digests (trial_id, finished, digest) VALUES (:id, true, 'no JSON')"
    )
    write(hall, insert, id=odd.optuna.trials[0]._trial_id)
    with pytest.raises(UnreadableRow, match="a stored digest is no JSON"):
        hall.study("odd")._storage.digest_cache(odd.study_id)


@pytest.mark.parametrize("text", ["5", "[1]", '"x"'])
def test_an_odd_announcement_is_none(hall: Hall, odd: Study, text: str) -> None:
    odd.optuna.ask()
    trial_id = odd.optuna.trials[-1]._trial_id
    for value in (json.loads(text), text):
        odd._storage.set_trial_system_attr(trial_id, "tpe:relative_params:0", value)
        study = hall.study("odd").optuna
        study.sampler = TPESampler(n_startup_trials=0)
        study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})


def test_a_constraint_beyond_every_float_does_not_hold(hall: Hall, odd: Study) -> None:
    assert not is_feasible({"constraints:c": 10**400}) and is_feasible(
        {"constraints:c": -(10**400)}
    )


def test_a_worker_gives_its_trial_back_when_another_trial_cannot_be_read(
    hall: Hall, odd: Study
) -> None:
    write(hall, DISTRIBUTION, text="no JSON")
    with pytest.raises(UnreadableRow, match="the distribution of the parameter 'x'"):
        Worker(odd, hall, odd.spec.load(), "w1", "cpu").run()
    again = leases.claim(hall.engine, odd.study_id, "w2", 60.0)
    assert again is not None and again.attempt == 2
    assert [a.cause for a in odd.attempts()[again.trial_id]] == ["preempted", None]


def test_the_cure_of_a_module_that_was_not_imported_by_name_is_a_folder() -> None:
    assert registry.cure("__main__:objective").startswith("--")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("__main__.__spec__", None, raising=False)
        assert registry.cure("__main__:objective") == "--path FOLDER"


def test_the_connection_goes_on_after_an_answer_that_is_no_json(hall: Hall) -> None:
    connection = SharedConnection.of(hall.engine)
    with pytest.raises(UnreadableRow):
        connection.query_json("SELECT 'x'")
    assert connection.query_json("SELECT '[1]'") == [1]
