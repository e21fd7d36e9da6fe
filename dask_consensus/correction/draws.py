"""Draws of equal weight that agree with a weighted estimate."""

from __future__ import annotations

import contextlib

import numpy as np
import scipy.linalg

from ..combination import gaussian
from .proposals import Array, resample
from .weights import Estimate, weighted_moments

_TAIL = 0.005  # share of the points on either side that equal-weight draws are not matched in


def equal_weight_draws(
    estimate: Estimate, shape: tuple[int, int], rng: np.random.Generator
) -> Array:
    """Draws of equal weight, ``shape + (d,)``, that agree with an estimate.

    Systematic resampling along the first principal axis (Kitagawa 1996) leaves a remainder that
    shrinks with the number of draws; an affine map takes it out of mean and covariance, but for
    the outermost hundredth of each coordinate: a far point that happened to be chosen, or not,
    must not stretch all the others.
    """
    points, weights = estimate.population
    number = shape[0] * shape[1]
    axis = scipy.linalg.eigh(estimate.covariance)[1][:, -1]
    draws = points[rng.permutation(resample(points, weights, axis, number, rng))]
    low, high = (_quantile(points, weights, q) for q in (_TAIL, 1 - _TAIL))
    everywhere, measure = estimate.measure
    wanted = weighted_moments(np.clip(everywhere, low, high), measure)
    # Fewer distinct points than dimensions have no covariance to match.
    with contextlib.suppress(np.linalg.LinAlgError):
        own = gaussian.moments(np.clip(draws, low, high))
        draws = gaussian.matched(draws, *wanted, of=own)
    return draws.reshape(*shape, -1)


def _quantile(points: Array, weights: Array, q: float) -> Array:
    """Weighted quantile of each coordinate."""
    order = np.argsort(points, axis=0)
    below = np.cumsum(weights[order], axis=0) <= q * weights.sum()
    position = np.minimum(below.sum(axis=0), len(points) - 1)
    return np.take_along_axis(points, np.take_along_axis(order, position[None], 0), 0)[0]
