"""Generated stand-ins for MNIST and CIFAR-10: drawn digits, coloured shapes.

Hard enough that hyperparameters matter, and the same bytes on every machine: the random numbers
come from numpy's frozen `RandomState`, and pixels are computed only with operations that IEEE 754
rounds exactly (+ - * / sqrt, comparisons), so no processor's own sine or sum order shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

from objectives.data.files import Array, Arrays

_TRAIN, _TEST = 10_000, 2_000
_CHUNK = 128

_CURVE = tuple(
    (x / 5, y / 5) for x, y in ((5, 0), (4, 3), (3, 4), (0, 5), (-3, 4), (-4, 3), (-5, 0))
)
_Stroke = tuple[tuple[float, float], ...]


def _arc(cx: float, cy: float, rx: float, ry: float, *, up: bool) -> _Stroke:
    """Half an ellipse, on exact points of the 3-4-5 circle."""
    sign = -1 if up else 1
    return tuple((cx + rx * x, cy + sign * ry * y) for x, y in _CURVE)


def _side(cx: float, cy: float, rx: float, ry: float, *, left: bool) -> _Stroke:
    """Half an ellipse, open to one side, from its top to its bottom."""
    sign = -1 if left else 1
    return tuple((cx + sign * rx * y, cy - ry * x) for x, y in _CURVE)


def _ring(cx: float, cy: float, rx: float, ry: float) -> tuple[_Stroke, ...]:
    return _arc(cx, cy, rx, ry, up=True), _arc(cx, cy, rx, ry, up=False)


# Strokes in a square from -1 to 1, y downwards.
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


def digits(seed: int = 0) -> Arrays:
    """Drawn digits: 10,000 and 2,000 images uint8 [n, 28, 28], ten equally frequent classes."""
    return _drawn(_draw_digits, (28, 28), seed)


def shapes(seed: int = 0) -> Arrays:
    """Coloured shapes: 10,000 and 2,000 images uint8 [n, 32, 32, 3], ten classes."""
    return _drawn(_draw_shapes, (32, 32, 3), seed)


def _drawn(
    draw: Callable[[int, int, np.random.RandomState], Array], shape: tuple[int, ...], seed: int
) -> Arrays:
    rng = np.random.RandomState(seed)
    n = _TRAIN + _TEST
    labels = rng.permutation(np.arange(n) % 10).astype(np.uint8)
    images = np.empty((n, *shape), np.uint8)
    for digit in range(10):
        for chosen in _chunks(np.flatnonzero(labels == digit)):
            images[chosen] = draw(digit, len(chosen), rng)
    return Arrays(images[:_TRAIN], labels[:_TRAIN], images[_TRAIN:], labels[_TRAIN:])


def _chunks(indices: Array) -> Iterator[Array]:
    """Small enough pieces for the processor's cache."""
    for start in range(0, len(indices), _CHUNK):
        yield indices[start : start + _CHUNK]


def _draw_digits(digit: int, n: int, rng: np.random.RandomState) -> Array:
    ends = _segments(_GLYPHS[digit])
    segments = np.repeat(ends[None], n, axis=0)
    wobble = _between(rng, -0.12, 0.12, (n, *ends.shape))
    segments = _placed(segments + wobble, rng, size=(0.55, 0.85), turn=0.17, shift=0.14)
    distance = _distance(segments, 28)
    width = _between(rng, 0.03, 0.12, (n, 1))
    ink = np.clip(1.0 - (distance - width) / np.float32(0.08), 0, 1)
    ink *= _between(rng, 0.5, 1.0, (n, 1))
    scratch = _between(rng, -1, 1, (n, 1, 2, 2))
    ink = np.maximum(ink, 0.7 * np.clip(1.4 - _distance(scratch, 28) / np.float32(0.05), 0, 1))
    ink += _between(rng, -0.25, 0.25, ink.shape)
    return _bytes(ink).reshape(n, 28, 28)


def _segments(strokes: tuple[_Stroke, ...]) -> Array:
    """Strokes as float32 [segments, 2 ends, 2 coordinates]."""
    pairs = [pair for stroke in strokes for pair in pairwise(stroke)]
    return np.array(pairs, np.float32)


