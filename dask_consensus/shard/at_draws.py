"""The model, run at a draw of all that is unknown: u, and effects of known and of new groups.

At each draw of u the effects of known groups are drawn given it, and those of groups never seen
from the population. Standard normal numbers behind the effects are the same in every group, and of
exactly the mean, the covariance and the lack of correlation with u that they stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import scipy.special
import scipy.stats
from jax import lax
from numpyro.distributions import constraints
from numpyro.infer.util import _unconstrain_reparam as _placed
from numpyro.infer.util import compute_log_probs

from ..model.model import ShardModel
from .device import accelerated
from .effects import effects_per_unit, relative_sds
from .mixtures import UNKNOWN, RowSite
from .tiers import Tier, tiers, unpack

_ROWS_AT_ONCE = {False: 2**12, True: 2**14}  # answered by one call: what caches hold; on a GPU
_LEAST_GROUPS = 16
_WIDE, _HALVINGS = 40.0, 40  # range of the inverse hyperbolic sine of effects; steps to find one


class Design(NamedTuple):
    """At which draws rows are predicted: S of them."""

    center: Any  # (d,) their mean
    u: Any  # (S, d)
    normal: Any  # (S, q), standard normal, uncorrelated with u


class Normals(NamedTuple):
    """Effects of G groups as normal distributions given u, and given those of levels outside."""

    mean: Any  # (G, q) at the center
    slope: Any  # (G, q, d)
    widening: Any  # (G, q, d), of the logarithms of sds; None where they stay as they are
    factor: Any  # (G, q, q), of the covariance, lower triangular
    outer: Any = None  # (G, q, Q), with effects of the levels outside; None without any


class Rows(NamedTuple):
    """Some rows, their groups coded from 0, and the effects of these on each level that has some.

    The outermost level comes first; there is none where all groups are drawn from the population.
    """

    arguments: Mapping[str, Any]  # (R,) each
    known: tuple[Any, ...]  # (G,) whether the fit has seen the group
    effects: tuple[Any, ...]  # Normals; or draws of sites as the model has them, (S, ..., G, ...)


def rows_at_once() -> int:
    """Rows that are answered for by one call, at most."""
    return _ROWS_AT_ONCE[accelerated()]


def make_design(model: ShardModel, u: np.ndarray) -> Design:
    """Set standard normal numbers beside draws ``(S, d)`` of u."""
    n, d = u.shape
    q = effects_per_unit(model) if model.local else 0
    if not q:
        return Design(u.mean(axis=0), u, np.zeros((n, 0)))
    uniform = scipy.stats.qmc.Halton(q, rng=0).random(n)
    normal = scipy.special.ndtri(np.clip(uniform, 1e-12, 1 - 1e-12))
    beside = np.column_stack([np.ones(n), u])
    if n > d + 1 + q:
        normal -= beside @ np.linalg.lstsq(beside, normal, rcond=None)[0]
        factor = np.linalg.cholesky(normal.T @ normal / n)
        normal = np.linalg.solve(factor, normal.T).T
    return Design(u.mean(axis=0), u, normal)


def by_row(values: jax.Array, site: RowSite) -> jax.Array:
    """Bring what a site has to ``(R, entries)``."""
    moved = jnp.moveaxis(values, site.axis, 0)
    return moved.reshape(len(moved), -1)


def draws_of(rows: Rows) -> Any:
    """Give effects that are draws, an axis of these in front; None for those that are not."""
    return [its if isinstance(its, dict) else None for its in rows.effects]


def shared_normals(
    model: ShardModel,
    groups: tuple[int, ...],
    arguments: Mapping[str, Any],
    normal: jax.Array,
) -> tuple[jax.Array, ...]:
    """Give all groups of a level the same standard normal numbers, of ``(q,)`` for all levels."""
    n_rows = len(next(iter(arguments.values())))
    normals, begin = [], 0
    for tier in tiers(model):
        its = normal[begin : begin + tier.q]
        begin += tier.q
        units = model.size_of(tier.level, n_rows, groups)
        normals.append(jnp.broadcast_to(its, (units, tier.q)))
    return tuple(normals)


def padded(model: ShardModel, rows: Rows) -> tuple[tuple[int, ...], Rows]:
    """Bring rows and groups to one of few shapes."""
    n = len(next(iter(rows.arguments.values())))
    n_rows = min(rows_at_once(), 1 << max(n - 1, 255).bit_length())
    arguments = {
        name: np.concatenate([values, np.repeat(values[-1:], n_rows - n, axis=0)])
        for name, values in rows.arguments.items()
    }
    counts = {level: 0 for level in range(len(model.levels))}
    for name, level in model.codes.items():
        counts[level] = max(counts[level], int(rows.arguments[name].max(initial=-1)) + 1)
    sizes = tuple(_rounded(count) for count in counts.values())
    known: list[np.ndarray] = []
    effects: list[Any] = []
    for tier, seen, its in zip(tiers(model), rows.known, rows.effects, strict=False):
        more = sizes[tier.level] - len(seen)

        def pad(values: np.ndarray, axis: int = 0, more: int = more) -> np.ndarray:
            return np.pad(values, [(0, more if i == axis else 0) for i in range(values.ndim)])

        known.append(pad(seen))
        if isinstance(its, Normals):
            effects.append(Normals(*(part if part is None else pad(part) for part in its)))
        else:
            axes = {site.name: site.axis + 1 for site in tier.sites}
            effects.append({name: pad(values, axes[name]) for name, values in its.items()})
    return sizes, Rows(arguments, tuple(known), tuple(effects))


def _rounded(count: int) -> int:
    """Round up to 16, 64, 256, ..."""
    size = _LEAST_GROUPS
    while size < count:
        size *= 4
    return size


Draw = tuple[jax.Array, tuple[jax.Array, ...], jax.Array, Any]
"""One of u, of standard normal numbers ``(U, q)`` of each level, a key, and what is drawn."""


def traced_at(
    model: ShardModel, rows: Rows, groups: tuple[int, ...], draw: Draw, center: jax.Array
) -> dict[str, Any]:
    """Run the model at a draw, and return its trace."""
    placed = _at(model, rows, groups, draw, center, {})
    trace: dict[str, Any] = numpyro.handlers.trace(placed).get_trace(
        **model.keywords(rows.arguments, groups)
    )
    return trace


def log_terms_at(
    model: ShardModel,
    rows: Rows,
    groups: tuple[int, ...],
    draw: Draw,
    center: jax.Array,
    own: Mapping[str, jax.Array],
) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """Log density of each site at a draw, entry by entry, and the model's trace.

    Some local sites have `own` unconstrained values, in place of those drawn.
    """
    placed = _at(model, rows, groups, draw, center, own)
    keywords = model.keywords(rows.arguments, groups)
    terms, trace = compute_log_probs(placed, (), keywords, {}, sum_log_prob=False)
    return terms, trace


def _at(
    model: ShardModel,
    rows: Rows,
    groups: tuple[int, ...],
    draw: Draw,
    center: jax.Array,
    own: Mapping[str, jax.Array],
) -> Callable[..., Any]:
    """Put the values of a draw in the places of a model's latent sites."""
    u, normals, key, drawn = draw
    shared = model.unravel(u)
    levels = {site.name: site for site in model.local}
    standard: dict[str, jax.Array] = {}
    for tier, its in zip(tiers(model), normals, strict=True):
        standard |= unpack(tier.sites, its)
    given = _effects_given(model, rows, normals, u, center)
    seen_at = {
        site.name: (rows.known[t], None if drawn[t] is None else drawn[t][site.name])
        for t, tier in enumerate(tiers(model)[: len(rows.known)])
        for site in tier.sites
    }

    def place(site: dict[str, Any]) -> jax.Array | None:
        if site["type"] != "sample" or site["is_observed"]:
            return None
        name, fn = site["name"], site["fn"]
        if name in shared:
            return _placed(shared, site)
        if name in own:
            return _placed(own, site)
        if name not in levels:
            return None
        unseen = _from_population(
            fn, standard[name], jax.random.fold_in(key, list(levels).index(name))
        )
        if name not in seen_at:
            return unseen
        known, its_draw = seen_at[name]
        seen = _placed(given, site) if its_draw is None else its_draw
        shape = [1] * unseen.ndim
        shape[levels[name].axis] = -1
        return jnp.where(known.reshape(shape), seen, unseen)

    seeded = numpyro.handlers.seed(model.function, key)
    placed: Callable[..., Any] = numpyro.handlers.substitute(seeded, substitute_fn=place)
    return placed


