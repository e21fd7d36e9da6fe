"""Where the rules of nested integrals are placed: around modes of each tier given those outside.

The outermost effects have the modes of their marginal density, inner ones theirs given the outer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..model.model import ShardModel
from ..shard_data import ROWS, ShardData
from . import newton
from .compiling import compiled
from .effects import Reference
from .marginal import ALMOST_ZERO
from .nested import Effects, Nest, Outside, Placed, Weighted, coarse, nest_of
from .target import terms_of
from .tiers import tiers, unpack

_LOOKS = 8  # of one climb near the modes
_ROUNDS = 6  # placings at a point, from modes moved along with it
_ROUNDS_AFAR = 30
_NEAR = 0.03  # squared sds that outer effects move by, from which on rules stay where they are
_AT_CENTER = 1e-6
LOST = 0.5  # squared Newton decrement, or move, beyond which a unit's mode was not found


class Settled(NamedTuple):
    """Rules of all tiers at one u."""

    placed: tuple[Placed, ...]
    lost: jax.Array  # (U_0,) bool; outermost units of which some mode was not found


class Center(NamedTuple):
    """What a shard's evaluations start from."""

    u: jax.Array  # (d,)
    effects: Effects
    slope: Effects  # (U_t, q_t, d) their derivative in u,
    alone: Effects  # and what it is where the tiers outside are held fast
    placed: tuple[Placed, ...]
    reference: Reference
    coupling: jax.Array
    variances: Effects  # (U_t, q_t) given the tiers outside


def near_zero(model: ShardModel, data: ShardData, dtype: Any) -> Effects:
    """Give effects to begin from, where nothing is known."""
    return tuple(
        jnp.full((len(data.mask(tier.level)), tier.q), ALMOST_ZERO, dtype) for tier in tiers(model)
    )


def settle(nest: Nest, begin: Effects, looks: int, most: int, near: float) -> Settled:
    """Place the rules of all tiers, from effects nearby.

    Parameters
    ----------
    nest : Nest
    begin : tuple of (U_t, q_t) arrays
    looks : int
        Of one climb of a tier at most.
    most : int
        Rounds, in each of which all tiers climb, the innermost first.
    near : float
        Squared sds that outer effects moved by in the last round, at most.
    """
    rules = coarse(nest.model)
    last = len(begin) - 1

    def climbed(effects: Effects, deeper: tuple[Placed, ...]) -> tuple[Placed, jax.Array]:
        t = len(effects) - 1
        outer = effects[:t]

        def density(own: jax.Array, outer: Effects = outer) -> tuple[jax.Array, Outside]:
            return nest.density((*outer, own), deeper, rules[t + 1 :])

        summit = newton.ascend(density, effects[t], looks, near)
        arrived = summit.decrement < LOST
        modes = summit.effects + jnp.where(arrived[:, None], summit.step, 0.0)

        def slope_in(r: int) -> jax.Array:
            def pull(its: jax.Array) -> jax.Array:
                there = (*outer[:r], its, *outer[r + 1 :])
                return jax.grad(lambda own: jnp.sum(density(own, there)[0]))(modes)

            def column(axis: jax.Array) -> jax.Array:
                turned = jax.jvp(pull, (outer[r],), (jnp.broadcast_to(axis, outer[r].shape),))[1]
                return newton.solve(summit.factor, turned)

            return jnp.moveaxis(
                lax.map(column, jnp.eye(outer[r].shape[1], dtype=modes.dtype)), 0, 2
            )

        slopes = tuple(slope_in(r) for r in range(t))
        return Placed(outer, modes, slopes, summit.factor), arrived

    def again(state: tuple[jax.Array, tuple[Placed, ...], Any, jax.Array]) -> Any:
        round_, placed, _, _ = state
        effects = nest.places(placed)
        found: tuple[Placed, ...] = ()
        lost, most_moved = jnp.zeros(len(begin[0]), bool), jnp.zeros((), begin[0].dtype)
        for t in reversed(range(len(effects))):
            here, arrived = climbed(effects[: t + 1], found)
            moved = jnp.einsum("uji,uj->ui", here.factor, here.effects - effects[t])
            moved = jnp.where(nest.mask(t), jnp.sum(moved**2, axis=1), 0.0)
            missing = nest.mask(t) & ~arrived
            if t < last:
                missing |= moved > LOST
                most_moved = jnp.maximum(most_moved, jnp.max(moved))
            into = nest.parents(t, 0) if t else jnp.arange(len(begin[0]))
            lost |= jax.ops.segment_max(missing.astype(int), into, len(begin[0])) > 0
            found = (here, *found)
        return round_ + 1, found, lost, most_moved

    def unsettled(state: tuple[jax.Array, tuple[Placed, ...], Any, jax.Array]) -> jax.Array:
        return (state[0] < most) & ~(state[3] < near)

    infinite = jnp.asarray(jnp.inf, begin[0].dtype)
    nowhere = jnp.zeros(len(begin[0]), bool)
    start = (jnp.zeros((), int), _unplaced(begin), nowhere, infinite)
    _, placed, lost, _ = lax.while_loop(unsettled, again, start)
    return Settled(placed, lost)


