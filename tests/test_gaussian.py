from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpyro.infer.hmc_util import consensus, parametric

from dask_consensus.cluster.mapreduce import tree
from dask_consensus.combination import gaussian

from .strategies import draws, seeds

both = pytest.mark.parametrize("diagonal", [False, True], ids=["full", "diagonal"])


def covariance(dim: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(dim, dim)) + 2 * np.eye(dim)
    return root @ root.T


def sites_of(subposteriors: np.ndarray, diagonal: bool = False) -> list[gaussian.GaussianFactor]:
    return [gaussian.factor_of(draws, diagonal=diagonal) for draws in subposteriors]


# Closed forms


@given(seed=seeds, dim=st.integers(1, 6))
def test_solving_is_multiplying_backwards(seed: int, dim: int):
    matrix = covariance(dim, seed)
    vectors = np.random.default_rng(seed).normal(size=(2, 3, dim))
    # Float64, condition numbers up to about 1e5: good to 1e-10.
    np.testing.assert_allclose(gaussian.inverse(matrix) @ matrix, np.eye(dim), atol=1e-10)
    for precision in (matrix, np.diag(matrix)):
        back = gaussian.solve(precision, gaussian.times(precision, vectors))
        np.testing.assert_allclose(back, vectors, rtol=1e-9, atol=1e-10)


def test_moments_of_all_chains_together():
    sample = np.random.default_rng(0).normal(size=(2, 50, 3))
    mean, matrix = gaussian.moments(sample)
    np.testing.assert_allclose(mean, sample.reshape(100, 3).mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(matrix, np.cov(sample.reshape(100, 3).T), rtol=1e-12)
    np.testing.assert_allclose(
        gaussian.moments(sample, diagonal=True)[1], np.diag(matrix), rtol=1e-12
    )


@pytest.mark.parametrize("dim", [1, 3])
def test_product_of_two_gaussians(dim: int):
    """Precisions add, and means are averaged by them."""
    rng = np.random.default_rng(1)
    covariances = [covariance(dim, seed) for seed in (1, 2)]
    means = rng.normal(size=(2, dim))
    precisions = [np.linalg.inv(matrix) for matrix in covariances]
    total = gaussian.add(
        [
            gaussian.GaussianFactor(precision, precision @ mean, np.zeros((1, 1, dim)))
            for precision, mean in zip(precisions, means, strict=True)
        ]
    )
    mean, matrix = gaussian.moments_of(total)
    first, second = covariances
    # The product written without precisions: A (A + B)^-1 B, and the same for the means.
    np.testing.assert_allclose(matrix, first @ np.linalg.solve(first + second, second), rtol=1e-10)
    expected = means[0] + first @ np.linalg.solve(first + second, means[1] - means[0])
    np.testing.assert_allclose(mean, expected, rtol=1e-10)


@both
def test_one_site_gives_its_draws_back(diagonal: bool):
    sample = np.random.default_rng(2).normal(size=(2, 40, 3)) * [1, 10, 0.1] + 5
    total = gaussian.factor_of(sample, diagonal=diagonal)
    np.testing.assert_allclose(gaussian.consensus_draws(total), sample, rtol=1e-12)
    np.testing.assert_allclose(gaussian.moments_of(total)[0], sample.mean(axis=(0, 1)), rtol=1e-12)


@pytest.mark.parametrize(("dim", "diagonal"), [(1, False), (4, False), (4, True)])
def test_precision_is_unbiased(dim: int, diagonal: bool):
    """The mean of the estimate over many samples is the precision itself."""
    rng = np.random.default_rng(3)
    n, repeats, matrix = 12, 4000, covariance(dim)
    samples = rng.multivariate_normal(np.zeros(dim), matrix, size=(repeats, n))
    estimates = np.array(
        [gaussian.precision_of(gaussian.moments(sample, diagonal)[1], n) for sample in samples]
    )
    exact = 1 / np.diag(matrix) if diagonal else np.linalg.inv(matrix)
    # Five standard errors for each of up to 16 numbers; without the factor it is 17 to 83% off.
    error = estimates.std(axis=0) / np.sqrt(repeats)
    np.testing.assert_array_less(np.abs(estimates.mean(axis=0) - exact), 5 * error)


def test_effective_draws():
    assert gaussian.effective_draws([100.0, 400.0], 1000) == pytest.approx(200.0)
    # Antithetic chains count as independent draws, a coordinate that never moved as one draw.
    assert gaussian.effective_draws([3000.0], 1000) == pytest.approx(1000.0)
    assert gaussian.effective_draws([0.0], 1000) == pytest.approx(1.0)


def test_gaussian_draws():
    matrix, rng = covariance(3), np.random.default_rng(4)
    sample = gaussian.gaussian_draws(np.array([1.0, 2.0, 3.0]), matrix, (4, 5000), rng)
    assert sample.shape == (4, 5000, 3)
    mean, found = gaussian.moments(sample)
    # Five standard errors of 20,000 draws: sqrt(var / n), and at most sqrt(2 / n) of a variance.
    scale = np.sqrt(np.diag(matrix))
    np.testing.assert_array_less(np.abs(mean - [1, 2, 3]), 5 * scale / np.sqrt(20_000))
    np.testing.assert_array_less(
        np.abs(found - matrix), 5 * np.sqrt(2 / 20_000) * np.outer(scale, scale)
    )


# Anchors


@both
def test_subtracting_anchors_undoes_adding_them(diagonal: bool):
    sites = sites_of(np.random.default_rng(5).normal(size=(4, 1, 30, 3)), diagonal)
    total, mean = gaussian.add(sites), np.array([1.0, -2.0, 0.5])
    anchor = np.diag(covariance(3)) if diagonal else covariance(3)
    anchored = gaussian.add(
        [
            site._replace(
                precision=site.precision + anchor,
                shift=site.shift + gaussian.times(anchor, mean),
            )
            for site in sites
        ]
    )
    precision, shift = gaussian.subtract_anchors(anchored, len(sites), anchor, mean)
    np.testing.assert_allclose(precision, total.precision, atol=1e-10)
    np.testing.assert_allclose(shift, total.shift, atol=1e-10)


def test_floor_raises_only_the_directions_that_are_too_weak():
    reference, strong = np.diag([4.0, 4.0, 4.0]), np.diag([2.0, 3.0, 4.0])
    np.testing.assert_array_equal(gaussian.floored(strong, reference, 0.1), strong)
    weak = np.diag([-5.0, 0.1, 4.0])
    np.testing.assert_allclose(
        gaussian.floored(weak, reference, 0.1), np.diag([0.4, 0.4, 4.0]), atol=1e-14
    )
    np.testing.assert_allclose(
        gaussian.floored(np.diag(weak), np.diag(reference), 0.1), [0.4, 0.4, 4.0]
    )


@given(seed=seeds)
def test_floored_precision_is_at_least_the_floor(seed: int):
    reference = covariance(3, seed)
    precision = reference - covariance(3, seed + 1)
    raised = gaussian.floored(precision, reference, 0.1)
    # What is left above the floor has no negative direction, but for rounding.
    assert np.linalg.eigvalsh(raised - 0.1 * reference).min() > -1e-9 * np.trace(reference)


@given(subposteriors=draws(max_shards=1))
def test_matched_draws_have_the_moments_asked_for(subposteriors: np.ndarray):
    sample = subposteriors[0]
    dim = sample.shape[-1]
    mean, matrix = np.arange(dim) + 1.0, covariance(dim, 7)
    found_mean, found = gaussian.moments(gaussian.matched(sample, mean, matrix))
    # Exact but for rounding, whatever the draws.
    np.testing.assert_allclose(found_mean, mean, rtol=1e-8)
    np.testing.assert_allclose(found, matrix, rtol=1e-7, atol=1e-8)


# A tree of sums is the flat sum


@both
@given(subposteriors=draws(max_shards=40), split_every=st.integers(2, 12))
def test_tree_equals_flat(diagonal: bool, subposteriors: np.ndarray, split_every: int):
    sites = sites_of(subposteriors, diagonal)
    flat, summed = gaussian.add(sites), tree(sites, gaussian.add, split_every)
    results = [
        (*gaussian.moments_of(total), gaussian.consensus_draws(total)) for total in (flat, summed)
    ]
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10 * np.abs(one).max())


