"""Confirmation: the best trials again on fresh seeds; who wins, who leaves, what is counted."""

from __future__ import annotations

import threading

import optuna
import pytest
import sqlalchemy
import stubs
from optuna.trial import TrialState

from service import Budget, ConfigurationError, Hall, Spec, Study, WorkFailed
from service.errors import UnreadableRow
from service.storage import leases
from service.storage.storage import StudyStorage
from service.studies import candidates, linked
from service.studies.confirmation import Confirmation
from service.workers.worker import Worker

LINK = sqlalchemy.text(
    """UPDATE service.studies SET spec = spec || jsonb_build_object('linked', CAST(:link AS jsonb))
        WHERE study_id = :study_id"""
)
GRID = {"search_space": {"configuration": [*range(31)]}}


def work(hall: Hall, study: Study, name: str = "w1") -> int:
    return Worker(study, hall, study.spec.load(), name, "cpu").run()


def searched(hall: Hall, objective: str, n_trials: int, **spec: object) -> Study:
    study = hall.create(objective, Spec(f"stubs:{objective}", **spec), Budget(n_trials))  # type: ignore[arg-type]
    work(hall, study)
    return study


def confirmed(study: Study) -> Confirmation:
    found = study.confirmation()
    assert found is not None
    return found


def test_luck_wins_the_search_and_the_confirmation_finds_the_truly_better(hall: Hall) -> None:
    # Thirty configurations that differ by nothing but luck, and number 7, truly better by 2.
    study = searched(
        hall, "noisy", 31, seed=3, direction="maximize", sampler="grid", sampler_arguments=GRID
    )
    lucky = study.best
    assert lucky is not None and lucky.params["configuration"] != 7
    work(hall, study.confirm(top=8, seeds=10))
    found = confirmed(study)
    winner = found.winner
    assert winner is not None and winner.params == {"configuration": 7}
    assert winner.p_best is not None and winner.p_best > 0.9
    others = [one for one in found.candidates if one is not winner]
    # The true mean of the others is 0, and all of their tuned values are luck.
    assert all(one.drop is not None and one.tuned is not None for one in others)
    assert all(one.drop > 0.5 for one in others if one.drop is not None)
    assert max(others, key=lambda one: one.tuned or 0).number == lucky.number
    assert not found.missing


def test_all_candidates_get_the_same_fresh_seeds(hall: Hall) -> None:
    study = searched(hall, "settled", 5, direction="maximize")
    again = study.confirm(top=2, seeds=3)
    trials = again.optuna.trials
    assert [trial.state for trial in trials] == [TrialState.WAITING] * 6
    best = sorted(study.optuna.trials, key=lambda trial: -trial.value)[:2]
    # Seed after seed: workers that come and go leave complete seeds behind.
    assert [trial.params for trial in trials] == [best[0].params, best[1].params] * 3
    seeds = [trial.system_attrs[linked.SEED] for trial in trials]
    assert seeds[::2] == seeds[1::2] and len({*seeds}) == 3
    assert not {*seeds} & {linked.seed_of(0, trial) for trial in study.optuna.trials}
    work(hall, again)
    assert again.progress().state == "finished"
    assert (again.progress().begun, again.progress().complete) == (6, 6)
    for trial in again.optuna.trials:
        fixed = optuna.trial.FixedTrial(trial.params)
        fixed.seed = trial.system_attrs[linked.SEED]  # type: ignore[attr-defined]
        assert trial.value == stubs.settled(fixed)  # type: ignore[arg-type]


