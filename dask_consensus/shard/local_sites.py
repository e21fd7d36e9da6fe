"""Which sites have one entry a unit, as the user wrote them, and what their values are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..model.model import Derived, Latent, ShardModel
from ..shard_data import ROWS, ShardData
from .tiers import Tier, tiers


class LocalSite(NamedTuple):
    """A site with one entry a unit: a latent one, or one that is computed from such."""

    name: str
    level: int  # of its units
    axis: int  # of its value, that of the units
    shape: tuple[int, ...]  # the entry at `axis` is a placeholder
    dims: tuple[str, ...]  # name of each axis: its plate's, or empty

    @property
    def entry(self) -> tuple[int, ...]:
        """Shape of what one unit has."""
        return tuple(size for axis, size in enumerate(self.shape) if axis != self.axis)


def local_sites(model: ShardModel) -> tuple[LocalSite, ...]:
    """Name all sites with one entry a group of a level with effects, as the user wrote them."""
    levels = {tier.level for tier in returned(model)}
    found: list[Latent | Derived] = [*model.local, *model.derived]
    return tuple(
        LocalSite(site.name, site.level, site.axis, site.shape, site.dims)
        for site in found
        if site.level is not None and site.level in levels
    )


def returned(model: ShardModel) -> tuple[Tier, ...]:
    """Give the tiers whose effects are returned: those of rows have no labels."""
    return tuple(tier for tier in tiers(model) if tier.level != ROWS)


@lru_cache(maxsize=8)
def _values_traced_once(model: ShardModel) -> Callable[..., dict[str, jax.Array]]:
    """Make a function of u, local sites and data that gives sites, ``(U, *entry)``."""
    sites = local_sites(model)

    def values(
        u: jax.Array, local: Mapping[str, jax.Array], data: ShardData
    ) -> dict[str, jax.Array]:
        _, trace = model.log_terms({**model.unravel(u), **local}, data.arguments, data.size[1])
        return {
            site.name: jnp.moveaxis(jnp.asarray(trace[site.name]["value"], u.dtype), site.axis, 0)
            for site in sites
        }

    return jax.jit(values)


def flat_values(
    model: ShardModel, u: jax.Array, local: Mapping[str, jax.Array], data: ShardData
) -> dict[str, jax.Array]:
    """Sites with one entry a unit, ``(U, entries)``, at u and unconstrained local sites."""
    values = _values_traced_once(model)(u, local, data)
    return {name: value.reshape(len(value), -1) for name, value in values.items()}
