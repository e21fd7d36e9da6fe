"""How far off an uncorrected combination may be, which shard is strange, what no chain has seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.stats

from ..combination import gaussian
from ..combination.ascent import Peak, step_error
from ..combination.reports import Combined, LaplaceApproximation, NutsDiagnostics, Report

_FEW_SHARDS = 4  # fewer cannot tell which of them is the stranger
_MANY_SHARDS = 10  # enough for their spread to be known
_LEAST = 0.01  # no uncorrected mean is known better, in sds
_APART = 3.0  # times further than the next shard
_SHARE = 1e-3  # of the highest mode's mass below which another one is no matter
_NEAR = 0.999  # share of a Gaussian that is near its middle


def approximate_error(combined: Combined, approximation: LaplaceApproximation | None) -> np.ndarray:
    """Error of an uncorrected combination: Monte Carlo noise, and what the shards' skew moves.

    Where the mode was found, the mean that follows from it to first order is at hand to be
    compared with; the size of that first order is the size of what may be left of it, beside what
    the last step may be wrong by.

    Elsewhere a shard is expanded about its own mean, a distance x from the combined one. The third
    derivatives T there make its gradient at the combined mean wrong by half of T : C, for its
    covariance C, as the mean of a skewed density is not its mode, and by half of T : xx, as a
    quadratic taken far away is not the one needed. The draws tell the first, their joint skewness
    being -C (T : C), and of the second what their coordinates' own skewness does. Summed as the
    factors are summed, these offsets move the combination, and do not average out.
    """
    reports = combined.rounds[-1].reports
    last = combined.rounds[-1]
    sd = np.sqrt(np.diag(combined.covariance))
    if approximation is not None:
        error = np.hypot((combined.mean - approximation.mean) / sd, approximation.shift)
        told = approximation.expansions
        if told is not None:
            gradient, third = told.gradient.sum(axis=0), told.third_derivative.sum(axis=0)
            error = np.hypot(error, step_error(told.step, gradient, third))
        return np.maximum(error, _LEAST)
    offsets = np.zeros(len(sd))
    d = len(sd)
    ess = [_nuts(report).ess for report in reports]
    skew = _common([_nuts(report).skew for report in reports], ess, 6)
    joint = _common([_nuts(report).joint_skew for report in reports], ess, 2 * (d + 2))
    for report in reports:
        precision = gaussian.as_matrix(report.precision)
        spread = np.sqrt(np.diag(gaussian.inverse(precision)))
        away = (report.mean - combined.mean) / spread
        offsets += precision @ (spread / 2 * (joint + skew * away**2))
    bias = combined.covariance @ offsets / sd
    moved = 0.0 if np.isnan(last.movement) else last.movement / 2
    return np.sqrt(bias**2 + last.noise**2 + moved**2)


def _common(
    statistics: Sequence[np.ndarray], ess: Sequence[np.ndarray], variance: float
) -> np.ndarray:
    """Part of a statistic that shards have in common, less what Monte Carlo error would show.

    Of e normal draws the skewness has variance 6 / e, the joint skewness 2 (d + 2) / e.
    """
    mean = np.mean(statistics, axis=0)
    noise = variance / (np.maximum(np.mean(ess, axis=0), 1.0) * len(ess))
    return np.sign(mean) * np.sqrt(np.maximum(mean**2 - noise, 0.0))


def strange_shard(combined: Combined, limit: float) -> tuple[int, int, float] | None:
    """Name the shard that looks drawn from another population, and the coordinate that shows it.

    At the combined mean the gradient of a shard's log likelihood, its score, has mean zero and
    its share of the precision as covariance. Real data are more dispersed than any model, in all
    shards alike, so a shard's score is held against the median and the median absolute deviation
    of all shards, wherever that is wider than the model says.
    """
    last = combined.rounds[-1]
    if len(last.reports) < _FEW_SHARDS:
        return None
    precision = gaussian.inverse(last.covariance)
    away = last.anchor.precision @ (last.mean - last.anchor.mean)
    scores = np.array(
        [
            (gaussian.as_matrix(report.precision) @ (report.mean - last.mean) + away)
            / np.sqrt(np.diag(precision) * report.weight * (1 - report.weight))
            for report in last.reports
        ]
    )
    centred = scores - np.median(scores, axis=0)
    spread = np.maximum(1.0, scipy.stats.median_abs_deviation(scores, axis=0, scale="normal"))
    distance = np.abs(centred) / spread
    k, worst = divmod(int(distance.argmax()), distance.shape[1])
    # Of few shards the spread is badly known; a stranger then also stands apart from the next.
    runner_up = np.sort(np.abs(centred[:, worst]))[-2]
    apart = len(scores) >= _MANY_SHARDS or abs(centred[k, worst]) > _APART * runner_up
    far = distance[k, worst] > limit
    return (k, worst, float(distance[k, worst])) if far and apart else None


def visited(
    draws: np.ndarray,
    approximation: LaplaceApproximation | None,
    modes: int,
    *,
    by_all: bool = False,
) -> bool:
    """Tell whether chains have been at every place that searches found, if it has any mass.

    Parameters
    ----------
    draws : (chains, draws, d) array
    approximation : LaplaceApproximation or None
        The highest mode, the others, and places along the ridges that they may be pieces of.
    modes : int
        That were found; some may not be known well enough to be asked about.
    by_all : bool
        Whether each of the chains must have been at the highest mode, too.
    """
    if approximation is None or modes > 1 + len(approximation.others):
        return modes == 1 and not by_all
    first = Peak(approximation.mean, approximation.covariance, approximation.height)
    places = [first, *approximation.others, *approximation.along]
    mass = np.array([place.height + np.linalg.slogdet(place.covariance)[1] / 2 for place in places])
    radius = scipy.stats.chi2.ppf(_NEAR, draws.shape[-1])
    for place, there in zip(places, mass >= mass[0] + np.log(_SHARE), strict=True):
        if there:
            away = draws - place.u
            precision = gaussian.inverse(place.covariance)
            near = np.einsum("cni,ij,cnj->cn", away, precision, away, optimize=True) < radius
            if not near.any() or (by_all and place is first and not near.any(axis=1).all()):
                return False
    return True


def _nuts(report: Report) -> NutsDiagnostics:
    assert report.nuts is not None
    return report.nuts
