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

from collections.abc import Callable, Mapping
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
from . import hills, newton
from .compiling import compiled, on_device
from .effects import effects_per_unit, unit_density, unit_level, unpack
from .marginal import Center, center_at
from .target import Terms

QUANTILES = (0.05, 0.5, 0.95)
STATISTICS = ("mean", "sd", "q05", "q50", "q95")
_FEW, _MANY = 4, 32  # candidates at a draw of u, in mirrored pairs
_DEGREES = 6  # of freedom, of the t distribution; even, so that uniform numbers make it
_KEPT = 8  # candidates of a draw that quantiles of what is far from normal are taken of
_NEARLY_ALL = 0.98  # efficiency of all units with which few will do
_NEARLY_NORMAL_SKEW, _NEARLY_NORMAL_EXCESS = 1.1, (-0.6, 2.5)
_BLOCK = 16  # draws of u answered by one call
_AT_ONCE = 32_000_000  # numbers that are brought back at a time
_LOOKS, _NEAR = 8, 0.03  # at a draw of u, from modes moved along with it
_LOST = 0.5  # squared Newton decrement beyond which a unit's mode was not found


class Summary(NamedTuple):
    """Statistics of the local sites of the U units of a shard, and how well they are known.

    Shrinkage is the share of the prior's variance, given u, that the unit's own rows leave: 1
    where they say nothing, 0 where they say all. Efficiency is the effective share of the
    candidates.
    """

    statistics: dict[str, np.ndarray]  # (statistics, U, *entry) of each site
    shrinkage: dict[str, np.ndarray]  # (U, *entry)
    given_shared: GivenShared
    efficiency: np.ndarray  # (U,)
    modes_not_found: float  # units, averaged over draws


