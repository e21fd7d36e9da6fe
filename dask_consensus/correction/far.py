"""What lies far out along a coordinate, wherever all others go there.

Probes of the tails (:mod:`.tails`) lie on straight lines. A change point that comes before all
rows, a funnel or a ridge is off them: a little mass, which no point has seen, at a distance that
counts. So each coordinate is held far out, and the others climb to where the density is highest
given it, by Newton steps on quadratics through points around, for all such places in step.
Laplace's method then says how much mass lies there (Tierney and Kadane 1986, JASA 81, section 4),
and what that would add to means and variances is compared with what the points have of it. Where
points lack it, the next are drawn there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..combination.gaussian import square_root
from ..combination.quadratics import design, quadratic
from .proposals import Array, MixtureProposal, Proposal, single
from .weights import Estimate

_DISTANCES = (4.0, 8.0, 16.0, 32.0)  # sds at which a coordinate is held
_BEYOND = 3.0  # from which on, up to 1.5 times the last of these, mass is added up
_EVERYWHERE = 5  # dimensions; in more only coordinates are held whose line is level far out,
MOST_DIMENSIONS = 12  # a quadratic in more takes too many points
_LEVEL = 20.0  # fall of the log density from 8 to 32 sds, where a Gaussian's is 480
_ROUNDS = 8
_ARRIVED = 0.3  # sds of the last step
_ALIKE = 4.0  # factor by which curvature may differ from what points were spaced by
_MOST_CHANGE = 256.0  # of a curvature by one step
_LONGEST = 8.0  # sds of a step
_PATIENCE, _HOPELESS = 2, 60.0  # steps after which a place so far below the mean is given up
_WIDER = 2.0  # than the covariance at a place that points around it are drawn with
_POINTS = 30  # around a place, which say themselves what it weighs
_NOTICED = 0.005  # share of a variance that is worth points
_AT_LEAST = 3.0  # times what the points have of it, that a mass must be to be one they miss


class Beyond(NamedTuple):
    """What is beyond the points would change, to first order.

    Attributes
    ----------
    mean : (d,) array
        Each mean, in sds.
    sd : (d,) array
        The log of each sd.
    where : int
        The coordinate along which most of that lies.
    places : MixtureProposal
        What points would be drawn from that saw it; of no proposals where nothing was missed.
    """

    mean: Array
    sd: Array
    where: int
    places: MixtureProposal = MixtureProposal()


class _Place(NamedTuple):
    """A coordinate held at a distance, and a point where the others may be highest."""

    held: int
    away: float  # in sds
    u: Array  # (d,)
    axes: Array  # (d - 1, d - 1) columns by one sd of the others
    best: Array  # (d,) the highest point so far
    height: float  # there
    rounds: int
    arrived: bool

    @property
    def others(self) -> npt.NDArray[np.int64]:
        """Coordinates that are not held."""
        return np.delete(np.arange(len(self.u)), self.held)


def level_sides(height: Array) -> set[tuple[int, int]]:
    """Name coordinates, and sides of them, -1 or 1, along whose line a density is level far out.

    Parameters
    ----------
    height : (steps, d) array
        As :class:`.tails.Probes` has it: 2, 4, 8, 16 and 32 sds below, none, and above.
    """
    top = height.max()
    sides = set()
    for sign, near, far in ((-1, 2, 4), (1, 8, 10)):
        with np.errstate(invalid="ignore"):
            level = height[near] - height[far] < _LEVEL
        there = np.isfinite(height[far]) & (height[far] > top - _HOPELESS) & level
        sides |= {(int(j), sign) for j in np.flatnonzero(there)}
    return sides


def beyond(
    ask: Callable[[Array], Array], estimate: Estimate, level: set[tuple[int, int]]
) -> Beyond:
    """Say what the mass that lies far out, and that no point has seen, would change.

    Parameters
    ----------
    ask : callable
        Of points ``(G, d)``, their log density, minus infinity where it is not finite.
    estimate : Estimate
        Its `log_total` is that of this density.
    level : set of pairs of int
        See :func:`level_sides`; in many dimensions these alone are looked at.
    """
    mean, covariance = estimate.mean, estimate.covariance
    d, sd = len(mean), np.sqrt(np.diag(covariance))
    nothing = Beyond(np.zeros(d), np.zeros(d), 0)
    if not 1 < d <= MOST_DIMENSIONS or not np.isfinite(covariance).all():
        return nothing
    shift, square = np.zeros((d, d)), np.zeros((d, d))  # by the coordinate held
    points, weights = estimate.measure
    places = MixtureProposal()
    every = {(j, sign) for j in range(d) for sign in (-1, 1)}
    sides = sorted(every if d <= _EVERYWHERE else level)
    if not sides:
        return nothing
    for place in _climbed(ask, mean, covariance, sides):
        j, others = place.held, place.others
        log_volume = np.log(np.abs(np.linalg.det(place.axes))) + (d - 1) / 2 * np.log(2 * np.pi)
        low, high = _shell(abs(place.away))
        log_mass = place.height + log_volume - estimate.log_total + np.log(sd[j] * (high - low))
        mass = float(np.exp(min(log_mass, 50.0)))
        variance = np.zeros(d)
        variance[others] = (place.axes**2).sum(axis=1)
        t = (points[:, j] - mean[j]) / sd[j] * np.sign(place.away)
        there = (t > low) & (t <= high)
        seen = np.where(there, weights, 0.0)
        away = (points - mean) / sd
        about = _around_it(place, sd[j] * (high - low))
        at = (place.u - mean) / sd
        if (there & about.within(points)).sum() > _POINTS:
            continue  # they tell what it weighs
        if mass * (at**2 + variance / sd**2).max() > _NOTICED:
            places = places.and_from(about, 1)
        # Of what points tell a rough mass is no better.
        if mass < _AT_LEAST * seen.sum():
            continue
        shift[j] += mass * at - seen @ away
        square[j] += mass * (at**2 + variance / sd**2) - seen @ away**2
    where = int(np.argmax(np.abs(square).max(axis=1)))
    # One place may be reached along several coordinates.
    most = np.maximum(square.max(axis=0), 0.0)
    return Beyond(np.abs(shift).max(axis=0), np.log1p(most) / 2, where, places)


def _around_it(place: _Place, width: float) -> Proposal:
    """Propose from around a place, as wide along the coordinate held as what it stands for."""
    covariance = np.zeros((len(place.u), len(place.u)))
    covariance[place.others[:, None], place.others] = place.axes @ place.axes.T
    covariance[place.held, place.held] = (width / 2) ** 2
    return single(place.u, _WIDER * covariance)


def _shell(distance: float) -> tuple[float, float]:
    """Distances that one of those stands for."""
    edges = [_BEYOND, *(1.5 * each for each in _DISTANCES)]
    k = _DISTANCES.index(distance)
    return edges[k], edges[k + 1]


def _climbed(
    ask: Callable[[Array], Array],
    mean: Array,
    covariance: Array,
    sides: Sequence[tuple[int, int]],
) -> list[_Place]:
    """Climb from places on the regression lines, in step: those that arrived anywhere."""
    d, sd = len(mean), np.sqrt(np.diag(covariance))
    left = []
    for j, sign in sides:
        line = covariance[:, j] / sd[j]
        given = np.delete(np.delete(covariance - np.outer(line, line), j, 0), j, 1)
        for away in sign * np.array(_DISTANCES):
            u = mean + away * line
            left.append(_Place(j, float(away), u, square_root(given), u, -np.inf, 0, False))
    top, white = float(ask(mean[None])[0]), design(d - 1)
    arrived: list[_Place] = []
    for _ in range(_ROUNDS):
        heights = ask(np.concatenate([_around(place, white) for place in left]))
        moved = [
            _moved(place, height)
            for place, height in zip(left, heights.reshape(len(left), -1), strict=True)
        ]
        arrived += [place for place in moved if place.arrived]
        left = [
            place
            for place in moved
            if np.isfinite(place.height)
            and not place.arrived
            and (place.rounds < _PATIENCE or place.height > top - _HOPELESS)
        ]
        if not left:
            break
    return arrived


def _around(place: _Place, white: Array) -> Array:
    points = np.repeat(place.u[None], len(white), axis=0)
    points[:, place.others] += white @ place.axes.T
    return points


def _moved(place: _Place, height: Array) -> _Place:
    """Step to where a quadratic is highest, or to the highest of its points where that is no peak.

    What leads down is taken back by three quarters. Where there is no density it stays without a
    height.
    """
    place, others = place._replace(rounds=place.rounds + 1), place.others
    here = float(height[0])
    if not here >= place.height:
        nearer = place.best + (place.u - place.best) / 4
        return place._replace(u=nearer, axes=place.axes / 2)
    if not np.isfinite(height).all():
        # None at all, or none beside it.
        return place._replace(axes=place.axes / 4, best=place.u, height=here)
    slope, bend = quadratic(height, len(others))
    values, vectors = np.linalg.eigh(bend)
    curved = np.clip(np.abs(values), 1 / _MOST_CHANGE, _MOST_CHANGE)
    step = vectors @ ((vectors.T @ slope) / curved)
    size, climb = float(np.linalg.norm(step)), float(slope @ step / 2)
    settled = values.min() > 1 / _ALIKE and values.max() < _ALIKE
    if values.min() <= 0 and height.max() > here:
        step = design(len(others))[int(np.argmax(height))]
    elif size > _LONGEST:
        step *= _LONGEST / size
    u = place.u.copy()
    u[others] += place.axes @ step
    axes = place.axes @ vectors / np.sqrt(curved)
    if settled and size < _ARRIVED:
        return place._replace(u=u, axes=axes, best=u, height=here + climb, arrived=True)
    return place._replace(u=u, axes=axes, best=place.u, height=here)
