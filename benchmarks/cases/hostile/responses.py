"""Responses, and arrangements of groups, that a Gaussian of unconstrained sites fits badly."""

from __future__ import annotations

from itertools import product

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from jax.scipy.special import gammaln
from scipy.special import expit

from ..case import Problem
from .trial import EFFECTS, WEIGHTS, Moments, codes, moments_on_grid, trial

ALL = (*EFFECTS, *WEIGHTS)


# Counts and kinds

KINDS = {"share": np.array([0.4, 0.3, 0.2, 0.1]), "size": 3.0}


def kind_rows(rng: np.random.Generator) -> pd.DataFrame:
    p = rng.dirichlet(3.0 * KINDS["share"], 80)
    kind = np.concatenate([rng.choice(4, 12, p=each) for each in p])
    return pd.DataFrame({"group": codes(80, 12), "kind": kind})


def kinds_by_hand(counts):
    share = numpyro.sample("share", dist.Dirichlet(jnp.ones(4)))
    size = numpyro.sample("size", dist.Gamma(2.0, 0.3))
    of_kinds = (gammaln(size * share + counts) - gammaln(size * share)).sum(axis=1)
    numpyro.factor("rows", of_kinds + gammaln(size) - gammaln(size + counts.sum(axis=1)))


def _kinds_problem(frame: pd.DataFrame) -> Problem:
    counts = pd.crosstab(frame["group"], frame["kind"]).reindex(columns=range(4), fill_value=0)
    return Problem(kinds_by_hand, {"counts": counts.to_numpy(np.float64)}, KINDS, tuple(KINDS))


@trial("dirichlet-multinomial", draw=kind_rows, by="group", by_hand=_kinds_problem, truths=ALL)
def dirichlet_multinomial(group, kind=None, *, n_group):
    share = numpyro.sample("share", dist.Dirichlet(jnp.ones(4)))
    size = numpyro.sample("size", dist.Gamma(2.0, 0.3))
    with numpyro.plate("groups", n_group):
        p = numpyro.sample("p", dist.Dirichlet(size * share))
    with numpyro.plate("rows", len(group)):
        numpyro.sample("obs", dist.Categorical(probs=p[group]), obs=kind)


def zero_rows(rng: np.random.Generator) -> pd.DataFrame:
    group, x = codes(60, 15), rng.normal(size=900)
    y = rng.poisson(np.exp(0.3 + rng.normal(0.0, 0.5, 60)[group] + 0.3 * x))
    return pd.DataFrame({"group": group, "x": x, "y": np.where(rng.random(900) < 0.25, 0, y)})


@trial(
    "zero-inflated",
    draw=zero_rows,
    by="group",
    start={"gate": 0.25, "alpha": 0.3, "beta": 0.3, "tau": 0.5},
    centred={"a": 0.5},
    truths=ALL,
)
def zero_inflated(group, x, y=None, *, n_group):
    gate = numpyro.sample("gate", dist.Beta(1.0, 1.0))
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 2.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("groups", n_group):
        a = numpyro.sample("a", dist.Normal(alpha, tau))
    rate = jnp.exp(a[group] + beta * x)
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.ZeroInflatedPoisson(gate, rate), obs=y)


def negative_binomial_rows(rng: np.random.Generator) -> pd.DataFrame:
    group, x = codes(60, 15), rng.normal(size=900)
    mean = np.exp(1.0 + rng.normal(0.0, 0.5, 60)[group] + 0.4 * x)
    return pd.DataFrame(
        {"group": group, "x": x, "y": rng.poisson(mean * rng.gamma(1.5, 1 / 1.5, 900))}
    )


@trial(
    "negative-binomial-effects",
    draw=negative_binomial_rows,
    by="group",
    start={"alpha": 1.0, "beta": 0.4, "tau": 0.5, "size": 1.5},
    centred={"a": 0.5},
    truths=ALL,
)
def negative_binomial(group, x, y=None, *, n_group):
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 2.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    size = numpyro.sample("size", dist.Gamma(2.0, 0.5))
    with numpyro.plate("groups", n_group):
        a = numpyro.sample("a", dist.Normal(alpha, tau))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.NegativeBinomial2(jnp.exp(a[group] + beta * x), size), obs=y)


