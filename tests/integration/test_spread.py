"""The spread of folds and executions is shown beside the value, wherever that is shown."""

from __future__ import annotations

import csv
import io

import pytest
from optuna.trial import TrialState, create_trial
from rich.console import Console

from service import Study
from service.cli import display, making
from service.errors import SpecMismatch
from service.studies.permission import Permission
from service.studies.records import standard_deviation
from service.studies.spec import Spec, refuse_contradictions
from service.workers.outcome import Outcome


def printed(renderable: object) -> str:
    console = Console(width=200, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_best_status_and_trials_show_the_spread_of_a_mean(study: Study) -> None:
    attrs = {"folds": [1.5, 2.5], "std": 0.7071, "epoch": 3}
    study.optuna.add_trial(create_trial(value=2.0, user_attrs=attrs))
    pruned = create_trial(
        state=TrialState.PRUNED, intermediate_values={0: 9.0, 1: 8.0}, user_attrs=attrs
    )
    study.optuna.add_trial(pruned)
    study.optuna.add_trial(create_trial(value=5.0, user_attrs={"std": "three"}))
    best = study.best
    assert best is not None and best.std == best.to_json()["std"] == 0.7071
    line = "best trial 0: val_loss 2 (std 0.71) at epoch 3"
    assert display.best_line(best, "val_loss") == line
    assert line in printed(display.status(study.progress(), "val_loss"))
    records = study.records()
    assert [row["std"] for row in records] == [0.7071, None, None]
    assert printed(display.trials(records)).count("(std") == 1
    rows = list(csv.DictReader(io.StringIO(display.trials_csv(records))))
    assert [row["std"] for row in rows] == ["0.7071", "", ""]


def test_a_workers_line_shows_the_spread() -> None:
    outcome = Outcome.of_value(0.5)
    assert outcome.describe("val_loss", 3, 0.02) == "complete, val_loss 0.5 (std 0.02) at epoch 3"
    assert outcome.describe("val_loss", 3) == "complete, val_loss 0.5 at epoch 3"


@pytest.mark.parametrize("std", [None, True, "0.1", float("nan"), [0.1]])
def test_an_attribute_that_is_no_spread_is_none(std: object) -> None:
    assert standard_deviation({"std": std}) is None


def test_the_line_of_the_data_names_the_parts() -> None:
    data = {"name": "mine", "source": "here", "parts": "5 training, 2 validation (given)\n"}
    line = "data: mine from here: 5 training, 2 validation (given)\\n"
    assert display.data_line(data) == line
    assert display.data_line({"name": "mine", "source": "here"}) == "data: mine from here"


def test_a_study_from_before_a_setting_has_its_default() -> None:
    settings = Spec("mnist-mlp").load().settings_dict()  # type: ignore[attr-defined]
    older = {key: value for key, value in settings.items() if key not in ("folds", "executions")}
    stored = Spec("mnist-mlp", settings=older)

    def compare(*given: str) -> None:
        options = dict.fromkeys([*making.COMPARED, "data", "data_dir"], None)
        options |= {"objective": "mnist-mlp", "sampler_arg": (), "pruner_arg": ()}
        options["settings"] = given
        explicit = making.explicit_options(options, stored, Permission())
        refuse_contradictions("older", stored.to_json(), explicit)

    compare("epochs=10", "folds=0")
    with pytest.raises(SpecMismatch, match="folds is None, not 3"):
        compare("folds=3")
    with pytest.raises(SpecMismatch, match="epochs is 10, not 4"):
        compare("epochs=4")
