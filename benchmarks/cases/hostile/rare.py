"""What few rows know: one group of many, one clinic's treatment, the difference of two columns.

Whoever looks at a few shards, a few rows of one, or one column at a time does not see it.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from scipy.special import expit, logsumexp
from scipy.stats import norm
from scipy.stats import t as student

from .trial import CHAINS, EFFECTS, WEIGHTS, Moments, codes, moments_on_grid, trial

ALL = (*EFFECTS, *WEIGHTS)
MANY = (10, 20, 4)  # shards, most of which know nothing of it


# One group whose effect may be at either of two places


def torn_rows(rng: np.random.Generator) -> pd.DataFrame:
    """Rows of 40 groups; half of one group's lie at 4, the others at -4."""
    group = codes(40, 10)
    y = rng.normal(size=40)[group] + 0.3 * rng.standard_t(2.0, 400)
    torn = group == rng.integers(40)
    above = 4.0 + 0.3 * rng.standard_t(2.0, 5)
    y[torn] = np.concatenate([above, -above])
    return pd.DataFrame({"group": group, "y": y}).sample(frac=1.0, random_state=rng)


def moments_of_effects(
    known: np.ndarray, b: np.ndarray, log_prior: Any, middle: np.ndarray, log_tau: np.ndarray
) -> Moments:
    """Sum over ``mu`` and ``log tau``; effects are integrated on a grid.

    Log likelihoods ``(groups, len(b))`` of effects `b`, which have the weights of a trapezoidal
    rule in them; ``log_prior(b, mu, tau)`` with the priors of both left out.
    """
    heights = np.empty((len(middle), len(log_tau)))
    for i, mu in enumerate(middle):
        for j, tau in enumerate(np.exp(log_tau)):
            heights[i, j] = logsumexp(known + log_prior(b, mu, tau), axis=1).sum()
    tau = np.exp(log_tau)
    heights += -(middle[:, None] ** 2) / 50 - tau**2 / 8 + log_tau
    return moments_on_grid(heights, {"mu": middle, "tau": log_tau})


def by_group(frame: pd.DataFrame) -> np.ndarray:
    """Responses of groups of one size, ``(groups, each)``."""
    y = frame.sort_values("group", kind="stable")["y"].to_numpy()
    return y.reshape(frame["group"].nunique(), -1)


def _torn_moments(frame: pd.DataFrame) -> Moments:
    b = np.linspace(-7.0, 7.0, 1_401)
    known = student.logpdf(by_group(frame)[:, None], 2.0, b[:, None], 0.3).sum(axis=2)
    middle, log_tau = np.linspace(-1.2, 1.2, 81), np.linspace(-0.8, 0.8, 61)
    return moments_of_effects(known, b, norm.logpdf, middle, log_tau)


def _spread_shared() -> Any:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    return mu, numpyro.sample("tau", dist.HalfNormal(2.0))


@trial("torn-group", draw=torn_rows, by="group", exact=_torn_moments, truths=ALL, shards=MANY)
def torn_group(group, y=None, *, n_group):
    mu, tau = _spread_shared()
    with numpyro.plate("groups", n_group):
        b = numpyro.sample("b", dist.Normal(mu, tau))
    with numpyro.plate("rows", len(group)):
        numpyro.sample("obs", dist.StudentT(2.0, b[group], 0.3), obs=y)


# One group that has nearly all rows


def giant_rows(rng: np.random.Generator) -> pd.DataFrame:
    group = np.repeat(np.arange(31), [3_000, *[4] * 30])
    effects = np.append(2.5, rng.normal(size=30))
    y = (rng.random(len(group)) < expit(effects[group])).astype(float)
    return pd.DataFrame({"group": group, "y": y})


def _giant_moments(frame: pd.DataFrame) -> Moments:
    b = np.linspace(-10.0, 10.0, 2_501)
    of_groups = frame.groupby("group")["y"].agg(["sum", "size"]).to_numpy()
    known = of_groups[:, :1] * b - of_groups[:, 1:] * np.logaddexp(0.0, b)
    middle, log_tau = np.linspace(-2.5, 2.5, 51), np.linspace(-4.0, 1.4, 55)
    return moments_of_effects(known, b, norm.logpdf, middle, log_tau)


@trial("giant-group", draw=giant_rows, by="group", exact=_giant_moments, truths=ALL)
def giant_group(group, y=None, *, n_group):
    mu, tau = _spread_shared()
    with numpyro.plate("groups", n_group):
        b = numpyro.sample("b", dist.Normal(mu, tau))
    with numpyro.plate("rows", len(group)):
        numpyro.sample("obs", dist.Bernoulli(logits=b[group]), obs=y)


# Two rows a group, which may both be outliers


def wild_rows(rng: np.random.Generator) -> pd.DataFrame:
    group = codes(60, 2)
    return pd.DataFrame({"group": group, "y": rng.standard_cauchy(60)[group]}).assign(
        y=lambda rows: rows["y"] + rng.standard_cauchy(120)
    )


def _wild_moments(frame: pd.DataFrame) -> Moments:
    s = np.linspace(-12.0, 12.0, 2_401)
    b = np.sinh(s)
    known = student.logpdf(by_group(frame)[:, None], 1.0, b[:, None], 1.0).sum(axis=2)
    known += np.log(np.cosh(s))
    middle, log_tau = np.linspace(-2.4, 2.4, 65), np.linspace(-3.5, 2.0, 67)
    return moments_of_effects(
        known, b, lambda b, mu, tau: student.logpdf(b, 1.0, mu, tau), middle, log_tau
    )


