"""Draws of effects on several levels, given draws of ``u``: of each tier given those outside.

Given ``u`` the effects of outer groups have the density from which those of inner groups are
integrated out; those of inner groups, given the outer ones, theirs. So candidates of the outermost
tier are weighted by that marginal density, one is taken, the modes of the tier within are found
given it, and so on inwards: sampling importance resampling (Rubin 1988), tier by tier.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..model.model import ShardModel, precision
from ..shard_data import ShardData
from . import newton
from .candidates import LOOKS, Look, Taken, log_proposal, random_point
from .compiling import compiled, on_device
from .local_draws import BLOCK, evenly_enough
from .local_sites import local_sites, returned
from .nested import Effects, Nest, nest_of
from .nested_given import around, density_given, sites_at, units_of_tiers
from .nested_places import Center, Settled, center_at, followed


def look_at(
    model: ShardModel, data: ShardData, draws: np.ndarray, center: np.ndarray, n_modes: int
) -> int:
    """Tell which look effects need, as :func:`.local_draws.look_at` does."""
    if n_modes > 1:
        return len(LOOKS) - 1
    named = (0, 0, np.arange(len(draws)))
    for which, look in enumerate(LOOKS[:-1]):
        parts = _draw_in_blocks(model, data, draws, center, named, look)
        of_tiers = zip(*(even for _, even in parts), strict=True)
        even = [np.concatenate(its)[: len(draws)].mean(axis=0) for its in of_tiers]
        pairs = zip(even, units_of_tiers(model, data), strict=True)
        if all(evenly_enough(its[:real], look) for its, real in pairs):
            return which
    return len(LOOKS) - 1


def draw_effects(
    model: ShardModel,
    data: ShardData,
    draws: np.ndarray,
    center: np.ndarray,
    n_modes: int,
    named: tuple[int, int, np.ndarray],
    *,
    look: int = 1,
) -> dict[str, np.ndarray]:
    """Draw the effects of all tiers together, as :func:`.local_draws.draw_effects` does."""
    n = len(draws)
    parts = _draw_in_blocks(model, data, draws, center, named, LOOKS[look])
    drawn = {}
    for site in local_sites(model):
        real = int(np.sum(data.mask(site.level)))
        values = np.concatenate([sites[site.name] for sites, _ in parts])[:n, :real]
        drawn[site.name] = values.reshape(n, real, *site.entry)
    return drawn


def _draw_in_blocks(
    model: ShardModel,
    data: ShardData,
    draws: np.ndarray,
    center: np.ndarray,
    named: tuple[int, int, np.ndarray],
    look: Look,
) -> list[tuple[dict[str, np.ndarray], tuple[np.ndarray, ...]]]:
    """Draw local sites, ``(B, U, entries)``; how even weights were on each tier comes second."""
    parts = []
    with precision(model.double):
        arrays, here = on_device((data, center))
        origin = center_at(model, arrays, here)
        seed, shard, numbers = named
        root = jax.random.fold_in(jax.random.key(seed), shard)
        keys = jax.vmap(lambda number: jax.random.fold_in(root, number))(numbers)
        for first in range(0, len(draws), BLOCK):
            where = np.resize(np.arange(first, min(first + BLOCK, len(draws))), BLOCK)
            given = (arrays, origin, on_device(draws[where]), keys[where])
            run = compiled(model, ("nested draws", look), lambda: _drawn(model, look), *given)
            parts.append(jax.device_get(run(*given)))
    return parts


def _drawn(model: ShardModel, look: Look) -> Callable[..., Any]:
    """Draw local sites once at each draw of u, ``(B, U, entries)``, by weights of candidates.

    The effective share of the candidates of each tier comes second, ``(B, U)``.
    """

    def run(data: ShardData, center: Center, draws: jax.Array, keys: jax.Array) -> Any:
        there = nest_of(model, data, center.u, center.reference)

        def at_draw(given: tuple[jax.Array, jax.Array]) -> Any:
            u, key = given
            nest = replace(there, u=u)
            settled = followed(nest, center)
            effects: Effects = ()
            even: tuple[jax.Array, ...] = ()
            for t in range(len(returned(model))):
                taken = _take(nest, settled, effects, jax.random.fold_in(key, t), look)
                effects = (*effects, taken.effects)
                even = (*even, taken.efficiency(look.candidates))
            return sites_at(nest, settled, effects), even

        return lax.map(at_draw, (draws, keys))

    return run


def _take(nest: Nest, settled: Settled, outer: Effects, key: jax.Array, look: Look) -> Taken:
    """Take one candidate of each unit of the tier within `outer`."""
    density = density_given(nest, settled, outer)
    place, factor = around(nest, settled, outer, density, followed=True)
    shape = len(place), place.shape[1]

    def add(i: jax.Array, taken: Taken) -> Taken:
        keys = jax.random.split(jax.random.fold_in(key, i), 3)
        standardised = random_point(keys[:2], i, shape, look, place.dtype)
        effects = place + newton.back_solve(factor, standardised)
        value, _ = density(effects)
        value = jnp.where(jnp.isnan(value), -jnp.inf, value)
        return taken.or_else(i, keys[2], effects, value - log_proposal(standardised, look))

    start = Taken.none(*shape, place.dtype)
    taken: Taken = lax.fori_loop(0, look.candidates, add, start)
    return taken
