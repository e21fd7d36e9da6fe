"""The climb: Newton's method on the log posterior of u, local effects integrated out.

Every shard expands its own log density about the same point, to second order. The expansions are
Gaussian sites: their sum gives the next point, and at the mode the Laplace approximation of the
posterior (Smola, Vishwanathan and Eskin 2003, "Laplace propagation"). A few passes over the shards
do, where sampling each of them takes hundreds of times as many evaluations. Searches of one shard
alone, from points of the prior, say where to begin, and whether there is more than one mode.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.optimize
import scipy.stats

from . import gaussian
from .cluster import mapreduce
from .cluster.arrays import Shard, pad
from .cluster.mapreduce import Travel
from .cluster.sizes import Sharded, Size
from .rounds import Combined, Round
from .shard.compiling import seconds_compiling
from .shard.model import ShardModel
from .shard.quadrature import gradient_ladder
from .shard.score import Expansion, expansion, score
from .shard.target import Data
from .shard.units import effects_per_unit
from .sites import Job, Report

Array = npt.NDArray[np.float64]

_STEP = 0.5  # of the differences, in sds: wide enough to see the shape that a posterior has
_NEAR = 0.3  # sds from the mode at which the last step arrives
_POLISH = 12  # expansions at most to polish a search of one shard
_BIAS = 0.1  # sds by which too few nodes may displace the mode
_FAR = 1e-6  # probability beyond which a peak is another one
_COMPARABLE = 12.0  # log density by which another mode may be lower and still count
_RIVALS = 3  # other peaks of one shard that are climbed on all shards
_FLAT = 0.1  # least curvature taken at face value, relative to what was expected
_ALIKE = 3.0  # factor by which curvature may differ from the one that differences were spaced by


class Peak(NamedTuple):
    """A maximum of the log density.

    Attributes
    ----------
    u : (d,) array
    covariance : (d, d) array
        Inverse of minus the Hessian.
    height : float
        Log density.
    """

    u: Array
    covariance: Array
    height: float


class Summit(NamedTuple):
    """The highest peak of the posterior.

    Attributes
    ----------
    mean : (d,) array
        The posterior's mean, to first order in its skew (Tierney and Kadane 1986, eq. 2.4).
    covariance : (d, d) array
    shift : (d,) array
        Mean less mode, in sds.
    modes : int
        Peaks of comparable height.
    rounds : list of Round
        Steps that led there.
    """

    mean: Array
    covariance: Array
    shift: Array
    modes: int
    rounds: list[Round]


def climb(
    job: Job,
    shards: Sharded,
    travel: Travel,
    starts: tuple[Array, Array],
    *,
    most: int,
) -> Summit | None:
    """Find the mode of the posterior, and its shape there.

    Parameters
    ----------
    job : Job
        Its model is without :func:`~dask_consensus.shard.units.obstacle`.
    shards : Sharded
    travel : Travel
    starts : tuple of (n, d) arrays
        Points near the middle of the prior, and draws of it: a third of the searches begin near
        the middle, the others far apart.
    most : int
        Passes over the shards at most.

    Returns
    -------
    Summit or None
        None if no search arrived.
    """
    k = shards.median()
    one, padded, n = shards.parts[k], shards.padded[k], len(shards.parts)
    model = mapreduce.broadcast(job.model)
    medians, draws = starts
    middle = -(-len(draws) // 3)
    searches = [
        mapreduce.placed(travel, _search, one, model, padded, start, _spread(draws))
        for start in (*medians[:middle], *draws[middle:])
    ]
    line = mapreduce.Progress("searching", len(searches), travel.progress, unit="start")
    peaks = _distinct(
        [peak for peak in mapreduce.compute(searches, line, travel) if peak is not None]
    )
    if not peaks:
        return None
    rung = mapreduce.placed(travel, _enough_nodes, one, model, padded, peaks[0], n)
    number = mapreduce.compute([rung])[0]
    found: list[tuple[Peak, Summit]] = []
    for peak in peaks[: 1 + _RIVALS]:
        steps = _Steps(job, shards, travel, number)
        arrived = _ascend(steps.look, peak.u, peak.covariance / n, most)
        if arrived is not None:
            top, shift = arrived
            sd = np.sqrt(np.diag(top.covariance))
            summit = Summit(top.u + shift, top.covariance, shift / sd, 1, steps.rounds)
            found.append((top, summit))
    if not found:
        return None
    modes = len(_distinct([top for top, _ in found]))
    highest = max(found, key=lambda pair: pair[0].height)[1]
    return highest._replace(modes=modes)


def expanded(job: Job, summit: Summit, shape: tuple[int, int]) -> Combined:
    """Take the posterior to be Gaussian about the summit, and draw ``shape`` chains and draws."""
    mean, covariance = summit.mean, summit.covariance
    rng = np.random.default_rng([job.seed, len(summit.rounds)])
    draws = gaussian.gaussian_draws(mean, covariance, shape, rng)
    if shape[0] * shape[1] > len(mean):
        draws = gaussian.matched(draws, mean, covariance)
    return Combined(draws, mean, covariance, summit.rounds)


# One ascent, of one shard or of all


def _ascend(
    look: Callable[[Array, Array], Expansion], u: Array, covariance: Array, most: int
) -> tuple[Peak, Array] | None:
    """Climb by Newton steps, drawn back where they lead down.

    Returns
    -------
    tuple of Peak and (d,) array, or None
        The mode, and by how much the mean differs from it; None if it was not reached.
    """
    best: tuple[Array, Array, float] | None = None
    for _ in range(most):
        axes = np.asarray(_STEP * np.linalg.cholesky(covariance), np.float64)
        found = look(u, axes)
        if best is not None and not found.value >= best[2] - 1e-3 - 1e-7 * abs(best[2]):
            u, covariance = best[0] + (u - best[0]) / 4, best[1]
            continue
        if not _finite(found):
            return None
        covariance, settled = _inverse_curvature(found.precision, covariance)
        step = covariance @ found.gradient
        if settled and np.sqrt(found.gradient @ step) < _NEAR:
            shift = covariance @ found.bend / (2 * _STEP**2)
            limit: Array = np.sqrt(np.diag(covariance))
            return Peak(u + step, covariance, found.value), np.clip(shift, -limit, limit)
        best = (u, covariance, found.value)
        u = u + step
    return None


def _inverse_curvature(
    precision: Array, expected: Array, least: float = _FLAT
) -> tuple[Array, bool]:
    """Invert minus a Hessian, flat or wrong curvature made right; and whether it was as expected.

    A direction flatter than `least`, in units of what was expected, would lead too far for what
    is known of it.
    """
    factor = np.linalg.cholesky(expected)
    values, vectors = np.linalg.eigh(factor.T @ precision @ factor)
    half = factor @ vectors / np.sqrt(np.maximum(np.abs(values), least))
    return half @ half.T, bool(values.min() > 1 / _ALIKE and values.max() < _ALIKE)


def _spread(draws: Array) -> Array:
    """Scale of a step of ordinary size: that of the prior."""
    spread = scipy.stats.median_abs_deviation(draws, axis=0, scale="normal")
    return np.where(np.isfinite(spread) & (spread > 0), spread, 1.0).astype(np.float64)


def _distinct(peaks: Sequence[Peak]) -> list[Peak]:
    """Peaks that are comparable with the highest and apart from each other, highest first."""
    kept: list[Peak] = []
    limit = scipy.stats.norm.isf(_FAR / 2)
    for peak in sorted(peaks, key=lambda peak: -peak.height):
        if kept and peak.height < kept[0].height - _COMPARABLE - len(peak.u):
            break
        apart = [
            np.abs(peak.u - other.u)
            / np.sqrt(np.maximum(np.diag(peak.covariance), np.diag(other.covariance)))
            for other in kept
        ]
        if all(distance.max() > limit for distance in apart):
            kept.append(peak)
    return kept


# One shard alone


def _search(
    shard: Shard, model: ShardModel, padded: Size, start: Array, scale: Array
) -> Peak | None:
    """Search one shard's posterior, under the full prior, for a peak; runs on a worker."""
    data = Data(*pad(shard, *padded))
    number = gradient_ladder(effects_per_unit(model))[0]

    def descend(z: Array) -> tuple[float, Array]:
        found = score(model, data, (start + scale * z)[None], 1.0, number)
        if not (np.isfinite(found.value).all() and np.isfinite(found.gradient).all()):
            return 1e300, np.zeros_like(z)
        return -float(found.value[0]), -scale * found.gradient[0]

    origin = np.zeros_like(start)
    if descend(origin)[0] == 1e300:
        return None
    ended = scipy.optimize.minimize(
        descend, origin, jac=True, method="L-BFGS-B", options={"maxcor": 30}
    )
    guess = np.asarray(scale[:, None] * ended.hess_inv.todense() * scale, np.float64)
    try:
        arrived = _ascend(
            lambda u, axes: expansion(model, data, u, axes, 1.0, number),
            start + scale * ended.x,
            (guess + guess.T) / 2.0,
            _POLISH,
        )
    except np.linalg.LinAlgError:
        return None
    return None if arrived is None else arrived[0]


