"""Mass far out and off every straight line: what it changes; and that Gaussians have none."""

import numpy as np
import pytest

from dask_consensus.correction.far import beyond, level_sides
from dask_consensus.correction.proposals import MixtureProposal, single
from dask_consensus.correction.weights import weigh

CORNER, SHARE = np.array([12.0, -9.0, 0.0]), 2e-3


def gaussian(points):
    return -0.5 * (points**2).sum(axis=1)


def plateau(points):
    """A small part far out, off the regression lines, which is flat in one direction."""
    sd = np.array([3.0, 0.5, 25.0])
    far = -0.5 * (((points - CORNER) / sd) ** 2).sum(axis=1) + np.log(SHARE / sd.prod())
    return np.logaddexp(gaussian(points), far)


def exponential(points):
    """A tail whose mass points have seen."""
    skewed = np.where(points[:, 0] > 0, -2.0 * points[:, 0], -1.5 * points[:, 0] ** 2)
    return skewed - 0.5 * (points[:, 1:] ** 2).sum(axis=1)


def found(log_density, d=3):
    proposal = single(np.zeros(d), 2.0 * np.eye(d))
    points = proposal.draw(4096, (0, 0))
    mixture = MixtureProposal().and_from(proposal, len(points))
    estimate = weigh(log_density(points), points, mixture).estimate(points)
    asked = []

    def ask(points):
        asked.append(len(points))
        return log_density(points)

    line = np.array([-2, -4, -8, -16, -32, 0, 2, 4, 8, 16, 32])[:, None, None] * np.eye(d)
    height = log_density(line.reshape(-1, d)).reshape(-1, d)
    return beyond(ask, estimate, level_sides(height)), estimate, sum(asked)


@pytest.mark.parametrize("log_density", [gaussian, exponential])
def test_where_points_have_seen_everything_nothing_is_beyond(log_density):
    far, _, asked = found(log_density)
    assert max(far.mean.max(), far.sd.max()) < 0.02
    assert asked < 600


def test_mass_off_every_line_is_found_and_what_it_changes():
    far, estimate, asked = found(plateau)
    mean, square = SHARE * CORNER, 1 + SHARE * (CORNER**2 + [9.0, 0.25, 625.0])
    assert estimate.covariance[2, 2] < 1.2  # no point was there
    np.testing.assert_allclose(far.mean[:2], np.abs(mean[:2]), rtol=0.7)
    np.testing.assert_allclose(np.exp(2 * far.sd) - 1, square - 1, rtol=0.7)
    assert far.where in (0, 1)
    assert asked < 1500


def test_points_drawn_there_see_it():
    """And nothing is beyond them: of a normal in two parts both are known to have their shares."""
    near, far = single(np.zeros(3), 2.0 * np.eye(3)), found(plateau)[0].places
    mixture = MixtureProposal().and_from(near, 2048).and_from(far, 2048)
    points = np.concatenate([near.draw(2048, (0, 0)), far.draw(2048, (0, 1))[:2048]])
    estimate = weigh(plateau(points), points, mixture).estimate(points)
    mean = SHARE / (1 + SHARE) * CORNER
    there = np.diag([9.0, 0.25, 625.0]) + np.outer(CORNER, CORNER)
    covariance = (np.eye(3) + SHARE * there) / (1 + SHARE) - np.outer(mean, mean)
    np.testing.assert_allclose(np.diag(estimate.covariance), np.diag(covariance), rtol=0.1)
    assert not beyond(plateau, estimate, set()).places.proposals


def test_a_density_that_ends_is_no_mistake():
    far, _, _ = found(lambda points: np.where(points[:, 0] > 3.5, -np.inf, gaussian(points)))
    assert far.sd.max() < 0.02


def plain(points):
    """A change far out on the first of eight coordinates leaves the second to its prior."""
    near = gaussian(points)
    wide = np.r_[1.0, 25.0, np.ones(6)]
    out = -0.5 * (((points - 5.0 * np.eye(8)[1]) / wide) ** 2)[:, 1:].sum(axis=1) - 8.0
    level = np.where(points[:, 0] < -6, out + (points[:, 0] + 6) / 30, -np.inf)
    return np.logaddexp(near, level)


def test_in_many_dimensions_level_lines_are_followed():
    far, estimate, asked = found(plain, 8)
    mass = np.exp(-8.0) * 25.0 * 30.0 / np.sqrt(2 * np.pi)  # beside the rest's
    assert estimate.covariance[1, 1] < 1.5
    assert far.where == 0
    # Of the distances between 6 and 48, a part.
    added = mass * (1 - np.exp(-42 / 30)) * (25.0**2 + 25.0)
    assert 0.3 < (np.exp(2 * far.sd[1]) - 1) / added < 2
    assert asked < 1_000
    assert found(gaussian, 8)[2] == 0
