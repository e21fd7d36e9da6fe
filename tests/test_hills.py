"""Units of several modes: found, integrated around each, and told by a rule of another kind."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats

from dask_consensus.model.model import precision
from dask_consensus.shard.hills import Hills, Surroundings
from dask_consensus.shard.marginal import log_likelihoods, most_modes
from dask_consensus.shard.quadrature import Rule
from dask_consensus.shard.second_opinion import log_averages, proposals_of, second_opinion

from .test_marginal import data_of, gaussian_log_likelihood, intercepts, read, slopes

SPREAD = 2.5


def two_populations(g, y=None, *, n_g):
    """Effects of two kinds, 4 apart; with tau the modes of a group come and go."""
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfNormal(5))
    with numpyro.plate("g", n_g):
        kinds = dist.Categorical(jnp.array([0.3, 0.7]))
        prior = dist.MixtureSameFamily(kinds, dist.Normal(jnp.stack([mu + 4, mu]), tau))
        b = numpyro.sample("b", prior)
    numpyro.sample("y", dist.Normal(b[g], SPREAD), obs=y)


@pytest.fixture(scope="module")
def populations():
    rng = np.random.default_rng(0)
    g = np.repeat(np.arange(30), 5)
    b = np.where(rng.random(30) < 0.3, 3.0, -1.0) + 0.5 * rng.normal(size=30)
    return {"y": b[g] + SPREAD * rng.normal(size=150)}, {"g": g}


def exact(values, codes, u):
    """Each group's mean is normal given its kind: a mixture in closed form, but for a constant."""
    means = np.array([values["y"][codes["g"] == j].mean() for j in range(30)])
    sd = np.hypot(np.exp(u[1]), SPREAD / np.sqrt(5))
    parts = [
        np.log(share) + scipy.stats.norm.logpdf(means, u[0] + shift, sd)
        for share, shift in ((0.3, 4.0), (0.7, 0.0))
    ]
    return np.logaddexp(*parts).sum()


# The first point is the center, where tau is so large that most groups have one mode.
POINTS = np.array([[-1.0, 0.3], [-1.0, -0.7], [-1.0, -1.5], [-0.5, -3.0], [-1.5, 0.8]])


@pytest.mark.parametrize("padding", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_modes_that_are_not_at_the_center_are_found_where_they_are(populations, padding):
    values, codes = populations
    expected = [exact(values, codes, u) - exact(values, codes, POINTS[0]) for u in POINTS]
    with precision(True):
        model = read(two_populations, values, groups=["g"])
        data = data_of(values, codes, padding)
        one, several = (
            log_likelihoods(model, data, POINTS, POINTS[0], Rule(21, n)) for n in (1, 2)
        )
    # 21 nodes around each of two modes; what is left is where the two parts meet.
    np.testing.assert_allclose(several.log_likelihood, expected, atol=0.01)
    assert not several.modes_not_found.any()
    assert np.abs(one.log_likelihood - expected).max() > 0.5


@pytest.mark.slow
def test_modes_are_counted_where_they_are(populations):
    values, codes = populations
    with precision(True):
        model = read(two_populations, values, groups=["g"])
        data = data_of(values, codes, 3)
        assert most_modes(model, data, np.array([[-1.0, -1.5]])) == 2
        assert most_modes(model, data, np.array([[-1.0, 3.0]])) == 1


def test_a_concave_density_has_one_mode():
    rng = np.random.default_rng(1)
    g = np.repeat(np.arange(40), 3)
    values, codes = {"y": rng.integers(0, 2, len(g))}, {"g": g}
    model = read(intercepts, values, groups=["g"])
    assert most_modes(model, data_of(values, codes), np.array([[0.1, 0.5]])) == 1


def test_a_second_opinion_sees_what_finer_nodes_do_not(populations):
    values, codes = populations
    points = POINTS[:3]
    expected = [exact(values, codes, u) - exact(values, codes, points[0]) for u in points]
    with precision(True):
        model = read(two_populations, values, groups=["g"])
        data = data_of(values, codes)
        opinions = second_opinion(model, data, points, Rule(41, 1), data.size, 1.0)
    # Halves of some 5,000 points a group say how well they know it: to 0.01 here, over 30 groups.
    assert np.sqrt((opinions.noise**2).sum(axis=1)).max() < 0.025
    np.testing.assert_allclose(opinions.second, expected, atol=0.05)
    assert np.abs(opinions.first - expected).max() > 0.5
    assert opinions.units == 30


@pytest.mark.slow
def test_a_second_opinion_agrees_on_gaussian_units():
    """Two effects a group, whose integral is a closed form that the rule has exactly."""
    rng = np.random.default_rng(0)
    values = {"x": rng.normal(size=60), "y": rng.normal(size=60)}
    codes = {"g": np.repeat(np.arange(12), 5)}
    points = np.array([[0.1, 0.2, 0.0, -0.3, 0.1], [0.3, 0.2, 0.4, -0.3, 0.1]])
    with precision(True):
        model = read(slopes, values, groups=["g"])
        data = data_of(values, codes, 2)
        opinions = second_opinion(model, data, points, Rule(5), data.size)
    first, other = (gaussian_log_likelihood(u, values, codes) for u in points)
    np.testing.assert_allclose(opinions.first[1], other - first, atol=1e-8)
    np.testing.assert_allclose(opinions.second[1], other - first, atol=0.02)
    # What the halves of its points say of each group says how far their sum is off.
    noise = np.sqrt((opinions.noise[1] ** 2).sum())
    assert abs(opinions.second[1] - (other - first)) < 4 * noise < 0.02


def test_a_unit_of_which_no_mode_was_found_is_integrated_over_its_prior():
    """The ascents of the second unit ended nowhere; both have standard normal densities."""
    ended = np.array([0.0, np.nan])
    effects, factor = (
        np.tile(ended[:, None], (2, 1, 1)),
        np.ones((2, 2, 1, 1)) + ended[:, None, None],
    )
    log_mass = np.array([[0.0, -np.inf], [-np.inf, -np.inf]])
    found = jax.tree.map(jnp.asarray, Hills(effects, factor, log_mass))
    around = Surroundings(jnp.zeros((2, 1)), jnp.ones((2, 1)))
    sobol = jnp.asarray(scipy.stats.qmc.Sobol(1, rng=0).random(128), found.effects.dtype)

    def values(effects):
        return -(effects.T**2) / 2

    told = log_averages(values, proposals_of(found, around), sobol, 1)
    np.testing.assert_allclose(told, np.log(128), atol=0.02)


@pytest.mark.parametrize("apart", [6.0, 40.0])
def test_heavy_shoulders_of_modes_are_integrated_too(apart):
    """Two rows of a group that disagree, both Cauchy: an eighth of the mass is in their tails."""
    centers = np.array([0.0, apart]).reshape(2, 1, 1)
    found = jax.tree.map(
        jnp.asarray, Hills(centers, np.full((2, 1, 1, 1), 2**0.5), np.zeros((2, 1)))
    )
    around = Surroundings(jnp.zeros((1, 1)), jnp.full((1, 1), 1e4))  # the prior's, which has no sd
    sobol = jnp.asarray(scipy.stats.qmc.Sobol(1, rng=0).random(256), found.effects.dtype)

    def values(effects):
        return -jnp.log1p(effects.T**2) - jnp.log1p((effects.T - apart) ** 2)

    told = log_averages(values, proposals_of(found, around), sobol, 1)
    exact = 2 * np.pi / (apart**2 + 4)  # the density of the difference of two
    np.testing.assert_allclose(told, np.log(256 * exact / np.sqrt(2 * np.pi)), atol=0.03)
