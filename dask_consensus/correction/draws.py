"""Draws of equal weight that agree with a weighted estimate."""

from __future__ import annotations

import contextlib

import numpy as np
import scipy.linalg

from ..combination import gaussian
from ..combination.reports import Combined
from ..model.model import ShardModel
from ..shard_data import ShardData
from .assessment import usable
from .levels import with_levels
from .proposals import Array, resample
from .state import Correction
from .weights import Estimate, weighted_moments

_TAIL = 0.005  # share of the points on either side that equal-weight draws are not matched in


def posterior_draws(
    combined: Combined,
    correction: Correction | None,
    shape: tuple[int, int],
    seed: int,
    prior: tuple[ShardModel, ShardData],
) -> Array:
    """Draws of the best answer at hand, ``(chains, draws, d)``: corrected where that is usable.

    `prior` is the model with any data that it accepts.
    """
    if correction is None or not usable(correction):
        return combined.draws
    rng = np.random.default_rng([seed, 1])
    draws = equal_weight_draws(correction.estimate, shape, rng)
    if correction.levels is None:
        return draws
    flat = draws.reshape(-1, draws.shape[-1])
    return with_levels(correction.levels, prior, flat, rng).reshape(*shape, -1)


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
    n_draws = shape[0] * shape[1]
    axis = scipy.linalg.eigh(estimate.covariance)[1][:, -1]
    draws = points[rng.permutation(resample(points, weights, axis, n_draws, rng))]
    low, high = np.quantile(
        points, [_TAIL, 1 - _TAIL], axis=0, weights=weights, method="inverted_cdf"
    )
    everywhere, measure = estimate.measure
    wanted = weighted_moments(np.clip(everywhere, low, high), measure)
    # Fewer distinct points than dimensions have no covariance to match.
    with contextlib.suppress(np.linalg.LinAlgError):
        moments = gaussian.moments(np.clip(draws, low, high))
        draws = gaussian.matched(draws, *wanted, of=moments)
    return draws.reshape(*shape, -1)
