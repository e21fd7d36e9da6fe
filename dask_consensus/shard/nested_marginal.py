"""What a shard says where effects of one level lie within those of another.

Values, gradients and modes, as :mod:`.marginal`, :mod:`.score` and :mod:`.descent` give them on one
level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ..model.model import ShardModel, precision
from ..shard_data import ShardData
from . import newton
from .compiling import on_device
from .descent import Descents, descents
from .effects import nothing_subtracted
from .marginal import ALMOST_ZERO, Modes, UnitValues, Values, chunks, each, in_blocks
from .nested import (
    Effects,
    Weighted,
    gradient_nodes,
    gradient_rules,
    nest_of,
    value_nodes,
    value_numbers,
    value_rules,
)
from .nested_places import Center, center_at, followed, near_zero, settle
from .quadrature import Nodes, Rule, padded_rule
from .score import PointFunction, Score, at_points
from .tiers import tiers, unpack

_ROUNDS = 30  # placings at a point that is asked alone
_CLOSE = 1e-4  # for gradients


# The points


def evaluate(model: ShardModel, what: Literal["values", "units"]) -> Callable[..., Any]:
    """As :func:`.marginal.evaluate`, with rules of all tiers."""

    def run(
        data: ShardData,
        center: Center,
        nodes: tuple[Nodes, ...],
        counts: tuple[jax.Array, ...],
        points: jax.Array,
        n: jax.Array,
    ) -> tuple[jax.Array, ...]:
        rules = tuple(map(Weighted, nodes, counts))
        at_center = nest_of(model, data, center.u, center.reference)

        def units_at(u: jax.Array) -> tuple[jax.Array, jax.Array]:
            nest = replace(at_center, u=u)
            settled = followed(nest, center)
            log_integral, outside = nest.integral((), settled.placed, rules)
            mask = nest.mask(0)
            values = jnp.concatenate([jnp.where(mask, log_integral, 0.0), nest.rest(outside)])
            return values, jnp.sum(mask & settled.lost)

        with_center = jnp.concatenate([center.u[None], points])
        values, modes_not_found = each(units_at, with_center, n + 1, len(data.rows))
        there = values[1:] if what == "units" else chunks(values[1:] - values[0])
        return there, values[0], modes_not_found[1:]

    return run


def score_at(model: ShardModel, position: int) -> PointFunction:
    """Value, gradient and modes at one point, by rules at a place of the gradient ladders.

    Nodes stay where they are while the gradient is taken: each then counts by its share of the
    integral, which is Fisher's identity (Louis 1982, eq. 3.1) on every tier.
    """
    rules = gradient_rules(model, position)

    def at_point(
        data: ShardData, weight: jax.Array, _: Any, __: Any, begin: Effects, u: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], Effects]:
        total, modes = _log_density(model, rules, data, weight, begin, u)
        return jax.value_and_grad(total)(u), modes

    return at_point


def height_at(model: ShardModel, position: int) -> PointFunction:
    """Value and modes at one point, by rules at a place of the ladders of values."""
    rules = value_rules(model, position)

    def at_point(
        data: ShardData, weight: jax.Array, _: Any, __: Any, begin: Effects, u: jax.Array
    ) -> tuple[tuple[jax.Array], Effects]:
        total, modes = _log_density(model, rules, data, weight, begin, u)
        return (total(u),), modes

    return at_point


def _log_density(
    model: ShardModel,
    rules: tuple[Weighted, ...],
    data: ShardData,
    weight: jax.Array,
    begin: Effects,
    u: jax.Array,
) -> tuple[Callable[[jax.Array], jax.Array], Effects]:
    """Log density of a shard near `u`, as a function with derivatives; and the modes at `u`."""
    nest = nest_of(model, data, u)
    placed = settle(nest, begin, newton.MOST_LOOKS, _ROUNDS, _CLOSE).placed
    modes = tuple(jnp.where(jnp.isfinite(its), its, ALMOST_ZERO) for its in nest.places(placed))

    def total(u: jax.Array) -> jax.Array:
        near = replace(nest, u=u, frugal=True)
        log_integral, outside = near.integral((), placed, rules)
        units = jnp.sum(jnp.where(nest.mask(0), log_integral, 0.0))
        return weight * outside.prior + units + jnp.sum(near.rest(outside))

    return total, modes


# What is asked of a shard


def log_likelihoods(
    model: ShardModel, data: ShardData, points: np.ndarray, center: np.ndarray, rule: Rule
) -> Values:
    """Evaluate as :func:`.marginal.log_likelihoods`; nodes are of :func:`.nested.value_nodes`."""
    given = _begun(model, data, center, rule)
    answers = in_blocks(model, "nested values", lambda: evaluate(model, "values"), given, points)
    values, there, lost = zip(*answers, strict=True)
    origin = given[1]
    parts = [there[-1], origin.reference.rows, *origin.reference.groups]
    return Values(
        log_likelihood=np.concatenate(values, dtype=np.float64).sum(axis=1),
        at_center=sum(float(np.sum(np.asarray(part, np.float64))) for part in parts),
        modes_not_found=np.concatenate(lost, dtype=np.float64),
        units=int(np.sum(data.mask(tiers(model)[0].level))),
        coupling=float(origin.coupling),
    )


def unit_log_likelihoods(
    model: ShardModel, data: ShardData, points: np.ndarray, center: np.ndarray, rule: Rule
) -> Iterator[UnitValues]:
    """Evaluate as :func:`.marginal.unit_log_likelihoods`; units are the outermost."""
    arrays, origin, *nodes = _begun(model, data, center, rule)
    level = tiers(model)[0].level
    sizes = [len(origin.effects[0]), 1, *(len(mask) for mask in data.groups[:level])]
    with precision(model.double):
        origin = origin._replace(reference=nothing_subtracted(arrays, origin.u))
    given = (arrays, origin, *nodes)
    for values, _, lost in in_blocks(
        model, "nested units", lambda: evaluate(model, "units"), given, points
    ):
        parts = np.split(np.asarray(values, np.float64), np.cumsum(sizes)[:-1], axis=1)
        yield UnitValues(parts[0], tuple(parts[2:]), np.asarray(lost, np.float64))


def score(
    model: ShardModel, data: ShardData, points: np.ndarray, weight: float, rule: Rule
) -> Score:
    """Evaluate as :func:`.score.score`; nodes are of :func:`.nested.gradient_nodes`."""
    position = gradient_nodes(model).index(rule.n_nodes)
    answers = _at_points(model, "score", score_at, data, points, weight, position)
    return Score(*answers)


def heights(
    model: ShardModel, data: ShardData, points: np.ndarray, weight: float, rule: Rule
) -> np.ndarray:
    """Evaluate as :func:`.score.heights`; nodes are of :func:`.nested.value_nodes`."""
    position = value_nodes(model).index(rule.n_nodes)
    return _at_points(model, "heights", height_at, data, points, weight, position)[0]


def descend(
    model: ShardModel,
    data: ShardData,
    starts: np.ndarray,
    scale: np.ndarray,
    n_nodes: int,
    most: int,
) -> Descents:
    """Search as :func:`.descent.descend`; nodes are of :func:`.nested.gradient_nodes`."""
    position = gradient_nodes(model).index(n_nodes)

    def nowhere(data: ShardData, dtype: Any) -> Effects:
        return near_zero(model, data, dtype)

    at_point, kind = score_at(model, position), ("nested descent", position)
    return descents(model, kind, at_point, nowhere, _NO_NODES, data, starts, scale, most)


def modes_at(model: ShardModel, data: ShardData, u: np.ndarray) -> Modes:
    """Find the modes of all local sites given `u`."""
    with precision(model.x64):
        arrays, point = on_device((data, u))
        origin = center_at(model, arrays, point)
        modes: dict[str, Any] = {}
        variances: dict[str, Any] = {}
        for tier, its, spread in zip(tiers(model), origin.effects, origin.variances, strict=True):
            modes |= unpack(tier.sites, its)
            variances |= unpack(tier.sites, spread)
        return jax.device_get(Modes(modes, variances))


_NO_NODES = (np.zeros(0), np.int32(0))  # rules that derivatives go through are part of the code


def _begun(model: ShardModel, data: ShardData, center: np.ndarray, rule: Rule) -> tuple[Any, ...]:
    """Bring a shard and nodes of all tiers to the device, and find the modes at the center."""
    position = value_nodes(model).index(rule.n_nodes)
    padded = [padded_rule(q, n) for q, n in value_numbers(model)[position]]
    nodes, counts = zip(*padded, strict=True)
    with precision(model.double):
        arrays, start = on_device((data, center))
        return (arrays, center_at(model, arrays, start), *on_device((nodes, counts)))


def _at_points(
    model: ShardModel,
    kind: str,
    build: Callable[[ShardModel, int], PointFunction],
    data: ShardData,
    points: np.ndarray,
    weight: float,
    position: int,
) -> list[np.ndarray]:
    with precision(model.double):
        begin = near_zero(model, data, float)
    name, at_point = ("nested " + kind, position), build(model, position)
    return at_points(model, name, at_point, data, points, weight, _NO_NODES, begin)
