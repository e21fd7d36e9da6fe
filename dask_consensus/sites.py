"""What one shard gives in a round: its draws as a Gaussian site, and a report; runs on workers."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import gaussian
from .cluster.arrays import Shard, pad
from .cluster.sizes import Size
from .shard.device import accelerated
from .shard.marginal import modes_at
from .shard.model import ShardModel
from .shard.sample import (
    Coordinates,
    Draws,
    NotFiniteError,
    Settings,
    Start,
    sample_shards,
)
from .shard.target import Data, tempered
from .shard.units import obstacle


class Job(NamedTuple):
    """What all shards and rounds of a fit share; travels to each worker once."""

    model: ShardModel
    num_chains: int
    diagonal: bool
    seed: int


class Turn(NamedTuple):
    """What all shards of one round share.

    Attributes
    ----------
    number : int
    settings : Settings
    anchor_mean : (d,) array
    anchor_precision : (d, d) array
        Zero for one-shot consensus.
    coordinates : Coordinates
    warm : bool
        Start from the anchor and the last round, not at random.
    """

    number: int
    settings: Settings
    anchor_mean: np.ndarray
    anchor_precision: np.ndarray
    coordinates: Coordinates
    warm: bool


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
        Moments of the unconstrained draws, in natural form, the anchor's included; NaN for a
        shard alone, of which none is needed.
    skew : (d,) array
        Skewness of each coordinate.
    joint_skew : (d,) array
        Mean of each standardised coordinate times the squared Mahalanobis distance: what all
        coordinates' skew does to one.
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
    skew: np.ndarray
    joint_skew: np.ndarray
    ess: np.ndarray
    r_hat: np.ndarray
    divergences: int
    steps: float
    step_size: float
    accept_prob: float
    seconds: float
    compile_seconds: float


def sample_sites(
    shards: list[Shard],
    own: list[tuple[int, float, Size, tuple[Start, ...] | None]],
    asked: tuple[Job, Turn],
) -> list[tuple[gaussian.Site, Report, tuple[Start, ...]]]:
    """Sample several shards in a round, and turn their draws into sites; runs on a worker.

    On an accelerator those of one shape run at once, elsewhere one after another.
    """
    shapes = [mine[2] for mine in own]
    batches = [[i] for i in range(len(shards))]
    if accelerated():
        batches = [[i for i, size in enumerate(shapes) if size == one] for one in set(shapes)]
    found: dict[int, Any] = {}
    for batch in batches:
        some = _sample_batch([shards[i] for i in batch], [own[i] for i in batch], asked)
        found.update(zip(batch, some, strict=True))
    return [found[i] for i in range(len(shards))]


def _sample_batch(
    shards: list[Shard],
    own: list[tuple[int, float, Size, tuple[Start, ...] | None]],
    asked: tuple[Job, Turn],
) -> list[tuple[gaussian.Site, Report, tuple[Start, ...]]]:
    job, turn = asked
    numbers, weights, padded, states = zip(*own, strict=True)
    alone = weights[0] == 1
    data = [Data(*pad(shard, *size)) for shard, size in zip(shards, padded, strict=True)]
    settings, starts = turn.settings, list(states)
    prior = tempered(0.0, job.model.dim)
    if turn.warm:
        prior = prior._replace(anchor_mean=turn.anchor_mean, anchor_precision=turn.anchor_precision)
        starts = [
            _starts(job, turn, own_data) if start is None else start
            for own_data, start in zip(data, starts, strict=True)
        ]
        # Without modes nothing is known of the local sites' scales: they must be learned.
        settings = settings if starts[0] else settings._replace(adapt_mass=True)
    try:
        sampled = sample_shards(
            job.model,
            data,
            [prior._replace(weight=weight) for weight in weights],
            settings,
            [(job.seed, turn.number, k) for k in numbers],
            coordinates=turn.coordinates,
            starts=starts,
            num_chains=job.num_chains,
        )
        sites = [_site(draws, job.diagonal, alone) for draws, _ in sampled]
    except ValueError as error:
        which = error.which if isinstance(error, NotFiniteError) else 0
        where = f"shard {numbers[which]} ({shards[which].rows} rows)"
        raise ValueError(f"{where}: {error}") from error
    return [
        (site, _report(shard, weight, draws, _shown(site, alone)), ends)
        for shard, weight, site, (draws, ends) in zip(shards, weights, sites, sampled, strict=True)
    ]


def _shown(site: gaussian.Site, alone: bool) -> np.ndarray:
    """Precision to report: none of a shard alone, where none was estimated."""
    return np.full_like(site.precision, np.nan) if alone else site.precision


def _starts(job: Job, turn: Turn, data: Data) -> tuple[Start, ...] | None:
    """Begin every chain at the anchor, its local sites at their modes there."""
    if obstacle(job.model):
        return None
    modes = modes_at(job.model, data, turn.anchor_mean)
    start = Start(turn.anchor_mean, modes.local, modes.variances, 0.5)
    return (start,) * job.num_chains


def _site(draws: Draws, diagonal: bool, alone: bool) -> gaussian.Site:
    if alone:
        # Nothing to combine with: any precision gives the draws back, so none is estimated.
        ones = np.ones(draws.u.shape[-1])
        return gaussian.Site(ones, draws.u.mean(axis=(0, 1)), draws.u)
    n_draws = draws.u.shape[0] * draws.u.shape[1]
    return gaussian.site_of(draws.u, gaussian.effective_draws(draws.ess, n_draws), diagonal)


def _report(shard: Shard, weight: float, draws: Draws, precision: np.ndarray) -> Report:
    flat = draws.u.reshape(-1, draws.u.shape[-1])
    away = flat - flat.mean(axis=0)
    spread = np.maximum(away.std(axis=0), np.finfo(float).tiny)
    return Report(
        rows=shard.rows,
        groups=shard.groups,
        weight=weight,
        mean=flat.mean(axis=0),
        precision=precision,
        skew=((away / spread) ** 3).mean(axis=0),
        joint_skew=joint_skewness(away),
        ess=draws.ess,
        r_hat=draws.r_hat,
        divergences=draws.divergences,
        steps=draws.steps,
        step_size=draws.step_size,
        accept_prob=draws.accept_prob,
        seconds=draws.seconds,
        compile_seconds=draws.compile_seconds,
    )


def joint_skewness(away: np.ndarray) -> np.ndarray:
    """Mean of each standardised coordinate times the squared Mahalanobis distance, ``(d,)``.

    Parameters
    ----------
    away : (n, d) array
        Centred draws.
    """
    covariance = away.T @ away / len(away)
    spread = np.sqrt(np.maximum(np.diag(covariance), np.finfo(float).tiny))
    inverse = np.linalg.pinv(covariance, hermitian=True)
    distance = np.einsum("ni,ij,nj->n", away, inverse, away, optimize=True)
    # A constant times centred draws adds nothing; with this one normal draws vary least.
    return (away * (distance - away.shape[1] - 2)[:, None]).mean(axis=0) / spread
