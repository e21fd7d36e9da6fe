"""Many shared sites, shared sites that funnel, and data that are awkward to compute with."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from numpyro.distributions import constraints
from scipy.special import expit

from ..case import Problem, takes
from ..failing import grouped_rows
from .trial import CHAINS, WEIGHTS, Moments, moments_on_grid, statistics, trial

FAR = (*WEIGHTS, *CHAINS)


def names(count: int) -> list[str]:
    return [f"x{i}" for i in range(count)]


def predictors(rng: np.random.Generator, rows: int, count: int, shared: float) -> np.ndarray:
    """Correlated through a part that all have."""
    return rng.normal(size=(rows, count)) + shared * rng.normal(size=(rows, 1))


def stacked(columns: dict) -> jnp.ndarray:
    return jnp.stack([columns[name] for name in names(len(columns))], axis=1)


# Wide


def wide_rows(rng: np.random.Generator) -> pd.DataFrame:
    x = predictors(rng, 1_500, 60, 1.0)
    y = rng.normal(x @ rng.normal(0.0, 0.3, 60), 1.0)
    return pd.DataFrame(x, columns=names(60)).assign(y=y)


@trial(
    "wide-60",
    draw=wide_rows,
    start={"alpha": 0.0, "beta": np.zeros(60), "sigma": 1.0},
    truths=FAR,
)
@takes([*names(60), "y"])
def wide_60(y=None, **columns):
    x = stacked(columns)
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 2.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 1.0).expand([60]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal(alpha + x @ beta, sigma), obs=y)


def wider_rows(rng: np.random.Generator) -> pd.DataFrame:
    x = predictors(rng, 2_400, 119, 0.3)
    y = rng.random(2_400) < expit(x @ rng.normal(0.0, 0.2, 119))
    return pd.DataFrame(x, columns=names(119)).assign(y=y.astype(float))


@trial("wide-120", draw=wider_rows, start={"alpha": 0.0, "beta": np.zeros(119)}, truths=FAR)
@takes([*names(119), "y"])
def wide_120(y=None, **columns):
    x = stacked(columns)
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 2.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 1.0).expand([119]).to_event(1))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Bernoulli(logits=alpha + x @ beta), obs=y)


# Funnels among the shared sites


def sparse_rows(rng: np.random.Generator) -> pd.DataFrame:
    x = predictors(rng, 600, 20, 0.5)
    beta = np.where(np.arange(20) < 4, [0.6, -0.4, 0.25, 0.15] * 5, 0.0)
    return pd.DataFrame(x, columns=names(20)).assign(y=rng.normal(x @ beta, 1.0))


SPARSE = {"tau": 0.1, "scale": np.ones(20), "beta": np.zeros(20), "sigma": 1.0}


@trial(
    "horseshoe",
    draw=sparse_rows,
    start=SPARSE,
    centred={"beta": 0.0},
    truths=FAR,
)
@takes([*names(20), "y"])
def horseshoe(y=None, **columns):
    x = stacked(columns)
    tau = numpyro.sample("tau", dist.HalfCauchy(0.1))
    scale = numpyro.sample("scale", dist.HalfCauchy(1.0).expand([20]).to_event(1))
    beta = numpyro.sample("beta", dist.Normal(0.0, tau * scale).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal(x @ beta, sigma), obs=y)


def month_rows(rng: np.random.Generator) -> pd.DataFrame:
    month = np.tile(np.arange(24), 50)
    level = np.cumsum(0.15 * rng.normal(size=24))
    return pd.DataFrame({"month": month, "y": rng.poisson(np.exp(0.5 + level[month]))})


@trial(
    "random-walk",
    draw=month_rows,
    start={"begin": 0.5, "step": np.zeros(24), "tau": 0.15},
    truths=FAR,
)
def random_walk(month, y=None):
    begin = numpyro.sample("begin", dist.Normal(0.0, 2.0))
    tau = numpyro.sample("tau", dist.HalfNormal(0.5))
    step = numpyro.sample("step", dist.Normal(0.0, 1.0).expand([24]).to_event(1))
    level = begin + tau * jnp.cumsum(step)
    with numpyro.plate("rows", len(month)):
        numpyro.sample("obs", dist.Poisson(jnp.exp(level[month])), obs=y)


# Columns that are awkward


def unscaled_rows(rng: np.random.Generator) -> pd.DataFrame:
    income = rng.lognormal(10.0, 0.5, 1_500)
    wealth = 1.01 * income + rng.normal(0.0, 300.0, 1_500)
    y = rng.normal(2.0 + 1e-4 * income, 2.0)
    return pd.DataFrame({"income": income, "wealth": wealth, "y": y})


@trial(
    "unscaled",
    draw=unscaled_rows,
    by_hand=lambda frame: _unscaled_problem(frame),
    truths=("precision", "error", *FAR),
)
def unscaled(income, wealth, y=None):
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 10.0))
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(5.0))
    with numpyro.plate("rows", len(income)):
        numpyro.sample("obs", dist.Normal(alpha + a * income + b * wealth, sigma), obs=y)


def unscaled_by_hand(x, y):
    """The same in coordinates of size one, whose prior is what the sites' priors make of them."""
    z = numpyro.sample("z", dist.ImproperUniform(constraints.real_vector, (), (3,)))
    alpha = numpyro.deterministic("alpha", z[0] - z[1] * 2.5)
    a = numpyro.deterministic("a", (z[1] - 30.0 * z[2]) / 1e4)
    b = numpyro.deterministic("b", 30.0 * z[2] / 1e4)
    prior = dist.Normal(0.0, jnp.array([10.0, 1.0, 1.0]))
    numpyro.factor("prior", prior.log_prob(jnp.stack([alpha, a, b])).sum())
    sigma = numpyro.sample("sigma", dist.HalfNormal(5.0))
    mean = alpha + a * x[:, 0] + b * x[:, 1]
    numpyro.sample("obs", dist.Normal(mean, sigma), obs=y)


