"""Groups within and across groups, and groups of many effects."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from scipy.special import expit

from .trial import CHAINS, EFFECTS, WEIGHTS, codes, trial

ALL = (*EFFECTS, *WEIGHTS)


def crossed_rows(rng: np.random.Generator) -> pd.DataFrame:
    school, item = codes(60, 20), np.tile(np.arange(10), 120)
    logits = -0.3 + rng.normal(0.0, 0.8, 60)[school] + rng.normal(0.0, 0.6, 10)[item]
    y = (rng.random(1_200) < expit(logits)).astype(float)
    labels = pd.Categorical.from_codes(item, [f"item {i}" for i in range(10)])
    return pd.DataFrame({"school": school, "item": labels, "y": y})


@trial(
    "crossed",
    draw=crossed_rows,
    by="school",
    start={"mu": -0.3, "tau": 0.8, "spread": 0.6, "ease": np.zeros(10)},
    centred={"a": 0.0},
    truths=ALL,
)
def crossed(school, item, y=None, *, n_school, n_item):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    with numpyro.plate("item", n_item):
        ease = numpyro.sample("ease", dist.Normal(0.0, spread))
    with numpyro.plate("schools", n_school):
        a = numpyro.sample("a", dist.Normal(0.0, tau))
    with numpyro.plate("rows", len(school)):
        numpyro.sample("obs", dist.Bernoulli(logits=mu + a[school] + ease[item]), obs=y)


def nested_rows(rng: np.random.Generator) -> pd.DataFrame:
    region, county = codes(30, 30), np.tile(codes(5, 6), 30)
    a, b = rng.normal(0.0, 0.8, 30), rng.normal(0.0, 0.5, 150)
    y = 1.0 + a[region] + b[5 * region + county] + rng.normal(size=900)
    return pd.DataFrame({"region": region, "county": county, "y": y})


@trial(
    "nested",
    draw=nested_rows,
    by=["region", "county"],
    start={"mu": 1.0, "tau": 0.8, "spread": 0.5, "sigma": 1.0},
    truths=(*CHAINS, *ALL),
)
def nested(region, county, y=None, *, n_region, n_county):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    with numpyro.plate("regions", n_region):
        a = numpyro.sample("a", dist.Normal(0.0, tau))
    with numpyro.plate("counties", n_county):
        b = numpyro.sample("b", dist.Normal(0.0, spread))
    with numpyro.plate("rows", len(region)):
        numpyro.sample("obs", dist.Normal(mu + a[region] + b[county], sigma), obs=y)


def five_effects(rng: np.random.Generator) -> pd.DataFrame:
    person, x = codes(80, 15), rng.normal(size=(1_200, 4))
    mixing = np.tril(0.3 * rng.normal(size=(5, 5)), -1) + np.diag([0.8, 0.6, 0.6, 0.4, 0.4])
    b = np.array([1.0, -0.5, 0.3, 0.0, 0.5]) + rng.normal(size=(80, 5)) @ mixing.T
    y = b[person, 0] + (x * b[person, 1:]).sum(axis=1) + rng.normal(size=1_200)
    return pd.DataFrame({"person": person, **{f"x{i}": x[:, i] for i in range(4)}, "y": y})


@trial(
    "lkj-5",
    draw=five_effects,
    by="person",
    start={"mu": np.zeros(5), "tau": np.full(5, 0.6), "corr": np.eye(5), "sigma": 1.0},
    truths=(*CHAINS, *ALL),
)
def lkj_5(person, x0, x1, x2, x3, y=None, *, n_person):
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0).expand([5]).to_event(1))
    tau = numpyro.sample("tau", dist.HalfNormal(2.0).expand([5]).to_event(1))
    corr = numpyro.sample("corr", dist.LKJCholesky(5, 2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    with numpyro.plate("persons", n_person):
        scale = tau[:, None] * corr
        b = numpyro.sample("b", dist.MultivariateNormal(mu, scale_tril=scale))
    x = jnp.stack([jnp.ones_like(x0), x0, x1, x2, x3], axis=1)
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal((x * b[person]).sum(axis=1), sigma), obs=y)