def test_candidates_that_cannot_win_leave_and_the_budget_stays_exact(hall: Hall) -> None:
    grid = {"search_space": {"choice": [*range(5)]}}
    study = searched(hall, "worse_by_far", 5, sampler="grid", sampler_arguments=grid)
    again = study.confirm(top=5, seeds=8)
    work(hall, again)
    found = confirmed(study)
    assert found.winner is not None and found.winner.params == {"choice": 0}
    left = {one.params["choice"]: one.withdrawn for one in found.candidates}
    assert left[0] is None
    assert [(left[c].seeds, left[c].rival is None) for c in (1, 2, 3, 4)] == [  # type: ignore[union-attr]
        (3, False),
        (3, True),
        (3, False),
        (3, False),
    ]
    progress = again.progress()
    # 15 runs until the third seed is complete, then five more of the only one left.
    assert (progress.n_trials, progress.begun, progress.finished) == (40, 40, 40)
    assert (progress.complete, progress.failed, progress.pruned) == (17, 3, 20)
    assert (progress.state, progress.waiting, progress.added) == ("finished", 0, 0)
    causes = [row["cause"] for row in again.records() if row["state"] == "pruned"]
    assert causes == ["withdrawn"] * 20
    assert len(again.attempts()) == 20
    failing = next(one for one in found.candidates if one.params["choice"] == 2)
    assert (failing.failed, failing.mean, failing.can_win) == (3, None, False)
    # The order of the table: who is in the race, then the others, by their means.
    assert [one.params["choice"] for one in found.candidates] == [0, 1, 3, 4, 2]


