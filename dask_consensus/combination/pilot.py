"""The pilot: one shard under the full prior tells roughly where the answer is.

Chains start far apart. Those that agree give the first anchor; one that got stuck is dropped, and
one that found another place of comparable density is evidence of a second mode, which no
combination of Gaussians would show.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..cluster.mapreduce import compute_with_progress, on_worker
from ..cluster.shards import Shards
from ..cluster.tasks import broadcast, compute
from ..model.model import ShardModel
from ..shard.engine import engine_of
from ..shard.nuts import Draws, NotFiniteError, NutsSettings, sample_shard
from ..shard.quadrature import Rule
from ..shard.target import log_prior, tempered
from ..shard_data import ShardData
from . import gaussian
from .mode_search import FAR, comparable
from .reports import Guess
from .subposterior import SamplingFailed

PILOT_ROUND = 1_000_000  # names the pilot's randomness, apart from any round's


def run_pilot(
    model: ShardModel, shards: Shards, nuts: NutsSettings, *, seed: int, n_chains: int
) -> Guess:
    """Run the pilot on a shard of median size.

    Parameters
    ----------
    model : ShardModel
    shards : Shards
    nuts : NutsSettings
    seed : int
    n_chains : int
        Chains from random points, each a task.
    """
    median = shards.median()
    execution, data = shards.execution, shards.data[median]
    shared = broadcast(model)
    tasks = [
        on_worker(execution, _chain, data, median, shared, nuts, (seed, PILOT_ROUND, i))
        for i in range(n_chains)
    ]
    chains = compute_with_progress(tasks, execution, "pilot", "chain")
    means = np.stack([chain.u.mean(axis=(0, 1)) for chain in chains])
    heights = compute([on_worker(execution, _heights, data, shared, means)])[0]
    return agree(chains, heights)


def agree(chains: Sequence[Draws], heights: np.ndarray) -> Guess:
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
        high = np.array([comparable(height, heights[best], d) for height in heights])
        rivals = np.flatnonzero(~near[best] & high)
    else:
        best = int(near.sum(axis=0).argmax())
        rivals = np.flatnonzero(~near[best] & (near.sum(axis=0) > 1))
    modes = 1
    landmarks = []
    while len(rivals):
        modes += 1
        landmarks.append(draws[rivals[0]].mean(axis=0))
        rivals = rivals[~near[rivals[0], rivals]]
    kept = np.flatnonzero(near[best]).tolist()
    mean, covariance = gaussian.moments(np.concatenate([draws[i] for i in kept]))
    effective = sum(gaussian.effective_draws(chains[i].ess, len(draws[i])) for i in kept)
    precision = gaussian.precision_of(covariance + _jitter(covariance), max(effective, 1.5 * d + 4))
    return Guess(mean, precision, informed=False, modes=modes, landmarks=landmarks)


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
    distances = np.abs(means[:, None] - means[None]) / wider
    return (distances < FAR).all(axis=2)


def _chain(
    data: ShardData, number: int, model: ShardModel, nuts: NutsSettings, key: tuple[int, ...]
) -> Draws:
    """One chain on the pilot's shard, from a random point; runs on a worker."""
    try:
        draws, _ = sample_shard(model, data, tempered(1.0, model.dim), nuts, key)
    except NotFiniteError as error:
        rows = int(np.sum(data.rows))
        raise SamplingFailed(f"shard {number} ({rows} rows): {error}") from error
    return draws


def _heights(data: ShardData, model: ShardModel, means: np.ndarray) -> np.ndarray:
    """Log density of the pilot's shard at the mean of each chain, up to one constant."""
    engine = engine_of(model)
    if engine.obstacle:
        return np.full(len(means), np.nan)
    # Each mean is its own center: far from another's modes Newton's method might not arrive.
    likelihoods = [engine.values(data, mean[None], mean, Rule(1)).at_center for mean in means]
    return log_prior(model, data, means) + likelihoods
