"""Proposals for importance sampling: multivariate t distributions and mixtures of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.linalg
import scipy.special
import scipy.stats

Array = npt.NDArray[np.float64]

_COMPONENTS = 64  # of a mixture


class Mixture(NamedTuple):
    """Multivariate t distributions of one shape around several centers, equally likely.

    Attributes
    ----------
    centers : (M, d) array
        In an order in which neighbours are alike.
    scale : (d, d) array
        Lower triangular factor of the shape matrix.
    df : float
    """

    centers: Array
    scale: Array
    df: float

    def draw(self, n: int, seed: Sequence[int]) -> Array:
        """Draw `n` points, rounded up to a power of two, from a scrambled Sobol sequence.

        Such points leave less to chance than independent ones: averages over them err less.
        """
        d = len(self.scale)
        sequence = scipy.stats.qmc.Sobol(d + 2, rng=np.random.default_rng(list(seed)))
        uniform = sequence.random_base2(int(np.ceil(np.log2(n))))
        uniform = np.clip(uniform, 1e-10, 1 - 1e-10)
        normal = scipy.special.ndtri(uniform[:, :d])
        spread = np.sqrt(self.df / scipy.stats.chi2.ppf(uniform[:, d], self.df))
        center = self.centers[(uniform[:, d + 1] * len(self.centers)).astype(int)]
        return center + (spread[:, None] * normal) @ self.scale.T

    def log_density(self, points: Array) -> Array:
        """Log density at ``(G, d)`` points."""
        d = len(self.scale)
        norm = (
            scipy.special.gammaln((self.df + d) / 2)
            - scipy.special.gammaln(self.df / 2)
            - d / 2 * np.log(self.df * np.pi)
            - np.log(np.diag(self.scale)).sum()
            - np.log(len(self.centers))
        )
        white = scipy.linalg.solve_triangular(self.scale, points.T, lower=True).T
        total = np.full(len(points), -np.inf)
        for center in scipy.linalg.solve_triangular(self.scale, self.centers.T, lower=True).T:
            distance = ((white - center) ** 2).sum(axis=1)
            total = np.logaddexp(total, -(self.df + d) / 2 * np.log1p(distance / self.df))
        return norm + total


def single(mean: Array, covariance: Array) -> Mixture:
    """One t distribution of this mean and covariance, of lighter tails in more dimensions.

    In many dimensions the radius of a heavy-tailed t varies far more than a posterior's, and the
    weights with it.
    """
    df = _df(len(mean))
    return Mixture(mean[None], np.linalg.cholesky(covariance * (df - 2) / df), df)


def mixture_of(
    points: Array, weights: Array, mean: Array, covariance: Array, rng: np.random.Generator
) -> Mixture:
    """A mixture that follows the shape of weighted points (West 1993, JRSS B 55).

    Centers are drawn from the points and pulled towards the mean, so that the mixture keeps mean
    and covariance; the kernels' width is Silverman's (1986, eq. 4.14). In many dimensions the
    kernels are nearly as wide as the whole, and this is nearly :func:`single`.

    Parameters
    ----------
    points : (G, d) array
    weights : (G,) array
        Adding up to 1.
    mean : (d,) array
    covariance : (d, d) array
        Of the weighted points.
    rng : numpy.random.Generator
    """
    d = len(mean)
    width = (4 / (d + 2)) ** (1 / (d + 4)) * _COMPONENTS ** (-1 / (d + 4))
    axis = scipy.linalg.eigh(covariance)[1][:, -1]
    chosen = resample(points, weights, axis, _COMPONENTS, rng)
    centers = mean + np.sqrt(max(1 - width**2, 0.0)) * (points[chosen] - mean)
    df = _df(d)
    return Mixture(centers, width * np.linalg.cholesky(covariance * (df - 2) / df), df)


def resample(
    points: Array, weights: Array, axis: Array, number: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Choose points by weight, systematically along an axis (Kitagawa 1996), in its order."""
    order = np.argsort(points @ axis)
    cumulative = np.cumsum(weights[order])
    ticks = (np.arange(number) + rng.random()) / number * cumulative[-1]
    return order[np.searchsorted(cumulative, ticks)]


def _df(d: int) -> float:
    return max(4.0, float(d)) + 1.0
