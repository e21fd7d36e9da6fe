"""Affine coordinates in which a sampler works."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.linalg
from jax.scipy.linalg import solve_triangular

SHARED = "_shared"  # NumPyro's mass matrices are addressed by site name; ours has one for u


class Coordinates(NamedTuple):
    """Affine coordinates of the sampler, ``u = center + scale z``."""

    center: Any  # (d,)
    scale: Any  # (d, d), lower triangular


def unwhitened(dim: int) -> Coordinates:
    """Return the coordinates ``z = u``."""
    return Coordinates(np.zeros(dim), np.eye(dim))


def whitened(mean: np.ndarray, precision: np.ndarray) -> Coordinates:
    """Coordinates in which a Gaussian of this mean and precision is standard."""
    factor = np.linalg.cholesky(precision)
    scale = scipy.linalg.solve_triangular(factor, np.eye(len(mean)), lower=True).T
    # L' upper triangular has the same L L'; the sampler solves with a lower one.
    return Coordinates(mean, np.linalg.cholesky(scale @ scale.T))


def whiten(coordinates: Coordinates, u: jax.Array) -> jax.Array:
    """Return the coordinates z of a point u."""
    return solve_triangular(coordinates.scale, u - coordinates.center, lower=True)
