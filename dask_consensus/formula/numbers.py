"""How numbers of partitions add up: moments exactly, and points that stand for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

_KEPT = 8192  # points of some partitions that are kept on the way
STAND_IN = 1024
"""Values that are kept all; of more, so many quantiles and both ends stand for them."""


class Moments(NamedTuple):
    """Number, mean and sum of squared deviations of some values, or of columns of them."""

    n: float
    mean: Any
    squares: Any

    @property
    def sd(self) -> Any:
        """Standard deviation, divided by the number of values, as Bambi's is."""
        return np.sqrt(self.squares / max(self.n, 1))


def moments_of(values: np.ndarray) -> Moments:
    """Take the moments of values ``(rows,)``, or of the columns of ``(rows, columns)``."""
    if not len(values):
        zeros = np.zeros(values.shape[1:])
        return Moments(0, zeros, zeros)
    mean = values.mean(axis=0)
    return Moments(len(values), mean, ((values - mean) ** 2).sum(axis=0))


def add(parts: Sequence[Moments]) -> Moments:
    """Take the moments of all values (Chan, Golub and LeVeque 1983, eq. 2.1)."""
    n = sum(part.n for part in parts)
    if not n:
        return parts[0]
    with np.errstate(invalid="ignore"):  # infinities have no mean, and are refused later
        mean = sum(part.n * part.mean for part in parts) / n
        squares = sum(part.squares + part.n * (part.mean - mean) ** 2 for part in parts)
    return Moments(n, mean, squares)


class Numbers(NamedTuple):
    """What is known of the values of an expression.

    Attributes
    ----------
    moments : Moments
    low, high : float
    whole : bool
        Whether all are whole numbers.
    points, weights : float arrays
        Values, sorted, and how many each stands for.
    """

    moments: Moments
    low: float
    high: float
    whole: bool
    points: np.ndarray
    weights: np.ndarray

    def sample(self) -> np.ndarray:
        """Return all values, sorted, or as many quantiles, both ends among them, for them."""
        if self.moments.n <= STAND_IN:
            return np.repeat(self.points, self.weights.astype(int))
        return _quantiles(self.points, self.weights, STAND_IN + 1)


def numbers_of(values: np.ndarray) -> Numbers:
    """Describe the values of a partition."""
    if not len(values):
        none = np.empty(0)
        return Numbers(moments_of(values), np.inf, -np.inf, True, none, none)
    points, weights = np.unique(values, return_counts=True)
    whole = bool((points == np.floor(points)).all())
    return Numbers(
        moments_of(values),
        float(points[0]),
        float(points[-1]),
        whole,
        *_compressed(points, weights.astype(float)),
    )


def add_numbers(parts: Sequence[Numbers]) -> Numbers:
    """Describe the values of several partitions."""
    points, place = np.unique(np.concatenate([part.points for part in parts]), return_inverse=True)
    weights = np.bincount(place, np.concatenate([part.weights for part in parts]), len(points))
    return Numbers(
        add([part.moments for part in parts]),
        min(part.low for part in parts),
        max(part.high for part in parts),
        all(part.whole for part in parts),
        *_compressed(points, weights),
    )


def _compressed(points: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keep so many points, both ends among them, that stand for equal shares of the weight."""
    if len(points) <= _KEPT:
        return points, weights
    kept = _quantiles(points, weights, _KEPT)
    return kept, np.full(_KEPT, weights.sum() / _KEPT)


def _quantiles(points: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
    """Return points at `count` even shares of the weight, from the smallest to the largest."""
    ends = np.cumsum(weights)
    middles = (ends - weights / 2) / ends[-1]
    at: np.ndarray = np.interp(np.linspace(0, 1, count), middles, points)
    return at
