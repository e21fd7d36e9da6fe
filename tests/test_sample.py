"""A few shards that speak for all: what they say against all of them, and against closed forms."""

import json
import warnings

import dask
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
import scipy.special
import scipy.stats

from dask_consensus.combination.ascent import STEP
from dask_consensus.combination.reports import Expansions
from dask_consensus.config import Options
from dask_consensus.correction import assessment
from dask_consensus.correction.sample import Sample, first_sample, larger_sample, polynomials
from dask_consensus.shard_data import Size

from .test_importance import conjugate, fit, regression  # noqa: F401  a fixture

OPTIONS = Options.frozen().correction
SMALL = {"consensus.correction.sampled-rows": 1}  # so that small data are sampled, too
ALL = {"consensus.correction.sampled-shards": 10**6}


def expansions(rng, n, d=2):
    """Of shards that are alike: their share of a standard normal posterior, about its mode."""
    score = rng.normal(size=(n, d)) / np.sqrt(n)
    noise = rng.normal(size=(n, d, d)) * 0.02
    return Expansions(
        u=np.zeros(d),
        axes=STEP * np.eye(d),
        step=np.zeros(d),
        value=-100.0 + rng.normal(size=n),
        gradient=score - score.mean(axis=0),
        precision=(np.eye(d) + noise + np.swapaxes(noise, 1, 2)) / n,
        third_derivative=1e-4 * rng.normal(size=(n, d)) / n,
    )


def sizes(n, rows=50_000):
    return [Size(rows, (rows // 10,))] * n


# Which shards


def test_shards_that_are_alike_are_drawn():
    sample = first_sample(expansions(np.random.default_rng(0), 200), sizes(200), OPTIONS, 0)
    assert len(sample.certain) == 0
    assert sample.n_drawn == len(set(sample.chosen.tolist())) == 8
    assert sample.factors @ sample.weights[sample.chosen] == pytest.approx(1)
    # Another seed draws others, and a larger sample has all of the smaller one.
    other = first_sample(expansions(np.random.default_rng(0), 200), sizes(200), OPTIONS, 1)
    assert set(other.chosen) != set(sample.chosen)
    larger = larger_sample(sample, 0.02, 0.01)
    assert larger.n_drawn == 39  # 8 x 1.2 x 4
    assert set(sample.chosen) <= set(larger.chosen)


@pytest.mark.parametrize(
    ("n", "rows"), [(16, 50_000), (15, 50_000), (200, 900)], ids=["half", "few", "small"]
)
def test_of_few_rows_all_are_asked(n, rows):
    sample = first_sample(expansions(np.random.default_rng(0), n), sizes(n, rows), OPTIONS, 0)
    assert (sample is None) == (n != 16)


def test_an_error_that_only_all_shards_bring_down_asks_all():
    sample = first_sample(expansions(np.random.default_rng(0), 200), sizes(200), OPTIONS, 0)
    assert larger_sample(sample, 0.1, 0.01) is None
    assert larger_sample(sample, np.nan, 0.01) is None


def outlying(what):
    """Two shards of 200 that are unlike the others, in one respect."""
    known, counts = expansions(np.random.default_rng(0), 200), sizes(200)
    if what == "score":
        known.gradient[[3, 70]] += [[1.0, 0.0], [-1.0, 0.0]]
    elif what == "curvature":  # as of a covariate that is 1 in two shards alone
        known.precision[:, 1, 1] = 1e-6
        known.precision[[3, 70], 1, 1] = 0.5
    elif what == "skew":
        known.third_derivative[[3, 70], 0] = 0.01
    elif what == "height":
        known.value[[3, 70]] -= 50
    elif what == "groups":
        counts[3] = counts[70] = Size(50_000, (16,))
    return known, counts


@pytest.mark.parametrize("what", ["score", "curvature", "skew", "height", "groups"])
def test_shards_that_stand_out_are_certain(what):
    sample = first_sample(*outlying(what), OPTIONS, 0)
    assert sample.certain.tolist() == [3, 70]
    assert sample.factors[:2].tolist() == [1, 1]
    assert not set(sample.order) & {3, 70}


def test_what_one_shard_in_ten_has_is_no_exception_and_is_not_missed():
    """A sample without any of them would have none of the curvature that they give."""
    for seed in range(20):
        known = expansions(np.random.default_rng(seed), 300)
        has = np.random.default_rng(seed).permutation(300) < 30
        known.precision[:, 1, 1] = np.where(has, 1 / 30, 0.0)
        sample = first_sample(known, sizes(300), OPTIONS, seed)
        if sample is not None:
            here = sample.factors @ known.precision[sample.chosen, 1, 1]
            assert here == pytest.approx(1, abs=0.25)


def test_what_is_not_finite_asks_all():
    known = expansions(np.random.default_rng(0), 200)
    known.gradient[5, 0] = np.nan
    assert first_sample(known, sizes(200), OPTIONS, 0) is None


# How far they may err


@pytest.mark.parametrize("n_drawn", [8, 30])
@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_twice_the_error_covers_what_all_shards_would_have_said(draw, n_drawn):
    rng = np.random.default_rng(0)
    rows = rng.uniform(0.8, 1.2, 60)
    weights = rows / rows.sum()
    values = weights[:, None] * (3 + getattr(rng, draw)(size=(60, 2000)))
    sample = Sample(None, weights, np.arange(2), 2 + rng.permutation(58), n_drawn)
    covered = []
    for _ in range(40):
        sample = sample._replace(order=2 + rng.permutation(58))
        away = sample.factors @ values[sample.chosen] - values.sum(axis=0)
        covered.append(np.abs(away) <= 2 * sample.error(values[sample.chosen]))
    # 95.4% is asked of it: more of normal differences, less of exponential ones, of which a few
    # shards show too little.
    assert np.mean(covered) > (0.955 if draw == "normal" else 0.925)
    assert np.mean(covered) < 0.99


def test_a_cubic_term_moves_the_mean_as_the_third_derivative_does():
    rng = np.random.default_rng(0)
    d, root = 3, np.linalg.cholesky(np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 0.3]]))
    third = rng.normal(size=(d, d, d))
    third = sum(np.transpose(third, p) for p in ((0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1),
                                                 (2, 1, 0), (1, 0, 2)))  # fmt: skip
    axes = STEP * root
    trace = np.einsum("ijk,ja,ka->i", third, axes, axes)
    known = Expansions(np.zeros(d), axes, np.zeros(d), np.zeros(1), np.zeros((1, d)),
                       np.zeros((1, d, d)), trace[None])  # fmt: skip
    x, w = np.polynomial.hermite_e.hermegauss(6)
    grid = np.stack(np.meshgrid(x, x, x, indexing="ij"), axis=-1).reshape(-1, d)
    weights = np.prod(np.meshgrid(w, w, w, indexing="ij"), axis=0).ravel() / w.sum() ** 3
    points = grid @ root.T
    exact = np.einsum("ijk,gi,gj,gk->g", third, points, points, points) / 6
    told = polynomials(known)(points)[0]
    # Both are odd functions of degree 4 with the coordinate: the rule is exact.
    np.testing.assert_allclose(weights * told @ points, weights * exact @ points, rtol=1e-10)


