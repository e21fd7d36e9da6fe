"""Log likelihood of a shard at many points of ``u``, its local effects integrated out.

``log l_k(u)`` is a sum over *units*, the groups (or rows) that carry local effects, of
``log integral p(y_j | b, u) p(b | u) db``. The mode of every unit is found at once by Newton's
method, whose Hessian is block-diagonal; around it the integral is taken by adaptive Gauss-Hermite
quadrature (Naylor and Smith 1982; Pinheiro and Bates 1995), by nodes on a few shells in more
dimensions (:mod:`.quadrature`); around each of several modes where a unit has them (:mod:`.hills`).
Without local effects the likelihood is plain.

Everything is a difference to the value at a *center* ``u0``, taken row by row before rows are
summed, in double precision wherever the model bears it, whatever precision it is sampled in: in
single precision rows share rounding errors, of a scale's logarithm say, that differ between
points by 0.002 on a shard of 50,000 rows, add up over shards, and are 2 over 1,000 of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..model.model import ShardModel, precision
from ..shard_data import ROWS, ShardData
from . import hills, newton, turned
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
    slope: jax.Array  # (M, U, q, d) their derivative in u; d is 0 where there are crossed effects
    factor: jax.Array  # (M, U, q, q) Cholesky factors of minus the Hessian at the modes
    present: jax.Array  # (M, U) bool; False where a unit has fewer
    reference: Reference  # log densities of rows and groups there
    coupling: jax.Array
    variances: jax.Array  # (U, q)


class UnitValues(NamedTuple):
    """Log likelihoods of what a shard's likelihood is a sum over.

    These are the units, or the rows where there are no local effects; groups of outer levels, or of
    all levels where rows are the units, may have observations of their own.
    """

    units: np.ndarray  # (G, U) float64, padding included
    groups: tuple[np.ndarray, ...]  # (G, G_l) of each level that is in no unit
    modes_not_found: np.ndarray  # (G,) float64


def log_likelihoods(
    model: ShardModel, data: ShardData, points: np.ndarray, center: np.ndarray, rule: Rule
) -> Values:
    """Evaluate ``log l_k(u) - log l_k(u0)`` at points ``(G, d)``, for a model without `obstacle`.

    Points are rounded to the working precision before use: round them first where it matters. The
    center ``u0`` is best where the posterior is; nodes are of the :func:`.quadrature.ladder`.
    """
    q = effects_per_unit(model)
    given, origin = _begun(model, data, center, rule)
    answers = in_blocks(model, "values", lambda: evaluate(model, "values"), given, points)
    values, there, lost = zip(*answers, strict=True)
    real = int(np.sum(data.mask(unit_level(model)))) if q else 0
    parts = [there[-1], origin.reference.rows, *origin.reference.groups]
    total = sum(float(np.sum(np.asarray(part, np.float64))) for part in parts)
    return Values(
        log_likelihood=np.concatenate(values, dtype=np.float64).sum(axis=1),
        at_center=total + real * _log_volume(q),
        modes_not_found=np.concatenate(lost, dtype=np.float64),
        units=real,
        coupling=float(origin.coupling),
    )


def unit_log_likelihoods(
    model: ShardModel, data: ShardData, points: np.ndarray, center: np.ndarray, rule: Rule
) -> Iterator[UnitValues]:
    """Evaluate the log likelihood of each unit, a block of the points ``(G, d)`` at a time.

    Nothing is subtracted: differences between units count here, and no sum loses their digits.
    """
    q, n_groups = effects_per_unit(model), [len(mask) for mask in data.groups]
    level = unit_level(model) if q else ROWS
    n_units = len(data.mask(level))
    # What `others` gives after an entry of its own.
    outer = n_groups if level == ROWS else n_groups[:level]
    ends = np.cumsum([n_units, 1 if q else 0, *outer])
    (arrays, _, *nodes), origin = _begun(model, data, center, rule)
    with precision(model.double):
        origin = origin._replace(reference=nothing_subtracted(arrays, origin.u))
    given = (arrays, origin, *nodes)
    for values, _, lost in in_blocks(
        model, "units", lambda: evaluate(model, "units"), given, points
    ):
        units, _, *groups = np.split(np.asarray(values, np.float64), ends[:-1], axis=1)
        yield UnitValues(units + _log_volume(q), tuple(groups), np.asarray(lost, np.float64))


def _begun(
    model: ShardModel, data: ShardData, center: np.ndarray, rule: Rule
) -> tuple[tuple[Any, ...], Center]:
    """Bring a shard and nodes to the device, and find the modes of its units at the center."""
    nodes = padded_rule(effects_per_unit(model), max(rule.n_nodes, 1))
    with precision(model.double):
        arrays, start = on_device((data, center))
        origin = center_at(model, arrays, start, rule.n_modes)
        return (arrays, origin, *on_device(nodes)), origin


def in_blocks(
    model: ShardModel,
    kind: Hashable,
    build: Callable[[], Any],
    given: tuple[Any, ...],
    points: np.ndarray,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Evaluate some points at a time: what is asked, values at the center, units that were lost.

    Whatever code `build` makes is given data, and what else is `given`, and some of the points.
    """
    rows = len(given[0].rows)
    size = max(1, min(_BLOCK, _AT_ONCE // max(rows, 1)))
    for first in range(0, len(points), size):
        block = points[first : first + size]
        # Points that are not asked are there for the shape, which is that of all blocks.
        where = np.resize(block, (size, block.shape[1])), np.int32(len(block))
        with precision(model.double):
            asked = (*given, *on_device(where))
            run = compiled(model, kind, build, *asked)
            values, there, not_found = jax.device_get(run(*asked))
        yield values[: len(block)], there, not_found[: len(block)]


def _log_volume(q: int) -> float:
    """Give what rules leave out of an integral over q dimensions."""
    return 0.5 * q * float(np.log(2 * np.pi))


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

        def movement(mode: tuple[jax.Array, jax.Array]) -> jax.Array:
            effects, factor = mode

            def slope_at(u: jax.Array) -> jax.Array:
                return jax.grad(lambda effects: jnp.sum(density(effects, u)[0]))(effects)

            # Implicit differentiation of slope(mode(u), u) = 0.
            mixed = jax.jacfwd(slope_at)(u)
            return jax.vmap(lambda column: newton.solve(factor, column), 2, 2)(mixed)

        if model.crossed:
            # Hundreds of columns, of which a unit knows a few: `moved` takes one at a time.
            moves = jnp.zeros((*found.effects.shape, 0), u.dtype)
        else:
            moves = lax.map(movement, (found.effects, found.factor))
        reference = Reference(terms.rows, terms.groups)
        shape = found.factor
        variances = newton.variances(factor)
        return Center(u, found.effects, moves, shape, present, reference, between, variances)

    return find_center


def moved(model: ShardModel, data: ShardData, center: Center, u: jax.Array) -> jax.Array:
    """How far modes move from the center to `u`, to first order, ``(M, U, q)``."""
    away = u - center.u
    if not model.crossed:
        return center.slope @ away
    nothing = nothing_subtracted(data, u)

    def along(mode: tuple[jax.Array, jax.Array]) -> jax.Array:
        effects, factor = mode

        def slope_at(u: jax.Array) -> jax.Array:
            def total(effects: jax.Array) -> jax.Array:
                return jnp.sum(unit_density(model, u, effects, data, nothing)[0])

            return jax.grad(total)(effects)

        _, mixed = jax.jvp(slope_at, (center.u,), (away,))
        return newton.solve(factor, mixed)

    return lax.map(along, (center.effects, center.factor))


def evaluate(
    model: ShardModel, what: Literal["values", "units"]
) -> Callable[..., tuple[jax.Array, ...]]:
    """Values at the first `n` points of a block; at the center; how many units were lost there.

    Of points: less those at the center, in chunks of entries; or of units as they are.
    """
    q = effects_per_unit(model)

    def run(
        data: ShardData,
        center: Center,
        nodes: Nodes,
        count: jax.Array,
        points: jax.Array,
        n: jax.Array,
    ) -> tuple[jax.Array, ...]:
        turns = turned.rotations(center.effects.shape[1], q, points.dtype)

        def units_at(u: jax.Array) -> tuple[jax.Array, jax.Array]:
            if not q:
                terms = terms_of(model, u, {}, data)
                return others(model, terms, center.reference), jnp.zeros((), int)
            mask = data.mask(unit_level(model))

            def density(effects: jax.Array) -> tuple[jax.Array, Terms]:
                return unit_density(model, u, effects, data, center.reference)

            def follow(mode: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
                effects, move = mode
                near = newton.ascend(density, effects, _FEW_LOOKS, _NEAR, move)
                # The last step needs no new curvature: exact for Gaussian units.
                arrived = near.decrement < _DECREMENT
                modes = near.effects + jnp.where(arrived[:, None], near.step, 0.0)
                return modes, near.factor, arrived

            moves = moved(model, data, center, u)
            modes, factor, arrived = lax.map(follow, (center.effects, moves))
            if len(modes) > 1:
                # Modes come and go with u: some are not at the center.
                begin = jnp.concatenate([modes, hills.starts(model, data, u)[0]])
                summits = hills.climb(density, begin, _LOOKS_AGAIN, len(modes))
                arrived = jnp.isfinite(summits.log_mass)
            else:
                summits = hills.Hills(modes, factor, jnp.zeros(arrived.shape, u.dtype))
            log_integral = integral(density, summits, nodes, count, turns)
            rest = others(model, density(modes[0])[1], center.reference)
            values = jnp.concatenate([jnp.where(mask, log_integral, 0.0), rest])
            return values, jnp.sum(mask & ~arrived.any(axis=0))

        # The center is one more point, so that the model's code is compiled once.
        with_center = jnp.concatenate([center.u[None], points])
        values, modes_not_found = each(units_at, with_center, n + 1, len(data.rows))
        there = values[1:] if what == "units" else chunks(values[1:] - values[0])
        return there, values[0], modes_not_found[1:]

    return run


def each(function: Callable[[jax.Array], Any], points: jax.Array, n: jax.Array, rows: int) -> Any:
    """Map the first `n` of some points, one after another; in step where a GPU has room."""
    if accelerated():
        return lax.map(function, points, batch_size=max(1, min(_BLOCK, _FILLS // max(rows, 1))))
    shapes = jax.eval_shape(function, points[0])
    nothing = jax.tree.map(lambda leaf: jnp.zeros((len(points), *leaf.shape), leaf.dtype), shapes)

    def add(i: jax.Array, known: Any) -> Any:
        return jax.tree.map(lambda all_, new: all_.at[i].set(new), known, function(points[i]))

    return lax.fori_loop(0, n, add, nothing)


def integral(
    density: newton.Density,
    summits: hills.Hills,
    nodes: Nodes,
    count: jax.Array,
    turns: jax.Array | None,
) -> jax.Array:
    """Log integral of every unit, by the first `count` nodes around each of its modes; ``(U,)``.

    They are turned by :func:`.turned.rotations`.
    """
    share_at = hills.shares(summits)
    log_volume = -hills.log_determinant(summits.factor)

    def around(m: jax.Array) -> jax.Array:
        effects = summits.effects[m]
        offset_of = turned.offsets(summits.factor[m], turns)

        def add(i: jax.Array, total: jax.Array) -> jax.Array:
            place = effects + offset_of(nodes.points[i])
            values, _ = density(place)
            values = jnp.where(jnp.isnan(values), -jnp.inf, values) + share_at(m, place)
            return jnp.logaddexp(total, nodes.log_weights[i] + values)

        nothing = jnp.full(len(effects), -jnp.inf, effects.dtype)
        return lax.fori_loop(0, count, add, nothing) + log_volume[m]

    n_modes = len(summits.effects)
    if n_modes == 1:
        return around(jnp.zeros((), int))
    return jax.scipy.special.logsumexp(lax.map(around, jnp.arange(n_modes)), axis=0)


def chunks(values: jax.Array) -> jax.Array:
    """Sum neighbours, ``(B, n)``, in working precision, few enough to lose nothing."""
    short = -values.shape[1] % _CHUNK
    return jnp.pad(values, ((0, 0), (0, short))).reshape(len(values), -1, _CHUNK).sum(axis=2)
