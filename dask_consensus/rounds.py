"""The rounds over shards: map, reduce, next anchor, when to stop.

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
from .cluster.mapreduce import Travel
from .cluster.sizes import Sharded
from .shard.sample import Coordinates, Settings, unwhitened
from .sites import Job, Report, Turn, sample_sites

if TYPE_CHECKING:
    from dask.delayed import Delayed

_FLOOR = 0.1  # least precision of the combination, relative to what an exact one would have
_BIAS = 0.05  # anchors grow with the square root of the draws: c = _BIAS sqrt(K ess)


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
    shards: Sharded,
    settings: Settings,
    travel: Travel,
    *,
    parametric: bool = False,
) -> Combined:
    """Sample every shard once under its share of the prior, and combine.

    Parameters
    ----------
    job : Job
    shards : Sharded
    settings : Settings
    travel : Travel
    parametric : bool
        Draw from the product of Gaussians (Neiswanger et al. 2014) instead of averaging draws
        (Scott et al. 2016).
    """
    d = job.model.dim
    began = time.perf_counter()
    turn = Turn(0, settings, np.zeros(d), np.zeros((d, d)), unwhitened(d), warm=False)
    total, reports, _ = _map_reduce(job, turn, shards, [None] * len(shards.parts), travel)
    mean, covariance = gaussian.covariance_of(total)
    if len(shards.parts) == 1:
        draws = total.draws
        mean, covariance = gaussian.moments(draws)
    elif parametric:
        rng = np.random.default_rng([job.seed, len(shards.parts)])
        draws = gaussian.gaussian_draws(mean, covariance, total.draws.shape[:2], rng)
    else:
        draws = gaussian.consensus_draws(total)
    seconds = time.perf_counter() - began
    noise = _noise(reports, 0.0)
    only = Round(reports, mean, covariance, *turn[2:4], 0.0, np.nan, noise, seconds)
    return Combined(draws, mean, covariance, [only])


def anchored(
    job: Job,
    shards: Sharded,
    settings: Settings,
    travel: Travel,
    mean: np.ndarray,
    site_precision: np.ndarray,
    *,
    most: int,
    informed: bool,
    before: Sequence[Round] = (),
) -> Combined:
    """Sample every shard under an anchor, combine, anchor again where the combination is.

    Parameters
    ----------
    job : Job
    shards : Sharded
    settings : Settings
    travel : Travel
    mean : (d,) array
    site_precision : (d, d) array
        The first anchor: a guess of the posterior's mean, and of one shard's precision.
    most : int
        Rounds to run at most; fewer where the combination moves less than its Monte Carlo error.
    informed : bool
        Whether the guess knows all shards, so that the first anchor may be as strong as later ones.
    before : sequence of Round
        Rounds that led to the guess, to be counted on from.
    """
    n = len(shards.parts)
    strength = _strength(n, settings.num_samples * job.num_chains) if informed else 1.0
    anchor_mean, anchor_precision = mean, strength * site_precision
    states: Sequence[Delayed | None] = [None] * n
    rounds: list[Round] = []
    history: list[tuple[np.ndarray, np.ndarray]] = []
    for index in range(most):
        number = len(before) + index + 1
        began = time.perf_counter()
        coordinates = whitened(anchor_mean, anchor_precision + site_precision)
        turn = Turn(number, settings, anchor_mean, anchor_precision, coordinates, warm=True)
        total, reports, states = _map_reduce(job, turn, shards, states, travel)

        anchor = np.diag(anchor_precision) if job.diagonal else anchor_precision
        history.append(gaussian.subtract_anchors(total, n, anchor, anchor_mean))
        # An anchor that knows one shard only is forgotten; those that know the answer average.
        used = history[0 if informed else min(1, index) :]
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
        strength = _strength(n, _mean_ess(reports))
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


def _strength(n: int, ess: float) -> float:
    """Trade bias, about 1 / (1 + c), for noise, about sqrt((1 + c) / ess)."""
    return min(n - 1.0, _BIAS * float(np.sqrt(n * ess)))


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
    job: Job, turn: Turn, shards: Sharded, states: Sequence[Delayed | None], travel: Travel
) -> mapreduce.Mapped:
    """One round: sample every shard, add up the sites."""
    n = len(shards.parts)
    return mapreduce.map_reduce(
        sample_sites,
        shards.parts,
        list(zip(range(n), shards.weights, shards.padded, states, strict=True)),
        [mapreduce.broadcast((job, turn))],
        gaussian.add,
        travel=travel,
        title=f"round {turn.number}" if turn.number else "sampling",
        note=_divergences,
        states=True,
    )


def _divergences(reports: list[Report]) -> str:
    return f"{sum(report.divergences for report in reports)} divergences"
