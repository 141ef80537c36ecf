"""The settings of one training."""

from __future__ import annotations

from dataclasses import dataclass

from objectives.settings import Direction


@dataclass(frozen=True)
class TrainingSettings:
    """How to train one model.

    Attributes:
        epochs: The largest number of epochs.
        batch_size: Examples in a batch.
        patience: End after this many epochs without a better value; None: never.
        monitor: The metric that is reported to the trial.
        direction: Whether the monitor is maximized or minimized.
        checkpoint_every: Save a checkpoint every this many epochs; 0: never.
        seed: The seed of the order of the examples and of the random layers.
        validation_batch_size: Examples in a batch of the validation; 0: `batch_size`.
        deterministic: Whether TensorFlow's operations are deterministic.
        keep_last: Whether the last epoch counts as the best one.
    """

    epochs: int
    batch_size: int
    patience: int | None
    monitor: str
    direction: Direction
    checkpoint_every: int = 1
    seed: int = 0
    validation_batch_size: int = 0
    deterministic: bool = True
    keep_last: bool = False

    def __post_init__(self) -> None:
        if not self.validation_batch_size:
            object.__setattr__(self, "validation_batch_size", self.batch_size)

    def is_better(self, value: float, than: float) -> bool:
        """Return whether a value of the monitor is better than another."""
        return value > than if self.direction == "maximize" else value < than
