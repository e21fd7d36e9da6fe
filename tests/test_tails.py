"""Probes of the tails: what is a tail is heard, what is rounding is not."""

from typing import NamedTuple

import numpy as np
import pytest

from dask_consensus.correction.proposals import MixtureProposal, single
from dask_consensus.correction.tails import probe, reach, tail_log_ratio

MEAN, COVARIANCE = np.array([1.0, -2.0]), np.array([[2.0, 0.6], [0.6, 0.5]])


class Answered(NamedTuple):
    points: np.ndarray
    log_density: np.ndarray


def posterior(log_density):
    """A log posterior of the two whitened coordinates, and how many points it was asked for."""
    asked = []

    def ask(points, title):
        asked.append(len(points))
        z = np.linalg.solve(np.linalg.cholesky(COVARIANCE), (points - MEAN).T).T
        return Answered(points, log_density(z))

    return ask, asked


def gaussian(z):
    return -0.5 * np.sum(z**2, axis=1)


def ratio(log_density):
    """Of the largest weight at a probe to those of points that a Gaussian proposal has."""
    ask, asked = posterior(log_density)
    proposal = single(MEAN, 1.5 * COVARIANCE)
    mixture = MixtureProposal().and_from(proposal, 500)
    points = proposal.draw(500, (0, 0))
    weights = ask(points, "points").log_density - mixture.log_density(points)
    return tail_log_ratio(probe(ask, MEAN, COVARIANCE), mixture, weights).max(), asked


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
    ask, _ = posterior(rounded)
    assert np.concatenate(reach(probe(ask, MEAN, COVARIANCE))).max() == 1


@pytest.mark.parametrize("log_density", [heavy, far_away])
def test_what_is_there_is_heard(log_density):
    found, _ = ratio(log_density)
    assert found > 2
