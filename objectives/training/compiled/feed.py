"""Examples where the device finds them: resident for good, or streamed in pieces.

On the CPU resident arrays are not even copied: TensorFlow reads the very memory of the numpy
array, which for the built-in data sets is a file that all workers of a machine share.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from objectives.data.files import Array
from objectives.data.sources import Examples
from objectives.training.plan import on_cpu

_log = logging.getLogger("studyhall")

# Of what is free on a GPU, the share that resident data may take: activations need the rest.
_SHARE = 0.4
_STREAMED_BYTES = 32 * 2**20
_ALIGNMENT = 64


@dataclass(frozen=True)
class Piece:
    """Examples on the device: those of `order`, of which the first `n` count.

    Attributes:
        x: Inputs.
        y: Targets.
        order: Which rows of them, int32; filled up to one length for all pieces.
        n: How many of `order` are meant.
    """

    x: Any
    y: Any
    order: Any
    n: int


class Feed(Protocol):
    """Brings examples to the device."""

    def pieces(self, order: Array) -> Iterator[Piece]:
        """The examples in this order, one piece after the other."""


def feed(examples: Examples, batch_size: int, limit: float | None = None) -> Feed:
    """The way for these examples: resident where they fit into `limit` bytes, else streamed.

    Args:
        examples: What to bring.
        batch_size: Pieces hold a whole number of batches.
        limit: None: what this device has room for.
    """
    size = examples.x.nbytes + examples.y.nbytes
    if size <= (resident_limit() if limit is None else limit):
        return Resident(examples)
    _log.info("%d MB of examples do not fit on the device: they are streamed", size >> 20)
    return Streamed(examples, batch_size)


def resident_limit() -> float:
    """The bytes of examples that may lie on the device: unlimited where nothing is copied."""
    if on_cpu():
        return float("inf")
    return _SHARE * _gpu_free_bytes()


def _gpu_free_bytes() -> float:
    """What the first visible GPU has free, by nvidia-smi; without it, TensorFlow decides."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return float("inf")
    device = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    query = [tool, "--query-gpu=memory.free", "--format=csv,noheader,nounits", "-i", device]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    lines = answer.stdout.split()
    return float(lines[0]) * 2**20 if answer.returncode == 0 and lines else float("inf")


class Resident:
    """All examples lie on the device."""

    def __init__(self, examples: Examples) -> None:
        self._x, self._y = placed(examples.x), placed(examples.y)

    def pieces(self, order: Array) -> Iterator[Piece]:
        """One piece: all of them."""
        import tensorflow as tf

        yield Piece(self._x, self._y, tf.constant(order), len(order))


class Streamed:
    """The examples stay in the host's memory; pieces of them travel while others are used."""

    def __init__(self, examples: Examples, batch_size: int) -> None:
        self._examples = examples
        row = max(1, (examples.x.nbytes + examples.y.nbytes) // max(1, examples.size))
        self._size = batch_size * max(1, _STREAMED_BYTES // (row * batch_size))

    def pieces(self, order: Array) -> Iterator[Piece]:
        """Pieces of one size; the last one is filled up."""
        import tensorflow as tf

        size = min(self._size, len(order))
        within = tf.range(size)
        for n, x, y in self._dataset(order, size):
            yield Piece(x, y, within, int(n))

    def _dataset(self, order: Array, size: int) -> Any:
        import tensorflow as tf

        def parts() -> Iterator[tuple[int, Array, Array]]:
            for start in range(0, len(order), size):
                rows = order[start : start + size]
                filled = np.resize(rows, size)
                yield len(rows), self._examples.x[filled], self._examples.y[filled]

        signature = (
            tf.TensorSpec((), tf.int32),
            *(tf.TensorSpec((size, *a.shape[1:]), a.dtype) for a in self._examples),
        )
        made = tf.data.Dataset.from_generator(parts, output_signature=signature).prefetch(2)
        return untuned(made)


def untuned(dataset: Any) -> Any:
    """The `tf.data.Dataset` without tf.data's tuner, which has nothing to tune in ours.

    On one thread, the end of each epoch's iterator would wait for it: half a second.
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def placed(array: Array) -> Any:
    """An array as a tensor on the device; on the CPU the very same memory, where it can be.

    Nothing writes to it: a tensor's memory is never written, and what is not writeable in numpy
    is lent for reading only.
    """
    import tensorflow as tf

    if not on_cpu() or not _can_be_lent(array):
        return tf.constant(array)
    return tf.experimental.dlpack.from_dlpack(_lent(array).__dlpack__())


def _can_be_lent(array: Array) -> bool:
    """TensorFlow computes on aligned memory, and refuses what numpy cannot lend."""
    aligned = array.ctypes.data % _ALIGNMENT == 0
    return bool(array.flags.c_contiguous and aligned and array.size and _owner(array) is not None)


def _owner(array: Array) -> Array | None:
    """The writeable array that this one is a read-only view of, or itself."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        if owner.flags.writeable:
            return owner
        owner = owner.base
    return None


def _lent(array: Array) -> Array:
    """A view that numpy lends by DLPack, which has no word for read-only."""
    if array.flags.writeable:
        return array
    owner = _owner(array)
    assert owner is not None
    return np.ndarray(array.shape, array.dtype, owner, array.ctypes.data - owner.ctypes.data)