# Whole fits


def test_of_a_quadratic_likelihood_a_few_shards_say_all(conjugate):  # noqa: F811
    table, mean, covariance, evidence = conjugate
    few = {"consensus.correction.sampled-shards": 2}
    with dask.config.set(SMALL | few), warnings.catch_warnings():
        warnings.simplefilter("error")  # a good verdict is silent
        tree = fit(table, regression, n_shards=30)
    correction = tree["correction"]
    # Two shards of 20 rows each have not quite the curvature of all.
    assert correction["sampled_shards"] == 4
    assert "on 4 of 30 shards that stand for all" in tree.attrs["verdict"]
    # Every shard's expansion is all there is to know, but for rounding.
    np.testing.assert_array_less(correction["sampling_error"], 1e-4)
    np.testing.assert_array_less(correction["sampling_sd_error"], 1e-4)
    sd = np.sqrt(np.diag(covariance))
    np.testing.assert_array_less(np.abs(correction["mean"].to_numpy() - mean) / sd, 0.01)
    np.testing.assert_allclose(correction["sd"], sd, rtol=0.01)
    assert float(correction["log_evidence"]) == pytest.approx(evidence, abs=0.01)


def sparse(x, g, n_g, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 2))
    beta = numpyro.sample("beta", dist.Normal(0, 2))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    with numpyro.plate("groups", n_g):
        b = numpyro.sample("b", dist.Normal(0, sigma))
    numpyro.sample("y", dist.Bernoulli(logits=mu + beta * x + b[g]), obs=y)


@pytest.fixture(scope="module")
def binary():
    """Skewed shards: 30 groups of four binary rows each."""
    rng = np.random.default_rng(4)
    g = np.repeat(np.arange(1200), 4)
    x, b = rng.normal(size=len(g)), rng.normal(size=1200)
    y = rng.random(len(g)) < scipy.special.expit(-1 + x + b[g])
    return pd.DataFrame({"g": g, "x": x, "y": y.astype(int)})


