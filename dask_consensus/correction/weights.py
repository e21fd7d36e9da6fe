"""Importance weights of points drawn from several proposals, and what they estimate.

They are judged elsewhere: `importance.done` says when there are enough, `assessment.usable` whether
they describe the posterior at all, `result/reasons.py` whether the answer may be believed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.special
from arviz_stats.base import array_stats

from .proposals import Array, MixtureProposal

_LEAST_SHRUNK = 1e-3  # share of the guess in every covariance, so that it is positive definite


class Weighted(NamedTuple):
    """Points ``(G, d)`` and their weights ``(G,)``."""

    points: Array
    weights: Array


class Estimate(NamedTuple):
    """Expectations under the posterior, and how well they are known.

    Attributes
    ----------
    measure : Weighted
        Averages over these points are the posterior's; weights add up to 1, some may be negative.
    population : Weighted
        Points that draws may be taken from, of weights >= 0; they agree with the measure but for
        an error that is small against the spread of the draws.
    mean : (d,) array
    covariance : (d, d) array
    error : (d,) array
        Monte Carlo error of the mean, in posterior sds.
    sd_error : (d,) array
        Relative Monte Carlo error of the sd.
    ess : float
        Independent draws that would know all means as well.
    log_total, log_total_error : float
        Log of the integral of the unnormalised density, and its Monte Carlo error.
    """

    measure: Weighted
    population: Weighted
    mean: Array
    covariance: Array
    error: Array
    sd_error: Array
    ess: float
    log_total: float
    log_total_error: float


class Weighed(NamedTuple):
    """Weights of points, and how good they are.

    Attributes
    ----------
    weights : (G,) array
        Pareto-smoothed, adding up to 1.
    k_hat : float
        Shape of their tail.
    raw : (G,) array
        Log weights before smoothing, with their constant.
    """

    weights: Array
    k_hat: float
    raw: Array

    def estimate(self, points: Array) -> Estimate:
        """Take expectations by the weights alone."""
        weighted = Weighted(points, self.weights)
        log_total = scipy.special.logsumexp(self.raw) - np.log(len(points))
        spread = np.exp(self.raw - log_total).std() / np.sqrt(len(points))
        return estimate_of(weighted, weighted, (len(points),))._replace(
            log_total=float(log_total), log_total_error=float(spread)
        )


def weigh(log_target: Array, points: Array, mixture: MixtureProposal) -> Weighed:
    """Weight points by the target over the mixture of all proposals, smoothed."""
    return weigh_drawn(log_target, mixture.log_density(points))


def weigh_drawn(log_target: Array, log_proposal: Array) -> Weighed:
    """Weight points by the target over the density that they were drawn from, smoothed."""
    raw = log_target - log_proposal
    raw = np.where(np.isfinite(raw), raw, -np.inf)
    if not np.isfinite(raw.max()):
        raise ValueError(
            "the log density is not finite at any point near the combination of the shards: the "
            "combination is far from the posterior. Use fewer shards, or correct=False to see it."
        )
    finite = np.maximum(raw, raw.max() - 700.0)
    # The library takes log likelihoods to leave out, whose weights are their inverses.
    with np.errstate(divide="ignore", invalid="ignore"):  # of a tail of which next to all is 0
        smoothed, k_hat = array_stats.psislw(finite.max() - finite)
    weights = np.exp(smoothed)
    if not (np.isfinite(weights).all() and weights.sum() > 0):
        # A tail that no Pareto distribution fits: as they are, and not to be used.
        weights, k_hat = np.exp(finite - finite.max()), np.inf
    weights /= weights.sum()
    return Weighed(weights, float(k_hat), raw)


def tempered_weights(log_weights: Array, wanted: float) -> Array:
    """Weights to the largest power <= 1 at which their effective number is as wanted."""

    def normalised(power: float) -> Array:
        scaled = power * (log_weights - log_weights.max())
        weights = np.exp(np.where(np.isfinite(scaled), scaled, -np.inf))
        return weights / weights.sum()

    def excess(power: float) -> float:
        return float(1 / (normalised(power) ** 2).sum()) - min(wanted, len(log_weights) / 2)

    if excess(1.0) >= 0:
        return normalised(1.0)
    # At power 0 all weights are equal, and twice as many count as can be wanted.
    return normalised(float(scipy.optimize.brentq(excess, 0.0, 1.0, xtol=1e-12)))


def weighted_moments(points: Array, weights: Array) -> tuple[Array, Array]:
    """Mean ``(d,)`` and covariance ``(d, d)`` of points ``(G, d)``; weights may be negative."""
    mean = weights @ points
    away = points - mean
    return mean, (away * weights[:, None]).T @ away / (1 - (weights**2).sum())


def estimate_of(measure: Weighted, population: Weighted, sizes: Sequence[int]) -> Estimate:
    """Moments under a measure, and their errors.

    Parameters
    ----------
    measure, population : Weighted
        The measure's weights are not normalised yet.
    sizes : sequence of int
        The measure is a sum of averages over independent sets of so many points each.
    """
    with np.errstate(divide="ignore", invalid="ignore"):  # of one point there is no covariance
        return _estimate_of(measure, population, sizes)


def _estimate_of(measure: Weighted, population: Weighted, sizes: Sequence[int]) -> Estimate:
    points, weights = measure
    total = weights.sum()
    # Each set's part of the total varies by itself.
    within = [part - part.mean() for part in np.split(weights, np.cumsum(sizes)[:-1])]
    spread = np.sqrt(sum((part**2).sum() for part in within))
    weights = weights / total
    mean = weights @ points
    away = points - mean
    covariance = (away * weights[:, None]).T @ away / (1 - (weights**2).sum())
    scaled = away**2 / np.diag(covariance)
    error = np.sqrt(weights**2 @ scaled)
    sd_error = np.sqrt(weights**2 @ (scaled - 1) ** 2) / 2
    return Estimate(
        measure=Weighted(points, weights),
        population=population,
        mean=mean,
        covariance=covariance,
        error=error,
        sd_error=sd_error,
        ess=float(1 / error.max() ** 2),
        log_total=float(np.log(total)),
        log_total_error=float(spread / total),
    )


def shrunk_moments(
    points: Array, weights: Array, mean: Array, covariance: Array
) -> tuple[Array, Array]:
    """Weighted mean and covariance, drawn towards a guess by as much as they are noise.

    In coordinates in which the guess has mean 0 and covariance 1, both are shrunk by the share of
    their squared distance from it that chance alone explains (James and Stein 1961; Ledoit and
    Wolf 2004, Journal of Multivariate Analysis 88, section 3.3). Where the guess is right it is
    kept, however many dimensions there are; where it is wrong the points say so.

    Parameters
    ----------
    points : (G, d) array
    weights : (G,) array
        Adding up to 1.
    mean : (d,) array
    covariance : (d, d) array
        The guess.
    """
    factor = np.linalg.cholesky(covariance)
    white = scipy.linalg.solve_triangular(factor, (points - mean).T, lower=True).T
    center, spread = weighted_moments(white, weights)
    squared = weights**2
    away = white - center
    lengths = (away**2).sum(axis=1)
    center_noise = squared @ lengths
    # The squared Frobenius norm of each point's square less the covariance.
    along = np.einsum("gi,ij,gj->g", away, spread, away)
    spread_noise = float(squared @ (lengths**2 - 2 * along + (spread**2).sum()))
    identity = np.eye(len(mean))
    center *= 1 - _share(float(center_noise), float(center @ center))
    share = max(_share(spread_noise, ((spread - identity) ** 2).sum()), _LEAST_SHRUNK)
    spread = share * identity + (1 - share) * spread
    return mean + factor @ center, factor @ spread @ factor.T


def _share(noise: float, distance: float) -> float:
    """Share of a squared distance that is noise."""
    return float(min(1.0, noise / max(distance, np.finfo(float).tiny)))
