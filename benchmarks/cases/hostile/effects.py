"""Effects of groups, or of rows, whose density is nothing like a normal one.

Their references integrate every effect on a dense grid, from what a group's rows add up to.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from jax.scipy.special import betaln, logsumexp

from ..case import Problem
from .trial import CHAINS, EFFECTS, WEIGHTS, statistics, trial

HALVES = np.array([0.5, 0.5])


def grouped(rng: np.random.Generator, effects: np.ndarray, each: int, sigma: float) -> pd.DataFrame:
    """Rows of groups that have these effects."""
    group = np.repeat(np.arange(len(effects)), each)
    return pd.DataFrame({"group": group, "y": rng.normal(effects[group], sigma)})


def normal_log_likelihood(data: dict[str, Any], mean: Any, sigma: Any) -> Any:
    """Of every group (axis 0) at every value of its mean (the axes that follow)."""
    n, squares, center = (
        jnp.expand_dims(data[name], tuple(range(1, jnp.ndim(mean))))
        for name in ("n", "squares", "mean")
    )
    return -n * jnp.log(sigma) - (squares + n * (center - mean) ** 2) / (2 * sigma**2)


def integral(log_values: Any, step: Any) -> Any:
    """Log of the integral over the last axis by the trapezoidal rule, ends being negligible."""
    return logsumexp(log_values, axis=-1) + jnp.log(step)


def by_statistics(model: Any, start: dict[str, Any], by: str = "group") -> Any:
    """Make a reference's problem from a model of ``n, mean, squares``."""
    return lambda frame: Problem(model, statistics(frame, by), start, tuple(start))


# Two humps

BIMODAL = {"mu": 0.0, "gap": 1.6, "tau": 0.4, "sigma": 2.5}


def bimodal_rows(rng: np.random.Generator) -> pd.DataFrame:
    humps = rng.choice([-1.6, 1.6], 60)
    return grouped(rng, humps + 0.4 * rng.normal(size=60), 20, 2.5)


def _bimodal_shared() -> Any:
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    gap = numpyro.sample("gap", dist.HalfNormal(2.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(5.0))
    humps = dist.Normal(jnp.stack([mu - gap, mu + gap]), tau)
    return dist.MixtureSameFamily(dist.Categorical(probs=HALVES), humps), sigma


def bimodal_by_hand(n, mean, squares):
    effects, sigma = _bimodal_shared()
    b = jnp.linspace(-9.0, 9.0, 241)[:, None]
    known = normal_log_likelihood({"n": n, "mean": mean, "squares": squares}, b.T, sigma)
    numpyro.factor("rows", integral(effects.log_prob(b[:, 0]) + known, 18.0 / 240))


@trial(
    "bimodal-effects",
    draw=bimodal_rows,
    by="group",
    by_hand=by_statistics(bimodal_by_hand, BIMODAL),
    truths=EFFECTS,
)
def bimodal_effects(group, y=None, *, n_group):
    effects, sigma = _bimodal_shared()
    with numpyro.plate("groups", n_group):
        alpha = numpyro.sample("alpha", effects)
    with numpyro.plate("rows", len(group)):
        numpyro.sample("obs", dist.Normal(alpha[group], sigma), obs=y)


# Skew, and bounds

SKEWED = {"mu": 1.0, "rate": 0.7, "sigma": 1.0}


def skewed_rows(rng: np.random.Generator) -> pd.DataFrame:
    return grouped(rng, 1.0 + rng.exponential(1 / 0.7, 120), 4, 1.0)


def _skewed_shared() -> Any:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    rate = numpyro.sample("rate", dist.Gamma(2.0, 2.0))
    return mu, dist.Exponential(rate), numpyro.sample("sigma", dist.HalfNormal(3.0))


def skewed_by_hand(n, mean, squares):
    mu, effects, sigma = _skewed_shared()
    log_b = jnp.linspace(-14.0, 4.0, 241)
    b = jnp.exp(log_b)
    known = normal_log_likelihood({"n": n, "mean": mean, "squares": squares}, (mu + b)[None], sigma)
    numpyro.factor("rows", integral(effects.log_prob(b) + log_b + known, 18.0 / 240))


@trial(
    "skewed-effects",
    draw=skewed_rows,
    by="group",
    by_hand=by_statistics(skewed_by_hand, SKEWED),
    truths=EFFECTS,
)
def skewed_effects(group, y=None, *, n_group):
    mu, effects, sigma = _skewed_shared()
    with numpyro.plate("groups", n_group):
        alpha = numpyro.sample("alpha", effects)
    with numpyro.plate("rows", len(group)):
        numpyro.sample("obs", dist.Normal(mu + alpha[group], sigma), obs=y)


BOUNDED = {"share": 0.4, "size": 1.0}


def bounded_rows(rng: np.random.Generator) -> pd.DataFrame:
    group = np.repeat(np.arange(150), 6)
    return pd.DataFrame({"group": group, "y": rng.random(900) < rng.beta(0.4, 0.6, 150)[group]})


def _bounded_shared() -> Any:
    share = numpyro.sample("share", dist.Uniform(0.0, 1.0))
    size = numpyro.sample("size", dist.Gamma(1.0, 0.2))
    return share * size, (1 - share) * size


def bounded_by_hand(n, mean):
    a, b = _bounded_shared()
    numpyro.factor("rows", betaln(a + n * mean, b + n * (1 - mean)) - betaln(a, b))


def _bounded_problem(frame: pd.DataFrame) -> Problem:
    data = statistics(frame.astype({"y": float}), "group")
    del data["squares"]
    return Problem(bounded_by_hand, data, BOUNDED, tuple(BOUNDED))


@trial("bounded-effects", draw=bounded_rows, by="group", by_hand=_bounded_problem, truths=EFFECTS)
def bounded_effects(group, y=None, *, n_group):
    a, b = _bounded_shared()
    with numpyro.plate("groups", n_group):
        p = numpyro.sample("p", dist.Beta(a, b))
    with numpyro.plate("rows", len(group)):
        numpyro.sample("obs", dist.Bernoulli(probs=p[group]), obs=y)


# Squares, and heavy tails

SQUARES = {"mu": 0.0, "tau": 1.0, "sigma": 1.0}


def square_rows(rng: np.random.Generator) -> pd.DataFrame:
    return grouped(rng, rng.normal(size=60) ** 2, 12, 1.0)


def _spread_shared() -> Any:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfNormal(2.0))
    return mu, tau, numpyro.sample("sigma", dist.HalfNormal(3.0))


