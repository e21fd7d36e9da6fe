"""Log likelihood of a shard at many points of ``u``, its local effects integrated out.

``log l_k(u)`` is a sum over *units*, the groups (or rows) that carry local effects, of
``log integral p(y_j | b, u) p(b | u) db``. The mode of every unit is found at once by Newton's
method, whose Hessian is block-diagonal; around it the integral is taken by adaptive Gauss-Hermite
quadrature (Naylor and Smith 1982; Pinheiro and Bates 1995), by quasi-random points in more
dimensions; around each of several modes where a unit has them (:mod:`.hills`). Without local
effects the likelihood is plain.

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
from . import hills, newton
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
from .quadrature import Nodes, Rule, padded_rule
from .target import Terms, terms_of

ALMOST_ZERO = 0.0137  # to begin from: at 0 itself densities written with |x| have no gradient
_FEW_LOOKS = 8  # at a point, from modes moved along with it
_LOOKS_AGAIN = 20  # and where there are several, from anywhere
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


class Center(NamedTuple):
    """What a shard's evaluations start from."""

    u: jax.Array  # (d,)
    effects: jax.Array  # (M, U, q) modes
    slope: jax.Array  # (M, U, q, d) their derivative in u
    factor: jax.Array  # (M, U, q, q) Cholesky factors of minus the Hessian at the modes
    present: jax.Array  # (M, U) bool; False where a unit has fewer
    reference: Reference  # log densities of rows and groups there
    coupling: jax.Array
    variances: jax.Array  # (U, q)


