"""Points of an earlier posterior, with new rows: whether what is stated of their answer holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import scipy.special

from dask_consensus.config import CorrectionOptions
from dask_consensus.correction.likelihood import Evaluated
from dask_consensus.correction.proposals import single
from dask_consensus.correction.reweighted import Before, NewRows, reweighted
from dask_consensus.correction.state import Known
from dask_consensus.shard.quadrature import Rule

OPTIONS = CorrectionOptions.configured("correction")


class Likelihood(NamedTuple):
    """Stands in for shards of new rows, whose log likelihood is a function."""

    function: Callable
    center: np.ndarray
    rule: Rule = Rule(0)
    error: float = 0.0

    def __call__(self, points, title):
        at_center = float(self.function(self.center[None])[0])
        n = len(points)
        values = self.function(points)
        return Evaluated(
            points=points,
            log_density=values,
            log_likelihood=values - at_center,
            at_center=at_center,
            modes_not_found=np.zeros(n),
            coupling=0.0,
            compile_seconds=0.0,
            remainders=np.empty((0, n)),
            remainders_at_center=np.empty(0),
        )

    def rounded(self, points):
        return points

    def with_enough_nodes(self, points, axes, share):
        return self, 0.0

    def integration_error(self, axes, share):
        assert 0 < share <= 1
        return np.full(len(axes), self.error), np.full(len(axes), self.error)


def of_gammas(n, mean=1.0):
    """Log likelihood of n exponential variables of this mean, in the log of their rate; d = 2.

    With a gamma prior of shape 4 and rate 4 the rate is a gamma variable: moments in closed form,
    and a log rate that is skewed.
    """
    return lambda u: (n * u - n * mean * np.exp(u)).sum(axis=-1)


def log_prior(u):
    return (4 * u - 4 * np.exp(u) + 4 * np.log(4) - scipy.special.gammaln(4)).sum(axis=-1)


def moments(n, total):
    """Mean and sd of each log rate, and the log evidence, after n variables that add up to this."""
    mean = scipy.special.digamma(4 + n) - np.log(4 + total)
    log_evidence = 2 * (
        4 * np.log(4) - scipy.special.gammaln(4)
        + scipy.special.gammaln(4 + n) - (4 + n) * np.log(4 + total)
    )  # fmt: skip
    return mean, np.sqrt(scipy.special.polygamma(1, 4 + n)), log_evidence


def first_fit(n, seed):
    """Points of a fit of n variables of mean 1, as a correction leaves them."""
    mean, sd, _ = moments(n, n)
    center, covariance = np.full(2, mean), sd**2 * np.eye(2)
    proposal = single(center, 1.5 * covariance)
    points = proposal.draw(256, (seed, 0))
    steps = np.array([-8.0, -4.0, -2.0, 0.0, 2.0, 4.0, 8.0])
    marks = np.concatenate([center + step * sd * np.eye(2) for step in steps])
    leader = np.resize(np.arange(2), len(marks))

    def log_density(u):
        return log_prior(u) + of_gammas(n)(u)

    known = Known(
        log_density=log_density(points),
        log_proposal=proposal.log_density(points),
        marks=marks,
        mark_log_density=log_density(marks),
        mark_log_proposal=proposal.log_density(marks),
        mark_leader=leader,
    )
    zero = np.zeros(2)
    return Before(
        points=points,
        iteration=np.zeros(256, int),
        known=known,
        sd=np.full(2, sd),
        integration_error=zero,
        integration_sd_error=zero,
        sampling_error=zero,
        sampling_sd_error=zero,
        log_evidence_error=0.0,
        modes_not_found=0.0,
        coupling=0.0,
        sampled_shards=0,
        nodes=0,
        modes=1,
    )


def again(correction):
    """What the next update is given."""
    rest = {name: getattr(correction, name) for name in Before._fields if name != "sd"}
    return Before(sd=np.sqrt(np.diag(correction.estimate.covariance)), **rest)


def grown(before, n_before, total, n, mean, seed, error=0.0):
    """Add n variables of some mean; the correction, and the truth."""
    truth = moments(n_before + n, total + n * mean)
    likelihood = Likelihood(of_gammas(n, mean), np.full(2, truth[0]), error=error)
    gaussian = np.full(2, truth[0]), truth[1] ** 2 * np.eye(2)
    rows = NewRows(likelihood, None, n / (n_before + n))
    return reweighted(before, rows, *gaussian, OPTIONS, seed), truth


def stated(correction):
    """Error of a mean that the verdict states."""
    return np.hypot(
        np.hypot(correction.estimate.error, correction.sampling_error), correction.integration_error
    )


@pytest.mark.parametrize(
    "share",
    [pytest.param(0.01, marks=pytest.mark.slow), 0.1, pytest.param(0.5, marks=pytest.mark.slow)],
    ids=["hundredth", "tenth", "half"],
)
def test_ten_updates_in_a_row_keep_their_word(share):
    """Growth by a hundredth to by half each time, in the end sixtyfold; new rows vary by chance."""
    away = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        n = total = 40
        before = first_fit(n, seed)
        for number in range(10):
            new = max(1, round(share * n))
            mean = rng.gamma(new) / new
            correction, (truth, sd, log_evidence) = grown(before, n, total, new, mean, number)
            n, total = n + new, total + new * mean
            off = np.abs(correction.estimate.mean - truth) / sd
            away += list(off / stated(correction))
            assert stated(correction).max() < 0.1
            assert correction.k_hat < 0.7
            errors = np.hypot(correction.estimate.sd_error, correction.sampling_sd_error)
            ratio = np.log(np.sqrt(np.diag(correction.estimate.covariance)) / sd)
            np.testing.assert_array_less(np.abs(ratio), 4 * errors)
            miss = abs(correction.log_evidence - log_evidence)
            assert miss < 4 * correction.log_evidence_error
            before = again(correction)
    # A standard error: errors are within it in two of three, never five of it.
    assert np.mean(np.array(away) < 1) > 0.6
    assert max(away) < 5
    renewed = before.iteration.max()
    assert (renewed > 0) == (share == 0.5)
    assert (before.sampling_error.max() > 0) == (share == 0.5)


@pytest.mark.parametrize("mean", [0.3, 3.0])
def test_points_that_the_posterior_has_left_say_so(mean):
    """Rows of another population: nothing stands in for the old rows, however well it would fit."""
    correction, _ = grown(first_fit(40, 0), 40, 40, 4000, mean, 0)
    assert not correction.k_hat < 0.7 or correction.estimate.ess < 400
    assert correction.iteration.max() == 0


def test_what_was_uncertain_stays_so():
    """Errors of old integrals and samples go along, larger where the posterior is wider."""
    before = first_fit(40, 0)
    error = np.array([0.01, 0.03])
    before = before._replace(
        sd=before.sd * [1.0, 0.5], integration_error=error, sampling_error=error
    )
    correction, _ = grown(before, 40, 40, 1, 1.0, 0, error=0.02)
    wider = np.maximum(np.sqrt(np.diag(correction.estimate.covariance)) / before.sd, 1)
    assert wider[1] > 1.9
    np.testing.assert_allclose(correction.integration_error, error * wider + 0.02)
    np.testing.assert_allclose(correction.sampling_error, error * wider)
    plain, _ = grown(first_fit(40, 0), 40, 40, 1, 1.0, 0)
    assert (stated(correction) > stated(plain)).all()


def test_what_is_taken_out_leaves_what_never_was():
    """Twenty rows added, then these removed as forty come in their place."""
    one, _ = grown(first_fit(40, 0), 40, 40, 20, 1.2, 0)
    truth, sd, _ = moments(80, 40 + 44)
    center = np.full(2, truth)
    rows = NewRows(
        Likelihood(of_gammas(40, 1.1), center), Likelihood(of_gammas(20, 1.2), center), 0.5
    )
    both = reweighted(again(one), rows, center, sd**2 * np.eye(2), OPTIONS, 0)
    direct, _ = grown(first_fit(40, 0), 40, 40, 40, 1.1, 0)
    np.testing.assert_allclose(both.known.log_density, direct.known.log_density, atol=1e-9)
    off = np.abs(both.estimate.mean - truth) / sd
    np.testing.assert_array_less(off, 4 * stated(both))


def test_a_tail_that_new_rows_raise_is_seen():
    """The old posterior had next to nothing at 8 sds; new rows have all of theirs there."""
    before = first_fit(40, 0)
    calm, _ = grown(before, 40, 40, 10, 1.0, 0)
    far = before.known.marks[-2]

    def bump(u):
        return 60 * np.exp(-((u - far) ** 2).sum(axis=-1) / 0.02)

    rows = NewRows(Likelihood(bump, before.points.mean(axis=0)), None, 0.2)
    mean, sd, _ = moments(40, 40)
    raised = reweighted(before, rows, np.full(2, mean), sd**2 * np.eye(2), OPTIONS, 0)
    assert calm.tail_log_ratio.max() < 2 < raised.tail_log_ratio.max()


def test_new_rows_are_integrated_as_finely_as_the_old_ones():
    """A hundred updates of a few rows each move little each, by whatever rule; together they do."""
    correction, _ = grown(first_fit(40, 0)._replace(nodes=5), 40, 40, 5, 1.0, 0)
    assert correction.nodes == 5
