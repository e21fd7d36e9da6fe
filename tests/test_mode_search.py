"""Searches: where they end, which images are tried, and that all modes have their share."""

import json
import warnings
from types import SimpleNamespace

import dask
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
import scipy.special

from dask_consensus.combination import mode_search
from dask_consensus.combination.mode_search import Ended, beyond, merged
from dask_consensus.combination.redrawn import redrawn
from dask_consensus.combination.symmetry import images
from dask_consensus.model.model import precision
from dask_consensus.shard.descent import descend
from dask_consensus.shard.engine import engine_of
from dask_consensus.shard.quadrature import Rule

from . import from_pandas
from .test_marginal import data_of, read


def line(x, y=None):
    a = numpyro.sample("a", dist.Normal(0, 100))
    b = numpyro.sample("b", dist.Normal(0, 100))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.Normal(a + b * x, 0.1), obs=y)


def test_descents_reach_the_mode_from_far_away():
    rng = np.random.default_rng(0)
    x = rng.normal(size=200)
    values = {"x": x, "y": 3 + 2 * x + 0.1 * rng.normal(size=200)}
    design = np.column_stack([np.ones(200), x])
    covariance = np.linalg.inv(design.T @ design / 0.01 + np.eye(2) / 1e4)
    mode = covariance @ design.T @ values["y"] / 0.01
    starts = rng.normal(0, 100, size=(8, 2))
    with precision(True):
        model = read(line, values)
        ended = descend(model, data_of(values), starts, np.full(2, 100.0), 1, 200)
        there = descend(model, data_of(values), ended.u, np.ones(2), 1, 0)
    # A squared decrement of 1e-4 is 0.01 sds.
    assert (np.abs(ended.u - mode) / np.sqrt(np.diag(covariance)) < 0.02).all()
    np.testing.assert_array_equal(there.u, ended.u)
    np.testing.assert_allclose(there.height, ended.height, rtol=1e-9)


def test_a_start_without_density_ends_where_it_began():
    values = {"x": np.ones(5), "y": np.ones(5)}
    with precision(True):
        model = read(line, values)
        ended = descend(model, data_of(values), np.full((1, 2), np.inf), np.ones(2), 1, 50)
    assert np.isneginf(ended.height[0])


def test_images_are_mirrored_and_exchanged(monkeypatch):
    def sites(y=None):
        numpyro.sample("m", dist.Normal(0, 1).expand([2]).to_event(1))
        s = numpyro.sample("s", dist.HalfNormal(1).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(s.sum(), 1), obs=y)

    found = images(np.array([1.0, 2.0, 3.0, 4.0]), read(sites, {"y": np.zeros(4)}).shared)
    rows = set(map(tuple, found.tolist()))
    assert (-1.0, 2.0, 3.0, 4.0) in rows
    assert (-1.0, -2.0, 3.0, 4.0) in rows
    assert (2.0, 1.0, 4.0, 3.0) in rows  # components exchanged in all sites
    assert (2.0, 1.0, 3.0, 4.0) in rows  # and in one
    assert len(found) <= 200


def test_sites_of_one_shape_are_exchanged_and_shares_turned():
    def lines(y=None):
        a, b, c, d = (numpyro.sample(name, dist.Normal(0, 1)) for name in "abcd")
        share = numpyro.sample("share", dist.Uniform(0, 1))
        numpyro.sample("y", dist.Normal(a + b + c + d + share, 1), obs=y)

    found = images(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), read(lines, {"y": np.zeros(4)}).shared)
    rows = set(map(tuple, found.tolist()))
    assert (3.0, 2.0, 1.0, 4.0, 5.0) in rows  # one site with another
    assert (3.0, 4.0, 1.0, 2.0, -5.0) in rows  # two lines, and the share of the first


