"""Effects on several levels, integrated out one level inside the other.

The density of an outer group given ``u`` is an integral over its own effects of a product over its
inner groups, each an integral over theirs:

    l(y_g | u) = integral p(b_g | u) prod_c l(y_c | b_g, u) db_g
    l(y_c | b_g, u) = integral p(b_c | b_g, u) p(y_c | b_c, b_g, u) db_c

A *tier* is a level with effects, the outermost first. The rule of an inner tier is *placed* once at
a ``u``: around the modes of its units at the outer tiers' modes, whence it moves along with the
outer effects as the modes begin to (by implicit differentiation), with the curvature that it has.
For Gaussian rows that is exact, and else what finer rules correct. What is left, a function of the
outer effects with the inner ones integrated out, is smooth, and Newton's method finds its modes as
it does on one level (:mod:`.newton`): those of the marginal density. That of all effects together
would do for few inner groups alone; with hundreds of skewed ones in an outer group it is several of
its sds away. Inner rules are placed anew where the outer ones went, until these move no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..model.model import ShardModel, precision
from ..shard_data import ROWS, ShardData
from . import hills, newton
from .compiling import compiled, on_device
from .descent import Descents, descents
from .effects import Reference, nothing_subtracted
from .marginal import ALMOST_ZERO, Modes, UnitValues, Values, chunks, each, in_blocks
from .quadrature import GRID_UP_TO, Nodes, gradient_ladder, ladder, padded_rule, rule
from .score import PointFunction, Score, at_points
from .target import terms_of
from .tiers import parents, tiers, unpack

_LOOKS = 8  # of one climb near the modes
_ROUNDS = 6  # placings at a point, from modes moved along with it
_ROUNDS_AFAR = 30
_NEAR = 0.03  # squared sds that outer effects move by, from which on rules stay where they are
_CLOSE = 1e-4  # for gradients
_AT_CENTER = 1e-6
_LOST = 0.5  # squared Newton decrement, or move, beyond which a unit's mode was not found

Effects = tuple[jax.Array, ...]
"""Of each tier, outermost first: ``(U_t, q_t)``."""


class Weighted(NamedTuple):
    """Nodes of a tier's rule, and how many of them count."""

    nodes: Nodes
    count: Any  # an int where derivatives are taken: loops of unknown length have none


class Outside(NamedTuple):
    """What belongs to no unit of the innermost tier."""

    prior: jax.Array
    groups: tuple[jax.Array, ...]  # (G_l,) of each level, less the reference's


class Placed(NamedTuple):
    """Where the rule of a tier is, as a function of the effects of the tiers outside."""

    around: Effects  # effects of the tiers outside at which
    effects: jax.Array  # (U_t, q_t) the modes were these,
    slopes: Effects  # (U_t, q_t, q_r) which move so with each of the former
    factor: jax.Array  # (U_t, q_t, q_t) Cholesky factor of minus the Hessian


class Settled(NamedTuple):
    """Rules of all tiers at one u."""

    placed: tuple[Placed, ...]
    lost: jax.Array  # (U_0,) bool; outermost units of which some mode was not found


class Center(NamedTuple):
    """What a shard's evaluations start from."""

    u: jax.Array  # (d,)
    effects: Effects
    slope: Effects  # (U_t, q_t, d) their derivative in u
    reference: Reference
    coupling: jax.Array
    variances: Effects  # (U_t, q_t) given the tiers outside