# NumPyro's own functions on the same draws


def theirs(subposteriors: np.ndarray) -> list[np.ndarray]:
    return [jnp.asarray(sample.reshape(-1, sample.shape[-1])) for sample in subposteriors]


@both
@settings(max_examples=8)
@given(subposteriors=draws())
def test_equal_to_numpyro(diagonal: bool, subposteriors: np.ndarray):
    dim = subposteriors.shape[-1]
    if dim == 1 and not diagonal:
        return  # where NumPyro fails: see below
    total = gaussian.add(sites_of(subposteriors, diagonal))
    mean, matrix = gaussian.moments_of(total)
    scale = np.sqrt(np.diag(matrix))

    their_draws = consensus(theirs(subposteriors), diagonal=diagonal)
    their_mean, their_matrix = parametric(theirs(subposteriors), diagonal=diagonal)
    # Theirs inverts matrices in float32, of condition numbers up to about 1e4: 1e-3 of a
    # standard deviation. Ours, in float64, has the last digits.
    ours = gaussian.consensus_draws(total).reshape(-1, dim)
    spread = np.abs(subposteriors).max(axis=(0, 1, 2)) + scale
    np.testing.assert_allclose((ours - their_draws) / spread, 0, atol=2e-3)
    np.testing.assert_allclose((mean - their_mean) / spread, 0, atol=2e-3)
    their_matrix = np.diag(their_matrix) if diagonal else their_matrix
    np.testing.assert_allclose((matrix - their_matrix) / np.outer(scale, scale), 0, atol=1e-2)


def test_one_parameter_works_where_numpyro_fails():
    subposteriors = np.random.default_rng(6).normal(size=(3, 1, 50, 1)) * [
        [[[1.0]]],
        [[[2.0]]],
        [[[3.0]]],
    ]
    with pytest.raises((ValueError, TypeError)):
        consensus(theirs(subposteriors))
    full, diagonal = (gaussian.add(sites_of(subposteriors, choice)) for choice in (False, True))
    np.testing.assert_allclose(
        gaussian.consensus_draws(full), gaussian.consensus_draws(diagonal), rtol=1e-12
    )


# Errors


def test_too_few_effective_draws():
    with pytest.raises(ValueError, match=r"6 effective draws .* 4 shared dimensions: more than 6"):
        gaussian.precision_of(np.eye(4), 6.0)
    # Coordinate by coordinate, more than three draws are needed, however many coordinates.
    with pytest.raises(ValueError, match=r"3 effective draws .* a shared dimension: more than 3"):
        gaussian.precision_of(np.ones(4), 3.0)
    assert gaussian.precision_of(np.ones(4), 4.0) == pytest.approx(1 / 3)


def test_a_singular_covariance_is_refused():
    """NumPyro would return garbage in silence."""
    moving = np.random.default_rng(7).normal(size=(1, 50, 1))
    copies, still = np.repeat(moving, 2, axis=2), np.append(moving, 0 * moving, axis=2)
    for sample, diagonal in ((copies, False), (still, False), (still, True)):
        with pytest.raises(ValueError, match="singular: some shared dimensions did not move"):
            gaussian.factor_of(sample, diagonal=diagonal)
