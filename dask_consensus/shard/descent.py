"""Many searches of a shard's posterior for its maxima, all within compiled code.

A search of a few rows takes a hundred evaluations, each cheaper than the call that asks for it. So
the whole search is compiled: BFGS, whose step is halved until it climbs (Nocedal and Wright 2006,
algorithm 6.1), one search after another.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..model.model import ShardModel, precision
from ..shard_data import ShardData
from .compiling import compiled, on_device
from .effects import effects_per_unit, unit_level
from .marginal import ALMOST_ZERO
from .quadrature import padded_rule
from .score import PointFunction, score_at

_ENOUGH = 1e-4  # share of the expected climb that a step must bring
_STEEP = 0.9  # share of the slope that is left where a step was too short
_SHORTEST = 1e-9  # step, of the whole, at which a search gives up
_NEAR = 1e-4  # squared Newton decrement at which a search has arrived


class Descents(NamedTuple):
    """Where searches ended."""

    u: np.ndarray  # (n, d)
    height: np.ndarray  # (n,) log density there; minus infinity where it was not finite at first
    variance: np.ndarray  # (n, d) of each coordinate, about


class _State(NamedTuple):
    """A search: where it is, in units of the scale, and what it knows of the shape."""

    z: jax.Array  # (d,)
    value: jax.Array
    gradient: jax.Array  # (d,)
    inverse: jax.Array  # (d, d) of minus the Hessian, about
    modes: Any  # of the local effects
    step: jax.Array  # share of the Newton step to try next
    updates: jax.Array  # made to the inverse
    evaluations: jax.Array


def descend(
    model: ShardModel,
    data: ShardData,
    starts: np.ndarray,
    scale: np.ndarray,
    n_nodes: int,
    most: int,
) -> Descents:
    """Search from each of ``(n, d)`` points, by `most` evaluations at most; none only evaluates.

    Parameters
    ----------
    model : ShardModel
        Without :func:`.effects.obstacle`.
    data : ShardData
    starts : (n, d) array
    scale : (d,) array
        Size of an ordinary step.
    n_nodes : int
        Of the :func:`.quadrature.gradient_ladder`.
    most : int
    """
    q = effects_per_unit(model)

    def nowhere(data: ShardData, dtype: Any) -> Any:
        units = len(data.mask(unit_level(model))) if q else 0
        return jnp.full((1, units, q), ALMOST_ZERO, dtype), jnp.ones((1, units), bool)

    nodes = padded_rule(q, n_nodes)
    return descents(model, "descent", score_at(model), nowhere, nodes, data, starts, scale, most)


def descents(
    model: ShardModel,
    kind: Hashable,
    evaluate: PointFunction,
    nowhere: Callable[[ShardData, Any], Any],
    nodes: tuple[Any, Any],
    data: ShardData,
    starts: np.ndarray,
    scale: np.ndarray,
    most: int,
) -> Descents:
    """Search as :func:`descend` does, whoever evaluates; modes begin `nowhere`."""
    with precision(model.double):
        given = on_device((data, *nodes, scale, np.int32(most)))
        points = [on_device(start) for start in starts]
        run = compiled(model, kind, lambda: _descent(evaluate, nowhere), *given, points[0])
        answers = jax.device_get([run(*given, point) for point in points])
    return Descents(*(np.asarray(part, np.float64) for part in zip(*answers, strict=True)))


def _descent(
    evaluate: PointFunction, nowhere: Callable[[ShardData, Any], Any]
) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:

    def run(
        data: ShardData,
        nodes: Any,
        count: jax.Array,
        scale: jax.Array,
        most: jax.Array,
        start: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        d = len(start)
        whole = jnp.ones((), start.dtype)

        def at(z: jax.Array, modes: Any) -> tuple[jax.Array, jax.Array, Any]:
            there = evaluate(data, whole, nodes, count, modes, start + scale * z)
            (value, gradient), modes = there
            gradient = gradient * scale
            finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))
            return jnp.where(finite, value, -jnp.inf), gradient, modes

        def direction(state: _State) -> jax.Array:
            newton = state.inverse @ state.gradient
            # Before anything is known of the shape, a step of ordinary size.
            length = jnp.linalg.norm(state.gradient)
            first = state.gradient / jnp.maximum(length, 1.0)
            return jnp.where(state.updates > 0, newton, first)

        def arrived(state: _State) -> jax.Array:
            decrement = state.gradient @ (state.inverse @ state.gradient)
            return (state.updates > 0) & (decrement < _NEAR)

        def going(state: _State) -> jax.Array:
            short = state.step < _SHORTEST
            begun = (state.evaluations == 0) | jnp.isfinite(state.value)
            return (state.evaluations <= most) & begun & ~short & ~arrived(state)

        def again(state: _State) -> _State:
            # The first evaluation is of the start itself.
            begin = state.evaluations == 0
            along = jnp.where(begin, 0.0, direction(state))
            z = state.z + state.step * along
            value, gradient, modes = at(z, state.modes)
            slope = state.gradient @ along
            climbed = begin | (value >= state.value + _ENOUGH * state.step * slope)
            inverse, updates = _updated(state, z - state.z, state.gradient - gradient)
            steep = gradient @ along > _STEEP * slope
            shorter = state._replace(step=state.step / 2, evaluations=state.evaluations + 1)
            further = _State(
                z,
                value,
                gradient,
                jnp.where(begin, state.inverse, inverse),
                modes,
                jnp.where(steep & ~begin, jnp.minimum(2 * state.step, 8.0), whole),
                jnp.where(begin, 0, updates),
                state.evaluations + 1,
            )
            return jax.tree.map(lambda a, b: jnp.where(climbed, a, b), further, shorter)

        identity = jnp.eye(d, dtype=start.dtype)
        zero = jnp.zeros(d, start.dtype)
        none = jnp.zeros((), int)
        begin = nowhere(data, start.dtype)
        begun = _State(zero, -jnp.inf * whole, zero, identity, begin, whole, none, none)
        ended = lax.while_loop(going, again, begun)
        variance = jnp.diag(ended.inverse) * scale**2
        return start + scale * ended.z, ended.value, variance

    return run


def _updated(state: _State, moved: jax.Array, turned: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Update the inverse by a step and the change of the gradient, where they show a curve."""
    curvature = moved @ turned
    curved = curvature > 1e-10 * (turned @ turned)
    safe = jnp.where(curved, curvature, 1.0)
    # Before the first update, the size that this step has seen (Nocedal and Wright, eq. 6.20).
    size = safe / jnp.maximum(turned @ turned, jnp.finfo(moved.dtype).tiny)
    inverse = jnp.where(state.updates > 0, state.inverse, size * state.inverse)
    left = jnp.eye(len(moved), dtype=moved.dtype) - jnp.outer(moved, turned) / safe
    inverse = left @ inverse @ left.T + jnp.outer(moved, moved) / safe
    return (
        jnp.where(curved, inverse, state.inverse),
        state.updates + curved.astype(state.updates.dtype),
    )