def _placed(
    points: Array,
    rng: np.random.RandomState,
    *,
    size: tuple[float, float],
    turn: float,
    shift: float,
) -> Array:
    """Points [n, segments, ends, 2], each image's turned, sheared, scaled and shifted."""
    n = len(points)
    cos, sin = _rotation(_between(rng, -turn, turn, (n, 1, 1)))
    scale_x, scale_y = (_between(rng, *size, (n, 1, 1)) for _ in range(2))
    shear = _between(rng, -0.3, 0.3, (n, 1, 1))
    x = (points[..., 0] + shear * points[..., 1]) * scale_x
    y = points[..., 1] * scale_y
    moved = np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)
    return moved + _between(rng, -shift, shift, (n, 1, 1, 2))


def _rotation(half_tangent: Array) -> tuple[Array, Array]:
    """Cosine and sine of the angle whose half has this tangent, without a sine."""
    square = half_tangent * half_tangent
    return (1 - square) / (1 + square), 2 * half_tangent / (1 + square)


def _distance(segments: Array, side: int) -> Array:
    """From each pixel's centre to the nearest segment: float32 [n, side * side]."""
    px, py = _grid(side)
    nearest = np.full((len(segments), side * side), np.float32(9))
    for k in range(segments.shape[1]):
        (ax, ay), (bx, by) = (segments[:, k, end, :].T[..., None] for end in range(2))
        dx, dy = bx - ax, by - ay
        along = ((px - ax) * dx + (py - ay) * dy) / (dx * dx + dy * dy + np.float32(1e-6))
        along = np.clip(along, 0, 1)
        off_x, off_y = px - ax - along * dx, py - ay - along * dy
        np.minimum(nearest, off_x * off_x + off_y * off_y, out=nearest)
    return np.sqrt(nearest)


def _grid(side: int) -> tuple[Array, Array]:
    """Pixel centres from -1 to 1: x and y, float32 [1, side * side]."""
    line = ((np.arange(side, dtype=np.float32) + np.float32(0.5)) * np.float32(2) / side) - 1
    y, x = np.meshgrid(line, line, indexing="ij")
    return x.reshape(1, -1), y.reshape(1, -1)


def _draw_shapes(shape: int, n: int, rng: np.random.RandomState) -> Array:
    px, py = _grid(32)
    cos, sin = _rotation(_between(rng, -0.17, 0.17, (n, 1)))
    size_x, size_y = (_between(rng, 0.40, 0.75, (n, 1)) for _ in range(2))
    x, y = px - _between(rng, -0.2, 0.2, (n, 1)), py - _between(rng, -0.2, 0.2, (n, 1))
    x, y = (cos * x + sin * y) / size_x, (cos * y - sin * x) / size_y
    inside = np.clip(_SHAPES[shape](x, y) * np.float32(6) + np.float32(0.5), 0, 1)
    back = _between(rng, 0, 0.6, (n, 1, 3))
    front = back + _between(rng, 0.05, 0.5, (n, 1, 3))
    image = back + (front - back) * inside[..., None]
    slope = _between(rng, -0.15, 0.15, (n, 1, 3))
    image += slope * px[..., None] - slope[..., ::-1] * py[..., None]
    image += _between(rng, -0.15, 0.15, image.shape)
    return _bytes(image).reshape(n, 32, 32, 3)


def _radius(x: Array, y: Array) -> Array:
    length: Array = np.sqrt(x * x + y * y)
    return length


def _square(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x), np.abs(y))


def _cross(x: Array, y: Array) -> Array:
    return np.minimum(0.25 - np.minimum(np.abs(x), np.abs(y)), 0.9 - _square(x, y))


# Positive inside the shape, about the distance to its edge.
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


def _between(rng: np.random.RandomState, low: float, high: float, shape: tuple[int, ...]) -> Array:
    return (low + (high - low) * rng.random_sample(shape)).astype(np.float32)


def _bytes(image: Array) -> Array:
    return (np.clip(image, 0, 1) * np.float32(255)).astype(np.uint8)
