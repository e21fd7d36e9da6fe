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
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats
from jax import lax

from ..model.model import ShardModel, precision
from ..shard_data import ShardData
from . import newton
from .candidates import DEGREES, LOOKS, QUADRATURE, Look, around, log_shares, points_of
from .compiling import compiled, on_device
from .effects import effects_per_unit, relative_sds, unit_density, unit_level, unpack
from .marginal import Center, center_at, moved
from .subsets import some_groups
from .target import Terms

QUANTILES = (0.05, 0.5, 0.95)
STATISTICS = ("mean", "sd", "q05", "q50", "q95")
_NEARLY_NORMAL_SKEW, _NEARLY_NORMAL_EXCESS = 1.1, (-0.6, 2.5)
_WIDER = 0.03  # relative change of an effect's sd over draws of u that is worth keeping
_BLOCK = 16  # draws of u answered by one call
_MANY = 0.3  # share of the units that are looked at apart; of more, all are looked at again
_AT_ONCE = 32_000_000  # numbers that are brought back at a time


class Summary(NamedTuple):
    """Statistics of the local sites of the U units of a shard, and how well they are known.

    Shrinkage is the share of the prior's variance, given u, that the unit's own rows leave: 1
    where they say nothing, 0 where they say all. Efficiency is the effective share of the
    candidates, effective their number over all draws.
    """

    statistics: dict[str, np.ndarray]  # (statistics, U, *entry) of each site
    shrinkage: dict[str, np.ndarray]  # (U, *entry)
    given_shared: GivenShared
    efficiency: np.ndarray  # (U,)
    effective: np.ndarray  # (U,)
    modes_not_found: float  # units, averaged over draws


class GivenShared(NamedTuple):
    """The normal distribution of the raw effects of each unit, at any u.

    Its mean is that at the center plus the slope times how far u is from there, and the logarithms
    of its sds move likewise; what effects differ from that line by, over draws of u and given each,
    in units of these sds, gives its covariance.
    """

    mean: np.ndarray  # (U, q)
    slope: np.ndarray  # (U, q, d); none where there are crossed effects
    widening: np.ndarray  # (U, q, d) of the logarithms of sds
    covariance: np.ndarray  # (U, q, q) at the center


class LocalSite(NamedTuple):
    """A site with one entry a unit: a latent one, or one that is computed from such."""

    name: str
    axis: int  # of its value, that of the units
    shape: tuple[int, ...]  # the entry at `axis` is a placeholder
    dims: tuple[str, ...]  # name of each axis: its plate's, or empty

    @property
    def entry(self) -> tuple[int, ...]:
        """Shape of what one unit has."""
        return tuple(size for axis, size in enumerate(self.shape) if axis != self.axis)


def local_sites(model: ShardModel) -> tuple[LocalSite, ...]:
    """Name all sites with one entry a unit, as the user wrote them."""
    level = unit_level(model)
    latent = [LocalSite(site.name, site.axis, site.shape, site.dims) for site in model.local]
    derived = [
        LocalSite(site.name, site.axis, site.shape, site.dims)
        for site in model.derived
        if site.level == level
    ]
    return (*latent, *derived)


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
    if unsure.mean() > _MANY:
        return _summarized(model, data, draws, center, n_modes, LOOKS[1:])[0]
    level = unit_level(model)
    argument = next(name for name, its in model.codes.items() if its == level)
    alone = some_groups(data, model.codes, argument, np.flatnonzero(unsure))
    closer = _summarized(model, alone, draws, center, n_modes, LOOKS[1:])[0]
    return _in_place(whole, closer, unsure)


