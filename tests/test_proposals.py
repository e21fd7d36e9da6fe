"""Proposals: densities that integrate to one, draws that have them, shapes that are followed."""

import numpy as np
import pytest
import scipy.stats

from dask_consensus.correction.proposals import mixture_of, resample, single, split

MEAN = np.array([1.0, -2.0, 0.5])
COVARIANCE = np.array([[2.0, 0.6, 0.0], [0.6, 1.0, -0.2], [0.0, -0.2, 0.5]])


def skewed(n=4000, seed=0):
    """Draws whose first coordinate has a long left tail."""
    rng = np.random.default_rng(seed)
    draws = rng.normal(size=(n, 3))
    draws[:, 0] = np.log(rng.gamma(1.0, size=n))
    return draws


def proposals():
    draws = skewed()
    weights = np.full(len(draws), 1 / len(draws))
    moments = draws.mean(axis=0), np.cov(draws.T)
    yield single(MEAN, COVARIANCE)
    yield split(MEAN, COVARIANCE, np.array([1.0, 3.0, 1.0]), np.array([2.0, 1.0, 1.0]))
    yield mixture_of(draws, weights, *moments, np.random.default_rng(1))


@pytest.mark.parametrize("proposal", list(proposals()), ids=["single", "split", "mixture"])
def test_densities_integrate_to_one(proposal):
    # E over a wide Gaussian of q / Gaussian is the integral of q; 2^15 points know it to 3 %.
    center = proposal.centers.mean(axis=0)
    wide = scipy.stats.multivariate_t(center, 9 * np.cov(proposal.draw(2**12, (0,)).T), df=3)
    points = wide.rvs(2**15, random_state=np.random.default_rng(2))
    ratios = np.exp(proposal.log_density(points) - wide.logpdf(points))
    error = ratios.std() / np.sqrt(len(ratios))
    assert abs(ratios.mean() - 1) < 5 * error
    assert error < 0.03


@pytest.mark.parametrize("proposal", list(proposals()), ids=["single", "split", "mixture"])
def test_draws_have_the_density_they_say(proposal):
    # Under its own draws E[r / q] = 1 for any density r that q covers.
    other = single(proposal.centers.mean(axis=0), 0.3 * np.eye(3))
    points = proposal.draw(2**14, (3,))
    ratios = np.exp(other.log_density(points) - proposal.log_density(points))
    assert abs(ratios.mean() - 1) < 5 * ratios.std() / np.sqrt(len(ratios))


def test_single_has_its_moments():
    points = single(MEAN, COVARIANCE).draw(2**14, (4,))
    # Quasi-random points: far closer than 1/sqrt(n).
    np.testing.assert_allclose(points.mean(axis=0), MEAN, atol=0.01)
    np.testing.assert_allclose(np.cov(points.T), COVARIANCE, atol=0.05)


def test_split_agrees_with_single_where_both_sides_are_alike():
    ones = np.ones(3)
    points = skewed(50)
    a, b = single(MEAN, COVARIANCE), split(MEAN, COVARIANCE, ones, ones)
    np.testing.assert_allclose(a.log_density(points), b.log_density(points))


def test_the_mixture_follows_a_long_tail():
    draws = skewed()
    weights = np.full(len(draws), 1 / len(draws))
    moments = draws.mean(axis=0), np.cov(draws.T)
    mixture = mixture_of(draws, weights, *moments, np.random.default_rng(5))
    fresh = skewed(seed=6)
    gain = mixture.log_density(fresh) - single(*moments).log_density(fresh)
    assert gain.mean() > 0.02
    points = mixture.draw(2**13, (7,))
    np.testing.assert_allclose(points.mean(axis=0), moments[0], atol=0.1)


def test_resampling_is_systematic():
    points = np.arange(5.0)[:, None]
    weights = np.array([0.1, 0.4, 0.0, 0.3, 0.2])
    chosen = resample(points, weights, np.ones(1), 1000, np.random.default_rng(0))
    np.testing.assert_allclose(np.bincount(chosen, minlength=5), 1000 * weights, atol=1)


def test_draws_are_named_by_their_seed():
    proposal = single(MEAN, COVARIANCE)
    assert np.array_equal(proposal.draw(64, (1, 2)), proposal.draw(64, (1, 2)))
    assert not np.array_equal(proposal.draw(64, (1, 2)), proposal.draw(64, (1, 3)))
