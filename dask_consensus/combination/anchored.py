"""Anchored rounds: map, reduce, next anchor, when to stop.

Every shard is held near the answer by a Gaussian anchor, which is taken out again exactly, in
natural parameters; so a shard that knows little of a parameter cannot run away with it, and its
skew moves the answer less. The loop is a state and three functions: `init`, `step`, `done`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..cluster.client import say
from ..cluster.shards import Shards
from ..shard.coordinates import whitened
from ..shard.nuts import NutsSettings
from . import gaussian
from .reports import Anchor, Combined, FitSettings, Guess, Round
from .subposterior import RoundSettings, mean_ess, monte_carlo_error, sample_round

if TYPE_CHECKING:
    from dask.delayed import Delayed

_FLOOR = 0.1  # least precision of the combination, relative to what an exact one would have
_BIAS = 0.05  # anchors grow with the square root of the draws: c = _BIAS sqrt(K ess)


class AnchoredSettings(NamedTuple):
    """What all rounds share.

    Attributes
    ----------
    fit : FitSettings
    nuts : NutsSettings
    most : int
        Rounds to run at most; fewer where the combination moves less than its Monte Carlo error.
    guess : Guess
        Where the first anchor is.
    """

    fit: FitSettings
    nuts: NutsSettings
    most: int
    guess: Guess


class AnchoredState(NamedTuple):
    """All that one round hands to the next.

    Attributes
    ----------
    anchor : Anchor
        Of the next round.
    shard_precision : (d, d) array
        Precision of one shard's subposterior, about.
    rounds : tuple of Round
    factors : tuple of (precision, shift)
        What the shards of each round added up to, anchors taken out.
    total : GaussianFactor or None
        The last round's sum, with its draws.
    starts : sequence of Delayed or None
        Where each shard's chains came to; they lie where they were made.
    """

    anchor: Anchor
    shard_precision: np.ndarray
    rounds: tuple[Round, ...]
    factors: tuple[tuple[np.ndarray, np.ndarray], ...]
    total: gaussian.GaussianFactor | None
    starts: Sequence[Delayed | None]


def anchored(settings: AnchoredSettings, shards: Shards) -> Combined:
    """Sample every shard under an anchor, combine, anchor again where the combination is."""
    state = init(settings, shards)
    while not done(settings, state):
        state = step(settings, shards, state)
    assert state.total is not None
    last = state.rounds[-1]
    draws = gaussian.matched(gaussian.consensus_draws(state.total), last.mean, last.covariance)
    rounds = [*settings.guess.rounds, *state.rounds]
    return Combined(draws, last.mean, last.covariance, rounds, "anchored")


def init(settings: AnchoredSettings, shards: Shards) -> AnchoredState:
    """Anchor the first round at the guess."""
    guess = settings.guess
    n_draws = settings.nuts.num_samples * settings.fit.num_chains
    strength = _strength(shards.n, n_draws) if guess.informed else 1.0
    anchor = Anchor(guess.mean, strength * guess.shard_precision, strength)
    return AnchoredState(anchor, guess.shard_precision, (), (), None, [None] * shards.n)


def step(settings: AnchoredSettings, shards: Shards, state: AnchoredState) -> AnchoredState:
    """Sample a round, combine it with those before, and anchor the next."""
    began = time.perf_counter()
    n, guess, anchor = shards.n, settings.guess, state.anchor
    sampled = RoundSettings(
        number=len(guess.rounds) + len(state.rounds) + 1,
        fit=settings.fit,
        nuts=settings.nuts,
        anchor=anchor,
        coordinates=whitened(anchor.mean, anchor.precision + state.shard_precision),
        warm=True,
    )
    total, reports, starts = sample_round(sampled, shards, state.starts)

    taken_out = np.diag(anchor.precision) if settings.fit.diagonal else anchor.precision
    factors = (*state.factors, gaussian.subtract_anchors(total, n, taken_out, anchor.mean))
    # An anchor that knows one shard only is forgotten; those that know the answer average.
    used = factors[0 if guess.informed else min(1, len(state.rounds)) :]
    precision, shift = (np.mean([factor[i] for factor in used], axis=0) for i in range(2))
    precision = gaussian.floored(precision, total.precision, _FLOOR / (1 + anchor.strength))
    mean = gaussian.solve(precision, shift)
    full = gaussian.as_matrix(precision)
    covariance = gaussian.inverse(full)

    this = Round(
        reports=reports,
        mean=mean,
        covariance=covariance,
        anchor=anchor,
        movement=_movement(state.rounds[-1], mean, covariance) if state.rounds else np.nan,
        noise=monte_carlo_error(reports, anchor.strength),
        seconds=time.perf_counter() - began,
    )
    moved = f"moved {this.movement:.2g} sds" if state.rounds else "first means"
    say(f"{moved}, Monte Carlo error {this.noise:.2g}")
    strength, shard_precision = _strength(n, mean_ess(reports)), full / n
    return AnchoredState(
        anchor=Anchor(mean, strength * shard_precision, strength),
        shard_precision=shard_precision,
        rounds=(*state.rounds, this),
        factors=factors,
        total=total,
        starts=starts,
    )


def done(settings: AnchoredSettings, state: AnchoredState) -> bool:
    """Stop when a round moved less than its Monte Carlo error, or when there were enough."""
    if len(state.rounds) < 2:
        return len(state.rounds) >= settings.most
    last = state.rounds[-1]
    return last.movement < last.noise or len(state.rounds) >= settings.most


def _strength(n: int, ess: float) -> float:
    """Trade bias, about 1 / (1 + c), for noise, about sqrt((1 + c) / ess)."""
    return min(n - 1.0, _BIAS * float(np.sqrt(n * ess)))


def _movement(before: Round, mean: np.ndarray, covariance: np.ndarray) -> float:
    sd = np.sqrt(np.diag(covariance))
    moved = np.abs(mean - before.mean) / sd
    scaled = np.abs(np.log(sd / np.sqrt(np.diag(before.covariance))))
    return float(max(moved.max(), scaled.max()))
