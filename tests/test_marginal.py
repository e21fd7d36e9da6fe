"""Local effects integrated out, against closed forms, SciPy's quadrature and NumPyro itself."""

import itertools

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from numpyro.infer.util import log_likelihood

from dask_consensus.model.model import ShardModel, precision
from dask_consensus.model.roles import ModelInputs, read_model
from dask_consensus.shard.effects import obstacle
from dask_consensus.shard.marginal import log_likelihoods, modes_at, unit_log_likelihoods
from dask_consensus.shard.quadrature import Rule, ladder, rule
from dask_consensus.shard_data import ShardData


def read(model, values, *, groups=(), levels=()):
    """Read a model whose arguments g0, g1, ... are codes."""
    codes = {name: level for level, name in enumerate(groups)}
    counts = {f"n_{name}": level for name, level in codes.items()}
    return read_model(model, ModelInputs(values, codes, tuple(levels or groups), counts, {}, {}))


def data_of(values, codes=None, padding=0):
    """All rows real, but for `padding` rows and as many padding groups at each level."""
    codes = codes or {}
    rows = len(next(iter(values.values())))
    sizes = {name: int(code.max()) + 1 for name, code in codes.items()}
    arguments = {k: np.append(v, np.repeat(v[-1:], padding)) for k, v in values.items()}
    for name, code in codes.items():
        arguments[name] = np.append(code, sizes[name] + np.arange(padding)).astype(np.int32)
    masks = tuple(np.arange(size + padding) < size for size in sizes.values())
    return ShardData(arguments, np.arange(rows + padding) < rows, masks)


def slopes(g, x, y=None, *, n_g):
    mu = numpyro.sample("mu", dist.Normal(0, 5).expand([2]).to_event(1))
    tau = numpyro.sample("tau", dist.HalfNormal(2).expand([2]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2))
    with numpyro.plate("g", n_g):
        b = numpyro.sample("b", dist.Normal(mu, tau).to_event(1))
    numpyro.sample("y", dist.Normal(b[g, 0] + b[g, 1] * x, sigma), obs=y)


@pytest.fixture
def gaussian_case():
    rng = np.random.default_rng(0)
    g = np.sort(np.append(np.arange(12), rng.integers(0, 12, 60)))
    x = rng.normal(size=len(g))
    y = rng.normal(size=(12, 2))[g] @ [1.0, 0.0] + x + 0.5 * rng.normal(size=len(g))
    center = np.array([0.1, 0.9, 0.2, -0.3, -0.6])
    points = center + rng.normal(size=(9, 5)) * 0.3
    return {"x": x, "y": y}, {"g": g}, center, points


def gaussian_log_likelihood(u, values, codes):
    """Marginal of a linear mixed model, group by group."""
    mu, tau, sigma = u[:2], np.exp(u[2:4]), np.exp(u[4])
    total = 0.0
    for j in range(codes["g"].max() + 1):
        mine = codes["g"] == j
        z = np.column_stack([np.ones(mine.sum()), values["x"][mine]])
        covariance = (z * tau**2) @ z.T + sigma**2 * np.eye(mine.sum())
        total += scipy.stats.multivariate_normal.logpdf(values["y"][mine], z @ mu, covariance)
    return total


@pytest.mark.parametrize("x64", [True, False])
@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("number", [1, 5])
def test_linear_mixed_model_has_its_closed_form(gaussian_case, x64, padding, number):
    values, codes, center, points = gaussian_case
    if not x64:
        center, points = (a.astype(np.float32).astype(float) for a in (center, points))
    with precision(x64):
        model = read(slopes, values, groups=["g"])
        found = log_likelihoods(
            model, data_of(values, codes, padding), points, center, Rule(number)
        )
    expected = np.array([gaussian_log_likelihood(u, values, codes) for u in points])
    at_center = gaussian_log_likelihood(center, values, codes)
    # The integral is exact for one node already, and taken in double precision either way; in
    # single precision it is the data that are rounded.
    tolerance = 1e-9 if x64 else 2e-4
    np.testing.assert_allclose(found.log_likelihood, expected - at_center, atol=tolerance)
    np.testing.assert_allclose(found.at_center, at_center, atol=10 * tolerance)
    assert found.units == 12
    assert not found.modes_not_found.any()
    assert found.coupling < 1e-3


def two_sites(g, x, y=None, *, n_g):
    """The same model, its effects in two sites of different shapes, in the other order."""
    mu = numpyro.sample("mu", dist.Normal(0, 5).expand([2]).to_event(1))
    tau = numpyro.sample("tau", dist.HalfNormal(2).expand([2]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2))
    with numpyro.plate("g", n_g):
        slope = numpyro.sample("slope", dist.Normal(mu[1], tau[1]))
        level = numpyro.sample("level", dist.Normal(mu[:1], tau[:1]).to_event(1))
    numpyro.sample("y", dist.Normal(level[g, 0] + slope[g] * x, sigma), obs=y)


