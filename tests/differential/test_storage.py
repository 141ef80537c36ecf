"""The same operations on stock RDBStorage and on StudyStorage: the same answers and tables.

The reference is stock Optuna on a database of its own. On ours, three storages take turns, as
three processes would: two of ours, with caches of their own, and stock Optuna. Ours also claim
trials (`leased.LeasedTrials`). `make fuzz` plays many more histories.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import hypothesis.strategies as st
import optuna
import pytest
import sqlalchemy
from databases import temporary_database
from digest_comparison import digest_fields, expected_digest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import initialize, rule, run_state_machine_as_test
from leased import LeasedTrials
from optuna.distributions import BaseDistribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from spaces import directions, json_values, keys, numbers, params, states, steps, templates
from sqlalchemy.engine import Engine

from service import database
from service.storage.storage import StudyStorage

FUZZ_EXAMPLES = os.environ.get("STUDYHALL_FUZZ_EXAMPLES")
"""How many histories `make fuzz` plays: new ones at each run, reduced where they fail."""
EXAMPLES = int(FUZZ_EXAMPLES or 15)
STEPS = 50 if FUZZ_EXAMPLES else 20
NO_ID = (2**31 - 2, -1, 2**31, 2**40, 2**70)
TABLES = {
    "studies": "study_name",
    "study_directions": "study_name, objective, direction",
    "study_user_attributes": "study_name, key, value_json",
    "study_system_attributes": "study_name, key, value_json",
    "trials": "study_name, number, state, datetime_start IS NULL, datetime_complete IS NULL",
    "trial_params": "study_name, number, param_name, param_value, distribution_json",
    "trial_values": "study_name, number, objective, value, value_type",
    "trial_intermediate_values": "study_name, number, step, intermediate_value, "
    "intermediate_value_type",
    "trial_user_attributes": "study_name, number, key, value_json",
    "trial_system_attributes": "study_name, number, key, value_json",
}


def contents(engine: Engine) -> dict[str, list[str]]:
    """Optuna's tables, with names and numbers in place of ids."""
    found = {}
    with engine.connect() as connection:
        for table, columns in TABLES.items():
            source = "studies"
            if table != "studies":
                by_trial = table.startswith("trial_")
                source = f"{table} JOIN trials USING (trial_id)" if by_trial else table
                source += " JOIN studies USING (study_id)"
            rows = connection.execute(sqlalchemy.text(f"SELECT {columns} FROM {source}"))
            found[table] = sorted(map(repr, rows))
    return found


def shown(answer: Any) -> Any:
    """An answer as text, without ids and times."""
    if isinstance(answer, FrozenTrial):
        fields = dict(vars(answer))
        fields.pop("_trial_id")
        for name in ("_datetime_start", "datetime_complete"):
            fields[name] = fields[name] is not None
        for name in ("_user_attrs", "_system_attrs", "intermediate_values"):
            fields[name] = sorted(fields[name].items())
        return repr(fields)
    if isinstance(answer, list):
        return [shown(each) for each in answer]
    if isinstance(answer, dict):
        return sorted(map(repr, answer.items()))
    return repr(answer)


def described(digests: list[dict[str, Any]]) -> list[str]:
    """Digests as text; running trials without parameters need not have one."""
    return sorted(
        repr({**digest, "reports": sorted(digest["reports"].items())})
        for digest in digests
        if digest["params"] or digest["state"] != TrialState.RUNNING
    )


def outcome(operation: Callable[..., Any], *arguments: Any) -> tuple[Any, Any]:
    """The answer of an operation, or the class of its error."""
    try:
        return operation(*arguments), None
    except Exception as error:
        return None, type(error)


