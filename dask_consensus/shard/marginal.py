"""Log likelihood of a shard at many points of ``u``, its local effects integrated out.

``log l_k(u)`` is a sum over *units*, the groups (or rows) that carry local effects, of
``log integral p(y_j | b, u) p(b | u) db``. The mode of every unit is found at once by Newton's
method, whose Hessian is block-diagonal; around it the integral is taken by adaptive Gauss-Hermite
quadrature (Naylor and Smith 1982; Pinheiro and Bates 1995), by quasi-random points in more
dimensions. Without local effects the likelihood is plain.

Everything is a difference to the value at a *center* ``u0``, taken row by row before rows are
summed, in double precision wherever the model bears it, whatever precision it is sampled in: in
single precision rows share rounding errors, of a scale's logarithm say, that differ between
points by 0.002 on a shard of 50,000 rows, add up over shards, and are 2 over 1,000 of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..model.model import ShardModel, precision
from ..shard_data import ShardData
from . import newton
from .compiling import compiled, on_device
from .device import accelerated
from .effects import (
    Reference,
    effects_per_unit,
    nothing_subtracted,
    others,
    unit_density,
    unit_level,
    unpack,
)
from .quadrature import Nodes, padded_rule
from .target import Terms, terms_of

ALMOST_ZERO = 0.0137  # to begin from: at 0 itself densities written with |x| have no gradient
_FEW_STEPS = 6  # at a point, from modes moved along with it
_NEAR = 0.03  # squared decrement from which one more step arrives
_CHUNK = 64  # units summed in working precision before double precision takes over
_BLOCK = 32  # points evaluated by one call; one size, so that one compilation serves all
_AT_ONCE = 8_000_000  # rows times points held in memory at a time
_FILLS = 4_000_000  # rows times points that fill a GPU
_DECREMENT = 0.5  # squared Newton decrement beyond which a unit's mode was not found


class Values(NamedTuple):
    """Differences of a shard's log likelihood to its value at the center.

    The coupling is how much the Hessian between units is off from block-diagonal, relative; 0
    without local effects.
    """

    log_likelihood: np.ndarray  # (G,) float64
    at_center: float  # the value at the center itself
    modes_not_found: np.ndarray  # (G,) float64; units whose mode was not found
    units: int  # of the shard
    coupling: float


class Modes(NamedTuple):
    """Modes of the local sites given u, and their variances there, unconstrained."""

    local: dict[str, Any]
    variances: dict[str, Any]


class _Center(NamedTuple):
    """What a shard's evaluations start from."""

    u: jax.Array  # (d,)
    effects: jax.Array  # (U, q) modes
    slope: jax.Array  # (U, q, d) their derivative in u
    reference: Reference  # log densities of rows and groups there
    coupling: jax.Array
    variances: jax.Array  # (U, q)