def _effects_given(
    model: ShardModel,
    rows: Rows,
    normals: tuple[jax.Array, ...],
    u: jax.Array,
    center: jax.Array,
) -> dict[str, jax.Array]:
    """Turn standard normal numbers into the raw effects of known groups, outer levels first."""
    given: dict[str, jax.Array] = {}
    away: list[jax.Array] = []  # from means at the center, level by level
    for tier, its, normal in zip(tiers(model), rows.effects, normals, strict=False):
        if not isinstance(its, Normals):
            continue
        spread = jnp.sum(its.factor * normal[:, None, :], axis=2)
        if its.widening is not None:
            spread *= relative_sds(its.widening, u - center)
        moved = its.slope @ (u - center) + spread
        if its.outer is not None:
            around = [
                before[_parents(model, rows.arguments, tier, outer, len(moved))]
                for outer, before in zip(tiers(model), away, strict=False)
            ]
            moved += jnp.einsum("gij,gj->gi", its.outer, jnp.concatenate(around, axis=1))
        away.append(moved)
        given |= unpack(tier.sites, its.mean + moved)
    return given


def _parents(
    model: ShardModel, arguments: Mapping[str, Any], inner: Tier, outer: Tier, n: int
) -> jax.Array:
    """Give the group of an outer level that each of `n` groups of an inner one lies in."""
    codes = {level: arguments[name] for name, level in model.codes.items()}
    into = jnp.zeros(n, codes[outer.level].dtype)
    return into.at[codes[inner.level]].set(codes[outer.level])


