"""Effects on several levels integrated out, against closed forms and nested quadrature by SciPy."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.special
import scipy.stats

from dask_consensus.model.model import precision
from dask_consensus.shard.engine import NestedQuadrature, engine_of
from dask_consensus.shard.quadrature import Rule

from .test_marginal import data_of, read


def two_levels(region, county, x, y=None, *, n_region, n_county):
    """Intercepts of regions, intercepts and slopes of counties that lie around the former."""
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfNormal(2).expand([3]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2))
    region_of = jnp.zeros(n_county, region.dtype).at[county].set(region)
    with numpyro.plate("region", n_region):
        upper = numpyro.sample("upper", dist.Normal(mu, tau[0]))
    with numpyro.plate("county", n_county):
        lower = numpyro.sample("lower", dist.Normal(upper[region_of], tau[1]))
        slope = numpyro.sample("slope", dist.Normal(0, tau[2]))
    numpyro.sample("y", dist.Normal(lower[county] + slope[county] * x, sigma), obs=y)


def three_levels(region, county, y=None, *, n_region, n_county):
    """Rows have effects too, which Gaussian rows of one value each cannot be told from noise."""
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfNormal(2).expand([3]).to_event(1))
    with numpyro.plate("county", n_county):
        lower = numpyro.sample("lower", dist.Normal(0, tau[1]))
    with numpyro.plate("region", n_region):
        upper = numpyro.sample("upper", dist.Normal(mu, tau[0]))
    with numpyro.plate("rows", len(region)):
        own = numpyro.sample("own", dist.Normal(0, tau[2]))
        numpyro.sample("y", dist.Normal(upper[region] + lower[county] + own, 0.5), obs=y)


def nested_codes(rng, counties=(3, 1, 4), rows=4):
    region_of = np.repeat(np.arange(len(counties)), counties)
    county = np.repeat(np.arange(len(region_of)), rng.integers(1, rows + 1, len(region_of)))
    return {"region": region_of[county], "county": county}


def covariance_of(model, u, codes, values):
    same = {name: code[:, None] == code for name, code in codes.items()}
    if model is two_levels:
        tau, sigma = np.exp(u[1:4]), np.exp(u[4])
        x = np.multiply.outer(values["x"], values["x"])
        inner = (tau[1] ** 2 + tau[2] ** 2 * x) * same["county"]
        noise = sigma**2
    else:
        tau = np.exp(u[1:4])
        inner, noise = tau[1] ** 2 * same["county"], tau[2] ** 2 + 0.25
    return tau[0] ** 2 * same["region"] + inner + noise * np.eye(len(same["county"]))


@pytest.mark.parametrize("model", [two_levels, pytest.param(three_levels, marks=pytest.mark.slow)])
def test_linear_mixed_models_have_their_closed_form(model):
    rng = np.random.default_rng(0)
    codes = nested_codes(rng)
    rows = len(codes["county"])
    values = {"x": rng.normal(size=rows)} if model is two_levels else {}
    d = 5 if model is two_levels else 4
    center = np.array([0.1, -0.2, 0.3, -0.5, -0.4])[:d]
    points = center + 0.3 * rng.normal(size=(6, d))
    zero = np.zeros(rows)
    draw = rng.multivariate_normal(zero, covariance_of(model, center, codes, values))
    values["y"] = 1.0 + draw

    def expected(u):
        cov = covariance_of(model, u, codes, values)
        return scipy.stats.multivariate_normal.logpdf(values["y"], np.full(rows, u[0]), cov)

    with precision(True):
        read_model = read(model, values, groups=["region", "county"])
        engine, data = engine_of(read_model), data_of(values, codes, padding=3)
        assert isinstance(engine, NestedQuadrature)
        assert not engine.obstacle
        there = {n: engine.values(data, points, center, Rule(n)) for n in engine.value_nodes[:2]}
        scores = engine.gradient(data, points, 0.0, Rule(engine.gradient_nodes[0]))
        units = [part.units for part in engine.unit_values(data, points, center, Rule(1))]
    truth = np.array([expected(u) for u in points])
    for found in there.values():
        # Exact for one node already.
        np.testing.assert_allclose(found.log_likelihood, truth - expected(center), atol=1e-7)
        np.testing.assert_allclose(found.at_center, expected(center), atol=1e-7)
        assert found.units == 3
        assert not found.modes_not_found.any()
        assert found.coupling < 1e-6
    np.testing.assert_allclose(scores.value, truth, atol=1e-6)
    np.testing.assert_allclose(np.concatenate(units)[:, :3].sum(axis=1), truth, atol=1e-6)
    step = 1e-4
    for axis in range(d):
        ahead = np.array([expected(u + step * np.eye(d)[axis]) for u in points])
        behind = np.array([expected(u - step * np.eye(d)[axis]) for u in points])
        slope = (ahead - behind) / (2 * step)
        np.testing.assert_allclose(scores.gradient[:, axis], slope, atol=1e-5)


def binary(region, county, y=None, *, n_region, n_county):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfNormal(2).expand([2]).to_event(1))
    with numpyro.plate("region", n_region):
        upper = numpyro.sample("upper", dist.Normal(0, 1))
    with numpyro.plate("county", n_county):
        lower = numpyro.sample("lower", dist.Normal(0, 1))
    logits = mu + tau[0] * upper[region] + tau[1] * lower[county]
    numpyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


def binary_log_likelihood(u, codes, y):
    """Nested trapezoidal rules about the priors, which converge as fast as any."""
    x = np.linspace(-8, 8, 321)
    w = scipy.stats.norm.pdf(x) * (x[1] - x[0])
    tau = np.exp(u[1:])
    logits = u[0] + tau[0] * x[:, None] + tau[1] * x
    log_one, log_zero = scipy.special.log_expit(logits), scipy.special.log_expit(-logits)
    total = 0.0
    for region in np.unique(codes["region"]):
        inside = np.zeros(len(x))
        for county in np.unique(codes["county"][codes["region"] == region]):
            mine = y[codes["county"] == county]
            inside += np.log(np.exp(mine.sum() * log_one + (1 - mine).sum() * log_zero) @ w)
        total += scipy.special.logsumexp(inside, b=w)
    return total


@pytest.mark.parametrize("counties", [pytest.param((3, 1, 4), marks=pytest.mark.slow), (60,)])
def test_binary_rows_against_nested_quadrature(counties):
    """Many skewed counties in one region: the mode of all effects together is far from its own."""
    rng = np.random.default_rng(1)
    codes = nested_codes(rng, counties)
    y = (rng.random(len(codes["county"])) < 0.15).astype(float)
    center = np.array([-1.5, -0.5, 0.2])
    points = center + 0.3 * rng.normal(size=(4, 3))
    steps = 1e-4 * np.eye(3)
    truth = np.array([binary_log_likelihood(u, codes, y) for u in points])
    slopes = [
        [binary_log_likelihood(u + e, codes, y) - binary_log_likelihood(u - e, codes, y)]
        for u in points
        for e in steps
    ]
    with precision(True):
        engine = engine_of(read(binary, {"y": y}, groups=["region", "county"]))
        data = data_of({"y": y}, codes)
        by_rule = [engine.values(data, points, center, Rule(n)) for n in engine.value_nodes]
        fewest, *_, most = engine.gradient_nodes
        few = engine.gradient(data, points, 0.0, Rule(fewest)).gradient
        many = engine.gradient(data, points, 0.0, Rule(most)).gradient
    expected = truth - binary_log_likelihood(center, codes, y)
    errors = [np.abs(values.log_likelihood - expected).max() for values in by_rule]
    assert not by_rule[0].modes_not_found.any()
    # Laplace's method misses what nodes see, and finer rules converge.
    assert errors[0] > 0.02
    assert errors[3] < errors[0] / 20
    assert errors[-2] < errors[0] / 200
    assert errors[-1] < 1e-5
    slopes = np.reshape(slopes, (-1, 3)) / 2e-4
    np.testing.assert_allclose(many, slopes, atol=1e-4)
    # Few nodes are for climbs. At one of the points, where counties differ by 3 in their logits,
    # they are off by an eighth of the slope.
    np.testing.assert_allclose(few, slopes, rtol=0.15, atol=0.3)
