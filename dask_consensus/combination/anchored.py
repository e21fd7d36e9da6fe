"""The rounds over shards: map, reduce, next anchor, when to stop.

One-shot consensus is a single round under the tempered prior alone. *Anchored* rounds hold every
shard near the answer by a Gaussian anchor, which is taken out again exactly, in natural
parameters; so a shard that knows little of a parameter cannot run away with it, and its skew
moves the answer less.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..cluster.placement import Execution
from ..cluster.shards import Shards
from ..shard.coordinates import whitened
from ..shard.nuts import Settings
from . import gaussian
from .reports import Combined, FitSettings, Round
from .subposterior import RoundSettings, _map_reduce, _mean_ess, _noise

if TYPE_CHECKING:
    from dask.delayed import Delayed


_FLOOR = 0.1  # least precision of the combination, relative to what an exact one would have
_BIAS = 0.05  # anchors grow with the square root of the draws: c = _BIAS sqrt(K ess)


def anchored(
    fit_settings: FitSettings,
    shards: Shards,
    settings: Settings,
    execution: Execution,
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
    fit_settings : FitSettings
    shards : Shards
    settings : Settings
    execution : Execution
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
    strength = _strength(n, settings.num_samples * fit_settings.num_chains) if informed else 1.0
    anchor_mean, anchor_precision = mean, strength * site_precision
    states: Sequence[Delayed | None] = [None] * n
    rounds: list[Round] = []
    history: list[tuple[np.ndarray, np.ndarray]] = []
    for index in range(most):
        number = len(before) + index + 1
        began = time.perf_counter()
        coordinates = whitened(anchor_mean, anchor_precision + site_precision)
        round_settings = RoundSettings(
            number, settings, anchor_mean, anchor_precision, coordinates, warm=True
        )
        total, reports, states = _map_reduce(
            fit_settings, round_settings, shards, states, execution
        )

        anchor = np.diag(anchor_precision) if fit_settings.diagonal else anchor_precision
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


def _strength(n: int, ess: float) -> float:
    """Trade bias, about 1 / (1 + c), for noise, about sqrt((1 + c) / ess)."""
    return min(n - 1.0, _BIAS * float(np.sqrt(n * ess)))


def _movement(before: Round, mean: np.ndarray, covariance: np.ndarray) -> float:
    sd = np.sqrt(np.diag(covariance))
    moved = np.abs(mean - before.mean) / sd
    scaled = np.abs(np.log(sd / np.sqrt(np.diag(before.covariance))))
    return float(max(moved.max(), scaled.max()))