class GivenShared(NamedTuple):
    """The normal distribution of the raw effects of each unit, at any u.

    Its mean is that at the center plus the slope times how far u is from there; what effects differ
    from that line by, over draws of u and given each, gives its covariance.
    """

    mean: np.ndarray  # (U, q)
    slope: np.ndarray  # (U, q, d)
    covariance: np.ndarray  # (U, q, q)


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
    level, q = unit_level(model), effects_per_unit(model)
    real = int(np.sum(data.mask(level)))
    size = max(1, min(_BLOCK, len(draws), _AT_ONCE // (_KEPT * max(len(data.mask(level)), 1) * q)))
    with precision(model.double):
        arrays, here = on_device((data, center))
        origin = center_at(model, arrays, here, n_modes)

        def ask(first: int, thorough: bool) -> _Told:
            where = np.resize(np.arange(first, min(first + size, len(draws))), size)
            counted = np.arange(size) < len(draws) - first
            points, shares = _points(q, len(draws), thorough)
            given = (arrays, origin, *on_device((draws[where], points[where], shares[where])))
            given = (*given, counted)
            kind = ("local candidates", thorough)
            run = compiled(model, kind, lambda: _candidates(model, thorough), *given)
            told: _Told = jax.device_get(run(*given))
            return told._replace(kept={k: v[counted] for k, v in told.kept.items()})

        thorough = n_modes > 1
        first = ask(0, thorough)
        if not thorough and not _nearly_all(first.efficiency[:real] / min(size, len(draws))):
            thorough = True
            first = ask(0, thorough)
        parts = [first, *(ask(at, thorough) for at in range(size, len(draws), size))]
        shrink = compiled(model, "shrinkage", lambda: _shrinkage(model), arrays, origin)
        shrunk = jax.device_get(shrink(arrays, origin))
    n = len(draws)
    statistics, shrinkage = {}, {}
    for site in local_sites(model):
        shape = (real, *site.entry)
        moments = sum(part.moments[site.name][:, :real] for part in parts) / n
        kept = np.concatenate([part.kept[site.name] for part in parts])[..., :real, :]
        kept = kept.reshape(-1, real, kept.shape[-1])
        told = _statistics(first.origin[site.name][:real], moments, kept)
        statistics[site.name] = told.reshape(len(STATISTICS), *shape)
        shrinkage[site.name] = shrunk[site.name][:real].reshape(shape)
    efficiency = sum(part.efficiency[:real] for part in parts) / n
    lost = sum(float(part.lost) for part in parts) / n
    away = sum(part.residual[:real] for part in parts) / n
    outer = sum(part.residual_outer[:real] for part in parts) / n
    given_shared = GivenShared(
        np.asarray(origin.effects[0, :real]) + away,
        np.asarray(origin.slope[0, :real]),
        outer - away[:, :, None] * away[:, None, :],
    )
    return Summary(statistics, shrinkage, given_shared, np.asarray(efficiency), lost)


def far_from_normal(
    model: ShardModel, data: ShardData, draws: np.ndarray, center: np.ndarray, n_modes: int
) -> bool:
    """Tell from some draws of u whether many candidates are needed for :func:`draw_effects`."""
    if n_modes > 1:
        return True
    named = (0, 0, np.arange(len(draws)))
    real = int(np.sum(data.mask(unit_level(model))))
    parts = _draw_in_blocks(model, data, draws, center, n_modes, named, thorough=False)
    efficiency = np.concatenate([part[1] for part in parts])[: len(draws), :real]
    return not _nearly_all(efficiency.mean(axis=0))


def draw_effects(
    model: ShardModel,
    data: ShardData,
    draws: np.ndarray,
    center: np.ndarray,
    n_modes: int,
    named: tuple[int, int, np.ndarray],
    *,
    thorough: bool = True,
) -> dict[str, np.ndarray]:
    """Draw the effects of all units once for each of the draws ``(G, d)`` of u.

    Random numbers are `named` by a seed, the shard, and a number of each of the draws.
    `thorough` takes as many candidates as effects need that are :func:`far_from_normal`.

    Returns
    -------
    dict of (G, U, *entry) arrays
        By the names of :func:`local_sites`.
    """
    n, real = len(draws), int(np.sum(data.mask(unit_level(model))))
    parts = _draw_in_blocks(model, data, draws, center, n_modes, named, thorough)
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
    thorough: bool,
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
            kind = ("local draws", thorough)
            run = compiled(model, kind, lambda: _drawn(model, thorough), *given)
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


def _nearly_all(efficiency: np.ndarray) -> bool:
    """Tell whether no unit's weights differ by much."""
    return bool(efficiency.min(initial=1.0) >= _NEARLY_ALL)


@lru_cache(maxsize=8)
def _points(q: int, n_draws: int, thorough: bool) -> tuple[np.ndarray, np.ndarray]:
    """Make points ``(n_draws, candidates, q)``, and a uniform number of each draw.

    They are standard normal, with exactly that mean and covariance; or, `thorough`, of a t
    distribution. The half of a draw's are mirror images of the others; which draw has which is
    random.
    """
    pairs = (_MANY if thorough else _FEW) // 2
    uniform = scipy.stats.qmc.Halton(q + 1, rng=0).random(n_draws * pairs)
    half = scipy.special.ndtri(np.clip(uniform[:, :q], 1e-12, 1 - 1e-12))
    if len(half) > q:
        factor = np.linalg.cholesky(half.T @ half / len(half))
        half = np.linalg.solve(factor, half.T).T
    if thorough:
        half *= np.sqrt(_DEGREES / scipy.stats.chi2.ppf(uniform[:, q], _DEGREES))[:, None]
    rng = np.random.default_rng(0)
    half = rng.permutation(half).reshape(n_draws, pairs, q)
    shares = (np.arange(n_draws) + 0.5) / n_draws
    return np.concatenate([half, -half], axis=1), rng.permutation(shares)


def _log_proposal(normal: jax.Array, thorough: bool) -> jax.Array:
    """Log density of standardised points ``(..., q)``, but for a constant."""
    square = jnp.sum(normal**2, axis=-1)
    if not thorough:
        return -square / 2
    return -(_DEGREES + normal.shape[-1]) / 2 * jnp.log1p(square / _DEGREES)


def _statistics(origin: np.ndarray, moments: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Make mean, sd and quantiles ``(statistics, U, entries)`` of moments about an origin.

    Quantiles of what is nearly normal follow from its moments (Cornish and Fisher 1938, Revue de
    l'Institut international de statistique 5), far more precisely than from `kept` values
    ``(A, U, entries)``.
    """
    first, second, third, fourth = moments
    variance = np.maximum(second - first**2, 0.0)
    sd = np.sqrt(variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        skew = (third - 3 * first * second + 2 * first**3) / sd**3
        central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
        excess = central / variance**2 - 3
    low, high = _NEARLY_NORMAL_EXCESS
    far = ~((np.abs(skew) < _NEARLY_NORMAL_SKEW) & (excess > low) & (excess < high))
    mean = origin + first
    quantiles = [mean + sd * _expanded_quantile(share, skew, excess) for share in QUANTILES]
    if far.any():
        by_order = np.quantile(kept[:, far], QUANTILES, axis=0, method="hazen")
        for quantile, exact in zip(quantiles, by_order, strict=True):
            quantile[far] = exact
    return np.stack([mean, sd, *quantiles])


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


class _Around(NamedTuple):
    """The modes of all units at one draw of u."""

    density: newton.Density
    hills: hills.Hills
    lost: jax.Array  # units
    thorough: bool

    def candidate(self, normal: jax.Array, share: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Make points of standardised ones ``(U, q)``, and give the log of their weights.

        Of several modes a unit takes the one that its `share` ``(U,)``, uniform, falls to.
        """
        effects, factor, log_mass = self.hills
        if len(effects) == 1:
            point = effects[0] + newton.back_solve(factor[0], normal)
            log_proposal = _log_proposal(normal, self.thorough)
        else:
            # Where no mode is there, the first place is as good as any.
            nowhere = ~jnp.isfinite(log_mass).any(axis=0)
            log_share = jax.nn.log_softmax(log_mass.at[0].max(jnp.where(nowhere, 0.0, -jnp.inf)), 0)
            taken = jnp.sum(jnp.cumsum(jnp.exp(log_share), axis=0)[:-1] < share, axis=0)
            units = jnp.arange(effects.shape[1])
            point = effects[taken, units] + newton.back_solve(factor[taken, units], normal)
            away = jnp.einsum("muji,muj->mui", factor, point - effects)
            logs = log_share + hills.log_determinant(factor) + _log_proposal(away, self.thorough)
            log_proposal = jax.scipy.special.logsumexp(logs, axis=0)
        value = self.density(point)[0]
        return point, jnp.where(jnp.isnan(value), -jnp.inf, value) - log_proposal


def _around(
    model: ShardModel, data: ShardData, center: Center, u: jax.Array, thorough: bool
) -> _Around:
    """Find the modes of all units at `u`, from those at the center.

    If not `thorough` they move as they begin to, and have the shape that they had.
    """

    def density(effects: jax.Array) -> tuple[jax.Array, Terms]:
        return unit_density(model, u, effects, data, center.reference)

    def follow(mode: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        effects, slope = mode
        near = newton.ascend(density, effects, _LOOKS, _NEAR, slope @ (u - center.u))
        arrived = near.decrement < _LOST
        there = near.effects + jnp.where(arrived[:, None], near.step, 0.0)
        log_mass = near.value - hills.log_determinant(near.factor)
        return there, near.factor, jnp.where(arrived, log_mass, -jnp.inf), arrived

    if not thorough:
        moved = center.effects + center.slope @ (u - center.u)
        nothing = jnp.zeros(moved.shape[:2], u.dtype)
        summits = hills.Hills(moved, center.factor, nothing)
        return _Around(density, summits, jnp.zeros((), int), thorough)
    effects, factor, log_mass, arrived = lax.map(follow, (center.effects, center.slope))
    log_mass = jnp.where(center.present, log_mass, -jnp.inf)
    lost = jnp.sum(data.mask(unit_level(model)) & ~arrived.any(axis=0))
    return _Around(density, hills.Hills(effects, factor, log_mass), lost, thorough)


def _candidates(model: ShardModel, thorough: bool) -> Callable[..., _Told]:
    """Make what candidates say at a block of draws of u, those that are counted."""

    def run(
        data: ShardData,
        center: Center,
        draws: jax.Array,
        points: jax.Array,
        shares: jax.Array,
        counted: jax.Array,
    ) -> _Told:
        origin = _flat_values(model, center.u, center.effects[0], data)

        def at_draw(given: tuple[jax.Array, ...]) -> tuple[Any, ...]:
            u, normal, share = given
            around = _around(model, data, center, u, thorough)
            units, n = around.hills.effects.shape[1], len(normal)
            # As many candidates fall to a mode as are its due.
            shares = (share + jnp.arange(n)) / n

            def one(given: tuple[jax.Array, jax.Array]) -> Any:
                point, share = (jnp.broadcast_to(part, (units, *part.shape)) for part in given)
                effects, log_weight = around.candidate(point, share)
                return _flat_values(model, u, effects, data), effects - line, log_weight

            line = center.effects[0] + center.slope[0] @ (u - center.u)
            sites, off, log_weight = lax.map(one, (normal, shares))
            weights = _normalised(log_weight)
            moments, kept = {}, {}
            so_far = jnp.cumsum(weights, axis=0)
            n_kept = min(n, _KEPT)
            at = (jnp.arange(n_kept) + share) / n_kept
            which = jnp.sum(so_far[None, :-1] < at[:, None, None], axis=1)  # (kept, U)
            for name, values in sites.items():
                away = values - origin[name]
                powers = [away, away**2, away**3, away**4]
                moments[name] = jnp.stack([jnp.einsum("cu,cue->ue", weights, p) for p in powers])
                kept[name] = jnp.take_along_axis(values, which[:, :, None], axis=0)
            efficiency = 1 / (n * jnp.sum(weights**2, axis=0))
            residual = jnp.einsum("cu,cuq->uq", weights, off)
            outer = jnp.einsum("cu,cuq,cur->uqr", weights, off, off)
            return moments, kept, residual, outer, efficiency, around.lost

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


def _drawn(model: ShardModel, thorough: bool) -> Callable[..., Any]:
    """Draw local sites once at each draw of u, ``(B, U, entries)``, by weights of candidates.

    The effective share of the candidates comes second, ``(B, U)``.
    """
    n_candidates = _MANY if thorough else _FEW

    def run(data: ShardData, center: Center, draws: jax.Array, keys: jax.Array) -> Any:
        def at_draw(given: tuple[jax.Array, jax.Array]) -> Any:
            u, key = given
            around = _around(model, data, center, u, thorough)
            units, q = around.hills.effects.shape[1:]

            def add(i: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
                taken, best, total, square = state
                keys = jax.random.split(jax.random.fold_in(key, i), 4)
                points = jax.random.normal(keys[0], (units, q), u.dtype)
                share = jax.random.uniform(keys[1], (units,), u.dtype)
                if thorough:
                    uniform = jax.random.uniform(
                        keys[3], (_DEGREES // 2, units), u.dtype, minval=1e-12
                    )
                    chi_square = -2 * jnp.sum(jnp.log(uniform), axis=0)
                    points *= jnp.sqrt(_DEGREES / chi_square)[:, None]
                effects, log_weight = around.candidate(points, share)
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
