"""Gradients of marginal likelihoods: closed forms, and differences of the likelihood itself."""

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats

from dask_consensus.model.model import precision
from dask_consensus.shard.marginal import log_likelihoods
from dask_consensus.shard.quadrature import Rule, gradient_ladder, ladder, rule
from dask_consensus.shard.score import Score, expanded, expansion, heights, score
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
    with precision(x64):
        model = read(slopes, values, groups=["g"])
        data = data_of(values, codes, padding)
        fewest = gradient_ladder(2)[0]
        at_u = score(model, data, u[None], 0.25, Rule(fewest))

    def tempered(u):
        # Normal(0, 5) for mu, HalfNormal(2) of exp(u) and its Jacobian for tau and sigma.
        normal = scipy.stats.norm.logpdf(u[:2], 0, 5).sum()
        half = scipy.stats.halfnorm.logpdf(np.exp(u[2:]), scale=2).sum() + u[2:].sum()
        return gaussian_log_likelihood(u, values, codes) + 0.25 * (normal + half)

    # Double precision either way: a Gaussian integral is exact but for rounding.
    np.testing.assert_allclose(at_u.value[0], tempered(u), rtol=1e-10)
    # Differences over 1e-4 of values near -100 err by 1e-12 / 1e-4, and by third derivatives of
    # some 100 times 1e-8 / 6.
    np.testing.assert_allclose(at_u.gradient[0], differences(tempered, u, 1e-4), atol=2e-6)


def test_points_of_several_blocks_are_one_after_another(linear_case):
    """More points than a block has: values do not depend on those beside them."""
    values, codes, u = linear_case
    model, data = read(slopes, values, groups=["g"]), data_of(values, codes)
    points = u + 0.1 * np.random.default_rng(2).normal(size=(40, 5))
    together = score(model, data, points, 0.25, Rule(2))
    alone = heights(model, data, points, 0.25, Rule(2))
    np.testing.assert_allclose(alone, together.value, rtol=1e-12)
    for i in (0, 31, 32, 39):
        alone = score(model, data, points[i : i + 1], 0.25, Rule(2))
        np.testing.assert_allclose(together.value[i], alone.value[0], rtol=1e-12)
        np.testing.assert_allclose(together.gradient[i], alone.gradient[0], rtol=1e-9, atol=1e-9)


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
        values = log_likelihoods(model, data, u[None], np.zeros_like(u), Rule(ladder(1)[-1]))
        return (values.log_likelihood + log_prior(model, data, u[None]))[0]

    expected = differences(total, u, 1e-3)
    most = score(model, data, u[None], 1.0, Rule(gradient_ladder(1)[-1])).gradient[0]
    # Differences over 1e-3 err by 1e-6 / 6 times third derivatives, sums over 120 rows.
    np.testing.assert_allclose(most, expected, atol=1e-4)


def test_expansion_of_a_quadratic_is_exact():
    def location(y=None):
        mu = numpyro.sample("mu", dist.Normal(0, 2).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(mu[0] + mu[1], 1.5), obs=y)

    values = {"y": np.arange(20.0)}
    model = read(location, values)
    axes = np.array([[0.3, 0.0], [-0.2, 0.1]])
    around = expansion(model, data_of(values), np.array([1.0, 2.0]), axes, 1.0, Rule(1))
    precision = 20 / 1.5**2 * np.ones((2, 2)) + np.eye(2) / 4
    # Differences of linear functions are exact but for rounding.
    np.testing.assert_allclose(around.precision, precision, rtol=1e-8)
    np.testing.assert_allclose(around.third_derivative, 0, atol=1e-8)
    expected = (values["y"] - 3.0).sum() / 1.5**2 - np.array([1.0, 2.0]) / 4
    np.testing.assert_allclose(around.gradient, expected, rtol=1e-8)


def test_steps_that_span_nothing_tell_no_precision():
    def location(y=None):
        mu = numpyro.sample("mu", dist.Normal(0, 2).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(mu[0] + mu[1], 1.5), obs=y)

    values = {"y": np.arange(20.0)}
    axes = np.array([[0.3, 0.0], [-0.2, 0.0]])
    around = expansion(read(location, values), data_of(values), np.ones(2), axes, 1.0, Rule(1))
    assert np.isnan(around.precision).all()
    assert np.isfinite(around.gradient).all()


@pytest.mark.parametrize("q", [1, 2, 3, 4, 7])
def test_fewest_nodes_hold_mean_and_variance(q):
    nodes = rule(q, gradient_ladder(q)[0])
    # Shares of the integral of 1 against a standard normal density.
    share = np.exp(nodes.log_weights - (nodes.points**2).sum(axis=1) / 2)
    # Exact rules: rounding alone is left.
    np.testing.assert_allclose(share.sum(), 1, rtol=1e-12)
    np.testing.assert_allclose(share @ nodes.points, 0, atol=1e-12)
    second = (nodes.points * share[:, None]).T @ nodes.points
    np.testing.assert_allclose(second, np.eye(q), atol=1e-12)


def test_what_is_infinite_a_step_away_is_not_a_number_and_no_warning():
    def ask(points):
        beyond = np.abs(points[:, 0]) > 1.5
        return Score(np.where(beyond, np.inf, 0.0), np.where(beyond[:, None], np.inf, -points))

    inside = expanded(np.zeros(2), np.eye(2), ask)
    np.testing.assert_array_equal(inside.precision, np.eye(2))
    for axes in (2 * np.eye(2), np.array([[2.0, 2.0], [0.0, 0.0]])):  # the latter have no inverse
        at_edge = expanded(np.zeros(2), axes, ask)
        assert not np.isfinite(at_edge.precision).all()
        assert not np.isfinite(at_edge.third_derivative).all()
