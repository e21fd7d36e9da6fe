"""Nodes and weights for integrals against a standard normal density.

Up to three dimensions they are grids. In more the nodes lie on shells, whose radii and weights
are a Gauss rule for the length of a normal vector (Genz and Monahan 1998, SIAM Journal on
Scientific Computing 19), in pairs of opposite directions. Directions are such that polynomials to
the third degree are exact, and the average of a polynomial of degree four or six over a random
rotation of all of them errs by as little as so many directions can. Whoever integrates many units
turns the nodes of each by a rotation of its own (:func:`.turned.offsets`): what a rule does not
know of one unit is then chance, and all but cancels in a sum over units, where the same nodes for
all would err alike in all.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.optimize
import scipy.special
import scipy.stats

Array = npt.NDArray[np.float64]

GRID_UP_TO = 3  # dimensions integrated on a grid; more take shells of directions
# Pairs of directions on each shell, in dimensions, by the number of all nodes, in dimensions too.
_SHELLS = {8: (1, 2, 1), 18: (2, 5, 2), 44: (3, 9, 8, 2)}
_COPIES = 4  # of the largest, in other directions, that are the finest rule
_HARMONICS = ((4, 4, 1.0), (4, 6, 0.5), (6, 6, 0.25))  # degree, power of the radius, weight
_ROUNDED = 10.0  # weight of what would make the third degree inexact
_STEPS = 300  # of the search for directions


class Nodes(NamedTuple):
    """Rule for the integral of ``exp(F(x))`` over ``x`` in q dimensions.

    Weights are such that ``log integral = logsumexp(log_weights + F) + q/2 log(2 pi)``.
    """

    points: npt.NDArray[np.float64]  # (M, q)
    log_weights: npt.NDArray[np.float64]  # (M,) log w + x'x/2


class Rule(NamedTuple):
    """How a unit's integral is taken: nodes around how many of its modes."""

    n_nodes: int  # an axis (of a grid) or in all; 0 without local effects
    n_modes: int = 1


def ladder(q: int) -> tuple[int, ...]:
    """Numbers of nodes to try, in rising order: an axis for a grid, in all beyond it.

    One node is Laplace's method.
    """
    if q <= GRID_UP_TO:
        return {1: (1, 5, 11, 21, 41), 2: (1, 5, 9, 15), 3: (1, 3, 5, 9)}[q]
    return (1, *(n * q for n in _SHELLS), _finest(q))


def gradient_ladder(q: int) -> tuple[int, ...]:
    """Numbers of nodes to try for gradients, as in :func:`ladder`.

    The first are the fewest that are exact for Gaussian effects: one node, at the mode, would miss
    their variance.
    """
    if q <= GRID_UP_TO:
        return {0: (1,), 1: (2, 7, 15, 41), 2: (2, 5, 9, 15), 3: (2, 5, 9)}[q]
    return (2 * q, *(n * q for n in _SHELLS))


def _finest(q: int) -> int:
    return _COPIES * max(_SHELLS) * q


