"""The pilot: one shard under the full prior tells roughly where the answer is.

Chains start far apart. Those that agree give the first anchor; one that got stuck is dropped, and
one that found another place of comparable density is evidence of a second mode, which no
combination of Gaussians would show.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

from ..cluster import mapreduce
from ..cluster.placement import Execution
from ..cluster.progress import Progress
from ..cluster.shards import Shards
from ..model.model import ShardModel
from ..shard.effects import obstacle
from ..shard.marginal import log_likelihoods
from ..shard.nuts import Draws, Settings, sample_shard
from ..shard.target import log_prior, tempered
from ..shard_data import Data, Shard, Size, pad
from . import gaussian

PILOT_ROUND = 1_000_000  # names the pilot's randomness, apart from any round's
_FAR = 1e-6  # probability beyond which a chain is elsewhere
_COMPARABLE = 12.0  # log density by which another mode may be lower and still count


class Pilot(NamedTuple):
    """Where one shard is under the full prior.

    Attributes
    ----------
    mean : (d,) array
    precision : (d, d) array
    modes : int
        Separate places of comparable density that the chains found.
    kept : int
        Chains that agree.
    divergences : int
        Of the chains kept.
    """

    mean: np.ndarray
    precision: np.ndarray
    modes: int
    kept: int
    divergences: int


def run_pilot(
    model: ShardModel,
    shards: Shards,
    settings: Settings,
    execution: Execution,
    *,
    seed: int,
    n_chains: int,
) -> Pilot:
    """Run the pilot on a shard of median size.

    Parameters
    ----------
    model : ShardModel
    shards : Shards
    settings : Settings
    execution : Execution
    seed : int
    n_chains : int
        Chains from random points, each a task.
    """
    k = shards.median()
    one, padded = shards.parts[k], shards.padded[k]
    shared = mapreduce.broadcast(model)
    chains = mapreduce.compute(
        [
            mapreduce.placed(
                execution, _chain, one, shared, padded, settings, (seed, PILOT_ROUND, i)
            )
            for i in range(n_chains)
        ],
        Progress("pilot", n_chains, execution.progress, unit="chain"),
        execution,
    )
    means = np.stack([chain.u.mean(axis=(0, 1)) for chain in chains])
    asked = mapreduce.placed(execution, _heights, one, shared, padded, means)
    heights = mapreduce.compute([asked])[0]
    return agree(chains, heights)


def agree(chains: Sequence[Draws], heights: np.ndarray) -> Pilot:
    """Pool the chains that agree with the best one, and count modes of comparable density.

    Parameters
    ----------
    chains : sequence of Draws
        One chain each.
    heights : (chains,) array
        Log density at the mean of each chain, local effects integrated out; NaN where that
        cannot be done, and then the chain most others agree with is the best.
    """
    draws = [chain.u.reshape(-1, chain.u.shape[-1]) for chain in chains]
    d = draws[0].shape[1]
    near = _near(draws)
    if np.isfinite(heights).any():
        best = int(np.nanargmax(heights))
        rivals = np.flatnonzero(~near[best] & (heights > heights[best] - _COMPARABLE - d))
    else:
        best = int(near.sum(axis=0).argmax())
        rivals = np.flatnonzero(~near[best] & (near.sum(axis=0) > 1))
    modes = 1
    while len(rivals):
        modes += 1
        rivals = rivals[~near[rivals[0], rivals]]
    kept = np.flatnonzero(near[best]).tolist()
    pooled = np.concatenate([draws[i] for i in kept])
    mean, covariance = gaussian.moments(pooled)
    effective = sum(gaussian.effective_draws(chains[i].ess, len(draws[i])) for i in kept)
    precision = gaussian.precision_of(covariance + _jitter(covariance), max(effective, 1.5 * d + 4))
    return Pilot(mean, precision, modes, len(kept), sum(chains[i].divergences for i in kept))


def _jitter(covariance: np.ndarray) -> np.ndarray:
    """Add a trace of a diagonal: few draws may be singular, an anchor must not."""
    return 1e-6 * np.diag(np.diag(covariance))


def _near(draws: Sequence[np.ndarray]) -> np.ndarray:
    """Which chains are in the same place: ``(chains, chains)``, by the wider chain's scales.

    Coordinate by coordinate, since a short chain's covariance is no metric in many dimensions.
    """
    means = np.stack([chain.mean(axis=0) for chain in draws])
    sds = np.stack([chain.std(axis=0) for chain in draws])
    wider = np.maximum(np.maximum(sds[:, None], sds[None]), np.finfo(float).tiny)
    away = np.abs(means[:, None] - means[None]) / wider
    limit = scipy.stats.norm.isf(_FAR / 2)
    return (away < limit).all(axis=2)


def _chain(
    shard: Shard, model: ShardModel, padded: Size, settings: Settings, key: tuple[int, ...]
) -> Draws:
    """One chain on the pilot's shard, from a random point; runs on a worker."""
    data = Data(*pad(shard, *padded))
    draws, _ = sample_shard(model, data, tempered(1.0, model.dim), settings, key)
    return draws


def _heights(shard: Shard, model: ShardModel, padded: Size, means: np.ndarray) -> np.ndarray:
    """Log density of the pilot's shard at the mean of each chain, up to one constant."""
    if obstacle(model):
        return np.full(len(means), np.nan)
    data = Data(*pad(shard, *padded))
    prior = log_prior(model, data, means)
    # Each mean is its own center: far from another's modes Newton's method might not arrive.
    return prior + [log_likelihoods(model, data, mean[None], mean, 1).at_center for mean in means]
