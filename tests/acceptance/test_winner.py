"""After a search: the test set is opened once, and the exported model is the recorded one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import keras_stub
import numpy as np
import optuna
import pytest
from shell import TESTS, Shell

from objectives import BuildError
from objectives.evaluation import classes_report, load_weights, wilson_interval, write_model

LOADS_IT = """
import json, sys
import keras, numpy as np
x = np.random.RandomState(0).uniform(size=(400, 2)).astype("float32")
y = (x[:, 0] > x[:, 1]).astype("int32")
model = keras.saving.load_model("model.keras")
print(float((model.predict(x[300:], verbose=0).argmax(axis=1) == y[300:]).mean()))
assert not {"objectives", "service", "optuna"} & sys.modules.keys()
"""


def test_the_winner_is_measured_once_and_exported(shell: Shell, tmp_path: Path) -> None:
    source = (TESTS / "keras_stub.py").read_text()
    module = tmp_path / "own.py"
    module.write_text(source)
    run = ["run", "own:objective", "--study", "k", "--trials", "3", "--workers", "1"]
    path = ["--path", str(tmp_path)]
    shell(*run, *path)
    best = shell.json("best", "k", "--json")

    refused = shell("evaluate", "k", check=False)
    assert refused.returncode == 2 and "--path FOLDER" in refused.stderr, "rows choose no code"
    opening = shell.json("evaluate", "k", *path, "--json")
    assert opening["number"] == best["number"]
    assert opening["result"]["n"] == 100
    again = shell("evaluate", "k", *path, check=False)
    assert again.returncode == 2
    assert "was opened once" in again.stderr and "--again" in again.stderr
    assert "has now been opened 2 times" in shell("evaluate", "k", *path, "--again").stdout
    assert "test set opened 2 times" in shell("status", "k").stdout
    assert len(shell.json("status", "k", "--json")["test"]) == 2

    out = tmp_path / "out"
    card = shell.json("export", "k", str(out), *path, "--json")
    assert card == json.loads((out / "card.json").read_text())
    names = {"model.keras", "card.md", "card.json", "curve.png"}
    assert {found.name for found in out.iterdir()} == names
    assert card["recorded"]["val_accuracy"] == card["trial"]["value"] == best["value"]
    assert abs(card["reproduced"]["val_accuracy"] - best["value"]) < 1e-6
    assert "**2 times**" in (out / "card.md").read_text()
    done = subprocess.run(
        [sys.executable, "-c", LOADS_IT], cwd=out, capture_output=True, text=True, check=True
    )
    measured = card["test"][0]["result"]
    assert float(done.stdout) == measured["classes"]["accuracy"]
    assert "Warning" not in done.stderr
    full = shell("export", "k", str(out), *path, check=False)
    assert full.returncode == 2 and "exists already" in full.stderr

    module.write_text(source.replace('"relu"', '"tanh"'))
    other = ["export", "k", str(tmp_path / "other"), *path]
    done = shell(*other, check=False)
    assert done.returncode == 2 and "own.py changed" in done.stderr
    done = shell(*other, "--allow-drift", check=False)
    assert done.returncode == 1, done.stdout
    assert f"does not reproduce what trial {best['number']} recorded: val_loss" in done.stderr
    assert not (tmp_path / "other").exists()
    assert [found.name for found in tmp_path.iterdir() if found.name.startswith(".o")] == []


def test_there_is_nothing_to_export_without_a_model(shell: Shell, tmp_path: Path) -> None:
    shell("create", "stubs:quick", "--study", "q", "--trials", "2")
    done = shell("export", "q", str(tmp_path / "out"), check=False)
    assert done.returncode == 1 and "no feasible trial of study 'q' is complete" in done.stderr
    shell("worker", "q", "--workers", "1")
    done = shell("export", "q", str(tmp_path / "out"), check=False)
    assert done.returncode == 1 and "calls no trial.save_model" in done.stderr
    assert "calls no trial.save_model" in shell("evaluate", "q", check=False).stderr


def test_the_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    trial = optuna.trial.FixedTrial({"units": 3})
    model = keras_stub.build(trial, keras_stub.objective.dataset())
    path = write_model(model, model.get_weights(), tmp_path)
    other = keras_stub.build(optuna.trial.FixedTrial({"units": 4}), keras_stub.objective.dataset())
    with pytest.raises(BuildError, match="builds another model than the one that was saved"):
        load_weights(other, path)


def test_a_report_on_classes_counts_what_is_taken_for_what() -> None:
    labels, predicted = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 2, 0, 2])
    report = classes_report(labels, predicted)
    assert report["confusion"] == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]
    assert report["accuracy"] == 4 / 6
    rows = report["per_class"]
    assert [row["n"] for row in rows] == [2, 1, 3]
    assert [row["precision"] for row in rows] == [1 / 2, 1 / 2, 1.0]
    assert [row["recall"] for row in rows] == [1 / 2, 1.0, 2 / 3]
    # Brown, Cai, DasGupta (2001), and the two ends.
    low, high = wilson_interval(8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    assert wilson_interval(0, 10)[0] == 0.0 and wilson_interval(10, 10)[1] == 1.0
