"""Effects on several levels given the shared parameters, against closed forms and grids."""

import numpy as np
import pytest
import scipy.special
import scipy.stats

from dask_consensus.model.model import precision
from dask_consensus.shard import nested_summaries
from dask_consensus.shard.engine import engine_of

from .test_marginal import data_of, read
from .test_nested import binary, nested_codes, three_levels, two_levels

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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


def of_a_county(u, codes, y, county, x):
    """Densities on a grid of the effects of a county and of its region; and of both."""
    weight = scipy.stats.norm.pdf(x)
    tau = np.exp(u[1:])
    logits = u[0] + tau[0] * x[:, None] + tau[1] * x
    log_one, log_zero = scipy.special.log_expit(logits), scipy.special.log_expit(-logits)
    region = codes["region"][codes["county"] == county][0]
    outer = np.log(weight)
    for other in np.unique(codes["county"][codes["region"] == region]):
        mine = y[codes["county"] == other]
        inner = np.exp(mine.sum() * log_one + (1 - mine).sum() * log_zero) * weight
        outer = outer + np.log(inner.sum(axis=1))
        if other == county:
            given = inner / inner.sum(axis=1, keepdims=True)
    return region, scipy.special.softmax(outer)[:, None] * given


@pytest.mark.parametrize(
    ("counties", "log_taus", "closer"),
    [
        pytest.param((3, 1, 4, 2), (0.0, 0.4), False, marks=pytest.mark.slow),
        pytest.param((60, 1), (0.0, 0.4), False, marks=pytest.mark.slow),
        pytest.param((400,), (-0.5, 0.7), False, marks=pytest.mark.slow),
        # So far apart that a county of equal rows may be anywhere on its side.
        pytest.param((3, 1, 4, 2), (1.1, 1.4), True, marks=pytest.mark.slow),
    ],
)
def test_effects_of_skewed_binary_rows_against_a_grid(counties, log_taus, closer, monkeypatch):
    rng = np.random.default_rng(1)
    codes = nested_codes(rng, counties)
    y = (rng.random(len(codes["county"])) < 0.15).astype(float)
    center = np.array([-1.5, *log_taus])
    draws = center + 0.1 * rng.normal(size=(24, 3))
    looks = []
    real = nested_summaries._summarized
    monkeypatch.setattr(nested_summaries, "_summarized", lambda *a: looks.append(a[-1]) or real(*a))
    n = 2400
    many, numbers = np.tile(draws, (n // 24, 1)), np.arange(n)
    with precision(True):
        engine = engine_of(read(binary, {"y": y}, groups=["region", "county"]))
        data = data_of({"y": y}, codes)
        told = engine.summaries(data, draws, center, 1)
        look = engine.look(data, draws[:16], center, 1)
        drawn = engine.draws(data, many, center, 1, (0, 0, numbers), look)
    assert looks[0] == ()
    assert (len(looks) == 2) == closer
    x = np.linspace(-7, 7, 281)
    for county in np.linspace(0, codes["county"].max(), 4).astype(int):
        joint = 0.0
        for u in draws:
            region, density = of_a_county(u, codes, y, county, x)
            joint = joint + density / len(draws)
        of_both = drawn["upper"][:, region], drawn["lower"][:, county]
        summaries = told[0].statistics["upper"][:, region], told[1].statistics["lower"][:, county]
        means, sds = [], []
        for density, summary, its in zip(
            (joint.sum(axis=1), joint.sum(axis=0)), summaries, of_both, strict=True
        ):
            mean = density @ x
            sd = np.sqrt(density @ (x - mean) ** 2)
            ends = np.interp([0.05, 0.5, 0.95], np.cumsum(density) - density / 2, x)
            assert abs(summary[0] - mean) / sd < (0.04 if closer else 0.02)
            assert abs(summary[1] / sd - 1) < (0.05 if closer else 0.01)
            np.testing.assert_allclose((summary[2:] - ends) / sd, 0, atol=0.15 if closer else 0.03)
            # With few candidates draws of what is skewed are a little narrow.
            assert abs(its.mean() - mean) / sd < 4 / np.sqrt(n)
            assert abs(its.std() / sd - 1) < 0.07
            means.append(mean)
            sds.append(sd)
        correlation = (x @ joint @ x - means[0] * means[1]) / (sds[0] * sds[1])
        assert abs(np.corrcoef(*of_both)[0, 1] - correlation) < 4 / np.sqrt(n)


@pytest.mark.slow
def test_three_levels_have_their_closed_form():
    """Effects of rows are within those of counties, and stay unreturned."""
    rng = np.random.default_rng(0)
    codes = nested_codes(rng)
    rows = len(codes["county"])
    center = np.array([0.1, -0.2, 0.3, -0.5])
    tau = np.exp(center[1:])
    values = {"y": 1.0 + rng.normal(size=rows)}
    same = [codes[name][:, None] == np.arange(codes[name].max() + 1) for name in codes]
    z = np.concatenate(same, axis=1).astype(float)
    n, m = (part.shape[1] for part in same)
    prior = np.repeat(tau[:2] ** -2, [n, m])
    noise = tau[2] ** 2 + 0.25
    covariance = np.linalg.inv(z.T @ z / noise + np.diag(prior))
    mean = covariance @ (z.T @ values["y"] / noise + prior * np.repeat([center[0], 0.0], [n, m]))
    with precision(True):
        model = read(three_levels, values, groups=["region", "county"])
        told = engine_of(model).summaries(
            data_of(values, codes, 2), np.tile(center, (4, 1)), center, 1
        )
    assert len(told) == 2
    found = np.concatenate([told[0].statistics["upper"], told[1].statistics["lower"]], axis=1)
    np.testing.assert_allclose(found[0], mean, atol=1e-6)
    np.testing.assert_allclose(found[1], np.sqrt(covariance.diagonal()), rtol=1e-6)
