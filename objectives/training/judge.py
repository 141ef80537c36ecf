"""Judge: decides after each reported epoch whether a training goes on."""

from __future__ import annotations

import optuna

from objectives.training.recorder import Recorder
from objectives.training.settings import TrainingSettings


class Judge:
    """Asks the trial's pruner, then checks patience and the number of epochs.

    Args:
        settings: Patience, the number of epochs and the monitor.
        trial: The trial whose pruner is asked.
        recorder: Holds the epochs so far.
    """

    def __init__(
        self, settings: TrainingSettings, trial: optuna.Trial, recorder: Recorder
    ) -> None:
        self._settings = settings
        self._trial = trial
        self._recorder = recorder

    def check_pruned(self) -> None:
        """Ask the pruner about the epoch that was reported last.

        Raises:
            optuna.TrialPruned: The pruner ends the trial.
        """
        if self._trial.should_prune():
            history, monitor = self._recorder.history, self._settings.monitor
            value = history[-1][monitor]
            raise optuna.TrialPruned(
                f"pruned after epoch {len(history) - 1} at {monitor}={value:.6g}"
            )

    def is_finished(self) -> bool:
        """Return whether patience is exhausted or all epochs are trained."""
        epochs, best_epoch = len(self._recorder.history), self._recorder.best_epoch
        if best_epoch is None:
            return False
        patience = self._settings.patience
        exhausted = patience is not None and epochs - 1 - best_epoch >= patience
        return exhausted or epochs >= self._settings.epochs
