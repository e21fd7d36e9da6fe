"""Effects of all groups, given the posterior of the shared parameters: one pass over the shards.

What each shard says of its groups is in :mod:`..shard.local_draws`; here draws of the shared
parameters are chosen, answers are gathered, or written where they arise (:mod:`.store`), and
labelled by the values of the key columns.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from ..cluster.client import say
from ..cluster.journal import recalled
from ..cluster.mapreduce import Answer, each, map_reduce, on_worker
from ..cluster.shards import Shards
from ..cluster.tasks import broadcast, compute
from ..combination import gaussian
from ..correction.state import Correction
from ..model.model import ShardModel
from ..result.names import axis_labels, variable_name
from ..shard.engine import engine_of
from ..shard.local_sites import LocalSite, local_sites, returned
from ..shard.summaries import STATISTICS, GivenShared, Summary
from ..shard_data import ShardData
from .groups import Groups, free_name, groups_at
from .store import DrawStore

if TYPE_CHECKING:
    from dask.delayed import Delayed

    from ..plan.plan import Plan

GIVEN_SHARED = "given_shared"
# Effective points, of weights so uneven, below which statistics of a group are not to be relied on.
_ENOUGH, _UNEVEN = 100, 0.5
_TRIED = 16  # draws that tell how effects are to be drawn
_MOST_IN_MEMORY = 2**28  # bytes of draws that are brought to the client without a store


def local_effects(
    plan: Plan, shards: Shards, draws: np.ndarray, correction: Correction | None
) -> dict[str, xr.Dataset]:
    """Find the effects of all groups at some of the draws ``(chains, draws, d)``.

    Returns
    -------
    dict of Datasets
        ``local``: every site with one entry a group, with dims (statistic, <key>, ...) of a summary
        or (chain, draw, <key>, ...) of draws; of several levels each has a key of its own. Beside a
        summary, ``local/given_shared``: the normal distribution of the raw effects of each group
        given the shared parameters; of several levels in a node of each. Empty where
        :attr:`Plan.no_local_because` says why.
    """
    if plan.no_local_because:
        say(f"none, because {plan.no_local_because}")
        return {}
    levels = levels_of(plan, shards)
    center = draws.reshape(-1, draws.shape[-1]).mean(axis=0)
    shared = (plan.model, center, _n_modes(plan, shards, center, correction))
    if plan.options.local == "draws":
        return {"local": _draws(plan, shards, draws, levels, shared)}
    return _summary(plan, shards, draws, levels, shared)


def check_memory(plan: Plan, shards: Shards | None = None) -> None:
    """Refuse more draws than a client should be sent, before anything is sampled.

    Of inner groups it is not known before there are shards how many there are.

    Raises
    ------
    ValueError
        Saying how many they are, and what to do.
    """
    options = plan.options
    if options.local != "draws" or options.store is not None or plan.no_local_because:
        return
    chains = options.num_chains
    draws = chains * min(options.num_samples, max(1, plan.local_draws // chains))
    totals = np.full(len(plan.model.levels), plan.survey.n_groups)
    if shards is not None:
        totals = np.sum([size.groups for size in shards.sizes], axis=0)
    numbers = sum(
        math.prod(site.entry) * int(totals[site.level]) for site in local_sites(plan.model)
    )
    groups = max(int(totals[tier.level]) for tier in returned(plan.model))
    if 4 * draws * numbers > _MOST_IN_MEMORY:
        raise ValueError(
            f"{draws:,} draws of the effects of {groups:,} groups are "
            f"{4 * draws * numbers / 2**20:,.0f} MiB, too much to be brought to the client: pass "
            "store=, a folder or URL that the workers can write to, or fewer local_draws"
        )


class Level(NamedTuple):
    """A level whose effects are returned: its groups, and its sites."""

    level: int
    groups: Groups
    sites: tuple[LocalSite, ...]


def levels_of(plan: Plan, shards: Shards) -> tuple[Level, ...]:
    """Bring the keys of all groups that carry effects to the client, the outermost first."""
    taken = {"statistic", "chain", "draw"}
    sites = local_sites(plan.model)
    for site in sites:
        taken |= {variable_name(site.name), _shrinkage(site), *entry_dims(site)}
    levels = [tier.level for tier in returned(plan.model)]
    return tuple(
        Level(level, groups, tuple(site for site in sites if site.level == level))
        for level, groups in zip(levels, groups_at(plan, shards, levels, taken), strict=True)
    )


def chosen(draws: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """Take evenly spaced draws of each chain: which, and they themselves, ``(chains, n, d)``."""
    chains, n = draws.shape[:2]
    each_ = min(n, max(1, wanted // chains))
    which = np.unique(np.linspace(0, n - 1, each_).round().astype(int))
    return which, draws[:, which]


def representative(draws: np.ndarray, wanted: int) -> np.ndarray:
    """Take few draws ``(n, d)`` that have the mean and the covariance of all of them."""
    flat = draws.reshape(-1, draws.shape[-1])
    _, few = chosen(draws, wanted)
    few = few.reshape(-1, draws.shape[-1])
    if len(few) < len(flat) and len(few) > 2 * flat.shape[1] + 1:
        try:
            return gaussian.matched(few, *gaussian.moments(flat))
        except np.linalg.LinAlgError:  # draws that do not span the space
            return few
    return few + flat.mean(axis=0) - few.mean(axis=0)


# Summaries


def _summary(
    plan: Plan,
    shards: Shards,
    draws: np.ndarray,
    levels: tuple[Level, ...],
    shared: tuple[Any, ...],
) -> dict[str, xr.Dataset]:
    few = representative(draws, plan.local_draws)
    reports = map_reduce(
        each(_summarize),
        shards,
        [()] * shards.n,
        [broadcast((*shared, few))],
        _nothing,
        title="group effects",
    ).reports
    parts = [
        _of_level(its, [report.of_levels[t] for report in reports]) for t, its in enumerate(levels)
    ]
    quality = [
        _checked(its.groups, [r.of_levels[t] for r in reports], plan, len(few))
        for t, its in enumerate(levels)
    ]
    attributes = {"draws": len(few)} | {
        name: pick(one[name] for one in quality)
        for name, pick in (
            ("least_efficiency", min),
            ("least_effective", min),
            ("modes_not_found", max),
        )
    }
    coords = {"statistic": list(STATISTICS), **_entry_coords(plan, levels)}
    local = xr.merge(parts).assign_coords(coords).assign_attrs(attributes)
    _warn_of_missing(levels, local)
    given: dict[str, xr.Dataset] = {}
    if plan.model.crossed:
        # Hundreds of slopes a group, most of them zero: only draws tell how they belong together.
        return {"local": local}
    for t, its in enumerate(levels):
        path = f"local/{GIVEN_SHARED}" + (
            f"/{given_node(its.groups.dim)}" if len(levels) > 1 else ""
        )
        told = [report.of_levels[t].summary.given_shared for report in reports]
        given[path] = _given_shared(told, its.groups, local)
    return {"local": local, **given}


def given_node(dim: str) -> str:
    """Name the node of a level's normal distributions, where there are several."""
    return f"of_{dim}"


