"""Whether a peak is a piece of a curved ridge, and where the ridge leads.

Where only a^2 + b^2 or a b is known, the posterior is a thin curve. At any of its points it looks
like a peak: along the tangent the density falls with the fourth power of the distance, as the curve
leaves the straight line, and no point along the line is ever on the curve again. So a peak whose
density falls so is followed: a step along the tangent, then back to the ridge in the directions
across it (a predictor and a corrector: Allgower and Georg 1990, chapter 2), both ways to its ends.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.linalg

from ..model.model import ShardModel
from ..shard.engine import engine_of
from ..shard.quadrature import Rule
from ..shard.score import Expansion
from ..shard_data import ShardData
from .ascent import STEP, Array, Peak, all_finite

_AWAY = 3.0  # sds from a peak at which it is looked at
_STEEP = 12.0  # fall of the log density there that a peak does not have; a Gaussian falls by 4.5
_ONE_WAY = 0.5  # cosine, in sds, from which two directions are one
_STEPS = 40  # along a ridge, either way
_ASIDE = 1.0  # fall of the log density by a step along the tangent that is aimed at
_TOO_FAR = 6.0  # and at which the step is shortened
_SHORTEST = 1 / 16  # of a step, in sds of the peak
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


def follow(expand: Callable[[Array, Array], Expansion], peak: Peak, along: Array) -> list[Peak]:
    """Follow a ridge from a peak both ways, by expansions about points on it.

    Parameters
    ----------
    expand : callable
        Of a point and the steps of differences, as columns.
    peak : Peak
    along : (d,) array
        A step of one sd along the ridge.

    Returns
    -------
    list of Peak
        Places on the ridge, as wide along it as the steps between them.
    """
    places: list[Peak] = []
    for direction in (along, -along):
        way = _one_way(expand, peak, direction)
        places += way
        if way and _met(way[-1], peak, len(way)):
            break
    return places


def _one_way(
    expand: Callable[[Array, Array], Expansion], peak: Peak, direction: Array
) -> list[Peak]:
    scale = np.sqrt(np.diag(peak.covariance))
    z, tangent = peak.u / scale, direction / scale
    unit = float(np.linalg.norm(tangent))
    tangent, step = tangent / unit, unit
    covariance = peak.covariance / np.outer(scale, scale)
    height, places = peak.height, list[Peak]()
    for _ in range(_STEPS):
        ahead = z + step * tangent
        axes = scale[:, None] * np.asarray(STEP * np.linalg.cholesky(covariance), np.float64)
        expansion = expand(ahead * scale, axes)
        if not all_finite(expansion):
            step /= 2
            if step < _SHORTEST * unit:
                break
            continue
        across = scipy.linalg.null_space(tangent[None])
        precision = across.T @ (expansion.precision * np.outer(scale, scale)) @ across
        values, vectors = np.linalg.eigh(precision)
        half = across @ vectors / np.sqrt(np.maximum(np.abs(values), 1e-3))
        slope = half.T @ (expansion.gradient * scale)
        back, climb = half @ slope, float(slope @ slope / 2)
        if (climb > _TOO_FAR or np.linalg.norm(back) > step / 2) and step > _SHORTEST * unit:
            step /= 2
            continue
        reached = ahead + back
        height = expansion.value + climb
        covariance = half @ half.T + step**2 * np.outer(tangent, tangent)
        secant = (reached - z) / np.linalg.norm(reached - z)
        # On a circle the secant halves the angle between the tangents at its ends.
        turned = 2 * (secant @ tangent) * secant - tangent
        z, tangent = reached, turned / np.linalg.norm(turned)
        step *= float(np.clip((_ASIDE / max(climb, 1e-9)) ** 0.25, 0.5, 2.0))
        places.append(Peak(z * scale, covariance * np.outer(scale, scale), height))
        if height < peak.height - _LOW - len(z) or _met(places[-1], peak, len(places)):
            break
    return places


def _met(place: Peak, peak: Peak, steps: int) -> bool:
    """Tell whether a ridge has come round to where it began."""
    away = np.linalg.solve(np.linalg.cholesky(place.covariance), place.u - peak.u)
    return steps > 2 and bool(away @ away < len(away) + 2)