@dataclass(frozen=True)
class Nest:
    """The density of a shard at one u, by tiers."""

    model: ShardModel
    data: ShardData
    u: jax.Array
    reference: Reference
    within: Mapping[tuple[int, int], jax.Array]  # two levels -> of the inner's entries, the outer
    frugal: bool = False  # of memory, where derivatives are taken through many nodes

    def density(
        self, effects: Effects, placed: tuple[Placed, ...], rules: tuple[Weighted, ...]
    ) -> tuple[jax.Array, Outside]:
        """Log density ``(U_t,)`` of the units of the last tier whose effects are given.

        Deeper ones are integrated out by rules, which are `placed`.
        """
        t = len(effects) - 1
        if placed:
            log_integral, outside = self.integral(effects, placed, rules)
            inner = jnp.where(self.mask(t + 1), log_integral, 0.0)
            units = len(effects[t])
            value = jax.ops.segment_sum(inner, self.parents(t + 1, t), units)
            value += self._own(t, None, outside.groups)
        else:
            outside, rows = self._terms(effects)
            value = self._own(t, rows, outside.groups)
        padding = -0.5 * jnp.sum(effects[t] ** 2, axis=1)
        return jnp.where(self.mask(t), value, padding), outside

    def integral(
        self, outer: Effects, placed: tuple[Placed, ...], rules: tuple[Weighted, ...]
    ) -> tuple[jax.Array, Outside]:
        """Log integral over the effects of each unit of the tier within `outer`, ``(U_t,)``."""
        here, weighted = placed[0], rules[0]
        place = self.place(here, outer)
        nodes = [jnp.asarray(part, place.dtype) for part in weighted.nodes]

        def at(point: jax.Array) -> tuple[jax.Array, Outside]:
            offset = newton.back_solve(here.factor, jnp.broadcast_to(point, place.shape))
            return self.density((*outer, place + offset), placed[1:], rules[1:])

        if self.frugal and len(placed) == 1:
            at = jax.checkpoint(at)

        def add(i: jax.Array, state: tuple[jax.Array, Outside]) -> tuple[jax.Array, Outside]:
            values, outside = at(nodes[0][i])
            values = jnp.where(jnp.isnan(values), -jnp.inf, values)
            return jnp.logaddexp(state[0], nodes[1][i] + values), outside

        nothing = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
            jax.eval_shape(at, nodes[0][0])[1],
        )
        nowhere = jnp.full(len(place), -jnp.inf, place.dtype)
        total, outside = lax.fori_loop(0, weighted.count, add, (nowhere, nothing))
        volume = 0.5 * place.shape[1] * float(np.log(2 * np.pi))
        return total + volume - hills.log_determinant(here.factor), outside

    def place(self, placed: Placed, outer: Effects) -> jax.Array:
        """Give the modes of a tier's units, ``(U_t, q_t)``, at effects of the tiers outside."""
        t = len(outer)
        moved = placed.effects
        for r, (now, then, slope) in enumerate(
            zip(outer, placed.around, placed.slopes, strict=True)
        ):
            away = (now - then)[self.parents(t, r)]
            moved = moved + jnp.einsum("uij,uj->ui", slope, away)
        return moved

    def places(self, placed: tuple[Placed, ...]) -> Effects:
        """Give the modes of all tiers."""
        effects: Effects = ()
        for here in placed:
            effects = (*effects, self.place(here, effects))
        return effects

    def joint(self, effects: Effects) -> jax.Array:
        """Log density of all effects, by the outermost units they are in; ``(U_0,)``."""
        outside, rows = self._terms(effects)
        total = self._own(0, None, outside.groups)
        for t in range(1, len(effects)):
            # Of the innermost tier with its rows.
            own = self._own(t, rows if t == len(effects) - 1 else None, outside.groups)
            own = jnp.where(self.mask(t), own, 0.0)
            total += jax.ops.segment_sum(own, self.parents(t, 0), len(effects[0]))
        return jnp.where(self.mask(0), total, 0.0)

    def rest(self, outside: Outside) -> jax.Array:
        """Collect what belongs to no unit of any tier."""
        level = tiers(self.model)[0].level
        return jnp.concatenate([jnp.zeros(1, self.u.dtype), *outside.groups[:level]])

    def _terms(self, effects: Effects) -> tuple[Outside, jax.Array]:
        local: dict[str, jax.Array] = {}
        for tier, its in zip(tiers(self.model), effects, strict=True):
            local |= unpack(tier.sites, its)
        terms = terms_of(self.model, self.u, local, self.data)
        pairs = zip(terms.groups, self.reference.groups, strict=True)
        groups = tuple(now - then for now, then in pairs)
        return Outside(terms.prior, groups), terms.rows - self.reference.rows

    def _own(self, t: int, rows: jax.Array | None, groups: tuple[jax.Array, ...]) -> jax.Array:
        """Sum up what belongs to each unit of a tier, and to none of a deeper one."""
        all_tiers, codes = tiers(self.model), self.model.codes.values()
        level = all_tiers[t].level
        if level == ROWS:
            assert rows is not None
            return rows
        deeper = all_tiers[t + 1].level if t + 1 < len(all_tiers) else ROWS
        total = groups[level]
        for inner in range(level + 1, len(groups) if deeper == ROWS else deeper):
            if inner in codes:
                into = self.within[inner, level]
                total += jax.ops.segment_sum(groups[inner], into, len(total))
        if rows is not None:
            into = self.within[ROWS, level]
            total += jax.ops.segment_sum(rows, into, len(total), indices_are_sorted=level == 0)
        return total

    def mask(self, t: int) -> jax.Array:
        """Which units of a tier are real, ``(U_t,)``."""
        mask: jax.Array = self.data.mask(tiers(self.model)[t].level)
        return mask

    def parents(self, inner: int, outer: int) -> jax.Array:
        """Give the unit of an outer tier that each unit of an inner one lies in."""
        levels = [tier.level for tier in tiers(self.model)]
        return self.within[levels[inner], levels[outer]]


