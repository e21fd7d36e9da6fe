"""Nodes of a rule around the modes of many units, in more than a few dimensions turned for each.

What a rule misses of one unit depends on how its nodes lie to the unit's density. Were they alike
in all units, what is missed would add up over them; turned at random for each, by a rotation that
is the same at every ``u``, it is as often too much as too little.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from . import newton
from .quadrature import GRID_UP_TO


def rotations(units: int, q: int, dtype: Any) -> jax.Array | None:
    """Draw a rotation of each unit, ``(U, q, q)``, uniformly; none where nodes are a grid.

    A unit has the same one whatever the number of units after it.
    """
    if q <= GRID_UP_TO:
        return None
    normal = jax.random.normal(jax.random.key(2), (units, q, q), dtype)
    # Units last: loops over them are then loops over neighbours in memory.
    rows = jnp.moveaxis(normal, 0, 2)

    def add(k: jax.Array, basis: jax.Array) -> jax.Array:
        vector = rows[k]
        for _ in range(2):  # once leaves rounding errors of nearly parallel vectors
            along = jnp.sum(basis * vector, axis=1)
            vector = vector - jnp.sum(along[:, None] * basis, axis=0)
        return basis.at[k].set(vector / jnp.sqrt(jnp.sum(vector**2, axis=0)))

    return jnp.moveaxis(lax.fori_loop(0, q, add, jnp.zeros_like(rows)), 2, 0)


def offsets(factor: jax.Array, turns: jax.Array | None) -> Callable[[jax.Array], jax.Array]:
    """Give the way from modes to nodes ``(q,)`` of a rule, ``(U, q)``, by Cholesky factors."""
    if turns is None:
        return lambda point: newton.back_solve(factor, jnp.broadcast_to(point, factor.shape[:2]))
    axes = jax.vmap(newton.back_solve, (None, 2), 2)(factor, turns)
    return lambda point: jnp.einsum("uij,j->ui", axes, point)
