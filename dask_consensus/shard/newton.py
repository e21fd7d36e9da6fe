"""Newton's method on thousands of small problems at once, all in step.

A *density* maps effects ``(U, q)`` of all units to their log densities ``(U,)`` and anything else;
no unit's density depends on another's effects, so the Hessian is block-diagonal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Density = Callable[[jax.Array], tuple[jax.Array, Any]]
MOST_LOOKS = 60  # from far away
_SHORTEST = 2.0**-6  # share of a step that is tried last, where more of it does not climb


def curvature(density: Density, effects: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log density ``(U,)``, gradient ``(U, q)`` and minus Hessian blocks ``(U, q, q)``.

    A column of every block comes from one Hessian-vector product, with the same unit vector in
    every unit, since units do not see each other's effects.
    """

    def gradient(effects: jax.Array) -> tuple[jax.Array, jax.Array]:
        def total(effects: jax.Array) -> tuple[jax.Array, jax.Array]:
            values, _ = density(effects)
            return jnp.sum(values), values

        return jax.grad(total, has_aux=True)(effects)

    slope, product, values = jax.linearize(gradient, effects, has_aux=True)
    q = effects.shape[1]
    columns = [
        product(jnp.broadcast_to(jnp.eye(q, dtype=effects.dtype)[i], effects.shape))
        for i in range(q)
    ]
    hessian = jnp.stack(columns, axis=2)
    return values, slope, -(hessian + jnp.swapaxes(hessian, 1, 2)) / 2


def cholesky(matrices: jax.Array) -> jax.Array:
    """Cholesky factors of small matrices ``(U, q, q)``, pivots kept positive.

    Written out over the entries: for thousands of tiny matrices a call to LAPACK for each is far
    slower than arithmetic on vectors over units. Where a density is not concave a pivot is not
    positive; its size is then used instead (Gill and Murray 1974), so that a step still climbs.
    """
    q = matrices.shape[-1]
    diagonal = jnp.abs(jnp.stack([matrices[:, i, i] for i in range(q)]))
    least = 1e-3 * jnp.max(diagonal, axis=0) + jnp.finfo(matrices.dtype).tiny
    factor: list[list[jax.Array]] = [[jnp.zeros_like(least)] * q for _ in range(q)]
    for j in range(q):
        pivot = matrices[:, j, j] - sum((factor[j][k] ** 2 for k in range(j)), start=0.0)
        factor[j][j] = jnp.sqrt(jnp.maximum(jnp.abs(pivot), jnp.where(pivot > 0, 0.0, least)))
        factor[j][j] = jnp.where(factor[j][j] > 0, factor[j][j], 1.0)
        for i in range(j + 1, q):
            inner = sum((factor[i][k] * factor[j][k] for k in range(j)), start=0.0)
            factor[i][j] = (matrices[:, i, j] - inner) / factor[j][j]
    return jnp.stack([jnp.stack(row, axis=1) for row in factor], axis=1)


def back_solve(factor: jax.Array, vectors: jax.Array) -> jax.Array:
    """Solve ``L' x = v`` unit by unit; ``(U, q, q)`` and ``(U, q)``."""
    q = vectors.shape[1]
    solved: list[jax.Array] = [vectors[:, 0]] * q
    for i in reversed(range(q)):
        known = sum((factor[:, k, i] * solved[k] for k in range(i + 1, q)), start=0.0)
        solved[i] = (vectors[:, i] - known) / factor[:, i, i]
    return jnp.stack(solved, axis=1)


def forward_solve(factor: jax.Array, vectors: jax.Array) -> jax.Array:
    """Solve ``L x = v`` unit by unit."""
    q = vectors.shape[1]
    solved: list[jax.Array] = []
    for i in range(q):
        known = sum((factor[:, i, k] * solved[k] for k in range(i)), start=0.0)
        solved.append((vectors[:, i] - known) / factor[:, i, i])
    return jnp.stack(solved, axis=1)


def solve(factor: jax.Array, vectors: jax.Array) -> jax.Array:
    """Solve ``L L' x = v`` unit by unit."""
    return back_solve(factor, forward_solve(factor, vectors))


