"""Crossed effects and effects on several levels, where several modes, edges or few rows mislead.

Rows of a level look up one effect, and groups of rows are few numbers: references integrate them by
hand, in closed form or on a grid, wherever no other effect stands between.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from jax.scipy.special import logsumexp
from scipy.special import expit

from ..case import Problem
from .effects import BIMODAL, HALVES, bimodal_by_hand, by_statistics, grouped, integral
from .modes import SEVERAL
from .trial import CHAINS, EFFECTS, WEIGHTS, Moments, codes, moments_on_grid, statistics, trial

ALL = (*EFFECTS, *WEIGHTS)


# Crossed effects: several modes and ridges among the parameters beside them

ITEMS, EACH = 40, 20
LOG_TAU = np.linspace(-4.0, 1.2, 79)


def item_rows(rng: np.random.Generator, slope: float) -> pd.DataFrame:
    """Rows of items, with a slope; as many of each item."""
    item, x = codes(ITEMS, EACH), rng.normal(size=ITEMS * EACH)
    y = rng.normal(slope * x + rng.normal(0.0, 0.4, ITEMS)[item])
    frame = pd.DataFrame({"item": item, "x": x, "y": y})
    return frame.sample(frac=1.0, random_state=rng, ignore_index=True)


def effects_of_items() -> Any:
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("items", ITEMS):
        return numpyro.sample("b", dist.Normal(0.0, tau))


def log_likelihood_of_slopes(frame: pd.DataFrame, slope: np.ndarray) -> np.ndarray:
    """Of every slope (axis 0) and every log tau, the effects of items integrated out."""
    sums = frame.assign(xx=frame["x"] ** 2, xy=frame["x"] * frame["y"], yy=frame["y"] ** 2)
    x, y, xx, xy, yy = (
        sums.groupby("item")[name].sum().to_numpy() for name in ("x", "y", "xx", "xy", "yy")
    )
    squares = yy.sum() - 2 * slope * xy.sum() + slope**2 * xx.sum()
    of_items = ((y - slope[:, None] * x) ** 2).sum(axis=1)
    variance = np.exp(2 * LOG_TAU)
    shrunk = variance / (1 + EACH * variance)
    log_prior = -variance / 2 + LOG_TAU
    volume = -ITEMS / 2 * np.log1p(EACH * variance)
    return -(squares[:, None] - of_items[:, None] * shrunk) / 2 + volume + log_prior


def _mirror_moments(frame: pd.DataFrame) -> Moments:
    a = np.linspace(-1.3, 1.3, 1_041)
    heights = log_likelihood_of_slopes(frame, a**2) - a[:, None] ** 2 / 8
    return moments_on_grid(heights, {"a": a, "tau": LOG_TAU})


@trial(
    "crossed-mirror",
    draw=lambda rng: item_rows(rng, 0.6),
    exact=_mirror_moments,
    truths=SEVERAL,
    notable=True,
)
def crossed_mirror(item, x, y=None):
    a = numpyro.sample("a", dist.Normal(0.0, 2.0))
    b = effects_of_items()
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal(a**2 * x + b[item], 1.0), obs=y)


def _ridge_moments(frame: pd.DataFrame) -> Moments:
    # The density has its value at a c wherever that is: along c = p / a, summed over log a too.
    a, c = np.linspace(-4.5, 4.5, 901), np.linspace(-4.5, 4.5, 901)
    slope = np.linspace(-0.3, 1.5, 721)
    known = log_likelihood_of_slopes(frame, slope)
    product = (a[:, None] * c).ravel()
    heights = np.full((len(a), len(c), len(LOG_TAU)), -np.inf)
    for j in range(len(LOG_TAU)):
        there = np.interp(product, slope, known[:, j], left=-np.inf, right=-np.inf)
        heights[:, :, j] = there.reshape(len(a), len(c))
    heights -= (a[:, None, None] ** 2 + c[None, :, None] ** 2) / 2
    return moments_on_grid(heights, {"a": a, "c": c, "tau": LOG_TAU})


@trial(
    "crossed-ridge",
    draw=lambda rng: item_rows(rng, 0.6),
    exact=_ridge_moments,
    truths=SEVERAL,
    notable=True,
)
def crossed_ridge(item, x, y=None):
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    c = numpyro.sample("c", dist.Normal(0.0, 1.0))
    b = effects_of_items()
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal(a * c * x + b[item], 1.0), obs=y)


def waving_rows(rng: np.random.Generator) -> pd.DataFrame:
    item, t = codes(ITEMS, 50), rng.uniform(0.0, 20.0, 50 * ITEMS)
    y = rng.normal(1.5 * np.sin(2.3 * t) + rng.normal(0.0, 0.4, ITEMS)[item])
    frame = pd.DataFrame({"item": item, "t": t, "y": y})
    return frame.sample(frac=1.0, random_state=rng, ignore_index=True)


def _waving_moments(frame: pd.DataFrame) -> Moments:
    """Sum over a grid about the highest mode, beside which all others are nothing."""
    frame = frame.sort_values("item")
    t, y = (frame[name].to_numpy().reshape(ITEMS, -1) for name in "ty")
    u, size = np.log(2.3) + np.linspace(-0.008, 0.008, 101), 1.5 + np.linspace(-0.3, 0.3, 61)
    variance = np.exp(2 * LOG_TAU)
    shrunk = variance / (1 + y.shape[1] * variance)
    heights = np.empty((len(u), len(size), len(LOG_TAU)))
    for i, frequency in enumerate(np.exp(u)):
        wave = np.sin(frequency * t)
        left = y - size[:, None, None] * wave
        squares, of_items = (left**2).sum(axis=(1, 2)), (left.sum(axis=2) ** 2).sum(axis=1)
        heights[i] = -(squares[:, None] - of_items[:, None] * shrunk) / 2
        heights[i] += u[i] - frequency**2 / 50
    heights += -(size[:, None] ** 2) / 18
    heights += -ITEMS / 2 * np.log1p(y.shape[1] * variance) - variance / 2 + LOG_TAU
    return moments_on_grid(heights, {"frequency": u, "size": size, "tau": LOG_TAU})


@trial("crossed-sinusoid", draw=waving_rows, exact=_waving_moments, truths=("lone-mode", *SEVERAL))
def crossed_sinusoid(item, t, y=None):
    size = numpyro.sample("size", dist.Normal(0.0, 3.0))
    frequency = numpyro.sample("frequency", dist.HalfNormal(5.0))
    b = effects_of_items()
    with numpyro.plate("rows", len(t)):
        numpyro.sample("obs", dist.Normal(size * jnp.sin(frequency * t) + b[item], 1.0), obs=y)


# Crossed effects that are nothing like normal


def renamed(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Call groups items, their rows in any order."""
    frame = frame.rename(columns={"group": "item"})
    return frame.sample(frac=1.0, random_state=rng, ignore_index=True)