@pytest.mark.slow
def test_a_sample_says_what_all_say_to_its_own_error(binary):
    with dask.config.set(SMALL | {"consensus.correction.sampling-error": 1.0}):
        tree = fit(binary, sparse, by="g", n_shards=40)
    with dask.config.set(ALL):
        everyone = fit(binary, sparse, by="g", n_shards=40)
    few, all_ = tree["correction"], everyone["correction"]
    assert few["sampled_shards"] == 8
    assert all_["sampled_shards"] == 0
    sd = all_["sd"].to_numpy()
    monte_carlo = np.hypot(few["error"], all_["error"])
    off = np.abs(few["mean"] - all_["mean"]) / sd
    assert (off < 3 * np.hypot(few["sampling_error"], monte_carlo)).all()
    monte_carlo = np.hypot(few["sd_error"], all_["sd_error"])
    off = np.abs(np.log(few["sd"] / all_["sd"]))
    assert (off < 3 * np.hypot(few["sampling_sd_error"], monte_carlo)).all()
    assert float(few["log_evidence"]) == pytest.approx(
        float(all_["log_evidence"]), abs=3 * float(few["log_evidence_error"])
    )
    # What sampling leaves open is part of what is said of the accuracy.
    assert (few["sampling_error"] > 0).all()


@pytest.mark.slow
def test_where_a_sample_is_too_rough_all_are_asked_as_ever(binary):
    with dask.config.set(SMALL | {"consensus.correction.sampling-error": 1e-4}):
        tree = fit(binary, sparse, by="g", n_shards=40)
    with dask.config.set(ALL):
        everyone = fit(binary, sparse, by="g", n_shards=40)
    assert tree["correction"]["sampled_shards"] == 0
    for name in ("mean", "points", "weights", "log_evidence"):
        np.testing.assert_array_equal(tree["correction"][name], everyone["correction"][name])
    for name, draws in tree["posterior"].items():
        np.testing.assert_array_equal(draws, everyone["posterior"][name])


def limited(limit, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 10))
    numpyro.factor("edge", jnp.where(mu < limit, 0.0, -jnp.inf))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@pytest.mark.slow
def test_an_edge_that_one_shard_knows_is_found_at_the_rim():
    """Nothing near the mode shows it, and few samples have that shard."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"y": rng.normal(size=4000), "limit": 1e6})
    mean, sd = table["y"].mean(), 1 / np.sqrt(4000)
    # A normal posterior, cut off one sd above its mean.
    cut = scipy.stats.truncnorm(-np.inf, 1, loc=mean, scale=sd)
    asked = []
    for row in (12, 1234, 3333):
        edged = table.copy()
        edged.loc[row, "limit"] = mean + sd
        with dask.config.set(SMALL), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = fit(edged, limited, n_shards=40)
        off = abs(float(tree["posterior"]["mu"].mean()) - cut.mean()) / cut.std()
        assert off < 0.05
        asked.append(int(tree["correction"]["sampled_shards"]))
    assert 0 in asked
    # Without the edge a sample does.
    with dask.config.set(SMALL):
        tree = fit(table, limited, n_shards=40)
    assert 0 < tree["correction"]["sampled_shards"] < 10


# What the verdict makes of it


def test_what_a_sample_leaves_open_is_part_of_the_accuracy(binary):
    with dask.config.set(SMALL | {"consensus.correction.sampling-error": 1.0}):
        tree = fit(binary, sparse, by="g", n_shards=40)
    correction, stated = tree["correction"], json.loads(tree.attrs["accuracy"])
    parts = [correction[f"{part}error"] for part in ("", "integration_", "sampling_")]
    expected = np.sqrt(sum(part.to_numpy() ** 2 for part in parts))
    np.testing.assert_allclose(list(stated.values()), expected)


def test_a_tail_that_a_sample_may_hide_is_asked_of_all(binary, monkeypatch):
    """Its height is told with an error; the upper end of that decides whether all are asked."""
    asked = []
    probe = assessment.probe

    def unsure(log_posterior, mean, covariance):
        probes = probe(log_posterior, mean, covariance)
        asked.append(log_posterior.sample is not None)
        return probes._replace(error=np.where(probes.error > 0, 1e6, 0.0))

    monkeypatch.setattr(assessment, "probe", unsure)
    with dask.config.set(SMALL | {"consensus.correction.sampling-error": 1.0}):
        tree = fit(binary, sparse, by="g", n_shards=40)
    assert asked[-1] is False
    assert asked[0] is True
    assert tree.attrs["verdict_good"] == 1
    assert (tree["correction"]["tail_log_ratio"] < 2).all()
