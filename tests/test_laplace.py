"""Newton steps to the mode: curvature in closed form, rival modes, what has no mode to find."""

from types import SimpleNamespace

import dask
import numpy as np
import pandas as pd
import pytest
import scipy.stats

from dask_consensus.combination.ascent import (
    STEP,
    Peak,
    ascend,
    inverse_curvature,
    positive_curvature,
)
from dask_consensus.combination.enough import Top, blind, lone
from dask_consensus.combination.gaussian import square_root
from dask_consensus.combination.laplace import draws_of
from dask_consensus.combination.mode_search import distinct
from dask_consensus.combination.reports import (
    Anchor,
    Combined,
    Expansions,
    FitSettings,
    LaplaceApproximation,
    Report,
    Round,
)
from dask_consensus.result.estimates import approximate_error
from dask_consensus.shard.score import Expansion

from .test_importance import fit, regression


def normal(mean, covariance, height=0.0):
    """Expansions of a Gaussian log density."""
    precision = np.linalg.inv(covariance)

    def expand(u, axes):
        away = mean - u
        value = height - 0.5 * away @ precision @ away
        return Expansion(value, precision @ away, precision, np.zeros_like(u))

    return expand


def test_a_gaussian_takes_one_expansion_if_its_width_was_known():
    covariance = np.array([[2.0, 0.9], [0.9, 1.0]])
    expansions = []
    expand = normal(np.array([3.0, -40.0]), covariance)
    arrived = ascend(lambda *a: expansions.append(a) or expand(*a), np.zeros(2), np.eye(2), 5)
    assert arrived is not None
    peak, shift = arrived
    np.testing.assert_allclose(peak.u, [3.0, -40.0])
    np.testing.assert_allclose(peak.covariance, covariance)
    np.testing.assert_allclose(shift, 0)
    assert len(expansions) == 1
    arrived = ascend(lambda *a: expansions.append(a) or expand(*a), np.zeros(2), 9 * np.eye(2), 5)
    np.testing.assert_allclose(arrived[0].u, [3.0, -40.0])
    assert arrived[0].height == pytest.approx(0.0)
    assert len(expansions) == 3


@pytest.mark.parametrize("condition", [1e2, 1e10])
def test_curvature_made_right_is_the_inverse_of_its_inverse(condition):
    expected = np.diag([1.0, condition]) / 4
    expected[0, 1] = expected[1, 0] = 0.1 * np.sqrt(condition) / 4
    precision = np.diag([2.0, -1.0 / condition])
    covariance, _ = inverse_curvature(precision, expected, 1e-3)
    curvature = positive_curvature(precision, expected, 1e-3)
    scale = np.sqrt(np.diag(covariance))
    product = (curvature * scale[:, None]) @ (covariance / scale[None, :])
    np.testing.assert_allclose(product * scale[None, :] / scale[:, None], np.eye(2), atol=1e-9)


def test_a_covariance_that_rounding_made_singular_has_a_root():
    direction = np.array([1.0, 3e5, -1e-5])
    singular = np.outer(direction, direction)
    with pytest.raises(np.linalg.LinAlgError):
        np.linalg.cholesky(singular)
    root = square_root(singular)
    sd = np.abs(direction)
    # A correlation matrix, good to rounding; its least eigenvalues are no more than that.
    correlations = root @ root.T / np.outer(sd, sd)
    np.testing.assert_allclose(correlations, singular / np.outer(sd, sd), atol=1e-14)
    assert np.linalg.matrix_rank(root / sd[:, None], tol=1e-12) == 3


def gamma(shape):
    """Log of a gamma variate: skewed to the left, mode log(shape)."""

    def expand(u, axes):
        def gradient(x):
            return shape - np.exp(x)

        step, x = axes[0, 0], u[0]
        here, ahead, behind = gradient(x), gradient(x + step), gradient(x - step)
        return Expansion(
            shape * x - np.exp(x),
            np.array([here]),
            np.array([[-(ahead - behind) / (2 * step)]]),
            np.array([ahead - 2 * here + behind]),
        )

    return expand


@pytest.mark.parametrize("start", [-6.0, 0.0, 9.0])
def test_a_skewed_density_gives_its_mean_to_first_order(start):
    arrived = ascend(gamma(30.0), np.array([start]), np.array([[1.0]]), 40)
    assert arrived is not None
    peak, shift = arrived
    sd = np.sqrt(peak.covariance[0, 0])
    assert abs(peak.u[0] - np.log(30.0)) < 0.05 * sd
    exact = scipy.stats.loggamma(30.0)
    # The mode is 0.09 sds from the mean; the first order takes at least half of that away.
    assert abs(peak.u[0] + shift[0] - exact.mean()) < 0.045 * sd
    assert sd == pytest.approx(exact.std(), rel=0.05)


