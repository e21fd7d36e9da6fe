"""Cases built to fail: no sampler of shards can be trusted on them, and the verdict must say so."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from scipy.special import expit

from .case import case, takes


def two_modes(rows: int = 2_000) -> pd.DataFrame:
    rng = np.random.default_rng(41)
    centres = np.where(rng.random(rows) < 0.5, -1.5, 1.5)
    return pd.DataFrame({"y": centres + rng.normal(size=rows)})


@case("label-switching", frame=two_modes, fails="two symmetric modes", full=False)
def mixture(y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    halves = dist.Categorical(probs=jnp.array([0.5, 0.5]))
    components = dist.Normal(mu, sigma)
    with numpyro.plate("rows", len(y)):
        numpyro.sample("obs", dist.MixtureSameFamily(halves, components), obs=y)


def one_stranger(clinics: int = 8, each: int = 500) -> pd.DataFrame:
    rng = np.random.default_rng(42)
    clinic = np.repeat(np.arange(clinics), each)
    x = rng.normal(size=len(clinic))
    strange = clinic == 5
    y = np.where(strange, 3.0 - 1.0 * x, 1.0 + 0.5 * x) + rng.normal(size=len(clinic))
    return pd.DataFrame({"clinic": clinic, "x": x, "y": y})


@case(
    "strange-shard",
    frame=one_stranger,
    by="clinic",
    start={"alpha": 1.25, "beta": 0.3, "sigma": 1.3},
    fails="one shard from another population",
)
def regression(x, y=None):
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 5.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 5.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(5.0))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal(alpha + beta * x, sigma), obs=y)


def grouped_rows(groups: int, each: int, tau: float, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), each)
    x = rng.normal(size=len(group))
    y = 1.0 + tau * rng.normal(size=groups)[group] + 0.5 * x + rng.normal(size=len(group))
    return pd.DataFrame({"group": group, "x": x, "y": y})


@case(
    "coupled",
    frame=lambda: grouped_rows(40, 20, 0.8, seed=43),
    by="group",
    start={"beta": 0.5, "tau": 0.8, "sigma": 1.0, "mu": 1.0},
    fails="effects that couple groups",
    toy=lambda: grouped_rows(8, 6, 0.8, seed=43),
)
def coupled(group, x, y=None, *, n_group):
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.0))
    tau = numpyro.sample("tau", dist.HalfNormal(2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    with numpyro.plate("groups", n_group):
        alpha = numpyro.sample("alpha", dist.Normal(0.0, tau))
    effect = mu + alpha - alpha.mean()
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal(effect[group] + beta * x, sigma), obs=y)


def separated(rows: int = 800) -> pd.DataFrame:
    rng = np.random.default_rng(44)
    y = (rng.random(rows) < 0.5).astype(float)
    x = np.where(y == 1, 1.0, -1.0) * rng.uniform(0.5, 2.5, rows)
    return pd.DataFrame({"x": x, "y": y})


@case("separation", frame=separated, fails="perfect separation under Cauchy priors", full=False)
def separated_model(x, y=None):
    alpha = numpyro.sample("alpha", dist.Cauchy(0.0, 10.0))
    beta = numpyro.sample("beta", dist.Cauchy(0.0, 2.5))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Bernoulli(logits=alpha + beta * x), obs=y)


WIDE = [f"x{i}" for i in range(199)]


def few_rows(rows: int = 800) -> pd.DataFrame:
    rng = np.random.default_rng(45)
    x = rng.normal(size=(rows, len(WIDE)))
    y = rng.random(rows) < expit(x @ rng.normal(0.0, 0.2, len(WIDE)))
    return pd.DataFrame(x, columns=WIDE).assign(y=y.astype(float))


@case(
    "wide",
    frame=few_rows,
    shards=(4,),
    start={"alpha": 0.0, "beta": np.zeros(len(WIDE))},
    fails="200 shared parameters, 200 rows a shard",
)
@takes([*WIDE, "y"])
def wide_model(y=None, **predictors):
    x = jnp.stack([predictors[name] for name in WIDE], axis=1)
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 2.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 1.0).expand([len(WIDE)]).to_event(1))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Bernoulli(logits=alpha + x @ beta), obs=y)


def no_doses(rows: int = 800) -> pd.DataFrame:
    rng = np.random.default_rng(46)
    x = rng.normal(size=rows)
    return pd.DataFrame({"x": x, "dose": 0.0, "y": 1.0 + 0.5 * x + rng.normal(size=rows)})


@case("heavy-tails", frame=no_doses, fails="a Cauchy posterior", full=False)
def unidentified(x, dose, y=None):
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 5.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 5.0))
    effect = numpyro.sample("effect", dist.Cauchy(0.0, 2.5))
    sigma = numpyro.sample("sigma", dist.HalfNormal(5.0))
    mean = alpha + beta * x + effect * dose
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal(mean, sigma), obs=y)


@case(
    "few-groups",
    frame=lambda: grouped_rows(24, 20, 0.03, seed=47),
    by="group",
    start={"mu": 1.0, "beta": 0.5, "tau": 0.05, "sigma": 1.0},
    centred={"alpha": 0.0},
    fails="three groups a shard, variance near zero",
)
def random_intercepts(group, x, y=None, *, n_group):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(5.0))
    with numpyro.plate("groups", n_group):
        alpha = numpyro.sample("alpha", dist.Normal(mu, tau))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal(alpha[group] + beta * x, sigma), obs=y)
