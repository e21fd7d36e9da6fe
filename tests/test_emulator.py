"""The emulator: exact where it can be, unbiased where it errs, silent where it must not speak."""

import numpy as np
import pytest
import scipy.special
import scipy.stats

from dask_consensus.correction.draws import equal_weight_draws
from dask_consensus.correction.emulator import fit
from dask_consensus.correction.proposals import MixtureProposal, single
from dask_consensus.correction.weights import weigh

MEAN = np.array([1.0, -2.0])
COVARIANCE = np.array([[1.0, 0.6], [0.6, 2.0]])
SD = np.sqrt(np.diag(COVARIANCE))


def gaussian(u):
    return scipy.stats.multivariate_normal.logpdf(u, MEAN, COVARIANCE) + 3.0


def log_gamma(u):
    """Log of a gamma variable of shape 9 each: skewness -0.34, moments in closed form."""
    return (9.0 * u - np.exp(u)).sum(axis=-1)


def rough(u):
    """A Gaussian with ripples of 0.5 in its log that no low polynomial follows."""
    return gaussian(u) + 0.5 * np.sin(6.0 * u[..., 0]) * np.cos(5.0 * u[..., 1])


def weighted(log_target, mean, covariance, n=256, seed=0):
    proposal = single(mean, 1.5 * covariance)
    points = proposal.draw(n, (seed,))
    values = log_target(points)
    mixture = MixtureProposal().and_from(proposal, n)
    return points, values, weigh(values, points, mixture), mixture


def emulated(log_target, mean, covariance, n=256, seed=0):
    points, values, weighed, mixture = weighted(log_target, mean, covariance, n, seed)
    emulator = fit(points, values, weighed.weights, mean, covariance)
    return emulator, emulator.estimate(points, values, mixture, (seed, 1))


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_a_gaussian_is_emulated_exactly_even_from_another_gaussian(shift):
    emulator, estimate = emulated(gaussian, MEAN + shift * SD, 1.2 * COVARIANCE)
    assert emulator.error < 2e-3
    # 32,768 quasi-random points: 0.006 sds, were they independent.
    np.testing.assert_allclose(estimate.mean, MEAN, atol=0.006)
    # Likewise sqrt(2 / 32,768) of a variance of 2, twice that; and 0.006 of a total, whose weights
    # vary by less than their mean.
    np.testing.assert_allclose(estimate.covariance, COVARIANCE, atol=4 * np.sqrt(2 / 32_768))
    assert abs(estimate.log_total - 3.0) < 0.006
    assert estimate.error.max() < 1.5 * 0.006


def test_skew_is_followed_and_the_error_is_honest():
    mean = np.full(2, scipy.special.digamma(9))
    sd = np.sqrt(scipy.special.polygamma(1, 9))
    plain, better, promised = [], [], []
    for seed in range(12):
        mode, curvature = np.log(9.0), np.eye(2) / 9
        points, values, weighed, mixture = weighted(
            log_gamma, np.full(2, mode), curvature, seed=seed
        )
        emulator = fit(points, values, weighed.weights, np.full(2, mode), curvature)
        estimate = emulator.estimate(points, values, mixture, (seed, 1))
        assert emulator.error < 0.05
        plain.append((weighed.estimate(points).mean - mean) / sd)
        better.append((estimate.mean - mean) / sd)
        promised.append(estimate.error)
        # 32,768 points know an sd to 0.004 of it; four times that.
        np.testing.assert_allclose(np.sqrt(np.diag(estimate.covariance)), sd, rtol=0.016)
        closed = 2 * scipy.special.gammaln(9)
        assert abs(estimate.log_total - closed) < 4 * estimate.log_total_error + 1e-3
    root = [float(np.sqrt(np.mean(np.square(one)))) for one in (plain, better, promised)]
    # A hundred times as many points would err by a tenth, were they all that varies; that a third
    # is left shows at least that the emulator carries the answer.
    assert root[1] < root[0] / 3
    # Quasi-random points err less than the independent ones that the estimate supposes.
    assert root[1] < 1.5 * root[2]


def test_a_bad_emulator_is_known_for_one_and_does_not_bias():
    errors, promised = [], []
    x = np.linspace(-9, 9, 1201)
    grid = np.stack(np.meshgrid(x, x, indexing="ij"), axis=-1)
    density = np.exp(rough(grid + MEAN))
    density /= density.sum()
    exact = np.tensordot(density, grid, axes=2) + MEAN
    for seed in range(20):
        emulator, estimate = emulated(rough, MEAN, COVARIANCE, seed=seed)
        assert 0.15 < emulator.error < 0.4
        errors.append((estimate.mean - exact) / SD)
        promised.append(estimate.error)
    errors, promised = np.array(errors), np.array(promised)
    # 95% of 40 errors, less three binomial standard errors of that share.
    assert (np.abs(errors) < 2 * promised).mean() > 0.85
    # The mean over seeds errs as means of 20 do: no bias.
    assert (np.abs(errors.mean(axis=0)) < 3 * promised.mean(axis=0) / np.sqrt(20)).all()


def test_impossible_points_count_as_impossible():
    def positive(u):
        return np.where(u[:, 0] > 0.0, gaussian(u), -np.inf)

    _, estimate = emulated(positive, MEAN, COVARIANCE, n=2048)
    truth = scipy.stats.truncnorm(-1.0, np.inf, loc=1.0, scale=1.0)
    assert abs(estimate.mean[0] - truth.mean()) < 4 * estimate.error[0] * truth.std()
    # The Gaussian's mass above zero, one sd below its mean.
    total = 3.0 + scipy.stats.norm.logsf(-1.0)
    assert abs(estimate.log_total - total) < 4 * estimate.log_total_error


def test_draws_are_those_of_the_estimate():
    _, estimate = emulated(log_gamma, np.full(2, np.log(9.0)), np.eye(2) / 9)
    draws = equal_weight_draws(estimate, (2, 1000), np.random.default_rng(0)).reshape(-1, 2)
    assert len(np.unique(draws[:, 0])) == 2000
    exact = scipy.stats.loggamma(9.0)
    # The estimate errs by 0.006 sds, of which two thousand matched draws add next to nothing.
    np.testing.assert_allclose(draws.mean(axis=0), exact.mean(), atol=3 * 0.006 * exact.std())
    for column in draws.T:
        # Better than independent draws, whose distance would be beyond 0.03 in 5% of the cases.
        assert scipy.stats.kstest(column, exact.cdf).statistic < 0.03


def test_too_many_dimensions_are_left_to_the_weights():
    mean, covariance = np.zeros(41), np.eye(41)
    points = single(mean, covariance).draw(512, (0,))
    weights = np.full(512, 1 / 512)
    assert fit(points, -(points**2).sum(axis=1) / 2, weights, mean, covariance) is None


def test_a_single_heavy_point_leaves_nothing_to_fit():
    points, values, *_ = weighted(gaussian, MEAN, COVARIANCE)
    weights = np.zeros(len(points))
    weights[0] = 1.0
    assert fit(points, values, weights, MEAN, COVARIANCE) is None