def _of_level(level: Level, reports: Sequence[_OfLevel]) -> xr.Dataset:
    """Lay out the statistics of the groups of a level."""
    groups, order = level.groups, level.groups.order()
    variables: dict[str, Any] = {}
    for site in level.sites:
        if not all(site.name in r.summary.statistics for r in reports):
            continue
        dims = (groups.dim, *entry_dims(site))
        summaries = np.concatenate([r.summary.statistics[site.name] for r in reports], axis=1)
        shrunk = np.concatenate([r.summary.shrinkage[site.name] for r in reports])
        variables[variable_name(site.name)] = (("statistic", *dims), summaries[:, order])
        variables[_shrinkage(site)] = (
            dims,
            shrunk[order],
            {"long_name": "share of the prior's variance that the group's own rows leave"},
        )
    rows = np.concatenate([report.rows for report in reports])
    variables[groups.rows] = (groups.dim, rows[order], {"long_name": "rows of the group"})
    return xr.Dataset(variables, groups.coords(order))


def _checked(
    groups: Groups, reports: Sequence[_OfLevel], plan: Plan, draws: int
) -> dict[str, float]:
    """Say how well the effects of a level are known, and warn where that is not enough."""
    efficiency = np.concatenate([report.summary.efficiency for report in reports])
    effective = np.concatenate([report.summary.effective for report in reports])
    lost = sum(report.summary.modes_not_found for report in reports) / groups.n
    if lost > plan.options.verdict.modes_not_found:
        warnings.warn(
            f"the mode of the effects of {lost:.1%} of the groups was not found, so that what is "
            "said of them may be wrong",
            UserWarning,
            stacklevel=6,
        )
    thin = int(np.sum((effective < _ENOUGH) & (efficiency < _UNEVEN)))
    if thin:
        warnings.warn(
            f"the effects of {thin:,} of {groups.n:,} groups are far from any distribution that "
            f"they were looked for in: their statistics rest on as few as {effective.min():.0f} "
            f"effective points; raise local_draws, now {draws}",
            UserWarning,
            stacklevel=6,
        )
    return {
        "least_efficiency": float(efficiency.min()),
        "least_effective": float(effective.min()),
        "modes_not_found": float(lost),
    }


def _warn_of_missing(levels: Sequence[Level], local: xr.Dataset) -> None:
    missing = [s.name for its in levels for s in its.sites if variable_name(s.name) not in local]
    if missing:
        warnings.warn(
            f"{', '.join(missing)}: left out of the summary, since the value for one group depends "
            "on the effects of groups within it; local='draws' has it",
            UserWarning,
            stacklevel=5,
        )