def test_no_mode_is_no_answer():
    slope = lambda u, axes: Expansion(float(u[0]), np.ones(1), np.zeros((1, 1)), np.zeros(1))  # noqa: E731
    assert ascend(slope, np.zeros(1), np.eye(1), 10) is None
    broken = lambda u, axes: Expansion(np.nan, np.ones(1), np.eye(1), np.zeros(1))  # noqa: E731
    assert ascend(broken, np.zeros(1), np.eye(1), 10) is None


def test_peaks_count_once_and_only_if_they_are_comparable():
    def peak(x, height):
        return Peak(np.array([x]), np.array([[1.0]]), height)

    peaks = [peak(0.0, -5.0), peak(0.1, -4.9), peak(20.0, -6.0), peak(40.0, -60.0)]
    assert [p.u[0] for p in distinct(peaks)] == [0.1, 20.0]
    assert distinct([]) == []


def test_a_low_peak_counts_if_it_is_wide():
    narrow, wide = Peak(np.zeros(6), 1e-4 * np.eye(6), 0.0), Peak(np.full(6, 9.0), np.eye(6), -30.0)
    assert len(distinct([narrow, wide])) == 2
    assert len(distinct([narrow, wide._replace(covariance=1e-2 * np.eye(6))])) == 1


def test_a_needle_within_a_wide_peak_is_another():
    needle, wide = Peak(np.zeros(2), 1e-6 * np.eye(2), 0.0), Peak(np.ones(2), np.eye(2), -9.0)
    assert len(distinct([needle, wide])) == 2
    assert len(distinct([needle, wide._replace(covariance=1e-5 * np.eye(2), u=needle.u)])) == 1
    assert len(distinct([wide, wide._replace(u=np.zeros(2), covariance=9 * np.eye(2))])) == 1


def test_laplace_alone_is_the_posterior_of_a_conjugate_model():
    rng = np.random.default_rng(0)
    x = rng.normal(size=600)
    z = 0.9 * x + 0.3 * rng.normal(size=600)
    table = pd.DataFrame({"x": x, "z": z, "y": 1 + x - z + 1.5 * rng.normal(size=600)})
    shape = {"num_samples": 2000, "num_chains": 2}
    with dask.config.set(scheduler="synchronous"):
        tree = fit(table, regression, n_shards=6, method="laplace", correct=False, **shape)
    design = np.column_stack([np.ones(600), x, z])
    covariance = np.linalg.inv(design.T @ design / 1.5**2 + np.eye(3) / 4)
    mean = covariance @ design.T @ table["y"].to_numpy() / 1.5**2
    last = tree["rounds"].isel(round=-1)
    sd = np.sqrt(np.diag(covariance))
    # Columns of single precision are all that is inexact.
    # Single precision rounds 600 rows to 6e-8 of their size each.
    np.testing.assert_allclose((last["mean"] - mean) / sd, 0, atol=1e-6)
    np.testing.assert_allclose(last["sd"], sd, rtol=1e-6)
    # The moments of the draws are what they were matched to; that they are draws of a Gaussian,
    # independent of each other, is not: a distance has a chi-square distribution, and its
    # product with the next is uncorrelated. Bounds that chance crosses once in 1,000 times.
    draws = tree["posterior"]["beta"].to_numpy()
    assert draws.shape == (2, 2000, 3)
    distance = scipy.stats.chi2(3).cdf(_squares(draws.reshape(-1, 3) - mean, covariance))
    assert scipy.stats.kstest(distance, "uniform").pvalue > 0.001
    assert abs(np.corrcoef(distance[1:], distance[:-1])[0, 1]) < 3.3 / np.sqrt(4000)
    assert not np.isin(draws[0, :, 0], draws[1, :, 0]).all()
    # Each shard's Gaussian is its own share of the posterior.
    shards = tree["shards"].isel(round=-1)
    np.testing.assert_allclose(
        shards["precision"].sum("shard"), np.linalg.inv(covariance), rtol=1e-6
    )
    assert "correct=False" in tree.attrs["verdict"]


def _squares(away, covariance):
    return np.einsum("ni,ij,nj->n", away, np.linalg.inv(covariance), away)


