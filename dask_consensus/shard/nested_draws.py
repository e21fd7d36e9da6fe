"""Effects on several levels, given draws of ``u``: of each tier given those outside.

Given ``u`` the effects of outer groups have the density from which those of inner groups are
integrated out; those of inner groups, given the outer ones, theirs. So candidates of the outermost
tier are weighted by that marginal density, one is taken, the modes of the tier within are found
given it, and so on inwards: sampling importance resampling (Rubin 1988), tier by tier.

For a summary nothing need be taken at random: the nodes of a Gauss-Hermite rule are the candidates
of each tier, and around each outer node lie those of the tier within, which makes what is known of
inner effects a mixture over the outer ones. Units whose weights there are uneven, or whose moments
are far from normal, are looked at again with their outermost groups, by candidates as on one level;
of the outer ones a few, by weight, stand for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..model.model import ShardModel, precision
from ..shard_data import ShardData
from . import newton
from .candidates import LOOKS, Look, Taken, log_proposal, log_shares, points_of, random_point
from .compiling import compiled, on_device
from .effects import relative_sds
from .local_draws import BLOCK, MANY, at_a_time, evenly_enough
from .local_sites import flat_values, local_sites, returned
from .nested import Effects, Nest, Outside, coarse, nest_of, value_rules
from .nested_places import LOST, Center, Settled, center_at, followed
from .quadrature import Nodes, rule
from .shrinkage import prior_density, share_left, widening_at
from .subsets import some_groups
from .summaries import STATISTICS, GivenShared, Summary, in_place, normalised, statistics_of
from .tiers import tiers, unpack

_POSITION = 2  # of the ladders: rules by which effects of deeper tiers are integrated out
_NODES = {1: 5, 2: 4, 3: 3}  # an axis; of more effects two on each
_EVEN = 0.93  # efficiency of a unit at the nodes with which no closer look is needed
_PATHS = 8  # candidates of a tier, taken by weight, that the tier within is looked at given
_LEAST_KEPT = 2  # candidates a path
_LOOKS, _NEAR = 8, 0.03  # of a climb to modes given outer effects


def summarize(
    model: ShardModel, data: ShardData, draws: np.ndarray, center: np.ndarray, n_modes: int
) -> tuple[Summary, ...]:
    """Summarize the effects of each tier as :func:`.local_draws.summarize` does; rows have none."""
    if n_modes > 1:
        return _summarized(model, data, draws, center, LOOKS[-1:])[0]
    whole, unsure = _summarized(model, data, draws, center, ())
    outermost = unsure[0].copy()
    parents = _parents(model, data)
    for into, its in zip(parents, unsure, strict=True):
        outermost[into[its]] = True
    if not outermost.any():
        return whole
    alone, inside = data, [np.ones(len(into), bool) for into in parents]
    if outermost.mean() <= MANY:
        level = tiers(model)[0].level
        argument = next(name for name, its in model.codes.items() if its == level)
        alone = some_groups(data, model.codes, argument, np.flatnonzero(outermost))
        inside = [outermost[into] for into in parents]
    closer = _summarized(model, alone, draws, center, LOOKS[1:])[0]
    return tuple(
        in_place(then, _those(now, its[chosen]), its)
        for then, now, its, chosen in zip(whole, closer, unsure, inside, strict=True)
    )


def look_at(
    model: ShardModel, data: ShardData, draws: np.ndarray, center: np.ndarray, n_modes: int
) -> int:
    """Tell which look effects need, as :func:`.local_draws.look_at` does."""
    if n_modes > 1:
        return len(LOOKS) - 1
    named = (0, 0, np.arange(len(draws)))
    for which, look in enumerate(LOOKS[:-1]):
        parts = _draw_in_blocks(model, data, draws, center, named, look)
        of_tiers = zip(*(even for _, even in parts), strict=True)
        even = [np.concatenate(its)[: len(draws)].mean(axis=0) for its in of_tiers]
        pairs = zip(even, _real(model, data), strict=True)
        if all(evenly_enough(its[:real], look) for its, real in pairs):
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
    """Draw the effects of all tiers together, as :func:`.local_draws.draw_effects` does."""
    n = len(draws)
    parts = _draw_in_blocks(model, data, draws, center, named, LOOKS[look])
    drawn = {}
    for site in local_sites(model):
        real = int(np.sum(data.mask(site.level)))
        values = np.concatenate([sites[site.name] for sites, _ in parts])[:n, :real]
        drawn[site.name] = values.reshape(n, real, *site.entry)
    return drawn


def looks_at_rows(model: ShardModel, *, summary: bool) -> tuple[int, int]:
    """Give the least and the largest number of looks at every row, for one draw of u."""
    deeper = [len(its.nodes.log_weights) for its in value_rules(model, _POSITION)]
    least = most = 0
    for t in range(len(returned(model))):
        inside = math.prod(deeper[t + 1 :])
        least += (_n_candidates(model, None, t) if summary else LOOKS[0].candidates) * inside
        most += LOOKS[-1].candidates * (_PATHS**t if summary else 1) * inside
    return least, most


def _draw_in_blocks(
    model: ShardModel,
    data: ShardData,
    draws: np.ndarray,
    center: np.ndarray,
    named: tuple[int, int, np.ndarray],
    look: Look,
) -> list[tuple[dict[str, np.ndarray], tuple[np.ndarray, ...]]]:
    """Draw local sites, ``(B, U, entries)``; how even weights were on each tier comes second."""
    parts = []
    with precision(model.double):
        arrays, here = on_device((data, center))
        origin = center_at(model, arrays, here)
        seed, shard, numbers = named
        root = jax.random.fold_in(jax.random.key(seed), shard)
        keys = jax.vmap(lambda number: jax.random.fold_in(root, number))(numbers)
        for first in range(0, len(draws), BLOCK):
            where = np.resize(np.arange(first, min(first + BLOCK, len(draws))), BLOCK)
            given = (arrays, origin, on_device(draws[where]), keys[where])
            run = compiled(model, ("nested draws", look), lambda: _drawn(model, look), *given)
            parts.append(jax.device_get(run(*given)))
    return parts


def _real(model: ShardModel, data: ShardData) -> list[int]:
    """Count the units of each tier that is returned."""
    return [int(np.sum(data.mask(tier.level))) for tier in returned(model)]


def _parents(model: ShardModel, data: ShardData) -> list[np.ndarray]:
    """Give the outermost unit that each unit of each tier lies in."""
    codes = {level: np.asarray(data.arguments[name]) for name, level in model.codes.items()}
    outermost = codes[tiers(model)[0].level]
    found = []
    for tier, real in zip(returned(model), _real(model, data), strict=True):
        into = np.zeros(len(data.mask(tier.level)), int)
        into[codes[tier.level]] = outermost
        found.append(into[:real])
    return found


def _those(summary: Summary, units: np.ndarray) -> Summary:
    """Take what is said of some units."""
    return Summary(
        {name: values[:, units] for name, values in summary.statistics.items()},
        {name: values[units] for name, values in summary.shrinkage.items()},
        GivenShared(*(part[units] for part in summary.given_shared)),
        summary.efficiency[units],
        summary.effective[units],
        summary.modes_not_found,
    )


# Summaries


class _Told(NamedTuple):
    """What candidates say of a tier, given the effects outside; units come first."""

    moments: Mapping[str, Any]  # (U, 4, entries) powers of what values are beyond the center's
    kept: Mapping[str, Any]  # (U, kept, entries) candidates, as often as their weights say
    residual: Any  # (U, q) raw effects less what they would be on a line in u and outer effects
    outer: Any  # (U, q, q), its products
    efficiency: Any  # (U,) effective share of the candidates


def _summarized(
    model: ShardModel,
    data: ShardData,
    draws: np.ndarray,
    center: np.ndarray,
    looks: Sequence[Look],
) -> tuple[tuple[Summary, ...], list[np.ndarray]]:
    """Summarize by nodes, or by the first look that is enough; and of which units it is not."""
    all_tiers, real, n = returned(model), _real(model, data), len(draws)
    with precision(model.double):
        arrays, here = on_device((data, center))
        origin = center_at(model, arrays, here)
        modes = origin.effects[: len(all_tiers)]
        widening = widening_at(model, arrays, origin, draws, modes, _log_sds_of(model))

        def ask(first: int, look: Look | None) -> tuple[Any, ...]:
            size = _at_a_time(model, data, look, n)
            where = np.resize(np.arange(first, min(first + size, n)), size)
            counted = np.arange(size) < n - first
            points, shares = _points(model, look, n)
            points = tuple(part if look is None else part[where] for part in points)
            given = (arrays, origin, *on_device((draws[where], points, shares[where])))
            kind = ("nested candidates", look)
            run = compiled(model, kind, lambda: _candidates(model, look), *given, counted, widening)
            told, lost, values = jax.device_get(run(*given, counted, widening))
            kept = [{k: v[counted] for k, v in its.kept.items()} for its in told]
            return [t._replace(kept=k) for t, k in zip(told, kept, strict=True)], lost, values

        for look in looks or (None,):
            first = ask(0, look)
            size = _at_a_time(model, data, look, n)
            if look is None or all(
                evenly_enough(its.efficiency[:units] / size, look)
                for its, units in zip(first[0], real, strict=True)
            ):
                break
        parts = [first, *(ask(at, look) for at in range(size, n, size))]
        shrink = compiled(model, "nested shrinkage", lambda: _shrinkage(model), arrays, origin)
        shrunk, deeper = jax.device_get(shrink(arrays, origin))
    summaries: list[Summary] = []
    unsure: list[np.ndarray] = []
    means: list[np.ndarray] = []
    for t, (tier, units) in enumerate(zip(all_tiers, real, strict=True)):
        told = [part[0][t] for part in parts]
        statistics, shrinkage = {}, {}
        efficiency = np.asarray(sum(its.efficiency[:units] for its in told) / n)
        doubtful = efficiency < _EVEN if look is None else np.zeros(units, bool)
        for site in local_sites(model):
            if site.level != tier.level or deeper[site.name]:
                continue
            moments = sum(its.moments[site.name][:units] for its in told) / n
            kept = np.concatenate([its.kept[site.name][:, :units] for its in told])
            kept = np.moveaxis(kept, 2, 1).reshape(-1, units, kept.shape[-1])
            values, far = statistics_of(
                first[2][site.name][:units],
                np.moveaxis(moments, 1, 0),
                kept,
                by_order=look is LOOKS[-1],
            )
            if look is None:
                doubtful |= far.any(axis=1)
            statistics[site.name] = values.reshape(len(STATISTICS), units, *site.entry)
            shrinkage[site.name] = shrunk[site.name][:units].reshape(units, *site.entry)
        if t:
            # What is known of inner units is a mixture over the outer ones.
            nearest = [np.asarray(x)[:units] for x in _outer_units(model, arrays, t)]
            doubtful |= unsure[t - 1][nearest[t - 1]]
        away = sum(its.residual[:units] for its in told) / n
        outer = sum(its.outer[:units] for its in told) / n
        slopes = [np.asarray(slope[:units]) for slope in origin.placed[t].slopes]
        moved = np.array(away)
        for r, slope in enumerate(slopes):
            moved += np.einsum("uij,uj->ui", slope, means[r][nearest[r]])
        means.append(moved)
        given_shared = GivenShared(
            np.asarray(origin.effects[t][:units]) + moved,
            np.asarray(origin.alone[t][:units]),
            np.asarray(widening[t][:units]),
            outer - away[:, :, None] * away[:, None, :],
            np.concatenate([*slopes, np.zeros((units, tier.q, 0))], axis=2),
        )
        candidates = _n_candidates(model, look, t)
        lost = sum(float(part[1][t]) for part in parts) / n
        effective = efficiency * candidates * n
        summaries.append(Summary(statistics, shrinkage, given_shared, efficiency, effective, lost))
        unsure.append(doubtful)
    return tuple(summaries), unsure


def _outer_units(model: ShardModel, data: ShardData, t: int) -> list[jax.Array]:
    nest = nest_of(model, data, jnp.zeros(model.dim))
    return [nest.parents(t, r) for r in range(t)]


def _at_a_time(model: ShardModel, data: ShardData, look: Look | None, draws: int) -> int:
    numbers = [
        len(data.mask(tier.level)) * tier.q * (_kept(look, t) * _PATHS**t if look else 1)
        for t, tier in enumerate(returned(model))
    ]
    return at_a_time(max(numbers), draws)


def _kept(look: Look, t: int) -> int:
    """Candidates of a tier that are kept of each path that leads there."""
    return max(look.kept // _PATHS**t, _LEAST_KEPT)


def _n_candidates(model: ShardModel, look: Look | None, t: int) -> int:
    if look is None:
        return int(np.prod([len(_nodes(tier.q).log_weights) for tier in tiers(model)[: t + 1]]))
    return int(look.candidates * _PATHS**t)


def _nodes(q: int) -> Nodes:
    return rule(q, _NODES.get(q, 2 * q))


def _points(
    model: ShardModel, look: Look | None, n_draws: int
) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Make points of each tier; and a uniform number of each draw.

    They are nodes ``(1, candidates, q)``, the same for all draws, or ``(n_draws, paths, candidates,
    q)``.
    """
    if look is None:
        return tuple(_nodes(tier.q).points[None] for tier in returned(model)), np.full(n_draws, 0.5)
    points = []
    for t, tier in enumerate(returned(model)):
        paths = _PATHS**t
        its, shares = points_of(tier.q, n_draws * paths, look)
        points.append(its.reshape(n_draws, paths, *its.shape[1:]))
        if not t:
            shares_of_draws = shares
    return tuple(points), shares_of_draws


