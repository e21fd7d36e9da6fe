"""Proposals: densities that integrate to one, draws that have them, shapes that are followed."""

import numpy as np
import pytest
import scipy.stats

from dask_consensus.correction.proposals import (
    MixtureProposal,
    mixture_of,
    resample,
    single,
    split,
)

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
    # E over a wide t of q / t is the integral of q. The 2^15 points know it to 3 %; five of their
    # standard errors.
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
    # Quasi-random points: closer than 2^14 independent ones, which err by 1/128 of an sd, and of
    # covariances by 1/64; with the tails of 5 degrees of freedom, of kurtosis 9, by sqrt(8)/128.
    sd = np.sqrt(np.diag(COVARIANCE))
    np.testing.assert_array_less(np.abs(points.mean(axis=0) - MEAN) / sd, 1 / 128)
    off = (np.cov(points.T) - COVARIANCE) / np.outer(sd, sd)
    np.testing.assert_array_less(np.abs(off), np.sqrt(8) / 128)


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
    # Five standard errors: it is nearer to the draws' distribution, in Kullback and Leibler's
    # sense, than one t distribution is.
    assert gain.mean() > 5 * gain.std() / np.sqrt(len(gain))
    points = mixture.draw(2**13, (7,))
    # 256 centers, systematic along one axis, are independent along the others.
    sd = np.sqrt(np.diag(moments[1]))
    np.testing.assert_array_less(np.abs(points.mean(axis=0) - moments[0]) / sd, 3 / np.sqrt(256))


def test_resampling_is_systematic():
    points = np.arange(5.0)[:, None]
    weights = np.array([0.1, 0.4, 0.0, 0.3, 0.2])
    chosen = resample(points, weights, np.ones(1), 1000, np.random.default_rng(0))
    # A tick every thousandth: one more or one fewer.
    np.testing.assert_allclose(np.bincount(chosen, minlength=5), 1000 * weights, atol=1)


def test_draws_are_named_by_their_seed():
    proposal = single(MEAN, COVARIANCE)
    assert np.array_equal(proposal.draw(64, (1, 2)), proposal.draw(64, (1, 2)))
    assert not np.array_equal(proposal.draw(64, (1, 2)), proposal.draw(64, (1, 3)))


# All proposals together


def test_a_mixture_of_one_is_that_one():
    proposal = single(MEAN, COVARIANCE)
    mixture = MixtureProposal().and_from(proposal, 17)
    points = skewed(50)
    np.testing.assert_allclose(mixture.log_density(points), proposal.log_density(points))
    assert mixture.counts == (17,)


def test_a_mixture_takes_each_proposal_by_its_share_of_the_points():
    first, second = single(MEAN, COVARIANCE), single(MEAN + 3, 0.2 * COVARIANCE)
    mixture = MixtureProposal().and_from(first, 100).and_from(second, 300)
    points = np.concatenate([first.draw(64, (0,)), second.draw(64, (0,))])
    densities = np.exp([first.log_density(points), second.log_density(points)])
    expected = np.log(0.25 * densities[0] + 0.75 * densities[1])
    np.testing.assert_allclose(mixture.log_density(points), expected, rtol=1e-12)


def test_a_mixture_grows_without_changing_what_it_was():
    one = MixtureProposal().and_from(single(MEAN, COVARIANCE), 100)
    two = one.and_from(single(MEAN, 2 * COVARIANCE), 50)
    assert (one.counts, two.counts) == ((100,), (100, 50))
    assert two.proposals[0] is one.proposals[0]
    # Points drawn twice from one proposal are points of that proposal.
    twice = one.and_from(one.proposals[0], 900)
    points = skewed(20)
    np.testing.assert_allclose(twice.log_density(points), one.log_density(points))


def test_far_out_a_mixture_underflows_nowhere():
    mixture = MixtureProposal().and_from(single(MEAN, 1e-12 * COVARIANCE), 1)
    mixture = mixture.and_from(single(MEAN, COVARIANCE), 10**6)
    assert np.isfinite(mixture.log_density(1e8 * np.ones((3, 3)))).all()


@pytest.mark.parametrize("proposal", list(proposals()), ids=["single", "split", "mixture"])
def test_marginal_densities_are_those_of_the_draws(proposal):
    mixture = MixtureProposal().and_from(proposal, 3)
    draws = proposal.draw(2**14, (3,))
    for axis in range(3):
        values = np.sort(draws[:, axis])
        inside = np.linspace(values[30], values[-31], 4001)
        tails = np.geomspace(1e-3, 1e4, 20_001)
        grid = np.concatenate([inside[0] - tails[::-1], inside, inside[-1] + tails])
        density = np.exp(mixture.log_marginal(grid, np.full(len(grid), axis)))
        below = np.concatenate([[0], np.cumsum(np.diff(grid) * (density[1:] + density[:-1]) / 2)])
        assert below[-1] == pytest.approx(1, abs=1e-3)
        # Of a split proposal that of the longest tail is exact, and the ends of the others
        # are right to a factor.
        if np.array_equal(proposal.lower, proposal.upper) or axis == 1:
            shares = np.interp(values, grid, below)
            assert scipy.stats.kstest(shares, "uniform").statistic < 0.01
        ends = np.interp(values[[30, -31]], grid, below) * [1, -1] + [0, below[-1]]
        np.testing.assert_allclose(np.log(ends * len(values) / 30), 0, atol=1)
