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
from .hills import Hills, log_determinant, shares
from .marginal import ALMOST_ZERO, begin_at, integral
from .quadrature import Nodes, Rule, padded_rule
from .target import terms_of

_LOST = 0.5  # squared Newton decrement beyond which a mode beside the main one is not there
_BLOCK = 32  # points evaluated by one call
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
    model: ShardModel, data: ShardData, u: np.ndarray, axes: np.ndarray, weight: float, rule: Rule
) -> Expansion:
    """Expand a shard's log density by differences of gradients.

    The columns of `axes` are the steps of the differences, of about a posterior sd; where they do
    not span the space no precision is known, which is NaN. `weight` and `rule` are those of
    :func:`score`.
    """
    points = np.concatenate([u[None], u + axes.T, u - axes.T])
    value, gradient = score(model, data, points, weight, rule)
    here, ahead, behind = gradient[0], *np.split(gradient[1:], 2)
    try:
        # Row j: the Hessian times step j.
        precision = -np.linalg.solve(axes.T, (ahead - behind) / 2)
    except np.linalg.LinAlgError:
        precision = np.full_like(axes, np.nan)
    third_derivative = (ahead - 2 * here + behind).sum(axis=0)
    return Expansion(float(value[0]), here, (precision + precision.T) / 2, third_derivative)


def score(
    model: ShardModel, data: ShardData, points: np.ndarray, weight: float, rule: Rule
) -> Score:
    """Evaluate a shard's log density, local effects integrated out, and its gradient.

    The model is one without :func:`.effects.obstacle`. Points ``(n, d)`` are near each other: each
    begins from the modes of the one before. `weight` is the power of the prior, the rule's nodes
    are of the :func:`.quadrature.gradient_ladder`.
    """
    q = effects_per_unit(model)
    with precision(model.double):
        fixed = on_device((data, np.float64(weight), *padded_rule(q, rule.n_nodes)))
        blocks = [points[i : i + _BLOCK] for i in range(0, len(points), _BLOCK)]
        modes = begin_at(model, fixed[0], on_device(points[0]), rule.n_modes)
        answers = []
        for block in blocks:
            # Points that are not asked are there for the shape, which is that of all blocks.
            where = on_device((np.resize(block, (_BLOCK, block.shape[1])), np.int32(len(block))))
            run = compiled(model, "score", lambda: scores(model), *fixed, modes, *where)
            *answer, modes = run(*fixed, modes, *where)
            answers.append([part[: len(block)] for part in jax.device_get(answer)])
    value, gradient = (
        np.concatenate(part, dtype=np.float64) for part in zip(*answers, strict=True)
    )
    units = int(np.sum(data.mask(unit_level(model)))) if q else 0
    return Score(value + 0.5 * q * units * np.log(2 * np.pi), gradient)


def scores(model: ShardModel) -> Callable[..., tuple[jax.Array, jax.Array, Any]]:
    """Values and gradients at the first `n` points of a block, each from the modes of the last.

    They are found by one call: a call for each would ask the system for its memory anew, which
    takes longer than the work where freed memory is given back at once, as in Dask's workers.
    """
    at_point = score_at(model)

    def run(
        data: ShardData,
        weight: jax.Array,
        nodes: Nodes,
        count: jax.Array,
        modes: tuple[jax.Array, jax.Array],
        points: jax.Array,
        n: jax.Array,
    ) -> tuple[jax.Array, jax.Array, Any]:
        def add(i: jax.Array, state: Any) -> Any:
            values, gradients, modes = state
            value, gradient, modes = at_point(data, weight, nodes, count, modes, points[i])
            return values.at[i].set(value), gradients.at[i].set(gradient), modes

        nothing = jnp.zeros(len(points), points.dtype), jnp.zeros_like(points), modes
        return lax.fori_loop(0, n, add, nothing)

    return run


def score_at(model: ShardModel) -> Callable[..., tuple[jax.Array, jax.Array, Any]]:
    """Value, gradient and modes at one point."""

    def at_point(
        data: ShardData,
        weight: jax.Array,
        nodes: Nodes,
        count: jax.Array,
        modes: tuple[jax.Array, jax.Array],
        u: jax.Array,
    ) -> tuple[jax.Array, jax.Array, Any]:
        reference = nothing_subtracted(data, u)
        if not effects_per_unit(model):

            def total(u: jax.Array) -> jax.Array:
                terms = terms_of(model, u, {}, data)
                return weight * terms.prior + jnp.sum(others(model, terms, reference))

            return *jax.value_and_grad(total)(u), modes
        mask = data.mask(unit_level(model))

        def density(effects: jax.Array, u: jax.Array = u) -> tuple[jax.Array, Any]:
            return unit_density(model, u, effects, data, reference)

        def climb(effects: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            there = newton.ascend(density, effects, newton.MOST_LOOKS, _NEAR)
            log_mass = there.value - log_determinant(there.factor)
            arrived = there.decrement < _LOST
            # The last step needs no new curvature; many units add up what it leaves undone.
            modes = there.effects + jnp.where(arrived[:, None], there.step, 0.0)
            return modes, there.factor, jnp.where(arrived, log_mass, -jnp.inf)

        begin, present = modes
        effects, factor, log_mass = lax.map(climb, begin)
        summits = Hills(effects, factor, jnp.where(present, log_mass, -jnp.inf))
        log_integral = integral(density, summits, nodes, count)
        log_volume = -log_determinant(factor)
        share_at = shares(summits)

        def around(m: jax.Array, gradient: jax.Array) -> jax.Array:
            def at_node(i: jax.Array, gradient: jax.Array) -> jax.Array:
                point = nodes.points[i]
                offset = newton.back_solve(factor[m], jnp.broadcast_to(point, effects[m].shape))
                there = effects[m] + offset
                values, pull = jax.vjp(lambda u: density(there, u)[0], u)
                parts = nodes.log_weights[i] + values + share_at(m, there)
                share = jnp.exp(parts + log_volume[m] - log_integral)
                # A node of no density has no share, whatever its gradient.
                share = jnp.where(mask & (share > 0), share, 0.0)
                return gradient + pull(share)[0]

            return lax.fori_loop(0, count, at_node, gradient)

        def rest(u: jax.Array) -> jax.Array:
            terms = density(effects[0], u)[1]
            return weight * terms.prior + jnp.sum(others(model, terms, reference))

        value, gradient = jax.value_and_grad(rest)(u)
        if len(effects) == 1:
            gradient = around(jnp.zeros((), int), gradient)
        else:
            gradient = lax.fori_loop(0, len(effects), around, gradient)
        # Where modes were lost the next point begins afresh.
        begin = jnp.where(jnp.isfinite(effects), effects, ALMOST_ZERO)
        value += jnp.sum(jnp.where(mask, log_integral, 0.0))
        return value, gradient, (begin, present)

    return at_point