def square_by_hand(n, mean, squares):
    mu, tau, sigma = _spread_shared()
    t = jnp.linspace(0.0, 7.5, 251)[1:] - 0.015  # midpoints of one half, the other being its image
    known = normal_log_likelihood(
        {"n": n, "mean": mean, "squares": squares}, (mu + (tau * t) ** 2)[None], sigma
    )
    numpyro.factor("rows", integral(-0.5 * t**2 + known, 0.03))


@trial(
    "local-squares",
    draw=square_rows,
    by="group",
    by_hand=by_statistics(square_by_hand, SQUARES),
    truths=EFFECTS,
)
def local_squares(group, y=None, *, n_group):
    mu, tau, sigma = _spread_shared()
    with numpyro.plate("groups", n_group):
        b = numpyro.sample("b", dist.Normal(0.0, tau))
    with numpyro.plate("rows", len(group)):
        numpyro.sample("obs", dist.Normal(mu + b[group] ** 2, sigma), obs=y)


HORSESHOE = {"mu": 0.0, "tau": 0.3, "sigma": 1.0}


def horseshoe_rows(rng: np.random.Generator) -> pd.DataFrame:
    effects = 0.2 * rng.normal(size=60) * np.abs(np.tan(0.49 * np.pi * rng.random(60)))
    return grouped(rng, effects, 12, 1.0)


def local_horseshoe_by_hand(n, mean, squares):
    mu, tau, sigma = _spread_shared()
    log_scale = jnp.linspace(-12.0, 12.0, 161)
    local = dist.HalfCauchy(1.0).log_prob(jnp.exp(log_scale)) + log_scale
    # Given its scale an effect is normal, and so is the mean of its group's rows.
    spread = jnp.hypot(tau * jnp.exp(log_scale)[None], sigma / jnp.sqrt(n)[:, None])
    known = dist.Normal(mu, spread).log_prob(mean[:, None])
    within = -(n - 1) * jnp.log(sigma) - squares / (2 * sigma**2)
    numpyro.factor("rows", integral(local + known, 24.0 / 160) + within)


@trial(
    "local-horseshoe",
    draw=horseshoe_rows,
    by="group",
    by_hand=by_statistics(local_horseshoe_by_hand, HORSESHOE),
    truths=(*EFFECTS, *CHAINS),
)
def local_horseshoe(group, y=None, *, n_group):
    mu, tau, sigma = _spread_shared()
    with numpyro.plate("groups", n_group):
        scale = numpyro.sample("scale", dist.HalfCauchy(1.0))
        b = numpyro.sample("b", dist.Normal(mu, tau * scale))
    with numpyro.plate("rows", len(group)):
        numpyro.sample("obs", dist.Normal(b[group], sigma), obs=y)


STUDENT = {"mu": 1.0, "tau": 0.5, "sigma": 1.0, "nu": 3.0}


def student_rows(rng: np.random.Generator) -> pd.DataFrame:
    return grouped(rng, 1.0 + 0.5 * rng.standard_t(2.0, 80), 10, 1.0)


def student_by_hand(n, mean, squares):
    mu, tau, sigma = _spread_shared()
    nu = numpyro.sample("nu", dist.Gamma(2.0, 0.1))
    # Dense where effects may lie, wide for those far out: a grid about each group's own mean.
    width = sigma / jnp.sqrt(n)[:, None]
    b = mean[:, None] + width * jnp.linspace(-9.0, 9.0, 91)[None]
    known = normal_log_likelihood({"n": n, "mean": mean, "squares": squares}, b, sigma)
    log_prior = dist.StudentT(nu, mu, tau).log_prob(b)
    numpyro.factor("rows", integral(log_prior + known, width[:, 0] / 5))


@trial(
    "student-effects",
    draw=student_rows,
    by="group",
    by_hand=by_statistics(student_by_hand, STUDENT),
    truths=(*EFFECTS, *WEIGHTS),
)
def student_effects(group, y=None, *, n_group):
    mu, tau, sigma = _spread_shared()
    nu = numpyro.sample("nu", dist.Gamma(2.0, 0.1))
    with numpyro.plate("groups", n_group):
        b = numpyro.sample("b", dist.StudentT(nu, mu, tau))
    with numpyro.plate("rows", len(group)):
        numpyro.sample("obs", dist.Normal(b[group], sigma), obs=y)
