"""Nodes and weights for integrals against a standard normal density."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.special
import scipy.stats

GRID_UP_TO = 3  # dimensions integrated on a grid; more take quasi-random points


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
    return (1, 64, 256, 1024)


def gradient_ladder(q: int) -> tuple[int, ...]:
    """Numbers of nodes to try for gradients, as in :func:`ladder`.

    The first are the fewest that are exact for Gaussian effects: one node, at the mode, would miss
    their variance. In many dimensions quasi-random points give worse gradients than these few.
    """
    if q <= GRID_UP_TO:
        return {0: (1,), 1: (2, 7, 15, 41), 2: (2, 5, 9, 15), 3: (2, 5, 9)}[q]
    return (2 * q,)


def rule(q: int, n_nodes: int) -> Nodes:
    """Build the rule of `n_nodes` nodes (see the ladders) in `q` dimensions."""
    if q <= GRID_UP_TO or n_nodes == 1:
        return gauss_hermite(q, n_nodes)
    return spherical(q) if n_nodes == 2 * q else quasi_random(q, n_nodes)


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


def quasi_random(q: int, n_nodes: int) -> Nodes:
    """Points of a scrambled Sobol sequence, normal by inversion, and their mirror images.

    The mirror images make the rule exact for odd functions, as a grid is. The same points serve
    every integral, so that their errors cancel in differences.
    """
    uniform = scipy.stats.qmc.Sobol(q, rng=0).random(n_nodes // 2)
    half = scipy.special.ndtri(np.clip(uniform, 1e-12, 1 - 1e-12))
    points = np.concatenate([half, -half])
    return Nodes(points, np.full(n_nodes, -np.log(n_nodes)) + (points**2).sum(axis=1) / 2)
