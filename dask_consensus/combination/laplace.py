"""The climb: Newton's method on the log posterior of u, local effects integrated out.

Every shard expands its own log density about the same point, to second order. The expansions are
Gaussian sites: their sum gives the next point, and at the mode the Laplace approximation of the
posterior (Smola, Vishwanathan and Eskin 2003, "Laplace propagation"). A few passes over the shards
do, where sampling each of them takes hundreds of times as many evaluations. Searches of one shard
alone, from points of the prior, say where to begin, and whether there is more than one mode.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from ..cluster import mapreduce
from ..cluster.placement import Execution
from ..cluster.progress import Progress
from ..cluster.shards import Shards
from ..shard.compiling import seconds_compiling
from ..shard.score import Expansion, expansion
from ..shard_data import Data, Shard, Size, pad
from . import gaussian
from .ascent import _STEP, Array, Peak, _ascend, _finite, _inverse_curvature
from .mode_search import _distinct, _enough_nodes, _search, _spread
from .reports import Combined, FitSettings, Report, Round

_RIVALS = 3  # other peaks of one shard that are climbed on all shards


class LaplaceApproximation(NamedTuple):
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


def laplace(
    fit_settings: FitSettings,
    shards: Shards,
    execution: Execution,
    starts: tuple[Array, Array],
    *,
    most: int,
) -> LaplaceApproximation | None:
    """Find the mode of the posterior, and its shape there.

    Parameters
    ----------
    fit_settings : FitSettings
        Its model is without :func:`~dask_consensus.shard.units.obstacle`.
    shards : Shards
    execution : Execution
    starts : tuple of (n, d) arrays
        Points near the middle of the prior, and draws of it: a third of the searches begin near
        the middle, the others far apart.
    most : int
        Passes over the shards at most.

    Returns
    -------
    LaplaceApproximation or None
        None if no search arrived.
    """
    k = shards.median()
    one, padded, n = shards.parts[k], shards.padded[k], len(shards.parts)
    model = mapreduce.broadcast(fit_settings.model)
    medians, draws = starts
    middle = -(-len(draws) // 3)
    searches = [
        mapreduce.placed(execution, _search, one, model, padded, start, _spread(draws))
        for start in (*medians[:middle], *draws[middle:])
    ]
    line = Progress("searching", len(searches), execution.progress, unit="start")
    peaks = _distinct(
        [peak for peak in mapreduce.compute(searches, line, execution) if peak is not None]
    )
    if not peaks:
        return None
    rung = mapreduce.placed(execution, _enough_nodes, one, model, padded, peaks[0], n)
    n_nodes = mapreduce.compute([rung])[0]
    found: list[tuple[Peak, LaplaceApproximation]] = []
    for peak in peaks[: 1 + _RIVALS]:
        steps = _Steps(fit_settings, shards, execution, n_nodes)
        arrived = _ascend(steps.look, peak.u, peak.covariance / n, most)
        if arrived is not None:
            top, shift = arrived
            sd = np.sqrt(np.diag(top.covariance))
            approximation = LaplaceApproximation(
                top.u + shift, top.covariance, shift / sd, 1, steps.rounds
            )
            found.append((top, approximation))
    if not found:
        return None
    modes = len(_distinct([top for top, _ in found]))
    highest = max(found, key=lambda pair: pair[0].height)[1]
    return highest._replace(modes=modes)


def expanded(
    fit_settings: FitSettings, approximation: LaplaceApproximation, shape: tuple[int, int]
) -> Combined:
    """Take the posterior to be Gaussian about the approximation, and draw ``shape`` chains and draws."""
    mean, covariance = approximation.mean, approximation.covariance
    rng = np.random.default_rng([fit_settings.seed, len(approximation.rounds)])
    draws = gaussian.gaussian_draws(mean, covariance, shape, rng)
    if shape[0] * shape[1] > len(mean):
        draws = gaussian.matched(draws, mean, covariance)
    return Combined(draws, mean, covariance, approximation.rounds)


# All shards
class _Steps:
    """Expands the posterior by a pass over all shards, and keeps a record of every pass."""

    def __init__(
        self, fit_settings: FitSettings, shards: Shards, execution: Execution, n_nodes: int
    ) -> None:
        self.rounds: list[Round] = []
        self._job = mapreduce.broadcast(fit_settings)
        self._shards, self._travel, self._number = shards, execution, n_nodes

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
            execution=self._travel,
            title=f"Newton step {len(self.rounds) + 1}",
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
    shard: Shard,
    padded: Size,
    weight: float,
    fit_settings: FitSettings,
    asked: tuple[Array, Array, int],
) -> tuple[Expansion, _Seen, None]:
    """Expand one shard's log density; runs on a worker."""
    began, compiled = time.perf_counter(), seconds_compiling()
    u, axes, n_nodes = asked
    found = expansion(fit_settings.model, Data(*pad(shard, *padded)), u, axes, weight, n_nodes)
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


def _add(parts: list[Expansion]) -> Expansion:
    values, gradients, precisions, bends = zip(*parts, strict=True)
    return Expansion(
        float(sum(values)),
        np.sum(gradients, axis=0),
        np.sum(precisions, axis=0),
        np.sum(bends, axis=0),
    )
