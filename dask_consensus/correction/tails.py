"""What lies beyond the points: tails that no weight can show.

A tail that no point has seen has no weight, and no diagnostic of the weights misses it. So the
posterior is asked far out, along each coordinate's regression line, and held against the density of
what points were drawn from there. In many dimensions hardly a point is near such a line, be the
tail as light as it may: then it is of one coordinate, the others taken to hold as much mass as a
normal distribution would, and held against how often points have that coordinate.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .emulator import Emulator
from .likelihood import LogPosterior
from .proposals import Array, MixtureProposal, Proposal, single

_DISTANCES = (2.0, 4.0, 8.0, 16.0, 32.0)  # sds
_STEPS = np.concatenate([-np.array(_DISTANCES), [0.0], _DISTANCES])
_ASIDE = 0.01  # sds beside a probe at which its neighbours are asked
_NOISE = 1.0  # by which the log density may bend between them before it is noise
_WORTH_SPLITTING = 1.3  # a reach below this is noise, or what a t distribution covers anyway
_LONGEST = 6.0
_NO_VARIANCE = 3.05 * np.log(2.0)  # fall of a log density over twice the distance
_NO_VARIANCE_SHAPE = 0.45  # of a tail; 1/2 is that of Student's t with two degrees of freedom
_OUTERMOST = 0.05  # share of the points, by weight, that tell the shape
_ON_A_LINE = (
    25  # dimensions up to which points are near a line; beyond, one coordinate is looked at
)


class Probes(NamedTuple):
    """Log density of the posterior far out along each coordinate's regression line.

    Attributes
    ----------
    points : (steps, d, d) array
        Step, coordinate that leads, point.
    height : (steps, d) array
    error : (steps, d) array
        Of the height, by asking a sample of the shards; 0 where all were asked.
    log_volume : (d,) array
        See :func:`log_volume`.
    """

    points: Array
    height: Array
    error: Array
    log_volume: Array

    @property
    def flat(self) -> Array:
        """The points, ``(steps * d, d)``."""
        return self.points.reshape(-1, self.points.shape[-1])

    @property
    def leader(self) -> npt.NDArray[np.int64]:
        """The coordinate that leads to each of the flat points."""
        return np.resize(np.arange(self.points.shape[-1]), self.height.size)

    def log_proposal(self, mixture: MixtureProposal) -> Array:
        """Log density of what points were drawn from, flat; see :func:`drawn_there`."""
        return drawn_there(mixture, self.flat, self.leader)

    def log_weights(self, mixture: MixtureProposal) -> Array:
        """Log of the weight that a point at each probe would stand for, ``(steps, d)``."""
        drawn = self.log_proposal(mixture).reshape(self.height.shape)
        return np.asarray(self.height + self.log_volume - drawn, np.float64)


def log_volume(covariance: Array) -> Array:
    """Log of what a normal distribution of height 1 holds in all coordinates but one, ``(d,)``.

    On a regression line: the mass of a slice of that one coordinate. 0 in few dimensions, where
    densities are compared: heavy tails of several coordinates are wider together than apart.
    """
    d = len(covariance)
    if d <= _ON_A_LINE:
        return np.zeros(d)
    spread = np.linalg.slogdet(covariance)[1] - np.log(np.diag(covariance))
    return np.asarray((d - 1) / 2 * np.log(2 * np.pi) + spread / 2, np.float64)


def drawn_there(
    proposal: Proposal | MixtureProposal, points: Array, leader: npt.NDArray[np.int64]
) -> Array:
    """Log density of a proposal at points ``(m, d)``; in many dimensions of their leaders alone."""
    if points.shape[1] <= _ON_A_LINE:
        return proposal.log_density(points)
    return proposal.log_marginal(points[np.arange(len(points)), leader], leader)


def probe(log_posterior: LogPosterior, mean: Array, covariance: Array) -> Probes:
    """Ask for the posterior where no point may ever be drawn.

    Far out a density may be nothing but rounding errors, of log-gamma functions say whose huge
    values cancel. Where it does not fall as it should, it is minus infinity if it is such noise.
    """
    d = len(mean)
    directions = covariance / np.sqrt(np.diag(covariance))  # column j: coordinate j by one sd
    points = mean + (_STEPS[:, None, None] * directions.T).reshape(-1, d)
    evaluated = log_posterior(points, "probing tails")
    probes = Probes(
        evaluated.points.reshape(-1, d, d),
        evaluated.log_density.reshape(-1, d),
        log_posterior.error_of(evaluated).reshape(-1, d),
        log_volume(covariance),
    )
    step, leader = np.nonzero(_heavy(probes.height))
    if not len(step):
        return probes
    there, aside = probes.points[step, leader], _ASIDE * directions.T[leader]
    beside = log_posterior(np.concatenate([there - aside, there + aside]), "probing tails")
    below, above = np.split(beside.log_density, 2)
    height = probes.height.copy()
    with np.errstate(invalid="ignore"):
        smooth = np.abs(below - 2 * height[step, leader] + above) < _NOISE
    height[step, leader] = np.where(smooth, height[step, leader], -np.inf)
    return probes._replace(height=height)


def _heavy(height: Array) -> npt.NDArray[np.bool_]:
    """Tell where the log density falls by less than it fell before, over half of the way."""
    n = len(_DISTANCES)
    heavy = np.zeros(height.shape, bool)
    for rows in (np.r_[n, :n], np.r_[n : 2 * n + 1]):  # from the middle outwards
        along = height[rows]
        with np.errstate(invalid="ignore"):
            falls = np.minimum.accumulate(along)[:-1] - along[1:]
            light = (falls[1:] >= falls[:-1]) & (falls[1:] > 0)
        heavy[rows[2:]] = np.isfinite(along[2:]) & ~light
    return heavy


def reach(probes: Probes) -> tuple[Array, Array]:
    """How much further than a Gaussian the posterior reaches, below and above, by coordinate.

    A scale s covers a point at distance x whose log density is lower by y if s is at least
    x / sqrt(2 y) (Geweke 1989, eq. 4.1).
    """
    lower_by = np.maximum(probes.height.max(axis=0) - probes.height, 1e-3)
    scale = np.abs(_STEPS)[:, None] / np.sqrt(2 * lower_by)
    scale = np.where(scale < _WORTH_SPLITTING, 1.0, np.minimum(scale, _LONGEST))
    n = len(_DISTANCES)
    return scale[:n].max(axis=0), scale[-n:].max(axis=0)


def missed_by(
    emulator: Emulator, probes: Probes, mixture: MixtureProposal, log_weights: Array
) -> float:
    """Largest weight at a probe that an emulator misses or makes up, in largest weights seen."""
    emulated = probes._replace(
        height=emulator.log_density(probes.flat).reshape(probes.height.shape)
    )
    here, there = (
        np.exp(np.minimum(each.log_weights(mixture) - log_weights.max(), 700.0))
        for each in (probes, emulated)
    )
    return float(np.abs(here - there).max())


def tail_log_ratio(probes: Probes, mixture: MixtureProposal, log_weights: Array) -> Array:
    """Log of how much larger weights would be at a probe than any weight seen, by coordinate."""
    return probes.log_weights(mixture).max(axis=0) - log_weights.max()


def unreached(
    probes: Probes,
    mixture: MixtureProposal,
    log_weights: Array,
    mean: Array,
    covariance: Array,
    limit: float,
) -> MixtureProposal:
    """Propose from around the probes where a weight would be larger than any seen, by `limit`.

    As wide along the coordinate that leads as a probe stands for, and twice as wide as the
    covariance in the others; of no proposals where there is no such probe.
    """
    over = probes.log_weights(mixture) - log_weights.max() > limit
    places = MixtureProposal()
    for step, j in np.argwhere(over):
        line = covariance[:, j] / np.sqrt(covariance[j, j])
        width = max(np.abs(_STEPS[step]), _DISTANCES[0]) / 2  # the middle has one as well
        shape = 2 * (covariance - np.outer(line, line)) + width**2 * np.outer(line, line)
        places = places.and_from(single(mean + _STEPS[step] * line, shape), 1)
    return places


def without_variance(
    probes: Probes, points: Array, weights: Array, mean: Array, covariance: Array
) -> npt.NDArray[np.bool_]:
    """Tell which coordinates have no variance, whatever the points make of it, ``(d,)``.

    Their density falls by no more than the third power of the distance, as far as it was asked on
    the line; and so do, for that line may leave a ridge, the outermost of the points, by Hill's
    estimator (1975, Annals of Statistics 3).
    """
    fall = np.full(probes.height.shape[1], np.inf)
    for near, far in ((len(_DISTANCES) - 2, len(_DISTANCES) - 1), (-2, -1)):
        with np.errstate(invalid="ignore"):
            along = probes.height[near] - probes.height[far]
        there = np.isfinite(probes.height[far])
        fall = np.minimum(fall, np.where(there, along, np.inf))
    away = np.abs(points - mean) / np.sqrt(np.diag(covariance))
    shape = np.array([_hill(column, weights) for column in away.T])
    return np.asarray((fall < _NO_VARIANCE) & (shape > _NO_VARIANCE_SHAPE), np.bool_)


def _hill(away: Array, weights: Array) -> float:
    """Shape of the tail of weighted distances: one over the power by which it falls."""
    order = np.argsort(-away)
    outside = order[np.cumsum(weights[order]) < _OUTERMOST]
    weight = weights[outside]
    if not weight.sum() > 0:
        return 0.0
    return float(np.average(np.log(away[outside] / away[outside[-1]]), weights=weight))
