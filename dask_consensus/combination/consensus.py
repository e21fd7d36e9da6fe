"""One-shot consensus: every shard sampled once, under its share of the prior."""

from __future__ import annotations

import time

import numpy as np

from ..cluster.placement import Execution
from ..cluster.shards import Shards
from ..shard.coordinates import unwhitened
from ..shard.nuts import Settings
from . import gaussian
from .reports import Combined, FitSettings, Round
from .subposterior import RoundSettings, _map_reduce, _noise


def one_shot(
    fit_settings: FitSettings,
    shards: Shards,
    settings: Settings,
    execution: Execution,
    *,
    parametric: bool = False,
) -> Combined:
    """Sample every shard once under its share of the prior, and combine.

    Parameters
    ----------
    fit_settings : FitSettings
    shards : Shards
    settings : Settings
    execution : Execution
    parametric : bool
        Draw from the product of Gaussians (Neiswanger et al. 2014) instead of averaging draws
        (Scott et al. 2016).
    """
    d = fit_settings.model.dim
    began = time.perf_counter()
    round_settings = RoundSettings(
        0, settings, np.zeros(d), np.zeros((d, d)), unwhitened(d), warm=False
    )
    total, reports, _ = _map_reduce(
        fit_settings, round_settings, shards, [None] * len(shards.parts), execution
    )
    mean, covariance = gaussian.covariance_of(total)
    if len(shards.parts) == 1:
        draws = total.draws
        mean, covariance = gaussian.moments(draws)
    elif parametric:
        rng = np.random.default_rng([fit_settings.seed, len(shards.parts)])
        draws = gaussian.gaussian_draws(mean, covariance, total.draws.shape[:2], rng)
    else:
        draws = gaussian.consensus_draws(total)
    seconds = time.perf_counter() - began
    noise = _noise(reports, 0.0)
    only = Round(reports, mean, covariance, *round_settings[2:4], 0.0, np.nan, noise, seconds)
    return Combined(draws, mean, covariance, [only])
