"""Gradients of marginal likelihoods: closed forms, and differences of the likelihood itself."""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from dask_consensus.shard.marginal import log_likelihoods
from dask_consensus.shard.quadrature import gradient_ladder, ladder, rule
from dask_consensus.shard.score import expansion, score
from dask_consensus.shard.target import log_prior

from .test_marginal import data_of, gaussian_log_likelihood, read, slopes


def differences(function, u, step):
    """Gradient of a function of u by central differences."""
    axes = step * np.eye(len(u))
    return np.array([(function(u + axis) - function(u - axis)) / (2 * step) for axis in axes])


@pytest.fixture
def linear_case():
    rng = np.random.default_rng(0)
    g = np.sort(np.append(np.arange(12), rng.integers(0, 12, 60)))
    x = rng.normal(size=len(g))
    y = rng.normal(size=(12, 2))[g] @ [1.0, 0.0] + x + 0.5 * rng.normal(size=len(g))
    return {"x": x, "y": y}, {"g": g}, np.array([0.1, 0.9, 0.2, -0.3, -0.6])


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("x64", [True, False])
def test_gaussian_effects_need_the_fewest_nodes(linear_case, padding, x64):
    values, codes, u = linear_case
    with jax.enable_x64(x64):
        model = read(slopes, values, groups=["g"])
        data = data_of(values, codes, padding)
        fewest = gradient_ladder(2)[0]
        found = score(model, data, u[None], 0.25, fewest)
        prior = differences(lambda u: log_prior(model, data, u[None])[0], u, 1e-4)
        value = 0.25 * log_prior(model, data, u[None])[0]
    values = {name: np.float32(column).astype(float) for name, column in values.items()}
    expected = differences(lambda u: gaussian_log_likelihood(u, values, codes), u, 1e-4)
    # Without x64 the data reach the model in single precision.
    np.testing.assert_allclose(found.gradient[0], expected + 0.25 * prior, rtol=2e-3, atol=2e-3)
    constant = gaussian_log_likelihood(u, values, codes) - found.value[0]
    assert abs(constant + value) < 2e-3 + 0.5 * 2 * 12 * np.log(2 * np.pi)


def intercepts(g, y=None, *, n_g):
    mu = numpyro.sample("mu", dist.Normal(0, 2))
    tau = numpyro.sample("tau", dist.HalfNormal(2))
    with numpyro.plate("g", n_g):
        b = numpyro.sample("b", dist.Normal(mu, tau))
    numpyro.sample("y", dist.Bernoulli(logits=b[g]), obs=y)


def test_more_nodes_give_the_likelihoods_own_gradient():
    rng = np.random.default_rng(1)
    g = np.repeat(np.arange(30), 4)
    values = {"y": rng.integers(0, 2, len(g))}
    model = read(intercepts, values, groups=["g"])
    data = data_of(values, {"g": g})
    u = 0.1 * np.arange(model.dim)

    def total(u):
        found = log_likelihoods(model, data, u[None], np.zeros_like(u), ladder(1)[-1])
        return (found.log_likelihood + log_prior(model, data, u[None]))[0]

    expected = differences(total, u, 1e-3)
    most = score(model, data, u[None], 1.0, gradient_ladder(1)[-1]).gradient[0]
    np.testing.assert_allclose(most, expected, atol=1e-3, rtol=1e-3)


def test_expansion_of_a_quadratic_is_exact():
    def location(y=None):
        mu = numpyro.sample("mu", dist.Normal(0, 2).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(mu[0] + mu[1], 1.5), obs=y)

    values = {"y": np.arange(20.0)}
    model = read(location, values)
    axes = np.array([[0.3, 0.0], [-0.2, 0.1]])
    found = expansion(model, data_of(values), np.array([1.0, 2.0]), axes, 1.0, 1)
    precision = 20 / 1.5**2 * np.ones((2, 2)) + np.eye(2) / 4
    np.testing.assert_allclose(found.precision, precision, rtol=1e-8)
    np.testing.assert_allclose(found.third_derivative, 0, atol=1e-8)
    expected = (values["y"] - 3.0).sum() / 1.5**2 - np.array([1.0, 2.0]) / 4
    np.testing.assert_allclose(found.gradient, expected, rtol=1e-8)


@pytest.mark.parametrize("q", [1, 2, 3, 4, 7])
def test_fewest_nodes_hold_mean_and_variance(q):
    nodes = rule(q, gradient_ladder(q)[0])
    # Shares of the integral of 1 against a standard normal density.
    share = np.exp(nodes.log_weights - (nodes.points**2).sum(axis=1) / 2)
    np.testing.assert_allclose(share.sum(), 1, rtol=1e-12)
    np.testing.assert_allclose(share @ nodes.points, 0, atol=1e-12)
    second = (nodes.points * share[:, None]).T @ nodes.points
    np.testing.assert_allclose(second, np.eye(q), atol=1e-12)
