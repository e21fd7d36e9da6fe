"""The effects of one tier given those outside: their density, their modes, and the sites of all."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ..model.model import ShardModel
from ..shard_data import ShardData
from . import newton
from .local_sites import flat_values, local_sites, returned
from .nested import Effects, Nest, Outside, value_rules
from .nested_places import LOST, Center, Settled
from .tiers import tiers, unpack

POSITION = 2  # of the ladders: rules by which effects of deeper tiers are integrated out
_LOOKS, _NEAR = 8, 0.03  # of a climb to modes given outer effects


def density_given(nest: Nest, settled: Settled, outer: Effects) -> newton.Density:
    """Log density of the effects of the tier within `outer`, deeper ones integrated out."""
    t, rules = len(outer), value_rules(nest.model, POSITION)

    def density(effects: jax.Array) -> tuple[jax.Array, Outside]:
        return nest.density((*outer, effects), settled.placed[t + 1 :], rules[t + 1 :])

    return density


def around(
    nest: Nest, settled: Settled, outer: Effects, density: newton.Density, *, followed: bool
) -> tuple[jax.Array, jax.Array]:
    """Give the modes of a tier given `outer`, and Cholesky factors of minus the Hessian there."""
    here = settled.placed[len(outer)]
    place = nest.place(here, outer)
    if not outer or not followed:
        return place, here.factor
    summit = newton.ascend(density, place, _LOOKS, _NEAR)
    arrived = (summit.decrement < LOST)[:, None]
    modes = jnp.where(arrived, summit.effects + summit.step, place)
    return modes, jnp.where(arrived[:, :, None], summit.factor, here.factor)


def sites_at(nest: Nest, settled: Settled, effects: Effects) -> dict[str, jax.Array]:
    """Local sites at effects of the outer tiers, deeper ones at their modes given these."""
    return flat_values(nest.model, nest.u, local_at(nest, settled, effects), nest.data)


def local_at(nest: Nest, settled: Settled, effects: Effects) -> dict[str, jax.Array]:
    """Unconstrained local sites at effects of the outer tiers, deeper ones at their modes."""
    for here in settled.placed[len(effects) :]:
        effects = (*effects, nest.place(here, effects))
    local: dict[str, jax.Array] = {}
    for tier, its in zip(tiers(nest.model), effects, strict=True):
        local |= unpack(tier.sites, its)
    return local


def at_center(center: Center) -> Settled:
    """Take the places of the rules at the center."""
    return Settled(center.placed, jnp.zeros(len(center.effects[0]), bool))


def site_names(model: ShardModel, t: int) -> list[str]:
    """Name the sites of a tier."""
    level = tiers(model)[t].level
    return [site.name for site in local_sites(model) if site.level == level]


def units_of_tiers(model: ShardModel, data: ShardData) -> list[int]:
    """Count the units of each tier that is returned."""
    return [int(np.sum(data.mask(tier.level))) for tier in returned(model)]


def parents_of(model: ShardModel, data: ShardData, t: int, r: int) -> np.ndarray:
    """Give the unit of tier `r` that each unit of tier `t` lies in."""
    codes = {level: np.asarray(data.arguments[name]) for name, level in model.codes.items()}
    inner, outer = tiers(model)[t].level, tiers(model)[r].level
    into = np.zeros(len(data.mask(inner)), int)
    into[codes[inner]] = codes[outer]
    return into[: int(np.sum(data.mask(inner)))]