def _unscaled_problem(frame: pd.DataFrame) -> Problem:
    data = {"x": frame[["income", "wealth"]].to_numpy(), "y": frame["y"].to_numpy()}
    start = {"z": np.array([4.0, 1.0, 0.0]), "sigma": 2.0}
    return Problem(unscaled_by_hand, data, start, ("alpha", "a", "b", "sigma"))


def offset_rows(rng: np.random.Generator) -> pd.DataFrame:
    second = 1.7e9 + rng.uniform(0.0, 30 * 86_400.0, 1_000)
    month = (second - 1.7e9) / (30 * 86_400.0)
    return pd.DataFrame({"second": second, "y": rng.normal(1e7 + 2.0 * month, 0.5)})


# In single precision the response is a whole number, which adds a twelfth to the variance.
@trial(
    "offsets",
    draw=offset_rows,
    start={"alpha": 1e7, "beta": 2.0, "sigma": 0.5},
    truths=("precision", "error", *FAR),
)
def offsets(second, y=None):
    alpha = numpyro.sample("alpha", dist.Normal(1e7, 100.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 10.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(5.0))
    month = (second - 1.7e9) / (30 * 86_400.0)
    with numpyro.plate("rows", len(second)):
        numpyro.sample("obs", dist.Normal(alpha + beta * month, sigma), obs=y)


def rare_rows(rng: np.random.Generator) -> pd.DataFrame:
    x = np.where(np.arange(2_500) < 20, rng.lognormal(1.0, 1.0, 2_500), 0.0)
    y = rng.normal(1.0 + 3.0 * x / x.max(), 1.0)
    return pd.DataFrame({"x": x, "y": y}).sample(frac=1.0, random_state=rng)


# Every shard has a largest x of its own, and a sample of rows seldom shows one.
@trial(
    "rare-coupling",
    draw=rare_rows,
    start={"alpha": 1.0, "beta": 3.0, "sigma": 1.0},
    truths=("coupled", "coupling", "error"),
    notable=True,
)
def rare_coupling(x, y=None):
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 5.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 5.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(5.0))
    relative = x / jnp.maximum(x.max(), 1e-6)
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal(alpha + beta * relative, sigma), obs=y)


# Priors that know how many rows, or groups, there are: a shard has others.


def informed_rows(rng: np.random.Generator) -> pd.DataFrame:
    x = rng.normal(size=900)
    return pd.DataFrame({"x": x, "y": rng.normal(0.3 + 0.1 * x)})


def _informed_moments(frame: pd.DataFrame) -> Moments:
    design = np.stack([np.ones(len(frame)), frame["x"].to_numpy()], axis=1)
    covariance = np.linalg.inv(design.T @ design + np.diag([0.04, len(frame)]))
    mean, sd = covariance @ design.T @ frame["y"].to_numpy(), np.sqrt(np.diag(covariance))
    return dict(zip(("alpha", "beta"), zip(mean, sd, strict=True), strict=True))


@trial(
    "unit-information",
    draw=informed_rows,
    exact=_informed_moments,
    truths=("coupled", "coupling", "error"),
    notable=True,
)
def unit_information(x, y=None):
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 5.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, len(x) ** -0.5))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal(alpha + beta * x, 1.0), obs=y)


def counted_rows(rng: np.random.Generator) -> pd.DataFrame:
    group = np.repeat(np.arange(40), 5)
    return pd.DataFrame({"group": group, "y": rng.normal(1.0 + 0.2 * rng.normal(size=40)[group])})


def _counted_moments(frame: pd.DataFrame) -> Moments:
    known, mu = statistics(frame, "group"), np.linspace(-1.0, 3.0, 2_001)
    spread = np.sqrt(1 / known["n"] + 1 / len(known["n"]))
    heights = -(((known["mean"] - mu[:, None]) / spread) ** 2).sum(axis=1) / 2 - mu**2 / 50
    return moments_on_grid(heights, {"mu": mu})


@trial(
    "counted-groups",
    draw=counted_rows,
    by="group",
    exact=_counted_moments,
    truths=("coupled", "coupling", "error"),
    notable=True,
)
def counted_groups(group, y=None, *, n_group):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    with numpyro.plate("groups", n_group):
        a = numpyro.sample("a", dist.Normal(mu, n_group**-0.5))
    with numpyro.plate("rows", len(group)):
        numpyro.sample("obs", dist.Normal(a[group], 1.0), obs=y)


def keyed_rows(rng: np.random.Generator) -> pd.DataFrame:
    frame = grouped_rows(40, 15, 0.8, seed=int(rng.integers(2**31)))
    keys = np.array([code if code % 2 else f"{code}a" for code in range(40)], dtype=object)
    return frame.assign(group=keys[frame["group"].to_numpy()])


@trial(
    "mixed-keys",
    draw=keyed_rows,
    by="group",
    start={"mu": 1.0, "beta": 0.5, "tau": 0.8, "sigma": 1.0},
)
def mixed_keys(group, x, y=None, *, n_group):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(5.0))
    with numpyro.plate("groups", n_group):
        alpha = numpyro.sample("alpha", dist.Normal(mu, tau))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal(alpha[group] + beta * x, sigma), obs=y)
