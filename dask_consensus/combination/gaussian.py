"""Natural parameters of Gaussians: what a shard contributes, and how contributions add up.

Everything here is float64 NumPy and SciPy. A Gaussian in ``u`` (``d`` numbers) is carried as its
precision ``P`` and shift ``P m``: products of Gaussians are sums of these, so a tree of sums gives
the answer of a flat sum. A precision is a ``(d, d)`` matrix, or ``(d,)`` where only its diagonal
is kept.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.linalg

Array = npt.NDArray[np.float64]


class GaussianFactor(NamedTuple):
    """What one shard adds to the sum: a Gaussian, and its draws weighted by its precision.

    Attributes
    ----------
    precision : (d, d) or (d,) array
        Precision ``P`` of the shard's subposterior.
    shift : (d,) array
        ``P m`` with ``m`` the mean.
    draws : (chains, draws, d) array
        ``P u`` of every draw ``u``.
    """

    precision: Array
    shift: Array
    draws: Array


def effective_draws(ess: npt.ArrayLike, n_draws: int) -> float:
    """Reduce the effective sample sizes of ``d`` coordinates to one number of draws.

    The geometric mean is the multivariate effective sample size of Vats, Flegal and Jones (2019,
    Biometrika 106, eq. 11) where the coordinates mix independently. Antithetic chains, whose
    means are better than independent draws would give, estimate covariances no better: the size
    is capped at the number of draws.

    Parameters
    ----------
    ess : (d,) array
        Effective sample size of each coordinate.
    n_draws : int
        Draws in all chains together.
    """
    capped = np.clip(np.asarray(ess, dtype=np.float64), 1.0, n_draws)
    return float(np.exp(np.mean(np.log(capped))))


def inverse(matrix: Array) -> Array:
    """Invert a symmetric positive definite matrix by its Cholesky factor."""
    identity = np.eye(len(matrix))
    return scipy.linalg.cho_solve(scipy.linalg.cho_factor(matrix, lower=True), identity)


def square_root(covariance: Array) -> Array:
    """Give a matrix ``R`` with ``R R' = covariance``; rounding may have left that indefinite."""
    try:
        return np.asarray(np.linalg.cholesky(covariance), np.float64)
    except np.linalg.LinAlgError:
        sd = np.sqrt(np.diag(covariance))
        values, vectors = np.linalg.eigh(covariance / np.outer(sd, sd))
        least = len(sd) * np.finfo(float).eps
        return np.asarray(sd[:, None] * vectors * np.sqrt(np.maximum(values, least)), np.float64)


def moments(draws: Array, diagonal: bool = False) -> tuple[Array, Array]:
    """Mean ``(d,)`` and covariance ``(d, d)`` (or variances ``(d,)``) of ``(..., d)`` draws."""
    flat = np.asarray(draws, dtype=np.float64).reshape(-1, draws.shape[-1])
    mean = flat.mean(axis=0)
    if diagonal:
        return mean, flat.var(axis=0, ddof=1)
    return mean, np.atleast_2d(np.cov(flat, rowvar=False))


def precision_of(covariance: Array, effective: float = np.inf) -> Array:
    """Estimate a precision from a sample covariance, unbiased for Gaussian draws.

    The inverse of a sample covariance of ``e`` draws is too large by ``(e - 1)/(e - d - 2)``
    (mean of the inverse Wishart distribution; Anderson 2003, An Introduction to Multivariate
    Statistical Analysis, lemma 7.7.1).

    Parameters
    ----------
    covariance : (d, d) or (d,) array
        Sample covariance, or sample variances (treated one by one, as d = 1).
    effective : float
        Number of effective draws behind it; infinite leaves the inverse as it is.

    Raises
    ------
    ValueError
        If there are not more than ``d + 2`` effective draws, or the covariance is singular.
    """
    full = covariance.ndim == 2
    d = len(covariance) if full else 1
    if effective <= d + 2:
        what = f"{d} shared dimensions" if full else "a shared dimension"
        raise ValueError(
            f"{effective:.0f} effective draws cannot give the precision of {what}: more than "
            f"{d + 2} are needed. Draw more (num_samples, num_chains)"
            + (", or use weights='diagonal'." if full else ".")
        )
    factor = 1.0 if np.isinf(effective) else (effective - d - 2) / (effective - 1)
    try:
        if full:
            return factor * inverse(covariance)
        if (covariance > 0).all():
            return factor / covariance
    except np.linalg.LinAlgError:
        pass
    raise ValueError(
        "the covariance of the draws is singular: some shared dimensions did not move, or are "
        "copies of each other. Draw more, or reparameterise."
    )


