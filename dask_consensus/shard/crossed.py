"""Gradient and curvature of a shard's log likelihood in the effects of crossed factors.

A row depends on one level of each factor. Its score and its curvature, given the effects of its
group, therefore come row by row (:mod:`..model.crossed`) from a gradient and from one product with
the Hessian for each number that a row looks up, whatever the number of levels. With the effects of
groups integrated out the Hessian is (Louis 1982, JRSS B 44, eq. 3.2)::

    E[second derivative] + Cov[score]

over the effects' posterior, which the nodes of the integral have. The first part has entries where
a row has; the second joins all levels that meet in a group, through as many numbers as the group
has effects: scores are taken to be linear in them, exactly so for Gaussian rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax import lax

from ..model.crossed import Crossed, coordinates
from ..model.model import ShardModel, precision
from ..shard_data import ROWS, ShardData
from . import newton, turned
from .compiling import compiled, on_device
from .effects import (
    effects_per_unit,
    nothing_subtracted,
    of_units,
    others,
    unit_density,
    unit_level,
    unpack,
)
from .hills import log_determinant
from .marginal import ALMOST_ZERO
from .quadrature import Nodes, gradient_ladder, padded_rule
from .target import Terms, rowwise_terms_of, terms_of

_NEAR = 1e-4  # squared decrement at which the modes of groups are close enough
_APART = 1e-5  # relative difference of densities that rounding explains, in single precision too


class Curvature(NamedTuple):
    """A log density, expanded in the ``J`` effects of crossed factors, at each of G points."""

    value: np.ndarray  # (G,)
    gradient: np.ndarray  # (G, J)
    precision: np.ndarray  # (G, J, J) minus the Hessian


class _OfRows(NamedTuple):
    """What each row says of the C numbers that it looks up; and what groups with q effects add."""

    value: jax.Array  # log likelihood of all of them
    apart: jax.Array  # what their density differs by where they look nothing up beforehand
    score: jax.Array  # (R, C)
    precision: jax.Array  # (R, C, C) minus the mean second derivative
    loadings: jax.Array  # (R, C, q) whose products, within a group, are the covariance of scores


def curvature(model: ShardModel, data: ShardData, points: np.ndarray) -> Curvature:
    """Expand a shard's log likelihood in the effects of crossed factors, at points ``(G, d)``.

    Raises
    ------
    ValueError
        If rows have levels that a factor has not, or do not look its effects up by them alone.
    """
    _check_levels(model, data)
    q = effects_per_unit(model)
    ladder = gradient_ladder(q)
    nodes = padded_rule(q, ladder[min(1, len(ladder) - 1)])
    assembled = [_assemble(model, data, rows) for rows in _of_rows(model, data, points, nodes)]
    return Curvature(*map(np.array, zip(*assembled, strict=True)))


def prior_curvature(model: ShardModel, data: ShardData, points: np.ndarray) -> Curvature:
    """Expand the log prior, those of effects among it, likewise; any data will do."""
    effects, _ = coordinates(model)

    def at_point(data: ShardData, u: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        shapes = model.local_shapes(*data.size)
        local = {name: jnp.zeros(shape, u.dtype) for name, shape in shapes.items()}

        def log_prior(b: jax.Array) -> jax.Array:
            return terms_of(model, u.at[effects].set(b), local, data).prior

        value, gradient = jax.value_and_grad(log_prior)(u[effects])
        return value, gradient, -jax.hessian(log_prior)(u[effects])

    with precision(model.double):
        given = on_device((data, points[0]))
        run = compiled(model, "crossed prior", lambda: at_point, *given)
        answers = [jax.device_get(run(given[0], on_device(u))) for u in points]
    return Curvature(*map(np.array, zip(*answers, strict=True)))


def _of_rows(
    model: ShardModel, data: ShardData, points: np.ndarray, nodes: tuple[Nodes, np.int32]
) -> Any:
    """Give what rows say, point by point, each from the modes of the one before."""
    q = effects_per_unit(model)
    units = len(data.mask(unit_level(model))) if q else 0
    with precision(model.double):
        fixed = on_device((data, *nodes))
        begin = jnp.full((units, q), ALMOST_ZERO, jnp.result_type(float))
        for u in points:
            asked = (*fixed, begin, on_device(u))
            run = compiled(model, "crossed", lambda: _at_point(model), *asked)
            rows, modes = run(*asked)
            begin = jnp.where(jnp.isfinite(modes), modes, ALMOST_ZERO)
            told: _OfRows = jax.device_get(rows)
            if told.apart > _APART * (1 + abs(told.value)):
                raise _not_looked_up(model)
            yield told


def _at_point(model: ShardModel) -> Callable[..., tuple[_OfRows, jax.Array]]:
    """Score and curvature of rows, and modes of groups, at one point."""
    q = effects_per_unit(model)

    def at_point(
        data: ShardData, nodes: Nodes, count: jax.Array, begin: jax.Array, u: jax.Array
    ) -> tuple[_OfRows, jax.Array]:
        reference = nothing_subtracted(data, u)
        looked_up = _pack(model.crossed, model.unravel(u), data)

        def curved(total: Callable[[jax.Array], jax.Array]) -> tuple[jax.Array, jax.Array]:
            """Score and minus second derivative of each row, which sees no entry but its own."""
            score, product = jax.linearize(jax.grad(total), looked_up)
            unit = jnp.eye(looked_up.shape[1], dtype=u.dtype)
            columns = [product(jnp.broadcast_to(axis, looked_up.shape)) for axis in unit]
            real = data.rows[:, None]
            bent = jnp.where(real[:, :, None], -jnp.stack(columns, axis=2), 0.0)
            return jnp.where(real, score, 0.0), bent

        if not q:

            def all_rows(rows: jax.Array) -> jax.Array:
                terms = rowwise_terms_of(model, u, _unpack(model.crossed, rows), {}, data)
                return jnp.sum(terms.rows) + sum((jnp.sum(g) for g in terms.groups), start=0.0)

            score, bent = curved(all_rows)
            none = jnp.zeros((*score.shape, 0), u.dtype)
            value = all_rows(looked_up)
            apart = jnp.abs(jnp.sum(others(model, terms_of(model, u, {}, data), reference)) - value)
            return _OfRows(value, apart, score, bent, none), begin

        mask, level = data.mask(unit_level(model)), unit_level(model)
        codes = {level: data.arguments[name] for name, level in model.codes.items()}
        unit_of = jnp.arange(len(data.rows)) if level == ROWS else codes[level]

        def density(effects: jax.Array) -> tuple[jax.Array, Terms]:
            return unit_density(model, u, effects, data, reference)

        def at_rows(rows: jax.Array, effects: jax.Array) -> jax.Array:
            local, looked_up = unpack(model, effects), _unpack(model.crossed, rows)
            terms = rowwise_terms_of(model, u, looked_up, local, data)
            return jnp.sum(of_units(model, terms, effects, data, reference))

        there = newton.ascend(density, begin, newton.MOST_LOOKS, _NEAR)
        modes = there.effects + jnp.where((there.decrement < 0.5)[:, None], there.step, 0.0)

        turns = turned.rotations(modes.shape[0], modes.shape[1], u.dtype)
        offset_of = turned.offsets(there.factor, turns)

        def place(i: jax.Array) -> jax.Array:
            return modes + offset_of(nodes.points[i])

        log_mass = lax.map(
            lambda i: nodes.log_weights[i] + density(place(i))[0],
            jnp.arange(len(nodes.log_weights)),
        )
        counts = (jnp.arange(len(log_mass)) < count)[:, None]
        log_mass = jnp.where(counts, log_mass, -jnp.inf)
        log_integral = jax.nn.logsumexp(log_mass, axis=0) - log_determinant(there.factor)
        rest = others(model, density(modes)[1], reference)
        value = jnp.sum(jnp.where(mask, log_integral, 0.0)) + jnp.sum(rest)
        share = jax.nn.softmax(log_mass, axis=0)
        share = jnp.where(mask & jnp.isfinite(share), share, 0.0)

        def add(i: jax.Array, sums: Any) -> Any:
            score, bent = curved(lambda rows: at_rows(rows, place(i)))
            of_row = share[i][unit_of][:, None]
            z = jnp.broadcast_to(nodes.points[i], modes.shape)
            zz = share[i][:, None, None] * z[:, :, None] * z[:, None, :]
            products = of_row[:, :, None] * score[:, :, None] * z[unit_of][:, None, :]
            new = (of_row * score, of_row[:, :, None] * bent, products, share[i][:, None] * z, zz)
            return jax.tree.map(jnp.add, sums, new)

        rows, looks = looked_up.shape
        zeros = [(rows, looks), (rows, looks, looks), (rows, looks, q), modes.shape]
        start = tuple(jnp.zeros(shape, u.dtype) for shape in (*zeros, (len(modes), q, q)))
        score, bent, products, middle, square = lax.fori_loop(0, count, add, start)
        spread = square - middle[:, :, None] * middle[:, None, :]
        # One node, or none: scores do not vary.
        tiny = jnp.finfo(u.dtype).eps * jnp.eye(q, dtype=u.dtype)
        factor = newton.cholesky(spread + tiny)
        products = products - score[:, :, None] * middle[unit_of][:, None, :]
        loadings = jnp.stack(
            [newton.forward_solve(factor[unit_of], products[:, c]) for c in range(looks)], axis=1
        )
        apart = jnp.abs(jnp.sum(density(modes)[0]) - at_rows(looked_up, modes))
        return _OfRows(value, apart, score, bent, loadings), modes

    return at_point


def _check_levels(model: ShardModel, data: ShardData) -> None:
    for one in model.crossed:
        codes = np.asarray(data.arguments[one.argument])
        low, high = codes.min(), codes.max()
        if low < 0 or high >= one.levels:
            raise ValueError(
                f"argument {one.argument!r} holds levels from {low} to {high}, but site "
                f"{one.site!r} has {one.levels:,}, from 0 to {one.levels - 1}: number the levels "
                "from 0, or make its plate larger"
            )


def _not_looked_up(model: ShardModel) -> ValueError:
    sites = ", ".join(f"{one.site} by {one.argument}" for one in model.crossed)
    return ValueError(
        f"rows do not look crossed effects up by their column alone ({sites}): some level is "
        "treated otherwise than others, which the plan's sample did not show. Write it so that "
        "rows depend on the column through the effects only, or use method='nuts'"
    )


def _pack(factors: tuple[Crossed, ...], sites: dict[str, jax.Array], data: ShardData) -> jax.Array:
    """Join what each row looks up, ``(R, C)``."""
    parts = []
    for one in factors:
        rows = one.looked_up(sites[one.site], data.arguments[one.argument])
        parts.append(jnp.moveaxis(rows, one.axis, 0).reshape(len(data.rows), one.effects))
    return jnp.concatenate(parts, axis=1)


def _unpack(factors: tuple[Crossed, ...], rows: jax.Array) -> dict[str, jax.Array]:
    """Split what rows look up into sites; the inverse of :func:`_pack`."""
    sites, begin = {}, 0
    for one in factors:
        part = rows[:, begin : begin + one.effects].reshape(len(rows), *one.entry)
        sites[one.site] = jnp.moveaxis(part, 0, one.axis)
        begin += one.effects
    return sites


def _assemble(
    model: ShardModel, data: ShardData, rows: _OfRows
) -> tuple[float, np.ndarray, np.ndarray]:
    """Add up rows by the levels they belong to."""
    columns, size = columns_of(model, data)
    gradient = np.bincount(columns.ravel(), rows.score.ravel(), size)
    pairs = (columns[:, :, None] * size + columns[:, None, :]).ravel()
    precision = np.bincount(pairs, rows.precision.ravel(), size * size).reshape(size, size)
    q = rows.loadings.shape[2]
    if q:
        level = unit_level(model)
        codes = {level: data.arguments[name] for name, level in model.codes.items()}
        unit = np.arange(len(columns)) if level == ROWS else np.asarray(codes[level])
        unit = unit[:, None, None] * q + np.arange(q)
        place = np.broadcast_to(columns[:, :, None], rows.loadings.shape)
        unit = np.broadcast_to(unit, rows.loadings.shape)
        n_units = len(data.mask(level)) * q
        entries = (rows.loadings.ravel(), (unit.ravel(), place.ravel()))
        joined = scipy.sparse.csr_array(entries, shape=(n_units, size))
        precision -= (joined.T @ joined).toarray()
    return float(rows.value), gradient, precision


def columns_of(model: ShardModel, data: ShardData) -> tuple[np.ndarray, int]:
    """Say which of the ``J`` effects each row looks up, ``(R, C)``; and J."""
    columns, begin = [], 0
    for one in model.crossed:
        codes = np.asarray(data.arguments[one.argument])
        columns.append(begin + codes[:, None] * one.effects + np.arange(one.effects))
        begin += one.size
    return np.concatenate(columns, axis=1), begin