def test_some_sites_of_a_place_are_those_of_a_draw():
    sites = [SimpleNamespace(size=1), SimpleNamespace(size=3), SimpleNamespace(size=1)]
    draws = 1.0 + np.arange(40)[:, None] + np.arange(5) / 10
    points = redrawn(np.zeros(5), draws, sites, np.random.default_rng(0))
    taken = points != 0
    of_draw = [np.unique(np.floor(row[row != 0])) for row in points]
    assert max(map(len, of_draw)) == 1  # one draw
    np.testing.assert_allclose(points[taken] % 1, (np.arange(5) / 10 + 0 * points)[taken])
    kinds = {tuple(row) for row in taken.tolist()}
    whole = [(True, False, False, False, False), (False, True, True, True, False)]
    assert kinds >= {*whole, (False, False, True, False, False), (True, False, False, False, True)}
    assert len(np.unique(points[taken])) > 150
    assert redrawn(np.zeros(1), draws[:, :1], sites[:1], np.random.default_rng(0)).size == 0


def test_points_lie_in_and_beyond_the_prior():
    draws = np.random.default_rng(0).normal(size=(256, 3))
    points = beyond(draws, np.random.default_rng(1))
    assert points.shape == (256, 3)
    assert np.abs(points).max() > 1.5 * np.abs(draws).max()


def test_searches_that_end_alike_are_one():
    sd = np.ones(1)
    ends = [Ended(np.array([u]), h, sd) for u, h in ((0.0, 1.0), (0.5, 2.0), (40.0, 0.0))]
    assert [(end.height, count) for end, count in merged(ends)] == [(2.0, 2), (0.0, 1)]
    needle = Ended(np.full(1, 0.01), 9.0, np.array([1e-3]))
    assert [count for _, count in merged([*ends, needle])] == [1, 2, 1]


def even(x, y=None):
    a = numpyro.sample("a", dist.Normal(0.3, 1))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.Normal(a**2 * x, 1.0), obs=y)


def halves(y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5).expand([2]).to_event(1))
    halves = dist.Categorical(jnp.array([0.5, 0.5]))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.MixtureSameFamily(halves, dist.Normal(mu, 1.0)), obs=y)


def wave(x, y=None):
    frequency = numpyro.sample("frequency", dist.HalfNormal(10))
    height = numpyro.sample("height", dist.HalfNormal(2))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.Normal(height * jnp.sin(frequency * x), 1.0), obs=y)


def fit(table, model, **options):
    with dask.config.set(scheduler="synchronous"), warnings.catch_warnings():
        warnings.simplefilter("error")  # a good verdict is silent
        return from_pandas(table).consensus.fit(model, progress=False, n_shards=3, **options)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_each_of_two_mirror_images_has_its_share(seed):
    rng = np.random.default_rng(0)
    x = rng.normal(size=600)
    table = pd.DataFrame({"x": x, "y": 0.8 * x + rng.normal(size=600)})
    a = fit(table, even, seed=seed)["posterior"]["a"].to_numpy()
    # By the prior alone: density exp(-(a - 0.3)^2 / 2) at plus and minus the root of 0.8.
    share = scipy.special.expit(-2 * 0.3 * np.abs(a).mean())
    # 1,000 draws, chosen systematically.
    assert (a < 0).mean() == pytest.approx(share, abs=0.02)


def test_a_method_that_describes_one_of_two_images_is_not_good():
    rng = np.random.default_rng(0)
    x = rng.normal(size=600)
    table = pd.DataFrame({"x": x, "y": 0.8 * x + rng.normal(size=600)})
    with pytest.raises(UserWarning, match="separate modes"):
        fit(table, even, method="anchored")


