"""Signals reach a worker while TensorFlow computes on the thread that gets them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TRAIN = """
import signal
from service.workers.worker import give_signals_a_stack
give_signals_a_stack()
import optuna
from objectives import mnist

heard = []
signal.signal(signal.SIGALRM, lambda *_: heard.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
objective = mnist.mlp.configured({"epochs": 25, "patience": None}, data="synthetic")
objective(optuna.trial.FixedTrial({
    "batch_size": 128, "n_layers": 1, "units_0": 320, "dropout": 0.05,
    "optimizer": "adam", "learning_rate": 0.0004,
}))
signal.setitimer(signal.ITIMER_REAL, 0)
print("heard" if heard else "undisturbed")
"""


def test_a_signal_in_mid_training_leaves_the_heap_alone() -> None:
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
    assert done.stdout.strip() == "heard"