def _unplaced(effects: Effects) -> tuple[Placed, ...]:
    """Say of effects that they are there, wherever others are."""
    placed = []
    for t, its in enumerate(effects):
        q = its.shape[1]
        slopes = tuple(jnp.zeros((len(its), q, effects[r].shape[1]), its.dtype) for r in range(t))
        factor = jnp.zeros((len(its), q, q), its.dtype)
        placed.append(Placed(effects[:t], its, slopes, factor))
    return tuple(placed)


def followed(nest: Nest, center: Center) -> Settled:
    """Place the rules of all tiers at a point, from modes moved along with it."""
    pairs = zip(center.effects, center.slope, strict=True)
    moved = tuple(then + slope @ (nest.u - center.u) for then, slope in pairs)
    return settle(nest, better(nest, center.effects, moved), _LOOKS, _ROUNDS, _NEAR)


def better(nest: Nest, then: Effects, moved: Effects) -> Effects:
    """Take effects that were guessed where they are better, outermost unit by outermost unit."""
    climbs = nest.joint(moved) >= nest.joint(then)  # not where it is NaN
    chosen = [jnp.where(climbs[:, None], moved[0], then[0])]
    for t in range(1, len(then)):
        chosen.append(jnp.where(climbs[nest.parents(t, 0)][:, None], moved[t], then[t]))
    return tuple(chosen)


# The center


def center_at(model: ShardModel, arrays: ShardData, point: jax.Array) -> Center:
    """Find the modes of all tiers at a point, and how they move with u."""
    find = compiled(model, "nested center", lambda: _find_center(model), arrays, point)
    center: Center = find(arrays, point)
    return center


def _find_center(model: ShardModel) -> Callable[[ShardData, jax.Array], Center]:
    def find_center(data: ShardData, u: jax.Array) -> Center:
        nest = nest_of(model, data, u)
        begin = near_zero(model, data, u.dtype)
        settled = settle(nest, begin, newton.MOST_LOOKS, _ROUNDS_AFAR, _AT_CENTER)
        placed, rules = settled.placed, coarse(model)
        effects = nest.places(placed)
        slopes: Effects = ()
        alone: Effects = ()
        for t, here in enumerate(placed):
            total = _moves_with_u(nest, effects[: t + 1], placed[t + 1 :], rules[t + 1 :], here)
            alone = (*alone, total)
            for r, own in enumerate(here.slopes):
                outer = slopes[r][nest.parents(t, r)]
                total += jnp.einsum("uij,ujd->uid", own, outer)
            slopes = (*slopes, total)
        variances = tuple(newton.variances(here.factor) for here in placed)
        local: dict[str, jax.Array] = {}
        for tier, its in zip(tiers(model), effects, strict=True):
            local |= unpack(tier.sites, its)
        terms = terms_of(model, u, local, data)
        reference = Reference(terms.rows, terms.groups)
        coupling = _coupling(nest, effects)
        return Center(u, effects, slopes, alone, placed, reference, coupling, variances)

    return find_center


def _moves_with_u(
    nest: Nest,
    effects: Effects,
    deeper: tuple[Placed, ...],
    rules: tuple[Weighted, ...],
    here: Placed,
) -> jax.Array:
    """Differentiate in u the modes of the last tier of `effects`, the outer ones held fast."""

    def pull(u: jax.Array) -> jax.Array:
        at_u, outer = replace(nest, u=u), effects[:-1]

        def total(own: jax.Array) -> jax.Array:
            return jnp.sum(at_u.density((*outer, own), deeper, rules)[0])

        return jax.grad(total)(effects[-1])

    def column(axis: jax.Array) -> jax.Array:
        return newton.solve(here.factor, jax.jvp(pull, (nest.u,), (axis,))[1])

    d = len(nest.u)
    return jnp.moveaxis(lax.map(column, jnp.eye(d, dtype=nest.u.dtype)), 0, 2)


def _coupling(nest: Nest, effects: Effects) -> jax.Array:
    """Probe whether units of a tier see each other, and outer groups the effects of inner ones."""
    worst = jnp.zeros((), effects[0].dtype)
    for t, its in enumerate(effects):

        def total(own: jax.Array, t: int = t) -> jax.Array:
            return jnp.sum(nest.joint((*effects[:t], own, *effects[t + 1 :])))

        worst = jnp.maximum(worst, newton.coupling(total, its))

        def outside(own: jax.Array, t: int = t) -> jax.Array:
            parts, _ = nest._terms((*effects[:t], own, *effects[t + 1 :]))
            level, groups = tiers(nest.model)[t].level, parts.groups
            return sum(
                (jnp.sum(group) for group in groups[: None if level == ROWS else level]),
                start=jnp.zeros((), own.dtype),
            )

        seen = jnp.any(jax.grad(outside)(its) != 0) if t else jnp.zeros((), bool)
        worst = jnp.where(seen, jnp.maximum(worst, 1.0), worst)
    return worst
