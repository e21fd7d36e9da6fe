"""What one shard gives in a round: its draws as a Gaussian factor, and a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..cluster.mapreduce import Answer, Mapped, map_reduce
from ..cluster.shards import Shards
from ..cluster.tasks import broadcast
from ..shard.coordinates import Coordinates
from ..shard.device import accelerated
from ..shard.engine import engine_of
from ..shard.nuts import Draws, NotFiniteError, NutsSettings, sample_shards
from ..shard.starts import Start
from ..shard.target import PriorFactor
from ..shard_data import ShardData
from . import gaussian
from .reports import Anchor, FitSettings, NutsDiagnostics, Report

if TYPE_CHECKING:
    from dask.delayed import Delayed

_FIRST_STEP_SIZE = 0.5  # in whitened coordinates, until warm-up has found its own


class SamplingFailed(ValueError):
    """Draws of a shard say nothing of it; the message names the shard, and what to change."""


class RoundSettings(NamedTuple):
    """What all shards of one round share.

    Attributes
    ----------
    number : int
        Names the randomness of the round; 0 for one-shot consensus.
    fit : FitSettings
    nuts : NutsSettings
    anchor : Anchor
    coordinates : Coordinates
    warm : bool
        Start from the anchor and the last round, not at random.
    """

    number: int
    fit: FitSettings
    nuts: NutsSettings
    anchor: Anchor
    coordinates: Coordinates
    warm: bool


class ShardTurn(NamedTuple):
    """What one shard is given in a round.

    Attributes
    ----------
    number : int
        Of the shard.
    weight : float
        Its power of the prior.
    starts : tuple of Start, or None
        Where its chains came to in the round before.
    """

    number: int
    weight: float
    starts: tuple[Start, ...] | None


def sample_round(
    settings: RoundSettings, shards: Shards, starts: Sequence[Delayed | None]
) -> Mapped:
    """Sample every shard, and add up the Gaussian factors."""
    return map_reduce(
        sample_subposteriors,
        shards,
        list(zip(range(shards.n), shards.weights, starts, strict=True)),
        [broadcast(settings)],
        gaussian.add,
        title=f"round {settings.number}" if settings.number else "sampling",
        note=_divergences,
        keep_states=True,
    )


def mean_ess(reports: Sequence[Report]) -> float:
    """Effective draws of a shard, on average over shards."""
    sizes = [gaussian.effective_draws(_nuts(report).ess, 10**9) for report in reports]
    return float(np.mean(sizes))


def monte_carlo_error(reports: Sequence[Report], strength: float) -> float:
    """Monte Carlo error of the combined mean, in posterior sds: sqrt((1 + c) / ess)."""
    return float(np.sqrt((1 + strength) / max(mean_ess(reports), 1.0)))


def _divergences(reports: list[Report]) -> str:
    return f"{sum(_nuts(report).divergences for report in reports)} divergences"


def _nuts(report: Report) -> NutsDiagnostics:
    assert report.nuts is not None
    return report.nuts


# On a worker


def sample_subposteriors(
    data: list[ShardData], per_shard: list[tuple[Any, ...]], settings: RoundSettings
) -> list[Answer]:
    """Sample several shards in a round, and turn their draws into Gaussian factors.

    On an accelerator those of one shape run at once, elsewhere one after another.
    """
    turns = [ShardTurn(*given) for given in per_shard]
    shapes = [d.size for d in data]
    batches = [[i] for i in range(len(data))]
    if accelerated():
        batches = [[i for i, s in enumerate(shapes) if s == shape] for shape in set(shapes)]
    answers: dict[int, Answer] = {}
    for batch in batches:
        sampled = _sample_batch([data[i] for i in batch], [turns[i] for i in batch], settings)
        answers.update(zip(batch, sampled, strict=True))
    return [answers[i] for i in range(len(data))]


def _sample_batch(
    data: list[ShardData], turns: list[ShardTurn], settings: RoundSettings
) -> list[Answer]:
    fit, anchor, nuts = settings.fit, settings.anchor, settings.nuts
    alone = turns[0].weight == 1
    starts = [turn.starts for turn in turns]
    if settings.warm:
        starts = [
            _starts(settings, d) if start is None else start
            for d, start in zip(data, starts, strict=True)
        ]
        # Without modes nothing is known of the local sites' scales: they must be learned.
        nuts = nuts if starts[0] else nuts._replace(adapt_mass=True)
    try:
        sampled = sample_shards(
            fit.model,
            data,
            [PriorFactor(turn.weight, anchor.mean, anchor.precision) for turn in turns],
            nuts,
            [(fit.seed, settings.number, turn.number) for turn in turns],
            coordinates=settings.coordinates,
            starts=starts,
            num_chains=fit.num_chains,
        )
        factors = [_factor(draws, fit.diagonal, alone) for draws, _ in sampled]
    except ValueError as error:
        which = error.which if isinstance(error, NotFiniteError) else 0
        where = f"shard {turns[which].number} ({int(data[which].rows.sum())} rows)"
        raise SamplingFailed(f"{where}: {error}") from error
    return [
        Answer(factor, _report(d, turn.weight, draws, _reported(factor, alone)), ends)
        for d, turn, factor, (draws, ends) in zip(data, turns, factors, sampled, strict=True)
    ]


def _starts(settings: RoundSettings, data: ShardData) -> tuple[Start, ...] | None:
    """Begin every chain at the anchor, its local sites at their modes there."""
    engine = engine_of(settings.fit.model)
    if engine.obstacle:
        return None
    modes = engine.modes(data, settings.anchor.mean)
    start = Start(settings.anchor.mean, modes.local, modes.variances, _FIRST_STEP_SIZE)
    return (start,) * settings.fit.num_chains


def _factor(draws: Draws, diagonal: bool, alone: bool) -> gaussian.GaussianFactor:
    if alone:
        # Nothing to combine with: any precision gives the draws back, so none is estimated.
        ones = np.ones(draws.u.shape[-1])
        return gaussian.GaussianFactor(ones, draws.u.mean(axis=(0, 1)), draws.u)
    n_draws = draws.u.shape[0] * draws.u.shape[1]
    return gaussian.factor_of(draws.u, gaussian.effective_draws(draws.ess, n_draws), diagonal)


def _reported(factor: gaussian.GaussianFactor, alone: bool) -> np.ndarray:
    """Precision to report: none of a shard alone, where none was estimated."""
    return np.full_like(factor.precision, np.nan) if alone else factor.precision


def _report(data: ShardData, weight: float, draws: Draws, precision: np.ndarray) -> Report:
    flat = draws.u.reshape(-1, draws.u.shape[-1])
    centred = flat - flat.mean(axis=0)
    sd = np.maximum(centred.std(axis=0), np.finfo(float).tiny)
    return Report(
        rows=int(data.rows.sum()),
        groups=tuple(int(mask.sum()) for mask in data.groups),
        weight=weight,
        mean=flat.mean(axis=0),
        precision=precision,
        seconds=draws.seconds,
        compile_seconds=draws.compile_seconds,
        nuts=NutsDiagnostics(
            skew=((centred / sd) ** 3).mean(axis=0),
            joint_skew=joint_skewness(centred),
            ess=draws.ess,
            r_hat=draws.r_hat,
            divergences=draws.divergences,
            steps=draws.steps,
            step_size=draws.step_size,
            accept_prob=draws.accept_prob,
        ),
    )


def joint_skewness(centred: np.ndarray) -> np.ndarray:
    """Mean of each standardised coordinate times the squared Mahalanobis distance, ``(d,)``.

    Parameters
    ----------
    centred : (n, d) array
        Draws less their mean.
    """
    covariance = centred.T @ centred / len(centred)
    sd = np.sqrt(np.maximum(np.diag(covariance), np.finfo(float).tiny))
    inverse = np.linalg.pinv(covariance, hermitian=True)
    distance = np.einsum("ni,ij,nj->n", centred, inverse, centred, optimize=True)
    # A constant times centred draws adds nothing; with this one normal draws vary least.
    return (centred * (distance - centred.shape[1] - 2)[:, None]).mean(axis=0) / sd
