"""What the effects of crossed factors are, given all other shared parameters.

They are normal about a mean that differs from their mode by what the mean gradient around it says,
with the mean curvature there: the normal distribution nearest to theirs (Opper and Archambeau 2009,
Neural Computation 21, eq. 13 and 14), to first order from the mode. Mode and curvature of the
likelihood are polynomials in the other parameters; the curvature of the prior is asked anew.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import numpy as np
import scipy.linalg

from ..combination.crossed import CrossedEffects, factor_of, polynomial
from ..model.model import ShardModel
from ..shard.crossed import prior_curvature
from ..shard_data import ShardData
from .assessment import usable
from .crossed import CrossedPosterior
from .importance import correct
from .likelihood import LogPosterior
from .proposals import Array
from .state import Correction, CorrectionSettings
from .weights import Weighted

_LEFT_OPEN = 0.25  # share of what the mean differs by from the mode that may be left
_PAIRS = 8  # of places around the mode, that tell of mean and curvature
_STEP = 1.5  # sds of the others, over which the curvature is followed
_DISTINCT = 256  # values of the others at which the curvature of effects is factored


class Levels(NamedTuple):
    """What is known of ``J`` crossed effects, given p other parameters.

    Attributes
    ----------
    effects, others : (J,) and (p,) int arrays
        Coordinates of u.
    mean, sd : (J,) arrays
        Of the effects.
    error, sd_error : (J,) arrays
        Of the mean, in sds, and of the log sd.
    middle, scale : (p,) arrays
        Of the others, in which the polynomials are.
    modes : (terms, J) array
        Coefficients of the effects' mean given the others.
    precision : (1 + p, J, J) array
        Of the likelihood in the effects: in the middle, and its change with each of the others.
    """

    effects: Array
    others: Array
    mean: Array
    sd: Array
    error: Array
    sd_error: Array
    middle: Array
    scale: Array
    modes: Array
    precision: Array


def correct_crossed(
    settings: CorrectionSettings, full: LogPosterior, crossed: CrossedEffects
) -> Correction:
    """Correct all parameters but the crossed effects, and say what these are given the others."""
    others = crossed.others
    settings = settings._replace(
        mean=settings.mean[others], covariance=settings.covariance[np.ix_(others, others)]
    )
    posterior = CrossedPosterior(full, crossed, settings.mean)
    correction = correct(settings, cast(LogPosterior, posterior))._replace(
        coordinates=others, known=None
    )
    if not usable(correction):
        return correction
    points = Weighted(correction.points, correction.weights)
    return correction._replace(levels=levels_given(posterior, points, correction.estimate.measure))


def levels_given(posterior: CrossedPosterior, weighted: Weighted, measure: Weighted) -> Levels:
    """Find what the effects are, given the others.

    Parameters
    ----------
    posterior : CrossedPosterior
    weighted : Weighted
        Points of the others where it was evaluated.
    measure : Weighted
        Averages over these points are the posterior's.
    """
    crossed, (points, weights) = posterior.crossed, weighted
    p = points.shape[1]
    middle = measure.weights @ measure.points
    scale = np.sqrt(measure.weights @ (measure.points - middle) ** 2)
    white = (points - middle) / scale
    modes = crossed.modes(points)
    degree = 2 if (p + 1) * (p + 2) <= len(points) else 1
    design = polynomial(white, degree)
    pull = np.sqrt(weights + weights.max() * 1e-6)[:, None]
    fit, *_ = np.linalg.lstsq(pull * design, pull * modes, rcond=None)
    missed = np.sqrt(weights @ (modes - design @ fit) ** 2)
    shift, precision, laplace, by_chance = _polished(posterior, middle, scale)
    fit = fit.copy()
    fit[0] += shift
    inner = np.sqrt(np.diag(np.linalg.inv(precision[0] + _prior_at(posterior, middle, fit[0]))))
    everywhere = polynomial((measure.points - middle) / scale, degree)
    terms = measure.weights @ everywhere
    mean = terms @ fit
    square = (everywhere * measure.weights[:, None]).T @ everywhere - np.outer(terms, terms)
    outer = np.sqrt(np.maximum(np.einsum("tj,ts,sj->j", fit, square, fit), 0.0))
    sd = np.hypot(inner, outer)
    error = np.hypot(np.hypot(missed, by_chance), _LEFT_OPEN * shift) / sd
    return Levels(
        effects=crossed.effects,
        others=crossed.others,
        mean=mean,
        sd=sd,
        error=error,
        sd_error=np.abs(np.log(inner / laplace)) * _LEFT_OPEN * (inner / sd) ** 2,
        middle=middle,
        scale=scale,
        modes=fit,
        precision=precision,
    )


def _prior_at(posterior: CrossedPosterior, others: Array, effects: Array) -> Array:
    crossed = posterior.crossed
    u = crossed.joined(others[None], effects[None])
    return prior_curvature(crossed.model, crossed.example, u).precision[0]


def _polished(
    posterior: CrossedPosterior, middle: Array, scale: Array
) -> tuple[Array, Array, Array, Array]:
    """Say how the effects' mean differs from their mode, and what the likelihood's curvature is.

    Returns
    -------
    shift : (J,) array
    precision : (1 + p, J, J) array
        See :class:`Levels`.
    laplace : (J,) array
        Sds by the curvature at the mode alone.
    by_chance : (J,) array
        What chance may have done to the shift.
    """
    crossed = posterior.crossed
    steps = _STEP * np.diag(scale)
    slopes = []
    for step in steps:
        sides = np.stack([middle + step, middle - step])
        u = crossed.joined(sides, crossed.modes(sides))
        slopes.append(crossed.kept("levels", ["slope", u], partial(_slope, crossed, u)))
    ((_, given),) = crossed.at(middle[None], "levels")
    mode = given.mode[0]
    size = len(mode)
    z = np.random.default_rng(1).choice([-1.0, 1.0], (_PAIRS, size))
    around = partial(_around, given.factors, z)
    laplace, delta = crossed.kept("levels", ["around", middle, mode, z], around)
    gradients, precision = np.empty((_PAIRS, size)), np.zeros((size, size))
    for k, away in enumerate(delta):
        u = crossed.joined(middle[None], np.stack([mode + away, mode - away]))
        pair = crossed.kept("levels", ["pair", u], partial(_pair, crossed, u))
        prior = prior_curvature(crossed.model, crossed.example, u)
        gradients[k] = pair[0] + prior.gradient.mean(axis=0)
        precision += pair[1] / _PAIRS
    whole = precision + _prior_at(posterior, middle, mode)
    shifts = np.linalg.solve(whole, gradients.T).T
    by_chance = shifts.std(axis=0, ddof=1) / np.sqrt(_PAIRS)
    return shifts.mean(axis=0), np.array([precision, *slopes]), laplace, by_chance


def _slope(crossed: CrossedEffects, u: Array) -> Array:
    """Change of the likelihood's curvature over a sd, from points a step to either side."""
    ahead, behind = crossed.expanded_likelihood(u, "levels").precision
    return np.asarray((ahead - behind) / (2 * _STEP), np.float64)