def _in_place(whole: Summary, closer: Summary, units: np.ndarray) -> Summary:
    """Put what is said of some units in place of what was."""

    def put(then: np.ndarray, now: np.ndarray, axis: int = 0) -> np.ndarray:
        moved = np.moveaxis(np.array(then), axis, 0)
        moved[units] = np.moveaxis(now, axis, 0)
        return np.moveaxis(moved, 0, axis)

    return Summary(
        {k: put(v, closer.statistics[k], 1) for k, v in whole.statistics.items()},
        {k: put(v, closer.shrinkage[k]) for k, v in whole.shrinkage.items()},
        GivenShared(*map(put, whole.given_shared, closer.given_shared)),
        put(whole.efficiency, closer.efficiency),
        put(whole.effective, closer.effective),
        whole.modes_not_found + closer.modes_not_found,
    )


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

        widening = _widening_at(model, arrays, origin, draws)

        def ask(first: int, look: Look) -> _Told:
            size = _block(look, numbers, len(draws))
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
            size = _block(look, numbers, len(draws))
            if _enough(first.efficiency[:real] / size, look):
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
        told, far = _statistics(
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
    )
    return Summary(statistics, shrinkage, given_shared, efficiency, effective, lost), unsure


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
        if _enough(efficiency.mean(axis=0), look):
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
        for first in range(0, len(draws), _BLOCK):
            where = np.resize(np.arange(first, min(first + _BLOCK, len(draws))), _BLOCK)
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


