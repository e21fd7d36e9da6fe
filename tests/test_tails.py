"""Probes of the tails: what is a tail is heard, what is rounding is not."""

from typing import NamedTuple

import numpy as np
import pytest
import scipy.stats

from dask_consensus.correction.proposals import MixtureProposal, single
from dask_consensus.correction.tails import (
    probe,
    reach,
    tail_log_ratio,
    unreached,
    without_variance,
)

MEAN, COVARIANCE = np.array([1.0, -2.0]), np.array([[2.0, 0.6], [0.6, 0.5]])


class Answered(NamedTuple):
    points: np.ndarray
    log_density: np.ndarray


class Posterior:
    """A log posterior of the two whitened coordinates that counts the points it is asked for."""

    def __init__(self, log_density):
        self.log_density_of = log_density
        self.asked = []

    def __call__(self, points, title):
        self.asked.append(len(points))
        z = np.linalg.solve(np.linalg.cholesky(COVARIANCE), (points - MEAN).T).T
        return Answered(points, self.log_density_of(z))

    def error_of(self, evaluated):
        return np.zeros(len(evaluated.points))


def gaussian(z):
    return -0.5 * np.sum(z**2, axis=1)


def ratio(log_density):
    """Of the largest weight at a probe to those of points that a Gaussian proposal has."""
    posterior = Posterior(log_density)
    proposal = single(MEAN, 1.5 * COVARIANCE)
    mixture = MixtureProposal().and_from(proposal, 500)
    points = proposal.draw(500, (0, 0))
    weights = posterior(points, "points").log_density - mixture.log_density(points)
    probes = probe(posterior, MEAN, COVARIANCE)
    return tail_log_ratio(probes, mixture, weights).max(), posterior.asked


def rounded(z):
    """Rounding errors beyond ten sds, as of huge log-gamma functions that cancel."""
    noise = 1e5 * np.sin(1e7 * z).sum(axis=1)
    return np.where(np.abs(z).max(axis=1) > 10, noise, gaussian(z))


def heavy(z):
    """A Cauchy tail: the log density falls by log 4 whenever the distance doubles."""
    return -np.log1p(z**2).sum(axis=1)


def far_away(z):
    """A second mode of much mass, sixteen sds away."""
    lead = z @ np.linalg.cholesky(COVARIANCE).T / np.sqrt(np.diag(COVARIANCE))
    other = -0.5 * (lead[:, 0] - 16) ** 2 - 0.5 * (z[:, 1]) ** 2 + 3
    return np.logaddexp(gaussian(z), other)


def test_a_gaussian_is_asked_for_no_neighbours():
    found, asked = ratio(gaussian)
    assert found < 0
    assert len(asked) == 2


def test_rounding_errors_far_out_are_no_tail():
    found, asked = ratio(rounded)
    assert found < 0
    assert len(asked) == 3
    assert np.concatenate(reach(probe(Posterior(rounded), MEAN, COVARIANCE))).max() == 1


@pytest.mark.parametrize("log_density", [heavy, far_away])
def test_what_is_there_is_heard(log_density):
    found, _ = ratio(log_density)
    assert found > 2


def skewed(z):
    """Log-gamma in one coordinate, as of the log of a variance known to 15%; all others normal."""
    shape = 80.0
    first = z[:, 0] / np.sqrt(shape)
    return shape * (first + 1 - np.exp(first)) - 0.5 * np.sum(z[:, 1:] ** 2, axis=1)


@pytest.mark.parametrize("d", [1, 3, 60, 200])
def test_light_tails_are_light_in_many_dimensions(d):
    """On a line of many dimensions a t has far less density than it has mass of that coordinate."""

    class Whitened(Posterior):
        def __call__(self, points, title):
            return Answered(points, self.log_density_of(points))

    for log_density, found in ((skewed, False), (heavy_in_one, True)):
        posterior, proposal = Whitened(log_density), single(np.zeros(d), 1.2 * np.eye(d))
        mixture = MixtureProposal().and_from(proposal, 4096)
        points = proposal.draw(4096, (0, 0))
        weights = log_density(points) - mixture.log_density(points)
        probes = probe(posterior, np.zeros(d), np.eye(d))
        assert (tail_log_ratio(probes, mixture, weights).max() > 2) == found