def trial_rows(rng: np.random.Generator) -> pd.DataFrame:
    x, n = rng.normal(size=800), rng.integers(1, 12, 800)
    return pd.DataFrame({"x": x, "n": n, "y": rng.binomial(n, expit(-0.5 + 0.6 * x))})


def _log_rising(base: np.ndarray, count: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Log of base (base + 1/size) ... with `count` factors, added over rows, for every size."""
    total = np.zeros(len(size))
    for k in range(count.max()):
        total += np.log(base[count > k] + k / size[:, None]).sum(axis=1)
    return total


def _trial_moments(frame: pd.DataFrame) -> Moments:
    """Sum over a grid; divided by the size, factors stay apart however large it is."""
    x, n, y = (frame[name].to_numpy() for name in "xny")
    design, at = np.stack([np.ones(len(x)), x], axis=1), np.zeros(2)
    for _ in range(20):
        p = expit(design @ at)
        covariance = np.linalg.inv(design.T @ (design * (n * p * (1 - p))[:, None]))
        at = at + covariance @ design.T @ (y - n * p)
    steps = np.linspace(-6.5, 6.5, 27)
    alpha, beta = at[:, None] + np.sqrt(np.diag(covariance))[:, None] * steps
    log_size = np.linspace(2.0, 22.0, 101)
    size = np.exp(log_size)
    heights = np.empty((27, 27, 101))
    whole = _log_rising(np.ones(len(x)), n, size)
    for i, j in product(range(27), repeat=2):
        p = expit(alpha[i] + beta[j] * x)
        heights[i, j] = _log_rising(p, y, size) + _log_rising(1 - p, n - y, size) - whole
    heights += log_size - np.log1p((size / 50.0) ** 2)
    heights -= (alpha[:, None, None] ** 2 + beta[:, None] ** 2) / 8.0
    return moments_on_grid(heights, {"alpha": alpha, "beta": beta, "size": log_size})


# Binomial counts have no dispersion of their own: the prior's long tail of `size` is left as it is.
@trial("beta-binomial", draw=trial_rows, exact=_trial_moments, truths=ALL)
def beta_binomial(x, n, y=None):
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 2.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.0))
    size = numpyro.sample("size", dist.HalfCauchy(50.0))
    p = 1 / (1 + jnp.exp(-(alpha + beta * x)))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.BetaBinomial(size * p, size * (1 - p), n), obs=y)


CUTS = np.array([-1.0, 0.0, 1.2])


def ordinal_rows(rng: np.random.Generator) -> pd.DataFrame:
    group, x = codes(60, 12), rng.normal(size=720)
    latent = rng.normal(0.0, 0.8, 60)[group] + 0.7 * x + rng.logistic(size=720)
    return pd.DataFrame({"group": group, "x": x, "y": np.searchsorted(CUTS, latent)})


@trial(
    "ordinal",
    draw=ordinal_rows,
    by="group",
    start={"cuts": CUTS, "beta": 0.7, "tau": 0.8},
    centred={"a": 0.0},
    truths=ALL,
)
def ordinal(group, x, y=None, *, n_group):
    steps = dist.Normal(jnp.zeros(3), 3.0).to_event(1)
    order = dist.transforms.OrderedTransform()
    cuts = numpyro.sample("cuts", dist.TransformedDistribution(steps, order))
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("groups", n_group):
        a = numpyro.sample("a", dist.Normal(0.0, tau))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.OrderedLogistic(a[group] + beta * x, cuts), obs=y)


# Measurements


def lifetime_rows(rng: np.random.Generator) -> pd.DataFrame:
    group, x = codes(50, 16), rng.normal(size=800)
    scale = np.exp(1.0 + rng.normal(0.0, 0.4, 50)[group] + 0.3 * x)
    time, end = scale * rng.weibull(1.4, 800), rng.uniform(0.5, 8.0, 800)
    return pd.DataFrame({"group": group, "x": x, "time": np.minimum(time, end), "dead": time < end})


@trial(
    "weibull-censored",
    draw=lifetime_rows,
    by="group",
    start={"alpha": 1.0, "beta": 0.3, "tau": 0.4, "shape": 1.4},
    centred={"a": 0.5},
    truths=ALL,
)
def weibull_censored(group, x, time, dead, *, n_group):
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 2.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    shape = numpyro.sample("shape", dist.Gamma(2.0, 1.0))
    with numpyro.plate("groups", n_group):
        a = numpyro.sample("a", dist.Normal(alpha, tau))
    log_ratio = shape * (jnp.log(time) - a[group] - beta * x)
    log_hazard = jnp.log(shape) + log_ratio - jnp.log(time)
    with numpyro.plate("rows", len(x)):
        numpyro.factor("lifetimes", jnp.where(dead, log_hazard, 0.0) - jnp.exp(log_ratio))


MEASURED = {"center": 1.0, "spread": 1.0, "alpha": 0.5, "beta": 0.8, "sigma": 0.6}


def measured_rows(rng: np.random.Generator) -> pd.DataFrame:
    true = rng.normal(1.0, 1.0, 1_000)
    seen = true + rng.normal(0.0, 0.5, 1_000)
    return pd.DataFrame({"seen": seen, "y": rng.normal(0.5 + 0.8 * true, 0.6)})


def _measured_shared():
    center = numpyro.sample("center", dist.Normal(0.0, 5.0))
    spread = numpyro.sample("spread", dist.HalfNormal(3.0))
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 5.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 5.0))
    return center, spread, alpha, beta, numpyro.sample("sigma", dist.HalfNormal(3.0))


def measured_by_hand(rows):
    center, spread, alpha, beta, sigma = _measured_shared()
    both = beta * spread**2
    covariance = jnp.array([[spread**2 + 0.25, both], [both, beta * both + sigma**2]])
    mean = jnp.array([center, alpha + beta * center])
    numpyro.sample("obs", dist.MultivariateNormal(mean, covariance), obs=rows)


@trial(
    "measurement-error",
    draw=measured_rows,
    by_hand=lambda frame: Problem(
        measured_by_hand, {"rows": frame[["seen", "y"]].to_numpy()}, MEASURED, tuple(MEASURED)
    ),
    truths=ALL,
)
def measurement_error(seen, y=None):
    center, spread, alpha, beta, sigma = _measured_shared()
    with numpyro.plate("rows", len(seen)):
        true = numpyro.sample("true", dist.Normal(center, spread))
        numpyro.sample("measured", dist.Normal(true, 0.5), obs=seen)
        numpyro.sample("obs", dist.Normal(alpha + beta * true, sigma), obs=y)


def outlier_rows(rng: np.random.Generator) -> pd.DataFrame:
    group, x = codes(50, 16), rng.normal(size=800)
    y = 1.0 + rng.normal(0.0, 0.7, 50)[group] + 0.5 * x + rng.standard_t(2.0, 800)
    return pd.DataFrame({"group": group, "x": x, "y": y})


@trial(
    "student-errors",
    draw=outlier_rows,
    by="group",
    start={"alpha": 1.0, "beta": 0.5, "tau": 0.7, "sigma": 1.0, "nu": 2.5},
    centred={"a": 0.5},
    truths=ALL,
)
def student_errors(group, x, y=None, *, n_group):
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 5.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfNormal(2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(3.0))
    nu = numpyro.sample("nu", dist.Gamma(2.0, 0.1))
    with numpyro.plate("groups", n_group):
        a = numpyro.sample("a", dist.Normal(alpha, tau))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.StudentT(nu, a[group] + beta * x, sigma), obs=y)