def _log_shares(q: int, look: Look | None) -> np.ndarray:
    """Log of the weights of candidates where the proposal is the density."""
    if look is not None:
        return log_shares(q, look)
    nodes = _nodes(q)
    return nodes.log_weights - (nodes.points**2).sum(axis=1) / 2


@dataclass(frozen=True)
class _Exploring:
    """What is looked at, at one draw of u."""

    nest: Nest
    center: Center
    settled: Settled
    look: Look | None
    origin: Mapping[str, jax.Array]  # local sites at the center
    widening: tuple[jax.Array, ...]

    def given(self, outer: Effects, points: tuple[jax.Array, ...], share: jax.Array) -> list[_Told]:
        """Say of the tier within `outer`, and of all within it, what they are given these."""
        t, look, nest = len(outer), self.look, self.nest
        sites = _names(nest.model, t)
        density = _density(nest, self.settled, outer)
        place, factor = _around(nest, self.settled, outer, density, followed=look is not None)
        line = self._line(outer)
        wider = relative_sds(self.widening[t], nest.u - self.center.u)

        def candidate(point: jax.Array) -> tuple[Any, ...]:
            standardised = jnp.broadcast_to(point, place.shape)
            effects = place + newton.back_solve(factor, standardised)
            value, _ = density(effects)
            value = jnp.where(jnp.isnan(value), -jnp.inf, value)
            if look is None:
                log_weight = value + jnp.sum(standardised**2, axis=1) / 2
            else:
                log_weight = value - log_proposal(standardised, look)
            values = _sites(nest, self.settled, (*outer, effects))
            away = {name: values[name] - self.origin[name] for name in sites}
            return away, effects, (effects - line) / wider, log_weight

        away, effects, off, log_weight = lax.map(candidate, points[0][0])
        log_share = jnp.asarray(_log_shares(place.shape[1], look), place.dtype)[:, None]
        weights = normalised(log_weight + log_share)  # (C, U)
        moments = {
            name: jnp.stack(
                [jnp.einsum("cu,cue->ue", weights, values**k) for k in (1, 2, 3, 4)], axis=1
            )
            for name, values in away.items()
        }
        n_kept = 0 if look is None else _kept(look, t)
        which = _taken(weights, n_kept, share)
        kept = {
            name: jnp.moveaxis(
                jnp.take_along_axis(values + self.origin[name], which[:, :, None], axis=0), 0, 1
            )
            for name, values in away.items()
        }
        here = _Told(
            moments,
            kept,
            jnp.einsum("cu,cuq->uq", weights, off),
            jnp.einsum("cu,cuq,cur->uqr", weights, off, off),
            1 / jnp.sum(weights**2 / jnp.exp(log_share), axis=0),
        )
        if t + 1 == len(returned(nest.model)):
            return [here]
        if look is None:
            paths, path_weights = effects, weights
            deeper: tuple[jax.Array, ...] = ()
        else:
            which = _taken(weights, _PATHS, share)
            paths = jnp.take_along_axis(effects, which[:, :, None], axis=0)
            path_weights = jnp.full(which.shape, 1 / _PATHS, place.dtype)
            deeper = tuple(its.reshape(_PATHS, -1, *its.shape[1:]) for its in points[1:])

        def along(given: tuple[jax.Array, tuple[jax.Array, ...]]) -> list[_Told]:
            path, its = given
            return self.given((*outer, path), its if its else points[1:], share)

        within = lax.map(along, (paths, deeper))
        return [
            here,
            *(self._mixed(its, path_weights, t, t + 1 + i) for i, its in enumerate(within)),
        ]

    def _line(self, outer: Effects) -> jax.Array:
        """Where the effects of a tier would be if they moved as they begin to at the center."""
        t, center = len(outer), self.center
        line = center.effects[t] + center.alone[t] @ (self.nest.u - center.u)
        for r, (its, slope) in enumerate(zip(outer, center.placed[t].slopes, strict=True)):
            away = (its - center.effects[r])[self.nest.parents(t, r)]
            line = line + jnp.einsum("uij,uj->ui", slope, away)
        return line

    def _mixed(self, told: _Told, weights: jax.Array, t: int, inner: int) -> _Told:
        """Average what is said of an inner tier over the effects of tier `t`."""
        its = weights[:, self.nest.parents(inner, t)]
        mean = jax.tree.map(
            lambda values: jnp.einsum("pu,pu...->u...", its, values), told._replace(kept={})
        )
        kept = {
            name: jnp.moveaxis(values, 0, 1).reshape(values.shape[1], -1, values.shape[-1])
            for name, values in told.kept.items()
        }
        mixed: _Told = mean._replace(kept=kept)
        return mixed


