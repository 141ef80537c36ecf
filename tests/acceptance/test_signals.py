"""Signals: they may interrupt TensorFlow on the main thread, and reach no other thread."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from shell import eventually

from service.workers.signals import Alarm, signal_handlers

TRAIN = """
import signal
import threading
from service.workers.signals import signal_main_thread, use_signal_stack
use_signal_stack()
import optuna
from objectives import mnist

alarms = []
signal.signal(signal.SIGALRM, lambda *_: alarms.append(1))

trained = threading.Event()

def flood():
    while not trained.wait(0.001):
        signal_main_thread(signal.SIGALRM)

thread = threading.Thread(target=flood, daemon=True)
thread.start()
objective = mnist.mlp.configured({"epochs": 25, "patience": None}, data="synthetic")
objective(optuna.trial.FixedTrial({
    "batch_size": 128, "n_layers": 1, "units_0": 320, "dropout": 0.05,
    "optimizer": "adam", "learning_rate": 0.0004,
}))
trained.set()
thread.join()
print("alarmed" if len(alarms) > 100 else "undisturbed")
"""


def test_signals_in_mid_training_do_not_corrupt_the_heap() -> None:
    one = dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, "-c", TRAIN],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **one, "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
        timeout=240,
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


def test_an_alarm_waits_for_the_main_thread_though_another_could_receive_it() -> None:
    received: list[int] = []
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    handlers = signal_handlers(lambda number, _frame: received.append(number), signal.SIGALRM)
    alarm = Alarm()
    with handlers, alarm.running():
        other.start()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        try:
            alarm.set(0)
            eventually(lambda: signal.SIGALRM in signal.sigpending(), seconds=5)
            assert not received
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
            done.set()
            other.join()
    assert received == [signal.SIGALRM]


def test_a_cancelled_alarm_does_not_ring() -> None:
    received: list[int] = []
    handlers = signal_handlers(lambda number, _frame: received.append(number), signal.SIGALRM)
    alarm = Alarm()
    with handlers, alarm.running():
        alarm.set(0.3)
        alarm.cancel()
        threading.Event().wait(0.6)
        assert not received
        alarm.set(0)
        eventually(lambda: received, seconds=5)
    assert received == [signal.SIGALRM]
