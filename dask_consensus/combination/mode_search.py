"""Where to begin: searches of one shard for the modes of its posterior."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import scipy.optimize
import scipy.stats

from ..model.model import ShardModel
from ..shard.engine import engine_of
from ..shard.quadrature import Rule
from ..shard_data import ShardData
from .ascent import Array, Peak, ascend

FAR = float(scipy.stats.norm.isf(1e-6 / 2))  # sds beyond which a mode is another one
_COMPARABLE = 12.0  # log density by which another mode may be lower and still count
_POLISH = 12  # expansions at most to polish a search of one shard
_BIAS = 0.1  # sds by which too few nodes may displace the mode


def comparable(height: float, highest: float, d: int) -> bool:
    """Tell whether a mode in `d` dimensions is high enough to count beside the highest."""
    return height >= highest - _COMPARABLE - d


def spread(draws: Array) -> Array:
    """Scale of a step of ordinary size, ``(d,)``: that of draws ``(n, d)`` of the prior."""
    scale = scipy.stats.median_abs_deviation(draws, axis=0, scale="normal")
    return np.where(np.isfinite(scale) & (scale > 0), scale, 1.0).astype(np.float64)


def distinct(peaks: Sequence[Peak]) -> list[Peak]:
    """Peaks that are comparable with the highest and apart from each other, highest first."""
    kept: list[Peak] = []
    for peak in sorted(peaks, key=lambda peak: -peak.height):
        if kept and not comparable(peak.height, kept[0].height, len(peak.u)):
            break
        distances = [
            np.abs(peak.u - other.u)
            / np.sqrt(np.maximum(np.diag(peak.covariance), np.diag(other.covariance)))
            for other in kept
        ]
        if all(distance.max() > FAR for distance in distances):
            kept.append(peak)
    return kept


def search(data: ShardData, model: ShardModel, start: Array, scale: Array) -> Peak | None:
    """Search one shard's posterior, under the full prior, for a peak; runs on a worker.

    Parameters
    ----------
    data : ShardData
    model : ShardModel
    start, scale : (d,) arrays
        Where to begin, and the size of a step.
    """
    engine = engine_of(model)
    rule = Rule(engine.gradient_nodes[0])

    def descend(z: Array) -> tuple[float, Array]:
        score = engine.gradient(data, (start + scale * z)[None], 1.0, rule)
        if not (np.isfinite(score.value).all() and np.isfinite(score.gradient).all()):
            return 1e300, np.zeros_like(z)
        return -float(score.value[0]), -scale * score.gradient[0]

    origin = np.zeros_like(start)
    if descend(origin)[0] == 1e300:
        return None
    ended = scipy.optimize.minimize(
        descend, origin, jac=True, method="L-BFGS-B", options={"maxcor": 30}
    )
    guess = np.asarray(scale[:, None] * ended.hess_inv.todense() * scale, np.float64)
    try:
        arrived = ascend(
            lambda u, axes: engine.expansion(data, u, axes, 1.0, rule),
            start + scale * ended.x,
            (guess + guess.T) / 2.0,
            _POLISH,
        )
    except np.linalg.LinAlgError:
        return None
    return None if arrived is None else arrived[0]


def enough_nodes(data: ShardData, model: ShardModel, peak: Peak, n_shards: int) -> Rule:
    """Take as few nodes as displace the mode of all shards by next to nothing.

    Parameters
    ----------
    data : ShardData
        Of one shard; the others' errors are taken to be like its own.
    model : ShardModel
    peak : Peak
    n_shards : int
    """
    engine = engine_of(model)
    n_modes = engine.most_modes(data, peak.u)

    def gradient(n_nodes: int) -> Array:
        rule = Rule(n_nodes, n_modes)
        return engine.gradient(data, peak.u[None], 1.0, rule).gradient[0]

    fewer = gradient(engine.gradient_nodes[0])
    for n_nodes, more_nodes in pairwise(engine.gradient_nodes):
        more = gradient(more_nodes)
        error = more - fewer
        # Errors of shards add up, and the sd shrinks.
        if np.sqrt(n_shards * error @ peak.covariance @ error) < _BIAS:
            return Rule(n_nodes, n_modes)
        fewer = more
    return Rule(engine.gradient_nodes[-1], n_modes)
