"""Proposals around several modes, and moments that are drawn towards a guess."""

import numpy as np
import pytest

from dask_consensus.combination.ascent import Peak
from dask_consensus.correction.peaks import around_peaks, moments_of, refitted
from dask_consensus.correction.weights import shrunk_moments

LOW = Peak(np.array([-3.0, 0.0]), np.diag([0.25, 1.0]), np.log(1.0))
HIGH = Peak(np.array([3.0, 1.0]), np.diag([1.0, 1.0]), np.log(1.5))


def test_moments_are_those_of_the_mixture():
    """Masses by Laplace's method are 1 x 0.5 and 1.5 x 1: a quarter and three quarters."""
    mean, covariance = moments_of([LOW, HIGH])
    rng = np.random.default_rng(0)
    low = rng.random(400_000) < 0.25
    scale = np.where(low[:, None], np.sqrt(np.diag(LOW.covariance)), 1.0)
    draws = np.where(low[:, None], LOW.u, HIGH.u) + scale * rng.normal(size=(400_000, 2))
    # Four Monte Carlo errors of 400,000 draws; variances up to 8.
    np.testing.assert_allclose(mean, draws.mean(axis=0), atol=4 * np.sqrt(8 / 400_000))
    np.testing.assert_allclose(covariance, np.cov(draws.T), atol=4 * 8 * np.sqrt(2 / 400_000))


def test_points_come_from_all_modes_by_their_mass():
    mixture = around_peaks([LOW, HIGH], 1.2)
    points = mixture.draw(4096, (0,))
    assert (points[:, 0] < 0).mean() == pytest.approx(0.25, abs=0.02)
    # The density is that of what is drawn: its mean over the points is the integral of its square.
    weights = 1 / np.exp(mixture.log_density(points))
    inside = (np.abs(points[:, 0] - 3) < 1) & (np.abs(points[:, 1] - 1) < 1)
    assert (weights * inside).mean() == pytest.approx(4.0, rel=0.05)  # an area of 2 by 2


def test_modes_are_refitted_to_the_points_around_them():
    points = around_peaks([LOW, HIGH], 1.0).draw(8192, (1,))
    moved = [LOW._replace(u=LOW.u + 0.5), HIGH._replace(u=HIGH.u - 0.5)]
    found = refitted(moved, points, np.full(len(points), 1 / len(points)))
    for peak, truth in zip(found, (LOW, HIGH), strict=True):
        np.testing.assert_allclose(peak.u, truth.u, atol=0.1)
    np.testing.assert_allclose(*[moments_of(p)[0] for p in (found, [LOW, HIGH])], atol=0.15)


def test_a_mode_without_points_keeps_its_place():
    points = np.full((20, 2), 3.0) + np.random.default_rng(0).normal(size=(20, 2))
    found = refitted([LOW, HIGH], points, np.full(20, 1 / 20))
    np.testing.assert_array_equal(found[0].u, LOW.u)
    assert np.isneginf(found[0].height)


def weighted(d, n, mean, sd):
    points = np.random.default_rng(3).normal(mean, sd, size=(n, d))
    return points, np.full(n, 1 / n)


def test_in_many_dimensions_a_right_guess_is_kept():
    points, weights = weighted(100, 300, 0.0, 1.0)
    mean, covariance = shrunk_moments(points, weights, np.zeros(100), np.eye(100))
    eigenvalues = np.linalg.eigvalsh(covariance)
    # Unshrunk they would lie between (1 - sqrt(1/3))^2 and (1 + sqrt(1/3))^2, 0.18 to 2.5.
    assert 0.85 < eigenvalues.min() < eigenvalues.max() < 1.2
    assert np.linalg.norm(mean) < 0.3 * np.linalg.norm(points.mean(axis=0))


def test_a_wrong_guess_is_left():
    points, weights = weighted(3, 2000, 2.0, 0.5)
    mean, covariance = shrunk_moments(points, weights, np.zeros(3), np.eye(3))
    np.testing.assert_allclose(mean, 2.0, atol=0.05)
    np.testing.assert_allclose(covariance, 0.25 * np.eye(3), atol=0.04)