class Differential(LeasedTrials):
    """Plays operations on both sides; every rule compares the outcomes."""

    stock_engine: ClassVar[Engine]
    our_engine: ClassVar[Engine]
    stocks: ClassVar[tuple[RDBStorage, RDBStorage]]
    operations: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        for engine in (self.stock_engine, self.our_engine):
            with engine.begin() as connection:
                connection.execute(sqlalchemy.text("TRUNCATE studies, trials CASCADE"))
                if engine is self.our_engine:
                    ours = "service.digests, service.studies, service.leases, service.attempts"
                    connection.execute(sqlalchemy.text(f"TRUNCATE {ours}"))
        self.stock, beside = self.stocks
        self.ours = [StudyStorage(self.our_engine), StudyStorage(self.our_engine)]
        self.all = [*self.ours, beside]
        self.studies: list[tuple[int, int]] = []
        self.trials: list[tuple[int, int, int]] = []
        self.serial = 0

    def both(
        self, by: int, method: str, ids: tuple[int, int] | None, *arguments: Any
    ) -> tuple[Any, Any, Any]:
        """Do it on both sides and compare; returns both answers and the error."""
        type(self).operations += 1
        self.flush(but=ids)
        before, after = ([ids[0]], [ids[1]]) if ids else ([], [])
        expected, error = outcome(getattr(self.stock, method), *before, *arguments)
        found, our_error = outcome(getattr(self.all[by], method), *after, *arguments)
        if method == "create_new_trial" and error not in (None, KeyError):
            # A template may have several faults; which of them is found first may differ.
            assert our_error not in (None, KeyError), (method, arguments, error)
        else:
            assert our_error is error, (method, arguments, our_error, error, found)
        return expected, found, error

    def compare(self, by: int, method: str, ids: tuple[int, int] | None, *rest: Any) -> None:
        expected, found, _ = self.both(by, method, ids, *rest)
        assert shown(found) == shown(expected), (method, rest)

    def study(self, place: int) -> tuple[int, int]:
        if place < len(NO_ID) or not self.studies:
            return (NO_ID[place % len(NO_ID)],) * 2
        return self.studies[place % len(self.studies)]

    def trial(self, place: int) -> tuple[int, int]:
        if place < len(NO_ID) or not self.trials:
            return (NO_ID[place % len(NO_ID)],) * 2
        return self.trials[place % len(self.trials)][:2]

    @initialize(wanted=directions)
    def begin(self, wanted: list[StudyDirection]) -> None:
        self.create_study(0, wanted, None)

    @rule(by=st.integers(0, 2), wanted=directions, name=st.none() | keys)
    def create_study(self, by: int, wanted: list[StudyDirection], name: str | None) -> None:
        if name is None:
            self.serial += 1
            name = f"study {self.serial}"
        expected, found, error = self.both(by, "create_new_study", None, wanted, name)
        if error is None:
            self.studies.append((expected, found))

    @rule(by=st.integers(0, 2), study=st.integers(3, 60), chance=st.integers(0, 7))
    def delete_study(self, by: int, study: int, chance: int) -> None:
        ids = self.study(study)
        if chance == 0:
            self.forget_study(ids)
            self.both(by, "delete_study", ids)
            # A process answers from memory until it next reads the trials (docs/storage.md).
            for storage in self.ours:
                outcome(storage.get_all_trials, ids[1])

    @rule(
        by=st.integers(0, 2),
        study=st.integers(3, 60),
        kind=st.booleans(),
        key=keys,
        value=json_values,
    )
    def set_study_attr(self, by: int, study: int, kind: bool, key: str, value: Any) -> None:
        method = "set_study_user_attr" if kind else "set_study_system_attr"
        self.compare(by, method, self.study(study), key, value)

    @rule(by=st.integers(0, 2), study=st.integers(3, 60), name=keys)
    def read_study(self, by: int, study: int, name: str) -> None:
        ids = self.study(study)
        for method in (
            "get_study_name_from_id",
            "get_study_directions",
            "get_study_user_attrs",
            "get_study_system_attrs",
        ):
            self.compare(by, method, ids)
        self.both(by, "get_study_id_from_name", None, name)
        expected, found, _ = self.both(by, "get_all_studies", None)
        for left, right in zip(expected, found, strict=True):
            right._study_id = left._study_id
            fields = [
                {name: shown(value) for name, value in vars(each).items()}
                for each in (left, right)
            ]
            assert fields[0] == fields[1]

    @rule(by=st.integers(0, 2), study=st.integers(3, 60), template=st.none() | templates())
    def create_trial(self, by: int, study: int, template: FrozenTrial | None) -> None:
        ids = self.study(study)
        expected, found, error = self.both(by, "create_new_trial", ids, template)
        if error is None:
            self.trials.append((expected, found, ids[0]))

    @rule(by=st.integers(0, 2), trial=st.integers(3, 60), param=params())
    def set_param(self, by: int, trial: int, param: tuple[str, float, BaseDistribution]) -> None:
        self.compare(by, "set_trial_param", self.trial(trial), *param)

    @rule(
        by=st.integers(0, 2),
        trial=st.integers(3, 60),
        state=states,
        values=st.none() | st.lists(numbers, max_size=3),
    )
    def set_state(
        self, by: int, trial: int, state: TrialState, values: list[float] | None
    ) -> None:
        self.compare(by, "set_trial_state_values", self.trial(trial), state, values)

    @rule(by=st.integers(0, 2), trial=st.integers(3, 60), step=steps, value=numbers)
    def report(self, by: int, trial: int, step: int, value: float) -> None:
        self.compare(by, "set_trial_intermediate_value", self.trial(trial), step, value)

    @rule(
        by=st.integers(0, 2),
        trial=st.integers(3, 60),
        kind=st.booleans(),
        key=keys,
        value=json_values,
    )
    def set_trial_attr(self, by: int, trial: int, kind: bool, key: str, value: Any) -> None:
        method = "set_trial_user_attr" if kind else "set_trial_system_attr"
        self.compare(by, method, self.trial(trial), key, value)

    @rule(by=st.integers(0, 2), trial=st.integers(3, 60), name=keys | st.sampled_from("xyzc"))
    def read_trial(self, by: int, trial: int, name: str) -> None:
        ids = self.trial(trial)
        for method in (
            "get_trial",
            "get_trial_params",
            "get_trial_user_attrs",
            "get_trial_system_attrs",
            "get_trial_number_from_id",
        ):
            self.compare(by, method, ids)
        if "\0" not in name:
            self.compare(by, "get_trial_param", ids, name)

    @rule(
        by=st.integers(0, 2),
        study=st.integers(3, 60),
        wanted=st.none() | st.lists(states, max_size=3).map(tuple),
        number=st.integers(-1, 9),
    )
    def read_trials(
        self, by: int, study: int, wanted: tuple[TrialState, ...] | None, number: int
    ) -> None:
        ids = self.study(study)
        self.compare(by, "get_all_trials", ids, True, wanted)
        self.compare(by, "get_n_trials", ids, wanted)
        self.both(by, "get_trial_id_from_study_id_trial_number", ids, number)

    @rule(by=st.integers(0, 2), study=st.integers(3, 60))
    def best(self, by: int, study: int) -> None:
        expected, found, error = self.both(by, "get_best_trial", self.study(study))
        if error is None:
            # Of equal trials, stock returns any.
            assert repr(found.values[:1]) == repr(expected.values[:1])

    @rule(by=st.integers(0, 1))
    def digests(self, by: int) -> None:
        self.flush()
        for ids in self.studies:
            trials, error = outcome(self.stock.get_all_trials, ids[0])
            if error is not None:
                continue
            cache = self.ours[by].digest_cache(ids[1], running=True)
            found = [digest_fields(each) for each in (*cache.finished, *cache.running.values())]
            expected = [
                expected_digest(trial)
                for trial in trials
                if trial.state.is_finished() or trial.state == TrialState.RUNNING
            ]
            assert described(found) == described(expected)

    def teardown(self) -> None:
        self.flush()
        assert contents(self.our_engine) == contents(self.stock_engine)
        for storage in (*self.all, StudyStorage(self.our_engine)):
            for ids in self.studies:
                expected, error = outcome(self.stock.get_all_trials, ids[0])
                found, our_error = outcome(storage.get_all_trials, ids[1])
                assert (shown(found), our_error) == (shown(expected), error)
        for place in range(2):
            self.digests(place)
        for storage in (self.stock, self.all[2]):
            storage.remove_session()


def stock(engine: Engine) -> RDBStorage:
    """Stock Optuna's storage on the database of an engine."""
    url = database.database_url_for_stock(database.full_url(engine.url))
    return RDBStorage(url, skip_compatibility_check=True, skip_table_creation=True)


@pytest.fixture
def two_databases(
    server_url: str, template: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(temporary_database(server_url, template)) for _ in range(2)]
        engines = [database.create_engine(url) for url in urls]
        Differential.stock_engine, Differential.our_engine = engines
        Differential.stocks = (stock(engines[0]), stock(engines[1]))
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # Stock tries a creation that the database refuses five times, with pauses.
        monkeypatch.setattr(optuna.storages._rdb.storage.time, "sleep", lambda seconds: None)
        yield
        for engine in engines:
            engine.dispose()


@pytest.mark.timeout(0)
def test_stock_and_ours_do_the_same(two_databases: None) -> None:
    run_state_machine_as_test(
        Differential,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            phases=(Phase.generate, Phase.shrink) if FUZZ_EXAMPLES else (Phase.generate,),
            derandomize=FUZZ_EXAMPLES is None,
            report_multiple_bugs=False,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(f"{Differential.operations} operations")
