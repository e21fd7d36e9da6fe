"""The rounds over shards: pilot, map, reduce, next anchor, when to stop.

One-shot consensus is a single round under the tempered prior alone. *Anchored* rounds hold every
shard near the answer by a Gaussian anchor, which is taken out again exactly, in natural
parameters; so a shard that knows little of a parameter cannot run away with it, and its skew
moves the answer less.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy.linalg

from . import gaussian
from .cluster import mapreduce
from .cluster.arrays import Shard, pad
from .cluster.sizes import Size, padded_sizes
from .shard.marginal import modes_at, obstacle
from .shard.model import ShardModel
from .shard.sample import Coordinates, Draws, Settings, Start, sample_shard, unwhitened
from .shard.target import Data, PriorFactor, tempered

if TYPE_CHECKING:
    from dask.delayed import Delayed

_FLOOR = 0.1  # least precision of the combination, relative to what an exact one would have
_BIAS = 0.05  # anchors grow with the square root of the draws: c = _BIAS sqrt(K ess)


class Job(NamedTuple):
    """What all shards and rounds of a fit share; travels to each worker once."""

    model: ShardModel
    num_chains: int
    diagonal: bool
    seed: int


class Travel(NamedTuple):
    """How maps over shards run: contributions added at once, retries, whether to show progress."""

    split_every: int
    retries: int
    progress: bool | None


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
    ess: np.ndarray
    r_hat: np.ndarray
    divergences: int
    steps: float
    step_size: float
    accept_prob: float
    seconds: float
    compile_seconds: float


class Round(NamedTuple):
    """One round, as the client saw it.

    Attributes
    ----------
    reports : list of Report
        One a shard.
    mean : (d,) array
    covariance : (d, d) array
        The combination after this round.
    anchor_mean : (d,) array
    anchor_precision : (d, d) array
        What the shards were anchored by.
    strength : float
        Of the anchor: its precision in units of a site's; 0 without.
    movement : float
        Largest change of a mean, in posterior sds, or of a log sd, since the round before.
    noise : float
        The Monte Carlo error that the movement is judged by.
    seconds : float
    """

    reports: list[Report]
    mean: np.ndarray
    covariance: np.ndarray
    anchor_mean: np.ndarray
    anchor_precision: np.ndarray
    strength: float
    movement: float
    noise: float
    seconds: float


class Combined(NamedTuple):
    """The posterior of all shards together, in unconstrained space.

    Attributes
    ----------
    draws : (chains, draws, d) array
    mean : (d,) array
    covariance : (d, d) array
    rounds : list of Round
    """

    draws: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    rounds: list[Round]


def one_shot(
    job: Job,
    shards: Sequence[Delayed],
    sizes: Sequence[Size],
    settings: Settings,
    travel: Travel,
    *,
    parametric: bool = False,
) -> Combined:
    """Sample every shard once under its share of the prior, and combine.

    Parameters
    ----------
    job : Job
    shards : sequence of Delayed
        Persisted.
    sizes : sequence of Size
    settings : Settings
    travel : Travel
    parametric : bool
        Draw from the product of Gaussians (Neiswanger et al. 2014) instead of averaging draws
        (Scott et al. 2016).
    """
    d = job.model.dim
    began = time.perf_counter()
    turn = Turn(0, settings, np.zeros(d), np.zeros((d, d)), unwhitened(d), warm=False)
    total, reports, _ = _map_reduce(job, turn, shards, sizes, [None] * len(shards), travel)
    mean, covariance = gaussian.covariance_of(total)
    if len(shards) == 1:
        draws = total.draws
        mean, covariance = gaussian.moments(draws)
    elif parametric:
        rng = np.random.default_rng([job.seed, len(shards)])
        draws = gaussian.gaussian_draws(mean, covariance, total.draws.shape[:2], rng)
    else:
        draws = gaussian.consensus_draws(total)
    seconds = time.perf_counter() - began
    noise = _noise(reports, 0.0)
    only = Round(reports, mean, covariance, *turn[2:4], 0.0, np.nan, noise, seconds)
    return Combined(draws, mean, covariance, [only])


def anchored(
    job: Job,
    shards: Sequence[Delayed],
    sizes: Sequence[Size],
    settings: Settings,
    travel: Travel,
    mean: np.ndarray,
    site_precision: np.ndarray,
    *,
    most: int,
    before: Sequence[Round] = (),
) -> Combined:
    """Sample every shard under an anchor, combine, anchor again where the combination is.

    Parameters
    ----------
    job : Job
    shards : sequence of Delayed
        Persisted.
    sizes : sequence of Size
    settings : Settings
    travel : Travel
    mean : (d,) array
    site_precision : (d, d) array
        The first anchor: a guess of the posterior's mean, and of one shard's precision.
    most : int
        Rounds to run at most; fewer where the combination moves less than its Monte Carlo error.
    before : sequence of Round
        Rounds that led to the guess, to be counted on from.
    """
    n = len(shards)
    anchor_mean, anchor_precision, strength = mean, site_precision, 1.0
    states: Sequence[Delayed | None] = [None] * n
    rounds: list[Round] = []
    history: list[tuple[np.ndarray, np.ndarray]] = []
    for index in range(most):
        number = len(before) + index + 1
        began = time.perf_counter()
        coordinates = whitened(anchor_mean, anchor_precision + site_precision)
        turn = Turn(number, settings, anchor_mean, anchor_precision, coordinates, warm=True)
        total, reports, states = _map_reduce(job, turn, shards, sizes, states, travel)

        anchor = np.diag(anchor_precision) if job.diagonal else anchor_precision
        history.append(gaussian.subtract_anchors(total, n, anchor, anchor_mean))
        # The first anchor knows one shard only; later ones know the answer, and are averaged.
        used = history[min(1, index) :]
        precision, shift = (np.mean([pair[i] for pair in used], axis=0) for i in range(2))
        precision = gaussian.floored(precision, total.precision, _FLOOR / (1 + strength))
        mean = gaussian.solve(precision, shift)
        full = gaussian.as_matrix(precision)
        covariance = gaussian.inverse(full)

        noise = _noise(reports, strength)
        movement = _movement(rounds[-1], mean, covariance) if rounds else np.nan
        seconds = time.perf_counter() - began
        anchor_of = (anchor_mean, anchor_precision, strength)
        rounds.append(Round(reports, mean, covariance, *anchor_of, movement, noise, seconds))
        if rounds[:-1] and movement < noise:
            break
        strength = min(n - 1.0, _BIAS * float(np.sqrt(n * _mean_ess(reports))))
        site_precision = full / n
        anchor_mean, anchor_precision = mean, strength * site_precision

    draws = gaussian.matched(gaussian.consensus_draws(total), mean, covariance)
    return Combined(draws, mean, covariance, [*before, *rounds])


def whitened(mean: np.ndarray, precision: np.ndarray) -> Coordinates:
    """Coordinates in which a Gaussian of this mean and precision is standard."""
    factor = np.linalg.cholesky(precision)
    scale = scipy.linalg.solve_triangular(factor, np.eye(len(mean)), lower=True).T
    # L' upper triangular has the same L L'; the sampler solves with a lower one.
    return Coordinates(mean, np.linalg.cholesky(scale @ scale.T))


def _mean_ess(reports: Sequence[Report]) -> float:
    return float(np.mean([gaussian.effective_draws(r.ess, 10**9) for r in reports]))


def _noise(reports: Sequence[Report], strength: float) -> float:
    """Monte Carlo error of the combined mean, in posterior sds: sqrt((1 + c) / ess)."""
    return float(np.sqrt((1 + strength) / max(_mean_ess(reports), 1.0)))


def _movement(before: Round, mean: np.ndarray, covariance: np.ndarray) -> float:
    sd = np.sqrt(np.diag(covariance))
    moved = np.abs(mean - before.mean) / sd
    scaled = np.abs(np.log(sd / np.sqrt(np.diag(before.covariance))))
    return float(max(moved.max(), scaled.max()))


# One map over shards


def _map_reduce(
    job: Job,
    turn: Turn,
    shards: Sequence[Delayed],
    sizes: Sequence[Size],
    states: Sequence[Delayed | None],
    travel: Travel,
) -> mapreduce.Mapped:
    """One round: sample every shard, add up the sites."""
    shared, this = mapreduce.broadcast(job), mapreduce.broadcast(turn)
    weights = shard_weights(sizes)
    alone = len(shards) == 1
    mapped = [
        mapreduce.call(sample_site, shard, shared, this, k, weights[k], padded, alone, state)
        for k, (shard, padded, state) in enumerate(
            zip(shards, padded_sizes(sizes), states, strict=True)
        )
    ]
    title = f"round {turn.number}" if turn.number else "sampling"
    with mapreduce.Progress(title, len(shards), travel.progress, _divergences) as line:
        return mapreduce.map_reduce(
            mapped,
            gaussian.add,
            split_every=travel.split_every,
            progress=line,
            retries=travel.retries,
        )


def shard_weights(sizes: Sequence[Size]) -> list[float]:
    """Give each shard its power of the prior: its share of the rows."""
    total = sum(size.rows for size in sizes)
    return [size.rows / total for size in sizes]


def sample_site(
    shard: Shard,
    job: Job,
    turn: Turn,
    k: int,
    weight: float,
    padded: Size,
    alone: bool,
    state: tuple[Start, ...] | None,
) -> tuple[gaussian.Site, Report, tuple[Start, ...]]:
    """Sample shard `k` in a round, and turn its draws into a site; runs on a worker."""
    data = Data(*pad(shard, *padded))
    settings = turn.settings
    try:
        if turn.warm and state is None:
            state = _starts(job, turn, data)
            # Without modes nothing is known of the local sites' scales: they must be learned.
            settings = settings if state else settings._replace(adapt_mass=True)
        draws, ends = sample_shard(
            job.model,
            data,
            PriorFactor(weight, turn.anchor_mean, turn.anchor_precision)
            if turn.warm
            else tempered(weight, job.model.dim),
            settings,
            (job.seed, turn.number, k),
            coordinates=turn.coordinates,
            starts=state,
            num_chains=job.num_chains,
        )
        site = _site(draws, job.diagonal, alone)
    except ValueError as error:
        raise ValueError(f"shard {k} ({shard.rows} rows): {error}") from error
    precision = np.full_like(site.precision, np.nan) if alone else site.precision
    return site, _report(shard, weight, draws, precision), ends


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
        ess=draws.ess,
        r_hat=draws.r_hat,
        divergences=draws.divergences,
        steps=draws.steps,
        step_size=draws.step_size,
        accept_prob=draws.accept_prob,
        seconds=draws.seconds,
        compile_seconds=draws.compile_seconds,
    )


def _divergences(reports: list[Report]) -> str:
    return f"{sum(report.divergences for report in reports)} divergences"
