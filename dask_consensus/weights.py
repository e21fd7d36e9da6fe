"""Importance weights of points drawn from several proposals, and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.special
from arviz_stats.base import array_stats

from .proposals import Proposal

Array = npt.NDArray[np.float64]


class Weighed(NamedTuple):
    """Weights of points, and how good they are.

    Attributes
    ----------
    weights : (G,) array
        Pareto-smoothed, adding up to 1.
    k_hat : float
        Shape of their tail.
    ess : float
        Effective number of points, 1 / sum of squared weights.
    raw : (G,) array
        Log weights before smoothing, with their constant.
    """

    weights: Array
    k_hat: float
    ess: float
    raw: Array


def weigh(
    log_target: Array, points: Array, proposals: Sequence[Proposal], counts: Sequence[int]
) -> Weighed:
    """Weight points by the target over the mixture of all proposals, smoothed."""
    raw = log_target - log_mixture(points, proposals, counts)
    raw = np.where(np.isfinite(raw), raw, -np.inf)
    if not np.isfinite(raw.max()):
        raise ValueError(
            "the log density is not finite at any point near the combination of the shards: the "
            "combination is far from the posterior. Use fewer shards, or correct=False to see it."
        )
    finite = np.maximum(raw, raw.max() - 700.0)
    # The library takes log likelihoods to leave out, whose weights are their inverses.
    smoothed, k_hat = array_stats.psislw(finite.max() - finite)
    weights = np.exp(smoothed)
    weights /= weights.sum()
    return Weighed(weights, float(k_hat), float(1 / (weights**2).sum()), raw)


def log_mixture(points: Array, proposals: Sequence[Proposal], counts: Sequence[int]) -> Array:
    """Log density of all proposals together, each by its share of the points."""
    shares = np.log(np.array(counts) / sum(counts))
    densities = [share + q.log_density(points) for share, q in zip(shares, proposals, strict=True)]
    return scipy.special.logsumexp(densities, axis=0)


def tempered_weights(log_weights: Array, wanted: float) -> Array:
    """Weights to the largest power <= 1 at which their effective number is as wanted."""

    def normalised(power: float) -> Array:
        scaled = power * (log_weights - log_weights.max())
        weights = np.exp(np.where(np.isfinite(scaled), scaled, -np.inf))
        return weights / weights.sum()

    wanted = min(wanted, len(log_weights) / 2)
    low, high = 0.0, 1.0
    if 1 / (normalised(1.0) ** 2).sum() >= wanted:
        return normalised(1.0)
    for _ in range(40):
        middle = (low + high) / 2
        if 1 / (normalised(middle) ** 2).sum() >= wanted:
            low = middle
        else:
            high = middle
    return normalised(low)


def weighted_moments(points: Array, weights: Array) -> tuple[Array, Array]:
    """Mean ``(d,)`` and covariance ``(d, d)`` of weighted points ``(G, d)``."""
    mean = weights @ points
    away = points - mean
    return mean, (away * weights[:, None]).T @ away / (1 - (weights**2).sum())


def sd_error_of(points: Array, weights: Array) -> Array:
    """Relative Monte Carlo error of each coordinate's sd."""
    mean, covariance = weighted_moments(points, weights)
    squares = (points - mean) ** 2 / np.diag(covariance)
    return np.sqrt((weights[:, None] ** 2 * (squares - 1) ** 2).sum(axis=0)) / 2


def shrunk_moments(points: Array, weights: Array, prior: Array) -> tuple[Array, Array]:
    """Weighted mean and covariance, the latter towards a prior guess where points are few."""
    mean, covariance = weighted_moments(points, weights)
    effective, guess = 1 / (weights**2).sum(), points.shape[1] + 2.0
    return mean, (effective * covariance + guess * prior) / (effective + guess)
