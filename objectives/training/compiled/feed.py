"""Feeds: bring examples to the device, all of them for good or in pieces that are streamed.

On the CPU nothing is copied: TensorFlow reads the memory of the numpy array itself. For the
built-in data sets that memory is a file which all workers of a machine share.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from objectives.data.arrays import Array
from objectives.training.plan import on_cpu

_log = logging.getLogger("studyhall")

_RESIDENT_SHARE = 0.4
"""The share of a GPU's free memory that examples may take; activations need the rest."""

_PIECE_BYTES = 32 * 2**20
_ALIGNMENT = 64


@dataclass(frozen=True)
class Piece:
    """Examples on the device, and the order in which to use them.

    Attributes:
        x: Inputs.
        y: Targets.
        order: Row numbers, int32. All pieces of a feed have an `order` of the same length.
        n: How many row numbers count; those behind them only fill the length.
        weights: Sample weights; None: all are equal.
    """

    x: Any
    y: Any
    order: Any
    n: int
    weights: Any = None


class Feed(Protocol):
    """Brings examples to the device."""

    def pieces(self, order: Array) -> Iterator[Piece]:
        """Yield the examples in this order, piece after piece."""


def make_feed(arrays: Sequence[Array], batch_size: int, limit: float | None = None) -> Feed:
    """Return a resident feed if the examples fit into `limit` bytes, else a streamed one.

    Args:
        arrays: The examples to bring: inputs, targets and, if there are any, sample weights.
        batch_size: Pieces hold a whole number of batches.
        limit: None: what this device has room for.
    """
    size = sum(array.nbytes for array in arrays)
    if size <= (_device_limit() if limit is None else limit):
        return ResidentFeed(arrays)
    _log.info("%d MB of examples do not fit on the device: they are streamed", size >> 20)
    return StreamedFeed(arrays, batch_size)


class ResidentFeed:
    """Keeps all examples on the device."""

    def __init__(self, arrays: Sequence[Array]) -> None:
        self._x, self._y, *self._weights = map(to_tensor, arrays)

    def pieces(self, order: Array) -> Iterator[Piece]:
        """Yield one piece with all examples."""
        import tensorflow as tf

        yield Piece(self._x, self._y, tf.constant(order), len(order), *self._weights)


class StreamedFeed:
    """Keeps the examples in the host's memory; the next pieces travel while one is used."""

    def __init__(self, arrays: Sequence[Array], batch_size: int) -> None:
        self._arrays = arrays
        row = max(1, sum(array.nbytes for array in arrays) // max(1, len(arrays[0])))
        self._size = batch_size * max(1, _PIECE_BYTES // (row * batch_size))

    def pieces(self, order: Array) -> Iterator[Piece]:
        """Yield pieces of one size; the last one is filled up."""
        import tensorflow as tf

        size = min(self._size, len(order))
        rows = tf.range(size)
        for n, x, y, *weights in self._dataset(order, size):
            yield Piece(x, y, rows, int(n), *weights)

    def _dataset(self, order: Array, size: int) -> Any:
        import tensorflow as tf

        def generate() -> Iterator[tuple[int | Array, ...]]:
            for start in range(0, len(order), size):
                rows = order[start : start + size]
                filled = np.resize(rows, size)
                yield len(rows), *(array[filled] for array in self._arrays)

        signature = (
            tf.TensorSpec((), tf.int32),
            *(tf.TensorSpec((size, *a.shape[1:]), a.dtype) for a in self._arrays),
        )
        dataset = tf.data.Dataset.from_generator(generate, output_signature=signature)
        return without_autotune(dataset.prefetch(2))


def without_autotune(dataset: Any) -> Any:
    """Return the `tf.data.Dataset` without tf.data's autotuning, which has nothing to tune here.

    On one thread, the end of each epoch's iterator would wait half a second for the tuner.
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def to_tensor(array: Array) -> Any:
    """Return an array as a tensor on the device; on the CPU in the same memory, if possible.

    The shared memory is never written: TensorFlow does not write to a tensor, and numpy may not
    write to a read-only array.
    """
    import tensorflow as tf

    if not on_cpu() or not _can_share_memory(array):
        return tf.constant(array)
    return tf.experimental.dlpack.from_dlpack(_as_writeable(array).__dlpack__())


def _can_share_memory(array: Array) -> bool:
    """Return whether numpy can export the memory and TensorFlow accepts its alignment."""
    aligned = array.ctypes.data % _ALIGNMENT == 0
    return bool(
        array.flags.c_contiguous and aligned and array.size and _writeable_base(array) is not None
    )


def _writeable_base(array: Array) -> Array | None:
    """Return the array itself if it is writeable, else the writeable array that it views."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if base.flags.writeable:
            return base
        base = base.base
    return None


def _as_writeable(array: Array) -> Array:
    """Return a writeable view of the same memory: DLPack cannot export a read-only one."""
    if array.flags.writeable:
        return array
    base = _writeable_base(array)
    assert base is not None
    return np.ndarray(array.shape, array.dtype, base, array.ctypes.data - base.ctypes.data)


def _device_limit() -> float:
    """Return how many bytes of examples may be resident; without limit where nothing is copied."""
    return float("inf") if on_cpu() else _RESIDENT_SHARE * _free_gpu_bytes()


def _free_gpu_bytes() -> float:
    """Ask nvidia-smi for the free memory of the first visible GPU; infinite if it cannot say."""
    nvidia_smi = shutil.which("nvidia-smi")
    if nvidia_smi is None:
        return float("inf")
    device = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    query = ["--query-gpu=memory.free", "--format=csv,noheader,nounits", "-i", device]
    answer = subprocess.run(
        [nvidia_smi, *query], capture_output=True, text=True, timeout=30, check=False
    )
    lines = answer.stdout.split()
    return float(lines[0]) * 2**20 if answer.returncode == 0 and lines else float("inf")