def _taken(weights: jax.Array, n: int, share: jax.Array) -> jax.Array:
    """Take candidates by their weights ``(C, U)``: numbers of ``(n, U)``."""
    at = (jnp.arange(n) + share) / max(n, 1)
    taken: jax.Array = jnp.sum(jnp.cumsum(weights, axis=0)[None, :-1] < at[:, None, None], axis=1)
    return taken


def _density(nest: Nest, settled: Settled, outer: Effects) -> newton.Density:
    """Log density of the effects of the tier within `outer`, deeper ones integrated out."""
    t, rules = len(outer), value_rules(nest.model, _POSITION)

    def density(effects: jax.Array) -> tuple[jax.Array, Outside]:
        return nest.density((*outer, effects), settled.placed[t + 1 :], rules[t + 1 :])

    return density


def _around(
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


def _sites(nest: Nest, settled: Settled, effects: Effects) -> dict[str, jax.Array]:
    """Local sites at effects of the outer tiers, deeper ones at their modes given these."""
    return flat_values(nest.model, nest.u, _local(nest, settled, effects), nest.data)


def _at_center(center: Center) -> Settled:
    return Settled(center.placed, jnp.zeros(len(center.effects[0]), bool))


def _local(nest: Nest, settled: Settled, effects: Effects) -> dict[str, jax.Array]:
    for here in settled.placed[len(effects) :]:
        effects = (*effects, nest.place(here, effects))
    local: dict[str, jax.Array] = {}
    for tier, its in zip(tiers(nest.model), effects, strict=True):
        local |= unpack(tier.sites, its)
    return local


def _candidates(model: ShardModel, look: Look | None) -> Callable[..., Any]:
    """Make what candidates say at a block of draws of u, those that are counted."""

    def run(
        data: ShardData,
        center: Center,
        draws: jax.Array,
        points: tuple[jax.Array, ...],
        shares: jax.Array,
        counted: jax.Array,
        widening: tuple[jax.Array, ...],
    ) -> tuple[list[_Told], list[jax.Array], dict[str, jax.Array]]:
        at_center = nest_of(model, data, center.u, center.reference)
        origin = _sites(at_center, _at_center(center), center.effects)

        def at_draw(given: tuple[Any, ...]) -> tuple[list[_Told], list[jax.Array]]:
            u, its, share = given
            nest = replace(at_center, u=u)
            settled = followed(nest, center)
            exploring = _Exploring(nest, center, settled, look, origin, widening)
            return exploring.given((), its or points, share), _lost(nest, settled)

        told, lost = lax.map(at_draw, (draws, () if look is None else points, shares))

        def total(values: jax.Array) -> jax.Array:
            mask = counted.reshape(-1, *[1] * (values.ndim - 1))
            return jnp.sum(jnp.where(mask, values, 0), axis=0)

        added = [jax.tree.map(total, its._replace(kept={}))._replace(kept=its.kept) for its in told]
        return added, list(map(total, lost)), origin

    return run


def _names(model: ShardModel, t: int) -> list[str]:
    """Name the sites of a tier."""
    level = tiers(model)[t].level
    return [site.name for site in local_sites(model) if site.level == level]


def _lost(nest: Nest, settled: Settled) -> list[jax.Array]:
    """Count the units of each tier of whose outermost groups some mode was not found."""
    counts = []
    for t in range(len(returned(nest.model))):
        lost = settled.lost[nest.parents(t, 0)] if t else settled.lost
        counts.append(jnp.sum(nest.mask(t) & lost))
    return counts


# Draws


def _drawn(model: ShardModel, look: Look) -> Callable[..., Any]:
    """Draw local sites once at each draw of u, ``(B, U, entries)``, by weights of candidates.

    The effective share of the candidates of each tier comes second, ``(B, U)``.
    """

    def run(data: ShardData, center: Center, draws: jax.Array, keys: jax.Array) -> Any:
        at_center = nest_of(model, data, center.u, center.reference)

        def at_draw(given: tuple[jax.Array, jax.Array]) -> Any:
            u, key = given
            nest = replace(at_center, u=u)
            settled = followed(nest, center)
            effects: Effects = ()
            even: tuple[jax.Array, ...] = ()
            for t in range(len(returned(model))):
                taken = _take(nest, settled, effects, jax.random.fold_in(key, t), look)
                effects = (*effects, taken.effects)
                even = (*even, taken.efficiency(look.candidates))
            return _sites(nest, settled, effects), even

        return lax.map(at_draw, (draws, keys))

    return run


def _take(nest: Nest, settled: Settled, outer: Effects, key: jax.Array, look: Look) -> Taken:
    """Take one candidate of each unit of the tier within `outer`."""
    density = _density(nest, settled, outer)
    place, factor = _around(nest, settled, outer, density, followed=True)
    shape = len(place), place.shape[1]

    def add(i: jax.Array, taken: Taken) -> Taken:
        keys = jax.random.split(jax.random.fold_in(key, i), 3)
        standardised = random_point(keys[:2], i, shape, look, place.dtype)
        effects = place + newton.back_solve(factor, standardised)
        value, _ = density(effects)
        value = jnp.where(jnp.isnan(value), -jnp.inf, value)
        return taken.or_else(i, keys[2], effects, value - log_proposal(standardised, look))

    start = Taken.none(*shape, place.dtype)
    taken: Taken = lax.fori_loop(0, look.candidates, add, start)
    return taken


# Curvatures


def _log_sds_of(model: ShardModel) -> Callable[..., Callable[[jax.Array], tuple[jax.Array, ...]]]:
    """Make the logarithms of the sds of the effects of each tier, given those outside."""

    def log_sds_of(data: ShardData, center: Center) -> Callable[[jax.Array], tuple[jax.Array, ...]]:
        at_center = nest_of(model, data, center.u, center.reference)

        def log_sds(u: jax.Array) -> tuple[jax.Array, ...]:
            placed = followed(replace(at_center, u=u), center).placed
            factors = [here.factor for here in placed[: len(returned(model))]]
            return tuple(0.5 * jnp.log(newton.variances(factor)) for factor in factors)

        return log_sds

    return log_sds_of


def _shrinkage(model: ShardModel) -> Callable[..., Any]:
    """Share of the prior's variance of each site that rows leave, given u and outer effects.

    And which sites depend on effects of deeper tiers, so that nothing can be said of them alone.
    """

    def run(data: ShardData, center: Center) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        nest = nest_of(model, data, center.u, center.reference)
        shrunk: dict[str, jax.Array] = {}
        deeper: dict[str, jax.Array] = {}
        for t in range(len(returned(model))):
            shrunk |= _shrunk(nest, center, t)
            deeper |= _deeper(nest, center, t)
        return shrunk, deeper

    return run


def _shrunk(nest: Nest, center: Center, t: int) -> dict[str, jax.Array]:
    model, settled = nest.model, _at_center(center)
    outer, modes, inner = center.effects[:t], center.effects[t], center.effects[t + 1 :]
    names = _names(model, t)

    def local(effects: jax.Array) -> dict[str, jax.Array]:
        return _local(nest, settled, (*outer, effects, *inner))

    def sites(effects: jax.Array) -> dict[str, jax.Array]:
        values = flat_values(model, nest.u, local(effects), nest.data)
        return {name: values[name] for name in names}

    def whole(effects: jax.Array) -> tuple[jax.Array, Outside]:
        rules = coarse(model)[t + 1 :]
        return nest.density((*outer, effects), center.placed[t + 1 :], rules)

    prior = prior_density(model, tiers(model)[t], nest.u, nest.data, local)
    return share_left(sites, modes, whole, prior)


def _deeper(nest: Nest, center: Center, t: int) -> dict[str, jax.Array]:
    """Tell which sites of a tier depend on effects of those within it."""
    names, inner = _names(nest.model, t), center.effects[t + 1 :]
    if not inner:
        return {name: jnp.zeros((), bool) for name in names}

    def sites(inner: Effects) -> dict[str, jax.Array]:
        values = _sites(nest, _at_center(center), (*center.effects[: t + 1], *inner))
        return {name: values[name] for name in names}

    # Sums over units must not vanish by chance.
    along = tuple(
        jnp.sin(1.0 + jnp.arange(its.size, dtype=its.dtype)).reshape(its.shape) for its in inner
    )
    moved = jax.jvp(sites, (inner,), (along,))[1]
    return {name: jnp.any(change != 0) for name, change in moved.items()}
