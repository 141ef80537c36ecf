"""Other backends, and TensorFlow without deterministic operations, each in its own process."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_PROGRAM = """
import json, sys
import test_objectives_checkpoint as here
from dataclasses import replace

settings, like = json.loads(sys.argv[1]), getattr(here, sys.argv[2])
objective = here.objective(like, **settings)
whole, cut = here.Trial(here.Store()), here.Store()
objective(whole)
try:
    objective(here.Trial(cut, die_at=("report", 1)))
except here.Killed:
    pass
again = here.Trial(cut)
objective(again)
repeated = here.Trial(here.Store())
objective(repeated)

import keras
facts = {
    "backend": keras.backend.backend(),
    "values": [list(trial.values.values()) for trial in (whole, again, repeated)],
    "training": [trial.user_attrs["training"] for trial in (whole, again)],
    "weights": [
        [array.tobytes().hex() for array in here.weights_of(trial.checkpoint)]
        for trial in (whole, again)
    ],
}
if facts["backend"] == "tensorflow":
    from tensorflow.python.framework.config import is_op_determinism_enabled
    facts["deterministic"] = is_op_determinism_enabled()
print(json.dumps(facts))
"""


def run(like: str = "mlp", backend: str = "tensorflow", **settings: Any) -> dict[str, Any]:
    """The facts of three trials: uninterrupted, continued, and repeated."""
    folder = Path(__file__).parent
    result = subprocess.run(
        [sys.executable, "-c", _PROGRAM, json.dumps({"epochs": 4, **settings}), like],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "PYTHONPATH": f"{folder.parents[1]}{os.pathsep}{folder}",
        },
    )
    assert result.returncode == 0, result.stderr
    facts: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    assert facts["backend"] == backend
    return facts


@pytest.mark.parametrize("backend", ["jax", "torch"])
@pytest.mark.parametrize("like", ["mlp", "cnn"])
def test_another_backend_trains_batch_by_batch_and_continues_to_the_same_bits(
    backend: str, like: str
) -> None:
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    facts = run(like, backend)
    whole, again, repeated = facts["values"]
    assert len(set(whole)) == 4
    assert whole == again == repeated
    assert facts["weights"][0] == facts["weights"][1]
    assert [training["how"] for training in facts["training"]] == ["plain"] * 2
    assert ["inexact" in training for training in facts["training"]] == [False] * 2


def test_the_setting_deterministic_reaches_tensorflow_and_is_recorded() -> None:
    facts = run(deterministic=False)
    assert facts["deterministic"] is False
    expected = ["operations (deterministic=false)"]
    assert [training.get("inexact") for training in facts["training"]] == [expected] * 2
