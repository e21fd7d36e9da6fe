"""One-shot consensus: every shard sampled once, under its share of the prior."""

from __future__ import annotations

import time

import numpy as np

from ..cluster.client import say
from ..cluster.shards import Shards
from ..shard.coordinates import unwhitened
from ..shard.nuts import NutsSettings
from . import gaussian
from .reports import Anchor, Combined, FitSettings, Round
from .subposterior import RoundSettings, monte_carlo_error, sample_round


def one_shot(
    fit_settings: FitSettings,
    nuts: NutsSettings,
    shards: Shards,
    *,
    parametric: bool = False,
) -> Combined:
    """Sample every shard once under its share of the prior, and combine.

    Parameters
    ----------
    fit_settings : FitSettings
    nuts : NutsSettings
    shards : Shards
    parametric : bool
        Draw from the product of Gaussians (Neiswanger et al. 2014) instead of averaging draws
        (Scott et al. 2016).
    """
    d = fit_settings.model.dim
    began = time.perf_counter()
    none = Anchor(np.zeros(d), np.zeros((d, d)), 0.0)
    settings = RoundSettings(0, fit_settings, nuts, none, unwhitened(d), warm=False)
    total, reports, _ = sample_round(settings, shards, [None] * shards.n)
    mean, covariance = gaussian.moments_of(total)
    method = "parametric" if parametric else "consensus"
    if shards.n == 1:
        method, draws = "nuts", total.draws
        mean, covariance = gaussian.moments(draws)
    elif parametric:
        rng = np.random.default_rng([fit_settings.seed, shards.n])
        draws = gaussian.gaussian_draws(mean, covariance, total.draws.shape[:2], rng)
    else:
        draws = gaussian.consensus_draws(total)
    seconds = time.perf_counter() - began
    noise = monte_carlo_error(reports, 0.0)
    say(f"Monte Carlo error {noise:.2g} sds")
    only = Round(reports, mean, covariance, none, np.nan, noise, seconds)
    return Combined(draws, mean, covariance, [only], method)
