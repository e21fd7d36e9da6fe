"""What one shard gives in a round: its draws as a Gaussian site, and a report; runs on workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..cluster import mapreduce
from ..cluster.placement import Execution
from ..cluster.shards import Shards
from ..shard.coordinates import Coordinates
from ..shard.device import accelerated
from ..shard.effects import obstacle
from ..shard.marginal import modes_at
from ..shard.nuts import Draws, NotFiniteError, Settings, sample_shards
from ..shard.starts import Start
from ..shard.target import tempered
from ..shard_data import Data, Shard, Size, pad
from . import gaussian
from .reports import FitSettings, Report

if TYPE_CHECKING:
    from dask.delayed import Delayed


class RoundSettings(NamedTuple):
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


def sample_subposteriors(
    shards: list[Shard],
    own: list[tuple[int, float, Size, tuple[Start, ...] | None]],
    asked: tuple[FitSettings, RoundSettings],
) -> list[tuple[gaussian.GaussianFactor, Report, tuple[Start, ...]]]:
    """Sample several shards in a round, and turn their draws into Gaussian factors; runs on a worker.

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
    asked: tuple[FitSettings, RoundSettings],
) -> list[tuple[gaussian.GaussianFactor, Report, tuple[Start, ...]]]:
    fit_settings, round_settings = asked
    numbers, weights, padded, states = zip(*own, strict=True)
    alone = weights[0] == 1
    data = [Data(*pad(shard, *size)) for shard, size in zip(shards, padded, strict=True)]
    settings, starts = round_settings.settings, list(states)
    prior = tempered(0.0, fit_settings.model.dim)
    if round_settings.warm:
        prior = prior._replace(
            anchor_mean=round_settings.anchor_mean, anchor_precision=round_settings.anchor_precision
        )
        starts = [
            _starts(fit_settings, round_settings, own_data) if start is None else start
            for own_data, start in zip(data, starts, strict=True)
        ]
        # Without modes nothing is known of the local sites' scales: they must be learned.
        settings = settings if starts[0] else settings._replace(adapt_mass=True)
    try:
        sampled = sample_shards(
            fit_settings.model,
            data,
            [prior._replace(weight=weight) for weight in weights],
            settings,
            [(fit_settings.seed, round_settings.number, k) for k in numbers],
            coordinates=round_settings.coordinates,
            starts=starts,
            num_chains=fit_settings.num_chains,
        )
        sites = [_site(draws, fit_settings.diagonal, alone) for draws, _ in sampled]
    except ValueError as error:
        which = error.which if isinstance(error, NotFiniteError) else 0
        where = f"shard {numbers[which]} ({shards[which].rows} rows)"
        raise ValueError(f"{where}: {error}") from error
    return [
        (site, _report(shard, weight, draws, _shown(site, alone)), ends)
        for shard, weight, site, (draws, ends) in zip(shards, weights, sites, sampled, strict=True)
    ]


def _shown(site: gaussian.GaussianFactor, alone: bool) -> np.ndarray:
    """Precision to report: none of a shard alone, where none was estimated."""
    return np.full_like(site.precision, np.nan) if alone else site.precision


def _starts(
    fit_settings: FitSettings, round_settings: RoundSettings, data: Data
) -> tuple[Start, ...] | None:
    """Begin every chain at the anchor, its local sites at their modes there."""
    if obstacle(fit_settings.model):
        return None
    modes = modes_at(fit_settings.model, data, round_settings.anchor_mean)
    start = Start(round_settings.anchor_mean, modes.local, modes.variances, 0.5)
    return (start,) * fit_settings.num_chains


def _site(draws: Draws, diagonal: bool, alone: bool) -> gaussian.GaussianFactor:
    if alone:
        # Nothing to combine with: any precision gives the draws back, so none is estimated.
        ones = np.ones(draws.u.shape[-1])
        return gaussian.GaussianFactor(ones, draws.u.mean(axis=(0, 1)), draws.u)
    n_draws = draws.u.shape[0] * draws.u.shape[1]
    return gaussian.factor_of(draws.u, gaussian.effective_draws(draws.ess, n_draws), diagonal)


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


def _mean_ess(reports: Sequence[Report]) -> float:
    return float(np.mean([gaussian.effective_draws(r.ess, 10**9) for r in reports]))


def _noise(reports: Sequence[Report], strength: float) -> float:
    """Monte Carlo error of the combined mean, in posterior sds: sqrt((1 + c) / ess)."""
    return float(np.sqrt((1 + strength) / max(_mean_ess(reports), 1.0)))


# One map over shards
def _map_reduce(
    fit_settings: FitSettings,
    round_settings: RoundSettings,
    shards: Shards,
    states: Sequence[Delayed | None],
    execution: Execution,
) -> mapreduce.Mapped:
    """One round: sample every shard, add up the sites."""
    n = len(shards.parts)
    return mapreduce.map_reduce(
        sample_subposteriors,
        shards.parts,
        list(zip(range(n), shards.weights, shards.padded, states, strict=True)),
        [mapreduce.broadcast((fit_settings, round_settings))],
        gaussian.add,
        execution=execution,
        title=f"round {round_settings.number}" if round_settings.number else "sampling",
        note=_divergences,
        states=True,
    )


def _divergences(reports: list[Report]) -> str:
    return f"{sum(report.divergences for report in reports)} divergences"