@pytest.mark.parametrize("padding", [0, 3])
def test_effects_in_several_sites_are_each_their_own(gaussian_case, padding):
    values, codes, center, points = gaussian_case
    with precision(True):
        model = read(two_sites, values, groups=["g"])
        data = data_of(values, codes, padding)
        marginal = log_likelihoods(model, data, points, center, Rule(5))
        modes = modes_at(model, data, center)
    expected = np.array([gaussian_log_likelihood(u, values, codes) for u in points])
    at_center = gaussian_log_likelihood(center, values, codes)
    # Exact but for rounding, as above.
    np.testing.assert_allclose(marginal.log_likelihood, expected - at_center, atol=1e-9)
    assert modes.local["slope"].shape == (12 + padding,)
    assert modes.local["level"].shape == (12 + padding, 1)


def intercepts(g, y=None, *, n_g):
    mu = numpyro.sample("mu", dist.Normal(0, 2))
    tau = numpyro.sample("tau", dist.HalfNormal(2))
    with numpyro.plate("g", n_g):
        b = numpyro.sample("b", dist.Normal(0, 1))
    numpyro.sample("y", dist.Bernoulli(logits=mu + tau * b[g]), obs=y)


def test_sparse_binary_groups_need_nodes_not_laplace():
    rng = np.random.default_rng(1)
    g = np.repeat(np.arange(40), 3)
    y = rng.integers(0, 2, len(g))
    center, points = np.array([0.1, 0.5]), np.array([[0.3, 1.0], [-0.4, 0.0]])

    def exact(u):
        total = 0.0
        for j in range(40):
            ones = y[g == j].sum()

            def density(b, ones=ones):
                p = scipy.special.expit(u[0] + np.exp(u[1]) * b)
                return p**ones * (1 - p) ** (3 - ones) * scipy.stats.norm.pdf(b)

            total += np.log(scipy.integrate.quad(density, -12, 12)[0])
        return total

    expected = np.array([exact(u) for u in points]) - exact(center)
    with precision(True):
        model = read(intercepts, {"y": y}, groups=["g"])
        found = {
            n: log_likelihoods(model, data_of({"y": y}, {"g": g}), points, center, Rule(n))
            for n in ladder(1)
        }
    errors = [np.abs(found[n].log_likelihood - expected).max() for n in ladder(1)]
    assert errors[0] > 0.05  # Laplace's method
    # Each rung takes at least nine tenths of the error away; 11 nodes leave 0.001 here.
    assert errors[2] < 2e-3
    assert all(more < fewer / 10 for fewer, more in itertools.pairwise(errors[1:]))
    assert errors[-1] < 1e-6


def test_row_level_latents_are_integrated_row_by_row():
    def model(y=None):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        tau = numpyro.sample("tau", dist.HalfNormal(5))
        with numpyro.plate("rows", len(y)):
            theta = numpyro.sample("theta", dist.Normal(mu, tau))
            numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    y = np.random.default_rng(2).normal(size=50)
    center, points = np.array([0.0, 0.0]), np.array([[0.5, 0.3], [-1.0, -2.0]])
    with precision(True):
        found = log_likelihoods(read(model, {"y": y}), data_of({"y": y}), points, center, Rule(1))

    def exact(u):
        return scipy.stats.norm.logpdf(y, u[0], np.hypot(1, np.exp(u[1]))).sum()

    expected = [exact(u) - exact(center) for u in points]
    np.testing.assert_allclose(found.log_likelihood, expected, atol=1e-9)


def test_without_local_effects_it_is_numpyros_log_likelihood():
    def model(x, y=None):
        beta = numpyro.sample("beta", dist.Normal(0, 2).expand([2]).to_event(1))
        numpyro.sample("y", dist.Poisson(jnp.exp(beta[0] + beta[1] * x)), obs=y)

    rng = np.random.default_rng(3)
    x = rng.normal(size=300)
    y = rng.poisson(np.exp(0.2 + 0.5 * x))
    center, points = np.array([0.2, 0.5]), rng.normal(size=(5, 2))
    with precision(True):
        read_ = read(model, {"x": x, "y": y})
        found = log_likelihoods(
            read_, data_of({"x": x, "y": y}, padding=7), points, center, Rule(1)
        )
        everywhere = {"beta": jnp.asarray(np.vstack([center, points]))}
        theirs = np.asarray(log_likelihood(model, everywhere, x=x, y=y)["y"].sum(axis=1))
    np.testing.assert_allclose(found.log_likelihood, theirs[1:] - theirs[0], rtol=1e-10)
    np.testing.assert_allclose(found.at_center, theirs[0], rtol=1e-10)