def _given_shared(given: Sequence[GivenShared], groups: Groups, local: xr.Dataset) -> xr.Dataset:
    """Lay out the normal distributions of raw effects, in the order of the groups."""
    order = groups.order()
    names: list[str] = []
    for wanted in ("effect", "effect_", "shared", "outer_effect"):
        names.append(free_name(wanted, {*map(str, local.dims), *names}))
    effect, other, shared, outer = names
    told = {
        "mean": ((effect,), "mean of the raw effects at that of the shared parameters"),
        "slope": ((effect, shared), "its change with the unconstrained shared parameters"),
        "widening": ((effect, shared), "change of the logarithms of sds with these"),
        "covariance": ((effect, other), "given the shared parameters, at their mean"),
        "outer": ((effect, outer), "change of the mean with raw effects of the levels outside"),
    }
    variables = {}
    for name, (dims, text) in told.items():
        values = np.concatenate([getattr(one, name) for one in given])[order].astype(np.float32)
        if values.size:
            variables[name] = ((groups.dim, *dims), values, {"long_name": text})
    return xr.Dataset(variables)


class _OfLevel(NamedTuple):
    summary: Summary
    rows: np.ndarray  # (groups,)


class _Report(NamedTuple):
    of_levels: tuple[_OfLevel, ...]


def _summarize(data: ShardData, shared: tuple[ShardModel, np.ndarray, int, np.ndarray]) -> Answer:
    """Summarize the effects of one shard's groups; runs on a worker."""
    model, center, n_modes, draws = shared
    summaries = engine_of(model).summaries(data, draws, center, n_modes)
    levels = [tier.level for tier in returned(model)]
    pairs = zip(summaries, levels, strict=True)
    return Answer(
        None, _Report(tuple(_OfLevel(s, _rows_of(model, data, level)) for s, level in pairs))
    )


def _rows_of(model: ShardModel, data: ShardData, level: int) -> np.ndarray:
    argument = next(name for name, its in model.codes.items() if its == level)
    counts = np.bincount(
        np.asarray(data.arguments[argument])[np.asarray(data.rows)],
        minlength=len(data.groups[level]),
    )
    return np.asarray(counts[: int(np.sum(data.groups[level]))])


# Draws


class _Kept(NamedTuple):
    """Draws of the shared parameters for each of which one of every group's effects is drawn."""

    draw: np.ndarray  # (n,) their numbers among those of a chain
    shared: np.ndarray  # (chains, n, d)

    def numbers(self, chain: int) -> np.ndarray:
        """Name the draws of a chain, for their random numbers."""
        return chain * len(self.draw) + np.arange(len(self.draw))


