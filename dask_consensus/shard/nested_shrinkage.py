"""What do rows leave of the prior's variance on each of several levels, and how do sds move."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from ..model.model import ShardModel
from ..shard_data import ShardData
from . import newton
from .local_sites import flat_values, returned
from .nested import Effects, Nest, Outside, coarse, nest_of
from .nested_given import at_center, density_given, local_at, site_names, sites_at
from .nested_places import Center
from .shrinkage import prior_density, share_left
from .tiers import tiers


def log_sds_of_tiers(
    model: ShardModel,
) -> Callable[..., Callable[[jax.Array], tuple[jax.Array, ...]]]:
    """Make the logarithms of the sds of each tier's effects given those outside.

    They are taken at modes that move with u as they begin to.
    """

    def log_sds_of(data: ShardData, center: Center) -> Callable[[jax.Array], tuple[jax.Array, ...]]:
        there = nest_of(model, data, center.u, center.reference)

        def log_sds(u: jax.Array) -> tuple[jax.Array, ...]:
            nest, away = replace(there, u=u), u - center.u
            pairs = zip(center.effects, center.slope, strict=True)
            moved = tuple(effects + slope @ away for effects, slope in pairs)
            placed = tuple(
                here._replace(around=moved[:t], effects=moved[t])
                for t, here in enumerate(center.placed)
            )
            settled = at_center(center)._replace(placed=placed)
            factors = []
            for t in range(len(returned(model))):
                density = density_given(nest, settled, moved[:t])
                factors.append(newton.cholesky(newton.curvature(density, moved[t])[2]))
            return tuple(0.5 * jnp.log(newton.variances(factor)) for factor in factors)

        return log_sds

    return log_sds_of


def shrinkage(model: ShardModel) -> Callable[..., Any]:
    """Share of the prior's variance of each site that rows leave, given u and outer effects.

    And which sites depend on effects of deeper tiers, so that nothing can be said of them alone.
    """

    def run(data: ShardData, center: Center) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        nest = nest_of(model, data, center.u, center.reference)
        shrunk: dict[str, jax.Array] = {}
        deeper: dict[str, jax.Array] = {}
        for t in range(len(returned(model))):
            shrunk |= _shrunk(nest, center, t)
            deeper |= _deeper(nest, center, t)
        return shrunk, deeper

    return run


def _shrunk(nest: Nest, center: Center, t: int) -> dict[str, jax.Array]:
    model, settled = nest.model, at_center(center)
    outer, modes, inner = center.effects[:t], center.effects[t], center.effects[t + 1 :]
    names = site_names(model, t)

    def local(effects: jax.Array) -> dict[str, jax.Array]:
        return local_at(nest, settled, (*outer, effects, *inner))

    def sites(effects: jax.Array) -> dict[str, jax.Array]:
        values = flat_values(model, nest.u, local(effects), nest.data)
        return {name: values[name] for name in names}

    def whole(effects: jax.Array) -> tuple[jax.Array, Outside]:
        rules = coarse(model)[t + 1 :]
        return nest.density((*outer, effects), center.placed[t + 1 :], rules)

    prior = prior_density(model, tiers(model)[t], nest.u, nest.data, local)
    return share_left(sites, modes, whole, prior)


def _deeper(nest: Nest, center: Center, t: int) -> dict[str, jax.Array]:
    """Tell which sites of a tier depend on effects of those within it."""
    names, inner = site_names(nest.model, t), center.effects[t + 1 :]
    if not inner:
        return {name: jnp.zeros((), bool) for name in names}

    def sites(inner: Effects) -> dict[str, jax.Array]:
        values = sites_at(nest, at_center(center), (*center.effects[: t + 1], *inner))
        return {name: values[name] for name in names}

    # Sums over units must not vanish by chance.
    along = tuple(
        jnp.sin(1.0 + jnp.arange(its.size, dtype=its.dtype)).reshape(its.shape) for its in inner
    )
    moved = jax.jvp(sites, (inner,), (along,))[1]
    return {name: jnp.any(change != 0) for name, change in moved.items()}