def test_inner_level_of_nested_keys():
    def model(region, county, y=None, *, n_county):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        tau = numpyro.sample("tau", dist.HalfNormal(5))
        with numpyro.plate("county", n_county):
            b = numpyro.sample("b", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(b[county], 1.0), obs=y)

    rng = np.random.default_rng(4)
    county = np.repeat(np.arange(9), 4)
    codes, values = {"region": county // 3, "county": county}, {"y": rng.normal(size=36)}
    reading = ModelInputs(values, {"region": 0, "county": 1}, ("R", "C"), {"n_county": 1}, {}, {})
    center, points = np.array([0.0, 0.0]), rng.normal(size=(3, 2))
    with precision(True):
        found = log_likelihoods(
            read_model(model, reading), data_of(values, codes, 2), points, center, Rule(1)
        )

    def exact(u):
        covariance = np.exp(2 * u[1]) + np.eye(4)
        by_county = values["y"].reshape(9, 4)
        return scipy.stats.multivariate_normal.logpdf(by_county, np.full(4, u[0]), covariance).sum()

    expected = [exact(u) - exact(center) for u in points]
    np.testing.assert_allclose(found.log_likelihood, expected, atol=1e-9)


def test_student_t_errors_are_not_concave_and_are_integrated_all_the_same():
    def model(g, y=None, *, n_g):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        with numpyro.plate("g", n_g):
            b = numpyro.sample("b", dist.Normal(mu, 2.0))
        numpyro.sample("y", dist.StudentT(3.0, b[g], 0.5), obs=y)

    y = np.array([-4.0, 0.0, 0.3, 6.0, 1.0, 1.2, -9.0, 1.1])
    g = np.repeat([0, 1], 4)
    center, point = np.array([0.0]), np.array([[0.8]])

    def exact(mu):
        total = 0.0
        for j in (0, 1):

            def density(b, j=j):
                rows = scipy.stats.t.pdf(y[g == j], 3, b, 0.5)
                return np.prod(rows) * scipy.stats.norm.pdf(b, mu, 2)

            total += np.log(scipy.integrate.quad(density, -15, 15, limit=400)[0])
        return total

    with precision(True):
        model_ = read(model, {"y": y}, groups=["g"])
        found = log_likelihoods(model_, data_of({"y": y}, {"g": g}), point, center, Rule(41))
    # Two humps in each group: 41 nodes around one of them still see both.
    np.testing.assert_allclose(found.log_likelihood, exact(0.8) - exact(0.0), atol=0.02)


def test_coupled_groups_show_in_the_probed_hessian_and_are_an_obstacle():
    def model(g, y=None, *, n_g):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        with numpyro.plate("g", n_g):
            b = numpyro.sample("b", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu + (b - b.mean())[g], 1.0), obs=y)

    rng = np.random.default_rng(5)
    g = np.repeat(np.arange(5), 3)
    values = {"y": rng.normal(size=15)}
    model_ = read(model, values, groups=["g"])
    assert "depend on each other" in obstacle(model_)
    found = log_likelihoods(
        model_, data_of(values, {"g": g}), np.zeros((1, 1)), np.zeros(1), Rule(1)
    )
    assert found.coupling > 0.02


def test_modes_are_where_the_gradient_is_zero(gaussian_case):
    values, codes, center, _ = gaussian_case
    with precision(True):
        model: ShardModel = read(slopes, values, groups=["g"])
        found = modes_at(model, data_of(values, codes), center)
    tau, sigma = np.exp(center[2:4]), np.exp(center[4])
    for j in range(12):
        mine = codes["g"] == j
        z = np.column_stack([np.ones(mine.sum()), values["x"][mine]])
        inverse = z.T @ z / sigma**2 + np.diag(tau**-2)
        mean = np.linalg.solve(inverse, z.T @ values["y"][mine] / sigma**2 + center[:2] / tau**2)
        np.testing.assert_allclose(found.local["b"][j], mean, atol=1e-8)
        np.testing.assert_allclose(
            found.variances["b"][j], np.diag(np.linalg.inv(inverse)), rtol=1e-8
        )


@pytest.mark.parametrize(("q", "number"), [(1, 5), (2, 5), (3, 3), (4, 32), (6, 1056)])
def test_rules_integrate_moments_of_a_normal(q, number):
    nodes = rule(q, number)
    weights = np.exp(nodes.log_weights - (nodes.points**2).sum(axis=1) / 2)
    np.testing.assert_allclose(weights.sum(), 1, atol=1e-12)
    np.testing.assert_allclose(weights @ nodes.points, 0, atol=1e-12)
    np.testing.assert_allclose(weights @ nodes.points**2, 1, atol=1e-12)


@pytest.mark.parametrize("padding", [0, 3])
def test_units_add_up_to_the_whole(gaussian_case, padding):
    values, codes, center, points = gaussian_case
    model = read(slopes, values, groups=["g"])
    data = data_of(values, codes, padding)
    whole = log_likelihoods(model, data, points, center, Rule(1))
    parts = list(unit_log_likelihoods(model, data, points, center, Rule(1)))
    units = np.concatenate([part.units for part in parts])[:, :12]
    assert units.shape == (len(points), 12)
    assert all(part.groups == () for part in parts)
    np.testing.assert_allclose(units.sum(axis=1), whole.log_likelihood + whole.at_center, atol=1e-8)
    np.testing.assert_allclose(
        units.sum(axis=1), [gaussian_log_likelihood(u, values, codes) for u in points], atol=1e-6
    )
