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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..model.model import ShardModel
from ..shard_data import ROWS, ShardData
from . import hills, newton
from .effects import Reference, nothing_subtracted
from .quadrature import GRID_UP_TO, Nodes, gradient_ladder, ladder, rule
from .target import terms_of
from .tiers import parents, tiers, unpack

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


# Rules

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
    return _rules(value_numbers(model)[position])


def gradient_rules(model: ShardModel, position: int) -> tuple[Weighted, ...]:
    """Rules of each tier at a place of the ladders of gradients."""
    return _rules(_gradient_numbers(model)[position])


def value_nodes(model: ShardModel) -> tuple[int, ...]:
    """Give the number of nodes of all tiers together, at each place of the ladders of values."""
    return tuple(_together(place) for place in value_numbers(model))


def gradient_nodes(model: ShardModel) -> tuple[int, ...]:
    """Give the number of nodes of all tiers together, at each place of those of gradients."""
    return tuple(_together(place) for place in _gradient_numbers(model))


def value_numbers(model: ShardModel) -> list[tuple[tuple[int, int], ...]]:
    """Give effects, and nodes an axis or in all, of each tier, place by place of the ladders."""
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
