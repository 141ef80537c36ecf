"""Signals: they may interrupt TensorFlow on the thread that handles them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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