def log_likelihoods(
    model: ShardModel, data: ShardData, points: np.ndarray, center: np.ndarray, rule: Rule
) -> Values:
    """Evaluate ``log l_k(u) - log l_k(u0)`` at points ``(G, d)``, for a model without `obstacle`.

    Points are rounded to the working precision before use: round them first where it matters. The
    center ``u0`` is best where the posterior is; nodes are of the :func:`.quadrature.ladder`.
    """
    q = effects_per_unit(model)
    size = max(1, min(_BLOCK, _AT_ONCE // max(len(data.rows), 1)))
    blocks = [points[i : i + size] for i in range(0, len(points), size)]
    with precision(model.double):
        arrays, start, rules = on_device((data, center, padded_rule(q, max(rule.n_nodes, 1))))
        origin = center_at(model, arrays, start, rule.n_modes)
        answers = []
        for block in blocks:
            # Points that are not asked are there for the shape, which is that of all blocks.
            where = on_device((np.resize(block, (size, block.shape[1])), np.int32(len(block))))
            given = (arrays, origin, *rules, *where)
            evaluate = compiled(model, "values", lambda: _evaluate(model), *given)
            values, not_found, there = jax.device_get(evaluate(*given))
            answers.append((values[: len(block)], not_found[: len(block)]))
    chunks, lost = (np.concatenate(part, dtype=np.float64) for part in zip(*answers, strict=True))
    real = int(np.sum(data.mask(unit_level(model)))) if q else 0
    parts = [there, origin.reference.rows, *origin.reference.groups]
    total = sum(float(np.sum(np.asarray(part, np.float64))) for part in parts)
    return Values(
        log_likelihood=chunks.sum(axis=1),
        at_center=total + 0.5 * q * real * float(np.log(2 * np.pi)),
        modes_not_found=lost,
        units=real,
        coupling=float(origin.coupling),
    )


def modes_at(model: ShardModel, data: ShardData, u: np.ndarray) -> Modes:
    """Find the modes of all local sites given `u`, for a model without :func:`obstacle`."""
    with precision(model.x64):
        arrays, point = on_device((data, u))
        origin = center_at(model, arrays, point, 1)
        modes = Modes(unpack(model, origin.effects[0]), unpack(model, origin.variances))
        return jax.device_get(modes)


def most_modes(model: ShardModel, data: ShardData, points: np.ndarray) -> int:
    """Count the modes of the unit that has most at ``(G, d)`` points; 1 without local effects."""
    if not effects_per_unit(model):
        return 1
    mask = np.asarray(data.mask(unit_level(model)))
    with precision(model.double):
        arrays = on_device(data)
        found = [scouted(model, arrays, on_device(u))[0].log_mass for u in points]
        return max(hills.most_modes(log_mass, mask) for log_mass in jax.device_get(found))


def scouted(
    model: ShardModel, data: ShardData, u: jax.Array
) -> tuple[hills.Hills, hills.Surroundings]:
    """Find all modes of all units at `u`, up to a few, from anywhere in their local prior."""

    def scout(data: ShardData, u: jax.Array) -> tuple[hills.Hills, hills.Surroundings]:
        def density(effects: jax.Array) -> tuple[jax.Array, Terms]:
            return unit_density(model, u, effects, data, nothing_subtracted(data, u))

        draws, around = hills.starts(model, data, u)
        begin = jnp.concatenate([_near_zero(model, data, u.dtype), draws])
        return hills.climb(density, begin, newton.MOST_LOOKS, hills.MOST_MODES), around

    found: tuple[hills.Hills, hills.Surroundings] = compiled(
        model, "scout", lambda: scout, data, u
    )(data, u)
    return found


def begin_at(
    model: ShardModel, data: ShardData, u: jax.Array, n_modes: int
) -> tuple[jax.Array, jax.Array]:
    """Give places to ascend from, ``(M, U, q)``, and which of them the units have, ``(M, U)``."""
    if n_modes > 1:
        found, _ = scouted(model, data, u)
        return found.effects[:n_modes], found.present[:n_modes]
    begin = _near_zero(model, data, u.dtype)
    return begin, jnp.ones(begin.shape[:2], bool)


def _near_zero(model: ShardModel, data: ShardData, dtype: Any) -> jax.Array:
    q = effects_per_unit(model)
    units = len(data.mask(unit_level(model))) if q else 0
    return jnp.full((1, units, q), ALMOST_ZERO, dtype)


def center_at(model: ShardModel, arrays: ShardData, point: jax.Array, n_modes: int) -> Center:
    """Find the modes of all units at a point, and how they move with u."""
    begin = begin_at(model, arrays, point, n_modes)
    find = compiled(model, "center", lambda: _find_center(model), arrays, point, *begin)
    center: Center = find(arrays, point, *begin)
    return center


# The center and the points


def _find_center(model: ShardModel) -> Callable[..., Center]:
    """Modes of all units at the center, and how they move with u."""
    q = effects_per_unit(model)

    def find_center(data: ShardData, u: jax.Array, begin: jax.Array, present: jax.Array) -> Center:
        if not q:
            terms = terms_of(model, u, {}, data)
            none = jnp.zeros((1, 0, 0), u.dtype)
            reference = Reference(terms.rows, terms.groups)
            corner = jnp.zeros((1, 0, 0, 0), u.dtype)
            return Center(u, none, none, corner, present, reference, jnp.zeros(()), none[0])
        nothing = nothing_subtracted(data, u)

        def density(effects: jax.Array, u: jax.Array = u) -> tuple[jax.Array, Terms]:
            return unit_density(model, u, effects, data, nothing)

        found = hills.ascents(density, begin, newton.MOST_LOOKS)
        modes, factor = found.effects[0], found.factor[0]
        _, terms = density(modes)
        between = newton.coupling(lambda effects: jnp.sum(density(effects)[0]), modes)
        identity = jnp.broadcast_to(jnp.eye(q, dtype=u.dtype), factor.shape)
        columns = [newton.forward_solve(factor, identity[:, :, i]) for i in range(q)]
        variances = jnp.stack([jnp.sum(column**2, axis=1) for column in columns], axis=1)

        def movement(mode: tuple[jax.Array, jax.Array]) -> jax.Array:
            effects, factor = mode

            def slope_at(u: jax.Array) -> jax.Array:
                return jax.grad(lambda effects: jnp.sum(density(effects, u)[0]))(effects)

            # Implicit differentiation of slope(mode(u), u) = 0.
            mixed = jax.jacfwd(slope_at)(u)
            return jax.vmap(lambda column: newton.solve(factor, column), 2, 2)(mixed)

        moves = lax.map(movement, (found.effects, found.factor))
        reference = Reference(terms.rows, terms.groups)
        shape = found.factor
        return Center(u, found.effects, moves, shape, present, reference, between, variances)

    return find_center


def _evaluate(model: ShardModel) -> Callable[..., tuple[jax.Array, ...]]:
    """Values at the first `n` points of a block, in chunks of units; how many were lost there.

    And values at the center, entry by entry.
    """
    q = effects_per_unit(model)

    def evaluate(
        data: ShardData,
        center: Center,
        nodes: Nodes,
        count: jax.Array,
        points: jax.Array,
        n: jax.Array,
    ) -> tuple[jax.Array, ...]:
        def units_at(u: jax.Array) -> tuple[jax.Array, jax.Array]:
            if not q:
                terms = terms_of(model, u, {}, data)
                return others(model, terms, center.reference), jnp.zeros((), int)
            mask = data.mask(unit_level(model))

            def density(effects: jax.Array) -> tuple[jax.Array, Terms]:
                return unit_density(model, u, effects, data, center.reference)

            def follow(mode: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
                effects, slope = mode
                moved = slope @ (u - center.u)
                near = newton.ascend(density, effects, _FEW_LOOKS, _NEAR, moved)
                # The last step needs no new curvature: exact for Gaussian units.
                arrived = near.decrement < _DECREMENT
                modes = near.effects + jnp.where(arrived[:, None], near.step, 0.0)
                return modes, near.factor, arrived

            modes, factor, arrived = lax.map(follow, (center.effects, center.slope))
            if len(modes) > 1:
                # Modes come and go with u: some are not at the center.
                begin = jnp.concatenate([modes, hills.starts(model, data, u)[0]])
                summits = hills.climb(density, begin, _LOOKS_AGAIN, len(modes))
                arrived = jnp.isfinite(summits.log_mass)
            else:
                summits = hills.Hills(modes, factor, jnp.zeros(arrived.shape, u.dtype))
            log_integral = integral(density, summits, nodes, count)
            rest = others(model, density(modes[0])[1], center.reference)
            values = jnp.concatenate([jnp.where(mask, log_integral, 0.0), rest])
            return values, jnp.sum(mask & ~arrived.any(axis=0))

        # The center is one more point, so that the model's code is compiled once.
        with_center = jnp.concatenate([center.u[None], points])
        values, modes_not_found = _each(units_at, with_center, n + 1, len(data.rows))
        return _chunks(values[1:] - values[0]), modes_not_found[1:], values[0]

    return evaluate


def _each(function: Callable[[jax.Array], Any], points: jax.Array, n: jax.Array, rows: int) -> Any:
    """Map the first `n` of some points, one after another; in step where a GPU has room."""
    if accelerated():
        return lax.map(function, points, batch_size=max(1, min(_BLOCK, _FILLS // max(rows, 1))))
    shapes = jax.eval_shape(function, points[0])
    nothing = jax.tree.map(lambda leaf: jnp.zeros((len(points), *leaf.shape), leaf.dtype), shapes)

    def add(i: jax.Array, known: Any) -> Any:
        return jax.tree.map(lambda all_, new: all_.at[i].set(new), known, function(points[i]))

    return lax.fori_loop(0, n, add, nothing)


def integral(
    density: newton.Density, summits: hills.Hills, nodes: Nodes, count: jax.Array
) -> jax.Array:
    """Log integral of every unit, by the first `count` nodes around each of its modes; ``(U,)``."""
    share_at = hills.shares(summits)
    log_volume = -hills.log_determinant(summits.factor)

    def around(m: jax.Array) -> jax.Array:
        effects, factor = summits.effects[m], summits.factor[m]

        def add(i: jax.Array, total: jax.Array) -> jax.Array:
            offset = newton.back_solve(factor, jnp.broadcast_to(nodes.points[i], effects.shape))
            values, _ = density(effects + offset)
            values = jnp.where(jnp.isnan(values), -jnp.inf, values) + share_at(m, effects + offset)
            return jnp.logaddexp(total, nodes.log_weights[i] + values)

        nothing = jnp.full(len(effects), -jnp.inf, effects.dtype)
        return lax.fori_loop(0, count, add, nothing) + log_volume[m]

    n_modes = len(summits.effects)
    if n_modes == 1:
        return around(jnp.zeros((), int))
    return jax.scipy.special.logsumexp(lax.map(around, jnp.arange(n_modes)), axis=0)


def _chunks(values: jax.Array) -> jax.Array:
    """Sum neighbours, ``(B, n)``, in working precision, few enough to lose nothing."""
    short = -values.shape[1] % _CHUNK
    return jnp.pad(values, ((0, 0), (0, short))).reshape(len(values), -1, _CHUNK).sum(axis=2)