def opinions(y=None):
    """A prior of two opinions on what rows say nothing of; they know the mean, sixty sds apart."""
    mu = numpyro.sample("mu", dist.Normal(0, 3))
    places, widths = jnp.array([[0.0, 0.0], [9.0, -7.0]]), jnp.array([[1.0], [0.3]])
    shares = dist.Categorical(jnp.array([0.97, 0.03]))
    about = dist.Normal(places, widths).to_event(1)
    numpyro.sample("theta", dist.MixtureSameFamily(shares, about))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def test_a_second_opinion_of_a_prior_has_its_share():
    y = np.random.default_rng(0).normal(1, 1, 400)
    theta = fit(pd.DataFrame({"y": y}), opinions)["posterior"]["theta"].to_numpy()[0]
    assert (theta[:, 0] > 6).mean() == pytest.approx(0.03, abs=0.012)


def test_exchangeable_components_are_exchanged_in_the_posterior():
    rng = np.random.default_rng(5)
    y = np.concatenate([rng.normal(-2, 1, 150), rng.normal(2, 1, 150)])
    tree = fit(pd.DataFrame({"y": y}), halves)
    mu = tree["posterior"]["mu"].to_numpy()[0]
    assert (mu[:, 0] < mu[:, 1]).mean() == pytest.approx(0.5, abs=0.02)
    assert json.loads(tree.attrs["verdict_reasons"]) == []


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 8))]
)
def test_of_many_modes_the_highest_is_found(seed):
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 6, size=2_000)
    table = pd.DataFrame({"x": x, "y": 1.5 * np.sin(7.3 * x) + rng.normal(size=2_000)})
    frequency = fit(table, wave, seed=seed)["posterior"]["frequency"].to_numpy()
    # Other modes are 1 apart; its sd is near sqrt(2 / 2000) / (1.5 sqrt(mean x^2)) = 0.006.
    assert frequency.mean() == pytest.approx(7.3, abs=0.04)


def test_searches_begin_at_finite_points():
    """Unconstrained values of a draw may overflow, of ordered sites say."""
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(64, 3))
    draws[5:9, 1] = [np.inf, -np.inf, np.nan, np.inf]
    finite = mode_search._finite(draws)
    assert finite.shape == (64, 3)
    points = mode_search._starting_points(rng.normal(size=(64, 3)), finite, seed=0)
    assert np.isfinite(points).all()
    assert points.shape == (192, 3)


def stores(g, y=None, *, n_g):
    mu = numpyro.sample("mu", dist.Normal(0, 3))
    tau = numpyro.sample("tau", dist.HalfNormal(2))
    with numpyro.plate("g", n_g):
        b = numpyro.sample("b", dist.Normal(0, tau))
    numpyro.sample("y", dist.Poisson(jnp.exp(mu + b[g])), obs=y)


def test_a_search_takes_nodes_whose_gradient_is_that_of_its_heights():
    """Two nodes are not for counts: a search by them ended three sds away, or on a ridge."""
    rng = np.random.default_rng(0)
    g = np.repeat(np.arange(80), 12)
    y = rng.poisson(np.exp(rng.normal(-0.5, 1.0, 80)[g])).astype(float)
    model, data = read(stores, {"y": y}, groups=["g"]), data_of({"y": y}, {"g": g})
    peak, settled = mode_search.search(data, model, np.array([-0.2, 0.3]), np.full(2, 0.3))
    finest = Rule(engine_of(model).gradient_nodes[-1])
    slope = engine_of(model).gradient(data, peak.u[None], 1.0, finest).gradient[0]
    assert settled
    # A Newton step from there, in sds: those of the search are right to 0.3, as any climb.
    assert np.sqrt(slope @ peak.covariance @ slope) < 0.1


@pytest.mark.parametrize(("heights", "taken"), [((-50.0, -50.0), 2), ((-50.0, -50.1), 7)])
def test_few_nodes_are_for_heights_that_they_have_exactly(heights, taken):
    engine = SimpleNamespace(search_nodes=(2, 7))
    known = dict(zip((2, 7), heights, strict=True))
    assert mode_search._search_nodes(engine, known.__getitem__) == taken
    assert mode_search._search_nodes(SimpleNamespace(search_nodes=(10,)), known.get) == 10