@trial("wild-effects", draw=wild_rows, by="group", exact=_wild_moments, truths=ALL)
def wild_effects(group, y=None, *, n_group):
    mu, tau = _spread_shared()
    with numpyro.plate("groups", n_group):
        b = numpyro.sample("b", dist.Cauchy(mu, tau))
    with numpyro.plate("rows", len(group)):
        numpyro.sample("obs", dist.Cauchy(b[group], 1.0), obs=y)


# A parameter of which one clinic of 40 knows anything


def of_one_clinic(rng: np.random.Generator) -> pd.DataFrame:
    clinic = codes(40, 50)
    tried = clinic == rng.integers(40)
    x, t = rng.normal(size=2_000), np.where(tried, rng.uniform(0.0, 20.0, 2_000), 0.0)
    return pd.DataFrame({"clinic": clinic, "x": x, "t": t, "tried": tried.astype(float)})


def rare_mirror_rows(rng: np.random.Generator) -> pd.DataFrame:
    rows = of_one_clinic(rng)
    return rows.assign(y=rng.normal(0.5 * rows["x"] + 2.0 * rows["tried"])).drop(columns="t")


@trial(
    "rare-mirror",
    draw=rare_mirror_rows,
    by="clinic",
    grid={"a": (-2.2, 2.2, 1_401), "b": (0.2, 0.8, 161)},
    truths=("modes", *WEIGHTS),
    notable=True,
    shards=MANY,
)
def rare_mirror(clinic, x, tried, y=None, *, n_clinic):
    a = numpyro.sample("a", dist.Normal(0.0, 2.0))
    b = numpyro.sample("b", dist.Normal(0.0, 2.0))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal(b * x + a**2 * tried, 1.0), obs=y)


def rare_wave_rows(rng: np.random.Generator) -> pd.DataFrame:
    rows = of_one_clinic(rng)
    return rows.assign(y=rng.normal(0.5 * rows["x"] + 2.0 * np.sin(2.3 * rows["t"])))


def _rare_wave_moments(frame: pd.DataFrame) -> Moments:
    """Sum over a grid about the highest mode; all others are next to nothing."""
    x, t, y = (frame[name].to_numpy() for name in ("x", "t", "y"))
    u = np.log(2.3) + np.linspace(-0.06, 0.06, 201)
    wave = np.sin(np.exp(u)[:, None] * t)
    wx, wy, ww = (part[:, None, None] for part in (wave @ x, wave @ y, (wave**2).sum(axis=1)))
    size, b = np.linspace(0.8, 3.2, 81)[:, None], np.linspace(0.35, 0.65, 61)
    squares = b**2 * (x @ x) + 2 * b * size * wx + size**2 * ww
    heights = b * (x @ y) + size * wy - squares / 2 - size**2 / 18 - b**2 / 8
    heights += (u - np.exp(2 * u) / 50)[:, None, None]
    return moments_on_grid(heights, {"frequency": u, "size": size[:, 0], "b": b})


@trial(
    "rare-wave",
    draw=rare_wave_rows,
    by="clinic",
    exact=_rare_wave_moments,
    truths=("modes", "lone-mode", *WEIGHTS, *CHAINS),
    shards=MANY,
)
def rare_wave(clinic, x, t, y=None, *, n_clinic):
    b = numpyro.sample("b", dist.Normal(0.0, 2.0))
    size = numpyro.sample("size", dist.Normal(0.0, 3.0))
    frequency = numpyro.sample("frequency", dist.HalfNormal(5.0))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal(b * x + size * jnp.sin(frequency * t), 1.0), obs=y)


def rare_level_rows(rng: np.random.Generator) -> pd.DataFrame:
    """Rows of three levels; of the last there are three, all with the same outcome."""
    x, level = rng.normal(size=1_200), np.where(np.arange(1_200) < 3, 2, rng.integers(0, 2, 1_200))
    y = (rng.random(1_200) < expit(0.2 + 0.5 * x + 0.4 * level)) | (level == 2)
    labels = pd.Categorical.from_codes(level, ["none", "some", "all"])
    frame = pd.DataFrame({"x": x, "level": labels, "y": y.astype(float)})
    return frame.sample(frac=1.0, random_state=rng, ignore_index=True)


@trial(
    "rare-level",
    draw=rare_level_rows,
    start={"alpha": np.array([0.2, 0.6, 5.0]), "beta": 0.5},
    truths=WEIGHTS,
)
def rare_level(x, level, y=None, *, n_level):
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 10.0).expand([n_level]).to_event(1))
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.0))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Bernoulli(logits=alpha[level] + beta * x), obs=y)


# Columns that single precision holds, and their difference that it does not


def lasting_rows(rng: np.random.Generator) -> pd.DataFrame:
    begin = 1.6e9 + rng.uniform(0.0, 1e8, 1_500)
    minutes = rng.gamma(4.0, 0.5, 1_500)
    y = rng.normal(1.0 + 0.8 * minutes)
    return pd.DataFrame({"begin": begin, "end": begin + 60.0 * minutes, "y": y})


def _lasting_moments(frame: pd.DataFrame) -> Moments:
    minutes = (frame["end"] - frame["begin"]).to_numpy() / 60.0
    design = np.stack([np.ones(len(minutes)), minutes], axis=1)
    covariance = np.linalg.inv(design.T @ design + np.eye(2) / 100.0)
    mean, sd = covariance @ design.T @ frame["y"].to_numpy(), np.sqrt(np.diag(covariance))
    return dict(zip(("alpha", "beta"), zip(mean, sd, strict=True), strict=True))


@trial("durations", draw=lasting_rows, exact=_lasting_moments, truths=("precision", "error"))
def durations(begin, end, y=None):
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 10.0))
    with numpyro.plate("rows", len(begin)):
        numpyro.sample("obs", dist.Normal(alpha + beta * (end - begin) / 60.0, 1.0), obs=y)
