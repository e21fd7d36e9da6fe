"""A zoo of models: one for each kind of prior, support, shape and handler that shards must bear.

Arguments bear the names of the columns of :func:`frame`, so that no model needs `columns`.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pyarrow as pa
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from numpyro.handlers import mask, reparam, scale, scope
from numpyro.infer.reparam import LocScaleReparam, TransformReparam

from dask_consensus.plan.plan import Plan

from . import from_pandas, plan

# How often models that count it are traced. Modules of one's own are copied with a model: this one,
# which no file holds, is not.
RUNS: Any = sys.modules.setdefault("runs_of_models", ModuleType("runs_of_models"))
RUNS.counts = Counter()
SMOKING = ("current", "ex", "never")
_LISTS = pd.ArrowDtype(pa.list_(pa.float64(), 3))


def frame(sizes: Sequence[Sequence[int]] = ((5, 4, 6), (5, 7)), seed: int = 0) -> pd.DataFrame:
    """Rows of counties within regions, shuffled; `sizes[region][county]` rows each.

    Counties of different regions share their names, as real ones do.
    """
    rng = np.random.default_rng(seed)
    keys = [
        (f"region {r}", f"county {c}")
        for r, counties in enumerate(sizes)
        for c, size in enumerate(counties)
        for _ in range(size)
    ]
    n = len(keys)
    table = pd.DataFrame(keys, columns=["region", "county"]).assign(
        x=rng.normal(size=n),
        z=rng.normal(size=n),
        y=rng.normal(1.0, 1.5, n),
        count=rng.poisson(3.0, n),
        share=rng.uniform(0.05, 0.95, n),
        flag=rng.random(n) < 0.4,
        smoking=pd.Categorical(rng.choice(SMOKING, n), categories=SMOKING),
        several=pd.Series(list(rng.normal(size=(n, 3))), dtype=_LISTS),
    )
    return table.sample(frac=1.0, random_state=seed).reset_index(drop=True)


class Case(NamedTuple):
    """A model, its keys, and the roles that its sites have.

    `shared` names its shared sites, in order; `local` and `data` map other sites to what they
    follow (a key, or "rows"); `prior` names terms of the prior that are no latent sites.
    """

    model: Callable[..., Any]
    by: tuple[str, ...]
    shared: tuple[str, ...]
    local: Mapping[str, str]
    data: Mapping[str, str]
    prior: tuple[str, ...]
    deterministics: tuple[str, ...]


ZOO: dict[str, Case] = {}


def case(
    shared: str,
    by: str = "",
    local: Mapping[str, str] | None = None,
    data: Mapping[str, str] | None = None,
    prior: str = "",
    deterministics: str = "",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(model: Callable[..., Any]) -> Callable[..., Any]:
        # A handler used as a decorator has no name of its own.
        ZOO[getattr(model, "fn", model).__name__] = Case(
            model,
            tuple(by.split()),
            tuple(shared.split()),
            local or {},
            data or {"obs": "rows"},
            tuple(prior.split()),
            tuple(deterministics.split()),
        )
        return model

    return register


@cache
def planned(name: str) -> Plan:
    """What `plan` says of a model of the zoo; it depends on the first rows of a frame only."""
    return plan(from_pandas(frame()), ZOO[name].model, by=list(ZOO[name].by) or None, n_shards=1)


def normal_rows(loc: Any, spread: Any, y: Any, name: str = "obs") -> None:
    with numpyro.plate("rows", len(y)):
        numpyro.sample(name, dist.Normal(loc, spread), obs=y)


# Rows alone


@case("mu sigma")
def positive(y):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    normal_rows(mu, numpyro.sample("sigma", dist.HalfNormal(2)), y)


@case("mu sigma")
def without_plate(y):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    sigma = numpyro.sample("sigma", dist.LogNormal(0, 1))
    numpyro.sample("obs", dist.Normal(mu, sigma), obs=y)


@case("rate third_derivative")
def unit_interval(flag, x):
    rate = numpyro.sample("rate", dist.Beta(2, 3))
    third_derivative = numpyro.sample("third_derivative", dist.Uniform(-2, 3))
    logits = jnp.log(rate) - jnp.log1p(-rate) + third_derivative * x
    numpyro.sample("obs", dist.Bernoulli(logits=logits), obs=flag)


@case("share loc sigma")
def simplex_and_ordered(y):
    share = numpyro.sample("share", dist.Dirichlet(jnp.array([2.0, 3.0, 4.0])))
    ordered = dist.TransformedDistribution(
        dist.Normal(jnp.zeros(3), 2).to_event(1), dist.transforms.OrderedTransform()
    )
    loc = numpyro.sample("loc", ordered)
    sigma = numpyro.sample("sigma", dist.Gamma(3, 3))
    mixture = dist.MixtureSameFamily(dist.Categorical(share), dist.Normal(loc, sigma))
    numpyro.sample("obs", mixture, obs=y)


@case("corr scales loc")
def cholesky_correlation(x, z, y):
    corr = numpyro.sample("corr", dist.LKJCholesky(3, 2.0))
    with numpyro.plate("axis", 3):
        scales = numpyro.sample("scales", dist.HalfNormal(2))
        loc = numpyro.sample("loc", dist.Normal(0, 2))
    outcome = jnp.stack([x, z, y], axis=-1)
    numpyro.sample(
        "obs", dist.MultivariateNormal(loc, scale_tril=scales[:, None] * corr), obs=outcome
    )


@case("B q sums", deterministics="total")
def vectors_and_matrices(x, z, y):
    B = numpyro.sample("B", dist.Normal(0, 1).expand([2, 3]).to_event(2))
    q = numpyro.sample("q", dist.MultivariateNormal(jnp.zeros(3), jnp.eye(3) + 0.3))
    sums = numpyro.sample("sums", dist.ZeroSumNormal(1.0, (4,)))
    total = numpyro.deterministic("total", B @ q)
    normal_rows(total[0] + x * total[1] + z * sums[0], 1.0, y)


@case("upper inner")
def support_that_depends_on_a_site(y):
    upper = numpyro.sample("upper", dist.Gamma(3, 1))
    inner = numpyro.sample("inner", dist.Uniform(-1, upper))
    normal_rows(inner, upper, y)


@case("mu log_sigma", deterministics="sigma pair")
def deterministics(y):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    sigma = numpyro.deterministic("sigma", jnp.exp(numpyro.sample("log_sigma", dist.Normal(0, 1))))
    numpyro.deterministic("pair", jnp.stack([mu, sigma]))
    numpyro.deterministic("residual", y - mu)  # of rows: no deterministic of shared sites
    normal_rows(mu, sigma, y)


@case("mu sigma", data={"rows_factor": "rows"}, prior="soft")
def factors(y):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2))
    numpyro.factor("soft", -0.5 * jnp.square(mu / sigma))
    numpyro.factor("rows_factor", -jnp.log(sigma) - jnp.abs(y - mu) / sigma)


@case("mu sigma", prior="known")
def observed_prior_term(y):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2))
    numpyro.sample("known", dist.Normal(mu, jnp.array([0.3, 0.4])), obs=jnp.array([0.9, 1.1]))
    normal_rows(mu, sigma, y)


@case("mu sigma")
def own_scales(y):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    with scale(scale=0.7):
        sigma = numpyro.sample("sigma", dist.HalfNormal(2))
    with scale(scale=1.7), numpyro.plate("rows", len(y)):
        numpyro.sample("obs", dist.Normal(mu, sigma), obs=y)


@case("mu", data={"obs": "rows", "zero": "rows"})
def own_masks(y, flag):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    with numpyro.plate("rows", len(y)):
        with mask(mask=flag):
            numpyro.sample("obs", dist.Normal(mu, 1), obs=y)
        numpyro.sample("zero", dist.Normal(mu, 1).mask(~flag), obs=0.5 * y)


@case("mu sigma loc")
def flat_priors(y, x):
    mu = numpyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
    sigma = numpyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    loc = numpyro.sample("loc", dist.ImproperUniform(constraints.real_vector, (), (2,)))
    normal_rows(mu + x * loc[0] - loc[1] * x**2, sigma, y)


@case("mu beta gamma")
def heavy_tails(y, x, z):
    mu = numpyro.sample("mu", dist.Cauchy(0, 5))
    beta = numpyro.sample("beta", dist.StudentT(3, 0, 1).expand([2]).to_event(1))
    gamma = numpyro.sample("gamma", dist.MultivariateStudentT(4, jnp.zeros(2), jnp.eye(2)))
    loc = mu + x * (beta[0] + gamma[0]) + z * (beta[1] + gamma[1])
    with numpyro.plate("rows", len(y)):
        numpyro.sample("obs", dist.StudentT(5, loc, 1), obs=y)


@case("level beta")
def categories(count, smoking, n_smoking):
    level = numpyro.sample("level", dist.Normal(0, 1))
    with numpyro.plate("smoking", n_smoking):
        beta = numpyro.sample("beta", dist.Normal(0, 1 / n_smoking))
    with numpyro.plate("rows", len(count)):
        numpyro.sample("obs", dist.Poisson(jnp.exp(level + beta[smoking])), obs=count)


@case("beta tau", by="county", local={"slopes": "county"})
def matrix(county, several, y, n_county):
    width = several.shape[1]
    beta = numpyro.sample("beta", dist.Normal(0, 1).expand([width]).to_event(1))
    tau = numpyro.sample("tau", dist.HalfNormal(1))
    with numpyro.plate("counties", n_county):
        slopes = numpyro.sample("slopes", dist.Normal(0, tau).expand([width]).to_event(1))
    normal_rows(jnp.sum(several * (beta + slopes[county]), axis=1), 1.0, y)


@case("start steps")
def walk_by_scan(y, x):
    start = numpyro.sample("start", dist.Normal(0, 1))

    def step(carry, _):
        carry = numpyro.sample("steps", dist.Normal(0.9 * carry, 0.5))
        return carry, carry

    _, path = scan(step, start, None, length=4)
    normal_rows(path[0] + x * path[-1], 1.0, y)


@case("inner/mu inner/sigma", data={"inner/obs": "rows"})
def scoped(y):
    with scope(prefix="inner"):
        positive(y)


@case("mu nu lam", local={"weight": "rows"})
def row_latents(y):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    nu = numpyro.sample("nu", dist.Gamma(2, 0.5))
    lam = numpyro.sample("lam", dist.HalfNormal(1))
    with numpyro.plate("rows", len(y)):
        weight = numpyro.sample("weight", dist.Gamma(nu / 2, nu / 2))
        numpyro.sample("obs", dist.Normal(mu, lam / jnp.sqrt(weight)), obs=y)


@case("mu sigma", local={"obs_unobserved": "rows"}, data={"obs_observed": "rows"})
def partly_observed(y, flag):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("obs", dist.Normal(mu, sigma), obs=y, obs_mask=flag)


# Groups


@case("mu tau beta", by="county", local={"alpha": "county"})
def intercepts(county, x, y, n_county):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfNormal(1))
    beta = numpyro.sample("beta", dist.Normal(0, 1))
    with numpyro.plate("county", n_county):
        alpha = numpyro.sample("alpha", dist.Normal(mu, tau))
    normal_rows(alpha[county] + beta * x, 1.0, y)


@case("mu_decentered tau", by="county", local={"alpha_decentered": "county"}, deterministics="mu")
@reparam(config={"alpha": LocScaleReparam(0), "mu": LocScaleReparam(0.3)})
def decentered(county, y, n_county):
    mu = numpyro.sample("mu", dist.Normal(1, 5))
    tau = numpyro.sample("tau", dist.HalfNormal(1))
    with numpyro.plate("county", n_county):
        alpha = numpyro.sample("alpha", dist.Normal(mu, tau))
    normal_rows(alpha[county], 1.0, y)


@case("mu tau_base", by="county", local={"alpha_base": "county"}, deterministics="tau")
def transformed(county, y, n_county):
    config = {"alpha": TransformReparam(), "tau": TransformReparam()}
    with reparam(config=config):
        mu = numpyro.sample("mu", dist.Normal(1, 5))
        affine = dist.transforms.AffineTransform(0.0, 2.0)
        tau = numpyro.sample("tau", dist.TransformedDistribution(dist.HalfNormal(1), affine))
        with numpyro.plate("county", n_county):
            shifted = dist.TransformedDistribution(
                dist.Normal(0, 1), dist.transforms.AffineTransform(mu, tau)
            )
            alpha = numpyro.sample("alpha", shifted)
    normal_rows(alpha[county], 1.0, y)


@case("scales corr loc", by="county", local={"effects": "county"})
def correlated_effects(county, x, y, n_county):
    scales = numpyro.sample("scales", dist.HalfNormal(1).expand([2]).to_event(1))
    corr = numpyro.sample("corr", dist.LKJCholesky(2, 2.0))
    loc = numpyro.sample("loc", dist.Normal(0, 3).expand([2]).to_event(1))
    with numpyro.plate("county", n_county):
        effects = numpyro.sample(
            "effects", dist.MultivariateNormal(loc, scale_tril=scales[:, None] * corr)
        )
    normal_rows(effects[county, 0] + x * effects[county, 1], 1.0, y)


@case("tau", by="county", local={"alpha": "county"})
def second_axis(county, x, y, n_county):
    with numpyro.plate("coefficient", 2, dim=-2):
        tau = numpyro.sample("tau", dist.HalfNormal(1))
        with numpyro.plate("county", n_county, dim=-1):
            alpha = numpyro.sample("alpha", dist.Gamma(2.0, 2.0 + tau))
    normal_rows(alpha[0, county] + x * alpha[1, county], 1.0, y)


@case("concentration", by="county", local={"shares": "county"})
def local_simplex(county, smoking, n_county):
    concentration = numpyro.sample("concentration", dist.Gamma(jnp.full(3, 2.0), 1.0).to_event(1))
    with numpyro.plate("county", n_county):
        shares = numpyro.sample("shares", dist.Dirichlet(concentration))
    with numpyro.plate("rows", len(smoking)):
        numpyro.sample("obs", dist.Categorical(probs=shares[county]), obs=smoking)


@case(
    "mu tau slope", by="county", local={"alpha": "county"}, data={"obs": "rows", "total": "county"}
)
def data_of_groups(county, x, y, n_county):
    """Group means as covariates and a group's total as outcome: sums over the group's own rows."""
    rows = jax.ops.segment_sum(jnp.ones_like(x), county, n_county)
    mean = jax.ops.segment_sum(x, county, n_county) / rows
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfNormal(1))
    slope = numpyro.sample("slope", dist.Normal(0, 1))
    with numpyro.plate("county", n_county):
        alpha = numpyro.sample("alpha", dist.Normal(mu + slope * mean, tau))
        total = jax.ops.segment_sum(y, county, n_county)
        numpyro.sample("total", dist.Normal(rows * alpha, 3 * jnp.sqrt(rows)), obs=total)
    normal_rows(alpha[county], 1.0, y)


@case(
    "mu tau_region tau_county",
    by="region county",
    local={"upper": "region", "lower": "county"},
)
def nested(region, county, y, n_region, n_county):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau_region = numpyro.sample("tau_region", dist.HalfNormal(1))
    tau_county = numpyro.sample("tau_county", dist.InverseGamma(3, 2))
    with numpyro.plate("region", n_region):
        upper = numpyro.sample("upper", dist.Normal(mu, tau_region))
    with numpyro.plate("county", n_county):
        lower = numpyro.sample("lower", dist.Normal(0, tau_county))
    normal_rows(upper[region] + lower[county], 1.0, y)


@case(
    "mu tau",
    by="region county",
    local={"upper": "region", "lower": "county", "noise": "rows"},
)
def nested_in_priors(region, county, y, n_region, n_county):
    """The lower level's prior looks up its upper one, and rows have effects too."""
    region_of = jnp.zeros(n_county, region.dtype).at[county].set(region)
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfNormal(jnp.ones(2)).to_event(1))
    with numpyro.plate("region", n_region):
        upper = numpyro.sample("upper", dist.Normal(mu, tau[0]))
    with numpyro.plate("county", n_county):
        lower = numpyro.sample("lower", dist.Normal(upper[region_of], tau[1]))
    with numpyro.plate("rows", len(y)):
        noise = numpyro.sample("noise", dist.Laplace(0, 0.5))
        numpyro.sample("obs", dist.Normal(lower[county] + noise, 1.0), obs=y)


@case("rate shape", by="county", local={"pace": "county"})
def own_scales_of_groups(county, count, n_county):
    rate = numpyro.sample("rate", dist.Gamma(2, 2))
    shape = numpyro.sample("shape", dist.Gamma(3, 1))
    with numpyro.plate("county", n_county), scale(scale=0.6):
        pace = numpyro.sample("pace", dist.Gamma(shape, rate))
    with scale(scale=1.3):
        numpyro.sample("obs", dist.Poisson(pace[county]), obs=count)
