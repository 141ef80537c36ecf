"""A study and its attempts keep where they come from; a worker that differs is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shell import Shell

from service import connect
from service.studies.study import Study

MINE = """
from helper import {name}

class Objective:
    direction = "minimize"
    settings_ = {{}}

    def __call__(self, trial):
        return helper(trial.suggest_float("x", 0, 1))

    def configured(self, settings, data=None, data_dir=None):
        made = Objective()
        made.settings_ = dict(settings)
        return made

    def settings_dict(self):
        return self.settings_

    def data(self):
        import os
        letter = os.environ["STUB_DATA"]
        return {{"name": "table", "source": letter, "kind": "real", "fingerprint": letter * 64}}

objective = Objective()
"""


@pytest.fixture
def project(shell: Shell, tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "mine.py").write_text(MINE.format(name="helper"))
    (folder / "helper.py").write_text("def helper(x):\n    return x\n")
    shell.environment |= {"STUDYHALL_ALLOW": "", "STUB_DATA": "a"}
    return folder


def open_study(shell: Shell, name: str) -> Study:
    return connect(shell.environment["STUDYHALL_DATABASE_URL"]).study(name)


def test_an_edited_objective_is_refused_unless_drift_is_allowed(
    shell: Shell, project: Path
) -> None:
    url = shell.environment.pop("STUDYHALL_DATABASE_URL")
    words = ["--study", "p", "--trials", "2", "--workers", "1", "--seed", "5"]
    secret = "--set=mirror=https://ann:hunter2@host/table"
    shell("--database-url", url, "run", "mine:objective", secret, *words, folder=project)
    shell.environment["STUDYHALL_DATABASE_URL"] = url

    study = open_study(shell, "p")
    found = study.provenance()
    assert {*found["source"]["files"]} == {"helper.py", "mine.py"}
    created, (worker,) = found["created_by"], found["workers"]
    for document in (created, worker["document"]):
        assert document["command"].startswith("studyhall --database-url '***' run mine:objective")
        assert document["command"].endswith("--seed 5")
        assert document["source"]["fingerprint"] == found["source"]["fingerprint"]
        assert document["source"]["folder"] == str(project)
        assert (document["seed"], document["git"]) == (5, None)
        assert {"optuna", "keras", "numpy", "studyhall"} <= {*document["packages"]}
    assert (worker["attempts"], worker["document"]["device"]["name"]) == (2, "cpu")
    assert worker["document"]["data"]["fingerprint"] == "a" * 64
    assert {a.provenance for (a,) in study.attempts().values()} == {worker["provenance"]}

    (project / "helper.py").write_text("def helper(x):\n    return x - 9\n")
    resume = ["resume", "p", "--trials", "3", "--workers", "1", "--path", "."]
    done = shell(*resume, folder=project, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "helper.py changed" in line and "choose another --study" in line
    assert "--allow-drift" in line and "mine.py" not in line
    assert study.progress().n_trials == 2, "the budget is as it was"
    assert study.progress().drift is None

    done = shell(*resume, "--allow-drift", folder=project)
    assert "best trial 2: value" in done.stdout and done.stdout.count(" DRIFT") == 2
    assert "drift: some trials ran with another source (helper.py changed)" in done.stdout
    study = open_study(shell, "p")
    assert study.progress().drift == {"source": ["helper.py changed"]}
    assert study.best is not None and study.best.drift == ("source",)
    assert [row["drift"] for row in study.records()] == [[], [], ["source"]]
    assert "DRIFT" in str(study.progress())
    trial = shell.json("provenance", "p", "--trial", "2", "--json")
    (attempt,) = trial["attempts"]
    assert attempt["document"]["drift"] == {"source": ["helper.py changed"]}
    assert "source.fingerprint" in attempt["differs"]
    assert trial["seed"] == study.best.seed
    shown = shell("provenance", "p").stdout
    assert "source.fingerprint differs" in shown and "studyhall --database-url" in shown
    everything = json.dumps([study.provenance(), trial]) + shown
    assert "hunter2" not in everything and url not in everything
    assert shell("provenance", "p", "--trial", "9", check=False).returncode == 2