def _around(factors: Callable[[], Array], z: Array) -> tuple[Array, Array]:
    """Sds by the curvature at the mode, and places around it at which all are as likely."""
    factor = factors()[0]
    inverse = scipy.linalg.solve_triangular(factor, np.eye(len(factor)), lower=True)
    delta = scipy.linalg.solve_triangular(factor, z.T, lower=True, trans=1).T
    return np.linalg.norm(inverse, axis=0), delta


def _pair(crossed: CrossedEffects, u: Array) -> tuple[Array, Array]:
    """Mean gradient and mean curvature of the likelihood, of two points."""
    told = crossed.expanded_likelihood(u, "levels")
    return told.gradient.mean(axis=0), told.precision.mean(axis=0)


def with_levels(
    levels: Levels,
    prior: tuple[ShardModel, ShardData],
    others: Array,
    rng: np.random.Generator,
) -> Array:
    """Draw effects for each draw ``(n, p)`` of the others; of the mean and the sds that are known.

    Parameters
    ----------
    levels : Levels
    prior : pair of ShardModel and ShardData
        The model, and any data that it accepts.
    others : (n, p) array
    rng : numpy.random.Generator

    Returns
    -------
    (n, d) array
        Of all shared parameters.
    """
    white = (others - levels.middle) / levels.scale
    p, size = white.shape[1], len(levels.effects)
    degree = 2 if len(levels.modes) > p + 1 else 1
    means = polynomial(white, degree) @ levels.modes
    # Neighbours in the longest direction share a curvature.
    axis = np.linalg.svd(white - white.mean(axis=0), full_matrices=False)[2][0]
    order = np.argsort(white @ axis)
    draws, variances = np.empty((len(others), size)), np.zeros(size)
    for some in np.array_split(order, min(_DISTINCT, len(order))):
        center = white[some].mean(axis=0)
        there = levels.middle + levels.scale * center
        u = np.empty((1, p + size))
        u[:, levels.others], u[:, levels.effects] = there, means[some].mean(axis=0)
        of_prior = prior_curvature(*prior, u).precision[0]
        # Far from where it was asked a straight line says nothing of the likelihood's curvature.
        along = np.concatenate([[1.0], _STEP * np.tanh(center / _STEP)])
        factor = factor_of(np.tensordot(along, levels.precision, 1) + of_prior)
        z = rng.standard_normal((len(some), size))
        away = scipy.linalg.solve_triangular(factor, z.T, lower=True, trans=1).T
        inverse = scipy.linalg.solve_triangular(factor, np.eye(size), lower=True)
        draws[some] = means[some] + away
        variances += (inverse**2).sum(axis=0) * len(some) / len(others)
    mean, sd = means.mean(axis=0), np.sqrt(variances + means.var(axis=0))
    have = draws.mean(axis=0), draws.std(axis=0)
    u = np.empty((len(others), p + size))
    u[:, levels.others] = others
    u[:, levels.effects] = mean + (draws - have[0]) * (sd / have[1])
    return u
