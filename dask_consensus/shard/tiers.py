"""The levels that have effects: which units they belong to, and which units lie in which.

A *tier* is a level of groups, or the rows, that local sites follow. Most models have one; of
several the outermost comes first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..model.model import Latent, ShardModel
from ..shard_data import ROWS, ShardData


class Tier(NamedTuple):
    """A level, and the local sites that follow it."""

    level: int
    sites: tuple[Latent, ...]

    @property
    def q(self) -> int:
        """Effects of one unit."""
        return sum(math.prod(shape_per_unit(site)) for site in self.sites)


@lru_cache(maxsize=32)
def tiers(model: ShardModel) -> tuple[Tier, ...]:
    """Give the tiers of a model, the outermost first, rows last."""
    levels = {site.level for site in model.local if site.level is not None}
    ordered = sorted(levels, key=lambda level: (level == ROWS, level))
    return tuple(
        Tier(level, tuple(site for site in model.local if site.level == level)) for level in ordered
    )


def parents(model: ShardModel, data: ShardData, inner: int, outer: int) -> jax.Array:
    """Give the number of the group at an outer level that each entry of an inner one lies in."""
    codes = {level: data.arguments[name] for name, level in model.codes.items()}
    if inner == ROWS:
        return jnp.asarray(codes[outer])
    into = jnp.zeros(len(data.groups[inner]), codes[outer].dtype)
    return into.at[codes[inner]].set(codes[outer])


def shape_per_unit(site: Latent) -> list[int]:
    """Shape of what one unit has of a site, unconstrained."""
    return [size for axis, size in enumerate(site.unconstrained) if axis != site.axis]


def unpack(sites: Sequence[Latent], effects: jax.Array) -> dict[str, jax.Array]:
    """Split effects ``(U, q)`` into sites of one level, each in its own shape."""
    local = {}
    begin = 0
    for site in sites:
        shape = shape_per_unit(site)
        width = math.prod(shape)
        part = effects[:, begin : begin + width].reshape(len(effects), *shape)
        local[site.name] = jnp.moveaxis(part, 0, site.axis)
        begin += width
    return local


def pack(sites: Sequence[Latent], local: dict[str, jax.Array]) -> jax.Array:
    """Join sites of one level to effects ``(U, q)``; the inverse of :func:`unpack`."""
    parts = [jnp.moveaxis(local[site.name], site.axis, 0) for site in sites]
    return jnp.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
