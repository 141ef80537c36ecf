"""Generate stand-ins for MNIST and CIFAR-10: drawn digits and coloured shapes.

They are hard enough that hyperparameters matter. They have the same bytes on every machine: the
random numbers come from numpy's frozen `RandomState`, and pixels are computed only by operations
that IEEE 754 rounds exactly (+ - * / sqrt, comparisons). Neither sine nor `numpy.sum` is used:
their last bits depend on the processor.

A change to this file makes a new entry in the cache of split data sets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

from objectives.data.arrays import Array, TrainTestArrays

_TRAIN, _TEST = 10_000, 2_000
_CHUNK = 128  # images drawn at once: few enough for the processor's cache
_SEED = 0

_CURVE = tuple(
    (x / 5, y / 5) for x, y in ((5, 0), (4, 3), (3, 4), (0, 5), (-3, 4), (-4, 3), (-5, 0))
)
_Stroke = tuple[tuple[float, float], ...]


def _arc(cx: float, cy: float, rx: float, ry: float, *, up: bool) -> _Stroke:
    """Draw the upper or lower half of an ellipse, on exact points of the 3-4-5 circle."""
    sign = -1 if up else 1
    return tuple((cx + rx * x, cy + sign * ry * y) for x, y in _CURVE)


def _side(cx: float, cy: float, rx: float, ry: float, *, left: bool) -> _Stroke:
    """Draw the left or right half of an ellipse, from its top to its bottom."""
    sign = -1 if left else 1
    return tuple((cx + sign * rx * y, cy - ry * x) for x, y in _CURVE)


def _ring(cx: float, cy: float, rx: float, ry: float) -> tuple[_Stroke, ...]:
    return _arc(cx, cy, rx, ry, up=True), _arc(cx, cy, rx, ry, up=False)


# The strokes of each digit, in a square from -1 to 1; y grows downwards.
_GLYPHS: tuple[tuple[_Stroke, ...], ...] = (
    _ring(0, 0, 0.55, 0.9),
    (((-0.35, -0.55), (0.05, -0.9), (0.05, 0.9)),),
    (
        _arc(0, -0.4, 0.5, 0.5, up=True),
        ((0.5, -0.4), (0.3, 0.1), (-0.55, 0.9), (0.6, 0.9)),
    ),
    (_side(-0.1, -0.45, 0.55, 0.45, left=False), _side(-0.1, 0.45, 0.65, 0.45, left=False)),
    (((0.25, 0.9), (0.25, -0.9), (-0.6, 0.3), (0.65, 0.3)),),
    (
        ((0.5, -0.9), (-0.4, -0.9), (-0.45, -0.1), (0.0, -0.2)),
        _side(0.0, 0.35, 0.55, 0.55, left=False),
        ((0.0, 0.9), (-0.5, 0.75)),
    ),
    (((0.4, -0.85), (-0.1, -0.6), (-0.5, 0.1), (-0.5, 0.45)), *_ring(0, 0.45, 0.5, 0.45)),
    (((-0.55, -0.9), (0.55, -0.9), (-0.1, 0.9)),),
    (*_ring(0, -0.45, 0.42, 0.43), *_ring(0, 0.45, 0.52, 0.45)),
    (*_ring(0, -0.4, 0.48, 0.48), ((0.48, -0.4), (0.42, 0.3), (0.2, 0.9))),
)


def digits() -> TrainTestArrays:
    """Draw digits: 10,000 and 2,000 images uint8 [n, 28, 28], ten equally frequent classes."""
    return _generate(_draw_digits, (28, 28))


def shapes() -> TrainTestArrays:
    """Draw coloured shapes: 10,000 and 2,000 images uint8 [n, 32, 32, 3], ten classes."""
    return _generate(_draw_shapes, (32, 32, 3))


def _generate(
    draw: Callable[[int, int, np.random.RandomState], Array], shape: tuple[int, ...]
) -> TrainTestArrays:
    rng = np.random.RandomState(_SEED)
    n = _TRAIN + _TEST
    labels = rng.permutation(np.arange(n) % 10).astype(np.uint8)
    images = np.empty((n, *shape), np.uint8)
    for label in range(10):
        for rows in _chunks(np.flatnonzero(labels == label)):
            images[rows] = draw(label, len(rows), rng)
    return TrainTestArrays(images[:_TRAIN], labels[:_TRAIN], images[_TRAIN:], labels[_TRAIN:])


def _chunks(rows: Array) -> Iterator[Array]:
    for start in range(0, len(rows), _CHUNK):
        yield rows[start : start + _CHUNK]


def _draw_digits(digit: int, n: int, rng: np.random.RandomState) -> Array:
    ends = _segments(_GLYPHS[digit])
    segments = np.repeat(ends[None], n, axis=0)
    wobble = _uniform(rng, -0.12, 0.12, (n, *ends.shape))
    segments = _transform(segments + wobble, rng, size=(0.55, 0.85), turn=0.17, shift=0.14)
    distance = _distances(segments, 28)
    width = _uniform(rng, 0.03, 0.12, (n, 1))
    ink = np.clip(1.0 - (distance - width) / np.float32(0.08), 0, 1)
    ink *= _uniform(rng, 0.5, 1.0, (n, 1))
    scratch = _uniform(rng, -1, 1, (n, 1, 2, 2))
    ink = np.maximum(ink, 0.7 * np.clip(1.4 - _distances(scratch, 28) / np.float32(0.05), 0, 1))
    ink += _uniform(rng, -0.25, 0.25, ink.shape)
    return _to_uint8(ink).reshape(n, 28, 28)


def _segments(strokes: tuple[_Stroke, ...]) -> Array:
    """Return the strokes' segments: float32 [segments, 2 ends, 2 coordinates]."""
    pairs = [pair for stroke in strokes for pair in pairwise(stroke)]
    return np.array(pairs, np.float32)


