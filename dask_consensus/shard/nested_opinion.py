"""What another rule says of nested integrals, and how many modes their units have.

Each tier is looked at by itself. Given the effects of the tiers outside, at and about their modes,
the effects of its units are integrated by the rule that is used and by importance sampling
(:mod:`.second_opinion`); deeper ones by their rules either way. To first order the log likelihood
is off by what the tiers' integrals are, added up.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jax import lax

from ..model.model import ShardModel, precision
from ..shard_data import ShardData, Size
from . import hills, newton
from .compiling import compiled, on_device
from .nested import Effects, Placed, coarse, nest_of, value_nodes, value_rules
from .nested_marginal import log_likelihoods
from .nested_places import near_zero, settle
from .quadrature import Rule
from .second_opinion import Opinions, log_averages, n_points, proposals_of, weighed
from .subsets import in_shape
from .tiers import pack, tiers

_LOOKS, _ROUNDS, _NEAR = 20, 8, 1e-4  # of an ascent from anywhere, and at a point


def most_modes(model: ShardModel, data: ShardData, points: np.ndarray) -> int:
    """Count the modes of the unit that has most, on any tier, at ``(G, d)`` points."""
    masks = [np.asarray(data.mask(tier.level)) for tier in tiers(model)]
    with precision(model.double):
        arrays = on_device(data)
        found = jax.device_get([_scouted(model, arrays, on_device(u)) for u in points])
    return max(
        hills.most_modes(summits.log_mass, mask)
        for at_point in found
        for (summits, _), mask in zip(at_point, masks, strict=True)
    )


def second_opinion(
    model: ShardModel, data: ShardData, points: np.ndarray, rule: Rule, size: Size, effort: float
) -> Opinions:
    """Integrate the effects of each tier twice, as :func:`.second_opinion.second_opinion` does."""
    position = value_nodes(model).index(rule.n_nodes)
    whole = in_shape(data, model.codes, size)
    first = log_likelihoods(model, whole, points, points[0], rule)
    second, noise, bias = first.log_likelihood.copy(), [], np.zeros(len(points))
    with precision(model.double):
        arrays, where = on_device((data, points))
        found = _scouted(model, arrays, where[0])
        for t, tier in enumerate(tiers(model)):
            n = n_points(len(data.rows), len(points) * len(_displacements(model, t)), effort)
            sobol = on_device(scipy.stats.qmc.Sobol(tier.q, rng=0).random(n))
            given = arrays, where, sobol, *found[t]
            kind = ("nested opinion", t, position)
            run = compiled(model, kind, partial(_importance, model, t, position), *given)
            by_halves = np.asarray(jax.device_get(run(*given)), np.float64)
            by_half, of_units, too_low = weighed(by_halves)
            second += by_half.sum(axis=1) + 2 * too_low
            noise.append(of_units)
            bias += too_low
    return Opinions(first.log_likelihood, second, np.concatenate(noise, axis=1), bias, first.units)


def _scouted(
    model: ShardModel, data: ShardData, u: jax.Array
) -> list[tuple[hills.Hills, hills.Surroundings]]:
    """Find all modes of the units of each tier, up to a few, from anywhere in their prior."""
    run = compiled(model, "nested scout", lambda: _scout(model), data, u)
    found: list[tuple[hills.Hills, hills.Surroundings]] = run(data, u)
    return found


def _scout(
    model: ShardModel,
) -> Callable[[ShardData, jax.Array], list[tuple[hills.Hills, hills.Surroundings]]]:
    last, rules = len(tiers(model)) - 1, coarse(model)

    def scout(data: ShardData, u: jax.Array) -> list[tuple[hills.Hills, hills.Surroundings]]:
        nest = nest_of(model, data, u)
        sites = hills.site_draws(model, data, u, jax.random.key(0), hills.N_STARTS)
        drawn = [
            hills.stretched(
                jax.vmap(lambda local, tier=tier: hills.finite(pack(tier.sites, local)))(sites)
            )
            for tier in tiers(model)
        ]
        nowhere = near_zero(model, data, u.dtype)
        begin = tuple(
            jnp.concatenate([none[None], points])
            for none, (points, _) in zip(nowhere, drawn, strict=True)
        )

        def ascended(start: Effects) -> tuple[tuple[hills.Hills, ...], tuple[Placed, ...]]:
            settled = settle(nest, start, _LOOKS, _ROUNDS, _NEAR)
            effects = nest.places(settled.placed)
            reached = []
            for t in range(last):
                deeper = settled.placed[t + 1 :]
                value, _ = nest.density(effects[: t + 1], deeper, rules[t + 1 :])
                factor = settled.placed[t].factor
                mass = value - hills.log_determinant(factor)
                into = nest.parents(t, 0) if t else jnp.arange(len(effects[0]))
                there = ~settled.lost[into] & jnp.isfinite(mass)
                reached.append(hills.Hills(effects[t], factor, jnp.where(there, mass, -jnp.inf)))
            return tuple(reached), settled.placed

        reached, placed = lax.map(ascended, begin)
        summits = [hills.told_apart(places, hills.MOST_MODES) for places in reached]
        # Inner units: given the outer effects that were found from nowhere in particular.
        outer = nest.places(jax.tree.map(lambda leaf: leaf[0], placed))[:last]

        def innermost(own: jax.Array) -> tuple[jax.Array, Any]:
            return nest.density((*outer, own), (), ())

        summits.append(hills.climb(innermost, begin[last], newton.MOST_LOOKS, hills.MOST_MODES))
        return [(peaks, around) for peaks, (_, around) in zip(summits, drawn, strict=True)]

    return scout


def _displacements(model: ShardModel, t: int) -> list[tuple[np.ndarray, ...]]:
    """Points about the modes of the tiers outside, in sds, that stand for them equally."""
    return list(itertools.product(*(rule.nodes.points for rule in coarse(model)[:t])))


def _importance(model: ShardModel, t: int, position: int) -> Callable[..., jax.Array]:
    """Log integrals of a tier's units by two halves, less those by rules, ``(2, G, U_t)``."""
    rules, away = value_rules(model, position), _displacements(model, t)

    def run(
        data: ShardData,
        points: jax.Array,
        sobol: jax.Array,
        found: hills.Hills,
        around: hills.Surroundings,
    ) -> jax.Array:
        first = nest_of(model, data, points[0])
        mask = data.mask(tiers(model)[t].level)
        begin = near_zero(model, data, points.dtype)

        def placed_at(u: jax.Array) -> tuple[tuple[Placed, ...], list[Effects]]:
            nest = replace(first, u=u)
            placed = settle(nest, begin, newton.MOST_LOOKS, _ROUNDS, _NEAR).placed
            outer = []
            for offsets in away:
                effects: Effects = ()
                for here, offset in zip(placed[:t], offsets, strict=True):
                    place = nest.place(here, effects)
                    point = jnp.broadcast_to(jnp.asarray(offset, u.dtype), place.shape)
                    effects = (*effects, place + newton.back_solve(here.factor, point))
                outer.append(effects)
            return placed, outer

        placed, outer = lax.map(placed_at, points)

        def by_rules(u: jax.Array, placed: tuple[Placed, ...], outer: list[Effects]) -> jax.Array:
            nest = replace(first, u=u)
            return jnp.stack([nest.integral(its, placed[t:], rules[t:])[0] for its in outer])

        def densities(own: jax.Array) -> jax.Array:
            def at(u: jax.Array, placed: tuple[Placed, ...], outer: list[Effects]) -> jax.Array:
                nest = replace(first, u=u)
                values = [
                    nest.density((*its, own), placed[t + 1 :], rules[t + 1 :])[0] for its in outer
                ]
                return jnp.stack(values)

            there = jax.vmap(at)(points, placed, outer)  # (G, displacements, U_t)
            return there.reshape(-1, there.shape[-1])

        n = len(points) * len(away)
        sampled = log_averages(densities, proposals_of(found, around), sobol, n)
        ruled = lax.map(lambda given: by_rules(*given), (points, placed, outer))
        change = sampled.reshape(2, len(points), len(away), -1) - ruled
        return jnp.where(mask, jnp.mean(change, axis=2), 0.0)

    return run
