"""The emulator: a polynomial that stands for the posterior where no shard was asked.

Each evaluation of the full posterior is a pass over all rows; a polynomial fitted to the log
density at the points that were evaluated costs nothing. With many rows it fits almost exactly.
Expectations are then taken over many points of the polynomial's density, and what it misses is
added from the evaluated points. For weights w = p / q and the emulator's v::

    E_p[f] = E_q[v f] + E_q[(w - v) f],   both over E_q[v] + E_q[w - v],

whatever v is, if it was not fitted to the points of the second average: hence folds. A bad
emulator makes the second average vary, never wrong. It is a control variate (Owen and Zhou 2000,
JASA 95, section 4) fitted and held to account on separate points (Oates, Girolami and Chopin
2017, JRSS B 79).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.linalg

from .proposals import MixtureProposal, Proposal
from .weights import Estimate, Weighted, estimate_of

Array = npt.NDArray[np.float64]
POINTS_A_TERM = 2.5
"""Points that a term of a polynomial is fitted to, at least."""
_DEGREE = 4  # of a polynomial, at most
_DIMENSIONS = 40  # in more, importance weights have failed before an emulator could help
_TERMS = 1000  # of a polynomial, at most
_FOLDS = 8
_POPULATION = 2**15  # points of the emulator's density
_AT_ONCE = 4096  # points whose terms are held at a time
_BULK = 1e-3  # weights below this share of the largest do not bound the polynomial
_RIDGE = 1e-8


class Emulator(NamedTuple):
    """A Gaussian times the exponential of a polynomial, once without each fold of the points.

    Attributes
    ----------
    mean : (d,) array
    whiten : (d, d) array
        Of the Gaussian; ``(u - mean) @ whiten`` has covariance 1.
    terms : list of tuples of int
        The polynomial's monomials, as numbers of coordinates.
    fits : (folds, terms) array
        Their coefficients.
    bounds : (float, float)
        Values of the polynomial in the bulk of the posterior; it is cut off there.
    top : float
        Taken off the log density.
    at_points : (G,) array
        Emulated log density of the points, each by the fit without it.
    error : float
        Sd of its error under the posterior.
    """

    mean: Array
    whiten: Array
    terms: list[tuple[int, ...]]
    fits: Array
    bounds: tuple[float, float]
    top: float
    at_points: Array
    error: float

    def log_density(self, points: Array) -> Array:
        """Log density at other points, ``(G,)``: the mean density of all fits."""
        total = []
        for some in np.array_split(points, max(1, len(points) // _AT_ONCE)):
            white = (some - self.mean) @ self.whiten
            polynomials = np.clip(_design(white, self.terms) @ self.fits.T, *self.bounds)
            density = np.logaddexp.reduce(polynomials, axis=1) - np.log(_FOLDS)
            total.append(density - (white**2).sum(axis=1) / 2)
        return np.concatenate(total) + self.top

    def estimate(
        self,
        points: Array,
        log_target: Array,
        mixture: MixtureProposal,
        seed: Sequence[int],
    ) -> Estimate:
        """Average over the emulator's density, and add what it misses at the points.

        Numbers are not finite where what is missed is as large as what is emulated.
        """
        newest, drawn = mixture.proposals[-1], mixture.log_density(points)
        return self.estimate_drawn(points, log_target, drawn, newest, seed)

    def estimate_drawn(
        self,
        points: Array,
        log_target: Array,
        log_proposal: Array,
        around: Proposal | MixtureProposal,
        seed: Sequence[int],
    ) -> Estimate:
        """Average likewise, over points of a proposal `around` the emulator's density.

        Of the evaluated points only the log density is needed that they were drawn from.
        """
        population = around.draw(_POPULATION, seed)
        drawn = around.log_density(population)
        drawn_at_points = log_proposal + self.top
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            emulated = np.exp(self.log_density(population) - self.top - drawn)
            missed = np.exp(log_target - drawn_at_points) - np.exp(self.at_points - drawn_at_points)
            sizes = len(population), len(points)
            estimate = estimate_of(
                Weighted(
                    np.concatenate([population, points]),
                    np.concatenate([emulated / sizes[0], missed / sizes[1]]),
                ),
                Weighted(population, emulated / emulated.sum()),
                sizes,
            )
        return estimate._replace(log_total=estimate.log_total + self.top)


def fit(
    points: Array, log_target: Array, weights: Array, mean: Array, covariance: Array
) -> Emulator | None:
    """Fit the polynomial of the degree that predicts left-out points best.

    Parameters
    ----------
    points : (G, d) array
        Where the posterior was evaluated.
    log_target : (G,) array
        Its log density, unnormalised.
    weights : (G,) array
        The points' importance weights, adding up to 1.
    mean : (d,) array
    covariance : (d, d) array
        Of the Gaussian.

    Returns
    -------
    Emulator or None
        None in too many dimensions, or where too few points have any weight.
    """
    d = len(mean)
    if d > _DIMENSIONS:
        return None
    whiten = scipy.linalg.inv(np.linalg.cholesky(covariance)).T
    white = (points - mean) @ whiten
    quadratic = (white**2).sum(axis=1) / 2
    finite = np.isfinite(log_target)
    top = float(log_target[finite].max())
    values = np.where(finite, log_target - top + quadratic, 0.0)
    bulk = values[finite & (weights > _BULK * weights.max())]
    if not bulk.size:
        return None
    bounds = (float(bulk.min()), float(bulk.max()))
    # The square root of the weights: the bulk matters most, and its rim bears on it.
    pull = np.where(finite, np.sqrt(weights), 0.0)

    effective = 1 / (weights**2).sum()
    candidates: list[Emulator] = []
    for degree in range(_DEGREE + 1):
        if math.comb(d + degree, degree) > min(_TERMS, effective / POINTS_A_TERM):
            break
        terms = _monomials(d, degree)
        try:
            fits, predicted = _cross_fitted(_design(white, terms), values, pull)
        except np.linalg.LinAlgError:  # too few points have any weight
            break
        predicted = np.clip(predicted, *bounds)
        missed = values - predicted
        error = float(np.sqrt(weights @ (missed - weights @ missed) ** 2))
        at_points = predicted - quadratic + top
        candidates.append(Emulator(mean, whiten, terms, fits, bounds, top, at_points, error))
    return min(candidates, key=lambda emulator: emulator.error, default=None)


def _monomials(d: int, degree: int) -> list[tuple[int, ...]]:
    """Products of up to `degree` of `d` coordinates, as the coordinates' numbers."""
    return [
        chosen
        for k in range(degree + 1)
        for chosen in itertools.combinations_with_replacement(range(d), k)
    ]


def _design(white: Array, terms: list[tuple[int, ...]]) -> Array:
    """Every monomial at every point, ``(G, terms)``."""
    known: dict[tuple[int, ...], Array] = {(): np.ones(len(white))}
    for term in terms[1:]:
        known[term] = known[term[:-1]] * white[:, term[-1]]
    return np.column_stack([known[term] for term in terms])


def _cross_fitted(design: Array, values: Array, pull: Array) -> tuple[Array, Array]:
    """Least squares without each fold, ``(folds, terms)``; predictions of every left-out value."""
    folds = [np.arange(k, len(design), _FOLDS) for k in range(_FOLDS)]
    pulled = design * pull[:, None]
    grams = np.array([pulled[fold].T @ design[fold] for fold in folds])
    sides = np.array([pulled[fold].T @ values[fold] for fold in folds])
    fits, predicted = [], np.empty(len(design))
    for k, fold in enumerate(folds):
        gram = grams.sum(axis=0) - grams[k]
        gram[np.diag_indices_from(gram)] += _RIDGE * np.diag(gram).mean()
        fits.append(np.linalg.solve(gram, sides.sum(axis=0) - sides[k]))
        predicted[fold] = design[fold] @ fits[-1]
    return np.array(fits), predicted