def nest_of(
    model: ShardModel, data: ShardData, u: jax.Array, reference: Reference | None = None
) -> Nest:
    """Make the density of a shard at `u`, outside of loops: which group lies in which is found."""
    codes = set(model.codes.values())
    outer = [tier.level for tier in tiers(model) if tier.level != ROWS]
    within = {
        (inner, level): parents(model, data, inner, level)
        for level in outer
        for inner in (ROWS, *codes)
        if inner == ROWS or inner > level
    }
    return Nest(model, data, u, reference or nothing_subtracted(data, u), within)


# Where rules are placed


# Nodes an axis of tiers that others lie within, and of the innermost, place by place. What many
# inner groups say of an outer one is nearer normal than what rows say of a group; and two nodes of
# the innermost would leave gradients off by sds where rows are binary.
_OUTER = {1: (1, 3, 4, 5, 7, 11, 21), 2: (1, 3, 4, 5, 9), 3: (1, 2, 3, 5)}
_INNER = {1: (1, 5, 7, 9, 15, 21, 41), 2: (1, 5, 7, 9, 15), 3: (1, 3, 5, 9)}
_OUTER_GRADIENT = {1: (2, 3, 7, 15), 2: (2, 3, 5, 9), 3: (2, 3, 5)}
_INNER_GRADIENT = {1: (5, 9, 15, 41), 2: (3, 5, 9, 15), 3: (3, 5, 9)}


def coarse(model: ShardModel) -> tuple[Weighted, ...]:
    """Rules of few nodes, exact for Gaussian effects, by which modes of outer tiers are found."""
    return _rules((tier.q, gradient_ladder(tier.q)[0]) for tier in tiers(model))


def value_rules(model: ShardModel, position: int) -> tuple[Weighted, ...]:
    """Rules of each tier at a place of the ladders of values, of lengths known when compiled."""
    return _rules(_value_numbers(model)[position])


def gradient_rules(model: ShardModel, position: int) -> tuple[Weighted, ...]:
    """Rules of each tier at a place of the ladders of gradients."""
    return _rules(_gradient_numbers(model)[position])


def value_nodes(model: ShardModel) -> tuple[int, ...]:
    """Give the number of nodes of all tiers together, at each place of the ladders of values."""
    return tuple(_together(place) for place in _value_numbers(model))


def gradient_nodes(model: ShardModel) -> tuple[int, ...]:
    """Give the number of nodes of all tiers together, at each place of those of gradients."""
    return tuple(_together(place) for place in _gradient_numbers(model))


def _value_numbers(model: ShardModel) -> list[tuple[tuple[int, int], ...]]:
    return _places(model, lambda q: _OUTER.get(q, ladder(q)), lambda q: _INNER.get(q, ladder(q)))


def _gradient_numbers(model: ShardModel) -> list[tuple[tuple[int, int], ...]]:
    return _places(
        model,
        lambda q: _OUTER_GRADIENT.get(q, gradient_ladder(q)),
        lambda q: _INNER_GRADIENT.get(q, gradient_ladder(q)),
    )


def _places(
    model: ShardModel,
    outer: Callable[[int], tuple[int, ...]],
    innermost: Callable[[int], tuple[int, ...]],
) -> list[tuple[tuple[int, int], ...]]:
    """Effects and nodes of each tier, place by place; a ladder that ends stays at its last."""
    all_tiers = tiers(model)
    ladders = [outer(tier.q) for tier in all_tiers[:-1]] + [innermost(all_tiers[-1].q)]
    return [
        tuple(
            (tier.q, numbers[min(position, len(numbers) - 1)])
            for tier, numbers in zip(all_tiers, ladders, strict=True)
        )
        for position in range(max(map(len, ladders)))
    ]


def _rules(numbers: Iterable[tuple[int, int]]) -> tuple[Weighted, ...]:
    made = [rule(q, n) for q, n in numbers]
    return tuple(Weighted(nodes, len(nodes.log_weights)) for nodes in made)


