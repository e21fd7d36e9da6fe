"""Effects of each unit, given draws of ``u``.

Given ``u`` the effects of a unit are independent of those of all others, with the density that is
integrated out elsewhere: around its mode nearly normal. At each draw of ``u`` a few candidates are
drawn there, around every mode that a unit has, and weighted by what the density is beside that of
the proposal (sampling importance resampling: Rubin 1988, Bayesian Statistics 3). All candidates so
weighted say what the effects are like over the posterior of ``u``; one of them, drawn by its
weight, is a draw that belongs to the draw of ``u``.

Where effects are as good as normal, and hardly move with ``u``, which weights show, a few normal
candidates around the mode that was will do. Elsewhere modes are followed, and candidates are many,
of a t distribution. Statistics rest on the same points in every unit, the normal ones of exactly
the mean and covariance that they stand for, so that those of normal effects are exact; draws rest
on points of their own in every unit, since they must be independent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..model.model import ShardModel, precision
from ..shard_data import ShardData
from . import newton
from .candidates import LOOKS, QUADRATURE, Look, Taken, around, log_shares, points_of, random_point
from .compiling import compiled, on_device
from .effects import effects_per_unit, relative_sds, unit_density, unit_level, unpack
from .local_sites import flat_values, local_sites
from .marginal import Center, center_at, moved
from .shrinkage import prior_density, share_left, widening_at
from .subsets import some_groups
from .summaries import STATISTICS, GivenShared, Summary, in_place, normalised, statistics_of
from .target import Terms
from .tiers import tiers

BLOCK = 16  # draws of u answered by one call
MANY = 0.3  # share of the units that are looked at apart; of more, all are looked at again
_AT_ONCE = 32_000_000  # numbers that are brought back at a time


def summaries_of_one(
    model: ShardModel, data: ShardData, draws: np.ndarray, center: np.ndarray, n_modes: int
) -> tuple[Summary]:
    """Summarize the effects of the one tier that there is."""
    return (summarize(model, data, draws, center, n_modes),)


def summarize(
    model: ShardModel, data: ShardData, draws: np.ndarray, center: np.ndarray, n_modes: int
) -> Summary:
    """Summarize the effects of all units over draws ``(G, d)`` of u.

    The model has local effects, and no :func:`.effects.obstacle`. The center is where `draws` are.
    """
    quadrature = QUADRATURE.get(effects_per_unit(model))
    if n_modes > 1:
        return _summarized(model, data, draws, center, n_modes, LOOKS[1:])[0]
    if quadrature is None:
        return _summarized(model, data, draws, center, n_modes, LOOKS)[0]
    looks = (quadrature,) if effects_per_unit(model) == 1 else (LOOKS[0], quadrature)
    whole, unsure = _summarized(model, data, draws, center, n_modes, looks)
    if not unsure.any():
        return whole
    if unsure.mean() > MANY:
        return _summarized(model, data, draws, center, n_modes, LOOKS[1:])[0]
    level = unit_level(model)
    argument = next(name for name, its in model.codes.items() if its == level)
    alone = some_groups(data, model.codes, argument, np.flatnonzero(unsure))
    closer = _summarized(model, alone, draws, center, n_modes, LOOKS[1:])[0]
    return in_place(whole, closer, unsure)


def _summarized(
    model: ShardModel,
    data: ShardData,
    draws: np.ndarray,
    center: np.ndarray,
    n_modes: int,
    looks: Sequence[Look],
) -> tuple[Summary, np.ndarray]:
    """Summarize by the first look that is enough, or else the last; of which units it is not."""
    level, q = unit_level(model), effects_per_unit(model)
    real, numbers = int(np.sum(data.mask(level))), max(len(data.mask(level)), 1) * q
    with precision(model.double):
        arrays, here = on_device((data, center))
        origin = center_at(model, arrays, here, n_modes)

        modes = [origin.effects[0]]
        (widening,) = widening_at(model, arrays, origin, draws, modes, _log_sds_of(model))

        def ask(first: int, look: Look) -> _Told:
            size = at_a_time(look.kept * numbers, len(draws))
            where = np.resize(np.arange(first, min(first + size, len(draws))), size)
            counted = np.arange(size) < len(draws) - first
            points, shares = points_of(q, len(draws), look)
            given = (arrays, origin, *on_device((draws[where], points[where], shares[where])))
            given = (*given, counted, widening)
            run = compiled(
                model, ("local candidates", look), lambda: _candidates(model, look), *given
            )
            told: _Told = jax.device_get(run(*given))
            return told._replace(kept={k: v[counted] for k, v in told.kept.items()})

        for look in looks:
            first = ask(0, look)
            size = at_a_time(look.kept * numbers, len(draws))
            if evenly_enough(first.efficiency[:real] / size, look):
                break
        parts = [first, *(ask(at, look) for at in range(size, len(draws), size))]
        shrink = compiled(model, "shrinkage", lambda: _shrinkage(model), arrays, origin)
        shrunk = jax.device_get(shrink(arrays, origin))
    n = len(draws)
    statistics, shrinkage = {}, {}
    efficiency = np.asarray(sum(part.efficiency[:real] for part in parts) / n)
    unsure = efficiency < look.enough if look.nodes else np.zeros(real, bool)
    for site in local_sites(model):
        shape = (real, *site.entry)
        moments = sum(part.moments[site.name][:, :real] for part in parts) / n
        kept = np.concatenate([part.kept[site.name] for part in parts])[..., :real, :]
        kept = kept.reshape(-1, real, kept.shape[-1])
        told, far = statistics_of(
            first.origin[site.name][:real], moments, kept, by_order=look is LOOKS[-1]
        )
        if look.nodes:
            unsure |= far.any(axis=1)
        statistics[site.name] = told.reshape(len(STATISTICS), *shape)
        shrinkage[site.name] = shrunk[site.name][:real].reshape(shape)
    lost = sum(float(part.lost) for part in parts) / n
    effective = efficiency * look.candidates * n
    away = sum(part.residual[:real] for part in parts) / n
    outer = sum(part.residual_outer[:real] for part in parts) / n
    given_shared = GivenShared(
        np.asarray(origin.effects[0, :real]) + away,
        np.asarray(origin.slope[0, :real]),
        np.asarray(widening[:real]),
        outer - away[:, :, None] * away[:, None, :],
        np.zeros((real, q, 0)),
    )
    return Summary(statistics, shrinkage, given_shared, efficiency, effective, lost), unsure


def looks_at_rows(model: ShardModel, *, summary: bool) -> tuple[int, int]:
    """Give the least and the largest number of looks at every row, for one draw of u."""
    return LOOKS[0].candidates, LOOKS[-1].candidates


def look_at(
    model: ShardModel, data: ShardData, draws: np.ndarray, center: np.ndarray, n_modes: int
) -> int:
    """Tell from some draws of u which of the :data:`.candidates.LOOKS` effects need."""
    named = (0, 0, np.arange(len(draws)))
    real = int(np.sum(data.mask(unit_level(model))))
    for which, look in enumerate(LOOKS[:-1]):
        if n_modes > 1 and not look.followed:
            continue
        parts = _draw_in_blocks(model, data, draws, center, n_modes, named, look)
        efficiency = np.concatenate([part[1] for part in parts])[: len(draws), :real]
        if evenly_enough(efficiency.mean(axis=0), look):
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
    """Draw the effects of all units once for each of the draws ``(G, d)`` of u.

    Random numbers are `named` by a seed, the shard, and a number of each of the draws.
    `look` is what :func:`look_at` says that the effects need.

    Returns
    -------
    dict of (G, U, *entry) arrays
        By the names of :func:`local_sites`.
    """
    n, real = len(draws), int(np.sum(data.mask(unit_level(model))))
    parts = _draw_in_blocks(model, data, draws, center, n_modes, named, LOOKS[look])
    return {
        site.name: np.concatenate([sites[site.name] for sites, _ in parts])[:n, :real].reshape(
            n, real, *site.entry
        )
        for site in local_sites(model)
    }


def _draw_in_blocks(
    model: ShardModel,
    data: ShardData,
    draws: np.ndarray,
    center: np.ndarray,
    n_modes: int,
    named: tuple[int, int, np.ndarray],
    look: Look,
) -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Draw local sites, ``(B, U, entries)``; how even weights were, ``(B, U)``, comes second."""
    parts = []
    with precision(model.double):
        arrays, here = on_device((data, center))
        origin = center_at(model, arrays, here, n_modes)
        seed, shard, numbers = named
        root = jax.random.fold_in(jax.random.key(seed), shard)
        keys = jax.vmap(lambda number: jax.random.fold_in(root, number))(numbers)
        for first in range(0, len(draws), BLOCK):
            where = np.resize(np.arange(first, min(first + BLOCK, len(draws))), BLOCK)
            given = (arrays, origin, on_device(draws[where]), keys[where])
            run = compiled(model, ("local draws", look), lambda: _drawn(model, look), *given)
            parts.append(jax.device_get(run(*given)))
    return parts


