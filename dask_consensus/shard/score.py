"""Gradient of a shard's log marginal likelihood, by Fisher's identity.

The gradient of ``log integral exp f(b, u) db`` is the mean of the gradient of ``f`` over the
posterior of ``b`` (Louis 1982, JRSS B 44, eq. 3.1): the nodes that give the integral, weighted by
their share of it, give its gradient, and nothing has to be differentiated through a mode.
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
from . import newton, turned
from .compiling import compiled, on_device
from .effects import effects_per_unit, nothing_subtracted, others, unit_density, unit_level
from .hills import Hills, log_determinant, shares
from .marginal import ALMOST_ZERO, begin_at, integral
from .quadrature import Nodes, Rule, padded_rule
from .target import Terms, terms_of

_LOST = 0.5  # squared Newton decrement beyond which a mode beside the main one is not there
_BLOCK = 32  # points evaluated by one call
_NEAR = 1e-4  # squared decrement at which the modes are close enough to place nodes around them

Begin = tuple[jax.Array, jax.Array]
"""Places to ascend from, ``(M, U, q)``, and which of them the units have, ``(M, U)``."""
PointFunction = Callable[..., tuple[tuple[jax.Array, ...], Any]]
"""Of data, the prior's power, nodes and how many of them count, modes, and one point."""


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
    return expanded(u, axes, lambda points: score(model, data, points, weight, rule))


