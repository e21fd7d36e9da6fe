"""Modes where few searches lead, and no mirror, and that comparing heights would leave out."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd

from ..case import Problem, takes
from .levels import EACH, ITEMS, LOG_TAU, effects_of_items
from .modes import SEVERAL
from .shared import names, stacked
from .trial import Moments, codes, moments_on_grid, trial

# Frequencies that rows at whole times do not tell apart


def sampled_wave(rng: np.random.Generator) -> pd.DataFrame:
    t = np.arange(400.0)
    return pd.DataFrame({"t": t, "y": rng.normal(0.8 * np.sin(2.3 * t))})


def _alias_moments(frame: pd.DataFrame) -> Moments:
    """Sum over grids about all frequencies that give the same waves, or their negatives."""
    t, y = frame["t"].to_numpy(), frame["y"].to_numpy()
    away, size = np.linspace(-0.02, 0.02, 161), np.linspace(-1.8, 1.8, 361)
    wave = np.sin((2.3 + away)[:, None] * t)
    known = (
        np.multiply.outer(wave @ y, size) - np.multiply.outer((wave**2).sum(axis=1), size**2) / 2
    )
    heights, u, sizes = [], [], []
    for k in range(6):
        for sign in (1, -1):
            # sin((2 pi k - f) t) = -sin(f t) at whole times.
            frequency = 2 * np.pi * k + sign * (2.3 + away)
            if frequency.min() <= 0:
                continue
            there = known - size**2 / 18 - frequency[:, None] ** 2 / 50
            heights.append(there.ravel())
            u.append(np.broadcast_to(np.log(frequency)[:, None], there.shape).ravel())
            sizes.append(np.broadcast_to(sign * size, there.shape).ravel())
    weights = np.exp(np.concatenate(heights) - np.max(heights))
    weights /= weights.sum()
    moments = {}
    for name, parts in (("frequency", u), ("size", sizes)):
        values = np.concatenate(parts)
        mean = weights @ values
        moments[name] = (float(mean), float(np.sqrt(weights @ (values - mean) ** 2)))
    return moments


@trial(
    "alias",
    draw=sampled_wave,
    exact=_alias_moments,
    truths=("lone-mode", *SEVERAL),
    notable=True,
)
def alias(t, y=None):
    size = numpyro.sample("size", dist.Normal(0.0, 3.0))
    frequency = numpyro.sample("frequency", dist.HalfNormal(5.0))
    with numpyro.plate("rows", len(t)):
        numpyro.sample("obs", dist.Normal(size * jnp.sin(frequency * t), 1.0), obs=y)


# Two lines, each with sites of its own, and the share of rows on the first


LINES = {"low": 0.0, "low_slope": 0.8, "high": 1.5, "high_slope": -0.5, "share": 0.4}


def two_line_rows(rng: np.random.Generator) -> pd.DataFrame:
    x, first = rng.normal(size=500), rng.random(500) < 0.35
    return pd.DataFrame({"x": x, "y": rng.normal(np.where(first, 1.0 + x, -1.0 - 0.5 * x), 0.6)})


def _lines(x: Any, y: Any, share: Any, lines: Any) -> Any:
    (a1, b1), (a2, b2) = lines
    first = jnp.log(share) + dist.Normal(a1 + b1 * x, 0.6).log_prob(y)
    second = jnp.log1p(-share) + dist.Normal(a2 + b2 * x, 0.6).log_prob(y)
    return jnp.logaddexp(first, second)


def two_lines_by_hand(x, y):
    """One labelling, which a coin exchanges."""
    wide = dist.Normal(0.0, 3.0)
    low, low_slope, high, high_slope = (
        numpyro.sample(f"{name}_", wide) for name in ("low", "low_slope", "high", "high_slope")
    )
    share, coin = (
        numpyro.sample("share_", dist.Uniform(0, 1)),
        numpyro.sample("coin", dist.Normal()),
    )
    numpyro.factor("order", jnp.where(low < high, 0.0, -jnp.inf))
    numpyro.factor("rows", _lines(x, y, share, ((low, low_slope), (high, high_slope))).sum())
    given = (low, low_slope, high, high_slope, share)
    swapped = (high, high_slope, low, low_slope, 1 - share)
    for name, one, other in zip(("a1", "b1", "a2", "b2", "share"), given, swapped, strict=True):
        numpyro.deterministic(name, jnp.where(coin > 0, one, other))


def _two_lines_problem(frame: pd.DataFrame) -> Problem:
    data = {name: frame[name].to_numpy() for name in "xy"}
    start = {"low_": -1.0, "low_slope_": -0.5, "high_": 1.0, "high_slope_": 1.0, "share_": 0.65}
    return Problem(two_lines_by_hand, data, start, ("a1", "b1", "a2", "b2", "share"))


@trial("two-lines", draw=two_line_rows, by_hand=_two_lines_problem, truths=SEVERAL, notable=True)
def two_lines(x, y=None):
    wide = dist.Normal(0.0, 3.0)
    a1, b1, a2, b2 = (numpyro.sample(name, wide) for name in ("a1", "b1", "a2", "b2"))
    share = numpyro.sample("share", dist.Uniform(0.0, 1.0))
    with numpyro.plate("rows", len(x)):
        numpyro.factor("density", _lines(x, y, share, ((a1, b1), (a2, b2))))


# Two sites that may be exchanged, beside crossed effects


def exchanged_rows(rng: np.random.Generator) -> pd.DataFrame:
    item = codes(ITEMS, EACH)
    x, z = rng.normal(size=(2, ITEMS * EACH))
    y = rng.normal(-0.5 * x + 0.6 * z + rng.normal(0.0, 0.4, ITEMS)[item])
    frame = pd.DataFrame({"item": item, "x": x, "z": z, "y": y})
    return frame.sample(frac=1.0, random_state=rng, ignore_index=True)


def _exchanged_moments(frame: pd.DataFrame) -> Moments:
    """Sum over p, q and log tau: squares are quadratic in the slopes p q and p + q."""
    frame = frame.sort_values("item", kind="stable")
    x, z, y = (frame[name].to_numpy().reshape(ITEMS, EACH) for name in "xzy")
    columns = np.stack([y, -x, -z])
    squares = np.einsum("ars,brs->ab", columns, columns)
    of_items = np.einsum("ar,br->ab", columns.sum(axis=2), columns.sum(axis=2))
    p = np.linspace(-1.5, 1.9, 341)
    slopes = np.stack([np.ones((341, 341)), p[:, None] * p, p[:, None] + p], axis=-1)
    whole, within = (np.einsum("pqa,ab,pqb->pq", slopes, m, slopes) for m in (squares, of_items))
    variance = np.exp(2 * LOG_TAU)
    shrunk = variance / (1 + EACH * variance)
    heights = -(whole[..., None] - within[..., None] * shrunk) / 2 + LOG_TAU - variance / 2
    heights += -ITEMS / 2 * np.log1p(EACH * variance)
    heights -= (p[:, None, None] ** 2 + p[:, None] ** 2) / 8
    return moments_on_grid(heights, {"p": p, "q": p, "tau": LOG_TAU})


@trial(
    "crossed-exchange", draw=exchanged_rows, exact=_exchanged_moments, truths=SEVERAL, notable=True
)
def crossed_exchange(item, x, z, y=None):
    p = numpyro.sample("p", dist.Normal(0.0, 2.0))
    q = numpyro.sample("q", dist.Normal(0.0, 2.0))
    b = effects_of_items()
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal(p * q * x + (p + q) * z + b[item], 1.0), obs=y)


# A needle that is higher than all the rest, and holds half of the mass

NEEDLE = 3e-5
SIGNS = np.array([1.0, -1.0, 1.0, 1.0, -1.0])


def needle_rows(rng: np.random.Generator) -> pd.DataFrame:
    """Rows whose estimate is where needle and slab have about the same evidence."""
    x, noise = rng.normal(size=(400, 5)), rng.normal(size=400)
    noise -= x @ np.linalg.lstsq(x, noise)[0]
    return pd.DataFrame(x, columns=names(5)).assign(y=x @ (0.132 * SIGNS) + noise)


def _needle_moments(frame: pd.DataFrame) -> Moments:
    x, y = frame[names(5)].to_numpy(), frame["y"].to_numpy()
    kinds = [(np.zeros(5), scale**2 * np.eye(5), 0.5) for scale in (NEEDLE, 1.0)]
    mean, sd = _of_two_kinds(x, y, kinds)
    return {f"beta[{i}]": (mean[i], sd[i]) for i in range(5)}


def _of_two_kinds(
    x: np.ndarray, y: np.ndarray, kinds: list[tuple[np.ndarray, np.ndarray, float]]
) -> tuple[np.ndarray, np.ndarray]:
    """Means and sds of a regression, sd 1, whose prior mixes normal distributions."""
    parts = []
    for center, prior, share in kinds:
        covariance = np.linalg.inv(x.T @ x + np.linalg.inv(prior))
        left = y - x @ center
        mean = covariance @ x.T @ left
        height = np.log(share) + np.linalg.slogdet(covariance)[1] / 2 - left @ left / 2
        height += left @ x @ mean / 2 - np.linalg.slogdet(prior)[1] / 2
        parts.append((height, center + mean, np.diag(covariance) + (center + mean) ** 2))
    heights, means, squares = map(np.array, zip(*parts, strict=True))
    weights = np.exp(heights - heights.max())
    mean, square = (weights @ each / weights.sum() for each in (means, squares))
    return mean, np.sqrt(square - mean**2)


@trial("needle", draw=needle_rows, exact=_needle_moments, truths=SEVERAL, notable=True)
@takes([*names(5), "y"])
def needle(y=None, **columns):
    scales = jnp.array([NEEDLE, 1.0])[:, None, None] * jnp.eye(5)
    kinds = dist.MultivariateNormal(jnp.zeros((2, 5)), scale_tril=scales)
    either = dist.MixtureSameFamily(dist.Categorical(probs=jnp.array([0.5, 0.5])), kinds)
    beta = numpyro.sample("beta", either)
    with numpyro.plate("rows", len(y)):
        numpyro.sample("obs", dist.Normal(stacked(columns) @ beta, 1.0), obs=y)


# A second opinion that a prior holds of what rows hardly know

OPINIONS = (
    (np.zeros(2), np.array([1.0, 1.0]), 0.97),
    (np.array([8.0, -9.0]), np.array([0.4, 2.0]), 0.03),
)


def doubted_rows(rng: np.random.Generator) -> pd.DataFrame:
    x = rng.normal(size=(800, 2)) * 0.005
    return pd.DataFrame(x, columns=names(2)).assign(y=rng.normal(1.5, 1.0, 800))


def _doubted_moments(frame: pd.DataFrame) -> Moments:
    x, y = frame[names(2)].to_numpy(), frame["y"].to_numpy()
    kinds = [
        (np.array([0.0, *center]), np.diag([25.0, *width**2]), share)
        for center, width, share in OPINIONS
    ]
    mean, sd = _of_two_kinds(np.column_stack([np.ones(len(y)), x]), y, kinds)
    return {name: (mean[i], sd[i]) for i, name in enumerate(["alpha", "beta[0]", "beta[1]"])}


@trial("opinions", draw=doubted_rows, exact=_doubted_moments, truths=SEVERAL, notable=True)
@takes([*names(2), "y"])
def opinions(y=None, **columns):
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 5.0))
    centers, widths, shares = (jnp.array(part) for part in zip(*OPINIONS, strict=True))
    about = dist.Normal(centers, widths).to_event(1)
    beta = numpyro.sample("beta", dist.MixtureSameFamily(dist.Categorical(probs=shares), about))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("obs", dist.Normal(alpha + stacked(columns) @ beta, 1.0), obs=y)