def test_withdrawing_and_claiming_at_once_counts_every_trial_once(hall: Hall) -> None:
    grid = {"search_space": {"choice": [*range(5)]}}
    study = searched(hall, "worse_by_far", 5, sampler="grid", sampler_arguments=grid)
    again = study.confirm(top=5, seeds=40)
    storage = StudyStorage(hall.engine)
    # Three complete seeds, told without a worker: nobody has looked at the race yet.
    for lease in (claim(hall, again) for _ in range(15)):
        storage.hold(lease)
        params = storage.get_trial(lease.trial_id).params
        value = 100.0 * params["choice"] + lease.number**2 % 7
        storage.finish(lease, TrialState.COMPLETE, [value])
    halls = [Hall(hall.settings) for _ in range(4)]
    start = threading.Barrier(len(halls))
    claimed: list[int] = []

    def race(one: Hall) -> None:
        mine = StudyStorage(one.engine)
        start.wait()
        candidates.withdraw_losers(one.engine, mine, again.study_id)
        while (lease := leases.claim(one.engine, again.study_id, "w", 60.0)) is not None:
            claimed.append(lease.number)

    threads = [threading.Thread(target=race, args=(one,)) for one in halls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    progress = again.progress()
    assert progress.begun == progress.n_trials == 200
    assert progress.waiting == 0
    assert len({*claimed}) == len(claimed) == progress.running == 200 - 15 - progress.pruned
    assert progress.pruned >= 4 * 37 - 4 * len(halls)
    # Once more: nothing is left to withdraw, and nothing is counted twice.
    assert candidates.withdraw_losers(hall.engine, storage, again.study_id) == []
    assert again.progress().begun == 200


def claim(hall: Hall, study: Study) -> leases.Lease:
    lease = leases.claim(hall.engine, study.study_id, "w", 60.0)
    assert lease is not None
    return lease


def test_the_same_command_again_goes_on_and_larger_numbers_add_runs(hall: Hall) -> None:
    study = searched(hall, "settled", 4, direction="maximize")
    first = study.confirm(top=2, seeds=2)
    work(hall, first)
    again = study.confirm(top=2, seeds=2)
    assert (again.name, again.progress().n_trials) == ("settled-confirm", 4)
    work(hall, study.confirm(top=2, seeds=4))
    assert again.progress().begun == 8
    work(hall, study.confirm(top=3))  # five seeds: one more for two, five for the third
    found = confirmed(study)
    assert [one.complete for one in found.candidates] == [5, 5, 5]
    assert again.progress().begun == 15
    runs = {
        (t.system_attrs[linked.SOURCE], t.system_attrs[linked.INDEX]) for t in again.optuna.trials
    }
    assert len(runs) == 15


def test_withdrawn_candidates_get_no_more_seeds(hall: Hall) -> None:
    grid = {"search_space": {"choice": [0, 1]}}
    study = searched(hall, "worse_by_far", 2, sampler="grid", sampler_arguments=grid)
    again = study.confirm(top=2, seeds=4)
    work(hall, again)
    assert again.progress().pruned == 1
    work(hall, study.confirm(top=2, seeds=6))
    assert again.progress().n_trials == again.progress().begun == 10
    assert [one.complete for one in confirmed(study).candidates] == [6, 3]


def test_a_search_that_has_gone_on_is_visible(hall: Hall) -> None:
    study = searched(hall, "quick", 4)
    work(hall, study.confirm(top=1, seeds=2))
    assert confirmed(study).missing == []
    study.optuna.add_trial(
        optuna.trial.create_trial(
            params={"x": 0.0},
            distributions={"x": optuna.distributions.FloatDistribution(-10, 10)},
            value=0.0,
        )
    )
    assert confirmed(study).missing == [4]
    work(hall, study.confirm(top=1, seeds=2))
    found = confirmed(study)
    assert found.missing == [] and found.winner is not None and found.winner.number == 4


def test_trials_with_the_same_parameters_are_one_candidate(hall: Hall) -> None:
    study = hall.create("noisy", Spec("stubs:noisy", direction="maximize"), Budget(8))
    for configuration in (7, 7, 7, 2, 2, 7, 2, 7):
        study.optuna.enqueue_trial({"configuration": configuration})
    work(hall, study)
    again = study.confirm(top=5, seeds=2)
    assert again.progress().n_trials == 4
    best = max((t for t in study.optuna.trials), key=lambda trial: trial.value)
    assert best.number in {trial.system_attrs[linked.SOURCE] for trial in again.optuna.trials}


def test_a_taken_over_run_keeps_its_parameters_and_its_seed(hall: Hall) -> None:
    study = searched(hall, "settled", 2, direction="maximize")
    again = study.confirm(top=1, seeds=2)
    lease = leases.claim(hall.engine, again.study_id, "dead", 0.0)
    assert lease is not None
    work(hall, again)
    first, second = again.optuna.trials
    assert len(again.attempts()[first._trial_id]) == 2
    assert first.params == second.params and first.value != second.value
    fixed = optuna.trial.FixedTrial(first.params)
    fixed.seed = first.system_attrs[linked.SEED]  # type: ignore[attr-defined]
    assert first.value == stubs.settled(fixed)  # type: ignore[arg-type]


def test_a_linked_study_begins_nothing_that_was_not_enqueued(hall: Hall) -> None:
    study = searched(hall, "quick", 2)
    again = study.confirm(top=1, seeds=2)
    again.optuna.ask()  # plain Optuna takes one of the two
    assert work(hall, again) == 0
    assert len(again.optuna.trials) == 2
    assert again.progress().state == "finished"
    with pytest.raises(ConfigurationError, match="studyhall confirm"):
        again.resume(n_trials=10)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [("x", "x,y", "suggests 'y'"), ("x,y", "x", "no longer suggests y")],
)
def test_an_objective_with_other_parameters_stops_the_study(
    hall: Hall, monkeypatch: pytest.MonkeyPatch, before: str, after: str, message: str
) -> None:
    monkeypatch.setenv("STUB_PARAMETERS", before)
    study = searched(hall, "sometimes_other", 2)
    again = study.confirm(top=1, seeds=2)
    monkeypatch.setenv("STUB_PARAMETERS", after)
    with pytest.raises(ConfigurationError, match=message):
        work(hall, again)
    assert again.progress().state == "stopped"
    assert again.progress().complete == 0


def test_each_seed_may_have_a_split_of_its_own(hall: Hall) -> None:
    study = searched(hall, "settled", 2, direction="maximize", settings={"split_seed": 0})
    whole, resplit = study.confirm(seeds=3), study.confirm(seeds=3, resplit=True)
    assert [whole.name, resplit.name] == ["settled-confirm", "settled-confirm-2"]
    trials = resplit.optuna.trials
    splits = [trial.system_attrs[linked.SPLIT_SEED] for trial in trials]
    assert splits[::2] == splits[1::2] and len({*splits}) == 3
    work(hall, whole)
    work(hall, resplit)
    # The same seeds on other splits: the stub's values depend on both.
    pairs = zip(whole.optuna.trials, resplit.optuna.trials, strict=True)
    assert all(one.value != other.value for one, other in pairs)
    assert confirmed(study).resplit
    plain = searched(hall, "quick", 1)
    with pytest.raises(ConfigurationError, match="split_seed"):
        plain.confirm(resplit=True)


