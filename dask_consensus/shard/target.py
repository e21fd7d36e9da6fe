"""The density one shard samples: tempered prior, anchor, its own rows and groups, masks."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..model.crossed import rowwise_terms
from ..model.model import Latent, ShardModel, precision
from ..shard_data import ROWS, ShardData
from .compiling import in_blocks


class PriorFactor(NamedTuple):
    """A shard's share of everything that is not its own.

    The shard samples ``pi(u)^weight N(u; anchor_mean, anchor_precision^-1) l_k(u)``. Tempering
    alone, as in consensus Monte Carlo, has an anchor of precision zero.
    """

    weight: Any  # the power of the prior, Jacobian included
    anchor_mean: Any  # (d,)
    anchor_precision: Any  # (d, d)


def tempered(weight: float, dim: int) -> PriorFactor:
    """Prior to the power `weight`, without an anchor."""
    return PriorFactor(weight, np.zeros(dim), np.zeros((dim, dim)))


class Terms(NamedTuple):
    """A shard's log density in unconstrained space, split by what it belongs to.

    The prior is everything without an axis of rows or groups. What belongs to groups and rows is
    zero for padding, whose local values have a standard normal log density (without its constant)
    of their own, since nothing else holds them in place.
    """

    prior: jax.Array
    groups: tuple[jax.Array, ...]  # (G_l,) for each level
    rows: jax.Array  # (R,)
    padding: jax.Array


def terms_of(
    model: ShardModel, u: jax.Array, local: dict[str, jax.Array], data: ShardData
) -> Terms:
    """Evaluate a shard's log density term by term, at unconstrained `u` and padded `local` sites.

    Runs the model's Python code once for each shape of data, however often compiled code asks for
    it: trace it under :data:`~dask_consensus.model.model.TRACE_LOCK`.
    """
    terms: Terms = _traced_once(model)(u, local, data)
    return terms


@lru_cache(maxsize=8)
def _traced_once(model: ShardModel) -> Callable[..., Terms]:
    return jax.jit(partial(_terms_of, model))


def _terms_of(
    model: ShardModel, u: jax.Array, local: dict[str, jax.Array], data: ShardData
) -> Terms:
    values = {**model.unravel(u), **local}
    log_terms, _ = model.log_terms(values, data.arguments, data.size[1])
    return _sorted(model, log_terms, local, data, u.dtype)


def rowwise_terms_of(
    model: ShardModel,
    u: jax.Array,
    rows: dict[str, jax.Array],
    local: dict[str, jax.Array],
    data: ShardData,
) -> Terms:
    """Evaluate the density given the effects of crossed factors row by row; they have no prior."""
    terms: Terms = _rowwise_traced_once(model)(u, rows, local, data)
    return terms


@lru_cache(maxsize=8)
def _rowwise_traced_once(model: ShardModel) -> Callable[..., Terms]:
    return jax.jit(partial(_rowwise_terms_of, model))


def _rowwise_terms_of(
    model: ShardModel,
    u: jax.Array,
    rows: dict[str, jax.Array],
    local: dict[str, jax.Array],
    data: ShardData,
) -> Terms:
    values = {**model.unravel(u), **local}
    given = (model, values, rows, model.crossed, data.arguments, data.size[1])
    return _sorted(model, rowwise_terms(*given), local, data, u.dtype)


def _sorted(
    model: ShardModel,
    log_terms: dict[str, jax.Array],
    local: dict[str, jax.Array],
    data: ShardData,
    dtype: Any,
) -> Terms:
    """Add up terms by what they belong to."""
    n_rows, n_groups = data.size
    prior = jnp.zeros((), dtype)
    by_level = {
        level: jnp.zeros(model.size_of(level, n_rows, n_groups), dtype)
        for level in (ROWS, *range(len(n_groups)))
    }
    for term in model.terms:
        if term.name not in log_terms:
            continue
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
        start=jnp.zeros((), dtype),
    )
    by_group = tuple(by_level[level] for level in range(len(n_groups)))
    return Terms(prior, by_group, by_level[ROWS], padding)


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
    """Log density that NUTS samples, at shared `u` and `local`, both unconstrained.

    Marginal likelihoods and their gradients are made from the same :func:`terms_of`.
    """
    terms = terms_of(model, u, local, data)
    away = u - factor.anchor_mean
    anchor = -0.5 * away @ (factor.anchor_precision @ away)
    likelihood = sum((jnp.sum(group) for group in terms.groups), start=jnp.sum(terms.rows))
    return factor.weight * terms.prior + anchor + likelihood + terms.padding


def log_prior(model: ShardModel, data: ShardData, points: np.ndarray) -> np.ndarray:
    """Log density of all prior terms at points ``(G, d)``, in double precision where possible.

    Prior terms do not depend on the data: any that the model accepts will do.
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