# Points and statistics


class _Told(NamedTuple):
    """What candidates say at a block of draws of u; sums over draws."""

    origin: Mapping[str, Any]  # (U, entries) values at the center
    moments: Mapping[str, Any]  # (4, U, entries) powers of what values are beyond that
    kept: Mapping[str, Any]  # (B, kept, U, entries) candidates, as often as their weights say
    residual: Any  # (U, q) raw effects less what they would be on a line in u
    residual_outer: Any  # (U, q, q), its products
    efficiency: Any  # (U,) effective share of the candidates
    lost: Any  # () units whose mode was not found


def at_a_time(numbers: int, draws: int) -> int:
    """Draws of u at a time, of each of which so many `numbers` are kept."""
    return max(1, min(BLOCK, draws, _AT_ONCE // max(numbers, 1)))


def evenly_enough(efficiency: np.ndarray, look: Look) -> bool:
    """Tell whether no unit's weights differ by much."""
    return bool(efficiency.min(initial=1.0) >= look.enough)


# Compiled code


def _candidates(model: ShardModel, look: Look) -> Callable[..., _Told]:
    """Make what candidates say at a block of draws of u, those that are counted."""

    def run(
        data: ShardData,
        center: Center,
        draws: jax.Array,
        points: jax.Array,
        shares: jax.Array,
        counted: jax.Array,
        widening: jax.Array,
    ) -> _Told:
        origin = flat_values(model, center.u, unpack(model, center.effects[0]), data)

        def at_draw(given: tuple[jax.Array, ...]) -> tuple[Any, ...]:
            u, normal, share = given
            near = around(model, data, center, u, look)
            units, n = near.hills.effects.shape[1], len(normal)
            # As many candidates fall to a mode as are its due.
            shares = (share + jnp.arange(n)) / n

            def one(given: tuple[jax.Array, jax.Array]) -> Any:
                point, share = (jnp.broadcast_to(part, (units, *part.shape)) for part in given)
                effects, log_weight = near.candidate(point, share)
                off = (effects - line) / wider
                return flat_values(model, u, unpack(model, effects), data), off, log_weight

            wider: Any = 1.0
            if not model.crossed:
                wider = relative_sds(widening, u - center.u)
            line = center.effects[0] + moved(model, data, center, u)[0]
            sites, off, log_weight = lax.map(one, (normal, shares))
            log_share = jnp.asarray(log_shares(normal.shape[1], look), u.dtype)[:, None]
            weights = normalised(log_weight + log_share)
            moments, kept = {}, {}
            so_far = jnp.cumsum(weights, axis=0)
            n_kept = look.kept
            at = (jnp.arange(n_kept) + share) / n_kept
            which = jnp.sum(so_far[None, :-1] < at[:, None, None], axis=1)  # (kept, U)
            for name, values in sites.items():
                away = values - origin[name]
                powers = [away, away**2, away**3, away**4]
                moments[name] = jnp.stack([jnp.einsum("cu,cue->ue", weights, p) for p in powers])
                kept[name] = jnp.take_along_axis(values, which[:, :, None], axis=0)
            efficiency = 1 / jnp.sum(weights**2 / jnp.exp(log_share), axis=0)
            residual = jnp.einsum("cu,cuq->uq", weights, off)
            outer = jnp.einsum("cu,cuq,cur->uqr", weights, off, off)
            return moments, kept, residual, outer, efficiency, near.lost

        moments, kept, *rest = lax.map(at_draw, (draws, points, shares))

        def total(values: jax.Array) -> jax.Array:
            mask = counted.reshape(-1, *[1] * (values.ndim - 1))
            return jnp.sum(jnp.where(mask, values, 0), axis=0)

        added = jax.tree.map(total, moments)
        return _Told(origin, added, kept, *map(total, rest))

    return run


def _drawn(model: ShardModel, look: Look) -> Callable[..., Any]:
    """Draw local sites once at each draw of u, ``(B, U, entries)``, by weights of candidates.

    The effective share of the candidates comes second, ``(B, U)``.
    """

    def run(data: ShardData, center: Center, draws: jax.Array, keys: jax.Array) -> Any:
        def at_draw(given: tuple[jax.Array, jax.Array]) -> Any:
            u, key = given
            near = around(model, data, center, u, look)
            units, q = near.hills.effects.shape[1:]

            def add(i: jax.Array, taken: Taken) -> Taken:
                keys = jax.random.split(jax.random.fold_in(key, i), 4)
                points = random_point(keys[0::3], i, (units, q), look, u.dtype)
                share = jax.random.uniform(keys[1], (units,), u.dtype)
                effects, log_weight = near.candidate(points, share)
                return taken.or_else(i, keys[2], effects, log_weight)

            start = Taken.none(units, q, u.dtype)
            taken = lax.fori_loop(0, look.candidates, add, start)
            sites = flat_values(model, u, unpack(model, taken.effects), data)
            return sites, taken.efficiency(look.candidates)

        return lax.map(at_draw, (draws, keys))

    return run


def _log_sds_of(model: ShardModel) -> Callable[..., Callable[[jax.Array], tuple[jax.Array, ...]]]:
    """Make the logarithms of the sds of effects, at modes that move with u as they begin to."""

    def log_sds_of(data: ShardData, center: Center) -> Callable[[jax.Array], tuple[jax.Array, ...]]:
        def log_sds(u: jax.Array) -> tuple[jax.Array, ...]:
            def density(effects: jax.Array) -> tuple[jax.Array, Terms]:
                return unit_density(model, u, effects, data, center.reference)

            there = center.effects[0] + moved(model, data, center, u)[0]
            factor = newton.cholesky(newton.curvature(density, there)[2])
            return (0.5 * jnp.log(newton.variances(factor)),)

        return log_sds

    return log_sds_of


def _shrinkage(model: ShardModel) -> Callable[..., dict[str, jax.Array]]:
    """Share of the prior's variance of each site, given u, that rows leave, ``(U, entries)``."""
    (tier,) = tiers(model)

    def run(data: ShardData, center: Center) -> dict[str, jax.Array]:
        u = center.u

        def local(effects: jax.Array) -> dict[str, jax.Array]:
            return unpack(model, effects)

        def whole(effects: jax.Array) -> tuple[jax.Array, Terms]:
            return unit_density(model, u, effects, data, center.reference)

        def sites(effects: jax.Array) -> dict[str, jax.Array]:
            return flat_values(model, u, local(effects), data)

        prior = prior_density(model, tier, u, data, local)
        return share_left(sites, center.effects[0], whole, prior)

    return run