def _block(look: Look, numbers: int, draws: int) -> int:
    """Draws of u at a time, of which a candidate has so many `numbers`."""
    return max(1, min(_BLOCK, draws, _AT_ONCE // (look.kept * numbers)))


def _enough(efficiency: np.ndarray, look: Look) -> bool:
    """Tell whether no unit's weights differ by much."""
    return bool(efficiency.min(initial=1.0) >= look.enough)


def _statistics(
    origin: np.ndarray, moments: np.ndarray, kept: np.ndarray, *, by_order: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Make mean, sd and quantiles ``(statistics, U, entries)`` of moments about an origin.

    And tell which values, ``(U, entries)``, are far from normal.

    Quantiles of what is nearly normal follow from its moments (Cornish and Fisher 1938, Revue de
    l'Institut international de statistique 5), far more precisely than from `kept` values
    ``(A, U, entries)``; not where candidates were of many widths, all of them kept, since humps and
    shoulders may have the moments of what is nearly normal.
    """
    first, second, third, fourth = moments
    variance = np.maximum(second - first**2, 0.0)
    sd = np.sqrt(variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        skew = (third - 3 * first * second + 2 * first**3) / sd**3
        central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
        excess = central / variance**2 - 3
    low, high = _NEARLY_NORMAL_EXCESS
    far = by_order | ~((np.abs(skew) < _NEARLY_NORMAL_SKEW) & (excess > low) & (excess < high))
    mean = origin + first
    quantiles = [mean + sd * _expanded_quantile(share, skew, excess) for share in QUANTILES]
    if far.any():
        ordered = np.quantile(kept[:, far], QUANTILES, axis=0, method="hazen")
        for quantile, exact in zip(quantiles, ordered, strict=True):
            quantile[far] = exact
    return np.stack([mean, sd, *quantiles]), far


def _expanded_quantile(share: float, skew: np.ndarray, excess: np.ndarray) -> np.ndarray:
    """Expand the quantile of a standardised variable about that of a normal one."""
    z = scipy.special.ndtri(share)
    expanded = z + skew * (z**2 - 1) / 6 + excess * (z**3 - 3 * z) / 24
    return np.asarray(expanded - skew**2 * (2 * z**3 - 5 * z) / 36)


# Sites of the model


@lru_cache(maxsize=8)
def _values_traced_once(model: ShardModel) -> Callable[..., dict[str, jax.Array]]:
    """Make a function of u, effects and data that gives local sites, ``(U, *entry)``."""
    sites = local_sites(model)

    def values(u: jax.Array, effects: jax.Array, data: ShardData) -> dict[str, jax.Array]:
        latent = {**model.unravel(u), **unpack(model, effects)}
        _, trace = model.log_terms(latent, data.arguments, data.size[1])
        return {
            site.name: jnp.moveaxis(jnp.asarray(trace[site.name]["value"], u.dtype), site.axis, 0)
            for site in sites
        }

    return jax.jit(values)


def _flat_values(
    model: ShardModel, u: jax.Array, effects: jax.Array, data: ShardData
) -> dict[str, jax.Array]:
    """Local sites at u and effects, ``(U, entries)``."""
    values = _values_traced_once(model)(u, effects, data)
    return {name: value.reshape(len(value), -1) for name, value in values.items()}


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
        origin = _flat_values(model, center.u, center.effects[0], data)

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
                return _flat_values(model, u, effects, data), off, log_weight

            wider: Any = 1.0
            if not model.crossed:
                wider = relative_sds(widening, u - center.u)
            line = center.effects[0] + moved(model, data, center, u)[0]
            sites, off, log_weight = lax.map(one, (normal, shares))
            log_share = jnp.asarray(log_shares(normal.shape[1], look), u.dtype)[:, None]
            weights = _normalised(log_weight + log_share)
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


def _normalised(log_weight: jax.Array) -> jax.Array:
    """Make weights ``(C, U)`` that add up to 1; equal ones where none is finite."""
    largest = jnp.max(log_weight, axis=0)
    return jax.nn.softmax(jnp.where(jnp.isfinite(largest), log_weight, 0.0), axis=0)


def _drawn(model: ShardModel, look: Look) -> Callable[..., Any]:
    """Draw local sites once at each draw of u, ``(B, U, entries)``, by weights of candidates.

    The effective share of the candidates comes second, ``(B, U)``.
    """
    n_candidates, widths = look.candidates, np.array(look.widths)

    def run(data: ShardData, center: Center, draws: jax.Array, keys: jax.Array) -> Any:
        def at_draw(given: tuple[jax.Array, jax.Array]) -> Any:
            u, key = given
            near = around(model, data, center, u, look)
            units, q = near.hills.effects.shape[1:]

            def add(i: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
                taken, best, total, square = state
                keys = jax.random.split(jax.random.fold_in(key, i), 4)
                points = jax.random.normal(keys[0], (units, q), u.dtype)
                share = jax.random.uniform(keys[1], (units,), u.dtype)
                if not look.normal:
                    uniform = jax.random.uniform(
                        keys[3], (DEGREES // 2, units), u.dtype, minval=1e-12
                    )
                    chi_square = -2 * jnp.sum(jnp.log(uniform), axis=0)
                    points *= jnp.sqrt(DEGREES / chi_square)[:, None]
                    points *= jnp.asarray(widths, u.dtype)[i % len(widths)]
                effects, log_weight = near.candidate(points, share)
                # The largest of these is each candidate as often as its weight says; the first is
                # taken in any case.
                level = log_weight + jax.random.gumbel(keys[2], (units,), u.dtype)
                better = (level > best) | (i == 0)
                return (
                    jnp.where(better[:, None], effects, taken),
                    jnp.where(better, level, best),
                    jnp.logaddexp(total, log_weight),
                    jnp.logaddexp(square, 2 * log_weight),
                )

            nowhere = jnp.full(units, -jnp.inf, u.dtype)
            start = (jnp.zeros((units, q), u.dtype), nowhere, nowhere, nowhere)
            taken, _, total, square = lax.fori_loop(0, n_candidates, add, start)
            efficiency = jnp.exp(2 * total - square) / n_candidates
            efficiency = jnp.where(jnp.isfinite(efficiency), efficiency, 0.0)
            return _flat_values(model, u, taken, data), efficiency

        return lax.map(at_draw, (draws, keys))

    return run


def _widening_at(
    model: ShardModel, data: ShardData, center: Center, draws: np.ndarray
) -> jax.Array:
    """Change of the logarithms of the sds of effects with u, ``(U, q, d)``, at the center.

    It is zero where that changes no sd by much, and where draws of u are so few, since rows are so
    many, that it would cost more than it is worth.
    """
    units, q = center.effects.shape[1:]
    d = 0 if model.crossed else draws.shape[1]
    if not (q and d) or 4 * d > len(draws):
        return jnp.zeros((units, q, d), center.u.dtype)
    sds = draws.std(axis=0)
    steps = on_device(np.maximum(sds / 2, 1e-3))
    run = compiled(model, "widening", lambda: _widening(model), data, center, steps)
    widening: jax.Array = run(data, center, steps)
    change = np.linalg.norm(np.asarray(widening) * sds, axis=2).max(initial=0.0)
    return widening if change > _WIDER else jnp.zeros_like(widening)


def _widening(model: ShardModel) -> Callable[..., jax.Array]:
    def run(data: ShardData, center: Center, steps: jax.Array) -> jax.Array:
        def log_sds(u: jax.Array) -> jax.Array:
            def density(effects: jax.Array) -> tuple[jax.Array, Terms]:
                return unit_density(model, u, effects, data, center.reference)

            there = center.effects[0] + moved(model, data, center, u)[0]
            factor = newton.cholesky(newton.curvature(density, there)[2])
            q = there.shape[1]
            axes = [jnp.broadcast_to(axis, there.shape) for axis in jnp.eye(q, dtype=u.dtype)]
            variances = [newton.solve(factor, axis)[:, i] for i, axis in enumerate(axes)]
            return 0.5 * jnp.log(jnp.stack(variances, axis=1))

        def along(given: tuple[jax.Array, jax.Array]) -> jax.Array:
            axis, step = given
            ends = [log_sds(center.u + sign * step * axis) for sign in (1.0, -1.0)]
            change = (ends[0] - ends[1]) / (2 * step)
            return jnp.where(jnp.isfinite(change), change, 0.0)

        changes = lax.map(along, (jnp.eye(len(steps), dtype=steps.dtype), steps))
        return jnp.moveaxis(changes, 0, 2)

    return run


def _shrinkage(model: ShardModel) -> Callable[..., dict[str, jax.Array]]:
    """Share of the prior's variance of each site, given u, that rows leave, ``(U, entries)``.

    Both variances are those of quadratic expansions at the mode, carried to sites that are
    computed from effects by their derivative there.
    """
    level = unit_level(model)
    own = {name for site in model.local for name in (site.name, f"_{site.name}_log_det")}
    terms = [term for term in model.terms if term.name in own and term.level == level]

    def run(data: ShardData, center: Center) -> dict[str, jax.Array]:
        u, modes = center.u, center.effects[0]
        mask = data.mask(level)

        def prior(effects: jax.Array) -> tuple[jax.Array, None]:
            values = {**model.unravel(u), **unpack(model, effects)}
            entries, _ = model.log_terms(values, data.arguments, data.size[1])
            total = jnp.zeros(len(effects), u.dtype)
            for term in terms:
                entry = jnp.moveaxis(entries[term.name], term.axis, 0)
                total += jnp.sum(entry.reshape(len(entry), -1), axis=1)
            return jnp.where(mask, total, -0.5 * jnp.sum(effects**2, axis=1)), None

        def whole(effects: jax.Array) -> tuple[jax.Array, Terms]:
            return unit_density(model, u, effects, data, center.reference)

        def sites(effects: jax.Array) -> dict[str, jax.Array]:
            return _flat_values(model, u, effects, data)

        q = modes.shape[1]
        unit_vectors = [
            jnp.broadcast_to(jnp.eye(q, dtype=u.dtype)[i], modes.shape) for i in range(q)
        ]
        slopes = [jax.jvp(sites, (modes,), (vector,))[1] for vector in unit_vectors]
        variances = []
        for density in (whole, prior):
            factor = newton.cholesky(newton.curvature(density, modes)[2])
            inverse = jnp.stack([newton.solve(factor, vector) for vector in unit_vectors], axis=2)
            variances.append(
                {
                    name: sum(
                        slopes[i][name] * slopes[j][name] * inverse[:, i, j][:, None]
                        for i in range(q)
                        for j in range(q)
                    )
                    for name in slopes[0]
                }
            )
        after, before = variances
        return {
            name: jnp.clip(jnp.where(before[name] > 0, after[name] / before[name], 1.0), 0.0, 1.0)
            for name in after
        }

    return run