def _enough_nodes(shard: Shard, model: ShardModel, padded: Size, peak: Peak, n_shards: int) -> int:
    """Take as few nodes as displace the mode of all shards by next to nothing."""
    data = Data(*pad(shard, *padded))
    steps = gradient_ladder(effects_per_unit(model))

    def gradient(number: int) -> Array:
        return score(model, data, peak.u[None], 1.0, number).gradient[0]

    fewer = gradient(steps[0])
    for number, next_number in pairwise(steps):
        more = gradient(next_number)
        wrong = more - fewer
        # Errors of shards add up, and the sd shrinks.
        if np.sqrt(n_shards * wrong @ peak.covariance @ wrong) < _BIAS:
            return number
        fewer = more
    return steps[-1]


# All shards


class _Steps:
    """Expands the posterior by a pass over all shards, and keeps a record of every pass."""

    def __init__(self, job: Job, shards: Sharded, travel: Travel, number: int) -> None:
        self.rounds: list[Round] = []
        self._job = mapreduce.broadcast(job)
        self._shards, self._travel, self._number = shards, travel, number

    def look(self, u: Array, axes: Array) -> Expansion:
        """Sum the expansions of all shards about `u`."""
        began = time.perf_counter()
        weights = self._shards.weights
        mapped = mapreduce.map_reduce(
            mapreduce.each(_expand),
            self._shards.parts,
            list(zip(self._shards.padded, weights, strict=True)),
            [self._job, mapreduce.broadcast((u, axes, self._number))],
            _add,
            travel=self._travel,
            title=f"climbing, step {len(self.rounds) + 1}",
        )
        total: Expansion = mapped.total
        covariance = axes @ axes.T / _STEP**2
        step = np.full_like(u, np.nan)
        if _finite(total):
            covariance, _ = _inverse_curvature(total.precision, covariance)
            step = covariance @ total.gradient
        self.rounds.append(
            Round(
                reports=[
                    _report(seen, weight, u, covariance)
                    for seen, weight in zip(mapped.reports, weights, strict=True)
                ],
                mean=u + step,
                covariance=covariance,
                anchor_mean=u,
                anchor_precision=np.zeros_like(covariance),
                strength=0.0,
                movement=float(np.max(np.abs(step) / np.sqrt(np.diag(covariance)))),
                noise=np.nan,
                seconds=time.perf_counter() - began,
            )
        )
        return total


