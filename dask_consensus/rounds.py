"""The rounds over shards: map every shard to a site, reduce the sites to one Gaussian.

One-shot consensus is a single round under the tempered prior alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from . import gaussian
from .cluster import mapreduce
from .cluster.arrays import Shard, pad
from .shard.sample import Draws, Settings, sample_shard
from .shard.target import Data, tempered

if TYPE_CHECKING:
    from dask.delayed import Delayed

    from .shard.model import ShardModel

_ONE_SHAPE = 1.25  # shards up to this many times the median share one padded shape


class Size(NamedTuple):
    """Rows of a shard, and groups at each level."""

    rows: int
    groups: tuple[int, ...]


class Job(NamedTuple):
    """What all shards of a fit share; travels to each worker once."""

    model: ShardModel
    settings: Settings
    num_chains: int
    diagonal: bool
    seed: int


class Report(NamedTuple):
    """What one shard tells the client of one round.

    Attributes
    ----------
    rows : int
    groups : tuple of int
        Groups at each level.
    weight : float
        Power of the prior.
    mean : (d,) array
    precision : (d, d) or (d,) array
        Moments of the unconstrained draws, in natural form.
    ess, r_hat : (d,) arrays
    divergences : int
    steps, step_size, accept_prob : float
    seconds, compile_seconds : float
    """

    rows: int
    groups: tuple[int, ...]
    weight: float
    mean: np.ndarray
    precision: np.ndarray
    ess: np.ndarray
    r_hat: np.ndarray
    divergences: int
    steps: float
    step_size: float
    accept_prob: float
    seconds: float
    compile_seconds: float


class Combined(NamedTuple):
    """The posterior of all shards together, in unconstrained space.

    Attributes
    ----------
    draws : (chains, draws, d) array
    mean : (d,) array
    covariance : (d, d) array
    rounds : list of list of Report
        What every shard reported, round by round.
    """

    draws: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    rounds: list[list[Report]]


def size_of(shard: Shard) -> Size:
    """Rows and groups of a shard."""
    return Size(shard.rows, shard.groups)


def padded_sizes(sizes: Sequence[Size]) -> list[Size]:
    """Give every shard the shape it is padded to: one for all but the exceptionally large.

    A shape costs a compilation, padding costs its share of every gradient: shards up to 1.25
    times the median in rows and in groups get one shape, larger ones another. Where rows are
    padded there is a padding group for them to belong to.
    """
    if len(sizes) == 1:
        return list(sizes)
    table = np.array([(size.rows, *size.groups) for size in sizes])
    usual = (table <= _ONE_SHAPE * np.median(table, axis=0)).all(axis=1)
    padded: list[Size] = list(sizes)
    for members in (np.flatnonzero(usual), np.flatnonzero(~usual)):
        if len(members):
            rows, *groups = table[members].max(axis=0).tolist()
            if (table[members, 0] < rows).any():
                groups = [count + 1 for count in groups]
            for k in members:
                padded[k] = Size(rows, tuple(groups))
    return padded


def one_shot(
    job: Job,
    shards: Sequence[Delayed],
    sizes: Sequence[Size],
    *,
    parametric: bool,
    split_every: int,
    retries: int,
    progress: bool | None,
) -> Combined:
    """Sample every shard once under its share of the prior, and combine.

    Parameters
    ----------
    job : Job
    shards : sequence of Delayed
        Shards, persisted.
    sizes : sequence of Size
    parametric : bool
        Draw from the product of Gaussians (Neiswanger et al. 2014) instead of averaging draws
        (Scott et al. 2016).
    split_every, retries, progress
        As in `fit`.
    """
    total, reports = _map_reduce(job, shards, sizes, 0, split_every, retries, progress)
    mean, covariance = gaussian.covariance_of(total)
    if len(shards) == 1:
        draws = total.draws
        mean, covariance = gaussian.moments(draws)
    elif parametric:
        rng = np.random.default_rng([job.seed, len(shards)])
        draws = gaussian.gaussian_draws(mean, covariance, total.draws.shape[:2], rng)
    else:
        draws = gaussian.consensus_draws(total)
    return Combined(draws, mean, covariance, [reports])


def _map_reduce(
    job: Job,
    shards: Sequence[Delayed],
    sizes: Sequence[Size],
    number: int,
    split_every: int,
    retries: int,
    progress: bool | None,
) -> tuple[gaussian.Site, list[Report]]:
    """One round: sample every shard, add up the sites."""
    shared = mapreduce.broadcast(job)
    weights = shard_weights(sizes)
    mapped = [
        mapreduce.call(sample_site, shard, shared, number, k, weights[k], padded, len(shards) == 1)
        for k, (shard, padded) in enumerate(zip(shards, padded_sizes(sizes), strict=True))
    ]
    title = "sampling" if number == 0 else f"round {number}"
    with mapreduce.Progress(title, len(shards), progress, _divergences) as line:
        return mapreduce.map_reduce(
            mapped, gaussian.add, split_every=split_every, progress=line, retries=retries
        )


def shard_weights(sizes: Sequence[Size]) -> list[float]:
    """The power of the prior that each shard takes: its share of the rows."""
    total = sum(size.rows for size in sizes)
    return [size.rows / total for size in sizes]


def sample_site(
    shard: Shard, job: Job, number: int, k: int, weight: float, padded: Size, alone: bool
) -> tuple[gaussian.Site, Report]:
    """Sample shard `k` in a round, and turn its draws into a site; runs on a worker."""
    data = Data(*pad(shard, *padded))
    factor = tempered(weight, job.model.dim)
    try:
        draws = sample_shard(
            job.model,
            data,
            factor,
            job.settings,
            (job.seed, number, k),
            num_chains=job.num_chains,
        )
        site = _site(draws, job.diagonal, alone)
    except ValueError as error:
        raise ValueError(f"shard {k} ({shard.rows} rows): {error}") from error
    report = Report(
        rows=shard.rows,
        groups=shard.groups,
        weight=weight,
        mean=draws.u.mean(axis=(0, 1)),
        precision=site.precision,
        ess=draws.ess,
        r_hat=draws.r_hat,
        divergences=draws.divergences,
        steps=draws.steps,
        step_size=draws.step_size,
        accept_prob=draws.accept_prob,
        seconds=draws.seconds,
        compile_seconds=draws.compile_seconds,
    )
    return site, report


def _site(draws: Draws, diagonal: bool, alone: bool) -> gaussian.Site:
    if alone:
        # Nothing to combine with: any precision gives the draws back, so none is estimated.
        ones = np.ones(draws.u.shape[-1])
        return gaussian.Site(ones, draws.u.mean(axis=(0, 1)), draws.u)
    n_draws = draws.u.shape[0] * draws.u.shape[1]
    return gaussian.site_of(draws.u, gaussian.effective_draws(draws.ess, n_draws), diagonal)


def _divergences(reports: list[Report]) -> str:
    return f"{sum(report.divergences for report in reports)} divergences"
