"""Train trials again, undisturbed and without the service's worker; print what they report."""

from __future__ import annotations

import json
import os
import sys

os.environ.update(CUDA_VISIBLE_DEVICES="-1", TF_CPP_MIN_LOG_LEVEL="3", TF_NUM_INTRAOP_THREADS="1")

import optuna

from service.sampling.factory import trial_seed
from service.studies.spec import Spec


class Again(optuna.trial.FixedTrial):
    """A trial with given parameters that notes its reports and is never pruned."""

    def __init__(self, params: dict[str, object], number: int, seed: int) -> None:
        super().__init__(params, number)
        self.seed = trial_seed(seed, number)
        self.reported: dict[int, float] = {}

    def report(self, value: float, step: int) -> None:
        self.reported[step] = value


def main() -> None:
    asked = json.load(sys.stdin)
    spec = Spec.from_json(asked["spec"])
    objective = spec.load()
    reported = {}
    for row in asked["trials"]:
        trial = Again(row["params"], row["number"], spec.seed)
        objective(trial)
        reported[row["number"]] = trial.reported
    print(json.dumps(reported))


if __name__ == "__main__":
    main()
