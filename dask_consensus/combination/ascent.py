"""One ascent to a maximum by Newton steps, of one shard or of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..shard.score import Expansion
from .gaussian import square_root

Array = npt.NDArray[np.float64]
STEP = 0.5  # of the differences, in sds: wide enough to see the shape that a posterior has
_NEAR = 0.3  # sds from the mode at which the last step arrives,
_WRONG = 0.1  # or by which a longer one will be wrong
_FLAT = 0.1  # least curvature taken at face value, relative to what was expected
_ALIKE = 3.0  # factor by which curvature may differ from the one that differences were spaced by


class Peak(NamedTuple):
    """A maximum of the log density.

    Attributes
    ----------
    u : (d,) array
    covariance : (d, d) array
        Inverse of minus the Hessian.
    height : float
        Log density.
    """

    u: Array
    covariance: Array
    height: float


# One ascent, of one shard or of all


def ascend(
    expand: Callable[[Array, Array], Expansion], u: Array, covariance: Array, most: int
) -> tuple[Peak, Array] | None:
    """Climb by Newton steps, drawn back where they lead down.

    Returns
    -------
    tuple of Peak and (d,) array, or None
        The mode, and by how much the mean differs from it; None if it was not reached.
    """
    best: tuple[Array, Array, float] | None = None
    for _ in range(most):
        expansion = expand(u, STEP * square_root(covariance))
        if best is not None and not expansion.value >= best[2] - 1e-3 - 1e-7 * abs(best[2]):
            u, covariance = best[0] + (u - best[0]) / 4, best[1]
            continue
        if not all_finite(expansion):
            return None
        covariance, settled = inverse_curvature(expansion.precision, covariance)
        step = covariance @ expansion.gradient
        length = np.sqrt(expansion.gradient @ step)
        error = step_error(step, expansion.gradient, expansion.third_derivative)
        if settled and (length < _NEAR or error < _WRONG):
            shift = covariance @ expansion.third_derivative / (2 * STEP**2)
            limit: Array = np.sqrt(np.diag(covariance))
            top = Peak(u + step, covariance, expansion.value + length**2 / 2)
            return top, np.clip(shift, -limit, limit)
        best = (u, covariance, expansion.value)
        u = u + step
    return None


def step_error(step: Array, gradient: Array, third_derivative: Array) -> float:
    """By how many sds a Newton step is wrong: along it the curvature changes, by half on average.

    The third derivative is an expansion's, which knows the change of the trace.
    """
    length = np.sqrt(gradient @ step)
    return float(length * abs(step @ third_derivative) / (2 * STEP**2))


def approach(
    expand: Callable[[Array, Array], Expansion], u: Array, covariance: Array, most: int
) -> Peak | None:
    """Take a few Newton steps towards a ridge, along which there is no step to take.

    Returns
    -------
    Peak or None
        The highest point, its covariance that of a peak as narrow; None if nothing was finite.
    """
    best: Peak | None = None
    for _ in range(most):
        expansion = expand(u, STEP * square_root(covariance))
        if not all_finite(expansion) or (best is not None and expansion.value < best.height):
            break
        covariance, _ = inverse_curvature(expansion.precision, covariance)
        best = Peak(u, covariance, expansion.value)
        u = u + covariance @ expansion.gradient
    return best


def inverse_curvature(
    precision: Array, expected: Array, least: float = _FLAT
) -> tuple[Array, bool]:
    """Invert minus a Hessian, flat or wrong curvature made right; and whether it was as expected.

    A direction flatter than `least`, in units of what was expected, would lead too far for what
    is known of it.
    """
    factor = square_root(expected)
    values, vectors = np.linalg.eigh(factor.T @ precision @ factor)
    half = factor @ vectors / np.sqrt(np.maximum(np.abs(values), least))
    return half @ half.T, bool(values.min() > 1 / _ALIKE and values.max() < _ALIKE)


def positive_curvature(precision: Array, expected: Array, least: float) -> Array:
    """Make flat or wrong curvature right, as :func:`inverse_curvature` does, and invert nothing."""
    factor = square_root(expected)
    values, vectors = np.linalg.eigh(factor.T @ precision @ factor)
    half = np.linalg.solve(factor.T, vectors * np.sqrt(np.maximum(np.abs(values), least)))
    return half @ half.T


def all_finite(expansion: Expansion) -> bool:
    """Tell whether nothing of an expansion is infinite or NaN."""
    return all(np.isfinite(part).all() for part in expansion)
