"""Trained models: written to a file, made again from it, and measured on a part of the data."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from objectives.data.arrays import Array
from objectives.errors import BuildError

_log = logging.getLogger("studyhall")
_Z = 1.959963984540054
"""The 0.975 quantile of the normal distribution."""


def write_model(model: Any, weights: Sequence[Array], folder: Path) -> Path:
    """Write a model with these weights into a folder; return the file's path.

    The file is ``model.keras``, or ``model.weights.h5`` for a model that Keras cannot serialize.

    Args:
        model: A built `keras.Model`; it has the weights afterwards.
        weights: In the order of `model.set_weights`.
        folder: Where to write.
    """
    model.set_weights(weights)
    path = folder / "model.keras"
    try:
        model.save(path)
    except Exception as error:  # a layer's get_config may raise anything
        path.unlink(missing_ok=True)
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        _log.info("the model cannot be saved as .keras, its weights are saved: %s", reason)
        path = folder / "model.weights.h5"
        model.save_weights(path)
    return path


def load_weights(model: Any, path: Path) -> None:
    """Load the weights of a file that `write_model` has made into a built model.

    Raises:
        BuildError: The file has the weights of another model.
    """
    try:
        model.load_weights(path)
    except (ValueError, OSError, KeyError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise BuildError(
            f"the objective now builds another model than the one that was saved: {reason}"
        ) from error


def load_model(path: Path) -> Any:
    """Load a ``.keras`` file without the objective's help, as whoever gets the file does.

    Lambda layers are allowed: call this only for a file that this objective has just written.

    Raises:
        BuildError: It has parts that Keras does not know.
    """
    import keras

    try:
        return keras.saving.load_model(path, safe_mode=False)
    except Exception as error:  # a layer's from_config may raise anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise BuildError(
            "the file cannot be loaded alone; register your own layers, losses and metrics with "
            f"@keras.saving.register_keras_serializable(): {reason}"
        ) from error


def measure(model: Any, arrays: Sequence[Array], batch_size: int) -> dict[str, Any]:
    """Evaluate a model.

    Args:
        model: A compiled and built `keras.Model`.
        arrays: Inputs, targets and, if there are any, sample weights.
        batch_size: Examples in a batch.

    Returns:
        ``n``, the number of examples, and ``metrics``, what `keras.Model.evaluate` returns. Of a
        classifier also ``classes``: see `classes_report`.
    """
    x, y, *weights = arrays
    logs = model.evaluate(
        x,
        y,
        batch_size=batch_size,
        sample_weight=weights[0] if weights else None,
        verbose=0,
        return_dict=True,
    )
    values = {name: np.asarray(value) for name, value in logs.items()}
    metrics = {name: float(value) for name, value in values.items() if value.size == 1}
    report: dict[str, Any] = {"n": len(x), "metrics": metrics}
    labels = _labels(model, y)
    if labels is not None:
        predicted = _predicted_labels(model, model.predict(x, batch_size=batch_size, verbose=0))
        report["classes"] = classes_report(labels, predicted)
    return report


def classes_report(labels: Array, predicted: Array) -> dict[str, Any]:
    """Compare labels [n] with predicted ones [n].

    Returns:
        ``accuracy``; ``interval``, Wilson's 95 % interval for it; ``confusion``, where row i and
        column j count the examples of class i that are taken for j; and ``per_class``: ``label``,
        ``n``, ``precision``, ``recall`` and ``f1`` of each class, None where one is 0/0.
    """
    n_classes = int(max(labels.max(), predicted.max())) + 1
    confusion = np.zeros((n_classes, n_classes), int)
    np.add.at(confusion, (labels, predicted), 1)
    right, n = int(np.trace(confusion)), len(labels)
    return {
        "accuracy": right / n,
        "interval": wilson_interval(right, n),
        "confusion": confusion.tolist(),
        "per_class": [_class_row(confusion, label) for label in range(n_classes)],
    }


def wilson_interval(right: int, n: int) -> tuple[float, float]:
    """Return Wilson's score interval (1927), 95 %, for a proportion of `right` in `n`."""
    p, z2 = right / n, _Z**2
    centre = p + z2 / (2 * n)
    half = _Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = (centre - half) / (1 + z2 / n), (centre + half) / (1 + z2 / n)
    # The exact ends at the borders, which rounding may miss.
    return (0.0 if right == 0 else low), (1.0 if right == n else high)


def _class_row(confusion: Array, label: int) -> dict[str, Any]:
    right = int(confusion[label, label])
    n, taken = int(confusion[label].sum()), int(confusion[:, label].sum())
    return {
        "label": label,
        "n": n,
        "precision": right / taken if taken else None,
        "recall": right / n if n else None,
        "f1": 2 * right / (n + taken) if n + taken else None,
    }


def _labels(model: Any, y: Array) -> Array | None:
    """Return the targets of a classifier as labels [n]; None for any other model."""
    outputs = getattr(model, "outputs", None) or []
    if len(outputs) != 1 or len(outputs[0].shape) != 2 or y.ndim > 2:
        return None
    width = y.shape[1] if y.ndim == 2 else 1
    kind, n_outputs = _kind_of_loss(model.loss), outputs[0].shape[-1]
    if kind == "sparse" and width == 1 and n_outputs > 1:
        return np.asarray(y).reshape(-1).astype(int)
    if kind == "categorical" and width == n_outputs > 1:
        return np.asarray(np.argmax(y, axis=1))
    if kind == "binary" and width == n_outputs == 1:
        return np.asarray(y).reshape(-1).astype(int)
    return None


def _kind_of_loss(loss: Any) -> str | None:
    """Return which of Keras's losses for classes this is: sparse, categorical, binary, or none."""
    import keras

    kinds = {
        keras.losses.SparseCategoricalCrossentropy: "sparse",
        keras.losses.CategoricalCrossentropy: "categorical",
        keras.losses.CategoricalFocalCrossentropy: "categorical",
        keras.losses.BinaryCrossentropy: "binary",
        keras.losses.BinaryFocalCrossentropy: "binary",
        keras.losses.sparse_categorical_crossentropy: "sparse",
        keras.losses.categorical_crossentropy: "categorical",
        keras.losses.categorical_focal_crossentropy: "categorical",
        keras.losses.binary_crossentropy: "binary",
        keras.losses.binary_focal_crossentropy: "binary",
    }
    found = keras.losses.get(loss) if isinstance(loss, str) else loss
    return kinds.get(type(found)) or kinds.get(found) if found is not None else None


def _predicted_labels(model: Any, outputs: Array) -> Array:
    """Return the labels [n] of a classifier's outputs [n, classes] or [n, 1]."""
    if outputs.shape[1] > 1:
        return np.asarray(np.argmax(outputs, axis=1))
    threshold = 0.0 if getattr(model.loss, "from_logits", False) else 0.5
    return (outputs[:, 0] > threshold).astype(int)
