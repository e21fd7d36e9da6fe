"""Mass far out and off every straight line: what it changes; and that Gaussians have none."""

import numpy as np
import pytest

from dask_consensus.correction.far import beyond
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


def found(log_density):
    proposal = single(np.zeros(3), 2.0 * np.eye(3))
    points = proposal.draw(4096, (0, 0))
    mixture = MixtureProposal().and_from(proposal, len(points))
    estimate = weigh(log_density(points), points, mixture).estimate(points)
    asked = []

    def ask(points):
        asked.append(len(points))
        return log_density(points)

    return beyond(ask, estimate), estimate, sum(asked)


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


def test_a_density_that_ends_is_no_mistake():
    far, _, _ = found(lambda points: np.where(points[:, 0] > 3.5, -np.inf, gaussian(points)))
    assert far.sd.max() < 0.02
