"""Effects of groups given the shared parameters, against closed forms and dense grids."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.special
import scipy.stats

from dask_consensus.model.model import precision
from dask_consensus.shard import local_draws
from dask_consensus.shard.candidates import DEGREES, LOOKS, points_of
from dask_consensus.shard.engine import engine_of
from dask_consensus.shard.local_draws import draw_effects, look_at, summarize
from dask_consensus.shard.local_sites import local_sites
from dask_consensus.shard.summaries import statistics_of

from .test_hills import SPREAD, two_populations
from .test_marginal import data_of, gaussian_case, read, slopes

__all__ = ["gaussian_case"]  # a fixture
LEVELS = scipy.stats.norm.ppf([0.05, 0.5, 0.95])


def conditional(values, codes, u, j):
    """Mean and covariance of the two effects of group j, given u."""
    tau, sigma, mine = np.exp(u[2:4]), np.exp(u[4]), codes["g"] == j
    z = np.column_stack([np.ones(mine.sum()), values["x"][mine]])
    covariance = np.linalg.inv(z.T @ z / sigma**2 + np.diag(tau**-2))
    return covariance @ (z.T @ values["y"][mine] / sigma**2 + u[:2] / tau**2), covariance


@pytest.mark.parametrize(("spread", "padding"), [(0.0, 0), (0.01, 3), (0.3, 3)])
def test_of_normal_effects_all_statistics_are_exact(gaussian_case, spread, padding):
    values, codes, center, _ = gaussian_case
    n = 256 if spread > 0.1 else 24
    draws = center + spread * np.random.default_rng(1).normal(size=(n, 5))
    with precision(True):
        model = read(slopes, values, groups=["g"])
        found = summarize(model, data_of(values, codes, padding), draws, center, 1)
    mean, sd, *quantiles = found.statistics["b"]
    assert mean.shape == (12, 2)
    for j in range(12):
        given = [conditional(values, codes, u, j) for u in draws]
        means = np.array([m for m, _ in given])
        variances = np.array([np.diag(c) for _, c in given])
        exact = np.sqrt(variances.mean(axis=0) + means.var(axis=0))
        # Draws of u far from each other have shapes that points of one shape do not match.
        far = spread > 0.1
        np.testing.assert_allclose(mean[j], means.mean(axis=0), atol=0.03 if far else 1e-3)
        np.testing.assert_allclose(sd[j], exact, rtol=0.05 if far else 0.01)
        if not far:
            for level, quantile in zip(LEVELS, quantiles, strict=True):
                np.testing.assert_allclose((quantile[j] - mean[j]) / sd[j], level, atol=0.03)
    mode = [conditional(values, codes, center, j)[1] for j in range(12)]
    ratio = np.array([np.diag(c) for c in mode]) / np.exp(2 * center[2:4])
    np.testing.assert_allclose(found.shrinkage["b"], ratio, rtol=1e-6)
    assert found.modes_not_found == 0
    assert found.efficiency.min() > (0.8 if spread > 0.1 else 0.99)


def test_draws_belong_to_the_draws_of_u_and_are_independent_between_groups(gaussian_case):
    values, codes, center, _ = gaussian_case
    draws = center + 0.3 * np.random.default_rng(1).normal(size=(1500, 5))
    with precision(True):
        model = read(slopes, values, groups=["g"])
        data = data_of(values, codes, padding=2)
        assert look_at(model, data, np.repeat(center[None], 20, 0), center, 1) == 0
        assert look_at(model, data, draws[:16], center, 1) == 1
        drawn = draw_effects(model, data, draws, center, 1, (3, 0, np.arange(1500)))["b"]
    assert drawn.shape == (1500, 12, 2)
    standard = np.empty_like(drawn)
    for i, u in enumerate(draws):
        for j in range(12):
            mean, covariance = conditional(values, codes, u, j)
            standard[i, j] = np.linalg.solve(np.linalg.cholesky(covariance), drawn[i, j] - mean)
    flat = standard.reshape(1500, -1)
    correlation = np.corrcoef(flat, rowvar=False) - np.eye(24)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(1500)
    assert scipy.stats.kstest(flat.ravel(), "norm").pvalue > 1e-3


def test_a_draw_does_not_depend_on_those_drawn_with_it(gaussian_case):
    values, codes, center, _ = gaussian_case
    draws = center + 0.1 * np.random.default_rng(1).normal(size=(40, 5))
    with precision(True):
        model = read(slopes, values, groups=["g"])
        data = data_of(values, codes)
        numbers = np.arange(40)
        together = draw_effects(model, data, draws, center, 1, (3, 1, numbers))["b"]
        quick = draw_effects(model, data, draws, center, 1, (3, 1, numbers), look=0)["b"]
        apart = draw_effects(model, data, draws[30:], center, 1, (3, 1, numbers[30:]))["b"]
        elsewhere = draw_effects(model, data, draws, center, 1, (3, 2, numbers))["b"]
    np.testing.assert_array_equal(together[30:], apart)
    assert not (together == elsewhere).any()
    spread = together.std(axis=0)
    assert np.abs((quick.mean(axis=0) - together.mean(axis=0)) / spread).max() < 1


def most_modes(model, data, center):
    """Modes of a group that a fit would follow."""
    return int(engine_of(model).most_modes(data, center[None]))


def sparse(g, y=None, *, n_g):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfNormal(2))
    with numpyro.plate("g", n_g):
        b = numpyro.sample("b", dist.Normal(mu, tau))
        numpyro.deterministic("chance", 1 / (1 + jnp.exp(-b)))
    numpyro.sample("y", dist.Bernoulli(logits=b[g]), obs=y)


@pytest.mark.parametrize("rows", [1, pytest.param(3, marks=pytest.mark.slow), 30])
def test_skewed_effects_against_a_grid(rows):
    rng = np.random.default_rng(rows)
    g = np.repeat(np.arange(40), rows)
    y = (rng.random(40 * rows) < scipy.special.expit(1.5 + 2 * rng.normal(size=40))[g]) * 1
    y[:rows] = 1
    center = np.array([1.5, np.log(2.0)])
    draws = center + 0.2 * rng.normal(size=(32, 2))
    with precision(True):
        model = read(sparse, {"y": y}, groups=["g"])
        data = data_of({"y": y}, {"g": g})
        found = summarize(model, data, draws, center, 1)
        numbers = np.arange(2000)
        many = draws[numbers % 32]
        drawn = draw_effects(model, data, many, center, 1, (0, 0, numbers))["b"]
    grid = np.linspace(-25, 25, 20_001)
    for j in range(0, 40, 5):
        successes = y[g == j].sum()
        density = np.zeros_like(grid)
        for mu, log_tau in draws:
            logs = scipy.stats.norm.logpdf(grid, mu, np.exp(log_tau))
            logs += successes * -np.log1p(np.exp(-grid))
            logs += (rows - successes) * -np.log1p(np.exp(grid))
            density += scipy.special.softmax(logs)
        density /= density.sum()
        mean = density @ grid
        sd = np.sqrt(density @ (grid - mean) ** 2)
        ends = np.interp([0.05, 0.5, 0.95], np.cumsum(density), grid)
        told = found.statistics["b"][:, j]
        assert abs(told[0] - mean) / sd < 0.04
        assert abs(told[1] / sd - 1) < 0.05
        np.testing.assert_allclose((told[2:] - ends) / sd, 0, atol=0.15)
        assert abs(drawn[:, j].mean() - mean) / sd < 4 / np.sqrt(2000)
        assert abs(drawn[:, j].std() / sd - 1) < 0.07
        chance = density @ scipy.special.expit(grid)
        assert abs(found.statistics["chance"][0, j] - chance) < 0.02


@pytest.mark.parametrize("u", [pytest.param([-1.0, -0.7], marks=pytest.mark.slow), [-1.0, -1.5]])
def test_effects_of_two_modes_have_both(u):
    g = np.repeat(np.arange(30), 5)
    rng = np.random.default_rng(0)
    b = np.where(rng.random(30) < 0.3, 3.0, -1.0) + 0.5 * rng.normal(size=30)
    values = {"y": b[g] + SPREAD * rng.normal(size=150)}
    center = np.array(u)
    draws = np.repeat(center[None], 64, axis=0)
    with precision(True):
        model = read(two_populations, values, groups=["g"])
        data = data_of(values, {"g": g}, padding=3)
        found = summarize(model, data, draws, center, 4).statistics["b"]
        many, numbers = np.repeat(center[None], 1000, axis=0), np.arange(1000)
        drawn = draw_effects(model, data, many, center, 4, (0, 0, numbers))["b"]
    means = np.array([values["y"][g == j].mean() for j in range(30)])
    tau2, noise = np.exp(2 * u[1]), SPREAD**2 / 5
    shift = np.array([u[0] + 4, u[0]])
    parts = scipy.stats.norm.pdf(means[:, None], shift, np.sqrt(tau2 + noise)) * [0.3, 0.7]
    share = parts / parts.sum(axis=1, keepdims=True)
    centers = (means[:, None] * tau2 + shift * noise) / (tau2 + noise)
    mean = (share * centers).sum(axis=1)
    within = tau2 * noise / (tau2 + noise)
    sd = np.sqrt((share * centers**2).sum(axis=1) - mean**2 + within)
    assert np.abs((found[0] - mean) / sd).max() < 0.15
    assert np.abs(found[1] / sd - 1).max() < 0.12
    assert np.abs((drawn.mean(axis=0) - mean) / sd).max() < 4.5 / np.sqrt(1000)


def test_sites_are_those_the_user_wrote():
    def model(g, x, y=None, *, n_g):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        tau = numpyro.sample("tau", dist.HalfNormal(2))
        with numpyro.plate("g", n_g):
            raw = numpyro.sample("raw", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.3))
            alpha = numpyro.deterministic("alpha", mu + tau * raw[:, 0])
        numpyro.deterministic("at_rows", alpha[g])
        numpyro.sample("y", dist.Normal(alpha[g] + raw[g, 1] * x, scale[g]), obs=y)

    rng = np.random.default_rng(2)
    g, x = np.repeat(np.arange(9), 4), rng.normal(size=36)
    values = {"x": x, "y": rng.normal(size=36)}
    draws = np.array([0.1, 0.0]) + 0.1 * rng.normal(size=(30, 2))
    with precision(True):
        shard_model = read(model, values, groups=["g"])
        found = summarize(shard_model, data_of(values, {"g": g}), draws, draws.mean(axis=0), 1)
        numbers = np.arange(30)
        drawn = draw_effects(
            shard_model, data_of(values, {"g": g}), draws, draws[0], 1, (0, 0, numbers)
        )
    assert {site.name: site.entry for site in local_sites(shard_model)} == {
        "raw": (2,),
        "scale": (),
        "alpha": (),
    }
    assert found.statistics["raw"].shape == (5, 9, 2)
    assert found.statistics["scale"].min() > 0
    alpha = draws[:, :1] + np.exp(draws[:, 1:]) * drawn["raw"][..., 0]
    np.testing.assert_allclose(drawn["alpha"], alpha, rtol=1e-6)
    # alpha is a line in the first of raw: rows leave both the same share.
    np.testing.assert_allclose(found.shrinkage["alpha"], found.shrinkage["raw"][:, 0], rtol=1e-9)


@pytest.mark.parametrize("look", LOOKS[:2], ids=["normal", "t"])
@pytest.mark.parametrize(("q", "n"), [(1, 2), (2, 24), (5, 24), (3, 100)])
def test_points_are_those_of_the_proposal(q, n, look):
    points, shares = points_of(q, n, look)
    assert points.shape[::2] == (n, q)
    np.testing.assert_allclose(points.mean(axis=1), 0, atol=1e-12)
    flat = points.reshape(-1, q)
    if look.normal:
        np.testing.assert_allclose(flat.T @ flat / len(flat), np.eye(q), atol=1e-10)
    elif n == 100:
        exact = scipy.stats.t(DEGREES)
        assert scipy.stats.kstest(flat[:, 0], exact.cdf).statistic < 0.02
    np.testing.assert_allclose(np.sort(shares), (np.arange(n) + 0.5) / n)


def heavy(prior, rows):
    """One effect a group, one row a group, of any distributions."""

    def model(g, y=None, *, n_g):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        with numpyro.plate("g", n_g):
            b = numpyro.sample("b", prior(mu))
        numpyro.sample("y", rows(b[g]), obs=y)

    return model


# Distributions of the model, and their log densities of effects and of rows.
HEAVY = {
    "student": (
        heavy(lambda m: dist.StudentT(3.0, m, 1.0), lambda b: dist.Normal(b, 3.0)),
        lambda b, m: scipy.stats.t.logpdf(b, 3, m), lambda y, b: scipy.stats.norm.logpdf(y, b, 3),
    ),
    "cauchy": (
        heavy(lambda m: dist.Cauchy(m, 1.0), lambda b: dist.Normal(b, 3.0)),
        lambda b, m: scipy.stats.cauchy.logpdf(b, m), lambda y, b: scipy.stats.norm.logpdf(y, b, 3),
    ),
    "laplace": (
        heavy(lambda m: dist.Laplace(m, 1.0), lambda b: dist.Normal(b, 2.0)),
        lambda b, m: scipy.stats.laplace.logpdf(b, m),
        lambda y, b: scipy.stats.norm.logpdf(y, b, 2),
    ),
    "gumbel": (
        heavy(lambda m: dist.Gumbel(m, 1.0), lambda b: dist.Normal(b, 3.0)),
        lambda b, m: scipy.stats.gumbel_r.logpdf(b, m),
        lambda y, b: scipy.stats.norm.logpdf(y, b, 3),
    ),
    "heavy-rows": (
        heavy(lambda m: dist.Normal(m, 2.0), lambda b: dist.StudentT(2.0, b, 0.7)),
        lambda b, m: scipy.stats.norm.logpdf(b, m, 2),
        lambda y, b: scipy.stats.t.logpdf(y, 2, b, 0.7),
    ),
}  # fmt: skip


QUICK = {"student"}


@pytest.mark.parametrize(
    "kind", [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in HEAVY]
)
@pytest.mark.slow
def test_heavy_tails_against_a_grid(kind):
    """Groups at all distances from the others, the farthest at 25."""
    model, log_prior, log_rows = HEAVY[kind]
    y = np.array([-25.0, -12, -8, -6, -4, -3, -2, -1, 0, 0.5, 1.5, 2.5, 3.5, 5, 7, 10, 16])
    center = np.array([0.3])
    draws = np.repeat(center[None], 24, axis=0)
    with precision(True):
        shard_model = read(model, {"y": y}, groups=["g"])
        data = data_of({"y": y}, {"g": np.arange(len(y))}, padding=2)
        n_modes = most_modes(shard_model, data, center)
        found = summarize(shard_model, data, draws, center, n_modes)
        look = look_at(shard_model, data, draws[:16], center, n_modes)
        numbers = np.arange(1000)
        drawn = draw_effects(
            shard_model, data, np.repeat(center[None], 1000, 0), center, n_modes,
            (0, 0, numbers), look=look,
        )["b"]  # fmt: skip
    grid = np.linspace(-60, 60, 120_001)
    for j, row in enumerate(y):
        logs = log_prior(grid, center[0]) + log_rows(row, grid)
        density = scipy.special.softmax(logs)
        mean = density @ grid
        sd = np.sqrt(density @ (grid - mean) ** 2)
        ends = np.interp([0.05, 0.5, 0.95], np.cumsum(density), grid)
        told = found.statistics["b"][:, j]
        assert abs(told[0] - mean) / sd < 0.05, row
        assert abs(told[1] / sd - 1) < 0.05, row
        assert np.abs((told[2:] - ends) / sd).max() < 0.1, row
        assert abs(drawn[:, j].mean() - mean) / sd < 4 / np.sqrt(1000), row
        upto = np.interp(drawn[:, j], grid, np.cumsum(density))
        assert scipy.stats.kstest(upto, "uniform").pvalue > 1e-4, row


def test_quantiles_of_a_gamma_distribution():
    """Nearly normal for many degrees of freedom, far from it for few."""
    exact = scipy.stats.gamma(np.array([[40.0], [0.7]]))
    values = exact.ppf((np.arange(20_000) + 0.5)[None] / 20_000).T  # (A, 2)
    origin = np.array([39.0, 1.0])
    moments = np.stack([((values - origin) ** k).mean(axis=0) for k in (1, 2, 3, 4)])
    (mean, sd, *quantiles), far = statistics_of(
        origin[:, None], moments[:, :, None], values[:, :, None]
    )
    assert far[:, 0].tolist() == [False, True]
    np.testing.assert_allclose(mean[:, 0], exact.mean()[:, 0], rtol=1e-3)
    np.testing.assert_allclose(sd[:, 0], exact.std()[:, 0], rtol=2e-3)
    for share, quantile in zip((0.05, 0.5, 0.95), quantiles, strict=True):
        wrong = (quantile - exact.ppf(share)) / exact.std()
        np.testing.assert_allclose(wrong, 0, atol=5e-3)


def wide(g, y=None, *, n_g):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    with numpyro.plate("g", n_g):
        b = numpyro.sample("b", dist.Normal(mu, 4.0))
        numpyro.deterministic("double", 2 * b)
    numpyro.sample("y", dist.Bernoulli(logits=b[g]), obs=y)


def test_units_far_from_normal_are_looked_at_apart(monkeypatch):
    """Of 40 units most have many mixed rows; every eighth has one, and is skewed."""
    rng = np.random.default_rng(0)
    sizes = np.where(np.arange(40) % 8 == 5, 1, 60)
    g = np.repeat(np.arange(40), sizes)
    y = np.where(sizes[g] == 1, 1.0, rng.random(len(g)) < 0.4)
    asked = []
    real = local_draws._summarized

    def summarized(model, data, draws, center, n_modes, looks):
        asked.append((int(data.groups[0].sum()), looks))
        return real(model, data, draws, center, n_modes, looks)

    monkeypatch.setattr(local_draws, "_summarized", summarized)
    center = np.array([0.2])
    draws = np.repeat(center[None], 12, axis=0)
    with precision(True):
        model = read(wide, {"y": y}, groups=["g"])
        found = summarize(model, data_of({"y": y}, {"g": g}, padding=2), draws, center, 1)
    assert asked == [(40, (local_draws.QUADRATURE[1],)), (5, LOOKS[1:])]
    grid = np.linspace(-40, 60, 100_001)
    for j in range(40):
        ones, zeros = y[g == j].sum(), (1 - y[g == j]).sum()
        logs = scipy.stats.norm.logpdf(grid, 0.2, 4) - ones * np.logaddexp(0, -grid)
        density = scipy.special.softmax(logs - zeros * np.logaddexp(0, grid))
        mean = density @ grid
        sd = np.sqrt(density @ (grid - mean) ** 2)
        ends = np.interp([0.05, 0.5, 0.95], np.cumsum(density), grid)
        told = found.statistics["b"][:, j]
        close = 0.005 if sizes[j] > 1 else 0.05
        assert abs(told[0] - mean) / sd < close, j
        assert abs(told[1] / sd - 1) < close, j
        assert np.abs((told[2:] - ends) / sd).max() < 2 * close, j
        np.testing.assert_allclose(found.statistics["double"][:, j], 2 * told, rtol=1e-6)
        variance = found.given_shared.covariance[j, 0, 0]
        assert np.sqrt(variance) / sd == pytest.approx(1, abs=close)
        assert found.given_shared.mean[j, 0] == pytest.approx(mean, abs=close * sd)
    assert found.efficiency.shape == (40,)
