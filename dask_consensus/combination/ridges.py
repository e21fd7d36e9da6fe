"""Whether a peak is a piece of a curved ridge, and where the ridge leads.

Where only a^2 + b^2 or a b is known, the posterior is a thin curve. At any of its points it looks
like a peak: along the tangent the density falls with the fourth power of the distance, as the curve
leaves the straight line, and no point along the line is ever on the curve again. So a peak whose
density falls so is followed: a step along the tangent, then back to the ridge in the directions
across it (a predictor and a corrector: Allgower and Georg 1990, chapter 2), both ways to its ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.linalg

from ..model.model import ShardModel
from ..shard.engine import engine_of
from ..shard.quadrature import Rule
from ..shard.score import Expansion
from ..shard_data import ShardData
from .ascent import STEP, Array, Peak, all_finite
from .gaussian import square_root

_AWAY = 3.0  # sds from a peak at which it is looked at
_STEEP = 12.0  # fall of the log density there that a peak does not have; a Gaussian falls by 4.5
_ONE_WAY = 0.5  # cosine from which two directions are one
_STRAIGHT = 0.94  # cosine between a step and the tangent it began along, at least
_DROP = 2.0  # of the log density by a step, at most
_STEPS = 150  # along a ridge, either way
_FURTHER = 8  # to tell where it leads after that
_ASIDE = 1.0  # fall of the log density by a step along the tangent that is aimed at
_TOO_FAR = 6.0  # and at which the step is shortened
_CORRECTIONS = 5  # Newton steps across the ridge, at most
_NEAR = 0.1  # climb of the last of them
_SHORTEST = 1 / 64  # of a step, in sds of the peak
_FLATTEST = 1e-3  # curvature across it, in those of the peak
_SHORT = 0.5  # of a step, for differences along the ridge
_ROUND = 3.0  # times its distance from where it began that a closed ridge is long
_LOW = 12.0  # log density, and one a dimension, by which a ridge has ended


def bends(data: ShardData, model: ShardModel, peak: Peak, n_shards: int, rule: Rule) -> list[Array]:
    """Find directions in which a peak of all shards falls as a ridge does; runs on a worker.

    Looked at are the regression line of each coordinate and the principal axes, in one shard that
    stands for all. It has a slope where all together have none, which cancels in the mean of both
    sides.

    Returns
    -------
    list of (d,) arrays
        Steps of one sd, the most suspicious first; no two of them about the same.
    """
    sd = np.sqrt(np.diag(peak.covariance))
    values, vectors = np.linalg.eigh(peak.covariance / np.outer(sd, sd))
    principal = sd[:, None] * vectors * np.sqrt(np.maximum(values, 0.0))
    lines = np.concatenate([peak.covariance / sd, principal], axis=1).T
    points = np.concatenate([peak.u[None], peak.u + _AWAY * lines, peak.u - _AWAY * lines])
    height = engine_of(model).gradient(data, points, 1.0 / n_shards, rule).value
    ahead, behind = np.split(height[1:], 2)
    falls = n_shards * (height[0] - (ahead + behind) / 2)
    chosen: list[Array] = []
    for k in np.argsort(-falls):
        alike = (abs(line @ np.linalg.solve(peak.covariance, lines[k])) for line in chosen)
        if falls[k] > _STEEP and not any(cosine > _ONE_WAY for cosine in alike):
            chosen.append(lines[k])
    return chosen


class Ridge(NamedTuple):
    """Places along a ridge.

    Attributes
    ----------
    places : list of Peak
        As wide along the ridge as the steps between them.
    beyond : list of Peak
        Where it was left, if it went on.
    """

    places: list[Peak]
    beyond: list[Peak]


def follow(
    expand: Callable[[Array, Array], Expansion], peak: Peak, along: Array, scale: Array
) -> Ridge:
    """Follow a ridge from a peak both ways, by expansions about points on it.

    Parameters
    ----------
    expand : callable
        Of a point and the steps of differences, as columns.
    peak : Peak
    along : (d,) array
        A step of one sd along the ridge.
    scale : (d,) array
        In which coordinates may be compared: along a ridge their sds are exchanged.
    """
    places: list[Peak] = []
    beyond: list[Peak] = []
    for direction in (along, -along):
        walk = _Walk(expand, peak, direction, scale)
        while walk.goes_on and len(walk.places) < _STEPS:
            walk.go_on()
        places += walk.places
        while walk.goes_on and len(walk.places) < _STEPS + _FURTHER:
            walk.go_on()
        beyond += walk.places[_STEPS:]
        if walk.lost:
            beyond.append(walk.ahead)
        if walk.closed:
            break
    # A skewed or flat-topped peak falls as a ridge does, but along its own tangent: no ridge, and
    # its tails are to be looked for as those of any peak. Where the way was left is still asked.
    bent = any(_leaves(place, peak, along) for place in places)
    return Ridge(places if bent else [], beyond)


def _leaves(place: Peak, peak: Peak, along: Array) -> bool:
    """Tell whether a place lies off the line along a peak, by more than the ridge is wide."""
    precision = np.linalg.inv(place.covariance)
    away = place.u - peak.u
    # Nearest to the place is the point of the line where it is least in the place's own sds.
    aside = away - along * (along @ precision @ away) / (along @ precision @ along)
    return bool(aside @ precision @ aside > len(aside) + _AWAY**2)


def widest(peak: Peak) -> Array:
    """Give a step of one sd along the longest principal axis, of the correlation matrix."""
    sd = np.sqrt(np.diag(peak.covariance))
    values, vectors = np.linalg.eigh(peak.covariance / np.outer(sd, sd))
    return np.asarray(sd * vectors[:, -1] * np.sqrt(values[-1]), np.float64)


def close_to(peak: Peak, place: Peak) -> bool:
    """Tell whether a peak lies where a place on a ridge is followed by the next."""
    away = np.linalg.solve(np.linalg.cholesky(place.covariance), peak.u - place.u)
    return bool(away @ away < len(away) + _AWAY**2)


class _Walk:
    """One way along a ridge."""

    def __init__(
        self,
        expand: Callable[[Array, Array], Expansion],
        peak: Peak,
        along: Array,
        scale: Array,
    ) -> None:
        self.places: list[Peak] = []
        self.goes_on = True
        self.lost = False  # the way, before the density was low
        self.closed = False  # back where it began
        self._expand, self._peak = expand, peak
        self._scale = scale
        self._z = self._origin = peak.u / self._scale
        self._unit = self._step = float(np.linalg.norm(along / self._scale))
        self._tangent = self._first = along / self._scale / self._unit
        self._half = square_root(peak.covariance / np.outer(self._scale, self._scale))
        self._length, self._height = 0.0, peak.height

    @property
    def ahead(self) -> Peak:
        """A step further along the tangent than the last place."""
        u = (self._z + self._unit * self._tangent) * self._scale
        return Peak(u, self._peak.covariance, self._peak.height)

    def go_on(self) -> None:
        """Step along the tangent, and back to the ridge across it; by a shorter step if need be."""
        step, tangent = self._step, self._tangent
        found = self._across(self._z + step * tangent)
        if found is not None:
            secant = (found[0] - self._z) / np.linalg.norm(found[0] - self._z)
            # Where a ridge turns back, the line across its tangent may miss it.
            if secant @ tangent < _STRAIGHT or found[2] < self._height - _DROP:
                found = None
        if found is None:
            self._step /= 2
            self.lost = self._step < _SHORTEST * self._unit
            self.goes_on = not self.lost
            return
        arrived, half, height, aside = found
        # On a circle the secant halves the angle between the tangents at its ends.
        turned = 2 * (secant @ tangent) * secant - tangent
        self._length += float(np.linalg.norm(arrived - self._z))
        self._z, self._tangent = arrived, turned / np.linalg.norm(turned)
        self._height = height
        scales = np.outer(self._scale, self._scale)
        covariance = half @ half.T + step**2 * np.outer(tangent, tangent)
        self.places.append(Peak(arrived * self._scale, covariance * scales, height))
        # Short along the ridge, where it bends; so are the steps of differences.
        self._half = np.column_stack([half, _SHORT * step * tangent])
        self._step *= float(np.clip((_ASIDE / max(aside, 1e-9)) ** 0.25, 0.5, 2.0))
        low = height < self._peak.height - _LOW - len(arrived)
        # Where it began, and on the same way.
        home = float(np.linalg.norm(arrived - self._origin))
        again = close_to(self._peak, self.places[-1]) and self._tangent @ self._first > _ONE_WAY
        self.closed = bool(self._length > _ROUND * home and again)
        self.goes_on = not (low or self.closed)

    def _across(self, ahead: Array) -> tuple[Array, Array, float, float] | None:
        """Climb across the tangent: place, square root of the covariance, height, and the climb.

        None where the ridge is too far away.
        """
        scale, across = self._scale, scipy.linalg.null_space(self._tangent[None])
        z, below = ahead, 0.0
        for _ in range(_CORRECTIONS):
            expansion = self._expand(z * scale, STEP * scale[:, None] * self._half)
            if not all_finite(expansion):
                return None
            precision = across.T @ (expansion.precision * np.outer(scale, scale)) @ across
            values, vectors = np.linalg.eigh(precision)
            half = across @ vectors / np.sqrt(np.maximum(np.abs(values), _FLATTEST))
            slope = half.T @ (expansion.gradient * scale)
            climb = float(slope @ slope / 2)
            z, below = z + half @ slope, below + climb
            if below > _TOO_FAR or np.linalg.norm(z - ahead) > self._step / 2:
                return None
            if climb < _NEAR:
                return z, half, expansion.value + climb, below
        return None