def _together(place: Iterable[tuple[int, int]]) -> int:
    return math.prod(n**q if q <= GRID_UP_TO else n for q, n in place)


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
        arrived = summit.decrement < _LOST
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
                missing |= moved > _LOST
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


def better(nest: Nest, then: Effects, moved: Effects) -> Effects:
    """Take effects that were guessed where they are better, outermost unit by outermost unit."""
    climbs = nest.joint(moved) >= nest.joint(then)  # not where it is NaN
    chosen = [jnp.where(climbs[:, None], moved[0], then[0])]
    for t in range(1, len(then)):
        chosen.append(jnp.where(climbs[nest.parents(t, 0)][:, None], moved[t], then[t]))
    return tuple(chosen)


# The center and the points


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
        for t, here in enumerate(placed):
            total = _moves_with_u(nest, effects[: t + 1], placed[t + 1 :], rules[t + 1 :], here)
            for r, own in enumerate(here.slopes):
                outer = slopes[r][nest.parents(t, r)]
                total += jnp.einsum("uij,ujd->uid", own, outer)
            slopes = (*slopes, total)
        variances = []
        for here in placed:
            q = here.effects.shape[1]
            axes = [jnp.broadcast_to(row, here.effects.shape) for row in jnp.eye(q, dtype=u.dtype)]
            columns = [newton.forward_solve(here.factor, axis) for axis in axes]
            variances.append(jnp.stack([jnp.sum(c**2, axis=1) for c in columns], axis=1))
        local: dict[str, jax.Array] = {}
        for tier, its in zip(tiers(model), effects, strict=True):
            local |= unpack(tier.sites, its)
        terms = terms_of(model, u, local, data)
        reference = Reference(terms.rows, terms.groups)
        return Center(u, effects, slopes, reference, _coupling(nest, effects), tuple(variances))

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
            pairs = zip(center.effects, center.slope, strict=True)
            moved = tuple(then + slope @ (u - center.u) for then, slope in pairs)
            begin = better(nest, center.effects, moved)
            settled = settle(nest, begin, _LOOKS, _ROUNDS, _NEAR)
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
    placed = settle(nest, begin, newton.MOST_LOOKS, _ROUNDS_AFAR, _CLOSE).placed
    modes = tuple(jnp.where(jnp.isfinite(its), its, ALMOST_ZERO) for its in nest.places(placed))

    def total(u: jax.Array) -> jax.Array:
        near = replace(nest, u=u, frugal=True)
        log_integral, outside = near.integral((), placed, rules)
        units = jnp.sum(jnp.where(nest.mask(0), log_integral, 0.0))
        return weight * outside.prior + units + jnp.sum(near.rest(outside))

    return total, modes


# What is asked of a shard


def log_likelihoods(
    model: ShardModel, data: ShardData, points: np.ndarray, center: np.ndarray, position: int
) -> Values:
    """Evaluate as :func:`.marginal.log_likelihoods`, by rules at a place of the ladders."""
    given = _begun(model, data, center, position)
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
    model: ShardModel, data: ShardData, points: np.ndarray, center: np.ndarray, position: int
) -> Iterator[UnitValues]:
    """Evaluate as :func:`.marginal.unit_log_likelihoods`; units are the outermost."""
    arrays, origin, *nodes = _begun(model, data, center, position)
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
    model: ShardModel, data: ShardData, points: np.ndarray, weight: float, position: int
) -> Score:
    """Evaluate a shard's log density and its gradient as :func:`.score.score` does."""
    answers = _at_points(model, "score", score_at, data, points, weight, position)
    return Score(*answers)


def heights(
    model: ShardModel, data: ShardData, points: np.ndarray, weight: float, position: int
) -> np.ndarray:
    """Evaluate a shard's log density alone, ``(n,)``."""
    return _at_points(model, "heights", height_at, data, points, weight, position)[0]


def descend(
    model: ShardModel, data: ShardData, starts: np.ndarray, scale: np.ndarray, most: int
) -> Descents:
    """Search as :func:`.descent.descend` does, by the first rules of the gradient ladders."""

    def nowhere(data: ShardData, dtype: Any) -> Effects:
        return near_zero(model, data, dtype)

    at_point, kind = score_at(model, 0), "nested descent"
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


def _begun(
    model: ShardModel, data: ShardData, center: np.ndarray, position: int
) -> tuple[Any, ...]:
    """Bring a shard and nodes of all tiers to the device, and find the modes at the center."""
    padded = [padded_rule(q, n) for q, n in _value_numbers(model)[position]]
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
