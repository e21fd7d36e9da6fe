"""Affine coordinates in which a sampler works."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.linalg


def whitened(mean: np.ndarray, precision: np.ndarray) -> Coordinates:
    """Coordinates in which a Gaussian of this mean and precision is standard."""
    factor = np.linalg.cholesky(precision)
    scale = scipy.linalg.solve_triangular(factor, np.eye(len(mean)), lower=True).T
    # L' upper triangular has the same L L'; the sampler solves with a lower one.
    return Coordinates(mean, np.linalg.cholesky(scale @ scale.T))


_SHARED = "_shared"  # NumPyro's mass matrices are addressed by site name; ours has one for u


class Coordinates(NamedTuple):
    """Affine coordinates of the sampler, ``u = center + scale z``.

    Attributes
    ----------
    center : (d,) array
    scale : (d, d) array
        Lower triangular.
    """

    center: np.ndarray
    scale: np.ndarray


def unwhitened(dim: int) -> Coordinates:
    """Return the coordinates ``z = u``."""
    return Coordinates(np.zeros(dim), np.eye(dim))