def log_likelihoods(
    model: ShardModel, data: ShardData, points: np.ndarray, center: np.ndarray, n_nodes: int
) -> Values:
    """Evaluate ``log l_k(u) - log l_k(u0)`` at points ``(G, d)``, for a model without `obstacle`.

    Points are rounded to the working precision before use: round them first where it matters. The
    center ``u0`` is best where the posterior is; `n_nodes` is of the :func:`.quadrature.ladder`.
    """
    q = effects_per_unit(model)
    block = max(1, min(_BLOCK, _AT_ONCE // max(len(data.rows), 1)))
    padded = np.resize(points, (-(-len(points) // block) * block, points.shape[1]))
    with precision(model.double):
        arrays, start, rules = on_device((data, center, padded_rule(q, n_nodes)))
        origin = _center(model, arrays, start)
        example = (arrays, origin, *rules, on_device(padded[:block]))
        evaluate = compiled(model, "values", lambda: _evaluate(model), *example)
        blocks = [
            jax.device_get(evaluate(arrays, origin, *rules, on_device(padded[i : i + block])))
            for i in range(0, len(padded), block)
        ]
    chunks, not_found = (
        np.concatenate([values[i] for values in blocks]).astype(np.float64)[: len(points)]
        for i in range(2)
    )
    real = int(np.sum(data.mask(unit_level(model)))) if q else 0
    there = [blocks[0][2], origin.reference.rows, *origin.reference.groups]
    total = sum(float(np.sum(np.asarray(part, np.float64))) for part in there)
    return Values(
        log_likelihood=chunks.sum(axis=1),
        at_center=total + 0.5 * q * real * float(np.log(2 * np.pi)),
        modes_not_found=not_found,
        units=real,
        coupling=float(origin.coupling),
    )


def modes_at(model: ShardModel, data: ShardData, u: np.ndarray) -> Modes:
    """Find the modes of all local sites given `u`, for a model without :func:`obstacle`."""
    with precision(model.x64):
        arrays, point = on_device((data, u))
        origin = _center(model, arrays, point)
        modes = Modes(unpack(model, origin.effects), unpack(model, origin.variances))
        return jax.device_get(modes)


def _center(model: ShardModel, arrays: ShardData, point: jax.Array) -> _Center:
    return compiled(model, "center", lambda: _find_center(model), arrays, point)(arrays, point)


# The center and the points


def _find_center(model: ShardModel) -> Callable[..., _Center]:
    """Modes of all units at the center, and how they move with u."""
    q = effects_per_unit(model)

    def find_center(data: ShardData, u: jax.Array) -> _Center:
        if not q:
            terms = terms_of(model, u, {}, data)
            none, slope = jnp.zeros((0, 0), u.dtype), jnp.zeros((0, 0, len(u)), u.dtype)
            reference = Reference(terms.rows, terms.groups)
            return _Center(u, none, slope, reference, jnp.zeros(()), none)
        units = len(data.mask(unit_level(model)))
        begin = jnp.full((units, q), ALMOST_ZERO, u.dtype)
        nothing = nothing_subtracted(data, u)

        def density(effects: jax.Array, u: jax.Array = u) -> tuple[jax.Array, Terms]:
            return unit_density(model, u, effects, data, nothing)

        modes, factor, *_ = newton.ascend(density, begin, newton.MOST_STEPS, 1e-6)
        _, terms = density(modes)

        def slope_at(u: jax.Array) -> jax.Array:
            return jax.grad(lambda effects: jnp.sum(density(effects, u)[0]))(modes)

        # Implicit differentiation of slope(mode(u), u) = 0.
        mixed = jax.jacfwd(slope_at)(u)
        moves = jax.vmap(lambda column: newton.solve(factor, column), 2, 2)(mixed)
        between = newton.coupling(lambda effects: jnp.sum(density(effects)[0]), modes)
        identity = jnp.broadcast_to(jnp.eye(q, dtype=u.dtype), (units, q, q))
        columns = [newton.forward_solve(factor, identity[:, :, i]) for i in range(q)]
        variances = jnp.stack([jnp.sum(column**2, axis=1) for column in columns], axis=1)
        return _Center(u, modes, moves, Reference(terms.rows, terms.groups), between, variances)

    return find_center


def _evaluate(model: ShardModel) -> Callable[..., tuple[jax.Array, ...]]:
    """Values at a block of points, in chunks of units; units whose mode was lost; at the center."""
    q = effects_per_unit(model)

    def evaluate(
        data: ShardData, center: _Center, nodes: Nodes, count: jax.Array, points: jax.Array
    ) -> tuple[jax.Array, ...]:
        def units_at(u: jax.Array) -> tuple[jax.Array, jax.Array]:
            if not q:
                terms = terms_of(model, u, {}, data)
                return others(model, terms, center.reference), jnp.zeros((), int)
            mask = data.mask(unit_level(model))

            def density(effects: jax.Array) -> tuple[jax.Array, Terms]:
                return unit_density(model, u, effects, data, center.reference)

            start = center.effects + center.slope @ (u - center.u)
            better = density(start)[0] >= density(center.effects)[0]
            start = jnp.where(better[:, None], start, center.effects)
            near = newton.ascend(density, start, _FEW_STEPS, _NEAR)
            # The last step needs no new curvature: exact for Gaussian units.
            arrived = near.decrement < _DECREMENT
            modes = near.effects + jnp.where(arrived[:, None], near.step, 0.0)
            log_integral = integral(density, modes, near.factor, nodes, count)
            rest = others(model, density(modes)[1], center.reference)
            values = jnp.concatenate([jnp.where(mask, log_integral, 0.0), rest])
            return values, jnp.sum(mask & ~arrived)

        # The center is one more point, so that the model's code is compiled once.
        at_once = _points_at_once(len(data.rows))
        values, modes_not_found = lax.map(
            units_at, jnp.concatenate([center.u[None], points]), batch_size=at_once
        )
        return _chunks(values[1:] - values[0]), modes_not_found[1:], values[0]

    return evaluate


def _points_at_once(rows: int) -> int | None:
    """Evaluate points in step only where the rows alone would not fill a GPU."""
    return max(1, min(_BLOCK, _FILLS // max(rows, 1))) if accelerated() else None


def integral(
    density: newton.Density, modes: jax.Array, factor: jax.Array, nodes: Nodes, count: jax.Array
) -> jax.Array:
    """Log integral of every unit, by the first `count` nodes around its mode; ``(U,)``."""
    log_volume = -jnp.sum(jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)), axis=1)

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        offset = newton.back_solve(factor, jnp.broadcast_to(nodes.points[i], modes.shape))
        values, _ = density(modes + offset)
        values = jnp.where(jnp.isnan(values), -jnp.inf, values)
        return jnp.logaddexp(total, nodes.log_weights[i] + values)

    nothing = jnp.full(len(modes), -jnp.inf, modes.dtype)
    return lax.fori_loop(0, count, add, nothing) + log_volume


def _chunks(values: jax.Array) -> jax.Array:
    """Sum neighbours, ``(B, n)``, in working precision, few enough to lose nothing."""
    short = -values.shape[1] % _CHUNK
    return jnp.pad(values, ((0, 0), (0, short))).reshape(len(values), -1, _CHUNK).sum(axis=2)
