"""Proposals for a posterior of several modes: a part around each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.linalg
import scipy.special

from ..combination.ascent import Peak
from .proposals import Array, MixtureProposal, single
from .weights import shrunk_moments

_FEWEST = 2.0  # points, as good as equally weighted, that have moments
_LEAST_SHARE = 0.1  # of the points, around any mode, times the number of modes


def around_peaks(peaks: Sequence[Peak], wider: float) -> MixtureProposal:
    """Propose from all modes, each by its share of the mass, by Laplace's method, or a tenth."""
    log_mass = log_masses(peaks)
    shares = scipy.special.softmax(log_mass)
    shares = np.maximum(shares, _LEAST_SHARE / len(peaks))
    mixture = MixtureProposal()
    for peak, share in zip(peaks, shares / shares.sum(), strict=True):
        mixture = mixture.and_from(single(peak.u, wider * peak.covariance), float(share))
    return mixture


def moments_of(peaks: Sequence[Peak]) -> tuple[Array, Array]:
    """Mean and covariance of a posterior that is Gaussian around each of its modes."""
    shares = scipy.special.softmax(log_masses(peaks))
    centers = np.array([peak.u for peak in peaks])
    mean = shares @ centers
    away = centers - mean
    within = np.einsum("k,kij->ij", shares, np.array([peak.covariance for peak in peaks]))
    return mean, within + (away * shares[:, None]).T @ away


def log_masses(peaks: Sequence[Peak]) -> Array:
    """Log mass of each mode by Laplace's method, but for a constant."""
    return np.array([peak.height + np.linalg.slogdet(peak.covariance)[1] / 2 for peak in peaks])


def refitted(peaks: Sequence[Peak], points: Array, weights: Array) -> list[Peak]:
    """Fit each mode to the weighted points that are nearest to it; one with next to none stays."""
    distances = []
    for peak in peaks:
        factor = np.linalg.cholesky(peak.covariance)
        white = scipy.linalg.solve_triangular(factor, (points - peak.u).T, lower=True)
        distances.append((white**2).sum(axis=0))
    nearest = np.argmin(distances, axis=0)
    found = []
    for k, peak in enumerate(peaks):
        mass = weights[nearest == k].sum()
        if mass <= 0:
            found.append(peak._replace(height=-np.inf))
            continue
        mean, covariance = peak.u, peak.covariance
        share = weights[nearest == k] / mass
        if 1 / (share @ share) > _FEWEST:
            mean, covariance = shrunk_moments(points[nearest == k], share, mean, covariance)
        # Of this height the mode has this mass.
        height = np.log(mass) - np.linalg.slogdet(covariance)[1] / 2
        found.append(Peak(mean, covariance, float(height)))
    return found