class _Seen(NamedTuple):
    """What one shard tells the client of a pass."""

    rows: int
    groups: tuple[int, ...]
    found: Expansion
    seconds: float
    compile_seconds: float


def _expand(
    shard: Shard, padded: Size, weight: float, job: Job, asked: tuple[Array, Array, int]
) -> tuple[Expansion, _Seen, None]:
    """Expand one shard's log density; runs on a worker."""
    began, compiled = time.perf_counter(), seconds_compiling()
    u, axes, number = asked
    found = expansion(job.model, Data(*pad(shard, *padded)), u, axes, weight, number)
    compiling = seconds_compiling() - compiled
    seconds = time.perf_counter() - began - compiling
    return found, _Seen(shard.rows, shard.groups, found, seconds, compiling), None


def _report(seen: _Seen, weight: float, u: Array, covariance: Array) -> Report:
    """Describe a shard by the Gaussian that its expansion is; nothing was sampled."""
    unknown = np.full_like(u, np.nan)
    mean = unknown
    precision = np.full_like(covariance, np.nan)
    if _finite(seen.found):
        own, _ = _inverse_curvature(seen.found.precision, covariance / weight, 1e-3)
        mean, precision = u + own @ seen.found.gradient, gaussian.inverse(own)
    return Report(
        rows=seen.rows,
        groups=seen.groups,
        weight=weight,
        mean=mean,
        precision=precision,
        skew=unknown,
        joint_skew=unknown,
        ess=unknown,
        r_hat=unknown,
        divergences=0,
        steps=np.nan,
        step_size=np.nan,
        accept_prob=np.nan,
        seconds=seen.seconds,
        compile_seconds=seen.compile_seconds,
    )


def _finite(found: Expansion) -> bool:
    return all(np.isfinite(part).all() for part in found)


def _add(parts: list[Expansion]) -> Expansion:
    values, gradients, precisions, bends = zip(*parts, strict=True)
    return Expansion(
        float(sum(values)),
        np.sum(gradients, axis=0),
        np.sum(precisions, axis=0),
        np.sum(bends, axis=0),
    )
