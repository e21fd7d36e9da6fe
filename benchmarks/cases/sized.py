"""Models at any number of rows: what speed and growth are measured on.

``slopes`` is a random intercept and slope, ``binary`` has random intercepts, ``logistic`` is the
regression on 20 predictors of ``logistic-plain``; the first and the last also in the forms that
rivals of a sharded fit want them in. Of those tried on 50,000 rows (the rows of part "tuning" in
``results/speed.json``) NUTS was fastest with centred effects, predictors in a matrix, and a thread
for each chain.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from scipy.special import expit

from . import sound
from .case import CASES, Case, Problem
from .sound import PREDICTORS

ROWS_A_GROUP = 10
NOTHING = contextlib.nullcontext()
TRUTH = {"mu_a": 1.0, "mu_b": 0.5, "sigma_a": 1.0, "sigma_b": 0.7, "sigma": 1.0}
BINARY_TRUTH = {"alpha": -0.5, "beta": 0.7, "tau": 1.0}


def slopes(group, x, y=None, *, n_group):
    _slopes(group, x, y, n_group)


def slopes_of_shard(group, x, y, rows, *, n_group, power):
    """The same model as its author would temper it, with a mask for padding rows."""
    mask = NOTHING if rows is None else numpyro.handlers.mask(mask=rows)
    _slopes(group, x, y, n_group, numpyro.handlers.scale(scale=power), mask)


def _slopes(group, x, y, n_group, tempered=NOTHING, masked=NOTHING):
    with tempered:
        mu_a = numpyro.sample("mu_a", dist.Normal(0.0, 5.0))
        mu_b = numpyro.sample("mu_b", dist.Normal(0.0, 5.0))
        sigma_a = numpyro.sample("sigma_a", dist.HalfNormal(2.0))
        sigma_b = numpyro.sample("sigma_b", dist.HalfNormal(2.0))
        sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    with numpyro.plate("groups", n_group):
        a = numpyro.sample("a", dist.Normal(mu_a, sigma_a))
        b = numpyro.sample("b", dist.Normal(mu_b, sigma_b))
    with numpyro.plate("rows", len(x)), masked:
        numpyro.sample("obs", dist.Normal(a[group] + b[group] * x, sigma), obs=y)


def logistic_matrix(x, y=None, *, size=None):
    """The logistic regression on a matrix; with a size, on as many rows drawn at random."""
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 5.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.0).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("rows", len(x), subsample_size=size):
        if size is not None:
            x, y = numpyro.subsample(x, event_dim=1), numpyro.subsample(y, event_dim=0)
        numpyro.sample("obs", dist.Bernoulli(logits=alpha + x @ beta), obs=y)


def simulate_slopes(
    rng: np.random.Generator, sizes: np.ndarray
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Rows of the random intercepts and slopes, groups of these sizes; and the effects."""
    group = np.repeat(np.arange(len(sizes)), sizes)
    x = rng.normal(size=len(group))
    a = rng.normal(TRUTH["mu_a"], TRUTH["sigma_a"], len(sizes))
    b = rng.normal(TRUTH["mu_b"], TRUTH["sigma_b"], len(sizes))
    y = rng.normal(a[group] + b[group] * x, TRUTH["sigma"])
    return pd.DataFrame({"group": group, "x": x, "y": y}), {"a": a, "b": b}


def simulate_binary(
    rng: np.random.Generator, sizes: np.ndarray
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Binary rows with random intercepts, groups of these sizes; and the effects."""
    group = np.repeat(np.arange(len(sizes)), sizes)
    x = rng.normal(size=len(group))
    a = rng.normal(BINARY_TRUTH["alpha"], BINARY_TRUTH["tau"], len(sizes))
    y = rng.random(len(group)) < expit(a[group] + BINARY_TRUTH["beta"] * x)
    return pd.DataFrame({"group": group, "x": x, "y": y.astype(np.int8)}), {"a": a}


GROWING = {
    "slopes": (slopes, simulate_slopes, TRUTH),
    "binary": (sound.logistic_intercepts, simulate_binary, BINARY_TRUTH),
}
"""Model, rows and truth of what grows."""


def _equal_groups(rows: int) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    sizes = np.full(rows // ROWS_A_GROUP, ROWS_A_GROUP)
    return simulate_slopes(np.random.default_rng(51), sizes)


def sized_case(name: str, rows: int) -> Case:
    """``slopes`` or ``logistic`` with so many rows, in the form a user would write."""
    if name == "logistic":
        return replace(CASES["logistic-plain"], frame=lambda: sound.plain(rows))
    return Case(name, slopes, lambda: _equal_groups(rows)[0], start=TRUTH, by="group")


def full_problem(name: str, rows: int) -> Problem:
    """The same for a full fit, in its fastest form, from what the data were drawn from."""
    case = sized_case(name, rows)
    if name == "logistic":
        frame = case.frame()
        data = {"x": frame[PREDICTORS].to_numpy(), "y": frame["y"].to_numpy()}
        return Problem(logistic_matrix, data, case.start, tuple(case.start))
    frame, effects = _equal_groups(rows)
    return case.problem(frame)._replace(start={**TRUTH, **effects})