def expanded(u: np.ndarray, axes: np.ndarray, ask: Callable[[np.ndarray], Score]) -> Expansion:
    """Expand whatever has a score at points ``(n, d)``; see :func:`expansion`."""
    value, gradient = ask(np.concatenate([u[None], u + axes.T, u - axes.T]))
    here, ahead, behind = gradient[0], *np.split(gradient[1:], 2)
    # Where values lie far off a density may be infinite a step away: whoever asks looks.
    with np.errstate(invalid="ignore"):
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
    are of the :func:`.quadrature.gradient_ladder`, or of the :func:`.quadrature.ladder`.
    """
    begin, nodes = _begun(model, data, points, rule)
    value, gradient = at_points(model, "score", score_at(model), data, points, weight, nodes, begin)
    return Score(value + _constant(model, data), gradient)


def heights(
    model: ShardModel, data: ShardData, points: np.ndarray, weight: float, rule: Rule
) -> np.ndarray:
    """Evaluate a shard's log density alone, as :func:`score` does, at less than half of the cost.

    Returns
    -------
    (n,) array
    """
    begin, nodes = _begun(model, data, points, rule)
    (value,) = at_points(model, "heights", height_at(model), data, points, weight, nodes, begin)
    return np.asarray(value + _constant(model, data))


def _begun(
    model: ShardModel, data: ShardData, points: np.ndarray, rule: Rule
) -> tuple[Any, tuple[Nodes, np.int32]]:
    """Give modes to begin from, and nodes."""
    with precision(model.double):
        arrays, first = on_device((data, points[0]))
        begin = begin_at(model, arrays, first, rule.n_modes)
    return begin, padded_rule(effects_per_unit(model), rule.n_nodes)


def at_points(
    model: ShardModel,
    kind: Hashable,
    at_point: PointFunction,
    data: ShardData,
    points: np.ndarray,
    weight: float,
    nodes: tuple[Any, Any],
    begin: Any,
) -> list[np.ndarray]:
    """Ask a function of a point at all of them, block by block, each from the modes of the last."""
    with precision(model.double):
        fixed = on_device((data, np.float64(weight), *nodes))
        blocks = [points[i : i + _BLOCK] for i in range(0, len(points), _BLOCK)]
        modes = begin
        answers = []
        for block in blocks:
            # Points that are not asked are there for the shape, which is that of all blocks.
            where = on_device((np.resize(block, (_BLOCK, block.shape[1])), np.int32(len(block))))
            run = compiled(model, kind, lambda: one_by_one(at_point), *fixed, modes, *where)
            answer, modes = run(*fixed, modes, *where)
            answers.append([part[: len(block)] for part in jax.device_get(answer)])
    return [np.concatenate(part, dtype=np.float64) for part in zip(*answers, strict=True)]


def _constant(model: ShardModel, data: ShardData) -> float:
    """Give what nodes and factors leave out of the integral of each unit."""
    q = effects_per_unit(model)
    units = int(np.sum(data.mask(unit_level(model)))) if q else 0
    return float(0.5 * q * units * np.log(2 * np.pi))


def one_by_one(at_point: PointFunction) -> Callable[..., tuple[tuple[jax.Array, ...], Begin]]:
    """Ask at the first `n` points of a block, each from the modes of the last.

    They are found by one call: a call for each would ask the system for its memory anew, which
    takes longer than the work where freed memory is given back at once, as in Dask's workers.
    """

    def run(
        data: ShardData,
        weight: jax.Array,
        nodes: Nodes,
        count: jax.Array,
        modes: Begin,
        points: jax.Array,
        n: jax.Array,
    ) -> tuple[tuple[jax.Array, ...], Begin]:
        def ask(modes: Begin, u: jax.Array) -> tuple[tuple[jax.Array, ...], Begin]:
            return at_point(data, weight, nodes, count, modes, u)

        def add(i: jax.Array, state: Any) -> Any:
            answers, modes = state
            answer, modes = ask(modes, points[i])
            added = (all_.at[i].set(new) for all_, new in zip(answers, answer, strict=True))
            return tuple(added), modes

        shapes, _ = jax.eval_shape(ask, modes, points[0])
        nothing = tuple(jnp.zeros((len(points), *one.shape), one.dtype) for one in shapes)
        return lax.fori_loop(0, n, add, (nothing, modes))

    return run


class _There(NamedTuple):
    """Integrals of all units at one point."""

    effects: jax.Array  # (M, U, q) modes
    factor: jax.Array  # (M, U, q, q)
    share_at: Callable[[jax.Array, jax.Array], jax.Array]
    turns: jax.Array | None
    log_integral: jax.Array  # (U,)

    @property
    def modes(self) -> jax.Array:
        """Where to begin at the next point: afresh where modes were lost."""
        return jnp.where(jnp.isfinite(self.effects), self.effects, ALMOST_ZERO)


def _integrated(density: newton.Density, modes: Begin, nodes: Nodes, count: jax.Array) -> _There:
    """Find the modes of all units from others nearby, and integrate around them."""

    def climb(effects: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        there = newton.ascend(density, effects, newton.MOST_LOOKS, _NEAR)
        log_mass = there.value - log_determinant(there.factor)
        arrived = there.decrement < _LOST
        # The last step needs no new curvature; many units add up what it leaves undone.
        effects = there.effects + jnp.where(arrived[:, None], there.step, 0.0)
        return effects, there.factor, jnp.where(arrived, log_mass, -jnp.inf)

    begin, present = modes
    effects, factor, log_mass = lax.map(climb, begin)
    summits = Hills(effects, factor, jnp.where(present, log_mass, -jnp.inf))
    turns = turned.rotations(effects.shape[1], effects.shape[2], effects.dtype)
    log_integral = integral(density, summits, nodes, count, turns)
    return _There(effects, factor, shares(summits), turns, log_integral)


def height_at(model: ShardModel) -> PointFunction:
    """Value and modes at one point."""

    def at_point(
        data: ShardData,
        weight: jax.Array,
        nodes: Nodes,
        count: jax.Array,
        modes: Begin,
        u: jax.Array,
    ) -> tuple[tuple[jax.Array], Begin]:
        reference = nothing_subtracted(data, u)
        if not effects_per_unit(model):
            terms = terms_of(model, u, {}, data)
            return (weight * terms.prior + jnp.sum(others(model, terms, reference)),), modes

        def density(effects: jax.Array) -> tuple[jax.Array, Terms]:
            return unit_density(model, u, effects, data, reference)

        there = _integrated(density, modes, nodes, count)
        terms = density(there.effects[0])[1]
        value = weight * terms.prior + jnp.sum(others(model, terms, reference))
        value += jnp.sum(jnp.where(data.mask(unit_level(model)), there.log_integral, 0.0))
        return (value,), (there.modes, modes[1])

    return at_point


def score_at(model: ShardModel) -> PointFunction:
    """Value, gradient and modes at one point."""

    def at_point(
        data: ShardData,
        weight: jax.Array,
        nodes: Nodes,
        count: jax.Array,
        modes: Begin,
        u: jax.Array,
    ) -> tuple[tuple[jax.Array, jax.Array], Begin]:
        reference = nothing_subtracted(data, u)
        if not effects_per_unit(model):

            def total(u: jax.Array) -> jax.Array:
                terms = terms_of(model, u, {}, data)
                return weight * terms.prior + jnp.sum(others(model, terms, reference))

            return jax.value_and_grad(total)(u), modes
        mask = data.mask(unit_level(model))

        def density(effects: jax.Array, u: jax.Array = u) -> tuple[jax.Array, Terms]:
            return unit_density(model, u, effects, data, reference)

        there = _integrated(density, modes, nodes, count)
        effects, factor = there.effects, there.factor
        log_volume = -log_determinant(factor)

        def around(m: jax.Array, gradient: jax.Array) -> jax.Array:
            offset_of = turned.offsets(factor[m], there.turns)

            def at_node(i: jax.Array, gradient: jax.Array) -> jax.Array:
                place = effects[m] + offset_of(nodes.points[i])
                values, pull = jax.vjp(lambda u: density(place, u)[0], u)
                parts = nodes.log_weights[i] + values + there.share_at(m, place)
                share = jnp.exp(parts + log_volume[m] - there.log_integral)
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
        value += jnp.sum(jnp.where(mask, there.log_integral, 0.0))
        return (value, gradient), (there.modes, modes[1])

    return at_point
