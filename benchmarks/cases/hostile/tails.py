"""Posteriors whose width is in their tails: weak data, wide priors, bounds, mass far out."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from scipy.special import logit
from scipy.stats import norm

from ..case import Problem, takes
from .effects import grouped
from .levels import county_rows, nested_by_hand, within_counties
from .modes import SEVERAL
from .shared import FAR, names, predictors, stacked
from .trial import CHAINS, EFFECTS, WEIGHTS, Moments, moments_on_grid, statistics, trial

ALL = (*EFFECTS, *WEIGHTS)


# A change point beside more coefficients than a search of all places bears


def changed_wide_rows(rng: np.random.Generator) -> pd.DataFrame:
    x, z = rng.uniform(size=800), rng.normal(size=(800, 5))
    y = rng.normal(0.5 + 0.4 * (x > 0.6) + z @ [0.3, 0.0, -0.2, 0.1, 0.0])
    return pd.DataFrame(z, columns=names(5)).assign(at=x, y=y)


def _changed_wide_moments(frame: pd.DataFrame) -> Moments:
    rows = frame.sort_values("at")
    x, y = rows["at"].to_numpy(), rows["y"].to_numpy()
    columns = np.column_stack([np.ones(len(y)), rows[names(5)].to_numpy()])
    edges = np.concatenate([[0.0], x, [1.0]])
    heights, moments = [], []
    for k in range(len(edges) - 1):  # the change comes after k rows
        design = np.column_stack([columns, np.arange(len(y)) >= k])
        covariance = np.linalg.inv(design.T @ design + np.eye(7) / 25.0)
        cross = design.T @ y
        mean = covariance @ cross
        half = 0.5 * np.linalg.slogdet(covariance)[1]
        heights.append(half + 0.5 * cross @ mean + np.log(edges[k + 1] - edges[k]))
        u = logit(np.linspace(edges[k], edges[k + 1], 42)[1:-1])
        second = [(u**2).mean(), *(np.diag(covariance) + mean**2)]
        moments.append([[u.mean(), *mean], second])
    weights = np.exp(np.array(heights) - max(heights))
    first, second = np.tensordot(weights / weights.sum(), np.array(moments), axes=1)
    sd = np.sqrt(second - first**2)
    sites = ("change", "before", *(f"beta[{i}]" for i in range(5)), "jump")
    return dict(zip(sites, zip(first, sd, strict=True), strict=True))


@trial("change-point-wide", draw=changed_wide_rows, exact=_changed_wide_moments, truths=SEVERAL)
@takes([*names(5), "at", "y"])
def change_point_wide(at, y=None, **columns):
    change = numpyro.sample("change", dist.Uniform(0.0, 1.0))
    before = numpyro.sample("before", dist.Normal(0.0, 5.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 5.0).expand([5]).to_event(1))
    jump = numpyro.sample("jump", dist.Normal(0.0, 5.0))
    mean = before + stacked(columns) @ beta + jump * (at > change)
    with numpyro.plate("rows", len(at)):
        numpyro.sample("obs", dist.Normal(mean, 1.0), obs=y)


# Few groups, and a scale that they hardly know


def three_group_rows(rng: np.random.Generator) -> pd.DataFrame:
    return grouped(rng, rng.normal(2.0, 1.0, 3), 60, 1.0)


def _few_moments(frame: pd.DataFrame) -> Moments:
    """Sum over mu, on a grid that is wide, and log tau."""
    known = statistics(frame, "group")
    middle = known["mean"].mean() + np.sinh(np.linspace(-6.5, 6.5, 1_001))
    log_tau = np.linspace(-9.0, 8.0, 341)
    tau = np.exp(log_tau)
    heights = np.zeros((len(middle), len(log_tau)))
    for n, mean in zip(known["n"], known["mean"], strict=True):
        heights += norm.logpdf(mean, middle[:, None], np.hypot(tau, n**-0.5))
    heights += -(middle[:, None] ** 2) / 20_000 - np.log1p((tau / 2.5) ** 2) + log_tau
    heights += np.log(np.cosh(np.linspace(-6.5, 6.5, 1_001)))[:, None]
    return moments_on_grid(heights, {"mu": middle, "tau": log_tau})


# Three groups leave tau a tail so heavy that mu has two moments, and no more.
@trial(
    "three-groups",
    draw=three_group_rows,
    by="group",
    exact=_few_moments,
    shards=(3, 2, 1),
    truths=(*ALL, *CHAINS),
)
def three_groups(group, y=None, *, n_group):
    mu = numpyro.sample("mu", dist.Normal(0.0, 100.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(2.5))
    with numpyro.plate("groups", n_group):
        alpha = numpyro.sample("alpha", dist.Normal(mu, tau))
    with numpyro.plate("rows", len(group)):
        numpyro.sample("obs", dist.Normal(alpha[group], 1.0), obs=y)


FEW_REGIONS = {"mu": 1.0, "tau": 0.8, "spread": 0.5, "sigma": 1.0}


def few_region_rows(rng: np.random.Generator) -> pd.DataFrame:
    return county_rows(rng, rng.normal(1.0, 0.8, 5), 0.5 * rng.normal(size=(5, 6)), 10, 1.0)


def _few_regions_shared() -> Any:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(1.0))
    spread = numpyro.sample("spread", dist.HalfCauchy(1.0))
    return mu, tau, spread, numpyro.sample("sigma", dist.HalfNormal(2.0))


def few_regions_by_hand(mean, squares, n):
    mu, tau, spread, sigma = _few_regions_shared()
    v = (spread**2 + sigma**2 / n)[:, 0]  # of counties' means, which are of one size
    middle, count = mean.mean(axis=1), mean.shape[1]
    about = ((mean - middle[:, None]) ** 2).sum(axis=1)
    of_regions = dist.Normal(mu, jnp.sqrt(tau**2 + v / count)).log_prob(middle)
    of_regions += -(count - 1) / 2 * jnp.log(v) - about / (2 * v)
    numpyro.factor("rows", of_regions + within_counties(squares, n, sigma))


@trial(
    "nested-few",
    draw=few_region_rows,
    by=["region", "county"],
    by_hand=nested_by_hand(few_regions_by_hand, FEW_REGIONS, 5),
    truths=(*ALL, *CHAINS),
    shards=(5, 2, 1),
)
def nested_few(region, county, y=None, *, n_region, n_county):
    mu, tau, spread, sigma = _few_regions_shared()
    with numpyro.plate("regions", n_region):
        a = numpyro.sample("a", dist.Normal(0.0, tau))
    with numpyro.plate("counties", n_county):
        b = numpyro.sample("b", dist.Normal(0.0, spread))
    with numpyro.plate("rows", len(region)):
        numpyro.sample("obs", dist.Normal(mu + a[region] + b[county], sigma), obs=y)


# Bounds that the data push against, in several coordinates at once


def monotone_rows(rng: np.random.Generator) -> pd.DataFrame:
    x = predictors(rng, 500, 8, 0.5)
    slopes = np.array([0.3, 0.1, 0.0, 0.0, 0.0, -0.05, -0.1, -0.2])
    return pd.DataFrame(x, columns=names(8)).assign(y=rng.normal(x @ slopes))


@trial("monotone", draw=monotone_rows, start={"beta": np.full(8, 0.05)}, truths=FAR)
@takes([*names(8), "y"])
def monotone(y=None, **columns):
    beta = numpyro.sample("beta", dist.HalfNormal(1.0).expand([8]).to_event(1))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("obs", dist.Normal(stacked(columns) @ beta, 1.0), obs=y)


# Funnels and heavy tails of many coordinates


def faint_rows(rng: np.random.Generator) -> pd.DataFrame:
    x = predictors(rng, 300, 40, 0.5)
    return pd.DataFrame(x, columns=names(40)).assign(y=rng.normal(x @ rng.normal(0.0, 0.03, 40)))


def _faint_moments(frame: pd.DataFrame) -> Moments:
    """Sum over log tau; the coefficients are normal given it."""
    x, y = frame[names(40)].to_numpy(), frame["y"].to_numpy()
    values, vectors = np.linalg.eigh(x.T @ x)
    along = vectors.T @ (x.T @ y)
    log_tau = np.linspace(-10.0, 2.0, 1_201)
    precision = values + np.exp(-2 * log_tau)[:, None]
    heights = (along**2 / precision - np.log(precision)).sum(axis=1) / 2
    heights += -40 * log_tau - np.exp(2 * log_tau) / 2 + log_tau
    weights = np.exp(heights - heights.max())
    weights /= weights.sum()
    means = (along / precision) @ vectors.T
    variances = (1 / precision) @ (vectors**2).T
    mean = weights @ means
    sd = np.sqrt(weights @ (variances + means**2) - mean**2)
    middle = weights @ log_tau
    moments = {f"beta[{i}]": (mean[i], sd[i]) for i in range(40)}
    return moments | {"tau": (middle, np.sqrt(weights @ (log_tau - middle) ** 2))}


# Where tau is small all coefficients are: a funnel of 41 coordinates.
@trial("faint-40", draw=faint_rows, exact=_faint_moments, truths=FAR)
@takes([*names(40), "y"])
def faint_40(y=None, **columns):
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, tau).expand([40]).to_event(1))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("obs", dist.Normal(stacked(columns) @ beta, 1.0), obs=y)


def heavy_rows(rng: np.random.Generator) -> pd.DataFrame:
    x = predictors(rng, 80, 30, 0.5)
    y = rng.random(80) < 1 / (1 + np.exp(-x @ rng.normal(0.0, 0.5, 30)))
    return pd.DataFrame(x, columns=names(30)).assign(y=y.astype(float))


# Rows that a plane parts nearly hold 30 coefficients, whose prior has no mean.
@trial("cauchy-30", draw=heavy_rows, start={"beta": np.zeros(30)}, truths=FAR)
@takes([*names(30), "y"])
def cauchy_30(y=None, **columns):
    beta = numpyro.sample("beta", dist.Cauchy(0.0, 0.5).expand([30]).to_event(1))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("obs", dist.Bernoulli(logits=stacked(columns) @ beta), obs=y)


# Effects of rows that may lie on either side of zero


SQUARED = {"spread": 1.0, "sigma": 0.5}


def squared_rows(rng: np.random.Generator) -> pd.DataFrame:
    true = rng.normal(0.0, 1.0, 800)
    return pd.DataFrame({"seen": rng.normal(true, 0.8), "y": rng.normal(true**2, 0.5)})


def _squared_shared() -> Any:
    spread = numpyro.sample("spread", dist.HalfNormal(3.0))
    return spread, numpyro.sample("sigma", dist.HalfNormal(3.0))


def squared_by_hand(seen, y):
    spread, sigma = _squared_shared()
    t = jnp.linspace(-5.0, 5.0, 801)
    known = dist.Normal(t, 0.8).log_prob(seen[:, None])
    known += dist.Normal(t**2, sigma).log_prob(y[:, None]) + dist.Normal(0.0, spread).log_prob(t)
    numpyro.factor("rows", jnp.logaddexp.reduce(known, axis=1))


def _squared_problem(frame: pd.DataFrame) -> Problem:
    data = {name: frame[name].to_numpy() for name in ("seen", "y")}
    return Problem(squared_by_hand, data, SQUARED, tuple(SQUARED))


@trial("row-squares", draw=squared_rows, by_hand=_squared_problem, truths=ALL)
def row_squares(seen, y=None):
    spread, sigma = _squared_shared()
    with numpyro.plate("rows", len(seen)):
        true = numpyro.sample("true", dist.Normal(0.0, spread))
        numpyro.sample("measured", dist.Normal(true, 0.8), obs=seen)
        numpyro.sample("obs", dist.Normal(true**2, sigma), obs=y)
