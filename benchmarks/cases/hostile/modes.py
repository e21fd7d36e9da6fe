"""Posteriors of shared sites that no single Gaussian describes: several modes, ridges, kinks.

Their references are sums over a grid, or over all the configurations that there are.
"""

from __future__ import annotations

from itertools import product

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from scipy.special import digamma, expit, logit, polygamma

from ..case import takes
from ..failing import mixture, one_stranger, regression
from .trial import CHAINS, WEIGHTS, Moments, moments_on_grid, trial

SEVERAL = ("modes", *WEIGHTS, *CHAINS)


def normal_rows(rng: np.random.Generator, mean: np.ndarray, **columns: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({**columns, "y": rng.normal(mean, 1.0)})


def mirror_rows(rng: np.random.Generator) -> pd.DataFrame:
    x = rng.normal(size=1_000)
    return normal_rows(rng, 0.8 * x, x=x)


@trial(
    "mirror",
    draw=mirror_rows,
    grid={"a": (-1.6, 1.6, 1_601), "sigma": (-0.4, 0.4, 161)},
    truths=SEVERAL,
    notable=True,
)
def mirror(x, y=None):
    a = numpyro.sample("a", dist.Normal(0.0, 2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal(a**2 * x, sigma), obs=y)


def ring_rows(rng: np.random.Generator) -> pd.DataFrame:
    return normal_rows(rng, np.full(500, 2.0))


@trial(
    "ring",
    draw=ring_rows,
    grid={"a": (-2.0, 2.0, 1_201), "b": (-2.0, 2.0, 1_201)},
    truths=SEVERAL,
    notable=True,
)
def ring(y=None):
    a = numpyro.sample("a", dist.Normal(0.0, 2.0))
    b = numpyro.sample("b", dist.Normal(0.0, 2.0))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("obs", dist.Normal(a**2 + b**2, 1.0), obs=y)


@trial(
    "parabola",
    draw=ring_rows,
    grid={"a": (-14.0, 3.0, 1_701), "b": (-4.2, 4.2, 1_201)},
    truths=SEVERAL,
    notable=True,
)
def parabola(y=None):
    a = numpyro.sample("a", dist.Normal(0.0, 2.0))
    b = numpyro.sample("b", dist.Normal(1.0, 1.0))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("obs", dist.Normal(a + b**2, 1.0), obs=y)


def wave_rows(rng: np.random.Generator) -> pd.DataFrame:
    t = rng.uniform(0.0, 30.0, 20_000)
    return normal_rows(rng, 2.0 * np.sin(2.3 * t), t=t)


def _wave_moments(frame: pd.DataFrame) -> Moments:
    """Sum over a grid of the three; given the frequency, few sums over rows are needed."""
    t, y = frame["t"].to_numpy(), frame["y"].to_numpy()
    u = np.log(2.3) + np.linspace(-0.004, 0.004, 401)
    waves = np.sin(np.exp(u)[:, None] * t)
    cross, square = (v[:, None, None] for v in (waves @ y, (waves**2).sum(axis=1)))
    log_size = (np.log(2.0) + np.linspace(-0.06, 0.06, 61))[:, None]
    log_sigma = np.linspace(-0.05, 0.05, 61)
    size, sigma = np.exp(log_size), np.exp(log_sigma)
    heights = -(y @ y - 2 * size * cross + size**2 * square) / (2 * sigma**2)
    heights += -len(y) * log_sigma - size**2 / 18 - sigma**2 / 18 + log_size + log_sigma
    heights += (u - np.exp(2 * u) / 50)[:, None, None]
    axes = {"frequency": u, "size": log_size[:, 0], "sigma": log_sigma}
    return moments_on_grid(heights, axes)


# Every other mode is some 10,000 log units lower: whoever ends there is wrong.
@trial(
    "sinusoid",
    draw=wave_rows,
    exact=_wave_moments,
    truths=SEVERAL,
)
def sinusoid(t, y=None):
    size = numpyro.sample("size", dist.HalfNormal(3.0))
    frequency = numpyro.sample("frequency", dist.HalfNormal(5.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(3.0))
    with numpyro.plate("rows", len(t)):
        numpyro.sample("obs", dist.Normal(size * jnp.sin(frequency * t), sigma), obs=y)


def two_component_rows(rng: np.random.Generator) -> pd.DataFrame:
    return normal_rows(rng, rng.choice([-1.5, 1.5], 1_000))


trial(
    "label-switching",
    draw=two_component_rows,
    grid={"mu[0]": (-2.2, 2.2, 121), "mu[1]": (-2.2, 2.2, 121), "sigma": (-0.4, 0.5, 31)},
    truths=SEVERAL,
    notable=True,
)(mixture)


# A spike and a slab on every coefficient: as many Gaussians as there are ways to choose

SPIKE, SLAB = 0.03, 1.0
CHOICES = [f"x{i}" for i in range(8)]
CHOSEN = np.array([0.0, 0.0, 0.0, 0.0, 0.12, 0.15, 0.5, -0.3])


def chosen_rows(rng: np.random.Generator) -> pd.DataFrame:
    x = rng.normal(size=(1_000, 8)) + rng.normal(size=(1_000, 1))
    return pd.DataFrame(x, columns=CHOICES).assign(y=rng.normal(x @ CHOSEN))


def _chosen_moments(frame: pd.DataFrame) -> Moments:
    x, y = frame[CHOICES].to_numpy(), frame["y"].to_numpy()
    gram, cross = x.T @ x, x.T @ y
    means, covariances, heights = [], [], []
    for scales in product((SPIKE, SLAB), repeat=8):
        prior = np.array(scales) ** -2
        covariance = np.linalg.inv(gram + np.diag(prior))
        mean = covariance @ cross
        means.append(mean)
        covariances.append(covariance)
        half = 0.5 * np.linalg.slogdet(covariance)[1] + 0.5 * np.log(prior).sum()
        heights.append(half + 0.5 * cross @ mean)
    weights = np.exp(np.array(heights) - max(heights))
    weights /= weights.sum()
    mean = weights @ np.array(means)
    second = [np.diag(c) + m**2 for c, m in zip(covariances, means, strict=True)]
    sd = np.sqrt(weights @ np.array(second) - mean**2)
    return {f"beta[{i}]": (mean[i], sd[i]) for i in range(8)}


@trial("spike-and-slab", draw=chosen_rows, exact=_chosen_moments, truths=SEVERAL)
@takes([*CHOICES, "y"])
def spike_and_slab(y=None, **predictors):
    scales = dist.Normal(0.0, jnp.array([SPIKE, SLAB]))
    either = dist.MixtureSameFamily(dist.Categorical(probs=jnp.array([0.5, 0.5])), scales)
    beta = numpyro.sample("beta", either.expand([8]).to_event(1))
    mean = sum(beta[i] * predictors[name] for i, name in enumerate(CHOICES))
    with numpyro.plate("rows", len(mean)):
        numpyro.sample("obs", dist.Normal(mean, 1.0), obs=y)


# A change point: flat between two rows, with a jump at each


def changed_rows(rng: np.random.Generator) -> pd.DataFrame:
    x = rng.uniform(size=800)
    return normal_rows(rng, 0.5 + 0.4 * (x > 0.6), x=x)


def _changed_moments(frame: pd.DataFrame) -> Moments:
    rows = frame.sort_values("x")
    x, y = rows["x"].to_numpy(), rows["y"].to_numpy()
    edges = np.concatenate([[0.0], x, [1.0]])
    heights, moments = [], []
    for k in range(len(edges) - 1):  # the change comes after k rows
        after = np.arange(len(y)) >= k
        design = np.stack([np.ones(len(y)), after], axis=1)
        covariance = np.linalg.inv(design.T @ design + np.eye(2) / 25.0)
        cross = design.T @ y
        mean = covariance @ cross
        half = 0.5 * np.linalg.slogdet(covariance)[1]
        heights.append(half + 0.5 * cross @ mean + np.log(edges[k + 1] - edges[k]))
        inside = np.linspace(edges[k], edges[k + 1], 42)[1:-1]
        u = logit(inside)
        first = [u.mean(), *mean]
        second = [(u**2).mean(), *(np.diag(covariance) + mean**2)]
        moments.append([first, second])
    weights = np.exp(np.array(heights) - max(heights))
    weights /= weights.sum()
    first, second = np.tensordot(weights, np.array(moments), axes=1)
    sd = np.sqrt(second - first**2)
    return dict(zip(("at", "before", "jump"), zip(first, sd, strict=True), strict=True))


@trial("change-point", draw=changed_rows, exact=_changed_moments, truths=SEVERAL)
def change_point(x, y=None):
    at = numpyro.sample("at", dist.Uniform(0.0, 1.0))
    before = numpyro.sample("before", dist.Normal(0.0, 5.0))
    jump = numpyro.sample("jump", dist.Normal(0.0, 5.0))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal(before + jump * (x > at), 1.0), obs=y)


# Edges of the support


def edge_rows(rng: np.random.Generator) -> pd.DataFrame:
    x = rng.normal(size=600)
    flag = np.arange(600) < rng.integers(0, 3)
    return normal_rows(rng, 1.02 * x, x=x).assign(flag=rng.permutation(flag))


def _edge_moments(frame: pd.DataFrame) -> Moments:
    x, y, hits = frame["x"].to_numpy(), frame["y"].to_numpy(), frame["flag"].sum()
    u = np.linspace(-5.0, 40.0, 90_001)
    slope = expit(u)
    log_density = -0.5 * (x @ x) * (slope - (x @ y) / (x @ x)) ** 2 - np.logaddexp(0, u)
    log_density -= np.logaddexp(0, -u)
    weights = np.exp(log_density - log_density.max())
    weights /= weights.sum()
    mean = weights @ u
    # The logit of a beta variable has cumulants that are polygamma functions.
    a, b = 1 + hits, 1 + len(x) - hits
    rate = digamma(a) - digamma(b), np.sqrt(polygamma(1, a) + polygamma(1, b))
    return {"slope": (mean, np.sqrt(weights @ (u - mean) ** 2)), "rate": rate}


@trial("edges", draw=edge_rows, exact=_edge_moments, truths=WEIGHTS)
def edges(x, flag, y=None):
    slope = numpyro.sample("slope", dist.Uniform(0.0, 1.0))
    rate = numpyro.sample("rate", dist.Uniform(0.0, 1.0))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("hit", dist.Bernoulli(probs=rate), obs=flag)
        numpyro.sample("obs", dist.Normal(slope * x, 1.0), obs=y)


def shifted_rows(rng: np.random.Generator) -> pd.DataFrame:
    return pd.DataFrame({"y": 1.0 + rng.exponential(0.5, 1_000)})


def _shifted_moments(frame: pd.DataFrame) -> Moments:
    y = frame["y"].to_numpy()
    n, least = len(y), y.min()
    below = (np.arange(4_000) + 0.5) / 4_000 * 0.03  # how far below the least the shift may lie
    log_rate = np.linspace(-0.2, 1.6, 721)
    rate = np.exp(log_rate)[:, None]
    log_density = (
        (n + 2) * log_rate[:, None] - 2 * rate - rate * (y - least + below[:, None]).sum(axis=1)
    )
    shift = logit((least - below) / 5.0)
    return moments_on_grid(log_density, {"rate": log_rate, "shift": shift})


@trial("shifted", draw=shifted_rows, exact=_shifted_moments, truths=("error", *SEVERAL))
def shifted(y):
    shift = numpyro.sample("shift", dist.Uniform(0.0, 5.0))
    rate = numpyro.sample("rate", dist.Gamma(2.0, 2.0))
    above = y - shift
    inside = jnp.log(rate) - rate * above
    with numpyro.plate("rows", len(y)):
        numpyro.factor("density", jnp.where(above > 0, inside, -jnp.inf))


# Data that defeat a likelihood


def separated_rows(rng: np.random.Generator) -> pd.DataFrame:
    y = rng.random(800) < 0.5
    x = np.where(y, 1.0, -1.0) * rng.uniform(0.3, 2.5, 800)
    return pd.DataFrame({"x": x, "y": y.astype(float)})


@trial("separated", draw=separated_rows, start={"alpha": 0.0, "beta": 10.0}, truths=WEIGHTS)
def separated(x, y=None):
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 10.0))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Bernoulli(logits=alpha + beta * x), obs=y)


def strange_rows(rng: np.random.Generator) -> pd.DataFrame:
    frame = one_stranger(clinics=12, each=150)
    return frame.assign(y=frame["y"] + rng.normal(0.0, 0.3, len(frame)))


trial(
    "stranger",
    draw=strange_rows,
    by="clinic",
    start={"alpha": 1.2, "beta": 0.4, "sigma": 1.2},
    truths=("strange-shard",),
    notable=True,
)(regression)
