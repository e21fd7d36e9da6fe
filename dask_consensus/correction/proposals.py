"""Proposals for importance sampling: multivariate t distributions and mixtures of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.linalg
import scipy.special
import scipy.stats

Array = npt.NDArray[np.float64]
_COMPONENTS = 256  # of a mixture


class Proposal(NamedTuple):
    """Multivariate t distributions of one shape around several centers, equally likely.

    Each of the basis' directions may have one scale below and another above the center, as in
    the split-t distribution of Geweke (1989, Econometrica 57, section 4).

    Attributes
    ----------
    centers : (M, d) array
        In an order in which neighbours are alike.
    basis : (d, d) array
        Columns are the directions in which coordinates are independent.
    lower, upper : (d,) arrays
        Scales below and above the center, in units of the basis.
    df : float
    """

    centers: Array
    basis: npt.NDArray[Any]
    lower: Array
    upper: Array
    df: float

    def draw(self, n: int, seed: Sequence[int]) -> Array:
        """Draw `n` points, rounded up to a power of two, from a scrambled Sobol sequence.

        Such points leave less to chance than independent ones: averages over them err less.
        """
        d = len(self.basis)
        sequence = scipy.stats.qmc.Sobol(d + 2, rng=np.random.default_rng(list(seed)))
        uniform = sequence.random_base2(int(np.ceil(np.log2(n))))
        uniform = np.clip(uniform, 1e-10, 1 - 1e-10)
        below = self.lower / (self.lower + self.upper)
        v = uniform[:, :d]
        half = np.where(v < below, v / (2 * below), 0.5 + (v - below) / (2 * (1 - below)))
        normal = scipy.special.ndtri(half) * np.where(v < below, self.lower, self.upper)
        spread = np.sqrt(self.df / scipy.stats.chi2.ppf(uniform[:, d], self.df))
        center = self.centers[(uniform[:, d + 1] * len(self.centers)).astype(int)]
        return center + (spread[:, None] * normal) @ self.basis.T

    def log_density(self, points: Array) -> Array:
        """Log density at ``(G, d)`` points."""
        d = len(self.basis)
        norm = (
            scipy.special.gammaln((self.df + d) / 2)
            - scipy.special.gammaln(self.df / 2)
            - d / 2 * np.log(self.df * np.pi)
            - np.linalg.slogdet(self.basis)[1]
            - np.log((self.lower + self.upper) / 2).sum()
            - np.log(len(self.centers))
        )
        factor = scipy.linalg.lu_factor(self.basis)
        white = scipy.linalg.lu_solve(factor, points.T).T
        total = np.full(len(points), -np.inf)
        for center in scipy.linalg.lu_solve(factor, self.centers.T).T:
            away = white - center
            away = away / np.where(away < 0, self.lower, self.upper)
            distance = (away**2).sum(axis=1)
            total = np.logaddexp(total, -(self.df + d) / 2 * np.log1p(distance / self.df))
        return norm + total

    def within(self, points: Array) -> npt.NDArray[np.bool_]:
        """Tell which points ``(G, d)`` lie where one t distribution has about half its own."""
        assert len(self.centers) == 1
        white = np.linalg.solve(self.basis, (points - self.centers[0]).T)
        away = white / np.where(white < 0, self.lower[:, None], self.upper[:, None])
        return np.asarray((away**2).sum(axis=0) < len(self.basis), np.bool_)

    def log_marginal(self, values: Array, axis: npt.NDArray[np.int64]) -> Array:
        """Log density of one coordinate alone.

        Of a split proposal nearly so: the sum of several split coordinates is taken for one.

        Parameters
        ----------
        values : (G,) array
        axis : (G,) int array
            Which coordinate each is a value of.
        """
        rows = self.basis[axis]
        up, down = np.maximum(rows, 0.0), np.maximum(-rows, 0.0)
        upper, lower = (
            np.sqrt(((plus * self.upper) ** 2 + (minus * self.lower) ** 2).sum(axis=1))
            for plus, minus in ((up, down), (down, up))
        )
        norm = -np.log((lower + upper) / 2) - np.log(len(self.centers))
        total = np.full(len(values), -np.inf)
        for center in self.centers:
            away = values - center[axis]
            t = scipy.stats.t.logpdf(away / np.where(away < 0, lower, upper), self.df)
            total = np.logaddexp(total, t)
        return norm + total


class MixtureProposal(NamedTuple):
    """All proposals that points were drawn from, each by its share of the points.

    Attributes
    ----------
    proposals : tuple of Proposal or MixtureProposal
    counts : tuple of float
        Points drawn from each, or shares of them.
    """

    proposals: tuple[Any, ...] = ()
    counts: tuple[float, ...] = ()

    def and_from(self, proposal: Proposal | MixtureProposal, count: float) -> MixtureProposal:
        """Return the mixture with `count` points more, of another proposal."""
        return MixtureProposal((*self.proposals, proposal), (*self.counts, count))

    def draw(self, n: int, seed: Sequence[int]) -> Array:
        """Draw `n` points or a few more, as many from each proposal as its share says."""
        shares = np.array(self.counts) / sum(self.counts)
        drawn = [
            proposal.draw(int(np.ceil(share * n)), (*seed, k))[: int(np.ceil(share * n))]
            for k, (proposal, share) in enumerate(zip(self.proposals, shares, strict=True))
        ]
        return np.concatenate(drawn)

    def log_density(self, points: Array) -> Array:
        """Log density at ``(G, d)`` points."""
        shares = np.log(np.array(self.counts) / sum(self.counts))
        densities = [
            share + proposal.log_density(points)
            for share, proposal in zip(shares, self.proposals, strict=True)
        ]
        return scipy.special.logsumexp(densities, axis=0)

    def log_marginal(self, values: Array, axis: npt.NDArray[np.int64]) -> Array:
        """Log density of one coordinate alone, as of a :class:`Proposal`."""
        shares = np.log(np.array(self.counts) / sum(self.counts))
        densities = [
            share + proposal.log_marginal(values, axis)
            for share, proposal in zip(shares, self.proposals, strict=True)
        ]
        return scipy.special.logsumexp(densities, axis=0)


def single(mean: Array, covariance: Array) -> Proposal:
    """Build one t distribution of this mean and covariance, of lighter tails in more dimensions.

    In many dimensions the radius of a heavy-tailed t varies far more than a posterior's, and the
    weights with it.
    """
    ones = np.ones(len(mean))
    df = _df(len(mean))
    return Proposal(mean[None], np.linalg.cholesky(covariance * (df - 2) / df), ones, ones, df)


def split(mean: Array, covariance: Array, lower: Array, upper: Array) -> Proposal:
    """Build a t distribution whose coordinates reach further on one side than on the other.

    Parameters
    ----------
    mean : (d,) array
    covariance : (d, d) array
    lower, upper : (d,) arrays
        How many times further than a Gaussian each coordinate reaches, the others following by
        regression.
    """
    # The first column of a Cholesky factor is a regression line: the longest tail comes first.
    order = np.argsort(-np.maximum(lower, upper), kind="stable")
    df = _df(len(mean))
    shape = covariance[np.ix_(order, order)] * (df - 2) / df
    basis = np.linalg.cholesky(shape)[np.argsort(order, kind="stable")]
    return Proposal(mean[None], basis, lower[order], upper[order], df)


def mixture_of(
    points: Array, weights: Array, mean: Array, covariance: Array, rng: np.random.Generator
) -> Proposal:
    """Build a mixture that follows the shape of weighted points (West 1993, JRSS B 55).

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
    basis = width * np.linalg.cholesky(covariance * (df - 2) / df)
    return Proposal(centers, basis, np.ones(d), np.ones(d), df)


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
