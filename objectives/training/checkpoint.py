"""The state of a training after an epoch: taken, kept as bytes, and put back into a model.

It holds all that decides how training goes on: weights, the optimizer's variables (slots, counted
steps, learning rate), the callbacks' own numbers, the history and the best weights. Random numbers
need no state: `objectives.training.seeds` draws them anew for each epoch.
"""

from __future__ import annotations

import inspect
import io
import json
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from objectives.data.files import Array

_VERSION = 1
_GROUPS = ("weights", "optimizer", "best")
_PLAIN = (bool, int, float, str, type(None))


class StateError(ValueError):
    """Bytes that are no state, or a state of another model or another training."""


@dataclass(frozen=True)
class State:
    """A training after an epoch.

    Attributes:
        training: What the training is, as JSON: a state goes on only in the same one.
        history: Each epoch's logs.
        ended: Whether the training was over after that epoch.
        weights: The model's weights.
        optimizer: The optimizer's variables.
        best: The weights of the best epoch.
        callbacks: Each callback's plain attributes.
    """

    training: dict[str, Any]
    history: list[dict[str, float]]
    ended: bool
    weights: list[Array]
    optimizer: list[Array]
    best: list[Array]
    callbacks: list[dict[str, Any]]

    @property
    def epoch(self) -> int:
        """The last finished epoch, from 0."""
        return len(self.history) - 1

    def to_bytes(self) -> bytes:
        """An uncompressed .npz archive, without pickles."""
        groups = {name: getattr(self, name) for name in _GROUPS}
        if _same(self.best, self.weights):
            groups["best"] = []
        told = {
            "version": _VERSION,
            "training": self.training,
            "history": self.history,
            "ended": self.ended,
            "callbacks": self.callbacks,
            "dtypes": {name: [str(a.dtype) for a in arrays] for name, arrays in groups.items()},
        }
        named = {f"{g}{i}": _bare(a) for g, arrays in groups.items() for i, a in enumerate(arrays)}
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, told=np.array(json.dumps(told)), **named)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> State:
        """Reads `to_bytes` back.

        Raises:
            StateError: These bytes are something else.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                return cls._read(archive)
        except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise StateError(f"no state of a training: {error}") from error

    @classmethod
    def _read(cls, archive: Any) -> State:
        told = json.loads(str(archive["told"]))
        if told["version"] != _VERSION:
            raise StateError(f"a state of version {told['version']}, not {_VERSION}")
        groups: dict[str, Any] = {
            name: [_dressed(archive[f"{name}{i}"], kind) for i, kind in enumerate(kinds)]
            for name, kinds in told["dtypes"].items()
        }
        groups["best"] = groups["best"] or groups["weights"]
        known = {name: told[name] for name in ("training", "history", "ended", "callbacks")}
        return cls(**known, **groups)


def values(variables: Iterable[Any]) -> list[Array]:
    """Copies of Keras variables' values."""
    import keras

    return [keras.ops.convert_to_numpy(variable) for variable in variables]


def put(variables: Sequence[Any], arrays: Sequence[Array]) -> None:
    """Gives variables their values back.

    Raises:
        StateError: Their number, shapes or types differ; nothing was changed.
    """
    have = [(tuple(v.shape), str(v.dtype)) for v in variables]
    new = [(a.shape, str(a.dtype)) for a in arrays]
    if have != new:
        raise StateError(f"variables of another model: {_difference(new, have)}")
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


def plain_attributes(callback: Any) -> dict[str, Any]:
    """What a callback remembers, as far as it is numbers and words.

    What its constructor was given is the callback's own business: Keras turns the sign of a
    `min_delta` when it first needs it.
    """
    given = inspect.signature(type(callback)).parameters
    taken = {n: _unboxed(value) for n, value in vars(callback).items() if n not in given}
    return {name: value for name, value in taken.items() if isinstance(value, _PLAIN)}


def _unboxed(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _same(one: list[Array], other: list[Array]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def _difference(new: list[Any], have: list[Any]) -> str:
    if len(new) != len(have):
        return f"{len(new)} of them for {len(have)}"
    return next(f"{n} for {h}" for n, h in zip(new, have, strict=True) if n != h)


def _bare(array: Array) -> Array:
    """The array in a type that numpy's files know; bfloat16 is none."""
    return array if array.dtype.isbuiltin else array.view(np.dtype(f"u{array.dtype.itemsize}"))


def _dressed(array: Array, kind: str) -> Array:
    if str(array.dtype) == kind:
        return array
    import ml_dtypes

    return array.view(getattr(ml_dtypes, kind))