def _transform(
    points: Array,
    rng: np.random.RandomState,
    *,
    size: tuple[float, float],
    turn: float,
    shift: float,
) -> Array:
    """Rotate, shear, scale and shift the points [n, segments, ends, 2] of each image."""
    n = len(points)
    cos, sin = _rotation(_uniform(rng, -turn, turn, (n, 1, 1)))
    scale_x, scale_y = (_uniform(rng, *size, (n, 1, 1)) for _ in range(2))
    shear = _uniform(rng, -0.3, 0.3, (n, 1, 1))
    x = (points[..., 0] + shear * points[..., 1]) * scale_x
    y = points[..., 1] * scale_y
    moved = np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)
    return moved + _uniform(rng, -shift, shift, (n, 1, 1, 2))


def _rotation(half_tangent: Array) -> tuple[Array, Array]:
    """Return cosine and sine of an angle, given the tangent of its half."""
    square = half_tangent * half_tangent
    return (1 - square) / (1 + square), 2 * half_tangent / (1 + square)


def _distances(segments: Array, side: int) -> Array:
    """Return the distance of each pixel from its nearest segment: float32 [n, side * side]."""
    px, py = _pixel_centres(side)
    nearest = np.full((len(segments), side * side), np.float32(9))
    for k in range(segments.shape[1]):
        (ax, ay), (bx, by) = (segments[:, k, end, :].T[..., None] for end in range(2))
        dx, dy = bx - ax, by - ay
        along = ((px - ax) * dx + (py - ay) * dy) / (dx * dx + dy * dy + np.float32(1e-6))
        along = np.clip(along, 0, 1)
        off_x, off_y = px - ax - along * dx, py - ay - along * dy
        np.minimum(nearest, off_x * off_x + off_y * off_y, out=nearest)
    return np.sqrt(nearest)


def _pixel_centres(side: int) -> tuple[Array, Array]:
    """Return the pixels' x and y, from -1 to 1: float32 [1, side * side] each."""
    line = ((np.arange(side, dtype=np.float32) + np.float32(0.5)) * np.float32(2) / side) - 1
    y, x = np.meshgrid(line, line, indexing="ij")
    return x.reshape(1, -1), y.reshape(1, -1)


def _draw_shapes(shape: int, n: int, rng: np.random.RandomState) -> Array:
    px, py = _pixel_centres(32)
    cos, sin = _rotation(_uniform(rng, -0.17, 0.17, (n, 1)))
    size_x, size_y = (_uniform(rng, 0.40, 0.75, (n, 1)) for _ in range(2))
    x, y = px - _uniform(rng, -0.2, 0.2, (n, 1)), py - _uniform(rng, -0.2, 0.2, (n, 1))
    x, y = (cos * x + sin * y) / size_x, (cos * y - sin * x) / size_y
    inside = np.clip(_SHAPES[shape](x, y) * np.float32(6) + np.float32(0.5), 0, 1)
    back = _uniform(rng, 0, 0.6, (n, 1, 3))
    front = back + _uniform(rng, 0.05, 0.5, (n, 1, 3))
    image = back + (front - back) * inside[..., None]
    slope = _uniform(rng, -0.15, 0.15, (n, 1, 3))
    image += slope * px[..., None] - slope[..., ::-1] * py[..., None]
    image += _uniform(rng, -0.15, 0.15, image.shape)
    return _to_uint8(image).reshape(n, 32, 32, 3)


def _radius(x: Array, y: Array) -> Array:
    length: Array = np.sqrt(x * x + y * y)
    return length


def _square(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x), np.abs(y))


def _cross(x: Array, y: Array) -> Array:
    return np.minimum(0.25 - np.minimum(np.abs(x), np.abs(y)), 0.9 - _square(x, y))


_SHAPES: tuple[Callable[[Array, Array], Array], ...] = (
    lambda x, y: 0.8 - _radius(x, y),
    lambda x, y: 0.2 - np.abs(0.7 - _radius(x, y)),
    lambda x, y: 0.75 - _square(x, y),
    lambda x, y: 0.18 - np.abs(0.65 - _square(x, y)),
    lambda x, y: np.minimum(0.7 - y, 0.45 * (y + 0.9) - np.abs(x)),
    lambda x, y: np.minimum(0.7 + y, 0.45 * (0.9 - y) - np.abs(x)),
    _cross,
    lambda x, y: _cross(0.7 * (x + y), 0.7 * (x - y)),
    lambda x, y: np.minimum(0.2 - np.abs(np.abs(y) - 0.5), 0.8 - np.abs(x)),
    lambda x, y: np.minimum(0.85 - _radius(x, y), _radius(x - 0.45, y) - 0.6),
)
"""Functions of x and y, positive inside the shape: about the distance from its edge."""


def _uniform(rng: np.random.RandomState, low: float, high: float, shape: tuple[int, ...]) -> Array:
    return (low + (high - low) * rng.random_sample(shape)).astype(np.float32)


def _to_uint8(image: Array) -> Array:
    return (np.clip(image, 0, 1) * np.float32(255)).astype(np.uint8)
