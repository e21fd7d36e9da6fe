"""The units of a shard: groups, or rows, that carry local effects and see no other unit's.

A shard's density given ``u`` is a sum over units, and what belongs to none of them. That sum is
what marginal likelihoods, their gradients and the modes of local effects are all made from.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..model.model import ShardModel
from ..shard_data import ROWS, ShardData
from . import tiers
from .target import Terms, terms_of

MOST_WIDER = 0.5  # change of the logarithm of an sd
MOST_EFFECTS = 16  # local effects a unit beyond which the integral is not attempted


class Reference(NamedTuple):
    """Log densities that are subtracted, entry by entry, before entries are summed."""

    rows: jax.Array  # (R,)
    groups: tuple[jax.Array, ...]  # (G_l,) for each level


def nothing_subtracted(data: ShardData, u: jax.Array) -> Reference:
    """Make a reference of zeros, in the precision of `u`."""
    groups = tuple(jnp.zeros(len(mask), u.dtype) for mask in data.groups)
    return Reference(jnp.zeros(len(data.rows), u.dtype), groups)


def relative_sds(widening: jax.Array, away: jax.Array) -> jax.Array:
    """Sds of effects ``(U, q)`` in units of those at the center, so far ``(d,)`` away from there.

    A first-order change ``(U, q, d)`` of their logarithms holds near the center alone: it is led to
    a bound.
    """
    return jnp.exp(MOST_WIDER * jnp.tanh(widening @ away / MOST_WIDER))


def obstacle(model: ShardModel) -> str:
    """Say why the local effects of a model cannot be integrated out; empty if they can."""
    if model.coupled:
        return f"groups depend on each other ({', '.join(model.coupled)})"
    for tier in tiers.tiers(model):
        if tier.q > MOST_EFFECTS:
            return f"{tier.q} local effects a group are more than {MOST_EFFECTS}"
    return ""


def effects_per_unit(model: ShardModel) -> int:
    """Count the local effects of one unit, q."""
    return sum(math.prod(tiers.shape_per_unit(site)) for site in model.local)


def unit_level(model: ShardModel) -> int:
    """Level of the groups that carry local effects, the outermost of several, or ``ROWS``."""
    return tiers.tiers(model)[0].level


def unpack(model: ShardModel, effects: jax.Array) -> dict[str, jax.Array]:
    """Split effects ``(U, q)`` into the local sites, each in its own shape."""
    return tiers.unpack(model.local, effects)


def pack(model: ShardModel, local: dict[str, jax.Array]) -> jax.Array:
    """Join the local sites to effects ``(U, q)``; the inverse of :func:`unpack`."""
    return tiers.pack(model.local, local)


def unit_density(
    model: ShardModel, u: jax.Array, effects: jax.Array, data: ShardData, reference: Reference
) -> tuple[jax.Array, Terms]:
    """Log density of each unit ``(U,)``, less the reference's; and all terms."""
    terms = terms_of(model, u, unpack(model, effects), data)
    return of_units(model, terms, effects, data, reference), terms


def of_units(
    model: ShardModel, terms: Terms, effects: jax.Array, data: ShardData, reference: Reference
) -> jax.Array:
    """Add up, for each unit, the terms that belong to it ``(U,)``."""
    level = unit_level(model)
    away = terms.rows - reference.rows
    if level == ROWS:
        density = away
    else:
        codes = {level: data.arguments[name] for name, level in model.codes.items()}
        density = jax.ops.segment_sum(
            away, codes[level], len(effects), indices_are_sorted=level == 0
        )
        density += terms.groups[level] - reference.groups[level]
        for inner in range(level + 1, len(data.groups)):
            if inner in codes:
                parents = jnp.zeros(len(data.groups[inner]), codes[level].dtype)
                parents = parents.at[codes[inner]].set(codes[level])
                density += jax.ops.segment_sum(
                    terms.groups[inner] - reference.groups[inner], parents, len(effects)
                )
    # Padding has a standard normal density, so that its Hessian is the identity.
    padding = -0.5 * jnp.sum(effects**2, axis=1)
    return jnp.where(data.mask(level), density, padding)


def others(model: ShardModel, terms: Terms, reference: Reference) -> jax.Array:
    """Collect what belongs to no unit: everything without local effects, else outer levels."""
    if not model.local:
        parts = [terms.rows - reference.rows]
        parts += [now - then for now, then in zip(terms.groups, reference.groups, strict=True)]
        return jnp.concatenate(parts)
    level = unit_level(model)
    outer = range(len(reference.groups)) if level == ROWS else range(level)
    parts = [terms.groups[i] - reference.groups[i] for i in outer]
    return jnp.concatenate([jnp.zeros(1, terms.rows.dtype), *parts])