@pytest.mark.parametrize("d", [2, 3, 5, 10, 20, 40])
@pytest.mark.parametrize("df", [1, 2, 3])
def test_tails_that_are_heavy_together_are_heard(d, df):
    """A multivariate t, whose other coordinates are the wider the further out one is."""

    def log_density(u):
        return -(df + d) / 2 * np.log1p((u**2).sum(axis=1) / df)

    class Told(Posterior):
        def __call__(self, points, title):
            return Answered(points, log_density(points))

    proposal = single(np.zeros(d), 1.5 * np.eye(d))
    mixture = MixtureProposal().and_from(proposal, 4096)
    points = proposal.draw(4096, (0, 0))
    weights = log_density(points) - mixture.log_density(points)
    probes = probe(Told(log_density), np.zeros(d), np.eye(d))
    assert tail_log_ratio(probes, mixture, weights).max() > 2


def heavy_in_one(z):
    return -np.log1p(z[:, 0] ** 2 / 0.3) - 0.5 * np.sum(z[:, 1:] ** 2, axis=1)


@pytest.mark.parametrize(
    ("freedom", "none"), [(1.0, True), (2.0, True), (3.0, False), (30.0, False)]
)
def test_a_tail_that_falls_too_slowly_has_no_variance(freedom, none):
    """Student's t has one above two degrees of freedom; the other coordinate is normal."""
    marginal = scipy.stats.t(freedom)

    def log_density(z):
        u = MEAN + z @ np.linalg.cholesky(COVARIANCE).T
        return marginal.logpdf(u[:, 0]) - u[:, 1] ** 2 / 2

    quantiles = marginal.ppf((np.arange(20_000) + 0.5) / 20_000)
    rng = np.random.default_rng(0)
    points = np.stack([rng.permutation(quantiles), rng.normal(size=20_000)], axis=1)
    mean, covariance = points.mean(axis=0), np.diag(points.var(axis=0))
    probes = probe(Posterior(log_density), mean, covariance)
    weights = np.full(20_000, 1 / 20_000)
    found = without_variance(probes, points, weights, mean, covariance)
    np.testing.assert_array_equal(found, [none, False])


def long_below(z):
    """An exponential tail on one side, where the logs of sds that may be zero have one."""
    return np.where(z[:, 0] > 0, -(z[:, 0] ** 2) / 2, z[:, 0] / 3) - z[:, 1] ** 2 / 2


def test_points_around_a_probe_reach_what_it_saw():
    posterior = Posterior(long_below)
    mixture = MixtureProposal().and_from(single(MEAN, 1.5 * COVARIANCE), 512)
    points = mixture.draw(512, (0, 0))
    probes = probe(posterior, MEAN, COVARIANCE)
    limit = 2.0
    for turn in (1, 2, 3):
        raw = posterior(points, "points").log_density - mixture.log_density(points)
        places = unreached(probes, mixture, raw, MEAN, COVARIANCE, limit)
        over = tail_log_ratio(probes, mixture, raw).max() > limit
        assert bool(places.proposals) == over
        if not over:
            break
        mixture = mixture.and_from(places, 512)
        points = np.concatenate([points, places.draw(512, (0, turn))])
    assert 1 < turn < 3  # there was something, and one turn saw it
    # Each is as far below as the probe, and reaches about half of the way to the mean.
    centers = np.concatenate([place.centers for place in mixture.proposals[1].proposals])
    assert (centers[:, 0] < MEAN[0]).all()


def test_a_middle_that_no_point_is_near_is_proposed_from():
    """Points of a ring, say: where it is asked the middle is as high as any place."""
    posterior = Posterior(gaussian)
    mixture = MixtureProposal().and_from(single(MEAN + 50, COVARIANCE), 64)
    points = mixture.draw(64, (0, 0))
    raw = posterior(points, "points").log_density - mixture.log_density(points)
    probes = probe(posterior, MEAN, COVARIANCE)
    places = unreached(probes, mixture, raw, MEAN, COVARIANCE, 2.0)
    middle = [place for place in places.proposals if (place.centers == MEAN).all()]
    assert len(middle) == len(MEAN)
    # As wide along the coordinate that leads as across it, if not wider.
    assert max(np.linalg.cond(place.basis) for place in middle) < 10