def _draws(
    plan: Plan,
    shards: Shards,
    draws: np.ndarray,
    levels: tuple[Level, ...],
    shared: tuple[Any, ...],
) -> xr.Dataset:
    options = plan.options
    kept = _Kept(*chosen(draws, plan.local_draws))
    chains, n = kept.shared.shape[:2]
    dims: dict[str, tuple[str, ...]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for _, groups, sites in levels:
        dims |= {s.name: ("chain", "draw", groups.dim, *entry_dims(s)) for s in sites}
        shapes |= {s.name: (chains, n, groups.n, *s.entry) for s in sites}
    coords = {"chain": np.arange(chains), "draw": kept.draw, **_entry_coords(plan, levels)}
    if options.store is not None:
        for _, groups, _ in levels:
            coords |= groups.coords(np.arange(groups.n))
        store = DrawStore(options.store)
        with store.named():
            block = store.create(dims, shapes, coords)
            _write_draws(plan, shards, kept, levels, shared, store, block)
        return store.opened()
    reports = map_reduce(
        each(_draw),
        shards,
        [(k,) for k in range(shards.n)],
        [broadcast((*shared, options.seed, kept))],
        _nothing,
        title="group effects",
    ).reports
    variables = {}
    for _, groups, sites in levels:
        order = groups.order()
        coords |= groups.coords(order)
        for site in sites:
            values = np.concatenate([report[site.name] for report in reports], axis=1)[:, order]
            its = variable_name(site.name)
            variables[its] = (dims[site.name], values.reshape(shapes[site.name]))
    return xr.Dataset(variables, coords)


def _write_draws(
    plan: Plan,
    shards: Shards,
    kept: _Kept,
    levels: tuple[Level, ...],
    shared: tuple[Any, ...],
    store: DrawStore,
    block: int,
) -> None:
    """Draw, and let workers write, some draws of a chain at a time."""
    chains, n = kept.shared.shape[:2]
    starts = {
        groups.dim: np.cumsum([0, *(size.groups[level] for size in shards.sizes)])
        for level, groups, _ in levels
    }
    looks: Sequence[int | None] = [None] * shards.n
    for chain in range(chains):
        for first in range(0, n, block):
            some = slice(first, min(first + block, n))
            title = f"group effects, {chain * n + some.stop:,} of {chains * n:,} draws"
            given = [broadcast((*shared, plan.options.seed, kept)), broadcast((chain, some))]
            write = partial(store.write, starts=starts, chain=chain, draws=some)
            written: _Written = recalled(
                title,
                ["draws written", list(shards.data), looks, given],
                partial(_write_block, shards, looks, given, title, write),
                partial(_holds, store, chain, some),
            )
            looks = written.looks


class _Written(NamedTuple):
    """What is known of draws that were written."""

    looks: list[int]  # how closely each shard was looked at
    checksums: list[str]  # of the chunks


def _write_block(
    shards: Shards,
    looks: Sequence[int | None],
    given: Sequence[Delayed],
    title: str,
    write: Callable[[Sequence[Delayed]], list[str]],
) -> _Written:
    mapped = map_reduce(
        each(_draw_and_keep),
        shards,
        list(enumerate(looks)),
        given,
        _nothing,
        title=title,
        keep_states=True,
        recorded=False,
    )
    return _Written(mapped.reports, write(mapped.states))


def _holds(store: DrawStore, chain: int, some: slice, written: _Written) -> bool:
    return store.holds(chain, some, written.checksums)


_Shared = tuple[ShardModel, np.ndarray, int, int, _Kept]
"""The model, the center, modes of a group, the seed, and all draws of the shared parameters."""


def _draw(data: ShardData, shard: int, shared: _Shared) -> Answer:
    """Draw the effects of one shard's groups; runs on a worker."""
    look = _look(data, shared)
    chains = range(len(shared[-1].shared))
    parts = [_drawn(data, shard, look, shared, chain, slice(None)) for chain in chains]
    return Answer(None, {name: np.concatenate([p[name] for p in parts]) for name in parts[0]})


def _draw_and_keep(
    data: ShardData,
    shard: int,
    look: int | None,
    shared: _Shared,
    which: tuple[int, slice],
) -> Answer:
    """Draw the effects of one shard's groups, and leave them where they are; runs on a worker."""
    if look is None:
        look = _look(data, shared)
    return Answer(None, look, _drawn(data, shard, look, shared, *which))


def _look(data: ShardData, shared: _Shared) -> int:
    """Tell what all draws of a shard are made with, whichever are made together."""
    model, center, n_modes, _, kept = shared
    return engine_of(model).look(data, kept.shared[0, :_TRIED], center, n_modes)


def _drawn(
    data: ShardData, shard: int, look: int, shared: _Shared, chain: int, some: slice
) -> dict[str, np.ndarray]:
    """Draw at some draws of one chain; single precision is more than draws need."""
    model, center, n_modes, seed, kept = shared
    named = (seed, shard, kept.numbers(chain)[some])
    u = kept.shared[chain, some]
    drawn = engine_of(model).draws(data, u, center, n_modes, named, look)
    return {name: value.astype(np.float32) for name, value in drawn.items()}


# Names, and what else both need


def entry_dims(site: LocalSite) -> tuple[str, ...]:
    """Name the axes that a site has beside that of the groups."""
    names = [variable_name(dim or f"{site.name}_dim_{axis}") for axis, dim in enumerate(site.dims)]
    # No dimension may bear the name of a variable.
    return tuple(
        f"{name}_" if name == variable_name(site.name) else name
        for axis, name in enumerate(names)
        if axis != site.axis
    )


def _entry_coords(plan: Plan, levels: Sequence[Level]) -> dict[str, Any]:
    """Label the axes that sites have beside that of the groups, where something names entries."""
    coords = {}
    for site in (site for its in levels for site in its.sites):
        axes = [axis for axis in range(len(site.dims)) if axis != site.axis]
        for axis, dim in zip(axes, entry_dims(site), strict=True):
            labels = axis_labels(plan.model, plan.labels, site.name, axis)
            if labels is not None:
                coords[dim] = labels
    return coords


def _shrinkage(site: LocalSite) -> str:
    return f"{variable_name(site.name)}_shrinkage"


def _n_modes(plan: Plan, shards: Shards, center: np.ndarray, correction: Correction | None) -> int:
    """Say around how many modes of a group to look: as the correction did, or a shard has."""
    if correction is not None:
        return int(correction.modes)
    asked = on_worker(shards.execution, _most_modes, shards.data[0], plan.model, center[None])
    return int(compute([asked])[0])


def _most_modes(data: ShardData, model: ShardModel, points: np.ndarray) -> int:
    return engine_of(model).most_modes(data, points)


def _nothing(_: list[None]) -> None:
    return None