def two_humps(rng: np.random.Generator) -> pd.DataFrame:
    return renamed(
        grouped(rng, rng.choice([-1.6, 1.6], 60) + 0.4 * rng.normal(size=60), 8, 2.5), rng
    )


@trial(
    "crossed-bimodal",
    draw=two_humps,
    by_hand=by_statistics(bimodal_by_hand, BIMODAL, "item"),
    truths=ALL,
)
def crossed_bimodal(item, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    gap = numpyro.sample("gap", dist.HalfNormal(2.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(5.0))
    humps = dist.Normal(jnp.stack([mu - gap, mu + gap]), tau)
    with numpyro.plate("items", 60):
        b = numpyro.sample("b", dist.MixtureSameFamily(dist.Categorical(probs=HALVES), humps))
    with numpyro.plate("rows", len(item)):
        numpyro.sample("obs", dist.Normal(b[item], sigma), obs=y)


OUTLYING = {"mu": 1.0, "tau": 0.5}


def outlying_rows(rng: np.random.Generator) -> pd.DataFrame:
    return renamed(grouped(rng, 1.0 + 0.5 * rng.standard_t(2.0, 60), 4, 2.0), rng)


def _outlying_shared() -> Any:
    return (
        numpyro.sample("mu", dist.Normal(0.0, 5.0)),
        numpyro.sample("tau", dist.HalfNormal(2.0)),
    )


def outlying_by_hand(n, mean, squares):
    mu, tau = _outlying_shared()
    # The effect is as close to its items' mean as rows say, or to mu: a grid that is dense at both.
    t = jnp.linspace(-7.0, 7.0, 401)
    b = mu + jnp.sinh(t) * tau / 4
    known = -n[:, None] * (mean[:, None] - b) ** 2 / 8
    numpyro.factor(
        "rows",
        integral(
            dist.StudentT(2.0, mu, tau).log_prob(b) + jnp.log(jnp.cosh(t) * tau / 4) + known,
            14.0 / 400,
        ),
    )


@trial(
    "crossed-outlying",
    draw=outlying_rows,
    by_hand=by_statistics(outlying_by_hand, OUTLYING, "item"),
    truths=ALL,
)
def crossed_outlying(item, y=None):
    mu, tau = _outlying_shared()
    with numpyro.plate("items", 60):
        b = numpyro.sample("b", dist.StudentT(2.0, mu, tau))
    with numpyro.plate("rows", len(item)):
        numpyro.sample("obs", dist.Normal(b[item], 2.0), obs=y)


LOPSIDED = {"mu": 0.0, "tau": 0.8}


def lopsided_rows(rng: np.random.Generator) -> pd.DataFrame:
    item = codes(100, 3)
    y = rng.poisson(np.exp(0.8 * rng.gumbel(size=100))[item])
    frame = pd.DataFrame({"item": item, "y": y.astype(float)})
    return frame.sample(frac=1.0, random_state=rng, ignore_index=True)


def lopsided_by_hand(n, mean):
    mu, tau = (
        numpyro.sample("mu", dist.Normal(0.0, 2.0)),
        numpyro.sample("tau", dist.HalfNormal(1.0)),
    )
    t = jnp.linspace(-4.0, 14.0, 361)
    log_rate = mu + tau * t
    known = n[:, None] * (mean[:, None] * log_rate - jnp.exp(log_rate))
    numpyro.factor("rows", integral(dist.Gumbel().log_prob(t) + known, 18.0 / 360))


def _of_two(model: Any, start: dict[str, Any], by: str) -> Any:
    """Make a problem of sizes and means alone."""

    def problem(frame: pd.DataFrame) -> Problem:
        data = statistics(frame, by)
        del data["squares"]
        return Problem(model, data, start, tuple(start))

    return problem


@trial(
    "crossed-lopsided",
    draw=lopsided_rows,
    by_hand=_of_two(lopsided_by_hand, LOPSIDED, "item"),
    truths=ALL,
)
def crossed_lopsided(item, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("items", 100):
        b = numpyro.sample("b", dist.Gumbel(0.0, tau))
    with numpyro.plate("rows", len(item)):
        numpyro.sample("obs", dist.Poisson(jnp.exp(mu + b[item])), obs=y)


SPARSE = {"mu": -1.0, "tau": 0.3}


def sparse_items(rng: np.random.Generator) -> pd.DataFrame:
    item = codes(150, 3)
    y = rng.random(450) < expit(-1.0 + 0.1 * rng.normal(size=150)[item])
    frame = pd.DataFrame({"item": item, "y": y.astype(float)})
    return frame.sample(frac=1.0, random_state=rng, ignore_index=True)


def _sparse_shared() -> Any:
    return (
        numpyro.sample("mu", dist.Normal(0.0, 2.0)),
        numpyro.sample("tau", dist.HalfCauchy(1.0)),
    )


def sparse_by_hand(n, mean):
    mu, tau = _sparse_shared()
    t = jnp.linspace(-8.0, 8.0, 201)
    logits = mu + tau * t
    known = n[:, None] * (mean[:, None] * logits - jnp.logaddexp(0.0, logits))
    numpyro.factor("rows", integral(known - t**2 / 2, 16.0 / 200))


# So few rows a level say next to nothing of tau, whose log has the prior's tail.
@trial(
    "crossed-sparse",
    draw=sparse_items,
    by_hand=_of_two(sparse_by_hand, SPARSE, "item"),
    truths=ALL,
)
def crossed_sparse(item, y=None):
    mu, tau = _sparse_shared()
    with numpyro.plate("items", 150):
        b = numpyro.sample("b", dist.Normal(0.0, tau))
    with numpyro.plate("rows", len(item)):
        numpyro.sample("obs", dist.Bernoulli(logits=mu + b[item]), obs=y)


def estranged_rows(rng: np.random.Generator) -> pd.DataFrame:
    """Rows of users and items; one of twelve users rates by another rule."""
    user, item = codes(12, 100), rng.integers(0, 30, 1_200)
    x = rng.normal(size=1_200)
    eta = rng.normal(0.0, 0.3, 12)[user] + rng.normal(0.0, 0.5, 30)[item]
    y = rng.normal(eta + np.where(user == 5, -2.0, 0.5) * x)
    return pd.DataFrame({"user": user, "item": item, "x": x, "y": y})


@trial(
    "crossed-stranger",
    draw=estranged_rows,
    by="user",
    start={"slope": 0.3, "tau": 0.3, "spread": 0.5, "sigma": 1.2},
    centred={"a": 0.0, "b": 0.0},
    truths=("strange-shard",),
    notable=True,
)
def crossed_stranger(user, item, x, y=None, *, n_user):
    slope = numpyro.sample("slope", dist.Normal(0.0, 2.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    with numpyro.plate("items", 30):
        b = numpyro.sample("b", dist.Normal(0.0, spread))
    with numpyro.plate("users", n_user):
        a = numpyro.sample("a", dist.Normal(0.0, tau))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal(slope * x + a[user] + b[item], sigma), obs=y)


# Effects on several levels


def of_counties(regions: int, counties: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Regions and counties of rows; counties are numbered within regions."""
    return codes(regions, counties * each), np.tile(codes(counties, each), regions)


def county_rows(
    rng: np.random.Generator, outer: np.ndarray, inner: np.ndarray, each: int, sigma: float
) -> pd.DataFrame:
    region, county = of_counties(*inner.shape, each)
    y = rng.normal(outer[region] + inner[region, county], sigma)
    return pd.DataFrame({"region": region, "county": county, "y": y})


def nested_statistics(frame: pd.DataFrame, regions: int) -> dict[str, np.ndarray]:
    """Mean, and sum of squares about it, of every county ``(regions, counties)``; and its rows."""
    rows = frame.assign(unit=frame["region"].astype(str) + "/" + frame["county"].astype(str))
    order = rows.groupby(["region", "county"])["unit"].first()
    told = pd.DataFrame(statistics(rows, "unit"), index=sorted(set(rows["unit"]))).loc[order]
    return {name: told[name].to_numpy().reshape(regions, -1) for name in ("mean", "squares", "n")}


def nested_by_hand(model: Any, start: dict[str, Any], regions: int) -> Any:
    return lambda frame: Problem(model, nested_statistics(frame, regions), start, tuple(start))


def within_counties(squares: Any, n: Any, sigma: Any) -> Any:
    """Log density of rows about their county's mean, of each region."""
    return (-(n - 1) * jnp.log(sigma) - squares / (2 * sigma**2)).sum(axis=1)


INNER_HUMPS = {"mu": 0.0, "tau": 0.8, "gap": 1.5, "sigma": 1.5}
ROOT, SHARE = np.polynomial.hermite_e.hermegauss(41)


def inner_hump_rows(rng: np.random.Generator) -> pd.DataFrame:
    inner = 1.5 * rng.choice([-1.0, 1.0], (60, 6)) + 0.3 * rng.normal(size=(60, 6))
    return county_rows(rng, 0.8 * rng.normal(size=60), inner, 2, 1.5)


def _inner_hump_shared() -> Any:
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
    tau = numpyro.sample("tau", dist.HalfNormal(2.0))
    gap = numpyro.sample("gap", dist.HalfNormal(2.0))
    return mu, tau, gap, numpyro.sample("sigma", dist.HalfNormal(2.0))


def inner_hump_by_hand(mean, squares, n):
    mu, tau, gap, sigma = _inner_hump_shared()
    left = mean[..., None] - mu - tau * ROOT
    spread = jnp.sqrt(0.09 + sigma**2 / n)[..., None]
    humps = [dist.Normal(sign * gap, spread).log_prob(left) for sign in (-1.0, 1.0)]
    of_regions = jnp.logaddexp(*humps).sum(axis=1) + jnp.log(SHARE / SHARE.sum())
    numpyro.factor("rows", logsumexp(of_regions, axis=1) + within_counties(squares, n, sigma))


@trial(
    "nested-bimodal",
    draw=inner_hump_rows,
    by=["region", "county"],
    by_hand=nested_by_hand(inner_hump_by_hand, INNER_HUMPS, 60),
    truths=ALL,
)
def nested_bimodal(region, county, y=None, *, n_region, n_county):
    mu, tau, gap, sigma = _inner_hump_shared()
    with numpyro.plate("regions", n_region):
        a = numpyro.sample("a", dist.Normal(0.0, tau))
    humps = dist.Normal(jnp.stack([-gap, gap]), 0.3)
    with numpyro.plate("counties", n_county):
        b = numpyro.sample("b", dist.MixtureSameFamily(dist.Categorical(probs=HALVES), humps))
    with numpyro.plate("rows", len(region)):
        numpyro.sample("obs", dist.Normal(mu + a[region] + b[county], sigma), obs=y)


OUTER_HUMPS = {"mu": 0.0, "gap": 1.2, "spread": 1.0, "sigma": 1.5}


def outer_hump_rows(rng: np.random.Generator) -> pd.DataFrame:
    outer = 1.2 * rng.choice([-1.0, 1.0], 60) + 0.3 * rng.normal(size=60)
    return county_rows(rng, outer, rng.normal(size=(60, 3)), 2, 1.5)


def _outer_hump_shared() -> Any:
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
    gap = numpyro.sample("gap", dist.HalfNormal(2.0))
    spread = numpyro.sample("spread", dist.HalfNormal(2.0))
    return mu, gap, spread, numpyro.sample("sigma", dist.HalfNormal(2.0))


def outer_hump_by_hand(mean, squares, n):
    mu, gap, spread, sigma = _outer_hump_shared()
    a = jnp.linspace(-9.0, 9.0, 241)
    of_counties = jnp.hypot(spread, sigma / jnp.sqrt(n))[..., None]
    known = dist.Normal(mu + a, of_counties).log_prob(mean[..., None]).sum(axis=1)
    humps = [dist.Normal(sign * gap, 0.3).log_prob(a) for sign in (-1.0, 1.0)]
    of_regions = integral(jnp.logaddexp(*humps) - np.log(2.0) + known, 18.0 / 240)
    numpyro.factor("rows", of_regions + within_counties(squares, n, sigma))


@trial(
    "nested-outer-bimodal",
    draw=outer_hump_rows,
    by=["region", "county"],
    by_hand=nested_by_hand(outer_hump_by_hand, OUTER_HUMPS, 60),
    truths=ALL,
)
def nested_outer_bimodal(region, county, y=None, *, n_region, n_county):
    mu, gap, spread, sigma = _outer_hump_shared()
    humps = dist.Normal(jnp.stack([-gap, gap]), 0.3)
    with numpyro.plate("regions", n_region):
        a = numpyro.sample("a", dist.MixtureSameFamily(dist.Categorical(probs=HALVES), humps))
    with numpyro.plate("counties", n_county):
        b = numpyro.sample("b", dist.Normal(0.0, spread))
    with numpyro.plate("rows", len(region)):
        numpyro.sample("obs", dist.Normal(mu + a[region] + b[county], sigma), obs=y)


LEVEL_OF_ZERO = {"mu": 1.0, "tau": 0.1, "spread": 0.5, "sigma": 1.0}


def level_of_zero_rows(rng: np.random.Generator) -> pd.DataFrame:
    return county_rows(rng, np.full(20, 1.0), 0.5 * rng.normal(size=(20, 4)), 8, 1.0)


def _level_of_zero_shared() -> Any:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(1.0))
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    return mu, tau, spread, numpyro.sample("sigma", dist.HalfNormal(2.0))


def level_of_zero_by_hand(mean, squares, n):
    mu, tau, spread, sigma = _level_of_zero_shared()
    variance = spread**2 + sigma**2 / n  # of counties' means about their region's, all the same
    count, v = mean.shape[1], variance[:, 0]
    middle = mean.mean(axis=1)
    about = ((mean - middle[:, None]) ** 2).sum(axis=1)
    of_regions = dist.Normal(mu, jnp.sqrt(tau**2 + v / count)).log_prob(middle)
    of_regions += -(count - 1) / 2 * jnp.log(v) - about / (2 * v)
    numpyro.factor("rows", of_regions + within_counties(squares, n, sigma))


@trial(
    "nested-zero",
    draw=level_of_zero_rows,
    by=["region", "county"],
    by_hand=nested_by_hand(level_of_zero_by_hand, LEVEL_OF_ZERO, 20),
    truths=(*ALL, *CHAINS),
)
def nested_zero(region, county, y=None, *, n_region, n_county):
    mu, tau, spread, sigma = _level_of_zero_shared()
    with numpyro.plate("regions", n_region):
        a = numpyro.sample("a", dist.Normal(0.0, tau))
    with numpyro.plate("counties", n_county):
        b = numpyro.sample("b", dist.Normal(0.0, spread))
    with numpyro.plate("rows", len(region)):
        numpyro.sample("obs", dist.Normal(mu + a[region] + b[county], sigma), obs=y)


def lopsided_counties(rng: np.random.Generator) -> pd.DataFrame:
    """One county of a region has most of its rows."""
    sizes = np.tile([150, 2, 2, 2], 16)
    county = np.repeat(np.tile(np.arange(4), 16), sizes)
    region = np.repeat(codes(16, 4), sizes)
    unit = np.repeat(np.arange(64), sizes)
    logits = -1.0 + 0.8 * rng.normal(size=16)[region] + 1.2 * rng.normal(size=64)[unit]
    y = (rng.random(len(region)) < expit(logits)).astype(float)
    return pd.DataFrame({"region": region, "county": county, "y": y})


@trial(
    "nested-lopsided",
    draw=lopsided_counties,
    by=["region", "county"],
    start={"mu": -1.0, "tau": 0.8, "spread": 1.2},
    centred={"a": 0.0, "b": 0.0},
    truths=ALL,
)
def nested_lopsided(region, county, y=None, *, n_region, n_county):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    with numpyro.plate("regions", n_region):
        a = numpyro.sample("a", dist.Normal(0.0, tau))
    with numpyro.plate("counties", n_county):
        b = numpyro.sample("b", dist.Normal(0.0, spread))
    with numpyro.plate("rows", len(region)):
        numpyro.sample("obs", dist.Bernoulli(logits=mu + a[region] + b[county]), obs=y)


def outlying_counties(rng: np.random.Generator) -> pd.DataFrame:
    outer, inner = 0.6 * rng.standard_t(3.0, 25), 0.5 * rng.standard_t(2.5, (25, 5))
    return county_rows(rng, 1.0 + outer, inner, 3, 1.0)


@trial(
    "nested-outlying",
    draw=outlying_counties,
    by=["region", "county"],
    start={"mu": 1.0, "tau": 0.6, "spread": 0.5, "sigma": 1.0},
    centred={"a": 0.0, "b": 0.0},
    truths=ALL,
)
def nested_outlying(region, county, y=None, *, n_region, n_county):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    with numpyro.plate("regions", n_region):
        a = numpyro.sample("a", dist.StudentT(3.0, 0.0, tau))
    with numpyro.plate("counties", n_county):
        b = numpyro.sample("b", dist.StudentT(2.5, 0.0, spread))
    with numpyro.plate("rows", len(region)):
        numpyro.sample("obs", dist.Normal(mu + a[region] + b[county], sigma), obs=y)
