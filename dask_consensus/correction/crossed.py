"""The log posterior of all shared parameters but the effects of crossed factors.

The correction weights points of all other shared parameters, few of them, by a log density that has
the crossed effects ``b`` integrated out: Laplace's method about their mode
(:mod:`..combination.crossed`), and what it leaves. With ``b = mode + delta``, delta normal with the
inverse curvature as covariance, the integral is Laplace's times ``E[exp R]``, R being what the log
density differs by from the quadratic. A sum over many levels, R is nearly normal itself, so that::

    log E[exp R] = E[R] + Var[R] / 2,

which is the next order of Laplace's expansion (Shun and McCullagh 1995, JRSS B 57, eq. 7). Both are
averages over the same pairs delta, -delta at a few values of the other parameters, between which a
quadratic says what it is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.linalg

from ..cluster.shards import Shards
from ..combination.crossed import CrossedEffects, GivenOthers
from ..shard.quadrature import Rule
from .likelihood import Evaluated, LogPosterior, along_axes, first_order
from .proposals import Array
from .sample import Sample

_PAIRS = 16  # of deltas that tell what Laplace's method leaves
_DESIGN = 1.5  # sds either way along axes, where it is asked what Laplace's method leaves
_REACH = 4.0  # sds within which a quadratic says that
_LEFT_OPEN = 0.1  # share of the next order that may be left after it, beside the one that follows


class Left(NamedTuple):
    """What Laplace's method leaves of the log integral, as a quadratic along axes.

    Attributes
    ----------
    middle : (p,) array
    inverse : (p, p) array
        Takes distances from there to sds along the axes.
    slope, bend : (p,) arrays
        The change over a sd, and twice that of its square.
    slope_error, bend_error : (p,) arrays
        What chance may have done to them.
    next_slope, next_bend : (p,) arrays
        Of the order that follows.
    """

    middle: Array
    inverse: Array
    slope: Array
    bend: Array
    slope_error: Array
    bend_error: Array
    next_slope: Array
    next_bend: Array

    def __call__(self, others: Array) -> Array:
        """Give it at points ``(G, p)``, less that in the middle."""
        away = (others - self.middle) @ self.inverse.T
        away = _REACH * np.tanh(away / _REACH)
        return np.asarray(away @ self.slope + away**2 @ self.bend / 2, np.float64)

    def following(self) -> Left:
        """Give the order that follows in the place of this one."""
        return self._replace(slope=self.next_slope, bend=self.next_bend)


class CrossedPosterior(NamedTuple):
    """The log posterior of all parameters but crossed effects; asked as `LogPosterior` is.

    Attributes
    ----------
    full : LogPosterior
        Of all parameters.
    crossed : CrossedEffects
    center : (p,) array
    left : Left or None
    sample : None
        All shards are asked, always.
    """

    full: LogPosterior
    crossed: CrossedEffects
    center: Array
    left: Left | None = None
    sample: Sample | None = None

    @property
    def shards(self) -> Shards:
        """All shards."""
        return self.full.shards

    @property
    def rule(self) -> Rule:
        """How effects of groups are integrated out."""
        return self.full.rule

    @property
    def few_points(self) -> bool:
        """Each point takes several passes over the shards: few are asked at first."""
        return True

    def __call__(self, points: Array, title: str) -> Evaluated:
        """Evaluate it at ``(G, p)`` points."""
        evaluated = []
        for some, given in self.crossed.at(points, title):
            u = self.crossed.joined(points[some], given.mode)
            there = self.full(u, title)
            log_density = there.log_density - given.log_volume
            if self.left is not None:
                log_density = log_density + self.left(points[some])
            found = np.isfinite(given.log_density)
            evaluated.append(
                there._replace(
                    points=points[some],
                    log_density=np.where(found, log_density, -np.inf),
                    at_center=there.at_center + len(self.crossed.effects) / 2 * np.log(2 * np.pi),
                )
            )
        return Evaluated(
            points=points,
            log_density=np.concatenate([part.log_density for part in evaluated]),
            log_likelihood=np.concatenate([part.log_likelihood for part in evaluated]),
            at_center=evaluated[0].at_center,
            modes_not_found=np.concatenate([part.modes_not_found for part in evaluated]),
            coupling=max(part.coupling for part in evaluated),
            compile_seconds=sum(part.compile_seconds for part in evaluated),
            remainders=np.empty((0, len(points))),
            remainders_at_center=np.empty(0),
        )

    def error_of(self, evaluated: Evaluated) -> Array:
        """Of no sample there is no error."""
        return np.zeros(len(evaluated.points))

    def with_enough_nodes(self, points: Array, axes: Array) -> tuple[CrossedPosterior, float]:
        """Choose nodes for the effects of groups, and see what Laplace's method leaves."""
        along = self._lifted(along_axes(self.center, axes))
        few = self._lifted(points[: 4 * len(self.center)])
        full, seconds = self.full.with_nodes_for(few, along)
        there = self._replace(full=full)
        return there._replace(left=there._what_is_left(axes)), seconds

    def integration_error(self, axes: Array) -> tuple[Array, Array]:
        """First-order change of means, in sds, and of log sds, were integrals taken otherwise."""
        along = along_axes(self.center, axes)
        mean, log_sd = self.full.integration_error_at(self._lifted(along))
        assert self.left is not None
        left, following = first_order(self.left(along)), first_order(self.left.following()(along))
        # What random pairs leave open, along the axes that it is known along.
        toward = np.abs(axes.T @ self.left.inverse.T)
        by_chance = toward @ self.left.slope_error, toward**2 @ self.left.bend_error / 2
        more = [
            np.abs(next_) + np.hypot(_LEFT_OPEN * this, chance)
            for this, next_, chance in zip(left, following, by_chance, strict=True)
        ]
        return np.hypot(mean, more[0]), np.hypot(log_sd, more[1])

    def _lifted(self, points: Array) -> Array:
        """Join points with the modes of effects there."""
        return self.crossed.joined(points, self.crossed.modes(points))

    def _what_is_left(self, axes: Array) -> Left:
        """Ask what Laplace's method leaves, in the middle and either way along all axes."""
        p, size = len(self.center), len(self.crossed.effects)
        root = np.linalg.cholesky(_covariance_of(axes))
        design = self.center + _DESIGN * np.concatenate([np.zeros((1, p)), root.T, -root.T])
        z = np.random.default_rng(0).standard_normal((_PAIRS, size))
        even, odd = np.empty((2, len(design), _PAIRS))
        for some, given in self.crossed.at(design, "next order"):
            for g, others in enumerate(design[some]):
                even[some.start + g], odd[some.start + g] = self._differences(others, given, g, z)
        # Leaving each pair out tells by how much chance matters.
        every = _next_order(even, odd)
        without = [
            _along(_next_order(np.delete(even, k, 1), np.delete(odd, k, 1))) for k in range(_PAIRS)
        ]
        slopes, bends = zip(*without, strict=True)
        slope, bend = _along(every)
        next_slope, next_bend = _along(_order_after(even, odd))
        share = (_PAIRS - 1) / np.sqrt(_PAIRS)
        return Left(
            middle=self.center,
            inverse=np.linalg.inv(root),
            slope=slope,
            bend=bend,
            slope_error=share * np.std(slopes, axis=0),
            bend_error=share * np.std(bends, axis=0),
            next_slope=next_slope,
            next_bend=next_bend,
        )

    def _differences(
        self, others: Array, given: GivenOthers, g: int, z: Array
    ) -> tuple[Array, Array]:
        """Mean, and half the difference, of R at either point of each pair."""

        def away() -> Array:
            factor = given.factors()[g]
            return scipy.linalg.solve_triangular(factor, z.T, lower=True, trans=1).T

        delta = self.crossed.kept("next order", ["pairs", others, given.mode[g], z], away)
        effects = given.mode[g] + np.concatenate([np.zeros_like(delta[:1]), delta, -delta])
        told = self.full(self.crossed.joined(others[None], effects), "next order").log_density
        ahead, behind = np.split(told[1:] - told[0], 2)
        lengths = (z**2).sum(axis=1) / 2
        return (ahead + behind) / 2 + lengths, (ahead - behind) / 2


def _covariance_of(axes: Array) -> Array:
    """Give back the covariance whose columns, each over its sd, are axes."""
    sd = np.diag(axes)
    return axes * sd


def _next_order(even: Array, odd: Array) -> Array:
    """Give ``E[R] + Var[R] / 2`` at points of a design, from R's parts at ``(points, pairs)``."""
    variance = even.var(axis=1, ddof=1) + (odd**2).mean(axis=1)
    return np.asarray(even.mean(axis=1) + variance / 2, np.float64)


def _order_after(even: Array, odd: Array) -> Array:
    """Give the third cumulant over 6, which follows in the expansion of ``log E[exp R]``."""
    away = even - even.mean(axis=1, keepdims=True)
    return np.asarray((away**3 + 3 * away * odd**2).mean(axis=1) / 6, np.float64)


def _along(values: Array) -> tuple[Array, Array]:
    """Slope and bend along each axis, of values in the middle and at either side."""
    ahead, behind = np.split(values[1:], 2)
    return (ahead - behind) / (2 * _DESIGN), (ahead - 2 * values[0] + behind) / _DESIGN**2