@pytest.mark.parametrize(("shape", "matched"), [((2, 1), False), ((1, 2), False), ((1, 3), True)])
def test_no_more_draws_than_dimensions_are_not_matched(shape, matched):
    """Their covariance is singular: no map gives them another."""
    mean, covariance = np.array([1.0, 2.0]), np.array([[2.0, 0.9], [0.9, 1.0]])
    approximation = LaplaceApproximation(mean, covariance, np.zeros(2), 1, [])
    combined = draws_of(FitSettings(None, 1, False, 0), approximation, shape)
    assert combined.draws.shape == (*shape, 2)
    is_mean = np.allclose(combined.draws.mean(axis=(0, 1)), mean)
    assert is_mean is matched
    np.testing.assert_array_equal(combined.mean, mean)


def test_too_many_effects_have_no_laplace_approximation():
    def many(county, y=None, *, n_county):
        import numpyro
        import numpyro.distributions as dist

        tau = numpyro.sample("tau", dist.HalfNormal(1))
        with numpyro.plate("counties", n_county):
            a = numpyro.sample("a", dist.Normal(0, tau).expand([17]).to_event(1))
        numpyro.sample("y", dist.Normal(a[county].sum(axis=1), 1.0), obs=y)

    rng = np.random.default_rng(1)
    table = pd.DataFrame({"county": np.repeat(np.arange(40), 3), "y": rng.normal(size=120)})
    with pytest.raises(ValueError, match="method='laplace', but 17 local effects a group"):
        fit(table, many, by="county", n_shards=2, method="laplace")


def test_what_the_last_step_may_be_wrong_by_is_part_of_the_error():
    """A step of 2 sds, along which the curvature changes by a tenth: a tenth of an sd."""
    step, third = np.array([2.0, 0.0]), np.array([[0.05 * STEP**2, 0.0]])
    told = Expansions(
        np.zeros(2), STEP * np.eye(2), step, np.zeros(1), step[None], np.eye(2)[None], third
    )
    mean, nothing = np.zeros(2), np.zeros(2)
    approximation = LaplaceApproximation(mean, np.eye(2), nothing, 1, [], expansions=told)
    report = Report(10, (), 1.0, mean, np.eye(2), 0.0, 0.0)
    last = Round([report], mean, np.eye(2), Anchor(mean, np.zeros((2, 2)), 0.0), 0.0, 0.0, 0.0)
    combined = Combined(np.zeros((1, 4, 2)), mean, np.eye(2), [last], "laplace")
    np.testing.assert_allclose(approximate_error(combined, approximation), 0.1)
    without = approximation._replace(expansions=None)
    np.testing.assert_allclose(approximate_error(combined, without), 0.01)


def top(u, reached, height=0.0):
    return Top(Peak(np.array(u), np.eye(2), height), None, reached)


@pytest.mark.parametrize(
    ("tops", "n_lone"),
    [
        ([top([0, 0], 20), top([9, 0], 1, -1.0), top([0, 9], 1, -1.0)], 2),
        ([top([0, 0], 20), top([9, 0], 1), top([9.5, 0], 1)], 0),  # one mode, reached twice
        ([top([0, 0], 20), top([9, 0], 0)], 0),  # an image is known without a search
        ([top([0, 0], 20), top([9, 0], 1, -9.0)], 0),  # so low that its like do not matter
        ([top([0, 0], 1)], 0),  # judged by itself
        ([], 0),
    ],
)
def test_modes_that_one_search_alone_reached_have_their_like(tops, n_lone):
    assert lone(tops) == n_lone


@pytest.mark.parametrize(("knows", "shard"), [(4, 4), (0, None), (9, None), (None, None)])
def test_a_direction_of_which_searched_shards_know_nothing_is_found(knows, shard):
    """Ten shards; one alone knows the sum of two coordinates."""
    along = np.array([1.0, 1.0]) / np.sqrt(2)
    across = np.outer([1, -1], [1, -1]) / 2
    precision = np.array([across + (0.01 if knows is not None else 1.0) * np.eye(2)] * 10)
    if knows is not None:
        precision[knows] += 10 * np.outer(along, along)
    covariance = np.linalg.inv(precision.sum(axis=0))
    none = np.zeros((10, 2))
    told = Expansions(
        np.zeros(2), STEP * square_root(covariance), np.zeros(2), none[:, 0], none, precision, none
    )
    shards = SimpleNamespace(n=10, weights=np.full(10, 0.1), median=lambda: 5)
    assert blind(told, shards) == shard
    # What cancels among those that were searched is known to them.
    precision[[0, 9]] += 10 * np.outer(along, along) * np.array([1, -1])[:, None, None]
    assert blind(told, shards) is None