def base_of(fn: Any) -> Any:
    """Take off what a distribution is wrapped in."""
    wrappers = (dist.ExpandedDistribution, dist.MaskedDistribution, dist.Independent)
    while isinstance(fn, wrappers):
        fn = fn.base_dist
    return fn


def _from_population(fn: Any, normal: jax.Array, key: jax.Array) -> jax.Array:
    """Turn standard normal numbers into draws of a distribution, where there is a way."""
    base = base_of(fn)
    if tuple(fn.shape()) != normal.shape:
        return fn.sample(key)
    if isinstance(base, dist.TransformedDistribution):
        inner = base.base_dist
        if tuple(inner.shape()) != tuple(base.shape()):
            return fn.sample(key)
        value = _from_population(inner.expand(fn.batch_shape), normal, key)
        for transform in base.transforms:
            value = transform(value)
        return value
    if isinstance(base, dist.Normal):
        return jnp.broadcast_to(base.loc + base.scale * normal, fn.shape())
    if isinstance(base, dist.MultivariateNormal):
        return base.loc + jnp.einsum("...ij,...j->...i", base.scale_tril, normal)
    uniform = jnp.clip(jax.scipy.special.ndtr(normal), 1e-7, 1 - 1e-7)
    try:
        return jnp.broadcast_to(base.icdf(uniform), fn.shape())
    except UNKNOWN:
        pass
    try:
        return _where_cdf_is(base, jnp.broadcast_to(uniform, fn.shape()))
    except UNKNOWN:
        return fn.sample(key)


def _where_cdf_is(fn: Any, share: jax.Array) -> jax.Array:
    """Invert a distribution function on the real line by bisection."""
    if fn.support is not constraints.real:
        raise NotImplementedError

    def halve(_: int, limits: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = limits
        middle = (low + high) / 2
        below = fn.cdf(jnp.sinh(middle)) < share
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    everywhere = jnp.full(share.shape, _WIDE)
    low, high = lax.fori_loop(0, _HALVINGS, halve, (-everywhere, everywhere))
    return jnp.sinh((low + high) / 2)
