"""The whole default fit, anchored and corrected, against closed forms; its verdict."""

import json
import pickle
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

from dask_consensus import fallback
from dask_consensus.combination.subposterior import SamplingFailed
from dask_consensus.config import CorrectionOptions, Options
from dask_consensus.correction.assessment import finished, outskirts_of
from dask_consensus.correction.draws import equal_weight_draws
from dask_consensus.correction.importance import correct, done, init, step
from dask_consensus.correction.likelihood import LogPosterior
from dask_consensus.correction.proposals import MixtureProposal
from dask_consensus.correction.state import (
    Assessment,
    CorrectionSettings,
    CorrectionState,
    SamplingError,
)
from dask_consensus.correction.weights import Estimate, Weighed, Weighted, estimate_of
from dask_consensus.fit import shard_rows

from . import from_pandas


def fit(table, model, **options):
    """Fit as a user would: nothing but defaults, and fewer draws."""
    return from_pandas(table).consensus.fit(model, **({"progress": False} | options))


def regression(x, z, y=None):
    beta = numpyro.sample("beta", dist.Normal(0, 2).expand([3]).to_event(1))
    numpyro.sample("y", dist.Normal(beta[0] + beta[1] * x + beta[2] * z, 1.5), obs=y)


@pytest.fixture(scope="module")
def conjugate():
    """Correlated coefficients; posterior and evidence in closed form."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=600)
    z = 0.9 * x + 0.3 * rng.normal(size=600)
    table = pd.DataFrame({"x": x, "z": z, "y": 1 + x - z + 1.5 * rng.normal(size=600)})
    design = np.column_stack([np.ones(600), x, z])
    precision = design.T @ design / 1.5**2 + np.eye(3) / 4
    covariance = np.linalg.inv(precision)
    mean = covariance @ design.T @ table["y"].to_numpy() / 1.5**2
    marginal = 1.5**2 * np.eye(600) + 4 * design @ design.T
    evidence = scipy.stats.multivariate_normal.logpdf(table["y"], np.zeros(600), marginal)
    return table, mean, covariance, evidence


@pytest.fixture(scope="module")
def corrected(conjugate):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a good verdict is silent
        return fit(conjugate[0], regression, n_shards=6)


def test_moments_are_the_full_models(conjugate, corrected):
    _, mean, covariance, _ = conjugate
    draws = corrected["posterior"]["beta"].to_numpy().reshape(-1, 3)
    sd = np.sqrt(np.diag(covariance))
    # A Gaussian posterior is emulated exactly, and averaged over 32,768 points; of the 1,000 draws
    # all but the outermost hundredth is matched to that, which leaves 0.01 of their 1/sqrt(1,000).
    np.testing.assert_array_less(np.abs(draws.mean(axis=0) - mean) / sd, 1 / np.sqrt(32_768))
    # The draws in that hundredth, some 10 of squares near 8, err by sqrt(10) x 8 / 1,000.
    off = (np.cov(draws.T) - covariance) / np.outer(sd, sd)
    np.testing.assert_allclose(off, 0, atol=0.025)


def test_evidence_is_the_closed_form(conjugate, corrected):
    found = corrected["correction"]
    error = float(found["log_evidence_error"])
    # An average over 32,768 points whose weights vary by less than their mean.
    assert error < 1 / np.sqrt(32_768)
    # Single precision moves each of 600 rows by 6e-8 of its size: 1e-4 of the sum of their squares
    # at most.
    assert abs(float(found["log_evidence"]) - conjugate[3]) < 4 * error + 1e-4


def test_verdict_is_good_and_says_how_accurate(conjugate, corrected):
    _, mean, covariance, _ = conjugate
    assert corrected.attrs["verdict_good"] == 1
    assert corrected.attrs["verdict"].startswith("Good: this is the full model's posterior")
    # A polynomial of the second degree is all there is to learn.
    assert float(corrected["correction"]["emulator_error"]) < 1e-3
    assert float(corrected["correction"]["k_hat"]) < 0.5
    accuracy = corrected["correction"]
    off = np.abs(accuracy["mean"] - mean) / np.sqrt(np.diag(covariance))
    assert (off < 3 * accuracy["error"]).all()
    told = json.loads(corrected.attrs["accuracy"])
    np.testing.assert_allclose(list(told.values()), accuracy["error"], rtol=1e-6)


def test_groups_of_the_result(corrected):
    assert set(corrected.children) == {
        "posterior",
        "unconstrained_posterior",
        "uncorrected",
        "shards",
        "rounds",
        "correction",
    }
    assert corrected["posterior"]["beta"].dims[:2] == ("chain", "draw")
    assert corrected["uncorrected"]["beta"].shape[-1] == 3
    np.testing.assert_allclose(corrected["correction"]["weights"].sum(), 1)


@pytest.mark.parametrize(
    "method", [pytest.param("consensus", marks=pytest.mark.slow), "parametric"]
)
def test_correction_follows_any_method(conjugate, method):
    table, mean, covariance, _ = conjugate
    tree = fit(table, regression, n_shards=3, method=method, num_warmup=300, num_samples=400)
    draws = tree["posterior"]["beta"].to_numpy().reshape(-1, 3)
    # 32,768 points of an emulator that is exact, of whatever proposal, and 400 draws of them.
    sd = np.sqrt(np.diag(covariance))
    np.testing.assert_array_less(np.abs(draws.mean(axis=0) - mean) / sd, 1 / np.sqrt(32_768))
    # What is corrected is the method's own combination, which one shot leaves farther off.
    before = tree["uncorrected"]["beta"].to_numpy().reshape(-1, 3)
    np.testing.assert_array_less(np.abs(before.mean(axis=0) - mean) / sd, 4 * np.sqrt(5 / 400))


def test_anchored_rounds_alone_are_close_and_keep_their_word(conjugate):
    table, mean, covariance, _ = conjugate
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        tree = fit(table, regression, n_shards=6, method="anchored", correct=False, num_samples=500)
    assert "correction" not in tree.children
    assert "correct=False" in tree.attrs["verdict"]
    draws = tree["posterior"]["beta"].to_numpy().reshape(-1, 3)
    off = np.abs(draws.mean(axis=0) - mean) / np.sqrt(np.diag(covariance))
    # Four Monte Carlo errors, sqrt((1 + c) / ess), of the last round; rounds average.
    assert off.max() < 4 * float(tree["rounds"]["noise"][-1])
    assert tree["shards"]["divergences"].sum() == 0
    assert tree["rounds"].sizes["round"] > 1


def intercepts(g, y=None, *, n_g):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfNormal(2))
    with numpyro.plate("g", n_g):
        a = numpyro.sample("a", dist.Normal(mu, tau))
    numpyro.sample("y", dist.Bernoulli(logits=a[g]), obs=y)


def test_sparse_binary_groups_agree_with_a_grid():
    """Two shared parameters: the posterior on a grid, each group's integral by SciPy's nodes."""
    rng = np.random.default_rng(1)
    g = np.repeat(np.arange(300), 3)
    p = scipy.special.expit(-0.5 + 1.2 * rng.normal(size=300))[g]
    table = pd.DataFrame({"g": g, "y": (rng.random(900) < p).astype(int)})
    tree = fit(table, intercepts, by="g", n_shards=4)

    x, w = np.polynomial.hermite_e.hermegauss(60)
    ones = table.groupby("g")["y"].sum().to_numpy()
    counts = np.bincount(ones, minlength=4)
    mu, log_tau = np.linspace(-1.5, 0.8, 70), np.linspace(-2.5, 1.5, 90)
    density = np.zeros((70, 90))
    for i, m in enumerate(mu):
        q = scipy.special.expit(m + np.exp(log_tau)[:, None] * x)
        for k in range(4):
            likelihood = (q**k * (1 - q) ** (3 - k)) @ (w / w.sum())
            density[i] += counts[k] * np.log(likelihood)
    density += scipy.stats.norm.logpdf(mu, 0, 5)[:, None]
    density += scipy.stats.halfnorm.logpdf(np.exp(log_tau), 0, 2) + log_tau
    density = np.exp(density - density.max())
    density /= density.sum()
    posterior = tree["posterior"]
    for values, shares, draws in (
        (mu, density.sum(axis=1), posterior["mu"]),
        (log_tau, density.sum(axis=0), np.log(posterior["tau"])),
    ):
        mean = shares @ values
        sd = np.sqrt(shares @ (values - mean) ** 2)
        # The correction stops at 1,000 independent draws, and 0.03 of an sd: twice that.
        assert abs(float(draws.mean()) - mean) < 2 / np.sqrt(1000) * sd
        assert abs(float(draws.std()) / sd - 1) < 2 * 0.03
    assert tree.attrs["verdict_good"] == 1


def effects(g, y=None, *, n_g):
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("g", n_g):
        a = numpyro.sample("a", dist.Normal(0.0, tau))
    numpyro.sample("y", dist.Normal(a[g], 1.0), obs=y)


def test_a_variance_near_zero_is_not_left_to_the_emulator():
    """Its log has a tail of all scales, in closed form: y_g ~ N(0, tau^2 + 1)."""
    rng = np.random.default_rng(7)
    y = rng.normal(size=200) * np.sqrt(1 + 0.15**2)
    table = pd.DataFrame({"g": np.arange(200), "y": y})
    tree = fit(table, effects, by="g", n_shards=4)

    log_tau = np.linspace(-14, 1, 6001)
    variance = np.exp(2 * log_tau) + 1
    density = -100 * np.log(variance) - (y**2).sum() / 2 / variance
    density += scipy.stats.halfnorm.logpdf(np.exp(log_tau)) + log_tau
    density = np.exp(density - density.max())
    density /= density.sum()
    mean = density @ log_tau
    sd = np.sqrt(density @ (log_tau - mean) ** 2)
    found = tree["correction"]
    assert np.isnan(float(found["emulator_error"]))
    # As above: 1,000 independent draws, and 0.03 of an sd, twice.
    assert abs(float(found["mean"][0]) - mean) < 2 / np.sqrt(1000) * sd
    assert abs(float(found["sd"][0]) / sd - 1) < 2 * 0.03
    assert float(found["error"][0]) < 1 / np.sqrt(1000)


# What must be flagged


def test_two_modes_of_which_one_is_described_are_flagged():
    def mixture(y=None):
        mu = numpyro.sample("mu", dist.Normal(0, 5).expand([2]).to_event(1))
        halves = dist.Categorical(jnp.array([0.5, 0.5]))
        with numpyro.plate("rows", len(y)):
            numpyro.sample("y", dist.MixtureSameFamily(halves, dist.Normal(mu, 1.0)), obs=y)

    rng = np.random.default_rng(2)
    y = np.concatenate([rng.normal(-2, 1, 600), rng.normal(2, 1, 600)])
    with pytest.warns(UserWarning, match="separate modes"):
        tree = fit(pd.DataFrame({"y": y}), mixture, n_shards=4, correct=False)
    assert tree.attrs["verdict_good"] == 0


def location(y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 10))
    sigma = numpyro.sample("sigma", dist.HalfNormal(5))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


@pytest.mark.parametrize("stranger", [True, False])
def test_a_shard_from_another_population_is_named(stranger):
    rng = np.random.default_rng(3)
    place = np.repeat(np.arange(8), 150)
    y = rng.normal(size=len(place)) + (3.0 * (place == 5) if stranger else 0.0)
    table = pd.DataFrame({"place": place, "y": y})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tree = fit(table, location, by="place", n_shards=8)
    assert ("disagrees with the others" in tree.attrs["verdict"]) is stranger
    assert len([w for w in caught if "Not to be relied on" in str(w.message)]) == int(stranger)


def test_groups_that_depend_on_each_other_are_not_corrected():
    def centred(g, y=None, *, n_g):
        mu = numpyro.sample("mu", dist.Normal(0, 10))
        with numpyro.plate("g", n_g):
            a = numpyro.sample("a", dist.Normal(0, 1.0))
        numpyro.sample("y", dist.Normal(mu + (a - a.mean())[g], 1.0), obs=y)

    rng = np.random.default_rng(4)
    table = pd.DataFrame({"g": np.repeat(np.arange(30), 5), "y": rng.normal(size=150)})
    with pytest.warns(UserWarning, match="not independent|depend on each other"):
        tree = fit(table, centred, by="g", n_shards=3, num_samples=200, rounds=2)
    assert "was not corrected, because groups depend on each other" in tree.attrs["verdict"]
    with pytest.raises(ValueError, match="correct=True, but groups depend"):
        fit(table, centred, by="g", n_shards=3, correct=True, num_samples=200, rounds=1)


def estimate(points, weights):
    weighted = Weighted(points, weights)
    return estimate_of(weighted, weighted, (len(points),))


def test_resampled_draws_agree_with_their_weights():
    rng = np.random.default_rng(5)
    points = rng.normal(size=(3000, 2))
    weights = np.exp(0.7 * points[:, 0])
    weights /= weights.sum()
    mean = weights @ points
    covariance = np.cov(points.T, aweights=weights)
    draws = equal_weight_draws(estimate(points, weights), (2, 250), rng)
    assert draws.shape == (2, 250, 2)
    flat = draws.reshape(-1, 2)
    # Only tails of a hundredth are not matched: some five draws of 500, and how far they happen
    # to lie beyond the cut, 0.4 sds or so: sqrt(5) x 0.4 / 500 of a mean, four times that. Their
    # squares differ by 2 x 2.6 x 0.4.
    np.testing.assert_allclose(flat.mean(axis=0), mean, atol=4 * np.sqrt(5) * 0.4 / 500)
    np.testing.assert_allclose(np.cov(flat.T), covariance, atol=4 * np.sqrt(5) * 2.1 / 500)


def test_a_far_point_does_not_stretch_the_others():
    rng = np.random.default_rng(6)
    points = np.append(rng.normal(size=4000), -60.0)[:, None]
    weights = np.full(4001, 1 / 4001)
    draws = equal_weight_draws(estimate(points, weights), (1, 500), rng).ravel()
    quantiles = [0.05, 0.25, 0.5, 0.75, 0.95]
    expected = np.quantile(points, quantiles)
    # Systematic: each tick is 1/500 from where it should be, over a density of 0.1 at least.
    np.testing.assert_allclose(np.quantile(draws, quantiles), expected, atol=1 / 500 / 0.1)


# The loop as a state


@pytest.fixture(scope="module")
def loop():
    """Shards of sparse groups, whose weights need several iterations, and a poor combination."""
    rng = np.random.default_rng(8)
    g = np.arange(60)
    y = rng.normal(size=60) * np.sqrt(1 + 0.15**2)
    rows = from_pandas(pd.DataFrame({"g": g, "y": y}))
    plan = rows.consensus.plan(effects, by="g", n_shards=2)
    with dask.config.set(scheduler="synchronous"):
        shards = shard_rows(rows, plan, progress=False)
        center = np.array([-1.0])
        log_posterior = LogPosterior(plan.model, shards, plan.example, center)
        options = CorrectionOptions(64, 128, 3, 1e9, 0.5, 0.03, 0.0, 8, 100_000, 0.01)
        limits = Options.frozen().verdict
        yield CorrectionSettings(center, np.eye(1), (), (), 5, options, limits), log_posterior


def assert_equal(one, other):
    """Everything but wall times, to the last bit, whatever is nested in it."""
    assert type(one) is type(other)
    if hasattr(one, "_asdict"):
        assert_equal(one._asdict(), other._asdict())
    elif isinstance(one, dict):
        for name in one:
            if "seconds" not in name:
                assert_equal(one[name], other[name])
    elif isinstance(one, tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    else:
        np.testing.assert_array_equal(one, other)


def test_a_correction_goes_on_from_a_stored_state(loop):
    """The state holds arrays alone: shards and model stay behind when it is stored."""
    settings, log_posterior = loop
    with dask.config.set(scheduler="synchronous"):
        whole = correct(settings, log_posterior)
        prepared, state = init(settings, log_posterior)
        assert not done(settings, state)
        assert state.iterations == 0
        state = step(settings, prepared, state)
        stored = pickle.dumps((prepared.rule, state))
        assert b"ShardModel" not in stored

        rule, state = pickle.loads(stored)
        prepared = log_posterior._replace(rule=rule)
        assert_equal(step(settings, prepared, state), step(settings, prepared, state))
        while not done(settings, state):
            state = step(settings, prepared, state)
        outskirts = outskirts_of(settings, prepared, state)
    assert_equal(finished(settings, prepared, state, outskirts, 0.0), whole)
    # Later iterations and their bookkeeping: 64 points and then 128 each.
    assert state.iterations == 3
    assert np.bincount(whole.iteration).tolist() == list(state.mixture.counts) == [64, 128, 128]
    assert len(whole.points) == len(whole.weights) == len(state.modes_not_found) == 320
    np.testing.assert_array_equal(whole.points[:64], pickle.loads(stored)[1].points)


def state_after(iterations, k_hat, ess, sd_error, long_tailed=False, emulator_error=np.nan):
    mixture = MixtureProposal()
    for _ in range(iterations):
        mixture = mixture.and_from(None, 100)
    weights = Weighted(np.eye(2), np.ones(2) / 2)
    known = Estimate(weights, weights, np.zeros(2), np.eye(2), np.ones(2) / np.sqrt(ess),
                     np.array([0.001, sd_error]), ess, 0.0, 0.0)  # fmt: skip
    weighed = Weighed(weights.weights, k_hat, np.zeros(2))
    assessment = Assessment(
        weighed, known, emulator_error, None, np.ones(2), np.zeros(2), np.eye(2)
    )
    nothing = np.empty(0)
    none = np.empty((0, 0))
    return CorrectionState(mixture, np.empty((0, 2)), nothing, nothing, none, None, assessment,
                           SamplingError.none(2), long_tailed, 0.0, 0.0)  # fmt: skip


def settings_in(d):
    options = Options.frozen()
    limits = options.verdict
    return CorrectionSettings(np.zeros(d), np.eye(d), (), (), 0, options.correction, limits)


GOOD = {"iterations": 2, "k_hat": 0.4, "ess": 1001.0, "sd_error": 0.02}


@pytest.mark.parametrize(
    ("changed", "finished"),
    [
        ({}, True),
        ({"k_hat": 0.6}, False),
        ({"ess": 999.0}, False),
        ({"sd_error": 0.04}, False),
        # One proposal is not enough but for an emulator; a long tail takes another one.
        ({"iterations": 1}, False),
        ({"iterations": 1, "emulator_error": 0.05}, True),
        ({"long_tailed": True}, False),
        ({"long_tailed": True, "iterations": 3}, True),
        # An emulator does not excuse what else is poor.
        ({"emulator_error": 0.05, "k_hat": 0.6}, False),
        # Enough is enough: no more of it in sight, what the verdict asks, all that is allowed.
        ({"iterations": 5, "k_hat": 3.0, "ess": 2.0, "sd_error": 9.0}, True),
        ({"iterations": 4, "k_hat": 3.0, "ess": 2.0, "sd_error": 9.0}, False),
        ({"iterations": 5, "ess": 300.0, "sd_error": 0.07}, False),
        ({"iterations": 5, "ess": 90.0}, True),
        ({"iterations": 5, "sd_error": 0.12}, True),
        ({"iterations": 5, "k_hat": 0.65, "ess": 450.0, "sd_error": 0.04}, True),
        ({"iterations": 19, "ess": 399.0}, False),
        ({"iterations": 20, "ess": 399.0}, True),
    ],
)
def test_a_correction_ends_when_its_points_are_enough(changed, finished):
    assert done(settings_in(2), state_after(**GOOD | changed)) is finished


def test_more_dimensions_need_more_draws():
    """Twenty a dimension: 1,200 of 60."""
    settings = settings_in(60)
    assert not done(settings, state_after(**GOOD | {"ess": 1199.0}))
    assert done(settings, state_after(**GOOD | {"ess": 1201.0}))


def test_rounds_that_fail_leave_the_answer_that_was_there(conjugate, monkeypatch):
    """A fallback that samples: its failure is said, and is not the end of the fit."""

    def fails(*_):
        raise SamplingFailed("shard 2 (100 rows): 3 effective draws")

    monkeypatch.setattr(fallback, "usable", lambda _: False)
    monkeypatch.setattr(fallback, "combine_longer", fails)
    with pytest.warns(UserWarning, match="no longer rounds: shard 2"):
        tree = fit(conjugate[0], regression, n_shards=6)
    np.testing.assert_allclose(tree["correction"]["mean"], conjugate[1], atol=0.01)