def rule(q: int, n_nodes: int) -> Nodes:
    """Build the rule of `n_nodes` nodes (see the ladders) in `q` dimensions."""
    if q <= GRID_UP_TO or n_nodes == 1:
        return gauss_hermite(q, n_nodes)
    if n_nodes == 2 * q:
        return spherical(q)
    if n_nodes == _finest(q):
        return _turned_copies(shells(q, _SHELLS[max(_SHELLS)]))
    return shells(q, _SHELLS[n_nodes // q])


def padded_rule(q: int, n_nodes: int) -> tuple[Nodes, np.int32]:
    """Build a rule as long as the largest of the :func:`ladder`, so that all have one shape.

    The number of its entries that count comes with it. Without dimensions there is one, empty.
    """
    if not q:
        return Nodes(np.zeros((1, 0)), np.zeros(1)), np.int32(1)
    nodes = rule(q, n_nodes)
    count = len(nodes.log_weights)
    largest = ladder(q)[-1] ** q if q <= GRID_UP_TO else ladder(q)[-1]
    points = np.pad(nodes.points, ((0, largest - count), (0, 0)))
    return Nodes(points, np.pad(nodes.log_weights, (0, largest - count))), np.int32(count)


def gauss_hermite(q: int, per_axis: int) -> Nodes:
    """Product of Gauss-Hermite rules (Abramowitz and Stegun 1972, 25.4.46)."""
    x, w = scipy.special.roots_hermitenorm(per_axis)
    log_w = np.log(w / w.sum()) + x**2 / 2
    grid = np.array(list(itertools.product(range(per_axis), repeat=q)), dtype=int)
    return Nodes(x[grid], log_w[grid].sum(axis=1))


def spherical(q: int) -> Nodes:
    """Two points on each axis, exact to the third degree (McNamee and Stenger 1967)."""
    points = np.sqrt(q) * np.concatenate([np.eye(q), -np.eye(q)])
    return Nodes(points, np.full(2 * q, q / 2 - np.log(2 * q)))


@lru_cache(maxsize=32)
def shells(q: int, pairs: tuple[int, ...]) -> Nodes:
    """Nodes on as many shells as there are numbers of `pairs` of directions, in dimensions.

    Polynomials to the third degree are exact, and those in the length of ``x`` alone to degree
    ``4 len(pairs) - 2``.
    """
    square, weights = scipy.special.roots_genlaguerre(len(pairs), q / 2 - 1)
    radii, weights = np.sqrt(2 * square), weights / weights.sum()
    shell = np.repeat(np.arange(len(pairs), dtype=np.intp), q * np.array(pairs))
    directions = _spread(q, shell, radii, weights)
    half = radii[shell, None] * directions
    log_share = np.log(weights[shell] / (2 * q * np.array(pairs)[shell]))
    log_weights = log_share + radii[shell] ** 2 / 2
    return Nodes(np.concatenate([half, -half]), np.tile(log_weights, 2))


def _spread(q: int, shell: npt.NDArray[np.intp], radii: Array, weights: Array) -> Array:
    """Find directions ``(n, q)`` on shells whose harmonics add up to next to nothing.

    Over random rotations the squared error of the average of a spherical harmonic is a sum over
    pairs of directions of Gegenbauer polynomials of their cosine (Delsarte, Goethals and Seidel
    1977): it is made small for what a polynomial has, of that degree, at that power of the radius.
    """
    of_each = weights / np.bincount(shell)
    kernels = []
    for degree, power, weight in _HARMONICS:
        share = (of_each * radii**power)[shell]
        share /= share.sum()
        kernels.append((_gegenbauer(degree, q), weight * np.outer(share, share)))
    # On each shell by itself the second moments are to be those of a sphere.
    same = (shell[:, None] == shell) / np.bincount(shell)[shell] ** 2
    kernels.append((_gegenbauer(2, q), _ROUNDED * same))

    def energy(flat: Array) -> tuple[float, Array]:
        points = flat.reshape(len(shell), q)
        length = np.linalg.norm(points, axis=1, keepdims=True)
        unit = points / length
        cosine = unit @ unit.T
        total, slope = 0.0, np.zeros_like(cosine)
        for polynomial, share in kernels:
            total += float(np.sum(share * np.polyval(polynomial, cosine)))
            slope += share * np.polyval(np.polyder(polynomial), cosine)
        pull = 2 * slope @ unit
        tangent = pull - np.sum(pull * unit, axis=1, keepdims=True) * unit
        return total, (tangent / length).ravel()

    begin = np.random.default_rng(0).standard_normal(len(shell) * q)
    options = {"maxiter": _STEPS}
    ended = scipy.optimize.minimize(energy, begin, jac=True, method="L-BFGS-B", options=options)
    points = ended.x.reshape(len(shell), q)
    return np.concatenate([_tight(points[shell == k]) for k in range(len(radii))])


def _gegenbauer(degree: int, q: int) -> Array:
    """Coefficients of the polynomial of a spherical harmonic in `q` dimensions, 1 at 1."""
    polynomial = scipy.special.gegenbauer(degree, q / 2 - 1)
    return np.asarray(polynomial.coeffs / polynomial(1.0), np.float64)


def _tight(points: Array) -> Array:
    """Move points onto the sphere so that their second moments are exactly those of it."""
    n, q = points.shape
    for _ in range(1000):
        points = points / np.linalg.norm(points, axis=1, keepdims=True)
        values, vectors = np.linalg.eigh(points.T @ points * (q / n))
        if np.abs(values - 1).max() < 1e-14:
            break
        points = points @ (vectors / np.sqrt(values)) @ vectors.T
    return points


def _turned_copies(nodes: Nodes) -> Nodes:
    q, rng = nodes.points.shape[1], np.random.default_rng(1)
    turns = scipy.stats.ortho_group.rvs(q, size=_COPIES, random_state=rng)
    points = np.concatenate([nodes.points @ turn for turn in turns])
    return Nodes(points, np.tile(nodes.log_weights - np.log(_COPIES), _COPIES))
