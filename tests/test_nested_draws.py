"""Effects on several levels given the shared parameters, against closed forms and grids."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.special
import scipy.stats

from dask_consensus.model.model import precision
from dask_consensus.shard.engine import engine_of

from .test_marginal import data_of, read
from .test_nested import binary, nested_codes, two_levels

LEVELS = scipy.stats.norm.ppf([0.05, 0.5, 0.95])
U = np.array([0.1, -0.2, 0.3, -0.5, -0.4])  # mu, log tau of regions, counties, slopes, log sigma


def gaussian(counties=(3, 1, 4), padding=0):
    rng = np.random.default_rng(0)
    codes = nested_codes(rng, counties)
    x = rng.normal(size=len(codes["county"]))
    effects = rng.normal(size=len(counties))[codes["region"]]
    y = 0.1 + effects + rng.normal(size=codes["county"].max() + 1)[codes["county"]]
    values = {"x": x, "y": y + 0.6 * x + 0.7 * rng.normal(size=len(x))}
    with precision(True):
        model = read(two_levels, values, groups=["region", "county"])
    return model, data_of(values, codes, padding), values, codes


def conditional(u, values, codes):
    """Mean and covariance of upper, lower and slope, of all groups together, given u."""
    region, county = codes["region"], codes["county"]
    n, m, rows = region.max() + 1, county.max() + 1, len(county)
    tau, sigma = np.exp(u[1:4]), np.exp(u[4])
    region_of = np.zeros(m, int)
    region_of[county] = region
    # Each line is a number that is normal about zero: residuals of the prior, then of the rows.
    lines = np.zeros((n + 2 * m + rows, n + 2 * m))
    lines[: n + 2 * m] = np.eye(n + 2 * m)
    lines[n + np.arange(m), region_of] = -1
    lines[n + 2 * m + np.arange(rows), n + county] = 1
    lines[n + 2 * m + np.arange(rows), n + m + county] = values["x"]
    goal = np.concatenate([np.full(n, u[0]), np.zeros(2 * m), values["y"]])
    sd = np.repeat([*tau, sigma], [n, m, m, rows])
    scaled = lines / sd[:, None]
    covariance = np.linalg.inv(scaled.T @ scaled)
    return covariance @ scaled.T @ (goal / sd), covariance


@pytest.mark.parametrize("padding", [0, 3])
def test_of_normal_effects_all_statistics_are_exact(padding):
    model, data, values, codes = gaussian(padding=padding)
    draws = U + 0.01 * np.random.default_rng(1).normal(size=(24, 5))
    with precision(True):
        regions, counties = engine_of(model).summaries(data, draws, U, 1)
    given = [conditional(u, values, codes) for u in draws]
    means = np.array([mean for mean, _ in given])
    sd = np.sqrt(np.mean([np.diag(c) for _, c in given], axis=0) + means.var(axis=0))
    told = np.concatenate(
        [regions.statistics["upper"], *(counties.statistics[s] for s in ("lower", "slope"))], axis=1
    )
    np.testing.assert_allclose((told[0] - means.mean(axis=0)) / sd, 0, atol=1e-6)
    np.testing.assert_allclose(told[1], sd, rtol=1e-6)
    for level, quantile in zip(LEVELS, told[2:], strict=True):
        np.testing.assert_allclose((quantile - told[0]) / told[1], level, atol=0.01)
    # A county's own rows, its region's effect being known.
    tau, sigma = np.exp(U[1:4]), np.exp(U[4])
    for j in range(8):
        z = np.column_stack([np.ones_like(values["x"]), values["x"]])[codes["county"] == j]
        left = np.linalg.inv(z.T @ z / sigma**2 + np.diag(tau[1:] ** -2)).diagonal() / tau[1:] ** 2
        shrunk = [counties.shrinkage[s][j] for s in ("lower", "slope")]
        np.testing.assert_allclose(shrunk, left, rtol=1e-6)
    np.testing.assert_allclose(
        regions.shrinkage["upper"],
        conditional(U, values, codes)[1].diagonal()[:3] / tau[0] ** 2,
        rtol=1e-6,
    )
    assert regions.efficiency.min() > 0.999
    assert counties.efficiency.min() > 0.999
    assert regions.modes_not_found == counties.modes_not_found == 0


def test_the_normal_distribution_given_u_is_that_of_both_levels_together():
    model, data, values, codes = gaussian()
    draws = U + 0.01 * np.random.default_rng(1).normal(size=(24, 5))
    with precision(True):
        regions, counties = (s.given_shared for s in engine_of(model).summaries(data, draws, U, 1))
    mean, covariance = conditional(U, values, codes)
    np.testing.assert_allclose(regions.mean[:, 0], mean[:3], atol=1e-3)
    np.testing.assert_allclose(counties.mean.T.ravel(), mean[3:], atol=1e-3)
    region_of = np.zeros(8, int)
    region_of[codes["county"]] = codes["region"]
    spread = regions.covariance[:, 0, 0][region_of]
    # How far a county's effects follow its region's, and what is left of them.
    with_upper = covariance[region_of, 3 + np.arange(8)]
    np.testing.assert_allclose(counties.outer[:, 0, 0] * spread, with_upper, rtol=0.01)
    total = counties.covariance[:, 0, 0] + counties.outer[:, 0, 0] ** 2 * spread
    np.testing.assert_allclose(total, covariance.diagonal()[3:11], rtol=0.01)
    step = 1e-4 * np.eye(5)
    ahead, behind = (conditional(U + s, values, codes)[0] for s in (step[1], -step[1]))
    slope = (ahead - behind) / 2e-4
    np.testing.assert_allclose(regions.slope[:, 0, 1], slope[:3], atol=1e-4)
    moved = counties.slope[:, 0, 1] + counties.outer[:, 0, 0] * slope[:3][region_of]
    np.testing.assert_allclose(moved, slope[3:11], atol=1e-4)


def test_draws_of_both_levels_belong_together():
    """Standardised by their exact joint distribution, they are independent standard normals."""
    model, data, values, codes = gaussian(padding=2)
    n = 1500
    draws = U + 0.3 * np.random.default_rng(1).normal(size=(n, 5))
    with precision(True):
        engine, numbers = engine_of(model), np.arange(n)
        look = engine.look(data, draws[:16], U, 1)
        drawn = engine.draws(data, draws, U, 1, (3, 0, numbers), look)
        apart = engine.draws(data, draws[1000:1040], U, 1, (3, 0, numbers[1000:1040]), look)
    assert look == 0
    np.testing.assert_array_equal(drawn["lower"][1000:1040], apart["lower"])
    together = np.concatenate([drawn[s] for s in ("upper", "lower", "slope")], axis=1)
    standard = np.empty_like(together)
    for i, u in enumerate(draws):
        mean, covariance = conditional(u, values, codes)
        standard[i] = np.linalg.solve(np.linalg.cholesky(covariance), together[i] - mean)
    correlation = np.corrcoef(standard, rowvar=False) - np.eye(19)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(n)
    assert scipy.stats.kstest(standard.ravel(), "norm").pvalue > 1e-3
