"""Where to begin: searches of one shard for the modes of its posterior."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import scipy.optimize
import scipy.stats

from ..model.model import ShardModel
from ..shard.effects import effects_per_unit
from ..shard.quadrature import gradient_ladder
from ..shard.score import expansion, score
from ..shard_data import Data, Shard, Size, pad
from .ascent import Array, Peak, _ascend

_POLISH = 12  # expansions at most to polish a search of one shard
_BIAS = 0.1  # sds by which too few nodes may displace the mode
_FAR = 1e-6  # probability beyond which a peak is another one
_COMPARABLE = 12.0  # log density by which another mode may be lower and still count


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
    n_nodes = gradient_ladder(effects_per_unit(model))[0]

    def descend(z: Array) -> tuple[float, Array]:
        found = score(model, data, (start + scale * z)[None], 1.0, n_nodes)
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
            lambda u, axes: expansion(model, data, u, axes, 1.0, n_nodes),
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

    def gradient(n_nodes: int) -> Array:
        return score(model, data, peak.u[None], 1.0, n_nodes).gradient[0]

    fewer = gradient(steps[0])
    for n_nodes, more_nodes in pairwise(steps):
        more = gradient(more_nodes)
        wrong = more - fewer
        # Errors of shards add up, and the sd shrinks.
        if np.sqrt(n_shards * wrong @ peak.covariance @ wrong) < _BIAS:
            return n_nodes
        fewer = more
    return steps[-1]
