"""Signals: they may interrupt TensorFlow on the thread that handles them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TRAIN = """
import signal
from service.workers.signals import use_signal_stack
use_signal_stack()
import optuna
from objectives import mnist

alarms = []
signal.signal(signal.SIGALRM, lambda *_: alarms.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
objective = mnist.mlp.configured({"epochs": 25, "patience": None}, data="synthetic")
objective(optuna.trial.FixedTrial({
    "batch_size": 128, "n_layers": 1, "units_0": 320, "dropout": 0.05,
    "optimizer": "adam", "learning_rate": 0.0004,
}))
signal.setitimer(signal.ITIMER_REAL, 0)
print("alarmed" if alarms else "undisturbed")
"""


def test_a_signal_in_mid_training_does_not_corrupt_the_heap() -> None:
    one = dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, "-c", TRAIN],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **one, "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "alarmed"


SCRIPT = "import sys; sys.argv = ['/usr/bin/studyhall']; import service.__main__"
"""As the console script does it."""


@pytest.mark.parametrize("command", [["-m", "service"], ["-c", SCRIPT]])
def test_ctrl_c_during_the_imports_is_one_line(command: list[str]) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root / 'tests/interrupted'}:{root}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, "studyhall: interrupted\n")


def test_an_import_as_a_library_leaves_ctrl_c_alone() -> None:
    program = "import signal, service; assert signal.getsignal(2) is signal.default_int_handler"
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=True)