def variances(factor: jax.Array) -> jax.Array:
    """Diagonals ``(U, q)`` of the inverses of ``L L'``."""
    q = factor.shape[-1]
    axes = [jnp.broadcast_to(axis, factor.shape[:2]) for axis in jnp.eye(q, dtype=factor.dtype)]
    columns = [forward_solve(factor, axis) for axis in axes]
    return jnp.stack([jnp.sum(column**2, axis=1) for column in columns], axis=1)


class Summit(NamedTuple):
    """Where Newton's method came to, and what the density is like there."""

    effects: jax.Array  # (U, q)
    factor: jax.Array  # (U, q, q) Cholesky factor of minus the Hessian
    step: jax.Array  # (U, q) the Newton step that has not been taken
    decrement: jax.Array  # (U,) its squared length; small near a mode
    value: jax.Array  # (U,) log density; minus infinity where nobody has looked


class _Climb(NamedTuple):
    """Where all units are, and what each tries next."""

    looks: jax.Array
    here: Summit
    share: jax.Array  # (U,) of the step to try


def ascend(
    density: Density, effects: jax.Array, most: int, near: float, first: jax.Array | None = None
) -> Summit:
    """Climb until the largest squared decrement is below `near`, or after `most` looks.

    A step that does not climb is halved, each unit by itself. A `first` step ``(U, q)`` is
    somebody's guess: where it does not climb, none of it is taken.
    """
    infinite = jnp.full(len(effects), jnp.inf, effects.dtype)
    blank = jnp.zeros((*effects.shape, effects.shape[1]), effects.dtype)
    guessed = first is not None
    step = first if first is not None else jnp.zeros_like(effects)
    value = density(effects)[0] if guessed else -infinite
    start = _Climb(
        jnp.zeros((), int), Summit(effects, blank, step, infinite, value), jnp.ones_like(value)
    )

    def again(state: _Climb) -> _Climb:
        # The model's code is traced here alone: a step is tried by looking where it leads.
        here = state.here
        share = state.share[:, None]
        to = here.effects + jnp.where(share > 0, share * here.step, 0.0)
        value, slope, minus_hessian = curvature(density, to)
        factor = cholesky(minus_hessian)
        step = solve(factor, slope)
        there = Summit(to, factor, step, jnp.sum(slope * step, axis=1), value)
        slack = 1e-4 + 1e-6 * jnp.abs(here.value)
        climbed = jnp.isneginf(here.value) | (value >= here.value - slack)  # not where it is NaN
        left = jnp.where(climbed, 1.0, _shorter(state.share, guessed & (state.looks == 0)))

        def taken(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(climbed.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        return _Climb(state.looks + 1, jax.tree.map(taken, there, here), left)

    def far(state: _Climb) -> jax.Array:
        return (state.looks < most) & ~(jnp.max(state.here.decrement) < near)

    return lax.while_loop(far, again, start).here


def _shorter(share: jax.Array, was_guess: bool | jax.Array) -> jax.Array:
    """Halve what is tried of a step; try none of it where that was in vain too often."""
    return jnp.where(was_guess | (share < _SHORTEST), 0.0, share / 2)


def coupling(total: Callable[[jax.Array], jax.Array], effects: jax.Array) -> jax.Array:
    """Probe the Hessian between units with random signs; 0 if it is block-diagonal.

    Blocks are read with the same vector in every unit, right only if no unit sees another. A
    vector of random signs then has another product unless the rest of the Hessian is zero.
    """
    units, q = effects.shape
    signs = jax.random.rademacher(jax.random.key(0), (units,), effects.dtype)
    _, product = jax.linearize(jax.grad(total), effects)
    worst = jnp.zeros((), effects.dtype)
    for i in range(q):
        same = jnp.broadcast_to(jnp.eye(q, dtype=effects.dtype)[i], effects.shape)
        off = product(signs[:, None] * same) - signs[:, None] * product(same)
        scale = jnp.sqrt(jnp.mean(product(same) ** 2)) + jnp.finfo(effects.dtype).tiny
        worst = jnp.maximum(worst, jnp.sqrt(jnp.mean(off**2)) / scale)
    return worst
