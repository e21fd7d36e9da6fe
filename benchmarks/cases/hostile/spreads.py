"""Spreads that groups, or rows, have of their own, and a spread of nothing."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd

from ..case import Problem
from .effects import by_statistics, grouped, integral
from .trial import CHAINS, EFFECTS, WEIGHTS, trial

UNEVEN = {"mu": 1.0, "tau": 0.7, "level": 0.0, "spread": 0.6}


def uneven_rows(rng: np.random.Generator) -> pd.DataFrame:
    sigma = np.exp(0.6 * rng.normal(size=70))
    return grouped(rng, 1.0 + 0.7 * rng.normal(size=70), 8, np.repeat(sigma, 8))


def _uneven_shared() -> Any:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfNormal(2.0))
    level = numpyro.sample("level", dist.Normal(0.0, 2.0))
    return mu, tau, level, numpyro.sample("spread", dist.HalfNormal(1.0))


def uneven_by_hand(n, mean, squares):
    mu, tau, level, spread = _uneven_shared()
    t = jnp.linspace(-8.0, 8.0, 107)
    sigma = jnp.exp(level + spread * t)[None]
    n = n[:, None]
    known = dist.Normal(mu, jnp.hypot(tau, sigma / jnp.sqrt(n))).log_prob(mean[:, None])
    known += -(n - 1) * jnp.log(sigma) - squares[:, None] / (2 * sigma**2)
    numpyro.factor("rows", integral(-0.5 * t**2 + known, 16.0 / 106))


@trial(
    "heteroscedastic",
    draw=uneven_rows,
    by="group",
    by_hand=by_statistics(uneven_by_hand, UNEVEN),
    truths=(*EFFECTS, *WEIGHTS),
)
def heteroscedastic(group, y=None, *, n_group):
    mu, tau, level, spread = _uneven_shared()
    with numpyro.plate("groups", n_group):
        alpha = numpyro.sample("alpha", dist.Normal(mu, tau))
        log_sigma = numpyro.sample("log_sigma", dist.Normal(level, spread))
    with numpyro.plate("rows", len(group)):
        numpyro.sample("obs", dist.Normal(alpha[group], jnp.exp(log_sigma[group])), obs=y)


ROWS = {"alpha": 0.5, "beta": 0.4, "spread": 0.8}


def dispersed_rows(rng: np.random.Generator) -> pd.DataFrame:
    x = rng.normal(size=1_000)
    rate = np.exp(0.5 + 0.4 * x + 0.8 * rng.normal(size=1_000))
    return pd.DataFrame({"x": x, "y": rng.poisson(rate)})


def _dispersed_shared() -> Any:
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 2.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.0))
    return alpha, beta, numpyro.sample("spread", dist.HalfNormal(1.0))


def dispersed_by_hand(x, y):
    alpha, beta, spread = _dispersed_shared()
    t = jnp.linspace(-7.0, 7.0, 71)
    log_rate = (alpha + beta * x)[:, None] + spread * t
    known = y[:, None] * log_rate - jnp.exp(log_rate)
    numpyro.factor("rows", integral(known - 0.5 * t**2, 14.0 / 70))


def _dispersed_problem(frame: pd.DataFrame) -> Problem:
    data = {name: frame[name].to_numpy(np.float64) for name in "xy"}
    return Problem(dispersed_by_hand, data, ROWS, tuple(ROWS))


@trial("row-effects", draw=dispersed_rows, by_hand=_dispersed_problem, truths=(*EFFECTS, *WEIGHTS))
def row_effects(x, y=None):
    alpha, beta, spread = _dispersed_shared()
    with numpyro.plate("rows", len(x)):
        extra = numpyro.sample("extra", dist.Normal(0.0, spread))
        numpyro.sample("obs", dist.Poisson(jnp.exp(alpha + beta * x + extra)), obs=y)


NEAR_ZERO = {"mu": 1.0, "tau": 0.05, "sigma": 1.0}


def near_zero_rows(rng: np.random.Generator) -> pd.DataFrame:
    return grouped(rng, np.full(24, 1.0), 40, 1.0)


def _near_zero_shared() -> Any:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(1.0))
    return mu, tau, numpyro.sample("sigma", dist.HalfNormal(3.0))


def near_zero_by_hand(n, mean, squares):
    mu, tau, sigma = _near_zero_shared()
    known = dist.Normal(mu, jnp.hypot(tau, sigma / jnp.sqrt(n))).log_prob(mean)
    numpyro.factor("rows", known - (n - 1) * jnp.log(sigma) - squares / (2 * sigma**2))


@trial(
    "variance-of-zero",
    draw=near_zero_rows,
    by="group",
    by_hand=by_statistics(near_zero_by_hand, NEAR_ZERO),
    truths=(*WEIGHTS, *CHAINS),
)
def variance_of_zero(group, y=None, *, n_group):
    mu, tau, sigma = _near_zero_shared()
    with numpyro.plate("groups", n_group):
        alpha = numpyro.sample("alpha", dist.Normal(mu, tau))
    with numpyro.plate("rows", len(group)):
        numpyro.sample("obs", dist.Normal(alpha[group], sigma), obs=y)