def times(precision: Array, vectors: Array) -> Array:
    """Multiply ``(..., d)`` vectors by a full or diagonal precision."""
    return vectors @ precision if precision.ndim == 2 else vectors * precision


def solve(precision: Array, shifts: Array) -> Array:
    """Solve ``P x = shift`` for ``(..., d)`` shifts, by Cholesky."""
    if precision.ndim == 1:
        return shifts / precision
    factor = scipy.linalg.cho_factor(precision, lower=True)
    flat = shifts.reshape(-1, shifts.shape[-1])
    return scipy.linalg.cho_solve(factor, flat.T).T.reshape(shifts.shape)


def factor_of(draws: Array, effective: float = np.inf, diagonal: bool = False) -> GaussianFactor:
    """Turn one shard's ``(chains, draws, d)`` draws into its contribution to the sum."""
    draws = np.asarray(draws, dtype=np.float64)
    mean, covariance = moments(draws, diagonal)
    precision = precision_of(covariance, effective)
    return GaussianFactor(precision, times(precision, mean), times(precision, draws))


def add(factors: list[GaussianFactor]) -> GaussianFactor:
    """Add contributions: one node of the reduction tree."""
    return GaussianFactor(
        *(np.sum(np.stack(parts), axis=0) for parts in zip(*factors, strict=True))
    )


def moments_of(total: GaussianFactor) -> tuple[Array, Array]:
    """Mean ``(d,)`` and covariance ``(d, d)`` of the product of all contributions.

    Neiswanger, Wang and Xing (2014), eq. 3.1 and 3.2, the parametric density product.
    """
    mean = solve(total.precision, total.shift)
    if total.precision.ndim == 1:
        return mean, np.diag(1.0 / total.precision)
    return mean, inverse(total.precision)


def consensus_draws(total: GaussianFactor) -> Array:
    """Precision-weighted averages of the shards' draws, ``(chains, draws, d)``.

    Scott et al. (2016), Bayes and big data: the consensus Monte Carlo algorithm, section 3.1.
    """
    return solve(total.precision, total.draws)


def gaussian_draws(
    mean: Array, covariance: Array, shape: tuple[int, int], rng: np.random.Generator
) -> Array:
    """Draw ``shape + (d,)`` independent points of a Gaussian."""
    return rng.multivariate_normal(mean, covariance, shape, method="cholesky")


def subtract_anchors(
    total: GaussianFactor, n_factors: int, precision: Array, mean: Array
) -> tuple[Array, Array]:
    """Take the same anchor out of every factor of a sum; precision and shift of the rest.

    Parameters
    ----------
    total : GaussianFactor
        Sum of `n_factors` anchored factors.
    n_factors : int
    precision : (d, d) or (d,) array
        Precision of the anchor, in the form of the factors' precisions.
    mean : (d,) array
        Mean of the anchor.
    """
    shift = total.shift - n_factors * times(precision, mean)
    return total.precision - n_factors * precision, shift


def floored(precision: Array, reference: Array, least: float) -> Array:
    """Raise a precision to at least `least` times a reference, direction by direction.

    Single factors need not have a positive definite precision, and neither need a noisy sum of
    them; a sum of what was measured, the reference, always has.
    """
    if precision.ndim == 1:
        return np.maximum(precision, least * reference)
    values, vectors = scipy.linalg.eigh(precision, reference)
    if values[0] >= least:
        return precision
    # Generalised eigenvectors satisfy V' R V = I, so R V are the coordinates to rebuild from.
    basis = reference @ vectors
    return (basis * np.maximum(values, least)) @ basis.T


def as_matrix(precision: Array) -> Array:
    """Write a precision as a ``(d, d)`` matrix, whichever way it is kept."""
    return np.diag(precision) if precision.ndim == 1 else precision


def matched(
    draws: Array, mean: Array, covariance: Array, of: tuple[Array, Array] | None = None
) -> Array:
    """Map ``(..., d)`` draws affinely so that their mean and covariance are as given.

    Draws keep their shape; of all maps that do it, this one, by Cholesky factors, moves them
    little where the moments are nearly right. With `of` it is that mean and covariance which are
    mapped to the given ones.
    """
    mean_now, covariance_now = moments(draws) if of is None else of
    factor, wanted = np.linalg.cholesky(covariance_now), np.linalg.cholesky(covariance)
    flat = (draws - mean_now).reshape(-1, draws.shape[-1])
    moved = scipy.linalg.solve_triangular(factor, flat.T, lower=True)
    return (wanted @ moved).T.reshape(draws.shape) + mean
