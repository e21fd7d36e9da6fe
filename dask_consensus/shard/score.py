"""Gradient of a shard's log marginal likelihood, by Fisher's identity.

The gradient of ``log integral exp f(b, u) db`` is the mean of the gradient of ``f`` over the
posterior of ``b`` (Louis 1982, JRSS B 44, eq. 3.1): the nodes that give the integral, weighted by
their share of it, give its gradient, and nothing has to be differentiated through a mode.
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
from .effects import effects_per_unit, nothing_subtracted, others, unit_density, unit_level
from .marginal import ALMOST_ZERO, integral
from .quadrature import Nodes, padded_rule
from .target import terms_of

_NEAR = 1e-4  # squared decrement at which the modes are close enough to place nodes around them


class Score(NamedTuple):
    """Log density of a shard at points of u, and its gradient."""

    value: np.ndarray  # (n,) w log p(u) + log l_k(u)
    gradient: np.ndarray  # (n, d)


class Expansion(NamedTuple):
    """A shard's log density to second order about a point, and a trace of the third.

    The third derivative is summed over the axes it is taken in twice, ``sum_j T(a_j, a_j, .)``.
    """

    value: float
    gradient: np.ndarray  # (d,)
    precision: np.ndarray  # (d, d) minus the Hessian
    third_derivative: np.ndarray  # (d,)


def expansion(
    model: ShardModel, data: ShardData, u: np.ndarray, axes: np.ndarray, weight: float, n_nodes: int
) -> Expansion:
    """Expand a shard's log density by differences of gradients.

    The columns of `axes` are the steps of the differences, of about a posterior sd; `weight` and
    `n_nodes` are those of :func:`score`.
    """
    points = np.concatenate([u[None], u + axes.T, u - axes.T])
    value, gradient = score(model, data, points, weight, n_nodes)
    here, ahead, behind = gradient[0], *np.split(gradient[1:], 2)
    # Row j: the Hessian times step j.
    precision = -np.linalg.solve(axes.T, (ahead - behind) / 2)
    third_derivative = (ahead - 2 * here + behind).sum(axis=0)
    return Expansion(float(value[0]), here, (precision + precision.T) / 2, third_derivative)


def score(
    model: ShardModel, data: ShardData, points: np.ndarray, weight: float, n_nodes: int
) -> Score:
    """Evaluate a shard's log density, local effects integrated out, and its gradient.

    The model is one without :func:`.effects.obstacle`. Points ``(n, d)`` are near each other: each
    begins from the modes of the one before. `weight` is the power of the prior, `n_nodes` one of
    the :func:`.quadrature.gradient_ladder`.
    """
    q = effects_per_unit(model)
    units = len(data.mask(unit_level(model))) if q else 0
    with precision(model.double):
        fixed = on_device((data, np.float64(weight), *padded_rule(q, n_nodes)))
        effects = on_device(np.full((units, q), ALMOST_ZERO))
        where = [on_device(point) for point in points]
        run = compiled(model, "score", lambda: _score_at(model), *fixed, effects, where[0])
        answers = []
        for point in where:
            value, gradient, effects = run(*fixed, effects, point)
            answers.append((value, gradient))
        answers = jax.device_get(answers)
    value, gradient = (np.array(part, np.float64) for part in zip(*answers, strict=True))
    return Score(value, gradient)


def _score_at(model: ShardModel) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
    """Value, gradient and modes at one point."""

    def at_point(
        data: ShardData,
        weight: jax.Array,
        nodes: Nodes,
        count: jax.Array,
        effects: jax.Array,
        u: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        reference = nothing_subtracted(data, u)
        if not effects_per_unit(model):

            def total(u: jax.Array) -> jax.Array:
                terms = terms_of(model, u, {}, data)
                return weight * terms.prior + jnp.sum(others(model, terms, reference))

            return *jax.value_and_grad(total)(u), effects
        mask = data.mask(unit_level(model))

        def density(effects: jax.Array, u: jax.Array = u) -> tuple[jax.Array, Any]:
            return unit_density(model, u, effects, data, reference)

        there = newton.ascend(density, effects, newton.MOST_STEPS, _NEAR)
        modes, factor = there.effects, there.factor
        log_integral = integral(density, modes, factor, nodes, count)
        log_volume = -jnp.sum(jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)), axis=1)

        def at_node(i: jax.Array, gradient: jax.Array) -> jax.Array:
            offset = newton.back_solve(factor, jnp.broadcast_to(nodes.points[i], modes.shape))
            values, pull = jax.vjp(lambda u: density(modes + offset, u)[0], u)
            share = jnp.exp(nodes.log_weights[i] + values + log_volume - log_integral)
            # A node of no density has no share, whatever its gradient.
            share = jnp.where(mask & (share > 0), share, 0.0)
            return gradient + pull(share)[0]

        def rest(u: jax.Array) -> jax.Array:
            terms = density(modes, u)[1]
            return weight * terms.prior + jnp.sum(others(model, terms, reference))

        value, gradient = jax.value_and_grad(rest)(u)
        gradient = lax.fori_loop(0, count, at_node, gradient)
        # Where modes were lost the next point begins afresh.
        begin = jnp.where(jnp.isfinite(modes), modes, ALMOST_ZERO)
        return value + jnp.sum(jnp.where(mask, log_integral, 0.0)), gradient, begin

    return at_point