def test_what_cannot_be_confirmed_is_refused_in_one_line(hall: Hall) -> None:
    study = hall.create("failing_or_nan", Spec("stubs:failing_or_nan"), Budget(2))
    work(hall, study)
    with pytest.raises(WorkFailed, match="no feasible trial"):
        study.confirm()
    good = searched(hall, "quick", 1)
    for refused in (lambda: good.confirm(top=0), lambda: good.confirm(seeds=1)):
        with pytest.raises(ConfigurationError, match="at least 1 trial and 2 seeds"):
            refused()
    with pytest.raises(ConfigurationError, match="studyhall confirm quick"):
        good.confirm().confirm()
    assert good.confirmation() is not None and study.confirmation() is None
    assert [one.name for one in good.linked()] == ["quick-confirm"]


def test_infeasible_trials_are_no_candidates(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_LEAST", "4")
    grid = {"search_space": {"x": [*range(1, 9)]}}
    study = searched(hall, "constrained", 8, sampler="grid", sampler_arguments=grid)
    again = study.confirm(top=3, seeds=2)
    assert {trial.params["x"] for trial in again.optuna.trials} == {4, 5, 6}


def test_commands_at_once_make_one_study_under_a_free_name(hall: Hall) -> None:
    study = searched(hall, "quick", 3)
    hall.create("quick-confirm", Spec("stubs:quick"), Budget(1))  # not linked to anything
    halls = [Hall(hall.settings) for _ in range(4)]
    start = threading.Barrier(len(halls))
    made: list[str] = []

    def confirm(one: Hall) -> None:
        mine = one.study("quick")
        start.wait()
        made.append(mine.confirm(top=3, seeds=4).name)

    threads = [threading.Thread(target=confirm, args=(one,)) for one in halls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == ["quick-confirm-2"] * 4
    (again,) = study.linked("confirm")
    progress = again.progress()
    assert (progress.n_trials, progress.waiting) == (12, 12)


def test_a_stopped_confirmation_keeps_what_it_has_and_is_resumed_as_any_study(hall: Hall) -> None:
    study = searched(hall, "quick", 2)
    again = study.confirm(top=2, seeds=2)
    again.stop()
    assert work(hall, again) == 0
    found = confirmed(study)
    assert (found.state, found.winner, found.is_final) == ("stopped", None, False)
    again.resume()
    work(hall, again)
    assert confirmed(study).is_final


def test_rows_that_we_have_not_written_break_nothing(hall: Hall) -> None:
    study = searched(hall, "quick", 2)
    again = study.confirm(top=2, seeds=2)
    with hall.engine.begin() as connection:
        for statement in (
            """UPDATE public.trial_system_attributes SET value_json = '"x"'
                WHERE key IN ('studyhall:tuned', 'studyhall:seed', 'studyhall:split_seed')""",
            """UPDATE public.trial_system_attributes SET value_json = '"x"'
                WHERE key = 'studyhall:source' AND trial_id % 2 = 0""",
            """UPDATE public.study_system_attributes SET value_json = '[]'""",
            """INSERT INTO public.study_system_attributes (study_id, key, value_json)
               SELECT study_id, 'studyhall:withdrawn:0', '{"seeds": "x"}' FROM public.studies""",
        ):
            connection.execute(sqlalchemy.text(statement.replace(":", r"\:")))
    assert work(hall, again) == 0
    found = confirmed(study)
    assert [(one.tuned, one.complete) for one in found.candidates] in (
        [(None, 2)],
        [(None, 1)] * 2,
    )
    for link in ("[]", '"x"', '{"uid": 1}'):
        with hall.engine.begin() as connection:
            connection.execute(LINK, {"link": link, "study_id": again.study_id})
        if link.startswith("{"):
            assert hall.study(again.name).spec.linked is None
        else:
            with pytest.raises(UnreadableRow, match="in its spec, linked cannot be"):
                hall.study(again.name)
        assert study.confirmation() is None
