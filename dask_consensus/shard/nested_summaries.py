"""Statistics of effects on several levels, over draws of ``u``.

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
from .candidates import LOOKS, Look, log_proposal, log_shares, points_of
from .compiling import compiled, on_device
from .effects import relative_sds
from .local_draws import MANY, at_a_time, evenly_enough
from .local_sites import local_sites, returned
from .nested import Effects, Nest, nest_of, value_rules
from .nested_given import (
    POSITION,
    around,
    at_center,
    density_given,
    parents_of,
    site_names,
    sites_at,
    units_of_tiers,
)
from .nested_places import Center, Settled, center_at, followed
from .nested_shrinkage import log_sds_of_tiers, shrinkage
from .quadrature import Nodes, rule
from .shrinkage import widening_at
from .subsets import some_groups
from .summaries import STATISTICS, GivenShared, Summary, in_place, normalised, statistics_of
from .tiers import tiers

_NODES = {1: 5, 2: 4, 3: 3}  # an axis; of more effects two on each
_EVEN = 0.93  # efficiency of a unit at the nodes with which no closer look is needed
_PATHS = 8  # candidates of a tier, taken by weight, that the tier within is looked at given
_LEAST_KEPT = 2  # candidates a path


def summarize(
    model: ShardModel, data: ShardData, draws: np.ndarray, center: np.ndarray, n_modes: int
) -> tuple[Summary, ...]:
    """Summarize the effects of each tier as :func:`.local_draws.summarize` does; rows have none."""
    if n_modes > 1:
        return _summarized(model, data, draws, center, LOOKS[-1:])[0]
    whole, unsure = _summarized(model, data, draws, center, ())
    outermost = unsure[0].copy()
    parents = [parents_of(model, data, t, 0) for t in range(len(whole))]
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


def looks_at_rows(model: ShardModel, *, summary: bool) -> tuple[int, int]:
    """Give the least and the largest number of looks at every row, for one draw of u."""
    deeper = [len(its.nodes.log_weights) for its in value_rules(model, POSITION)]
    least = most = 0
    for t in range(len(returned(model))):
        inside = math.prod(deeper[t + 1 :])
        least += (_n_candidates(model, None, t) if summary else LOOKS[0].candidates) * inside
        most += LOOKS[-1].candidates * (_PATHS**t if summary else 1) * inside
    return least, most


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
    all_tiers, real, n = returned(model), units_of_tiers(model, data), len(draws)
    with precision(model.double):
        arrays, here = on_device((data, center))
        origin = center_at(model, arrays, here)
        modes = origin.effects[: len(all_tiers)]
        widening = widening_at(model, arrays, origin, draws, modes, log_sds_of_tiers(model))

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
        shrink = compiled(model, "nested shrinkage", lambda: shrinkage(model), arrays, origin)
        shrunk, deeper = jax.device_get(shrink(arrays, origin))
    summaries: list[Summary] = []
    unsure: list[np.ndarray] = []
    means: list[np.ndarray] = []
    for t, (tier, units) in enumerate(zip(all_tiers, real, strict=True)):
        told = [part[0][t] for part in parts]
        statistics, shares = {}, {}
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
            shares[site.name] = shrunk[site.name][:units].reshape(units, *site.entry)
        if t:
            # What is known of inner units is a mixture over the outer ones.
            doubtful |= unsure[t - 1][parents_of(model, data, t, t - 1)]
        away = sum(its.residual[:units] for its in told) / n
        outer = sum(its.outer[:units] for its in told) / n
        slopes = [np.asarray(slope)[:units] for slope in origin.placed[t].slopes]
        moved = np.array(away)
        for r, slope in enumerate(slopes):
            moved += np.einsum("uij,uj->ui", slope, means[r][parents_of(model, data, t, r)])
        means.append(moved)
        given_shared = GivenShared(
            np.asarray(origin.effects[t])[:units] + moved,
            np.asarray(origin.alone[t])[:units],
            np.asarray(widening[t])[:units],
            outer - away[:, :, None] * away[:, None, :],
            np.concatenate([*slopes, np.zeros((units, tier.q, 0))], axis=2),
        )
        candidates = _n_candidates(model, look, t)
        lost = sum(float(part[1][t]) for part in parts) / n
        effective = efficiency * candidates * n
        summaries.append(Summary(statistics, shares, given_shared, efficiency, effective, lost))
        unsure.append(doubtful)
    return tuple(summaries), unsure


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
        sites = site_names(nest.model, t)
        density = density_given(nest, self.settled, outer)
        place, factor = around(nest, self.settled, outer, density, followed=look is not None)
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
            values = sites_at(nest, self.settled, (*outer, effects))
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
        there = nest_of(model, data, center.u, center.reference)
        origin = sites_at(there, at_center(center), center.effects)

        def at_draw(given: tuple[Any, ...]) -> tuple[list[_Told], list[jax.Array]]:
            u, its, share = given
            nest = replace(there, u=u)
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


def _lost(nest: Nest, settled: Settled) -> list[jax.Array]:
    """Count the units of each tier of whose outermost groups some mode was not found."""
    counts = []
    for t in range(len(returned(nest.model))):
        lost = settled.lost[nest.parents(t, 0)] if t else settled.lost
        counts.append(jnp.sum(nest.mask(t) & lost))
    return counts
