"""What a quadratic through points around a place says of its slope and curvature there."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
STEP = 0.5  # between points, in units of their axes


def design(q: int) -> Array:
    """Give points that a quadratic in `q` dimensions goes through, the middle first."""
    unit = np.eye(q)
    corners = [unit[i] + unit[j] for i, j in combinations(range(q), 2)]
    return STEP * np.array([np.zeros(q), *unit, *-unit, *corners])


def quadratic(height: Array, q: int) -> tuple[Array, Array]:
    """Give gradient ``(q,)``, and minus Hessian, in the middle of a :func:`design`.

    Parameters
    ----------
    height : array
        At each of its points.
    q : int

    Examples
    --------
    >>> slope, bend = quadratic(design(2) @ [1.0, 2.0], 2)
    >>> slope.tolist(), np.abs(bend).max().item()
    ([1.0, 2.0], 0.0)
    """
    middle, ahead, behind, corners = np.split(height, [1, 1 + q, 1 + 2 * q])
    slope = (ahead - behind) / (2 * STEP)
    bend = np.diag(-(ahead - 2 * middle + behind) / STEP**2)
    for (i, j), corner in zip(combinations(range(q), 2), corners, strict=True):
        bend[i, j] = bend[j, i] = -(corner - ahead[i] - ahead[j] + middle[0]) / STEP**2
    return slope, bend
