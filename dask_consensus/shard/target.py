"""The density one shard samples: tempered prior, anchor, its own rows and groups, masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..model.model import Latent, ShardModel
from ..shard_data import ROWS, ShardData
from .compiling import in_blocks, precision


class PriorFactor(NamedTuple):
    """A shard's share of everything that is not its own.

    The shard samples ``pi(u)^weight N(u; anchor_mean, anchor_precision^-1) l_k(u)``. Tempering
    alone, as in consensus Monte Carlo, has an anchor of precision zero.

    Attributes
    ----------
    weight : float
        The power of the prior, Jacobian included.
    anchor_mean : (d,) array
    anchor_precision : (d, d) array
    """

    weight: Any
    anchor_mean: Any
    anchor_precision: Any


def tempered(weight: float, dim: int) -> PriorFactor:
    """Prior to the power `weight`, without an anchor."""
    return PriorFactor(weight, np.zeros(dim), np.zeros((dim, dim)))


class Terms(NamedTuple):
    """A shard's log density, split by what it belongs to.

    Attributes
    ----------
    prior : scalar
        Log density, in unconstrained space, of everything without an axis of rows or groups.
    groups : tuple of (G_l,) arrays
        What belongs to each group of each level; zero for padding.
    rows : (R,) array
        What belongs to each row; zero for padding.
    padding : scalar
        Standard normal log density (without its constant) of the local values of padding, which
        nothing else holds in place.
    """

    prior: jax.Array
    groups: tuple[jax.Array, ...]
    rows: jax.Array
    padding: jax.Array


def terms_of(
    model: ShardModel, u: jax.Array, local: dict[str, jax.Array], data: ShardData
) -> Terms:
    """Evaluate a shard's log density term by term.

    Parameters
    ----------
    model : ShardModel
    u : (d,) array
        Shared sites, unconstrained and raveled.
    local : dict
        Unconstrained local sites, of padded shapes.
    data : ShardData

    Notes
    -----
    Runs the model's Python code: trace it under :data:`~dask_consensus.shard.model.TRACE_LOCK`.
    """
    n_rows, n_groups = data.size
    values = {**model.unravel(u), **local}
    log_terms, _ = model.log_terms(values, data.arguments, n_groups)
    prior = jnp.zeros((), u.dtype)
    by_level = {
        level: jnp.zeros(model.size_of(level, n_rows, n_groups), u.dtype)
        for level in (ROWS, *range(len(n_groups)))
    }
    for term in model.terms:
        entries = log_terms[term.name]
        if term.level is None:
            prior += jnp.sum(entries)
        else:
            others = tuple(axis for axis in range(jnp.ndim(entries)) if axis != term.axis)
            # Masked before it is added: a padding row's density may be anything but must not
            # reach the gradient as NaN, so padding repeats a real row.
            entry = jnp.sum(entries, axis=others)
            by_level[term.level] += jnp.where(data.mask(term.level), entry, 0.0)
    padding = sum(
        (_padding_density(site, local[site.name], data) for site in model.local),
        start=jnp.zeros((), u.dtype),
    )
    return Terms(
        prior, tuple(by_level[level] for level in range(len(n_groups))), by_level[ROWS], padding
    )


def _padding_density(site: Latent, value: jax.Array, data: ShardData) -> jax.Array:
    assert site.level is not None
    mask = data.mask(site.level)
    shape = [1] * value.ndim
    shape[site.axis] = len(mask)
    return -0.5 * jnp.sum(jnp.where(mask.reshape(shape), 0.0, value) ** 2)


def log_density(
    model: ShardModel,
    u: jax.Array,
    local: dict[str, jax.Array],
    data: ShardData,
    factor: PriorFactor,
) -> jax.Array:
    """Log density that a shard samples, at shared `u` and `local`, both unconstrained."""
    terms = terms_of(model, u, local, data)
    away = u - factor.anchor_mean
    anchor = -0.5 * away @ (factor.anchor_precision @ away)
    own = sum((jnp.sum(group) for group in terms.groups), start=jnp.sum(terms.rows))
    return factor.weight * terms.prior + anchor + own + terms.padding


def log_prior(model: ShardModel, data: ShardData, points: np.ndarray) -> np.ndarray:
    """Log density of all prior terms at many points, in double precision where the model bears it.

    Parameters
    ----------
    model : ShardModel
    data : ShardData
        Any data the model accepts; prior terms do not depend on it.
    points : (G, d) array

    Returns
    -------
    (G,) float64 array
    """
    rows, groups = data.size

    def build() -> Callable[[ShardData, jax.Array], jax.Array]:
        def many(data: ShardData, points: jax.Array) -> jax.Array:
            shapes = model.local_shapes(rows, groups)
            local = {name: jnp.zeros(shape) for name, shape in shapes.items()}
            return jax.vmap(lambda u: terms_of(model, u, local, data).prior)(points)

        return many

    with precision(model.double):
        return in_blocks(model, "prior", build, data, points)
